/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Admission by group epoch, and the barrier between epochs.
 *
 * R3 A replica that learns a newer group epoch first finishes or refuses everything admitted
 *    under the older one, before it answers anything at the new one. Here: gate_adopt() closes the
 *    group, waits for `inflight`, and only then makes the new epoch known.
 * G1 What is admitted depends on this node's store alone, never on another node: so the barrier
 *    always ends.
 */
#include <stdlib.h>
#include "object/object_internal.h"

/* Serving can come back without a map change (a session confirmed again): look as often. */
#define SERVING_POLL_NS (20 * NS_PER_MS)

struct group *group_get(struct objects *o, uint32_t group)
{
    return group < o->group_count ? &o->groups[group] : NULL;
}

const struct map_group *group_map(const struct objects *o, uint32_t group)
{
    return group < o->map->group_count ? &o->map->groups[group] : NULL;
}

const struct map_pool *group_pool(const struct objects *o, uint32_t group)
{
    for (uint32_t i = 0; i < o->map->pool_count; i++) {
        const struct map_pool *p = &o->map->pools[i];
        if (group >= p->group_base && group - p->group_base < p->group_count)
            return p;
    }
    return NULL;
}

bool group_may_write(const struct objects *o, uint32_t group)
{
    const struct map_group *g = group_map(o, group);
    const struct map_pool *p = group_pool(o, group);
    return g && g->in_sync_count >= (p ? MAX(p->min_copies, 1) : 1);
}

bool gate_serving(const struct objects *o)
{
    return o->self >= 0 && cluster_serving(o->cluster);
}

static bool is_member(const struct objects *o, uint32_t group)
{
    const struct map_group *g = group_map(o, group);
    if (!g || o->self < 0)
        return false;
    for (unsigned i = 0; i < g->joining_count; i++)
        if (g->joining[i] == o->self)
            return true;
    return map_group_in_sync(g, (uint16_t)o->self);
}

int gate_enter(struct objects *o, uint32_t group, uint64_t epoch)
{
    struct group *g = group_get(o, group);
    if (o->stopping)
        return -ECANCELED;
    if (!g)
        return -EBUSY; /* of a map to come, or of none: the caller's map version tells */
    if (epoch < g->epoch || (g->closed && epoch < g->next_epoch))
        return -EAGAIN;
    if (epoch > g->epoch || g->closed || !gate_serving(o))
        return -EBUSY;
    if (!is_member(o, group))
        return -EAGAIN;
    g->inflight++;
    return 0;
}

void gate_leave(struct objects *o, uint32_t group)
{
    struct group *g = group_get(o, group);
    ASSERT(g && g->inflight > 0);
    if (--g->inflight == 0 && g->closed)
        waitq_wake_all(&o->drain_wait);
}

/* Until something changed that admission depends on. */
static fiber_fn void wait_progress(struct objects *o)
{
    if (gate_serving(o))
        waitq_wait(&o->map_wait);
    else
        waitq_wait_until(&o->map_wait, o->rt, clock_now(o->rt) + SERVING_POLL_NS);
}

fiber_fn int gate_enter_wait(struct objects *o, uint32_t group, uint64_t epoch, const bool *abort)
{
    for (;;) {
        if (abort && *abort)
            return -ECANCELED;
        int r = gate_enter(o, group, epoch);
        if (r != -EBUSY)
            return r;
        wait_progress(o);
    }
}

fiber_fn int gate_wait_map(struct objects *o, uint64_t version, const bool *abort)
{
    while (o->map->version < version || !gate_serving(o)) {
        if (o->stopping || (abort && *abort))
            return -ECANCELED;
        wait_progress(o);
    }
    return o->stopping ? -ECANCELED : 0;
}

static int table_grow(struct objects *o, uint32_t count)
{
    if (count <= o->group_count)
        return 0;
    struct group *groups = calloc(count, sizeof(groups[0]));
    if (!groups)
        return -ENOMEM;
    for (uint32_t i = 0; i < count; i++)
        list_init(&groups[i].changes);
    for (uint32_t i = 0; i < o->group_count; i++) {
        struct list *old = &o->groups[i].changes;
        groups[i] = o->groups[i];
        list_init(&groups[i].changes);
        list_splice_back(&groups[i].changes, old);
    }
    free(o->groups);
    o->groups = groups;
    o->group_count = count;
    return 0;
}

static bool drained(const struct objects *o)
{
    for (uint32_t i = 0; i < o->group_count; i++)
        if (o->groups[i].closed && o->groups[i].inflight > 0)
            return false;
    return true;
}

static void find_self(struct objects *o)
{
    const struct map_node *n = map_node_by_session(o->map, cluster_session(o->cluster));
    o->self = n ? n->number : -1;
}

/* Closes the groups whose epoch `m` changes. */
static void close_changed(struct objects *o, const struct map *m)
{
    for (uint32_t i = 0; i < m->group_count; i++) {
        struct group *g = &o->groups[i];
        if (m->groups[i].epoch.value > g->epoch) {
            g->closed = true;
            g->next_epoch = m->groups[i].epoch.value;
        }
    }
}

fiber_fn int gate_adopt(struct objects *o, struct map *m)
{
    int r = table_grow(o, m->group_count);
    if (r < 0)
        return r;
    close_changed(o, m);
    join_closing(o);
    /* Both at one moment, and no suspension from there to the new map. */
    while (!serve_fence(o, m) || !drained(o))
        waitq_wait(&o->drain_wait);
    struct map *old = o->map;
    o->map = map_ref(m);
    map_unref(old);
    find_self(o);
    for (uint32_t i = 0; i < o->group_count; i++) {
        struct group *g = &o->groups[i];
        if (!g->closed)
            continue;
        g->closed = false;
        g->epoch = g->next_epoch;
        g->cascade_sequence = 0;
    }
    join_adopt(o);
    waitq_wake_all(&o->map_wait);
    return 0;
}
