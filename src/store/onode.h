/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The index of objects: every object's entry (entry.h), and of those in use or lately used the
 * record (onode) with its block map and meta.
 *
 * O1 Entry and onode are the committed state. What is queued for a commit is in `busy`.
 * O2 An entry is in its vid's list and in the digests exactly while it is not ONODE_ABSENT.
 * O3 An absent entry exists only while its onode is busy. A tombstone is an entry, nothing else.
 * O4 An onode may be in memory before its content: `loaded`. Only a live object's has to be read.
 * O5 An onode is dropped only when nobody uses it, no leaf of it is in memory, and the index page
 * on disk has all of it.
 */
#pragma once
#include "base/hash.h"
#include "base/list.h"
#include "rt/fiber.h"
#include "store/entry.h"
#include "store/pages.h"
#include "store/tree.h"
#include "store/u32vec.h"

struct leaf;

/* A leaf of an object: on disk at ptr (as of the last checkpoint; block 0: none), in memory at mem.
 */
struct leaf_ref {
    struct block_ptr ptr;
    struct leaf *mem;
    uint16_t used, end; /* mapped blocks; one past the last mapped one */
};

struct onode_meta {
    struct leaf_ref ref; /* used when longer than SLOT_META_INLINE */
    uint8_t data[SLOT_META_INLINE];
};

struct onode {
    struct list link; /* index.onodes */
    struct entry *e;
    struct leaf_ref *refs;   /* owned, leaf_count of them in use */
    struct onode_meta *meta; /* owned; NULL: none */
    struct busy *busy;       /* owned; NULL: nothing under way */
    struct block_ptr indirect;
    uint32_t slot;
    uint8_t leaf_count, ref_capacity;
    bool indirect_dirty;
    bool damaged; /* part of its map is lost: readable again once replaced */
    bool loaded;  /* O4 */
    bool touched; /* used since the cache last looked for something to drop */
};

/* What is under way at an object. */
struct busy {
    struct list link;      /* free list */
    unsigned users;        /* fibers that use the onode: it stays, and its leaves are not evicted */
    struct fmutex prepare; /* held while a change is made ready; passes in the order of the calls */
    uint64_t last_commit;  /* number of the commit with the latest queued change */
    struct index_page *page; /* I1; NULL: no change is meant */
    enum onode_state state;  /* as it will be after the queued changes */
    struct version version;
    uint64_t meta_version;
};

/*
 * A page of the index as the last checkpoint wrote it, for what is not in memory as onodes.
 * I1 It is here while a change is under way at an object of it, and while a live object of it has
 *    changed since: so a checkpoint never has to read it.
 * I2 It is here while a checkpoint is writing it: so what has not arrived is never read.
 */
struct index_page {
    struct list link; /* index.pages */
    uint8_t *data;
    uint32_t number, pins;
    uint32_t epoch; /* of the checkpoint that wrote it last */
    bool loading;   /* others wait on index.loads */
    bool touched;
};

/* All entries of one image, in order of their last change. */
struct vid_list {
    struct hnode node;
    struct vid vid;
    uint32_t first, last;
    bool ordered; /* versions ascend along the list */
    size_t count;
};

union onode_place {
    struct onode *o;
    uint32_t next_free;
};

struct onode_index {
    struct entry_table entries;
    struct htable by_vid;
    union onode_place *places; /* of the onodes, by their numbers (entry.body) */
    uint32_t place_count, place_free;
    struct list onodes; /* in the order in which the cache looked at them */
    size_t onode_bytes;
    struct list busy_free;
    struct tree tree;
    struct page_pool *pool;
    struct index_page **images; /* by page number, NULL: not in memory; image_count of them */
    uint32_t image_count;
    struct list pages;
    size_t page_count;
    struct waitq loads;
    struct u32vec late; /* pages changed by a settle, not marked yet (see onode_page_settled) */
    uint32_t epoch;     /* of the checkpoint that is being, or was last, written */
    uint64_t object_count, tombstone_count;
};

