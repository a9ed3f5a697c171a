/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading everything as it lies on disk, in small steps, so that rot is found while there are other
 * copies. A pass goes over the superblock, the arrays (index, bitmap, share counts), then over all
 * objects: their maps and metas, then their data.
 *
 * V1 A structure block is compared with its pointer while no checkpoint is being made, and under a
 *    space_reader: it cannot be replaced and reused meanwhile (S3).
 * V2 Rot in a structure block whose content is in memory is mended: it is made dirty, and the next
 *    checkpoint writes it elsewhere.
 */
#define LOG_MODULE "store"
#include <stdio.h>
#include "base/err.h"
#include "base/log.h"
#include "store/admit.h"

#define STEP_BYTES  (512u << 10)
#define TREE_BLOCKS 32u /* structure blocks of the arrays at a time */

static void note_error(struct store *s)
{
    struct scrub *c = &s->scrub;

    c->info.errors++;
    snprintf(c->info.last, sizeof(c->info.last), "%.*s", (int)sizeof(c->info.last) - 1, s->problem);
}

static void note_mended(struct store *s)
{
    s->scrub.info.mended++;
    log_warn("%s: its content is in memory: it is written elsewhere", s->disk->name);
    ckpt_want(s);
}

/* Room for one dirty map, index page or table more (F1). False: there is none. */
static fiber_fn bool admit_mending(struct store *s)
{
    struct demand d = {.kind = DEMAND_FREES};
    int r;

    demand_add(s, &d, 1, 1);
    while ((r = admit_demand(s, &d)) == -EAGAIN)
        ;
    return r == 0;
}

/* Reads the block that *p names, if it names one, and compares. 0; -EUCLEAN: it does not match, or
 * cannot be read; other errors. (V1) *p is looked at when nothing is in the way. */
static fiber_fn int block_verify(struct store *s, const struct block_ptr *p, unsigned type,
                                 uint32_t position, uint8_t *buffer)
{
    struct block_want w = {.ptr = *p, .type = type, .position = position};
    struct space_reader reader;
    int r;

    if (w.ptr.block == 0)
        return 0;
    space_reader_begin(&s->space, &reader);
    r = block_read_one(s, &w, buffer);
    if (space_reader_end(&s->space, &reader))
        waitq_wake_all(&s->space_wait);
    if (r == -EIO && s->failed == 0) {
        store_problem(s, w.ptr.block, "a structure block cannot be read");
        r = -EUCLEAN;
    }
    s->scrub.info.bytes += STORE_BLOCK;
    return r;
}

/* V1 */
static fiber_fn int await_checkpoint(struct store *s)
{
    while (s->ckpt != NULL && s->failed == 0)
        waitq_wait(&s->ckpt_done);
    return s->failed ? -EIO : 0;
}

/* --- superblock and arrays --- */

static fiber_fn int scrub_super(struct store *s)
{
    struct super sb;
    unsigned slot, bad = 0;
    int r;

    if (s->read_only)
        return 0;
    fmutex_lock(&s->super_lock);
    r = super_read(s->disk, &sb, &slot, &bad);
    if (r < 0 || bad != 0) {
        store_problem(s, bad >> 1, "a copy of the superblock is damaged");
        note_error(s);
        r = super_write(s, &s->super);
        if (r == 0)
            note_mended(s);
        else
            store_fail(s, r, "writing the superblock");
    }
    fmutex_unlock(&s->super_lock);
    s->scrub.info.bytes += LAYOUT_SUPER_COPIES * STORE_BLOCK;
    return r;
}

static struct tree *scrub_tree(struct store *s, unsigned i)
{
    struct tree *trees[TREE_COUNT] = {&s->index.tree, &s->bitmap, &s->share.tree};

    return trees[i];
}

/* Is what the block should hold in memory? (V2) */
static bool is_known(const struct store *s, const struct tree *t, unsigned level, uint32_t i)
{
    if (level == 0 && t->type == PAGE_SHARE)
        return s->share.pages[i] != NULL && s->share.pages[i]->data != NULL;
    if (level == 0 && t->type == PAGE_INDEX)
        return onode_page_may_change(&s->index, i);
    return true;
}

