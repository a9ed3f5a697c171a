/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records to state. Used by the committer when a commit is durable, and by replay (N1).
 *
 * P1 Nothing here suspends or does I/O: a commit is applied in one step for all readers.
 * P2 A block that loses its last user goes to s->freed; who may reuse it when is decided there
 * (S3).
 */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/sharing.h"
#include "store/store_internal.h"

/* One user less. */
static int block_drop(struct store *s, uint32_t block)
{
    if (share_drop(&s->share, block))
        return 0;
    tree_mark(&s->bitmap, space_disown(&s->space, block));
    return u32vec_push(&s->freed, block);
}

/* A block that the record brings. While replaying it must be free: anything else is damage. */
static int block_take(struct store *s, uint32_t block, enum apply_mode mode)
{
    if (mode == APPLY_REPLAY) {
        if (!space_covers(&s->space, block) || !space_is_free(&s->space, block))
            return -EUCLEAN;
        space_mark(&s->space, block);
    }
    tree_mark(&s->bitmap, space_own(&s->space, block));
    return 0;
}

/* Corrects ref->end after entry i was set or cleared. */
static void ref_set_end(struct leaf_ref *ref, unsigned i, bool mapped)
{
    if (mapped) {
        if (i >= ref->end)
            ref->end = (uint16_t)(i + 1);
        return;
    }
    if (i + 1 != ref->end)
        return;
    while (ref->end > 0 && leaf_entry(ref->mem->data, ref->end - 1).block == 0)
        ref->end--;
}

static int entry_set(struct store *s, struct leaf_ref *ref, unsigned i, struct block_ptr p)
{
    struct block_ptr old = leaf_entry(ref->mem->data, i);

    leaf_entry_set(ref->mem->data, i, p);
    if ((old.block != 0) != (p.block != 0))
        ref->used = (uint16_t)(ref->used + (p.block != 0 ? 1 : -1));
    ref_set_end(ref, i, p.block != 0);
    return old.block != 0 ? block_drop(s, old.block) : 0;
}

/* Maps count blocks from `start` to run->block and following, with the checksums at crcs. */
static int run_set(struct store *s, struct onode *o, const struct record_run *run,
                   const uint8_t *crcs, enum apply_mode mode)
{
    int r = onode_grow(&s->index, o, (run->start + run->count - 1) / LEAF_ENTRIES + 1);

    for (uint32_t k = 0; r == 0 && k < run->count; k++) {
        unsigned index = (run->start + k) / LEAF_ENTRIES, i = (run->start + k) % LEAF_ENTRIES;
        if ((k == 0 || i == 0) && leaf_change(s, o, index) == NULL)
            return -ENOMEM;
        r = block_take(s, run->block + k, mode);
        if (r == 0)
            r = entry_set(s, &o->refs[index], i,
                          (struct block_ptr){run->block + k, get_le32(crcs + 4 * k)});
    }
    return r;
}

static int run_punch(struct store *s, struct onode *o, const struct record_run *run)
{
    uint32_t end = MIN(run->start + run->count, o->leaf_count * LEAF_ENTRIES);

    for (uint32_t k = run->start; k < end; k++) {
        struct leaf_ref *ref = &o->refs[k / LEAF_ENTRIES];
        int r;
        if (ref->used == 0) {
            k |= LEAF_ENTRIES - 1;
            continue;
        }
        if (leaf_entry(ref->mem->data, k % LEAF_ENTRIES).block == 0)
            continue;
        if (leaf_change(s, o, k / LEAF_ENTRIES) == NULL)
            return -ENOMEM;
        r = entry_set(s, ref, k % LEAF_ENTRIES, (struct block_ptr){0});
        if (r < 0)
            return r;
    }
    return 0;
}

static int drop_all_blocks(struct store *s, struct onode *o)
{
    int r = 0;

    for (unsigned k = 0; r == 0 && k < o->leaf_count; k++) {
        struct leaf_ref *ref = &o->refs[k];
        for (unsigned i = 0; r == 0 && i < ref->end; i++) {
            struct block_ptr p = leaf_entry(ref->mem->data, i);
            if (p.block != 0)
                r = block_drop(s, p.block);
        }
        if (r == 0)
            r = leaf_drop(s, o, k);
    }
    if (r == 0 && o->indirect.block != 0) {
        r = u32vec_push(&s->stale, o->indirect.block);
        o->indirect = (struct block_ptr){0};
    }
    if (r < 0)
        return r; /* leaves in memory still refer to it */
    o->leaf_count = 0;
    o->damaged = false;
    return 0;
}

