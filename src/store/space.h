/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which blocks are free: bitmap with summary, and blocks that are freed but not yet reusable.
 *
 * A1 A set bit means "not to be given out": owned by the committed state, by a change under way, by
 * the last checkpoint, freed and waiting (S3), or held to be zeroed or discarded. A2 page_used
 * counts what the committed state owns, per bitmap page: the exact state, without what is under
 * way, waiting or held.
 * A3 All blocks below the frontier have been written at least once, or are about to be. Blocks
 * beyond are given out only when no good room is left below, and not at all in a store that is
 * bounded.
 */
#pragma once
#include "base/list.h"
#include "store/layout.h"
#include "store/u32vec.h"

#define SPACE_REGION_BLOCKS 256u /* 1 MiB: what is noted as freed */

struct space {
    uint32_t first, count; /* block numbers covered: [first, first + count) */
    uint64_t *bits;
    uint32_t page_count;
    uint32_t *page_free;         /* clear bits, per bitmap page */
    uint16_t *page_empty_words;  /* 64-bit words without a set bit, per bitmap page */
    uint32_t *page_used;         /* A2 */
    uint32_t empty_words;        /* sum of page_empty_words */
    uint32_t frontier;           /* A3: block index, whole words or `count` */
    uint32_t ready, ready_words; /* clear bits, and words without a set bit, below it */
    bool bounded;
    uint32_t free_count, used_count;
    uint32_t small_cursor, large_cursor; /* block indexes */
    /* S3: freed by commits that are durable, in use by readers */
    struct list waiting; /* struct free_batch, oldest first */
    size_t waiting_count;
    uint64_t stamp;      /* advances with every batch of frees */
    struct list readers; /* struct space_reader, oldest first */
    struct list holds;   /* struct space_hold */
    bool notes_freed;    /* somebody wants to know where blocks become free */
    uint64_t *freed;     /* a bit per region */
    uint32_t freed_count;
    uint32_t held_count;
    /* A block that was given back although it was free, or owned by nobody: S2 does not hold on
     * disk. 0: none. Not an assertion, because a damaged store can cause it. */
    uint32_t twice;
};

/* One running read or pin: nothing freed after its begin is reused before its end. */
struct space_reader {
    struct list link;
    uint64_t stamp;
};

/* Free blocks that are being zeroed or discarded: nobody gets them meanwhile. */
struct space_hold {
    struct list link;
    uint32_t start, count; /* block numbers */
};

struct free_batch {
    struct list link;
    uint64_t stamp;
    struct u32vec blocks;
};

/* The frontier is at the end. */
int space_init(struct space *sp, uint32_t first, uint32_t count);
void space_done(struct space *sp);

/* Takes up to `want` free blocks in one run, and returns how many (0: disk full). Looks at `hint`
 * (a block number, 0: none) first, then for room that is free in one piece, then for anything. */
uint32_t space_take(struct space *sp, uint32_t hint, uint32_t want, uint32_t *ret_start);
/* As space_take() at the cursor of small writes, so that calls in a row get neighbours. */
uint32_t space_take_small(struct space *sp, uint32_t want, uint32_t *ret_start);
/* Where a new object's large writes should go; moves on by 4 MiB. */
uint32_t space_region(struct space *sp);
/* Blocks that may be given out. */
static inline uint32_t space_usable(const struct space *sp)
{
    return sp->bounded ? sp->ready : sp->free_count;
}
/* Moves the frontier (A3) to block index `to`, rounded down to what it can be. */
void space_set_frontier(struct space *sp, uint32_t to);
bool space_is_free(const struct space *sp, uint32_t block);
bool space_covers(const struct space *sp, uint32_t block);
void space_mark(struct space *sp, uint32_t block);  /* must be free */
void space_clear(struct space *sp, uint32_t block); /* must be marked: reusable from now on */

/* A2; return the bitmap page. */
uint32_t space_own(struct space *sp, uint32_t block);
uint32_t space_disown(struct space *sp, uint32_t block);

/* Takes the blocks in `v` (which is emptied): cleared now, or when all present readers have ended.
 */
int space_release(struct space *sp, struct u32vec *v);
void space_reader_begin(struct space *sp, struct space_reader *r);
/* Holds the first run of at most `want` free blocks that begins in [from, to), block indexes.
 * False: there is none. */
bool space_hold_begin(struct space *sp, struct space_hold *h, uint32_t from, uint32_t to,
                      uint32_t want);
/* They are free again. */
void space_hold_end(struct space *sp, struct space_hold *h);
/* Regions in which blocks have become free. The first one at or after *region; false: none. */
bool space_next_freed(const struct space *sp, uint32_t *region);
void space_forget_freed(struct space *sp, uint32_t region);
void space_note_freed(struct space *sp, uint32_t index);
/* The least frontier below which `want` blocks are free; the end if there are not so many. */
uint32_t space_ready_until(const struct space *sp, uint32_t want);
/* For each block that is marked but not owned, as it is waiting or held. */
void space_each_unowned(const struct space *sp, void (*fn)(void *arg, uint32_t block), void *arg);
/* Returns true when blocks became free. */
bool space_reader_end(struct space *sp, struct space_reader *r);

/* Bitmap page as bytes of the format (bit i of byte i / 8), to be corrected by the caller (A1, A2).
 */
void space_page_get(const struct space *sp, uint32_t page, uint8_t out[STORE_BLOCK]);
/* Loads a page at open. -EUCLEAN: bits beyond the end. */
int space_page_set(struct space *sp, uint32_t page, const uint8_t in[STORE_BLOCK]);
