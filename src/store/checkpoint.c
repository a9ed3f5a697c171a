/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checkpoints: the exact state after one commit, written to fresh blocks while requests go on.
 *
 * K1 The snapshot is taken in one step, without suspension: dirty leaves are handed over by
 * reference (a change copies them first, C2), pages are encoded at once. K2 What the last
 * checkpoint owned and this one does not stays untouched until the superblock names this one,
 * durably. K3 The bitmap that is written shows exactly what the committed state owns: blocks of
 * commits under way, freed blocks that readers hold up, and the old structure blocks are free in
 * it. K4 The log may be reused up to the first commit that this checkpoint does not contain.
 */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/store_internal.h"

#define WRITE_IOV      256u
#define WRITES_AT_ONCE 8u

/* One block to be written. */
struct ckpt_entry {
    uint32_t block;
    bool owned; /* data is a page of ours */
    uint8_t *data;
    struct leaf *leaf; /* whose data it is, while not owned */
};

struct ckpt {
    struct store *s;
    struct ckpt_entry *entries;
    size_t count, capacity;
    struct u32vec freed;    /* K2 */
    uint8_t **bitmap_pages; /* while the snapshot is taken: content of the bitmap pages written */
    struct super super;
};

/* --- estimates --- */

static uint64_t tree_dirty(const struct tree *t)
{
    uint64_t n = 0;

    for (unsigned l = 0; l < t->height; l++)
        n += t->levels[l].dirty_count;
    return n;
}

uint64_t ckpt_need(const struct store *s)
{
    uint64_t n = s->cache.dirty_count + tree_dirty(&s->index.tree) + tree_dirty(&s->share.tree);
    uint64_t bitmap = 0;

    n += s->cache.dirty_count / SLOT_LEAVES; /* indirect blocks of large objects */
    for (unsigned l = 0; l < s->bitmap.height; l++)
        bitmap += s->bitmap.levels[l].count;
    return n + MIN(bitmap, 2 * n + tree_dirty(&s->bitmap) + 4);
}

/* --- taking the snapshot: nothing suspends (K1) --- */

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
    ASSERT(s->structure_blocks > 0);
    s->structure_blocks--;
    return u32vec_push(&ck->freed, block);
}

static int entry_add(struct ckpt *ck, uint32_t block, uint8_t *data, struct leaf *leaf)
{
    if (ck->count == ck->capacity) {
        size_t capacity = ck->capacity * 2 + 64;
        struct ckpt_entry *entries = realloc(ck->entries, capacity * sizeof(*entries));
        if (entries == NULL)
            return -ENOMEM;
        ck->entries = entries;
        ck->capacity = capacity;
    }
    ck->entries[ck->count++] =
        (struct ckpt_entry){.block = block, .owned = leaf == NULL, .data = data, .leaf = leaf};
    return 0;
}

/* An owned page, to be written to `block`. */
static int entry_new(struct ckpt *ck, uint32_t block, uint8_t **ret)
{
    uint8_t *page = page_get(&ck->s->pages);
    int r;

    if (page == NULL)
        return -ENOMEM;
    r = entry_add(ck, block, page, NULL);
    if (r < 0)
        page_put(&ck->s->pages, page);
    else
        *ret = page;
    return r;
}

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
    bool is_meta = l->index == LEAF_META;
    int r = 0;

    ASSERT(ref->mem == l && l->ckpt_entry == NULL);
    onode_mark(&s->index, o);
    if (ref->ptr.block != 0)
        r = ckpt_free(ck, ref->ptr.block);
    ref->ptr = (struct block_ptr){0};
    if (r < 0)
        return r;
    if (!is_meta && ref->used == 0) {
        ref->mem = NULL;
        leaf_free(s, l);
        trim_leaves(o);
        return 0;
    }
    r = ckpt_alloc(ck, &ref->ptr.block);
    if (r < 0)
        return r;
    ref->ptr.crc =
        layout_crc(s->salt, is_meta ? PAGE_META : PAGE_LEAF, is_meta ? 0 : l->index, l->data);
    leaf_set_state(s, l, LEAF_CLEAN);
    return entry_add(ck, ref->ptr.block, l->data, l);
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
        r = entry_new(ck, o->indirect.block, &page);
    if (r < 0)
        return r;
    memset(page, 0, STORE_BLOCK);
    for (unsigned i = 0; i < o->leaf_count; i++) {
        struct slot_leaf leaf = {o->refs[i].ptr, o->refs[i].used, o->refs[i].end};
        slot_leaf_encode(&leaf, page + SLOT_LEAF_SIZE * i);
    }
    o->indirect.crc = layout_crc(ck->s->salt, PAGE_INDIRECT, 0, page);
    return 0;
}