static fiber_fn int scrub_tree_block(struct store *s, struct tree *t, unsigned level, uint32_t i,
                                     uint8_t *buffer)
{
    const struct block_ptr *p = &t->levels[level].ptrs[i];
    struct block_ptr old = *p;
    int r = block_verify(s, p, tree_block_type(t, level), i, buffer);

    if (r != -EUCLEAN)
        return r;
    note_error(s);
    if (s->read_only || !admit_mending(s) || level >= t->height || i >= t->levels[level].count)
        return 0;
    p = &t->levels[level].ptrs[i];
    if (p->block == old.block && is_known(s, t, level, i)) {
        tree_mark_level(t, level, i);
        note_mended(s);
    }
    return 0;
}

/* The next few blocks of the arrays; at their end the objects are next. */
static fiber_fn int scrub_arrays(struct store *s, uint8_t *buffer)
{
    struct scrub *c = &s->scrub;
    unsigned n = 0;
    int r = 0;

    if (c->tree == 0 && c->level == 0 && c->page == 0)
        r = scrub_super(s);
    while (r == 0 && n < TREE_BLOCKS && c->tree < TREE_COUNT) {
        struct tree *t = scrub_tree(s, c->tree);
        if (c->level >= t->height) {
            c->tree++;
            c->level = c->page = 0;
        } else if (c->page >= t->levels[c->level].count) {
            c->level++;
            c->page = 0;
        } else if (t->levels[c->level].ptrs[c->page].block == 0) {
            c->page++;
        } else {
            r = await_checkpoint(s);
            if (r == 0 && c->level < t->height && c->page < t->levels[c->level].count)
                r = scrub_tree_block(s, t, c->level, c->page, buffer);
            c->page++;
            n++;
        }
    }
    return r;
}

/* --- objects --- */

/* A map, or the meta block (index LEAF_META), as it lies on disk. o is held. */
static fiber_fn int scrub_leaf(struct store *s, struct onode *o, unsigned index, uint8_t *buffer)
{
    bool is_meta = index == LEAF_META;
    const struct leaf_ref *ref = leaf_ref_of(o, index);
    struct block_ptr old;
    int r;

    if (ref == NULL || ref->ptr.block == 0)
        return 0;
    old = ref->ptr;
    r = block_verify(s, &ref->ptr, is_meta ? PAGE_META : PAGE_LEAF, is_meta ? 0 : index, buffer);
    if (r != -EUCLEAN)
        return r;
    note_error(s);
    if (s->read_only || !admit_mending(s))
        return 0;
    ref = leaf_ref_of(o, index);
    if (ref == NULL || ref->ptr.block != old.block || ref->mem == NULL ||
        ref->mem->state == LEAF_LOADING)
        return 0;
    if (ref->mem->state == LEAF_CLEAN && leaf_change(s, o, index) == NULL)
        return -ENOMEM;
    onode_mark(&s->index, o);
    note_mended(s);
    return 0;
}

static fiber_fn int scrub_maps(struct store *s, struct onode *o, uint8_t *buffer)
{
    struct block_ptr old;
    int r = await_checkpoint(s);

    for (unsigned k = 0; r == 0 && k < o->leaf_count; k++) {
        r = scrub_leaf(s, o, k, buffer);
        if (r == 0)
            r = await_checkpoint(s);
    }
    if (r == 0 && o->e->meta_length > SLOT_META_INLINE)
        r = scrub_leaf(s, o, LEAF_META, buffer);
    if (r == 0)
        r = await_checkpoint(s);
    old = o->indirect;
    if (r == 0)
        r = block_verify(s, &o->indirect, PAGE_INDIRECT, 0, buffer);
    if (r == -EUCLEAN) {
        note_error(s);
        r = 0;
        if (!s->read_only && admit_mending(s) && o->indirect.block == old.block) {
            o->indirect_dirty = true;
            onode_mark(&s->index, o);
            note_mended(s);
        }
    }
    return r;
}

