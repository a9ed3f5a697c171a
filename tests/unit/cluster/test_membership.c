/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Membership: election, map, sessions, fencing. Each scene runs over `local` and, with several
 * seeds, over the simulated cluster store; all nodes of a scene share one rt.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/err.h"
#include "base/log.h"
#include "cluster/cluster.h"
#include "rt/uring/uring.h"
#include "sim/sim_cs.h"

#define SIM_SEEDS 10

struct world {
    struct rt *rt;
    struct sim_cs *store; /* NULL: local */
    char directory[64], spec[128];
    enum cluster_recovery recovery;
    uint64_t grace_ns, out_ns;
    fiber_fn void (*scene)(struct world *w);
};

static uint64_t soon(struct world *w)
{
    return clock_now(w->rt) + 30 * NS_PER_S;
}

static uint64_t in_a_moment(struct world *w)
{
    return clock_now(w->rt) + 50 * NS_PER_MS;
}

/* --- nodes --- */

static struct uuid node_uuid(unsigned i)
{
    struct uuid u;
    memset(u.bytes, (int)(0x10 + i), sizeof(u.bytes));
    return u;
}

static void node_options(struct world *w, unsigned i, struct cluster_options *ret)
{
    static const char *const names[] = {"a", "b", "c", "d", "e"};
    static const char *const zones[] = {"z0", "z1", "z2", "z3", "z4"};
    *ret = (struct cluster_options){.store_uuid = node_uuid(i),
                                    .name = names[i],
                                    .zone = zones[i],
                                    .address = "tcp:127.0.0.1:7000",
                                    .admin = "tcp:127.0.0.1:8000",
                                    .weight = 1024,
                                    .recovery = w->recovery ? w->recovery : CLUSTER_RECOVERY_OFF,
                                    .grace_ns = w->grace_ns,
                                    .out_ns = w->out_ns};
    if (w->store)
        ASSERT(sim_cs_open(w->rt, w->store, &ret->cs) == 0);
    else
        ret->driver_spec = w->spec;
}

static fiber_fn struct cluster *start_node(struct world *w, unsigned i)
{
    struct cluster_options o;
    struct cluster *c = NULL;
    node_options(w, i, &o);
    ASSERT(cluster_start(w->rt, &o, &c) == 0 && c);
    ASSERT(cluster_map(c) && cluster_session(c).value != 0);
    return c;
}

static struct map_format three_copies(void)
{
    return (struct map_format){.copies = 3, .cluster_name = "test", .group_count = 64};
}

static fiber_fn void start_cluster(struct world *w, struct cluster *c[3])
{
    struct map_format f = three_copies();
    for (unsigned i = 0; i < 3; i++)
        c[i] = start_node(w, i);
    ASSERT(cluster_format(c[1], &f) == 0);
    for (unsigned i = 0; i < 3; i++) {
        ASSERT(cluster_wait_map(c[i], 1, soon(w)) == 0);
        ASSERT(cluster_serving(c[i]) && cluster_self(c[i]) == (int)i);
    }
}

static fiber_fn void stop_all(struct cluster **c, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (c[i])
            cluster_stop(c[i]);
    }
}

/* Waits until node `number` has session s in c's map. */
static fiber_fn void wait_session(struct world *w, struct cluster *c, uint16_t number,
                                  uint64_t session)
{
    for (;;) {
        struct map *m = cluster_map(c);
        const struct map_node *n = map_node(m, number);
        if (n && n->session.value == session)
            return;
        ASSERT(cluster_wait_change(c, m->version, soon(w)) == 0);
    }
}

/* Waits until one of the nodes leads; no two ever do. */
static fiber_fn struct cluster *wait_leader(struct world *w, struct cluster **c, unsigned count)
{
    uint64_t deadline = soon(w);
    for (;;) {
        struct cluster *leader = NULL;
        for (unsigned i = 0; i < count; i++) {
            if (!c[i] || !cluster_is_leader(c[i]))
                continue;
            ASSERT(!leader);
            leader = c[i];
        }
        if (leader)
            return leader;
        ASSERT(clock_now(w->rt) < deadline);
        fiber_sleep(w->rt, NS_PER_MS);
    }
}

/* --- scenes --- */

