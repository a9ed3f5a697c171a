/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this node knows of volumes: the newest term and the highest stable version (refcount.md,
 * floors).
 *
 * F1 Both only grow. They live in memory: a node that restarted learns them again from the next
 *    request, and until then the fence by session (R6) and unerased keys keep everything right.
 */
#include <stdlib.h>
#include "object/object_internal.h"

#define LOOKUP_AGE_NS (5 * NS_PER_S)

struct volume_floor {
    struct hnode node;
    uint64_t volume;
    struct term term;
    uint64_t stable;
    uint64_t looked_up_ns; /* 0: never */
};

void floors_init(struct objects *o)
{
    htable_init(&o->floors.by_volume);
}

void floors_done(struct objects *o)
{
    struct hnode *n = htable_iter(&o->floors.by_volume, NULL);
    while (n) {
        struct hnode *next = htable_iter(&o->floors.by_volume, n);
        htable_remove(&o->floors.by_volume, n);
        free(container_of(n, struct volume_floor, node));
        n = next;
    }
    htable_done(&o->floors.by_volume);
}

static struct volume_floor *floor_find(const struct objects *o, uint64_t volume)
{
    struct hnode *n = htable_first(&o->floors.by_volume, hash_u64(volume));
    for (; n; n = htable_next_same(n)) {
        struct volume_floor *f = container_of(n, struct volume_floor, node);
        if (f->volume == volume)
            return f;
    }
    return NULL;
}

/* NULL when out of memory: then nothing is known, which is safe (F1). */
static struct volume_floor *floor_make(struct objects *o, uint64_t volume)
{
    struct volume_floor *f = floor_find(o, volume);
    if (f)
        return f;
    f = calloc(1, sizeof(*f));
    if (!f)
        return NULL;
    f->volume = volume;
    if (htable_insert(&o->floors.by_volume, &f->node, hash_u64(volume)) < 0) {
        free(f);
        return NULL;
    }
    return f;
}

int floors_note(struct objects *o, const struct peer_owner *owner)
{
    if (owner->volume == 0)
        return 0;
    struct volume_floor *f = floor_make(o, owner->volume);
    if (!f)
        return 0;
    if (owner->term.value < f->term.value || f->stable == UINT64_MAX)
        return -ESTALE;
    f->term = owner->term;
    if (owner->stable.value > f->stable) {
        f->stable = owner->stable.value;
        if (owner->vid.value != 0)
            store_settle(o->store, owner->vid, owner->stable);
    }
    return 0;
}

uint64_t floors_get(const struct objects *o, uint64_t volume)
{
    const struct volume_floor *f = floor_find(o, volume);
    return f ? f->stable : 0;
}

fiber_fn void floors_refresh(struct objects *o, uint64_t volume)
{
    struct volume_floor *f = floor_make(o, volume);
    uint64_t now = clock_now(o->rt);
    if (!f || !o->floors.lookup || f->stable == UINT64_MAX ||
        (f->looked_up_ns && now - f->looked_up_ns < LOOKUP_AGE_NS))
        return;
    f->looked_up_ns = now;
    uint64_t floor = 0;
    if (o->floors.lookup(o->floors.lookup_arg, volume, &floor) < 0)
        return;
    /* Entries are never removed while the service lives, so f is still good. */
    f->stable = MAX(f->stable, floor);
}
