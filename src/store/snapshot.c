/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Taking the committed state for a checkpoint. Nothing here suspends.
 *
 * S6 What is taken is clean, and its content is queued: leaves by reference (a change copies them
 *    first, C2), pages as an image. A later change makes it dirty again, and it is taken again: in
 *    the same place if that was not written yet (W2), else in a new one.
 * S7 The image of a bitmap page depends on nothing but what is owned in it, and every change of
 * that marks the page (K3): an image taken early is right as long as its page stays clean. So with
 * the other arrays.
 */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/checkpoint.h"

int snapshot_init(struct ckpt *ck)
{
    writes_init(&ck->writes, &ck->s->pages);
    ck->bitmap_pages = calloc(tree_page_count(&ck->s->bitmap), sizeof(*ck->bitmap_pages));
    return ck->bitmap_pages != NULL ? 0 : -ENOMEM;
}

void snapshot_done(struct ckpt *ck)
{
    writes_done(&ck->writes);
    free(ck->bitmap_pages);
    u32vec_done(&ck->freed);
}

static int ckpt_alloc(struct ckpt *ck, uint32_t *ret)
{
    struct store *s = ck->s;

    if (space_take_small(&s->space, 1, ret) == 0)
        return -ENOSPC;
    tree_mark(&s->bitmap, space_own(&s->space, *ret));
    s->structure_blocks++;
    return 0;
}

static int ckpt_free(struct ckpt *ck, uint32_t block)
{
    struct store *s = ck->s;

    tree_mark(&s->bitmap, space_disown(&s->space, block));
    s->structure_blocks -= MIN(s->structure_blocks, 1u); /* S2 may not hold: space.twice */
    return u32vec_push(&ck->freed, block);
}

/* --- objects --- */

static void trim_leaves(struct onode *o)
{
    while (o->leaf_count > 0 && o->refs[o->leaf_count - 1].used == 0 &&
           o->refs[o->leaf_count - 1].mem == NULL)
        o->leaf_count--;
}

static int take_leaf(struct ckpt *ck, struct leaf *l)
{
    struct store *s = ck->s;
    struct onode *o = l->onode;
    struct leaf_ref *ref = leaf_ref_of(o, l->index);
    bool is_meta = l->index == LEAF_META, is_empty = !is_meta && ref->used == 0;
    int r = 0;

    ASSERT(ref->mem == l && l->write == NULL);
    onode_mark(&s->index, o);
    o->indirect_dirty = o->leaf_count > SLOT_LEAVES; /* it names the leaf's new place */
    ck->items++;
    if (ref->ptr.block != 0 && (is_empty || writes_find(&ck->writes, ref->ptr.block) == NULL)) {
        r = ckpt_free(ck, ref->ptr.block);
        ref->ptr = (struct block_ptr){0};
    }
    if (r < 0)
        return r;
    if (is_empty) {
        ref->mem = NULL;
        leaf_free(s, l);
        trim_leaves(o);
        return 0;
    }
    if (ref->ptr.block == 0)
        r = ckpt_alloc(ck, &ref->ptr.block);
    if (r < 0)
        return r;
    ref->ptr.crc =
        layout_crc(s->salt, is_meta ? PAGE_META : PAGE_LEAF, is_meta ? 0 : l->index, l->data);
    leaf_set_state(s, l, LEAF_CLEAN);
    return writes_put_leaf(&ck->writes, ref->ptr.block, l);
}

int snapshot_take_leaves(struct ckpt *ck, size_t count, size_t *ret)
{
    struct store *s = ck->s;
    int r = 0;

    *ret = 0;
    while (r == 0 && *ret < count && !list_empty(&s->cache.dirty)) {
        r = take_leaf(ck, list_first(&s->cache.dirty, struct leaf, link));
        (*ret)++;
    }
    while (r == 0 && *ret < count && s->stale.count > 0) {
        r = ckpt_free(ck, s->stale.v[--s->stale.count]);
        (*ret)++;
    }
    return r;
}

static int take_indirect(struct ckpt *ck, struct onode *o)
{
    uint8_t *page;
    int r = 0;

    if (o->leaf_count > SLOT_LEAVES && !o->indirect_dirty && o->indirect.block != 0)
        return 0;
    if (o->indirect.block != 0)
        r = ckpt_free(ck, o->indirect.block);
    o->indirect = (struct block_ptr){0};
    o->indirect_dirty = false;
    if (r < 0 || o->leaf_count <= SLOT_LEAVES)
        return r;
    r = ckpt_alloc(ck, &o->indirect.block);
    if (r == 0)
        r = writes_add_page(&ck->writes, o->indirect.block, &page);
    if (r < 0)
        return r;
    memset(page, 0, STORE_BLOCK);
    for (unsigned i = 0; i < o->leaf_count; i++) {
        struct slot_leaf leaf = {o->refs[i].ptr, o->refs[i].used, o->refs[i].end};
        slot_leaf_encode(&leaf, page + SLOT_LEAF_SIZE * i);
    }
    o->indirect.crc = layout_crc(ck->s->salt, PAGE_INDIRECT, 0, page);
    ck->items++;
    return 0;
}