static fiber_fn void format_scene(struct world *w)
{
    struct cluster *c[3];
    struct map_format f = three_copies();
    c[0] = start_node(w, 0);
    c[1] = start_node(w, 1);
    ASSERT(cluster_map(c[0])->version == 0 && !cluster_serving(c[0]) && cluster_self(c[0]) == -1);
    ASSERT(cluster_format(c[0], &f) == -ENOSPC);
    f.copies = 0;
    ASSERT(cluster_format(c[0], &f) == -EINVAL);
    ASSERT(cluster_wait_map(c[0], 1, in_a_moment(w)) == -ETIMEDOUT);
    c[2] = start_node(w, 2);
    f = three_copies();
    ASSERT(cluster_format(c[2], &f) == 0);
    ASSERT(cluster_format(c[0], &f) == -EEXIST);
    for (unsigned i = 0; i < 3; i++) {
        ASSERT(cluster_wait_map(c[i], 1, soon(w)) == 0);
        const struct map *m = cluster_map(c[i]);
        ASSERT(m->version == 1 && m->node_count == 3 && m->group_count == 64 &&
               !uuid_is_null(&m->cluster));
        ASSERT(strcmp(m->cluster_name, "test") == 0 && m->pools[0].copies == 3);
        ASSERT(uuid_equal(&m->cluster, &cluster_map(c[0])->cluster));
        ASSERT(cluster_serving(c[i]));
        for (uint32_t g = 0; g < 64; g++)
            ASSERT(m->groups[g].in_sync_count == 3 && m->groups[g].epoch.value == 1);
    }
    stop_all(c, 3);
    /* All gone and back: the cluster is there, nobody has an old session. */
    struct cluster *again = start_node(w, 1);
    wait_session(w, again, 1, cluster_session(again).value);
    ASSERT(cluster_serving(again) && cluster_format(again, &f) == -EEXIST);
    wait_session(w, again, 0, 0);
    uint16_t missing[4];
    ASSERT(cluster_missing_nodes(again, missing, 4) == 2 && missing[0] == 0 && missing[1] == 2);
    ASSERT(cluster_missing_nodes(again, missing, 1) == 1);
    cluster_stop(again);
}

/* R6: a restarted node serves again only in a newer epoch of its groups. */
static fiber_fn void restart_scene(struct world *w)
{
    struct cluster *c[3];
    start_cluster(w, c);
    for (unsigned round = 0; round < 3; round++) {
        unsigned i = round % 3;
        struct session old = cluster_session(c[i]);
        struct cluster *other = c[(i + 1) % 3];
        uint64_t epoch = cluster_map(other)->groups[5].epoch.value;
        cluster_stop(c[i]);
        wait_session(w, other, (uint16_t)i, 0);
        ASSERT(!map_node_by_session(cluster_map(other), old) && cluster_serving(other));
        ASSERT(cluster_map(other)->groups[5].epoch.value > epoch);
        epoch = cluster_map(other)->groups[5].epoch.value;
        c[i] = start_node(w, i);
        ASSERT(cluster_session(c[i]).value > old.value);
        wait_session(w, c[i], (uint16_t)i, cluster_session(c[i]).value);
        wait_session(w, other, (uint16_t)i, cluster_session(c[i]).value);
        ASSERT(cluster_serving(c[i]) && cluster_self(c[i]) == (int)i);
        for (uint32_t g = 0; g < 64; g++)
            ASSERT(cluster_map(other)->groups[g].epoch.value > epoch);
    }
    stop_all(c, 3);
}

static void count_lead(void *arg)
{
    ++*(unsigned *)arg;
}

static fiber_fn void leader_scene(struct world *w)
{
    struct cluster *c[4] = {0};
    unsigned leads[3] = {0}, alive = 3;
    start_cluster(w, c);
    for (unsigned i = 0; i < 3; i++)
        ASSERT(cluster_on_lead(c[i], count_lead, &leads[i]) == 0);
    while (alive > 0) {
        struct cluster *leader = wait_leader(w, c, 3);
        for (unsigned i = 0; i < 3; i++) {
            if (c[i] != leader)
                continue;
            ASSERT(leads[i] == 1);
            cluster_stop(leader);
            c[i] = NULL;
        }
        alive--;
        for (unsigned i = 0; i < 3; i++) { /* the next leader notices the death of the last */
            if (!c[i])
                continue;
            for (unsigned j = 0; j < 3; j++) {
                if (!c[j])
                    wait_session(w, c[i], (uint16_t)j, 0);
            }
        }
    }
    ASSERT(leads[0] == 1 && leads[1] == 1 && leads[2] == 1);
}

/* --- callbacks and fencing --- */

struct follower {
    struct world *w;
    uint64_t last;
    unsigned calls;
    bool inside;
    uint64_t hold_from; /* calls with this version or a later one do not return */
    struct waitq release;
};

static fiber_fn void on_map(void *arg, struct map *m)
{
    struct follower *f = arg;
    ASSERT(!f->inside);
    f->inside = true;
    ASSERT(f->calls == 0 || m->version == f->last + 1); /* each map, in order */
    f->last = m->version;
    f->calls++;
    while (m->version >= f->hold_from)
        waitq_wait(&f->release);
    f->inside = false;
}

static void follower_init(struct follower *f, struct world *w)
{
    *f = (struct follower){.w = w, .hold_from = UINT64_MAX};
    waitq_init(&f->release);
}