static int take_objects(struct ckpt *ck)
{
    struct store *s = ck->s;
    const struct tree_level *pages = &s->index.tree.levels[0];
    struct leaf *l, *tmp;
    int r = 0;

    list_for_each_safe (l, tmp, &s->cache.dirty, link) {
        r = take_leaf(ck, l);
        if (r < 0)
            return r;
    }
    for (uint32_t p = 0; r == 0 && p < pages->count; p++) {
        if (pages->states[p] == TREE_CLEAN)
            continue;
        for (uint32_t i = p * SLOTS_PER_PAGE; r == 0 && i < (p + 1) * SLOTS_PER_PAGE; i++) {
            if (i < s->index.slot_count && s->index.slots[i] != NULL)
                r = take_indirect(ck, s->index.slots[i]);
        }
    }
    for (size_t i = 0; r == 0 && i < s->stale.count; i++)
        r = ckpt_free(ck, s->stale.v[i]);
    s->stale.count = 0;
    return r;
}

static bool page_is_empty(const struct store *s, const struct tree *t, unsigned level, uint32_t i)
{
    if (level > 0)
        return tree_table_is_empty(t, level, i);
    switch (t->type) {
    case PAGE_INDEX:
        return onode_page_is_empty(&s->index, i);
    case PAGE_SHARE:
        return s->share.pages[i] == NULL;
    default:
        return s->space.page_used[i] == 0;
    }
}

/* Frees the old and finds new blocks for everything dirty of a tree. Doing so for the bitmap makes
 * more of it dirty, until it is all settled. */
static int assign_blocks(struct ckpt *ck, struct tree *t)
{
    bool changed = true;

    while (changed) {
        changed = false;
        for (unsigned l = 0; l < t->height; l++) {
            struct tree_level *level = &t->levels[l];
            for (uint32_t i = 0; i < level->count; i++) {
                int r = 0;
                if (level->states[i] == TREE_CLEAN)
                    continue;
                if (level->states[i] == TREE_DIRTY) {
                    level->states[i] = TREE_ASSIGNED;
                    level->dirty_count--;
                    changed = true;
                    if (level->ptrs[i].block != 0)
                        r = ckpt_free(ck, level->ptrs[i].block);
                    level->ptrs[i] = (struct block_ptr){0};
                }
                if (r == 0 && level->ptrs[i].block == 0 && !page_is_empty(ck->s, t, l, i)) {
                    changed = true;
                    r = ckpt_alloc(ck, &level->ptrs[i].block);
                }
                if (r < 0)
                    return r;
            }
        }
    }
    return 0;
}

static void page_encode(const struct store *s, const struct tree *t, unsigned level, uint32_t i,
                        uint8_t *out)
{
    if (level > 0)
        tree_table_encode(t, level, i, out);
    else if (t->type == PAGE_INDEX)
        onode_page_encode(&s->index, i, out);
    else
        share_page_get(&s->share, i, out);
}

/* Content and checksums, from the pages up to the root. */
static int fill_tree(struct ckpt *ck, struct tree *t)
{
    for (unsigned l = 0; l < t->height; l++) {
        struct tree_level *level = &t->levels[l];
        for (uint32_t i = 0; i < level->count; i++) {
            uint8_t *page = NULL;
            int r = 0;
            if (level->states[i] == TREE_CLEAN)
                continue;
            ASSERT(level->states[i] == TREE_ASSIGNED);
            level->states[i] = TREE_CLEAN;
            if (level->ptrs[i].block == 0)
                continue;
            if (l == 0 && t->type == PAGE_BITMAP)
                page = ck->bitmap_pages[i];
            else
                r = entry_new(ck, level->ptrs[i].block, &page);
            if (r < 0)
                return r;
            if (l > 0 || t->type != PAGE_BITMAP)
                page_encode(ck->s, t, l, i, page);
            level->ptrs[i].crc = layout_crc(ck->s->salt, tree_block_type(t, l), i, page);
        }
    }
    return 0;
}