static fiber_fn int scrub_object_maps(struct store *s, uint32_t slot, uint8_t *buffer)
{
    struct onode *o = onode_hold_slot(&s->index, slot);
    int r;

    if (o == NULL)
        return -ENOMEM;
    r = onode_load(s, o);
    if (r == 0) {
        r = scrub_maps(s, o, buffer);
    } else if (r == -EUCLEAN) {
        note_error(s);
        r = 0;
    }
    onode_release(&s->index, o);
    return r;
}

/* Next part of the object's data, through the ordinary path, which checks and reports. *ret_end:
 * that was the last. */
static fiber_fn int scrub_data(struct store *s, const struct oid *oid, uint8_t *buffer,
                               bool *ret_end)
{
    struct scrub *c = &s->scrub;
    struct store_stat stat;
    uint64_t end;
    size_t n;
    int r;

    store_stat(s, oid, &stat);
    end = MAX(stat.end, STORE_BLOCK); /* one whose map is all lost says so, too */
    *ret_end = c->at + STEP_BYTES >= end;
    if (stat.version.value == 0 || c->at >= end)
        return 0;
    n = (size_t)MIN((uint64_t)STEP_BYTES, end - c->at);
    r = store_read(s, oid, c->at, n, buffer, NULL);
    c->own_reads++;
    c->info.bytes += n;
    c->at += n;
    if (r == -EUCLEAN)
        note_error(s);
    return r == -ENOENT || r == -EUCLEAN ? 0 : r;
}

static fiber_fn int scrub_next_object(struct store *s, uint8_t *buffer)
{
    struct scrub *c = &s->scrub;
    const struct entry *e = NULL;
    struct oid oid;
    bool end = true;
    int r = 0;

    while (c->slot < entry_slot_count(&s->index.entries)) {
        e = entry_at(&s->index.entries, c->slot);
        if (e != NULL && e->state == ONODE_LIVE)
            break;
        c->slot++;
        c->at = 0;
    }
    if (c->slot >= entry_slot_count(&s->index.entries)) { /* the pass is over */
        c->tree = c->level = c->page = c->slot = 0;
        c->at = 0;
        c->info.passes++;
        return 0;
    }
    oid = e->oid;
    if (c->at == 0)
        r = scrub_object_maps(s, c->slot, buffer);
    if (r == 0)
        r = scrub_data(s, &oid, buffer, &end);
    if (end) {
        c->info.objects++;
        c->slot++;
        c->at = 0;
    }
    return r;
}

fiber_fn int scrub_next(struct store *s, uint8_t *buffer)
{
    return s->scrub.tree < TREE_COUNT ? scrub_arrays(s, buffer) : scrub_next_object(s, buffer);
}

uint8_t *scrub_buffer_new(void)
{
    return aligned_alloc(STORE_BLOCK, STEP_BYTES);
}

static fiber_fn int do_scrub_step(struct store *s, uint64_t bytes, uint64_t *ret_bytes,
                                  uint64_t *ret_errors)
{
    const struct store_scrub_info before = s->scrub.info;
    uint8_t *buffer = scrub_buffer_new();
    int r = 0;

    *ret_bytes = *ret_errors = 0;
    if (buffer == NULL)
        return -ENOMEM;
    while (r == 0 && *ret_bytes < bytes && s->scrub.info.passes == before.passes) {
        r = s->failed ? -EIO : scrub_next(s, buffer);
        *ret_bytes = s->scrub.info.bytes - before.bytes;
    }
    *ret_errors = s->scrub.info.errors - before.errors;
    free(buffer);
    return r;
}

fiber_fn int store_scrub_step(struct store *s, uint64_t bytes, uint64_t *ret_bytes,
                              uint64_t *ret_errors)
{
    store_enter(s);
    return store_leave(s, do_scrub_step(s, bytes, ret_bytes, ret_errors));
}

void store_scrub_info(const struct store *s, struct store_scrub_info *ret)
{
    *ret = s->scrub.info;
}