static void follower_hold_from(struct follower *f, uint64_t version)
{
    f->hold_from = version;
    waitq_wake_all(&f->release);
}

static fiber_fn void fence_scene(struct world *w)
{
    struct cluster *c[3];
    struct follower f, late;
    start_cluster(w, c);
    follower_init(&f, w);
    ASSERT(cluster_on_map(c[2], on_map, &f) == 0);
    fiber_sleep(w->rt, NS_PER_MS);
    ASSERT(f.calls == 1 && f.last == cluster_map(c[2])->version); /* at once */
    struct session old = cluster_session(c[1]);
    ASSERT(cluster_wait_fenced(c[0], old, in_a_moment(w)) == -ETIMEDOUT); /* it lives */
    follower_hold_from(&f, 0);
    cluster_stop(c[1]);
    wait_session(w, c[0], 1, 0);
    wait_session(w, c[2], 1, 0);
    ASSERT(cluster_wait_fenced(c[0], old, in_a_moment(w)) ==
           -ETIMEDOUT); /* node 2 has not acted on it */
    ASSERT(cluster_wait_fenced(c[2], old, in_a_moment(w)) == -ETIMEDOUT);
    c[1] = start_node(w, 1);
    wait_session(w, c[2], 1, cluster_session(c[1]).value);
    ASSERT(cluster_wait_fenced(c[0], old, in_a_moment(w)) == -ETIMEDOUT);
    follower_init(&late, w);
    ASSERT(cluster_on_map(c[2], on_map, &late) == 0);
    follower_hold_from(&f, UINT64_MAX);
    ASSERT(cluster_wait_fenced(c[0], old, soon(w)) == 0);
    ASSERT(cluster_wait_fenced(c[2], old, soon(w)) == 0);
    ASSERT(cluster_wait_fenced(c[1], old, soon(w)) == 0);
    ASSERT(f.last == cluster_map(c[2])->version && late.last == f.last);
    /* Each map is acknowledged when acted on, not when an older one was. */
    follower_hold_from(&f, 0);
    cluster_stop(c[1]);
    wait_session(w, c[2], 1, 0);
    c[1] = start_node(w, 1);
    old = cluster_session(c[1]);
    wait_session(w, c[2], 1, old.value);
    cluster_stop(c[1]);
    wait_session(w, c[2], 1, 0);
    follower_hold_from(&f, cluster_map(c[2])->version);
    ASSERT(cluster_wait_fenced(c[0], old, in_a_moment(w)) == -ETIMEDOUT);
    follower_hold_from(&f, UINT64_MAX);
    ASSERT(cluster_wait_fenced(c[0], old, soon(w)) == 0);
    c[1] = start_node(w, 1);
    wait_session(w, c[2], 1, cluster_session(c[1]).value);
    /* A node that cannot answer is not waited for once it is dead, too. */
    follower_hold_from(&f, 0);
    old = cluster_session(c[1]);
    cluster_stop(c[1]);
    c[1] = NULL;
    wait_session(w, c[2], 1, 0);
    ASSERT(cluster_wait_fenced(c[0], old, in_a_moment(w)) == -ETIMEDOUT);
    follower_hold_from(&f, UINT64_MAX);
    cluster_stop(c[2]);
    c[2] = NULL;
    ASSERT(cluster_wait_fenced(c[0], old, soon(w)) == 0);
    ASSERT(cluster_wait_fenced(c[0], (struct session){1ull << 50}, soon(w)) == 0); /* never was */
    stop_all(c, 3);
}

/* What was taken back is not called again; what runs is waited for. */
static fiber_fn void callback_scene(struct world *w)
{
    struct cluster *c[3];
    struct follower stays, goes;
    unsigned leads = 0, none = 0;
    start_cluster(w, c);
    follower_init(&stays, w);
    follower_init(&goes, w);
    ASSERT(cluster_on_map(c[0], on_map, &goes) == 0 && cluster_on_map(c[0], on_map, &stays) == 0);
    ASSERT(cluster_on_lead(c[0], count_lead, &leads) == 0 &&
           cluster_on_lead(c[0], count_lead, &none) == 0);
    none = 0;
    cluster_off_map(c[0], on_map, &goes);
    cluster_off_lead(c[0], count_lead, &none);
    unsigned calls = goes.calls;
    for (unsigned i = 1; i < 3; i++) {
        cluster_stop(c[i]);
        wait_session(w, c[0], (uint16_t)i, 0);
    }
    wait_leader(w, c, 1);
    ASSERT(cluster_wait_fenced(c[0], (struct session){1ull << 50}, soon(w)) == 0);
    ASSERT(stays.last == cluster_map(c[0])->version && goes.calls == calls && leads == 1 &&
           none == 0);
    cluster_stop(c[0]);
}

