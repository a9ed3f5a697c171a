/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which blocks are free: bitmap with summary, and blocks that are freed but not yet reusable.
 *
 * A1 A set bit means "not to be given out": owned by the committed state, by a change under way, by
 * the last checkpoint, or freed and waiting (S3). A2 page_used counts what the committed state
 * owns, per bitmap page: the exact state, without what is under way or waiting.
 */
#pragma once
#include "base/list.h"
#include "store/layout.h"
#include "store/u32vec.h"

struct space {
    uint32_t first, count; /* block numbers covered: [first, first + count) */
    uint64_t *bits;
    uint32_t page_count;
    uint32_t *page_free;        /* clear bits, per bitmap page */
    uint16_t *page_empty_words; /* 64-bit words without a set bit, per bitmap page */
    uint32_t *page_used;        /* A2 */
    uint32_t empty_words;       /* sum of page_empty_words */
    uint32_t free_count, used_count;
    uint32_t small_cursor, large_cursor; /* block indexes */
    /* S3: freed by commits that are durable, in use by readers */
    struct list waiting; /* struct free_batch, oldest first */
    size_t waiting_count;
    uint64_t stamp;      /* advances with every batch of frees */
    struct list readers; /* struct space_reader, oldest first */
};

/* One running read or pin: nothing freed after its begin is reused before its end. */
struct space_reader {
    struct list link;
    uint64_t stamp;
};

struct free_batch {
    struct list link;
    uint64_t stamp;
    struct u32vec blocks;
};

int space_init(struct space *sp, uint32_t first, uint32_t count);
void space_done(struct space *sp);

/* Takes up to `want` free blocks in one run, and returns how many (0: disk full). Looks at `hint`
 * (a block number, 0: none) first, then for room that is free in one piece, then for anything. */
uint32_t space_take(struct space *sp, uint32_t hint, uint32_t want, uint32_t *ret_start);
/* As space_take() at the cursor of small writes, so that calls in a row get neighbours. */
uint32_t space_take_small(struct space *sp, uint32_t want, uint32_t *ret_start);
/* Where a new object's large writes should go; moves on by 4 MiB. */
uint32_t space_region(struct space *sp);
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
/* Returns true when blocks became free. */
bool space_reader_end(struct space *sp, struct space_reader *r);

/* Bitmap page as bytes of the format (bit i of byte i / 8), to be corrected by the caller (A1, A2).
 */
void space_page_get(const struct space *sp, uint32_t page, uint8_t out[STORE_BLOCK]);
/* Loads a page at open. -EUCLEAN: bits beyond the end. */
int space_page_set(struct space *sp, uint32_t page, const uint8_t in[STORE_BLOCK]);