/* What the records of an index page point to. */
static int take_indirects(struct ckpt *ck, uint32_t page)
{
    const struct onode_index *x = &ck->s->index;
    int r = 0;

    for (uint32_t i = page * SLOTS_PER_PAGE; r == 0 && i < (page + 1) * SLOTS_PER_PAGE; i++) {
        struct onode *o = onode_at(x, i);
        if (o != NULL)
            r = take_indirect(ck, o);
    }
    return r;
}

/* --- pages --- */

static bool page_is_empty(const struct store *s, const struct tree *t, unsigned level, uint32_t i)
{
    if (level > 0)
        return tree_table_is_empty(t, level, i);
    switch (t->type) {
    case PAGE_INDEX:
        return onode_page_is_empty(&s->index, i);
    case PAGE_SHARE:
        return share_page_is_empty(&s->share, i);
    default:
        return s->space.page_used[i] == 0;
    }
}

/* Sees to it that a dirty entry has a block that may be written, and a page in ck->writes for it.
 * True in *changed if blocks changed owners. A bitmap page that has got a block keeps it, though it
 * may become empty: else freeing and choosing blocks might go on for ever. */
static int page_assign(struct ckpt *ck, struct tree *t, unsigned level, uint32_t i, bool *changed)
{
    struct block_ptr *p = &t->levels[level].ptrs[i];
    bool empty = page_is_empty(ck->s, t, level, i);
    bool keep = p->block != 0 && (!empty || t->type == PAGE_BITMAP) &&
                writes_find(&ck->writes, p->block) != NULL;
    uint8_t *page;
    int r = 0;

    if (p->block != 0 && !keep) {
        r = ckpt_free(ck, p->block);
        *p = (struct block_ptr){0};
        *changed = true;
        empty = page_is_empty(ck->s, t, level, i); /* a bitmap page may have owned its own block */
    }
    if (r == 0 && p->block == 0 && !empty) {
        r = ckpt_alloc(ck, &p->block);
        if (r == 0)
            r = writes_add_page(&ck->writes, p->block, &page);
        *changed = true;
    }
    return r;
}

static void page_encode(const struct store *s, const struct tree *t, unsigned level, uint32_t i,
                        uint8_t *out)
{
    if (level > 0)
        tree_table_encode(t, level, i, out);
    else if (t->type == PAGE_INDEX)
        onode_page_encode(&s->index, i, out);
    else if (t->type == PAGE_SHARE)
        share_page_get(&s->share, i, out);
}

/* Content and checksum; bitmap pages have their content already. */
static void page_fill(struct ckpt *ck, struct tree *t, unsigned level, uint32_t i)
{
    struct block_ptr *p = &t->levels[level].ptrs[i];

    ck->items++;
    if (p->block != 0) {
        struct write_entry *e = writes_find(&ck->writes, p->block);
        ASSERT(e != NULL && e->leaf == NULL);
        page_encode(ck->s, t, level, i, e->data);
        p->crc = layout_crc(ck->s->salt, tree_block_type(t, level), i, e->data);
    }
    tree_set_clean(t, level, i);
    if (level == 0 && t->type == PAGE_SHARE)
        share_page_taken(&ck->s->share, i);
}

/* --- bitmap pages --- */

static void bitmap_clear(void *arg, uint32_t block)
{
    struct ckpt *ck = arg;
    uint32_t i = block - ck->s->space.first, p = i / BITMAP_PAGE_BITS, bit = i % BITMAP_PAGE_BITS;

    if (ck->bitmap_pages[p] == NULL)
        return;
    if (!(ck->bitmap_pages[p][bit / 8] & 1u << bit % 8))
        ck->s->space.twice = block;
    ck->bitmap_pages[p][bit / 8] &= (uint8_t) ~(1u << bit % 8);
}

static uint32_t page_weight(const uint8_t *page)
{
    uint32_t n = 0;

    for (uint32_t k = 0; k < STORE_BLOCK; k += 8)
        n += (uint32_t)__builtin_popcountll(get_le64(page + k));
    return n;
}

/* From what is marked in the pages of ck->bitmap_pages to what is owned (K3). */
static void bitmap_clear_unowned(struct ckpt *ck)
{
    struct store *s = ck->s;

    commit_each_pending(s, bitmap_clear, ck);
    space_each_unowned(&s->space, bitmap_clear, ck);
    for (size_t i = 0; i < ck->freed.count; i++)
        bitmap_clear(ck, ck->freed.v[i]);
}