struct waiter {
    struct cluster *c;
    struct wgroup *done;
    int r;
};

static void waiter_main(void *arg)
{
    struct waiter *waiter = arg;
    waiter->r = cluster_wait_map(waiter->c, UINT64_MAX, UINT64_MAX);
    wgroup_finish(waiter->done);
}

static fiber_fn void stop_scene(struct world *w)
{
    struct wgroup done;
    struct waiter waiter = {.c = start_node(w, 0), .done = &done};
    wgroup_init(&done);
    wgroup_add(&done, 1);
    ASSERT(fiber_spawn(w->rt, "waiter", waiter_main, &waiter) == 0);
    fiber_yield();
    cluster_stop(waiter.c);
    wgroup_wait(&done);
    ASSERT(waiter.r == -ECANCELED);
}

/* --- joining and refusals --- */

static fiber_fn void join_scene(struct world *w)
{
    struct cluster *c[4];
    start_cluster(w, c);
    c[3] = start_node(w, 3);
    wait_session(w, c[3], 3, cluster_session(c[3]).value);
    ASSERT(cluster_serving(c[3]) && cluster_self(c[3]) == 3);
    const struct map *m = cluster_map(c[3]);
    for (uint32_t g = 0; g < m->group_count; g++)
        ASSERT(!map_group_has(&m->groups[g], 3) && m->groups[g].epoch.value == 1);
    ASSERT(strcmp(map_node(m, 3)->zone, "z3") == 0);
    stop_all(c, 4);
}

/* --- recovery --- */

static fiber_fn int try_start(struct world *w, struct cluster_options *o)
{
    struct cluster *c;
    int r = cluster_start(w->rt, o, &c);
    if (r == 0)
        cluster_stop(c);
    return r;
}

/* Reports every group that node i joins, each for its present epoch. */
static fiber_fn void report_all(struct cluster *c)
{
    struct map *m = cluster_map(c);
    struct cluster_joined joined[64];
    uint32_t count = 0;
    int self = cluster_self(c);
    for (uint32_t g = 0; g < m->group_count; g++) {
        const struct map_group *group = &m->groups[g];
        if (map_group_has(group, (uint16_t)self) && !map_group_in_sync(group, (uint16_t)self))
            joined[count++] = (struct cluster_joined){g, group->epoch.value};
    }
    struct cluster_report r = {.joined = joined, .joined_count = count};
    ASSERT(cluster_report(c, &r) == 0);
}

/* Waits until node `number` is in in_sync (or joining) of all (or no) groups that c sees. */
enum wanted { IN_SYNC, JOINING, NOWHERE };
static fiber_fn void wait_place(struct world *w, struct cluster *c, uint16_t number,
                                enum wanted wanted)
{
    for (;;) {
        struct map *m = cluster_map(c);
        uint32_t fit = 0;
        for (uint32_t g = 0; g < m->group_count; g++) {
            bool in_sync = map_group_in_sync(&m->groups[g], number);
            bool joining = map_group_has(&m->groups[g], number) && !in_sync;
            fit += wanted == IN_SYNC ? in_sync : wanted == JOINING ? joining : !in_sync && !joining;
        }
        if (fit == m->group_count)
            return;
        ASSERT(cluster_wait_change(c, m->version, soon(w)) == 0);
    }
}

/* R1, R2: a node dies, leaves; returns, joins, reports, is in sync. */
static fiber_fn void recovery_scene(struct world *w)
{
    struct cluster *c[3];
    w->recovery = CLUSTER_RECOVERY_ON;
    w->grace_ns = 1;
    start_cluster(w, c);
    for (unsigned round = 0; round < 3; round++) {
        unsigned i = round;
        struct cluster *other = c[(i + 1) % 3];
        cluster_stop(c[i]);
        wait_place(w, other, (uint16_t)i, NOWHERE);
        for (uint32_t g = 0; g < 64; g++)
            ASSERT(cluster_map(other)->groups[g].last_full_count == 2);
        c[i] = start_node(w, i);
        wait_place(w, other, (uint16_t)i, JOINING);
        wait_place(w, c[i], (uint16_t)i, JOINING);
        report_all(c[i]);
        wait_place(w, other, (uint16_t)i, IN_SYNC);
        wait_place(w, c[i], (uint16_t)i, IN_SYNC);
    }
    stop_all(c, 3);
}