static void bitmap_clear(void *arg, uint32_t block)
{
    struct ckpt *ck = arg;
    uint32_t i = block - ck->s->space.first, p = i / BITMAP_PAGE_BITS, bit = i % BITMAP_PAGE_BITS;

    if (ck->bitmap_pages[p] == NULL)
        return;
    ASSERT(ck->bitmap_pages[p][bit / 8] & 1u << bit % 8);
    ck->bitmap_pages[p][bit / 8] &= (uint8_t) ~(1u << bit % 8);
}

static uint32_t page_weight(const uint8_t *page)
{
    uint32_t n = 0;

    for (uint32_t k = 0; k < STORE_BLOCK; k += 8)
        n += (uint32_t)__builtin_popcountll(get_le64(page + k));
    return n;
}

/* K3 */
static int fill_bitmap(struct ckpt *ck)
{
    struct store *s = ck->s;
    const struct tree_level *level = &s->bitmap.levels[0];

    ck->bitmap_pages = calloc(level->count, sizeof(*ck->bitmap_pages));
    if (ck->bitmap_pages == NULL)
        return -ENOMEM;
    for (uint32_t p = 0; p < level->count; p++) {
        int r;
        if (level->states[p] == TREE_CLEAN || level->ptrs[p].block == 0)
            continue;
        r = entry_new(ck, level->ptrs[p].block, &ck->bitmap_pages[p]);
        if (r < 0)
            return r;
        space_page_get(&s->space, p, ck->bitmap_pages[p]);
    }
    commit_each_pending(s, bitmap_clear, ck);
    space_each_unowned(&s->space, bitmap_clear, ck);
    for (size_t i = 0; i < ck->freed.count; i++)
        bitmap_clear(ck, ck->freed.v[i]);
    for (uint32_t p = 0; p < level->count; p++)
        ASSERT(ck->bitmap_pages[p] == NULL ||
               page_weight(ck->bitmap_pages[p]) == s->space.page_used[p]);
    return 0;
}

static int snapshot(struct ckpt *ck)
{
    struct store *s = ck->s;
    int r = take_objects(ck);

    ASSERT(s->freed.count == 0);
    if (r == 0)
        r = assign_blocks(ck, &s->index.tree);
    if (r == 0)
        r = assign_blocks(ck, &s->share.tree);
    if (r == 0)
        r = assign_blocks(ck, &s->bitmap);
    if (r == 0)
        r = fill_bitmap(ck);
    if (r == 0)
        r = fill_tree(ck, &s->index.tree);
    if (r == 0)
        r = fill_tree(ck, &s->share.tree);
    if (r == 0)
        r = fill_tree(ck, &s->bitmap);
    free(ck->bitmap_pages);
    ck->bitmap_pages = NULL;
    if (r < 0)
        return r;
    for (size_t i = 0; i < ck->count; i++) {
        if (ck->entries[i].leaf != NULL)
            ck->entries[i].leaf->ckpt_entry = &ck->entries[i];
    }
    ck->super.commit = s->committed;
    ck->super.log_sequence = s->log.applied;
    ck->super.log_prev_crc = s->log.applied_crc;
    ck->super.boot = s->log.boot;
    ck->super.zeroed = ahead_frontier(s); /* these writes are flushed with the checkpoint's */
    ck->super.trees[TREE_INDEX] = tree_root_get(&s->index.tree);
    ck->super.trees[TREE_BITMAP] = tree_root_get(&s->bitmap);
    ck->super.trees[TREE_SHARE] = tree_root_get(&s->share.tree);
    return 0;
}

void ckpt_take_data(struct leaf *l)
{
    ASSERT(l->ckpt_entry->leaf == l);
    l->ckpt_entry->owned = true;
    l->ckpt_entry->leaf = NULL;
    l->ckpt_entry = NULL;
}

/* --- writing it --- */

struct ckpt_io {
    struct disk_io io;
    struct wgroup *group;
    struct iovec iov[WRITE_IOV];
};

static void ckpt_io_done(struct disk_io *io)
{
    wgroup_finish(container_of(io, struct ckpt_io, io)->group);
}