void onode_index_init(struct onode_index *x, struct page_pool *pool);
/* Frees everything; leaves must be gone. */
void onode_index_done(struct onode_index *x);
/* NULL if there is none; may be absent (O3). */
struct entry *onode_entry(const struct onode_index *x, const struct oid *oid);
/* NULL if it is not in memory; may not be loaded yet. */
struct onode *onode_of(const struct onode_index *x, const struct entry *e);
/* The loaded onode of an object, NULL: it has none in memory. */
struct onode *onode_find(const struct onode_index *x, const struct oid *oid);
/* The onode of a slot if it is in memory and loaded, else NULL. */
struct onode *onode_at(const struct onode_index *x, uint32_t slot);
/* For a change: finds or makes (absent), and counts a user; to be loaded by onode_load(). NULL: out
 * of memory. */
struct onode *onode_hold(struct onode_index *x, const struct oid *oid);
/* As onode_hold() for one that is in memory. */
struct onode *onode_hold_found(struct onode_index *x, struct onode *o);
/* As onode_hold() for an entry. */
struct onode *onode_hold_slot(struct onode_index *x, uint32_t slot);
/* Ends onode_hold(); entry and onode go when it is absent and nobody else holds it. */
void onode_release(struct onode_index *x, struct onode *o);
static inline bool onode_is_ready(const struct onode *o)
{
    return o->loaded && o->busy->page != NULL;
}

/* Moves the object to a state and version (O2): lists, digests, dirty page. 0 or -ENOMEM. */
int onode_set(struct onode_index *x, struct onode *o, enum onode_state state,
              struct version version);
void onode_set_meta_version(struct onode_index *x, struct onode *o, uint64_t meta_version);
/* Its record has changed: its page goes with the next checkpoint. */
void onode_mark(struct onode_index *x, struct onode *o);
/* Drops the tombstone in a slot, and one that is queued if it is not above `stable`. 0 or -ENOMEM.
 */
int onode_settle(struct onode_index *x, uint32_t slot, struct version stable);
/* Adds the entry of a slot that was read from disk, without the sums of its map. -EUCLEAN: there is
 * one of that oid, or it is impossible. */
int onode_add(struct onode_index *x, const struct slot *slot, uint32_t number);
/* Makes refs[0 .. count) exist. */
int onode_grow(struct onode_index *x, struct onode *o, unsigned count);
/* Makes o->meta exist. */
int onode_meta_make(struct onode_index *x, struct onode *o);
void onode_meta_drop(struct onode_index *x, struct onode *o);
/* Sums up the map in the entry. */
void onode_sum(struct onode *o);
struct vid_list *onode_vid_list(const struct onode_index *x, struct vid vid);
/* Drops one that is in memory (O5). */
void onode_drop(struct onode_index *x, struct onode *o);

/* --- onode_page.c --- */
static inline bool onode_page_is_dirty(const struct onode_index *x, uint32_t page)
{
    return tree_is_dirty(&x->tree, 0, page);
}
/* True when a page holds no record (T1). */
bool onode_page_is_empty(const struct onode_index *x, uint32_t page);
/* The page as it is to be written. A page with live objects is in memory (I1), and stays until the
 * checkpoint has ended (I2). */
void onode_page_encode(const struct onode_index *x, uint32_t page, uint8_t out[STORE_BLOCK]);
/* True if the page may be marked (I1). */
bool onode_page_may_change(const struct onode_index *x, uint32_t page);
int onode_page_reserve(struct onode_index *x, uint32_t page_count);
struct index_page *onode_page_find(const struct onode_index *x, uint32_t page);
/* A tombstone of the page is gone. If its page would have to be read, it is noted in `late`:
 * index_prepare() reads and marks it. 0 or -ENOMEM. */
int onode_page_settled(struct onode_index *x, uint32_t page);
void onode_page_drop(struct onode_index *x, struct index_page *p);