static int drop_meta(struct store *s, struct onode *o)
{
    int r = 0;

    if (o->e->meta_length > SLOT_META_INLINE)
        r = leaf_drop(s, o, LEAF_META);
    if (r < 0)
        return r; /* its block in memory still refers to it */
    onode_meta_drop(&s->index, o);
    o->e->meta_length = 0;
    return 0;
}

/* The object gets all blocks of the source, each with one user more. */
static int share_all(struct store *s, struct onode *o, struct onode *source)
{
    int r = onode_grow(&s->index, o, source->leaf_count);

    o->damaged = o->damaged || source->damaged; /* only while replaying */
    for (unsigned k = 0; r == 0 && k < source->leaf_count; k++) {
        const struct leaf_ref *from = &source->refs[k];
        struct leaf *to;
        if (from->used == 0)
            continue;
        to = leaf_change(s, o, k);
        if (to == NULL)
            return -ENOMEM;
        memcpy(to->data, from->mem->data, STORE_BLOCK);
        o->refs[k].used = from->used;
        o->refs[k].end = from->end;
        for (unsigned i = 0; r == 0 && i < from->end; i++) {
            struct block_ptr p = leaf_entry(to->data, i);
            if (p.block != 0 && share_is_known(&s->share, p.block) &&
                share_get(&s->share, p.block) == SHARE_MAX)
                r = -EUCLEAN; /* only while replaying: the running store copies long before */
            else if (p.block != 0)
                r = share_add(&s->share, p.block);
        }
    }
    return r;
}

/* Its caller (replay: apply_prepare()) holds it, loaded. */
static struct onode *held(struct store *s, const struct oid *oid)
{
    const struct entry *e = onode_entry(&s->index, oid);
    struct onode *o = e != NULL ? onode_of(&s->index, e) : NULL;

    ASSERT(o != NULL && o->busy != NULL && o->loaded);
    return o;
}

static bool is_live(struct store *s, const struct oid *oid)
{
    const struct entry *e = onode_entry(&s->index, oid);

    return e != NULL && e->state == ONODE_LIVE;
}

static int apply_change(struct store *s, const struct record *rec, enum apply_mode mode)
{
    struct onode *o = held(s, &rec->oid);
    const uint8_t *crcs = rec->crcs;
    int r = onode_set(&s->index, o, ONODE_LIVE, rec->next);

    if (r == 0 && rec->replace)
        r = drop_all_blocks(s, o);
    if (r == 0 && rec->has_source) {
        if (!is_live(s, &rec->source) || oid_equal(&rec->source, &rec->oid) || o->leaf_count > 0)
            r = -EUCLEAN;
        else
            r = share_all(s, o, held(s, &rec->source));
    }
    for (unsigned i = 0; r == 0 && i < rec->punch_count; i++) {
        struct record_run run = record_punch_get(rec, i);
        r = run_punch(s, o, &run);
    }
    for (unsigned i = 0; r == 0 && i < rec->run_count; i++) {
        struct record_run run = record_run_get(rec, i);
        r = run_set(s, o, &run, crcs, mode);
        crcs += (size_t)run.count * 4;
    }
    onode_sum(o);
    return r;
}

static int apply_remove(struct store *s, const struct record *rec)
{
    struct onode *o;
    int r;

    if (!is_live(s, &rec->oid))
        return 0;
    o = held(s, &rec->oid);
    r = drop_all_blocks(s, o);
    if (r == 0)
        r = drop_meta(s, o);
    onode_sum(o);
    if (r == 0)
        r = onode_set(&s->index, o, rec->next.value ? ONODE_TOMBSTONE : ONODE_ABSENT, rec->next);
    return r;
}

static int apply_meta(struct store *s, const struct record *rec)
{
    struct onode *o;
    int r;

    if (!is_live(s, &rec->oid))
        return -EUCLEAN;
    o = held(s, &rec->oid);
    if (rec->meta_length > SLOT_META_INLINE && o->e->meta_length > SLOT_META_INLINE) {
        /* Stays in a block of its own; its content may not be in memory, and is not needed. */
        if (o->meta->ref.mem == NULL || o->meta->ref.mem->state == LEAF_LOADING)
            r = leaf_drop(s, o, LEAF_META);
        else
            r = 0;
    } else {
        r = drop_meta(s, o);
    }
    if (r == 0 && rec->meta_length > 0)
        r = onode_meta_make(&s->index, o);
    if (r < 0)
        return r;
    o->e->meta_length = rec->meta_length;
    if (rec->meta_length > SLOT_META_INLINE) {
        struct leaf *l = leaf_change(s, o, LEAF_META);
        if (l == NULL)
            return -ENOMEM;
        memset(l->data, 0, STORE_BLOCK);
        memcpy(l->data, rec->meta, rec->meta_length);
    } else if (rec->meta_length > 0) {
        memset(o->meta->data, 0, SLOT_META_INLINE);
        memcpy(o->meta->data, rec->meta, rec->meta_length);
    }
    onode_set_meta_version(&s->index, o, rec->meta_version);
    return 0;
}