/* After a start of everything nobody is dropped before the grace period is over. */
static fiber_fn void grace_scene(struct world *w)
{
    struct cluster *c[3];
    start_cluster(w, c);
    stop_all(c, 3); /* without recovery: none of them drops who stops before it */
    w->recovery = CLUSTER_RECOVERY_ON;
    w->grace_ns = NS_PER_S;
    uint64_t start = clock_now(w->rt);
    c[1] = start_node(w, 1);
    wait_session(w, c[1], 1, cluster_session(c[1]).value);
    wait_session(w, c[1], 0, 0);
    wait_place(w, c[1], 0, IN_SYNC);
    c[0] = start_node(w, 0);
    wait_session(w, c[1], 0, cluster_session(c[0]).value);
    wait_place(w, c[1], 0, IN_SYNC); /* it came in time */
    wait_place(w, c[1], 2, IN_SYNC);
    wait_place(w, c[1], 2, NOWHERE); /* it did not */
    ASSERT(clock_now(w->rt) >= start + NS_PER_S);
    /* Who was seen is not waited for. */
    c[2] = start_node(w, 2);
    wait_place(w, c[1], 2, JOINING);
    uint64_t before = clock_now(w->rt);
    cluster_stop(c[0]);
    wait_place(w, c[1], 0, NOWHERE);
    wait_place(w, c[2], 0, NOWHERE);
    ASSERT(clock_now(w->rt) < before + NS_PER_S);
    cluster_stop(c[1]); /* the last one in sync; c[2] leads, and has just started */
    wait_session(w, c[2], 1, 0);
    for (uint32_t g = 0; g < 64; g++)
        ASSERT(cluster_map(c[2])->groups[g].in_sync_count == 1);
    wait_place(w, c[2], 1, IN_SYNC);
    cluster_stop(c[2]);
}

/* Lets every node report what it joins until nobody joins anything and node `number` is placed. */
static fiber_fn void settle(struct world *w, struct cluster **c, unsigned count, uint16_t number,
                            enum wanted wanted)
{
    uint64_t deadline = soon(w);
    for (;;) {
        uint32_t fit = 0, joining = 0;
        struct map *m = NULL;
        for (unsigned i = 0; i < count; i++) {
            if (!c[i])
                continue;
            report_all(c[i]);
            m = cluster_map(c[i]);
        }
        for (uint32_t g = 0; g < m->group_count; g++) {
            joining += m->groups[g].joining_count;
            fit += map_group_in_sync(&m->groups[g], number) == (wanted == IN_SYNC);
        }
        if (joining == 0 && fit == m->group_count)
            return;
        ASSERT(clock_now(w->rt) < deadline);
        fiber_sleep(w->rt, 20 * NS_PER_MS);
    }
}

static fiber_fn int wish(struct cluster *c, enum cluster_wish_kind kind, const char *node)
{
    struct cluster_wish w = {.kind = kind, .node = node, .heir = "b"};
    return cluster_node_wish(c, &w);
}

static fiber_fn void wait_node_gone(struct world *w, struct cluster *c, const char *name)
{
    while (map_node_by_name(cluster_map(c), name))
        ASSERT(cluster_wait_change(c, cluster_map(c)->version, soon(w)) == 0);
}

/* Four nodes, three copies: draining, weight, copies, removing. */
static fiber_fn void wish_scene(struct world *w)
{
    struct cluster *c[4];
    w->recovery = CLUSTER_RECOVERY_ON;
    w->grace_ns = 1;
    start_cluster(w, c);
    ASSERT(wish(c[0], CLUSTER_WISH_DRAIN, "x") == -ENOENT);
    c[3] = start_node(w, 3);
    wait_session(w, c[3], 3, cluster_session(c[3]).value);
    ASSERT(wish(c[2], CLUSTER_WISH_DRAIN, "a") == 0);
    settle(w, c, 4, 0, NOWHERE);
    settle(w, c, 4, 3, IN_SYNC);
    for (uint32_t g = 0; g < 64; g++)
        ASSERT(cluster_map(c[1])->groups[g].in_sync_count == 3);
    ASSERT(cluster_serving(c[0]) && wish(c[1], CLUSTER_WISH_UNDRAIN, "a") == 0);
    struct cluster_wish heavy = {.kind = CLUSTER_WISH_WEIGHT, .node = "d", .weight = 0};
    ASSERT(cluster_node_wish(c[0], &heavy) == 0);
    settle(w, c, 4, 3, NOWHERE);
    settle(w, c, 4, 0, IN_SYNC);
    ASSERT(cluster_pool_wish(c[0], "default", 4, 5) == -EINVAL);
    ASSERT(cluster_pool_wish(c[0], "x", 4, 2) == -ENOENT);
    heavy.weight = CLUSTER_WEIGHT_REGISTERED;
    ASSERT(cluster_node_wish(c[0], &heavy) == 0 && cluster_pool_wish(c[0], "default", 4, 3) == 0);
    settle(w, c, 4, 3, IN_SYNC);
    ASSERT(cluster_map(c[0])->pools[0].copies == 4 && cluster_map(c[0])->pools[0].min_copies == 3);
    ASSERT(cluster_pool_wish(c[0], "default", 3, 2) == 0 &&
           wish(c[0], CLUSTER_WISH_REMOVE, "c") == 0);
    settle(w, c, 4, 2, NOWHERE);
    ASSERT(map_node_by_name(cluster_map(c[0]), "c")); /* as long as it runs */
    cluster_stop(c[2]);
    wait_node_gone(w, c[0], "c");
    c[2] = start_node(w, 2); /* as a new one, under its old name */
    wait_session(w, c[0], 4, cluster_session(c[2]).value);
    ASSERT(strcmp(map_node(cluster_map(c[0]), 4)->name, "c") == 0);
    stop_all(c, 4);
}