/* Entries are sorted by block: neighbours go as one write. Returns how many were taken. */
static size_t submit_run(struct ckpt *ck, size_t at, struct ckpt_io *cio)
{
    unsigned n = 0;

    while (at + n < ck->count && n < WRITE_IOV &&
           ck->entries[at + n].block == ck->entries[at].block + n) {
        cio->iov[n] = (struct iovec){ck->entries[at + n].data, STORE_BLOCK};
        n++;
    }
    cio->io = (struct disk_io){.op = DISK_WRITE,
                               .offset = block_offset(ck->entries[at].block),
                               .iov = cio->iov,
                               .iov_count = n,
                               .done = ckpt_io_done};
    wgroup_add(cio->group, 1);
    disk_submit(ck->s->disk, &cio->io);
    return n;
}

static fiber_fn int write_entries(struct ckpt *ck)
{
    struct ckpt_io *ios = malloc(WRITES_AT_ONCE * sizeof(*ios));
    size_t at = 0;
    int r = 0;

    if (ios == NULL)
        return -ENOMEM;
    while (r == 0 && at < ck->count) {
        struct wgroup group;
        unsigned n = 0;
        wgroup_init(&group);
        while (n < WRITES_AT_ONCE && at < ck->count) {
            ios[n].group = &group;
            at += submit_run(ck, at, &ios[n]);
            n++;
        }
        wgroup_wait(&group);
        for (unsigned i = 0; r == 0 && i < n; i++)
            r = ios[i].io.result;
    }
    free(ios);
    return r;
}

static int compare_entries(const void *a, const void *b)
{
    const struct ckpt_entry *x = a, *y = b;

    return x->block < y->block ? -1 : x->block > y->block;
}

static void sort_entries(struct ckpt *ck)
{
    bool sorted = true;

    for (size_t i = 1; sorted && i < ck->count; i++)
        sorted = ck->entries[i - 1].block < ck->entries[i].block;
    if (sorted)
        return;
    qsort(ck->entries, ck->count, sizeof(*ck->entries), compare_entries);
    for (size_t i = 0; i < ck->count; i++) {
        if (ck->entries[i].leaf != NULL)
            ck->entries[i].leaf->ckpt_entry = &ck->entries[i];
    }
}

static void ckpt_done(struct ckpt *ck)
{
    for (size_t i = 0; i < ck->count; i++) {
        struct ckpt_entry *e = &ck->entries[i];
        if (e->owned)
            page_put(&ck->s->pages, e->data);
        else
            e->leaf->ckpt_entry = NULL;
    }
    free(ck->entries);
    u32vec_done(&ck->freed);
}

fiber_fn int ckpt_write(struct store *s)
{
    struct ckpt ck = {.s = s, .super = s->super};
    const char *what = "preparing a checkpoint";
    int r = 0;

    ASSERT(s->ckpt == NULL);
    s->ckpt = &ck;
    s->ckpt_wanted = false;
    if (ckpt_need(s) > space_usable(&s->space))
        r = -ENOSPC;
    if (r == 0)
        r = snapshot(&ck);
    if (r == 0) {
        what = "writing a checkpoint";
        sort_entries(&ck);
        r = write_entries(&ck);
    }
    if (r == 0)
        r = store_flush_disk(s);
    if (r == 0) {
        fmutex_lock(&s->super_lock);
        ck.super.cluster = s->super.cluster; /* may have been set meanwhile */
        ck.super.flags = s->super.flags;
        r = super_write(s, &ck.super);
        fmutex_unlock(&s->super_lock);
    }
    if (r == 0) {
        s->log.tail = ck.super.log_sequence; /* K4 */
        r = space_release(&s->space, &ck.freed);
        s->stats.checkpoints++;
    }
    s->ckpt = NULL;
    ckpt_done(&ck);
    if (r < 0)
        store_fail(s, r, what);
    waitq_wake_all(&s->ckpt_done);
    waitq_wake_all(&s->space_wait);
    return r;
}

void ckpt_want(struct store *s)
{
    if (s->ckpt_wanted || s->failed)
        return;
    s->ckpt_wanted = true;
    waitq_wake_all(&s->ckpt_wait);
}

fiber_fn void ckpt_main(void *arg)
{
    struct store *s = arg;

    while (s->mode == STORE_SERVING) {
        if (s->ckpt_wanted && s->failed == 0)
            (void)ckpt_write(s); /* has failed the store if it failed */
        else
            waitq_wait(&s->ckpt_wait);
    }
    wgroup_finish(&s->fibers);
}
