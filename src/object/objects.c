/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Life of the object service: start, stop, new maps, waiting operations.
 *
 * M1 A new map is adopted (barriers, fences), then links look at it, then unanswered changes are
 *    sent again, then metas are compared; only then does the callback return, so that the node's
 *    acknowledgement means "acts on it".
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "object/serve.h"

#define LOG_MODULE "object"
#include "base/log.h"

#define JANITOR_NS            (250 * NS_PER_MS)
#define STOP_GRACE_TICKS      8u /* of the janitor: how long calls may go on after rt_stop() */
#define RECOVERY_RATE_DEFAULT (256u << 20)
#define TEXT_TICKS            2u /* what waits shorter is not worth a word */

/* --- fibers --- */

int objects_spawn(struct objects *o, const char *name, fiber_main *fn, void *arg)
{
    int r = fiber_spawn(o->rt, name, fn, arg);
    if (r == 0)
        wgroup_add(&o->fibers, 1);
    return r;
}

void objects_fiber_end(struct objects *o)
{
    wgroup_finish(&o->fibers);
}

/* --- waiting operations (O3) --- */

static void janitor_fire(struct timer *t)
{
    struct objects *o = container_of(t, struct objects, janitor);
    struct op *op;
    list_for_each (op, &o->ops, in_ops) {
        op->ticks++;
        if (op_cancelled(o, op))
            waitq_wake_all(&op->wait);
    }
    if (!list_empty(&o->ops))
        timer_arm(t, clock_now(o->rt) + JANITOR_NS);
}

void op_begin(struct objects *o, struct op *op, const struct object_owner *owner, const char *what)
{
    *op = (struct op){.owner = owner, .what = what, .short_group = -1};
    waitq_init(&op->wait);
    list_push_back(&o->ops, &op->in_ops);
    if (!timer_armed(&o->janitor))
        timer_arm(&o->janitor, clock_now(o->rt) + JANITOR_NS);
}

void op_end(struct objects *o, struct op *op)
{
    list_remove(&op->in_ops);
}

bool op_cancelled(const struct objects *o, const struct op *op)
{
    return o->stopping || (op->owner && op->owner->cancelled) ||
           (rt_stopping(o->rt) && op->ticks >= STOP_GRACE_TICKS);
}

static const struct call *op_call(const struct op *op, unsigned i)
{
    return (const struct call *)((const char *)op->calls + i * op->call_size);
}

/* "b (no live session)" for each node that op waits for and that `seen` does not have yet. */
static size_t describe_op(const struct objects *o, const struct op *op, bool *seen, char *out,
                          size_t size)
{
    size_t used = 0;
    for (unsigned i = 0; i < op->call_count; i++) {
        const struct call *c = op_call(op, i);
        if (!c->link || (c->state == CALL_ANSWERED && c->status == 0) || seen[c->link->number])
            continue;
        uint16_t number = c->link->number;
        const struct map_node *n = map_node(o->map, number);
        const char *why = !n || n->session.value == 0 ? "no live session: start its sheep"
                          : c->link->state != LINK_UP ? "cannot be reached"
                          : c->state == CALL_ANSWERED ? err_text(c->status)
                                                      : "does not answer";
        seen[number] = true;
        int k = snprintf(out + used, size - used, "%s%s for node %s (%s)", used ? ", " : "",
                         op->what, n ? n->name : "?", why);
        if (k < 0 || (size_t)k >= size - used)
            return size - 1;
        used += (size_t)k;
    }
    return used;
}

/* "b (no live session: start its sheep), c (is being brought up to date)": who could make the group
 * writable again. */
static size_t describe_missing(const struct objects *o, const struct map_group *g, char *out,
                               size_t size)
{
    size_t used = 0;
    for (unsigned i = 0; i < g->joining_count + g->last_full_count; i++) {
        bool joins = i < g->joining_count;
        uint16_t number = joins ? g->joining[i] : g->last_full[i - g->joining_count];
        const struct map_node *n = map_node(o->map, number);
        if (map_group_in_sync(g, number) || (!joins && map_group_has(g, number)))
            continue;
        const char *why = !n || n->session.value == 0 ? "no live session: start its sheep"
                          : joins                     ? "is being brought up to date"
                                                      : "is not a member now";
        int k = snprintf(out + used, size - used, "%snode %s (%s)", used ? ", " : "",
                         n ? n->name : "?", why);
        if (k < 0 || (size_t)k >= size - used)
            return size - 1;
        used += (size_t)k;
    }
    return used;
}

/* R4. "writes wait: only 1 of the 2 copies that pool default needs is in sync; missing: …" */
static size_t describe_short(const struct objects *o, const struct op *op, char *out, size_t size)
{
    const struct map_group *g = group_map(o, (uint32_t)op->short_group);
    const struct map_pool *p = group_pool(o, (uint32_t)op->short_group);
    char missing[200] = "";
    if (!g || !p)
        return 0;
    size_t n = describe_missing(o, g, missing, sizeof(missing));
    int k =
        snprintf(out, size,
                 "%s wait: only %u of the %u copies that pool %s needs for writing %s in sync%s%s",
                 op->what, g->in_sync_count, p->min_copies, p->name,
                 g->in_sync_count == 1 ? "is" : "are", n ? "; missing: " : "", missing);
    return k < 0 ? 0 : MIN((size_t)k, size - 1);
}

