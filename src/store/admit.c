/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room: who may take the last blocks of a store, so that a full one never is a dead one.
 *
 * F1 At any time as many blocks can be given out as a checkpoint may need for all that is recorded:
 *    ckpt_need() for what is applied, the footprints for what is on its way. So a checkpoint is
 *    always possible, and gives back what it replaces.
 * F2 Beyond that new data leaves the reserve; overwrites leave half of it, new metas a quarter;
 *    removals, punches and metas that replace each other may use it all. They take nothing for
 * good, so they cannot use it up. F3 Nobody is refused while something is on its way that may give
 * blocks back.
 */
#include "store/admit.h"
#include "base/err.h"

/* What one change of the widest object may need (F2). */
#define FLOOR_MIN 48u

static uint64_t tree_blocks(const struct tree *t)
{
    uint64_t n = 0;

    for (unsigned l = 0; l < t->height; l++)
        n += t->levels[l].count;
    return n;
}

void demand_add(const struct store *s, struct demand *d, uint32_t leaves, uint32_t share_pages)
{
    uint64_t share = MIN((uint64_t)share_pages, tree_blocks(&s->share.tree));

    /* Leaves, their indirect block, the index page and the tables above it. */
    d->footprint += leaves + leaves / SLOT_LEAVES + 1 + MAX(s->index.tree.height, 1u);
    if (share > 0)
        d->footprint += share + share / TREE_FANOUT + s->share.tree.height;
}

uint32_t demand_share_pages(const struct store *s, struct onode *o, uint32_t start, uint32_t end)
{
    uint32_t n = 0, last = UINT32_MAX;

    end = MIN(end, o->leaf_count * LEAF_ENTRIES);
    for (uint32_t k = start; k < end; k++) {
        const struct leaf_ref *ref = leaf_ref_of(o, k / LEAF_ENTRIES);
        struct block_ptr p;
        if (ref->used == 0 || ref->mem == NULL || ref->mem->state == LEAF_LOADING) {
            k |= LEAF_ENTRIES - 1;
            continue;
        }
        p = leaf_entry(ref->mem->data, k % LEAF_ENTRIES);
        if (p.block == 0 || (p.block - s->share.first) / SHARE_PAGE_COUNTS == last)
            continue;
        last = (p.block - s->share.first) / SHARE_PAGE_COUNTS;
        n++;
    }
    return n;
}

/* F1 */
static uint64_t structure_need(const struct store *s)
{
    return ckpt_need(s) + tree_blocks(&s->bitmap) + s->commits[0].footprint +
           s->commits[1].footprint;
}

uint64_t admit_kept(const struct store *s)
{
    return s->reserve + structure_need(s);
}

/* F2 */
static uint64_t floor_of(const struct store *s, enum demand_kind kind)
{
    switch (kind) {
    case DEMAND_DATA:
        return s->reserve;
    case DEMAND_OVERWRITE:
        return MAX(s->reserve / 2, FLOOR_MIN);
    case DEMAND_RECORD:
        return MAX(s->reserve / 4, FLOOR_MIN);
    case DEMAND_FREES:
        break;
    }
    return 0;
}

/* A checkpoint gives back what it replaces and what is stale, and no longer needs room for it. */
static bool checkpoint_helps(const struct store *s)
{
    return s->stale.count > 0 || s->cache.dirty_count > 0 ||
           s->index.tree.levels[0].dirty_count > 0 || s->share.tree.levels[0].dirty_count > 0;
}

fiber_fn int admit_demand(struct store *s, const struct demand *d)
{
    uint64_t need = d->blocks + d->footprint + structure_need(s);
    bool coming;

    if (space_usable(&s->space) >= need + floor_of(s, d->kind))
        return 0;
    coming = s->running != NULL || s->gathering->wanted || s->space.waiting_count > 0 ||
             s->space.held_count > 0 || s->ckpt != NULL;
    if (ahead_grow(s))
        coming = true;
    if (s->ckpt == NULL && checkpoint_helps(s)) {
        ckpt_want(s);
        coming = true;
    }
    if (!coming)
        return -ENOSPC; /* F3 */
    waitq_wait(&s->space_wait);
    return store_check_writable(s) < 0 ? store_check_writable(s) : -EAGAIN;
}