/* Nodes whose disks are gone for good. */
static fiber_fn void lost_scene(struct world *w)
{
    struct cluster *c[3];
    struct cluster_options o;
    w->recovery = CLUSTER_RECOVERY_ON;
    w->grace_ns = 1;
    start_cluster(w, c);
    ASSERT(wish(c[0], CLUSTER_WISH_LOST, "c") == -EBUSY);
    cluster_stop(c[1]);
    wait_place(w, c[0], 1, NOWHERE);
    cluster_stop(c[2]);
    c[1] = c[2] = NULL;
    wait_place(w, c[0], 2, NOWHERE);
    cluster_stop(c[0]);
    c[1] =
        start_node(w, 1); /* a has everything, and b, c had before: c as one of the last full set */
    wait_session(w, c[1], 1, cluster_session(c[1]).value);
    wait_session(w, c[1], 0, 0);
    wait_place(w, c[1], 0, IN_SYNC);
    ASSERT(wish(c[1], CLUSTER_WISH_LOST, "a") == 0);
    wait_place(w, c[1], 2, IN_SYNC); /* it is waited for: nothing answered is lost */
    ASSERT(wish(c[1], CLUSTER_WISH_DRAIN, "a") == -EALREADY);
    node_options(w, 0, &o);
    ASSERT(try_start(w, &o) == -EMEDIUMTYPE);
    ASSERT(wish(c[1], CLUSTER_WISH_ACCEPT_LOSS, "c") == 0); /* b takes over, with what it has */
    wait_place(w, c[1], 1, IN_SYNC);
    ASSERT(wish(c[1], CLUSTER_WISH_REMOVE, "a") == 0 && wish(c[1], CLUSTER_WISH_REMOVE, "c") == 0);
    wait_node_gone(w, c[1], "a");
    wait_node_gone(w, c[1], "c");
    node_options(w, 2, &o);
    ASSERT(try_start(w, &o) == -EMEDIUMTYPE); /* given up for ever */
    node_options(w, 4, &o);
    o.name = "a"; /* a new disk may take the name */
    ASSERT(try_start(w, &o) == 0);
    cluster_stop(c[1]);
}

/* A node that stays away is replaced; one that cannot write or be reached is kept out. */
static fiber_fn void absence_scene(struct world *w)
{
    struct cluster *c[4];
    w->recovery = CLUSTER_RECOVERY_ON;
    w->grace_ns = 1;
    w->out_ns = NS_PER_S / 2;
    start_cluster(w, c);
    c[3] = start_node(w, 3);
    wait_session(w, c[0], 3, cluster_session(c[3]).value);
    uint64_t before = clock_now(w->rt);
    cluster_stop(c[1]);
    c[1] = NULL;
    settle(w, c, 4, 1, NOWHERE);
    settle(w, c, 4, 3, IN_SYNC);
    ASSERT(clock_now(w->rt) >= before + w->out_ns);
    const struct map_node *n = map_node(cluster_map(c[0]), 1);
    ASSERT(n->out && n->away_since > 0);
    c[1] = start_node(w, 1);
    wait_session(w, c[0], 1, cluster_session(c[1]).value);
    ASSERT(!map_node(cluster_map(c[0]), 1)->out);
    while (map_node(cluster_map(c[0]), 0)->trouble == MAP_TROUBLE_NONE) {
        struct cluster_report r = {.failed = -EIO};
        ASSERT(cluster_report(c[0], &r) == 0);
        ASSERT(cluster_wait_change(c[0], cluster_map(c[0])->version, soon(w)) == 0);
    }
    n = map_node(cluster_map(c[0]), 0);
    ASSERT(n->trouble == MAP_TROUBLE_STORE && n->trouble_error == EIO);
    wait_place(w, c[0], 0, NOWHERE);
    settle(w, &c[1], 3, 1, IN_SYNC);
    uint16_t others[] = {1, 2, 3};
    struct cluster_report all = {.unreachable = others, .unreachable_count = 3};
    ASSERT(cluster_report(c[0], &all) == 0); /* it writes again, but reaches nobody */
    while (map_node(cluster_map(c[0]), 0)->trouble != MAP_TROUBLE_ALONE)
        ASSERT(cluster_wait_change(c[0], cluster_map(c[0])->version, soon(w)) == 0);
    wait_place(w, c[0], 0, NOWHERE);
    while (map_node(cluster_map(c[0]), 0)->trouble != MAP_TROUBLE_NONE) {
        report_all(c[0]);
        ASSERT(cluster_wait_change(c[0], cluster_map(c[0])->version, soon(w)) == 0);
    }
    ASSERT(!map_node(cluster_map(c[0]), 0)->out);
    stop_all(c, 4);
}

