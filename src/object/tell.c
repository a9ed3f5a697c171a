/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this node tells the leader (R2, R1b): groups that it has joined completely, nodes that it
 * cannot reach although calls wait for them, and that its own store fails.
 *
 * T1 A node is called unreachable only when two looks in a row found calls for it unanswered, and
 *    nothing heard from it, for UNREACHABLE_NS: a process that was stopped for a while reads what
 *    has come meanwhile between the two.
 * T2 A node that answers pings is reachable, however long a change takes.
 * T3 It stays unreachable until it has answered a ping: else the leader would take it back as soon
 *    as nothing waits for it, and everything would wait for it again.
 */
#include <stdlib.h>
#include <string.h>
#include "object/recovery.h"

#define LOG_MODULE "object"
#include "base/log.h"

#define SOON_NS        (5 * NS_PER_MS)
#define WATCH_NS       (500 * NS_PER_MS)
#define PING_NS        NS_PER_S
#define UNREACHABLE_NS (4 * NS_PER_S)

/* --- the report --- */

static void tell_fire(struct timer *t)
{
    struct objects *o = container_of(t, struct objects, joins.tell_soon);
    struct cluster_joined *joined = calloc(o->joins.group_count + 1u, sizeof(joined[0]));
    unsigned n = 0;
    if (!joined || o->stopping) {
        free(joined);
        return;
    }
    for (uint32_t i = 0; i < o->group_count && n < o->joins.group_count; i++) {
        const struct join *j = join_of(o, i);
        if (j && j->complete)
            joined[n++] = (struct cluster_joined){i, j->epoch};
    }
    const struct cluster_report r = {
        .joined = joined,
        .joined_count = n,
        .unreachable = o->joins.unreachable,
        .unreachable_count = o->joins.unreachable_count,
        .failed = o->joins.failed,
    };
    if (n > 0 || o->joins.reported_count > 0 || r.unreachable_count > 0 || r.failed)
        if (cluster_report(o->cluster, &r) < 0)
            timer_arm(t, clock_now(o->rt) + WATCH_NS);
    o->joins.reported_count = n + r.unreachable_count + (r.failed != 0);
    free(joined);
}

void tell_kick(struct objects *o)
{
    if (!timer_armed(&o->joins.tell_soon) && !o->stopping)
        timer_arm(&o->joins.tell_soon, clock_now(o->rt) + SOON_NS);
}

/* --- progress --- */

/* Rates, smoothed over some seconds. */
static void sample(struct objects *o, uint64_t now)
{
    struct joins *j = &o->joins;
    uint64_t passed_ns = now - MIN(now, j->sampled_ns);
    if (j->sampled_ns && passed_ns > 0 && j->bytes_done >= j->sampled_bytes &&
        j->objects_done >= j->sampled_objects) {
        uint64_t bytes = (j->bytes_done - j->sampled_bytes) * NS_PER_S / passed_ns;
        uint64_t objects = (j->objects_done - j->sampled_objects) * 1000 * NS_PER_S / passed_ns;
        j->bytes_per_s = j->bytes_per_s ? (j->bytes_per_s * 7 + bytes) / 8 : bytes;
        j->objects_per_ks = j->objects_per_ks ? (j->objects_per_ks * 7 + objects) / 8 : objects;
    }
    j->sampled_ns = now;
    j->sampled_bytes = j->bytes_done;
    j->sampled_objects = j->objects_done;
}

void tell_recovery(const struct objects *o, struct object_recovery *ret)
{
    const struct joins *j = &o->joins;
    uint64_t listed = 0, joining = 0;
    *ret = (struct object_recovery){
        .objects_total = j->objects_total,
        .objects_done = j->objects_done,
        .bytes_done = j->bytes_done,
        .bytes_per_s = j->group_count ? j->bytes_per_s : 0,
    };
    for (uint32_t i = 0; o->self >= 0 && i < o->map->group_count; i++) {
        const struct map_group *g = &o->map->groups[i];
        ret->groups_total += map_group_has(g, (uint16_t)o->self);
        ret->groups_done += map_group_in_sync(g, (uint16_t)o->self);
        joining += join_of(o, i) != NULL;
        listed += join_of(o, i) && join_of(o, i)->listed;
    }
    /* What is not listed yet is taken for like what is. */
    if (listed > 0 && j->objects_per_ks > 0) {
        uint64_t total = j->objects_total * joining / listed;
        ret->eta_s = (total - MIN(total, j->objects_done)) * 1000 / j->objects_per_ks + 1;
    }
}

/* --- what is wrong --- */

/* Looks at one node; true: it is unreachable (T1, T3). */
static bool look_at(struct objects *o, struct node_state *n, uint64_t now)
{
    const struct map_node *m = map_node(o->map, n->number);
    const struct link *l = &n->link;
    if (!m || m->session.value == 0 || !gate_serving(o) || l->heard_ns > n->complained_ns)
        n->complained_ns = 0;
    if (!m || m->session.value == 0 || !gate_serving(o) ||
        (list_empty(&l->calls) && !n->complained_ns)) {
        n->silent_looks = 0;
        return false;
    }
    uint64_t silent_ns = now - MIN(now, MAX(l->heard_ns, l->waiting_since_ns));
    if (silent_ns >= PING_NS || n->complained_ns)
        node_ping(o, n);
    n->silent_looks = silent_ns >= UNREACHABLE_NS ? n->silent_looks + 1 : 0;
    if (n->silent_looks >= 2 && !n->complained_ns)
        n->complained_ns = now;
    return n->complained_ns != 0;
}

static void watch_fire(struct timer *t)
{
    struct objects *o = container_of(t, struct objects, joins.watch);
    uint16_t unreachable[MAP_NODE_COUNT_MAX];
    unsigned count = 0;
    uint64_t now = clock_now(o->rt);
    if (o->stopping)
        return;
    for (unsigned i = 0; i < MAP_NODE_COUNT_MAX; i++)
        if (o->nodes[i] && look_at(o, o->nodes[i], now))
            unreachable[count++] = (uint16_t)i;
    sample(o, now);
    int failed = store_failed(o->store);
    if (failed != o->joins.failed || count != o->joins.unreachable_count ||
        memcmp(unreachable, o->joins.unreachable, count * sizeof(unreachable[0])) != 0) {
        for (unsigned i = 0; i < count; i++) {
            const struct map_node *n = map_node(o->map, unreachable[i]);
            log_warn("node %s does not answer though it has a session; the leader is told",
                     n ? n->name : "?");
        }
        memcpy(o->joins.unreachable, unreachable, count * sizeof(unreachable[0]));
        o->joins.unreachable_count = count;
        o->joins.failed = failed;
        tell_kick(o);
    }
    timer_arm(t, now + WATCH_NS);
}

void tell_init(struct objects *o)
{
    timer_init(&o->joins.tell_soon, o->rt, tell_fire);
    timer_init(&o->joins.watch, o->rt, watch_fire);
    timer_arm(&o->joins.watch, clock_now(o->rt) + WATCH_NS);
}

void tell_done(struct objects *o)
{
    timer_cancel(&o->joins.tell_soon);
    timer_cancel(&o->joins.watch);
}