void object_waiting_text(const struct objects *o, char *out, size_t size)
{
    bool told_short = false;
    bool seen[MAP_NODE_COUNT_MAX] = {false};
    size_t used = 0;
    const struct op *op;
    if (size == 0)
        return;
    out[0] = '\0';
    list_for_each (op, &o->ops, in_ops) {
        if (op->ticks < TEXT_TICKS || used + 80 > size)
            continue;
        size_t before = used;
        if (used > 0)
            used += (size_t)snprintf(out + used, size - used, "; ");
        size_t n = op->short_group < 0 ? describe_op(o, op, seen, out + used, size - used)
                   : told_short        ? 0
                                       : describe_short(o, op, out + used, size - used);
        told_short = told_short || op->short_group >= 0;
        used = n ? used + n : before;
        out[used] = '\0';
    }
    if (used == 0 && !list_empty(&o->ops) && !gate_serving(o)) {
        op = list_first(&o->ops, struct op, in_ops);
        if (op->ticks >= TEXT_TICKS)
            snprintf(out, size, "%s wait until %s", op->what,
                     cluster_unconfirmed_ns(o->cluster) > 0
                         ? "this node reaches the cluster store again"
                         : "this node's session is in the cluster map");
    }
}

uint64_t object_free_bytes(const struct objects *o)
{
    struct store_usage u;
    store_usage(o->store, &u);
    uint64_t least = u.free_bytes;
    for (unsigned i = 0; i < MAP_NODE_COUNT_MAX; i++)
        if (o->nodes[i])
            least = MIN(least, o->nodes[i]->free_bytes);
    return least;
}

/* --- maps --- */

/* Waits that a new map may have made vain look at it. */
static void wake_bound(struct objects *o)
{
    struct op *op;
    list_for_each (op, &o->ops, in_ops)
        if (op->bound)
            waitq_wake_all(&op->wait);
}

fiber_fn void objects_adopt(struct objects *o, struct map *m)
{
    if (o->stopping || m->version < o->map->version)
        return;
    int r = gate_adopt(o, m);
    if (r < 0) {
        /* Not acting on it would be told as acted on: better not to go on. */
        log_error("map version %llu cannot be acted on: %s; restart this daemon",
                  (unsigned long long)m->version, err_text(r));
        o->self = -1;
        return;
    }
    for (unsigned i = 0; i < MAP_NODE_COUNT_MAX; i++)
        if (o->nodes[i])
            link_kick(&o->nodes[i]->link);
    for (uint32_t i = 0; i < o->group_count; i++)
        changes_on_epoch(o, i);
    wake_bound(o);
    align_kick(o);
    clean_kick(o);
}

static fiber_fn void on_map(void *arg, struct map *m)
{
    objects_adopt(arg, m);
}

/* --- life --- */

static void init(struct objects *o, struct rt *rt, struct store *store, struct cluster *cluster,
                 const struct objects_options *options)
{
    o->rt = rt;
    o->store = store;
    o->cluster = cluster;
    o->entries_per_block =
        options->entries_per_block ? options->entries_per_block : INDEX_ENTRIES_DEFAULT;
    o->started_ns = clock_now(rt);
    o->self = -1;
    waitq_init(&o->map_wait);
    waitq_init(&o->drain_wait);
    waitq_init(&o->reserve_wait);
    waitq_init(&o->install_wait);
    list_init(&o->ops);
    list_init(&o->peers);
    list_init(&o->request_pool);
    list_init(&o->home_queue);
    htable_init(&o->locks);
    wgroup_init(&o->fibers);
    timer_init(&o->janitor, rt, janitor_fire);
    floors_init(o);
    reclaim_init(o);
    align_init(o);
    join_init(o);
    tell_init(o);
    o->joins.rate =
        options->recovery_bytes_per_s ? options->recovery_bytes_per_s : RECOVERY_RATE_DEFAULT;
}

static void release(struct objects *o)
{
    timer_cancel(&o->janitor);
    tell_done(o);
    join_done(o);
    for (unsigned i = 0; i < MAP_NODE_COUNT_MAX; i++)
        free(o->nodes[i]);
    reclaim_done(o);
    request_pool_done(o);
    htable_done(&o->locks);
    floors_done(o);
    free(o->groups);
    map_unref(o->map);
    free(o);
}

fiber_fn int objects_start(struct rt *rt, struct store *store, struct cluster *cluster,
                           const struct objects_options *options, struct objects **ret)
{
    struct objects *o = calloc(1, sizeof(*o));
    if (!o)
        return -ENOMEM;
    init(o, rt, store, cluster, options);
    o->map = map_new();
    int r = o->map ? 0 : -ENOMEM;
    if (r == 0)
        r = serve_start(o, options->listener);
    if (r < 0) {
        listener_close(options->listener);
        release(o);
        return r;
    }
    r = cluster_on_map(cluster, on_map, o);
    if (r < 0) {
        objects_stop(o);
        return r;
    }
    *ret = o;
    return 0;
}

fiber_fn void objects_stop(struct objects *o)
{
    cluster_off_map(o->cluster, on_map, o);
    o->stopping = true;
    serve_stop(o);
    reclaim_stop(o);
    waitq_wake_all(&o->align_waiters);
    waitq_wake_all(&o->joins.work);
    struct op *op;
    list_for_each (op, &o->ops, in_ops)
        waitq_wake_all(&op->wait);
    for (unsigned i = 0; i < MAP_NODE_COUNT_MAX; i++)
        if (o->nodes[i])
            link_stop(&o->nodes[i]->link);
    wgroup_wait(&o->fibers);
    ASSERT(list_empty(&o->ops)); /* volumes must be closed already */
    release(o);
}

void objects_set_floor_lookup(struct objects *o,
                              fiber_fn int (*lookup)(void *arg, uint64_t volume,
                                                     uint64_t *ret_floor),
                              void *arg)
{
    o->floors.lookup = lookup;
    o->floors.lookup_arg = arg;
}
