/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of struct store, shared by the files of this folder.
 *
 * The way of a change: change.c admits it (versions), makes it ready (leaves, merges), then in one
 * step without suspension allocates blocks and appends its record to the gathering commit. commit.c
 * submits data early, then writes the commit's log blocks, flushes, applies the records (apply.c)
 * to the state that readers see, and wakes who waits. checkpoint.c writes that state now and then.
 *
 * N1 What readers see is the state after `committed`; records are applied in log order, by the same
 *    code at run time and at replay.
 * N2 Blocks of `gathering` and `running` are marked in space but not owned.
 */
#pragma once
#include "rt/rt.h"
#include "store/onode.h"
#include "store/record.h"
#include "store/share.h"
#include "store/space.h"

#define DATA_IOV 64u /* pieces of one vectored write */

struct ckpt;

/* --- leaf cache (leaf.c) --- */

#define LEAF_META 0xffu /* index of the block that holds an object's meta */

enum leaf_state { LEAF_LOADING, LEAF_CLEAN, LEAF_DIRTY };

/*
 * A leaf, or an object's meta block, in memory.
 * C1 A dirty leaf stays until a checkpoint has taken it.
 * C2 While `write` is set a checkpoint is about to write `data`: a change replaces it by a copy
 * first.
 */
struct leaf {
    struct list link; /* cache.clean (least recently used first) or cache.dirty */
    struct onode *onode;
    uint8_t *data;
    struct write_entry *write;
    uint8_t index; /* within the object, or LEAF_META */
    uint8_t state; /* enum leaf_state */
    bool orphan;   /* dropped while it was being read */
};

struct leaf_cache {
    struct list clean, dirty;
    size_t count, dirty_count;
    size_t bytes_max; /* of leaves, onodes, index pages and share counts together */
    struct waitq loads;
};

/* --- commits (commit.c) --- */

struct piece {
    uint32_t block, count;
    const uint8_t *data;
};

/* A group of changes that becomes durable as a whole. */
struct commit {
    uint64_t number;
    struct enc payload;   /* records */
    struct list changes;  /* struct waiter */
    struct piece *pieces; /* data, submitted up to piece_submitted */
    size_t piece_count, piece_capacity, piece_submitted;
    struct wgroup io;   /* data and log writes under way */
    int error;          /* the first of them */
    bool wanted;        /* somebody waits for it */
    uint64_t footprint; /* structure blocks that its records may cost (F1) */
};

/* A fiber that waits for its records to be durable. */
struct waiter {
    struct list link;
    struct fiber *fiber;
    bool done;
};

struct settle {
    struct vid vid;
    struct version stable;
};

struct log_state {
    uint64_t sequence; /* of the next block */
    uint64_t tail;     /* oldest block that replay needs */
    uint32_t prev_crc; /* of the block before `sequence` */
    uint64_t
        applied; /* first block whose commit is not applied: a checkpoint's replay begins here */
    uint32_t applied_crc;
    uint32_t boot;
    uint32_t commit_blocks_max;
    uint8_t *buffer;    /* commit_blocks_max blocks, aligned */
    bool last_is_empty; /* the last commit holds nothing */
};

/* Zeroing ahead (ahead.c). */
struct ahead {
    bool off;  /* a device, or all is written; or not wanted: then the frontier is not looked at */
    bool idle; /* the fiber waits */
    bool wanted; /* somebody waits for room beyond the frontier */
    bool stuck;  /* the last try failed */
    uint64_t retry_ns;
    uint32_t target_words;
    uint64_t seen; /* by guests_busy() */
    struct waitq wait;
};

/* Giving back freed space of a device (discard.c). */
struct discard {
    bool off, idle;
    uint64_t batch_ns;
    struct waitq wait;
};

/* Where the scrub is, and what it found (scrub.c, scrubber.c). */
struct scrub {
    unsigned tree, level; /* of the arrays, until tree is TREE_COUNT */
    uint32_t page;
    uint32_t slot; /* then of the objects */
    uint64_t at;   /* byte of its data */
    uint64_t own_reads, seen;
    bool idle; /* the fiber waits for something to read */
    struct waitq wait;
    struct store_scrub_info info;
};

enum store_mode { STORE_SERVING, STORE_CLOSING };