static fiber_fn void refusal_scene(struct world *w)
{
    struct cluster *c[3];
    struct cluster_options o;
    struct uuid foreign;
    memset(foreign.bytes, 0xee, sizeof(foreign.bytes));
    node_options(w, 3, &o);
    o.store_cluster = foreign;
    ASSERT(try_start(w, &o) == -EMEDIUMTYPE); /* nothing is formatted here */
    start_cluster(w, c);
    node_options(w, 3, &o);
    o.store_cluster = foreign;
    ASSERT(try_start(w, &o) == -EMEDIUMTYPE);
    node_options(w, 3, &o);
    o.name = "a";
    ASSERT(try_start(w, &o) == -EEXIST);
    static const char *const bad_names[] = {"", "a b", "a/b", "\xc3\xa9", NULL};
    for (unsigned i = 0; i < ARRAY_SIZE(bad_names); i++) {
        node_options(w, 3, &o);
        o.name = bad_names[i];
        ASSERT(try_start(w, &o) == -EINVAL);
    }
    node_options(w, 3, &o);
    o.store_cluster = cluster_map(c[0])->cluster;
    o.name = "renamed";
    ASSERT(try_start(w, &o) == 0);
    node_options(w, 3, &o);
    ASSERT(try_start(w, &o) == 0);
    node_options(w, 4, &o);
    o.name = "renamed"; /* free again */
    ASSERT(try_start(w, &o) == 0);
    if (!w->store) {
        node_options(w, 3, &o);
        o.driver_spec = "etcd:/x";
        ASSERT(try_start(w, &o) == -EINVAL);
    }
    stop_all(c, 3);
}

#define VID_ROUNDS 10

struct vid_taker {
    struct cluster *c;
    struct wgroup *done;
    uint64_t first[VID_ROUNDS];
};

static void take_vids(void *arg)
{
    struct vid_taker *t = arg;
    for (unsigned i = 0; i < VID_ROUNDS; i++) {
        struct vid v;
        ASSERT(cluster_new_vids(t->c, 3, &v) == 0 && v.value != 0);
        t->first[i] = v.value;
    }
    wgroup_finish(t->done);
}

static fiber_fn void vid_scene(struct world *w)
{
    struct cluster *c[3];
    struct wgroup done;
    struct vid_taker takers[3];
    bool taken[3 * VID_ROUNDS * 3 + 1] = {0};
    start_cluster(w, c);
    wgroup_init(&done);
    for (unsigned i = 0; i < 3; i++) {
        takers[i] = (struct vid_taker){.c = c[i], .done = &done};
        wgroup_add(&done, 1);
        ASSERT(fiber_spawn(w->rt, "vids", take_vids, &takers[i]) == 0);
    }
    wgroup_wait(&done);
    for (unsigned i = 0; i < 3 * VID_ROUNDS; i++) {
        for (uint64_t v = 0; v < 3; v++) {
            uint64_t vid = takers[i / VID_ROUNDS].first[i % VID_ROUNDS] + v;
            ASSERT(vid < ARRAY_SIZE(taken) && !taken[vid]);
            taken[vid] = true;
        }
    }
    struct vid v;
    ASSERT(cluster_new_vids(c[0], 0, &v) == -EINVAL);
    stop_all(c, 3);
}

/* --- running scenes --- */

static void scene_main(void *arg)
{
    struct world *w = arg;
    w->scene(w);
    rt_stop(w->rt);
}

static void run_local(fiber_fn void (*scene)(struct world *w))
{
    struct world w = {.scene = scene, .directory = "/tmp/cluster-XXXXXX"};
    char command[96];
    ASSERT(mkdtemp(w.directory));
    snprintf(w.spec, sizeof(w.spec), "local:%s/cluster.db", w.directory);
    ASSERT(rt_uring_new(NULL, &w.rt) == 0);
    ASSERT(fiber_spawn(w.rt, "scene", scene_main, &w) == 0);
    ASSERT(rt_uring_run(w.rt) == 0);
    rt_uring_free(w.rt);
    snprintf(command, sizeof(command), "rm -rf %s", w.directory);
    ASSERT(system(command) == 0);
}