int apply_settle(struct store *s, struct vid vid, struct version stable)
{
    const struct vid_list *l = onode_vid_list(&s->index, vid);
    uint32_t n = l != NULL ? l->first : ENTRY_NONE;
    int r = 0;

    while (r == 0 && n != ENTRY_NONE) { /* with the last one the list goes, too */
        const struct entry *e = entry_at(&s->index.entries, n);
        uint32_t next = e->vid_next;
        if (e->state == ONODE_TOMBSTONE && e->version.value <= stable.value)
            r = onode_settle(&s->index, n, stable);
        n = next;
    }
    return r;
}

int apply_record(struct store *s, const struct record *rec, enum apply_mode mode)
{
    int r = -EUCLEAN;

    switch (rec->type) {
    case RECORD_CHANGE:
        r = apply_change(s, rec, mode);
        break;
    case RECORD_REMOVE:
        r = apply_remove(s, rec);
        break;
    case RECORD_META:
        r = apply_meta(s, rec);
        break;
    case RECORD_SETTLE:
        r = apply_settle(s, rec->vid, rec->next);
        break;
    }
    ASSERT(r != -EUCLEAN || mode == APPLY_REPLAY);
    return r;
}

/* All leaves of o; damaged ones are given up, as the running store did. */
static fiber_fn int prepare_object(struct store *s, struct onode *o)
{
    for (unsigned i = 0; i < o->leaf_count; i++) {
        int r = leaf_load_range(s, o, i, i);
        if (r == -EUCLEAN)
            r = leaf_replace_damaged(s, o, i);
        if (r < 0)
            return r;
    }
    return 0;
}

/* A map that cannot be read does not keep the rest of the store from being served: the object is
 * given up, not the replay. */
static fiber_fn int prepare_run(struct store *s, struct onode *o, const struct record_run *run)
{
    unsigned last = (run->start + run->count - 1) / LEAF_ENTRIES;

    for (unsigned i = run->start / LEAF_ENTRIES; i <= last && i < o->leaf_count; i++) {
        int r = leaf_load_range(s, o, i, i);
        if (r == -EUCLEAN)
            r = leaf_replace_damaged(s, o, i);
        if (r < 0)
            return r;
    }
    return 0;
}

static fiber_fn int prepare_ranges(struct store *s, struct onode *o, const struct record *rec)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < rec->punch_count; i++) {
        struct record_run run = record_punch_get(rec, i);
        r = prepare_run(s, o, &run);
    }
    for (unsigned i = 0; r == 0 && i < rec->run_count; i++) {
        struct record_run run = record_run_get(rec, i);
        r = prepare_run(s, o, &run);
    }
    return r;
}

static fiber_fn int hold(struct store *s, const struct oid *oid, struct onode **ret)
{
    *ret = onode_hold(&s->index, oid);
    return *ret != NULL ? onode_load(s, *ret) : -ENOMEM;
}

fiber_fn int apply_prepare(struct store *s, const struct record *rec, struct apply_hold *ret)
{
    int r;

    *ret = (struct apply_hold){NULL, NULL};
    if (rec->type == RECORD_SETTLE)
        return 0;
    r = hold(s, &rec->oid, &ret->o);
    if (r == 0 && rec->has_source) {
        r = hold(s, &rec->source, &ret->source);
        if (r == 0)
            r = prepare_object(s, ret->source);
    }
    if (r < 0 || rec->type == RECORD_META)
        return r;
    if (rec->type == RECORD_REMOVE || rec->replace)
        r = prepare_object(s, ret->o);
    if (r == 0 && rec->type == RECORD_CHANGE)
        r = prepare_ranges(s, ret->o, rec);
    return r == 0 ? sharing_prepare_record(s, rec) : r;
}

void apply_release(struct store *s, const struct apply_hold *h)
{
    if (h->source != NULL)
        onode_release(&s->index, h->source);
    if (h->o != NULL)
        onode_release(&s->index, h->o);
}