struct store {
    struct rt *rt;
    struct disk *disk;
    struct super super;
    uint64_t salt;
    unsigned super_slot; /* copy that holds `super` */
    struct fmutex super_lock;
    bool read_only, unsafe_no_flush, inexact, fua;
    int failed;
    enum store_mode mode;

    struct page_pool pages;
    struct onode_index index;
    struct leaf_cache cache;
    struct space space;
    struct tree bitmap;
    struct share share;
    struct u32vec freed; /* blocks freed by the records being applied */
    struct u32vec stale; /* structure blocks of the last checkpoint that nothing refers to now */
    uint64_t structure_blocks; /* of the last checkpoint */
    uint32_t reserve;

    struct log_state log;
    struct commit commits[2];
    struct commit *gathering, *running; /* running: NULL while the committer is idle */
    uint64_t committed;                 /* number of the last commit applied */
    struct waitq commit_wait, pump_wait, room, durable, space_wait;
    bool committer_idle;
    struct wgroup callers;   /* fibers inside a call, and pins: store_close() waits for them */
    struct wgroup fibers;    /* committer, pump, checkpointer */
    struct list data_free;   /* struct data_io */
    struct record_run *runs; /* scratch of the change being recorded */
    size_t run_capacity;
    struct settle *settles;
    size_t settle_count, settle_capacity;
    struct timer quiet;
    uint64_t last_commit_ns;

    struct ahead ahead;
    struct discard discard;

    struct ckpt *ckpt; /* being written */
    bool ckpt_wanted;
    unsigned ckpt_last_items; /* how many the last step of a checkpoint should find at most */
    struct waitq ckpt_wait, ckpt_step, ckpt_done;

    struct scrub scrub;
    struct store_stats stats;
    char problem[256]; /* the last thing found wrong, for store_check() */
    uint64_t unfit_commit,
        commit_limit; /* of the log: did not fit; the first that is not replayed */
};

static inline uint64_t block_offset(uint32_t block)
{
    return (uint64_t)block * STORE_BLOCK;
}

/* Around every call that may suspend. */
static inline void store_enter(struct store *s)
{
    wgroup_add(&s->callers, 1);
}
static inline int store_leave(struct store *s, int r)
{
    wgroup_finish(&s->callers);
    return r;
}

