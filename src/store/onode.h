/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Object records in memory, reachable by oid, by vid (newest last) and by group.
 *
 * O1 The fields of an onode are the committed state. What is queued for a commit is in `busy`.
 * O2 An onode is in `slots`, in the lists and in the digests exactly while it is not ONODE_ABSENT.
 * O3 An absent onode exists only while it is busy.
 */
#pragma once
#include "base/list.h"
#include "rt/fiber.h"
#include "store/layout.h"
#include "store/pages.h"
#include "store/tree.h"

struct leaf;

/* A leaf of an object: on disk at ptr (as of the last checkpoint; block 0: none), in memory at mem.
 */
struct leaf_ref {
    struct block_ptr ptr;
    struct leaf *mem;
    uint16_t used, end; /* mapped blocks; one past the last mapped one */
};

enum onode_state { ONODE_ABSENT, ONODE_LIVE, ONODE_TOMBSTONE };

struct onode_meta {
    struct leaf_ref ref; /* used when longer than SLOT_META_INLINE */
    uint8_t data[SLOT_META_INLINE];
};

struct onode {
    struct hnode node;
    struct list vid_link, group_link;
    struct oid oid;
    struct version version; /* of the object, or of its tombstone */
    uint64_t meta_version;
    struct leaf_ref *refs;   /* owned, leaf_count of them */
    struct onode_meta *meta; /* owned; NULL: none */
    struct busy *busy;       /* owned; NULL: nothing under way */
    struct block_ptr indirect;
    uint32_t slot;
    uint16_t meta_length;
    uint8_t leaf_count;
    uint8_t state; /* enum onode_state */
    bool indirect_dirty;
    bool damaged; /* part of its map is lost: readable again once replaced */
};

/* What is under way at an object. */
struct busy {
    struct list link;      /* free list */
    unsigned users;        /* fibers that use the onode: it stays, and its leaves are not evicted */
    struct fmutex prepare; /* held while a change is made ready; passes in the order of the calls */
    uint64_t last_commit;  /* number of the commit with the latest queued change */
    enum onode_state state; /* as it will be after the queued changes */
    struct version version;
    uint64_t meta_version;
};

/* All entries of one image, in order of their last change. */
struct vid_list {
    struct hnode node;
    struct vid vid;
    struct list onodes;
    bool ordered; /* versions ascend along the list */
    size_t count;
};

struct group_head {
    struct list onodes; /* next NULL: not initialised */
    uint64_t digest;
};

struct onode_index {
    struct htable by_oid, by_vid;
    struct group_head *groups; /* 65536 */
    struct onode **slots;
    uint32_t slot_count, slot_hint;
    size_t slots_used;
    struct tree tree;
    struct list busy_free;
    uint64_t object_count, tombstone_count;
};

int onode_index_init(struct onode_index *x);
/* Frees all onodes; leaves must be gone. */
void onode_index_done(struct onode_index *x);
/* NULL if there is none; may be absent (O3). */
struct onode *onode_find(const struct onode_index *x, const struct oid *oid);
/* Finds or makes (absent), and counts a user. NULL: out of memory. */
struct onode *onode_hold(struct onode_index *x, const struct oid *oid);
/* As onode_hold() for one that was found. */
struct onode *onode_hold_found(struct onode_index *x, struct onode *o);
/* Ends onode_hold(); the onode is freed when it is absent and nobody else holds it. */
void onode_release(struct onode_index *x, struct onode *o);

/* Moves the onode to a state and version (O2): slot, lists, digests, dirty page. 0 or -ENOMEM. */
int onode_set(struct onode_index *x, struct onode *o, enum onode_state state,
              struct version version);
void onode_set_meta_version(struct onode_index *x, struct onode *o, uint64_t meta_version);
/* Its record has changed: its page goes with the next checkpoint. */
void onode_mark(struct onode_index *x, struct onode *o);
/* Puts one that was read from disk into its slot. -EUCLEAN: there is one of that oid. */
int onode_load(struct onode_index *x, const struct slot *slot, uint32_t slot_number,
               struct onode **ret);
/* Makes refs[0 .. count) exist. */
int onode_grow(struct onode *o, unsigned count);
uint32_t onode_block_count(const struct onode *o);
/* One past the last mapped block. */
uint32_t onode_end(const struct onode *o);
struct vid_list *onode_vid_list(const struct onode_index *x, struct vid vid);
/* True when a page holds no record (T1). */
bool onode_page_is_empty(const struct onode_index *x, uint32_t page);
void onode_page_encode(const struct onode_index *x, uint32_t page, uint8_t out[STORE_BLOCK]);
