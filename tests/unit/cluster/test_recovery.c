/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recovery: who leaves, joins and enters the sets of groups as nodes die and return, and as
 * administrators wish.
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

SCENE_TEST(recovery)
SCENE_TEST(grace)
SCENE_TEST(wish)
SCENE_TEST(lost)
SCENE_TEST(absence)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recovery), cmocka_unit_test(test_grace),
        cmocka_unit_test(test_wish),     cmocka_unit_test(test_lost),
        cmocka_unit_test(test_absence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