/* Logs what is wrong with the store at a block, and keeps the text for store_check(). */
void store_problem(struct store *s, uint64_t block, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* -EUCLEAN when freeing has met a block that had no such owner (space.twice): the store must stop
 * before it uses a block twice. */
int store_check_twice(struct store *s);
/* The store stops serving: wakes everybody. `what` names the operation. */
void store_fail(struct store *s, int error, const char *what);
/* 0, or -EIO / -ECANCELED when no change can be made any more. */
int store_check_writable(const struct store *s);

/* --- leaf.c --- */
void leaf_cache_init(struct leaf_cache *c, uint64_t bytes);
void leaf_cache_done(struct store *s);
/* Where the onode refers to a leaf (or its meta block). */
struct leaf_ref *leaf_ref_of(struct onode *o, unsigned index);
/* Brings a leaf into memory. 0 and *ret (NULL: there is none, all holes), -EUCLEAN, -EIO, -ENOMEM.
 * `o` must be held if the call is not to race with its end; *suspended is set when other fibers
 * ran. */
fiber_fn int leaf_load(struct store *s, struct onode *o, unsigned index, struct leaf **ret,
                       bool *suspended);
/* Brings all leaves [first, last] that exist into memory. */
fiber_fn int leaf_load_range(struct store *s, struct onode *o, unsigned first, unsigned last);
/* For a change: the leaf in memory, made if there is none, made private (C2), dirty. NULL: out of
 * memory. The leaf must be loaded if it exists. */
struct leaf *leaf_change(struct store *s, struct onode *o, unsigned index);
/* Forgets leaf and pointer; the block on disk goes with the next checkpoint. 0 or -ENOMEM. */
int leaf_drop(struct store *s, struct onode *o, unsigned index);
/* Removes a leaf that a checkpoint found empty or has written from the dirty list, and so on. */
void leaf_set_state(struct store *s, struct leaf *l, enum leaf_state state);
void leaf_free(struct store *s, struct leaf *l);
/* Gives up a leaf that cannot be read, before the object is removed or replaced: its blocks are
 * lost until a repair, and until then the object is marked damaged and not readable. */
int leaf_replace_damaged(struct store *s, struct onode *o, unsigned index);
/* Drops what is clean and not in use while the cache is over its budget. */
void leaf_cache_shrink(struct store *s);
static inline size_t cache_bytes(const struct store *s)
{
    return (s->cache.count + s->index.page_count + s->share.loaded) * STORE_BLOCK +
           s->index.onode_bytes;
}
/* What only a checkpoint makes droppable. */
static inline size_t cache_dirty_bytes(const struct store *s)
{
    return (s->cache.dirty_count + s->index.tree.levels[0].dirty_count +
            s->share.tree.levels[0].dirty_count) *
           (size_t)STORE_BLOCK;
}

/* --- onode_page.c --- */
/* Brings the onode's content into memory, and its index page, which stays while the onode is held:
 * so a change of it can be applied. `o` is held. 0, -EUCLEAN, -EIO, -ENOMEM. */
fiber_fn int onode_load(struct store *s, struct onode *o);
/* What a reader holds, so that what it has loaded stays until it has all. */
struct onode_reader {
    struct onode *held;
    bool again; /* something had to be loaded: this is not the first look */
};
/* The loaded onode of a live object. -ENOENT; -EAGAIN: it had to be loaded, and the state may have
 * changed meanwhile: look again; or an error of onode_load(). */
fiber_fn int onode_get(struct store *s, const struct oid *oid, struct onode_reader *reader,
                       struct onode **ret);
void onode_reader_end(struct store *s, struct onode_reader *reader);
/* Before a checkpoint: reads and marks the pages that settles have changed. Afterwards index.late
 * is empty until the caller suspends. */
fiber_fn int index_prepare(struct store *s);

/* --- apply.c --- */
/* Applies one record to the committed state. Onodes and leaves concerned are loaded and held. 0,
 * -ENOMEM, -EUCLEAN (impossible record; only while replaying). */
enum apply_mode { APPLY_RUNNING, APPLY_REPLAY };
int apply_record(struct store *s, const struct record *rec, enum apply_mode mode);
/* For replay: holds and loads what apply_record() will need. To be ended by apply_release(), also
 * after an error. */
struct apply_hold {
    struct onode *o, *source; /* NULL: none */
};
fiber_fn int apply_prepare(struct store *s, const struct record *rec, struct apply_hold *ret);
void apply_release(struct store *s, const struct apply_hold *h);
/* Drops tombstones of vid up to `stable`. */
int apply_settle(struct store *s, struct vid vid, struct version stable);

/* --- commit.c --- */
int commit_init(struct store *s);
void commit_done(struct store *s);
fiber_fn void commit_main(void *arg); /* fiber: the committer */
fiber_fn void commit_pump(void *arg); /* fiber: submits data while the committer is busy */
void commit_quiet(struct timer *t);   /* an empty commit after the last one */
/* Waits until the gathering commit has room for `bytes` more. May suspend even when there is some.
 */
fiber_fn int commit_room(struct store *s, size_t bytes);
/* Appends data to be written with the gathering commit. 0 or -ENOMEM. */
int commit_data(struct store *s, uint32_t block, uint32_t count, const uint8_t *data);
/* Hands all data appended so far to the disk at once: of a large change, so that the disk works
 * while the checksums of it and of the next ones are computed. */
void commit_data_early(struct store *s);
/* The gathering commit has a new record: wake who carries it out. */
void commit_kick(struct store *s);
/* Waits until the records appended by this fiber since commit_kick() are durable. 0 or -EIO. */
fiber_fn int commit_wait_mine(struct store *s);
/* Waits until commit `number` is durable. 0 or -EIO. */
fiber_fn int commit_wait_number(struct store *s, uint64_t number);
size_t commit_bytes_max(const struct store *s);
/* Writes one commit with nothing else going on (open). */
fiber_fn int commit_write_empty(struct store *s);
fiber_fn int store_flush_disk(struct store *s);
/* For each block that is allocated by a change that is not applied yet. */
void commit_each_pending(struct store *s, void (*fn)(void *arg, uint32_t block), void *arg);

/* Notes that all commits written so far are applied. */
static inline void log_note_applied(struct store *s)
{
    s->log.applied = s->log.sequence;
    s->log.applied_crc = s->log.prev_crc;
}

/* --- checkpoint.c --- */
fiber_fn void ckpt_main(void *arg); /* fiber: the checkpointer */
/* Writes a checkpoint now; one at a time. */
fiber_fn int ckpt_write(struct store *s);
void ckpt_want(struct store *s);
void ckpt_init(struct store *s, unsigned last_items);
/* For the committer, before a commit: lets a checkpoint get ahead that cannot keep up (K5). */
fiber_fn void ckpt_pace(struct store *s);
/* What a block that a checkpoint has queued is to hold; NULL: what is on disk counts. */
const uint8_t *ckpt_unwritten(const struct store *s, uint32_t block);
/* Blocks that the next checkpoint will have to allocate, estimated from above. */
uint64_t ckpt_need(const struct store *s);

/* --- ahead.c --- */
/* After space_init(), before anything is marked. */
void ahead_init(struct store *s, const struct store_open_options *o);
fiber_fn void ahead_main(void *arg); /* fiber, unless s->ahead.off */
/* Wakes the fiber when there is something to do. */
void ahead_if_due(struct store *s);
/* Asks for room in a bounded store (A3). True: it is worth waiting for. */
bool ahead_grow(struct store *s);
/* Free blocks that a full file system keeps from us. */
uint32_t ahead_unreachable(const struct store *s);
/* What the superblock is to say. */
uint32_t ahead_frontier(const struct store *s);
/* Makes a bounded store have room for a checkpoint, as far as it can. */
fiber_fn int ahead_at_open(struct store *s);

/* --- discard.c --- */
void discard_init(struct store *s, const struct store_open_options *o);
fiber_fn void discard_main(void *arg); /* fiber, unless s->discard.off */
void discard_if_due(struct store *s);

/* --- scrub.c, scrubber.c --- */
/* Reads the next part into a buffer of scrub_buffer_new(). */
fiber_fn int scrub_next(struct store *s, uint8_t *buffer);
uint8_t *scrub_buffer_new(void);
fiber_fn void scrub_main(void *arg); /* fiber, with a rate */
/* There are changes: wakes the fiber if it found nothing before. */
static inline void scrub_changed(struct store *s)
{
    if (s->scrub.idle)
        waitq_wake_all(&s->scrub.wait);
}

/* --- superblock.c --- */
/* Writes `next` to both copies with new generations, flushed, and makes it s->super. The caller
 * holds s->super_lock since before it looked at s->super. */
fiber_fn int super_write(struct store *s, const struct super *next);
/* Writes `next` to both copies, the one that is not in `slot` first, each flushed. */
fiber_fn int super_write_copies(struct disk *d, struct super *next, unsigned slot, uint8_t *page);
/* The newest good copy. 0, -EMEDIUMTYPE, -EPROTO, -EUCLEAN. *ret_bad: bits of copies that are
 * damaged, or older than they must be. */
fiber_fn int super_read(struct disk *d, struct super *ret, unsigned *ret_slot, unsigned *ret_bad);

/* --- load.c, replay.c --- */
/* Reads the checkpoint that s->super names. */
fiber_fn int load_checkpoint(struct store *s);
/* Reads the log behind it and applies it (S1). */
fiber_fn int replay_log(struct store *s);

/* --- blocks.c --- */
/* Reads many structure blocks with several requests in flight, checks each against its pointer
 * (L1), and calls fn with its content, in the order of the blocks on disk. Stops at the first
 * error. */
struct block_want {
    struct block_ptr ptr;
    unsigned type;
    uint32_t position;
    uint32_t tag; /* for fn */
};
fiber_fn int blocks_read(struct store *s, const struct block_want *wants, size_t count,
                         int (*fn)(void *arg, const struct block_want *w, const uint8_t *data),
                         void *arg);
fiber_fn int block_read_one(struct store *s, const struct block_want *w, uint8_t *buffer);

/* --- open.c --- */
/* As store_open(); *ret_problem (256 bytes, may be NULL) gets what was found wrong on failure. */
fiber_fn int store_open_explain(struct rt *rt, const char *path,
                                const struct store_open_options *options, struct store **ret,
                                char *ret_problem);
