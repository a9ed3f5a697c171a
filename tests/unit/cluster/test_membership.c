/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Membership: election, map, sessions, fencing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "scene.h"

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

SCENE_TEST(format)
SCENE_TEST(restart)
SCENE_TEST(leader)
SCENE_TEST(fence)
SCENE_TEST(callback)
SCENE_TEST(stop)
SCENE_TEST(join)
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
        cmocka_unit_test(test_join),

        cmocka_unit_test(test_refusal), cmocka_unit_test(test_vid),
        cmocka_unit_test(test_death),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
