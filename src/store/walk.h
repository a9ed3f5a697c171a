/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walking the structures of a checkpoint from disk alone, whatever is left of them: what
 * store_check() lists when a store cannot be opened, and what a repair is made of. Knows bytes
 * (layout.h), not the running store.
 *
 * V1 Every block is claimed at most once as structure, or else any number of times as data. What
 * claims a block against that is given up, and named: so what is left can never use a block twice.
 * V2 Nothing is believed that does not match the checksum of the pointer to it (L1).
 */
#pragma once
#include "rt/rt.h"
#include "store/layout.h"

enum walk_state { WALK_NONE, WALK_GOOD, WALK_LOST };

/* The blocks of a paged array, level 0 being the pages (tree.h). */
struct walk_level {
    uint32_t count;
    struct block_ptr *ptrs; /* owned; those below a lost table are not known: 0 */
    uint8_t *states;        /* owned; enum walk_state */
};
struct walk_tree {
    unsigned type, height;
    struct walk_level levels[TREE_LEVELS];
    uint32_t lost_count; /* pages and tables; pages below a lost table are not counted */
};

/* One record of the object index. */
struct walk_object {
    uint32_t slot_number;
    struct slot slot;
    struct slot_leaf leaves[OBJECT_LEAVES_MAX]; /* all of them, those of indirect objects too */
    bool changed; /* something was given up: this is what is left, marked damaged */
    bool dropped; /* the record is impossible, or the second one of its object */
};

/* Users of a block. */
#define WALK_STRUCTURE UINT16_MAX
#define WALK_USERS_MAX (UINT16_MAX - 1u)

struct walk {
    struct disk *disk;
    struct super super;
    unsigned super_slot, super_bad;
    uint64_t salt;
    void (*report)(void *arg, const char *finding); /* may be NULL, so may say */
    void (*say)(void *arg, const char *text);
    void *arg;
    /* For each record in use, may be NULL. 0, or an error that ends the walk. */
    int (*on_object)(void *arg, const struct walk_object *o);
    void *on_object_arg;

    struct walk_tree trees[TREE_COUNT];
    uint16_t *owners; /* per block from data_first on */
    uint64_t
        *marked; /* bits that the readable bitmap pages have set, by block from data_first on */
    struct htable seen; /* struct seen_oid (walk_objects.c) */
    uint8_t *page, *leaf;
    uint64_t finding_count;
    uint64_t object_count, damaged_count; /* records; those changed or dropped */
    uint64_t dropped_count;               /* records, or metas, that are gone */
    uint64_t bitmap_wrong, share_wrong;   /* blocks whose bit or count is not right */
};

/* Opens the file or device and reads the superblock; says why not. `flags` of disk_open(). The
 * result is to be given to walk_close() in any case. */
fiber_fn int walk_open(struct rt *rt, const char *path, unsigned flags, struct walk *w);
/* Walks everything. 0, also when findings were reported; else it could not be read. */
fiber_fn int walk_run(struct walk *w);
void walk_close(struct walk *w);
void walk_finding(struct walk *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
void walk_say(struct walk *w, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* True when the structures are not as they must be. */
bool walk_is_damaged(const struct walk *w);
/* True when the index cannot be known to name every object. */
bool walk_lost_objects(const struct walk *w);
/* After walk_run(): is there a record of the object? */
bool walk_has_object(const struct walk *w, const struct oid *oid);
int walk_add_object(struct walk *w, const struct oid *oid);
static inline uint32_t walk_block_count(const struct walk *w)
{
    return w->super.block_count - w->super.data_first;
}
static inline bool walk_covers(const struct walk *w, uint32_t block)
{
    return block >= w->super.data_first && block < w->super.block_count;
}
/* Reads a structure block and checks it against its pointer. 0, -EUCLEAN, -EIO. */
fiber_fn int walk_read(struct walk *w, struct block_ptr ptr, unsigned type, uint32_t position,
                       uint8_t *out);
/* Type that goes into the checksum of a block of the array. */
static inline unsigned walk_block_type(const struct walk_tree *t, unsigned level)
{
    return level == 0 ? t->type : (unsigned)PAGE_TABLE | t->type << 4 | level;
}
