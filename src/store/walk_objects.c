/* SPDX-License-Identifier: Apache-2.0 */
/* Object records, and the maps and metas that they point to. */
#define LOG_MODULE "store"
#include <stdlib.h>
#include "base/err.h"
#include "base/log.h"
#include "store/walk_internal.h"

/* Objects met so far: none may have two records. */
struct seen_oid {
    struct hnode node;
    struct oid oid;
};

bool walk_has_object(const struct walk *w, const struct oid *oid)
{
    struct hnode *n;

    for (n = htable_first(&w->seen, oid_hash(oid)); n != NULL; n = htable_next_same(n)) {
        if (oid_equal(&container_of(n, struct seen_oid, node)->oid, oid))
            return true;
    }
    return false;
}

int walk_add_object(struct walk *w, const struct oid *oid)
{
    struct seen_oid *s = calloc(1, sizeof(*s));

    if (s == NULL)
        return -ENOMEM;
    s->oid = *oid;
    if (htable_insert(&w->seen, &s->node, oid_hash(oid)) < 0) {
        free(s);
        return -ENOMEM;
    }
    return 0;
}

void walk_seen_free(struct walk *w)
{
    struct hnode *n, *next;

    for (n = htable_iter(&w->seen, NULL); n != NULL; n = next) {
        next = htable_iter(&w->seen, n);
        free(container_of(n, struct seen_oid, node));
    }
    htable_done(&w->seen);
}

static unsigned long long offset_of(uint32_t block)
{
    return (unsigned long long)block * STORE_BLOCK;
}

static void object_finding(struct walk *w, const struct walk_object *o, uint32_t block,
                           const char *what)
{
    char name[OID_TEXT_SIZE];

    walk_finding(w, "offset %llu: object %s: %s", offset_of(block), oid_format(&o->slot.oid, name),
                 what);
}

/* --- maps --- */

/* Claims the leaf in w->leaf and the data it maps, if nothing speaks against any of it. */
static bool leaf_claim(struct walk *w, uint32_t block, struct slot_leaf *counted)
{
    uint32_t first = w->super.data_first;

    counted->used = counted->end = 0;
    for (unsigned i = 0; i < LEAF_ENTRIES; i++) {
        struct block_ptr p = leaf_entry(w->leaf, i);
        if (p.block == 0)
            continue;
        if (!walk_covers(w, p.block) || p.block == block ||
            w->owners[p.block - first] >= WALK_USERS_MAX)
            return false;
        counted->used++;
        counted->end = (uint16_t)(i + 1);
    }
    if (counted->used == 0 || !walk_claim_structure(w, block))
        return false;
    for (unsigned i = 0; i < LEAF_ENTRIES; i++) {
        struct block_ptr p = leaf_entry(w->leaf, i);
        /* the same block again and again within this leaf might reach the limit after all */
        if (p.block != 0 && w->owners[p.block - first] < WALK_USERS_MAX)
            w->owners[p.block - first]++;
    }
    return true;
}

static fiber_fn int leaf_walk(struct walk *w, struct walk_object *o, unsigned index)
{
    struct slot_leaf *l = &o->leaves[index];
    struct slot_leaf counted = *l;
    const char *what = "part of its map is lost: checksum error";
    int r;

    if (l->ptr.block == 0)
        return 0;
    r = walk_read(w, l->ptr, PAGE_LEAF, index, w->leaf);
    if (r < 0 && r != -EUCLEAN)
        return r;
    if (r == 0 && !leaf_claim(w, l->ptr.block, &counted)) {
        what = "part of its map is lost: it has blocks of something else";
        r = -EUCLEAN;
    }
    if (r < 0) {
        object_finding(w, o, l->ptr.block, what);
        *l = (struct slot_leaf){0};
        o->slot.flags |= SLOT_DAMAGED;
        o->changed = true;
    } else if (counted.used != l->used || counted.end != l->end) {
        object_finding(w, o, l->ptr.block, "its record does not say what its map holds");
        *l = counted;
        o->changed = true;
    }
    return 0;
}

/* Without its indirect block nothing is left of the map. */
static void indirect_lost(struct walk *w, struct walk_object *o, const char *what)
{
    object_finding(w, o, o->slot.leaves[0].ptr.block, what);
    memset(o->leaves, 0, sizeof(o->leaves));
    memset(o->slot.leaves, 0, sizeof(o->slot.leaves));
    o->slot.leaf_count = 0;
    o->slot.flags = (uint16_t)((o->slot.flags & ~SLOT_INDIRECT) | SLOT_DAMAGED);
    o->changed = true;
}