static void sim_scene_main(void *arg)
{
    struct world *w = arg;
    w->scene(w);
    w->scene = NULL;
}

static void run_sim(fiber_fn void (*scene)(struct world *w), uint64_t seed)
{
    struct sim *s = sim_new(seed);
    struct world w = {.scene = scene, .rt = sim_node_new(s, NULL), .store = sim_cs_new(s)};
    sim_do(s, w.rt, sim_scene_main, &w);
    if (w.scene)
        fail_msg("the scene came to a standstill with seed %llu", (unsigned long long)seed);
    sim_cs_free(w.store);
    sim_free(s);
}

static void run_everywhere(fiber_fn void (*scene)(struct world *w))
{
    log_level = getenv("TEST_LOG") ? LOG_DEBUG : LOG_ERROR;
    for (uint64_t seed = 0; seed < SIM_SEEDS; seed++)
        run_sim(scene, seed);
    run_local(scene);
}

#define SCENE_TEST(name)                                                                           \
    static void test_##name(void **state)                                                          \
    {                                                                                              \
        run_everywhere(name##_scene);                                                              \
    }
SCENE_TEST(format)
SCENE_TEST(restart)
SCENE_TEST(leader)
SCENE_TEST(fence)
SCENE_TEST(callback)
SCENE_TEST(stop)
SCENE_TEST(join)
SCENE_TEST(recovery)
SCENE_TEST(grace)
SCENE_TEST(wish)
SCENE_TEST(lost)
SCENE_TEST(absence)
SCENE_TEST(refusal)
SCENE_TEST(vid)

/* --- a node that dies without a word (only the simulator can do that within one process) --- */

struct death {
    struct world w[3]; /* one per node: each has its own rt */
    struct cluster *c[3];
    struct session old;
    bool finished;
};

static void start_one(void *arg)
{
    struct death *d = arg;
    for (unsigned i = 0; i < 3; i++) {
        if (d->w[i].rt && !d->c[i]) {
            d->c[i] = start_node(&d->w[i], i);
            return;
        }
    }
}

static void format_all(void *arg)
{
    struct death *d = arg;
    struct map_format f = three_copies();
    ASSERT(cluster_format(d->c[0], &f) == 0);
}

static void expect_unfenced(void *arg)
{
    struct death *d = arg;
    ASSERT(cluster_wait_fenced(d->c[1], d->old, in_a_moment(&d->w[1])) == -ETIMEDOUT);
}

static void expect_fenced(void *arg)
{
    struct death *d = arg;
    ASSERT(cluster_wait_fenced(d->c[1], d->old, soon(&d->w[1])) == 0);
    d->finished = true;
}

/* kind 0: its session is ended by a timeout; 1: by its own restart, before any timeout. */
static void run_death(uint64_t seed, unsigned kind)
{
    struct sim *s = sim_new(seed);
    struct sim_cs *store = sim_cs_new(s);
    struct death d = {0};
    for (unsigned i = 0; i < 3; i++) {
        d.w[i] = (struct world){.rt = sim_node_new(s, NULL), .store = store};
        sim_do(s, d.w[i].rt, start_one, &d);
    }
    sim_do(s, d.w[0].rt, format_all, &d);
    d.old = cluster_session(d.c[0]);
    assert_true(cluster_is_leader(d.c[0])); /* it came first */
    sim_node_kill(s, d.w[0].rt);
    d.c[0] = NULL;
    sim_do(s, d.w[1].rt, expect_unfenced, &d);
    if (kind == 0)
        sim_cs_end_dead(store);
    else
        sim_do(s, d.w[0].rt, start_one, &d);
    sim_do(s, d.w[1].rt, expect_fenced, &d);
    assert_true(d.finished);
    assert_true(cluster_serving(d.c[1]) && cluster_serving(d.c[2]));
    assert_true(kind == 0 || cluster_serving(d.c[0]));
    sim_cs_free(store);
    sim_free(s);
}

static void test_death(void **state)
{
    log_level = getenv("TEST_LOG") ? LOG_DEBUG : LOG_ERROR;
    for (uint64_t seed = 0; seed < SIM_SEEDS; seed++) {
        run_death(seed, 0);
        run_death(seed, 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format),  cmocka_unit_test(test_restart),
        cmocka_unit_test(test_leader),  cmocka_unit_test(test_fence),
        cmocka_unit_test(test_stop),    cmocka_unit_test(test_callback),
        cmocka_unit_test(test_join),    cmocka_unit_test(test_recovery),
        cmocka_unit_test(test_grace),   cmocka_unit_test(test_wish),
        cmocka_unit_test(test_lost),    cmocka_unit_test(test_absence),
        cmocka_unit_test(test_refusal), cmocka_unit_test(test_vid),
        cmocka_unit_test(test_death),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