/* Has page_assign() seen the entry as it is now? */
static bool page_is_assigned(const struct ckpt *ck, const struct tree *t, unsigned level,
                             uint32_t i)
{
    uint32_t block = t->levels[level].ptrs[i].block;

    return block != 0 ? writes_find(&ck->writes, block) != NULL : page_is_empty(ck->s, t, level, i);
}

/* Content of the dirty bitmap pages in [first, end) that have their blocks. */
static void bitmap_fill(struct ckpt *ck, uint32_t first, uint32_t end)
{
    struct store *s = ck->s;
    uint32_t p;

    for (uint32_t at = first; tree_next_dirty(&s->bitmap, 0, at, &p) && p < end; at = p + 1) {
        const struct write_entry *e = writes_find(&ck->writes, s->bitmap.levels[0].ptrs[p].block);
        if (e == NULL)
            continue;
        ck->bitmap_pages[p] = e->data;
        space_page_get(&s->space, p, e->data);
    }
    bitmap_clear_unowned(ck);
    for (uint32_t at = first; tree_next_dirty(&s->bitmap, 0, at, &p) && p < end; at = p + 1) {
        if (ck->bitmap_pages[p] != NULL &&
            page_weight(ck->bitmap_pages[p]) != s->space.page_used[p])
            s->space.twice = s->space.first + p * BITMAP_PAGE_BITS;
        ck->bitmap_pages[p] = NULL;
    }
}

/* --- ahead of the last step --- */

int snapshot_take_pages(struct ckpt *ck, struct tree *t, uint32_t *cursor, size_t count,
                        size_t *ret)
{
    uint32_t first = *cursor, p;
    bool changed;
    int r = 0;

    *ret = 0;
    while (r == 0 && *ret < count && tree_next_dirty(t, 0, *cursor, &p)) {
        if (t->type == PAGE_INDEX)
            r = take_indirects(ck, p);
        if (r == 0)
            r = page_assign(ck, t, 0, p, &changed);
        *cursor = p + 1;
        (*ret)++;
    }
    if (r == 0 && *ret > 0 && t->type == PAGE_BITMAP)
        bitmap_fill(ck, first, *cursor);
    for (uint32_t at = first; r == 0 && tree_next_dirty(t, 0, at, &p) && p < *cursor; at = p + 1) {
        /* Choosing blocks may have made more bitmap pages dirty on the way: the next pass. */
        if (page_is_assigned(ck, t, 0, p))
            page_fill(ck, t, 0, p);
    }
    return r;
}

/* --- the last step --- */

/* Doing so for the bitmap makes more of it dirty, until it is all settled. */
static int assign_all(struct ckpt *ck, struct tree *t)
{
    bool changed = true;
    int r = 0;

    while (r == 0 && changed) {
        changed = false;
        for (unsigned l = 0; l < t->height; l++) {
            uint32_t i;
            for (uint32_t at = 0; r == 0 && tree_next_dirty(t, l, at, &i); at = i + 1)
                r = page_assign(ck, t, l, i, &changed);
        }
    }
    return r;
}

/* From the pages up to the root. */
static void fill_all(struct ckpt *ck, struct tree *t)
{
    for (unsigned l = 0; l < t->height; l++) {
        uint32_t i;
        for (uint32_t at = 0; tree_next_dirty(t, l, at, &i); at = i + 1)
            page_fill(ck, t, l, i);
    }
}

static int take_objects(struct ckpt *ck)
{
    size_t n;
    uint32_t p;
    int r = snapshot_take_leaves(ck, SIZE_MAX, &n);

    for (uint32_t at = 0; r == 0 && tree_next_dirty(&ck->s->index.tree, 0, at, &p); at = p + 1)
        r = take_indirects(ck, p);
    return r;
}

int snapshot_take_rest(struct ckpt *ck)
{
    struct store *s = ck->s;
    int r = take_objects(ck);

    ASSERT(s->freed.count == 0 && s->index.late.count == 0);
    if (r == 0)
        r = assign_all(ck, &s->index.tree);
    if (r == 0)
        r = assign_all(ck, &s->share.tree);
    if (r == 0)
        r = assign_all(ck, &s->bitmap);
    if (r < 0)
        return r;
    bitmap_fill(ck, 0, UINT32_MAX);
    fill_all(ck, &s->index.tree);
    fill_all(ck, &s->share.tree);
    fill_all(ck, &s->bitmap);
    ck->super.commit = s->committed;
    ck->super.log_sequence = s->log.applied;
    ck->super.log_prev_crc = s->log.applied_crc;
    ck->super.boot = s->log.boot;
    ck->super.scrub_slot = s->scrub.slot;
    ck->super.zeroed = ahead_frontier(s); /* these writes are flushed with the checkpoint's */
    ck->super.trees[TREE_INDEX] = tree_root_get(&s->index.tree);
    ck->super.trees[TREE_BITMAP] = tree_root_get(&s->bitmap);
    ck->super.trees[TREE_SHARE] = tree_root_get(&s->share.tree);
    return 0;
}