static fiber_fn int indirect_walk(struct walk *w, struct walk_object *o)
{
    struct block_ptr ptr = o->slot.leaves[0].ptr;
    int r = walk_read(w, ptr, PAGE_INDIRECT, 0, w->leaf);

    if (r < 0 && r != -EUCLEAN)
        return r;
    for (unsigned i = 0; r == 0 && i < o->slot.leaf_count; i++)
        r = slot_leaf_decode(w->leaf + SLOT_LEAF_SIZE * i, &o->leaves[i]);
    if (r < 0)
        indirect_lost(w, o, "its map is lost: checksum error in the index of its map");
    else if (!walk_claim_structure(w, ptr.block))
        indirect_lost(w, o, "its map is lost: the index of its map has another owner too");
    return 0;
}

/* --- records --- */

static fiber_fn int meta_walk(struct walk *w, struct walk_object *o)
{
    int r;

    if (!(o->slot.flags & SLOT_META_BLOCK))
        return 0;
    r = walk_read(w, o->slot.meta, PAGE_META, 0, w->leaf);
    if (r < 0 && r != -EUCLEAN)
        return r;
    if (r < 0) {
        object_finding(w, o, o->slot.meta.block, "its meta does not match its checksum");
    }
    if (walk_claim_structure(w, o->slot.meta.block))
        return 0; /* a bad one stays where it is: it may say what nothing else says any more */
    object_finding(w, o, o->slot.meta.block, "its meta is lost: the block has another owner too");
    o->slot.flags = (uint16_t)((o->slot.flags & ~SLOT_META_BLOCK) | SLOT_DAMAGED);
    o->slot.meta = (struct block_ptr){0};
    o->slot.meta_length = 0;
    o->slot.meta_version = 0;
    o->changed = true;
    w->dropped_count++;
    return 0;
}

static fiber_fn int object_walk(struct walk *w, struct walk_object *o)
{
    char name[OID_TEXT_SIZE];
    int r = 0;

    if (o->slot.flags & SLOT_DAMAGED)
        walk_finding(w, "object %s: part of its map is lost, and nobody has replaced it yet",
                     oid_format(&o->slot.oid, name));
    if (o->slot.flags & SLOT_INDIRECT)
        r = indirect_walk(w, o);
    else
        memcpy(o->leaves, o->slot.leaves, sizeof(o->slot.leaves));
    for (unsigned i = 0; r == 0 && i < o->slot.leaf_count; i++)
        r = leaf_walk(w, o, i);
    if (r == 0)
        r = meta_walk(w, o);
    w->object_count++;
    w->damaged_count += o->changed;
    return r;
}

static fiber_fn int record_walk(struct walk *w, uint32_t page, unsigned k)
{
    struct walk_object o = {.slot_number = page * SLOTS_PER_PAGE + k};
    int r = slot_decode(w->page + SLOT_SIZE * k, &o.slot);

    if (r == 0 && o.slot.flags == 0)
        return 0;
    if (r < 0 || walk_has_object(w, &o.slot.oid)) {
        char name[OID_TEXT_SIZE];
        walk_finding(w, "offset %llu: object %s: %s in the object index, page %u",
                     offset_of(w->trees[TREE_INDEX].levels[0].ptrs[page].block),
                     oid_format(&o.slot.oid, name),
                     r < 0 ? "an impossible record" : "a second record", page);
        o.dropped = true;
        w->dropped_count++;
        w->damaged_count++;
    } else {
        r = walk_add_object(w, &o.slot.oid);
        if (r == 0)
            r = object_walk(w, &o);
        if (r < 0)
            return r;
    }
    return w->on_object != NULL ? w->on_object(w->on_object_arg, &o) : 0;
}

/* What a page that is lost seems to have held: names for the administrator, nothing else. */
static fiber_fn int name_lost(struct walk *w, uint32_t page)
{
    uint32_t block = w->trees[TREE_INDEX].levels[0].ptrs[page].block;
    int r;

    if (!walk_covers(w, block))
        return 0;
    r = disk_read(w->disk, offset_of(block), w->page, STORE_BLOCK);
    for (unsigned k = 0; r == 0 && k < SLOTS_PER_PAGE; k++) {
        char name[OID_TEXT_SIZE];
        struct slot slot;
        if (slot_decode(w->page + SLOT_SIZE * k, &slot) == 0 && slot.flags != 0)
            walk_finding(w, "offset %llu: object %s may be lost with this page of the object index",
                         offset_of(block), oid_format(&slot.oid, name));
    }
    return r;
}

fiber_fn int walk_objects(struct walk *w)
{
    const struct walk_tree *t = &w->trees[TREE_INDEX];
    int r = 0;

    for (uint32_t p = 0; r == 0 && t->height > 0 && p < t->levels[0].count; p++) {
        if (t->levels[0].states[p] == WALK_LOST)
            r = name_lost(w, p);
        if (t->levels[0].states[p] != WALK_GOOD)
            continue;
        r = walk_read(w, t->levels[0].ptrs[p], PAGE_INDEX, p, w->page);
        for (unsigned k = 0; r == 0 && k < SLOTS_PER_PAGE; k++)
            r = record_walk(w, p, k);
    }
    return r;
}
