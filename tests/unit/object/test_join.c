/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise: a node that dies does not hold writes up; when it returns, with what it had or with an
 * empty disk, it is brought to what the others have while writes go on, whatever breaks meanwhile,
 * and then its copies are equal byte by byte (W1, W2, R1 to R3, C1, C3).
 */
#include "base/log.h"
#include "workload.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#define LOG_MODULE "test"

struct progress {
    struct workload *w;
    uint64_t sequence;
};

/* Every writer has begun another step since, so all that were under way are answered. */
static bool answered_more(void *arg)
{
    const struct progress *p = arg;
    return p->w->sequence > p->sequence + 4 * WORKLOAD_PIPELINE;
}

static fiber_fn void wait_for_progress(struct workload *w)
{
    struct progress p = {w, w->sequence};
    trio_wait(w->t, answered_more, &p);
}

static fiber_fn void finish(struct workload *w)
{
    struct trio *t = w->t;
    w->steps_left = WORKLOAD_STEPS;
    trio_wait(t, workload_ended, w);
    for (unsigned k = 0; k < WORKLOAD_OBJECTS; k++)
        CHECK(w->chains[k].given == w->chains[k].answered);
    trio_settle_sync(t);
    trio_check_equal(t);
    for (unsigned i = 0; i < TRIO_NODES; i++)
        workload_check(w, i);
}

/* --- a node leaves in an orderly way and returns, over real sockets --- */

static fiber_fn void scene_returns(struct trio *t)
{
    struct workload w = {.t = t, .owner = trio_owner(1, 20), .steps_left = 1000000};
    workload_start(&w);
    for (unsigned round = 0; round < 3; round++) {
        unsigned victim = 1 + round % 2;
        wait_for_progress(&w);
        trio_stop_node(t, victim);
        wait_for_progress(&w); /* without it */
        if (round == 2)
            trio_wipe_node(t, victim);
        trio_start_node(t, victim);
        trio_settle_sync(t);
    }
    finish(&w);
}

static void test_returns(void **state)
{
    trio_run_recovery_real(scene_returns, 3);
    trio_run_recovery(scene_returns, 3, 20);
}

/* --- nodes are killed while writing, connections break --- */

static fiber_fn void scene_killed(struct trio *t)
{
    struct workload w = {.t = t, .owner = trio_owner(1, 20), .steps_left = 1000000};
    w.objects = t->seed % 3 ? WORKLOAD_OBJECTS : 1;
    workload_start(&w);
    for (unsigned i = 0; i < 6; i++) {
        unsigned victim = 1 + (unsigned)(trio_random(t) % 2);
        CHECK(fiber_sleep(t->rt, trio_random(t) % (20 * NS_PER_MS)) == 0);
        if (trio_objects(t, victim)) {
            trio_kill_node(t, victim, trio_random(t) % 2);
            if (trio_random(t) % 2)
                wait_for_progress(&w);
            if (trio_random(t) % 4 == 0 && trio_objects(t, 3 - victim)) {
                trio_wipe_node(t, victim);
            }
        }
        CHECK(fiber_sleep(t->rt, trio_random(t) % (200 * NS_PER_MS)) == 0);
        trio_start_node(t, victim);
        for (unsigned k = (unsigned)(trio_random(t) % 20); k > 0; k--) {
            workload_drop_link(t);
            CHECK(fiber_sleep(t->rt, trio_random(t) % (5 * NS_PER_MS)) == 0);
        }
        if (trio_random(t) % 2)
            trio_settle_sync(t);
    }
    finish(&w);
}

static void test_killed(void **state)
{
    trio_run_recovery(scene_killed, 3, 40);
}

/* --- the owner dies while a node joins --- */

static void ignore_found(void *arg, const struct object_found *f)
{
}

static bool dead_is_gone(void *arg)
{
    struct trio *t = arg;
    for (unsigned i = 1; i < TRIO_NODES; i++)
        if (map_node(trio_objects(t, i)->map, 0)->session.value != 0)
            return false;
    return true;
}

static fiber_fn void scene_owner_dies(struct trio *t)
{
    struct workload *w = calloc(1, sizeof(*w)); /* its writers die with their node */
    const struct object_owner next = trio_owner(2, 20);
    CHECK(w);
    *w = (struct workload){.t = t, .owner = trio_owner(1, 20), .steps_left = 1000000};
    w->objects = t->seed % 3 ? WORKLOAD_OBJECTS : 1;
    workload_start(w);
    wait_for_progress(w);
    trio_kill_node(t, 2, trio_random(t) % 2);
    wait_for_progress(w);
    if (t->seed % 4 == 0)
        trio_wipe_node(t, 2);
    trio_start_node(t, 2);
    CHECK(fiber_sleep(t->rt, trio_random(t) % (120 * NS_PER_MS)) == 0);
    trio_kill_node(t, 0, trio_random(t) % 2);
    trio_wait(t, dead_is_gone, t);
    CHECK(object_reconcile(trio_objects(t, 1), &next, (struct vid){20}, (struct version){0},
                           ignore_found, NULL) == 0);
    for (unsigned i = 1; i < TRIO_NODES; i++)
        workload_check(w, i);
    if (trio_random(t) % 2)
        trio_settle_sync(t);
    /* The next owner goes on from what it has found. */
    for (unsigned k = 0; k < WORKLOAD_OBJECTS; k++) {
        struct oid oid = trio_oid(t, 20, 0, k);
        struct version v;
        uint8_t byte;
        int r = object_read(trio_objects(t, 1), &oid, 100, 1, &byte, &v);
        if (r == 0)
            CHECK(trio_write(trio_objects(t, 1), &next, oid, v.value, V(2, k + 1), 0, 100, 1) == 0);
        else
            CHECK(r == -ENOENT && w->chains[k].answered == 0);
    }
    trio_start_node(t, 0);
    trio_settle_sync(t);
    trio_check_equal(t);
    free(w);
}

static void test_owner_dies(void **state)
{
    trio_run_recovery(scene_owner_dies, 3, 30);
}

/* --- a store that may have lost something --- */

/* One block of the log is damaged, with whole ones behind it. */
static void damage_log(struct trio *t, unsigned node)
{
    uint8_t *disk = sim_disk_bytes(t->sim, t->nodes[node].disk);
    disk[(2 + 20) * 4096 + 70] ^= 1;
}

static bool is_exact(void *arg)
{
    struct trio *t = arg;
    return !store_is_inexact(t->nodes[2].store);
}

static fiber_fn void scene_inexact(struct trio *t)
{
    struct workload w = {.t = t, .owner = trio_owner(1, 20), .steps_left = 200};
    struct object_node_info info;
    workload_start(&w);
    trio_wait(t, workload_ended, &w);
    trio_kill_node(t, 2, false);
    damage_log(t, 2);
    trio_start_node(t, 2);
    CHECK(store_is_inexact(t->nodes[2].store)); /* else this scene says nothing */
    trio_settle_sync(t);
    trio_wait(t, is_exact, t);
    CHECK(object_node_info(trio_objects(t, 0), (uint16_t)trio_objects(t, 2)->self, &info) == 0);
    CHECK(info.recovery.groups_total == t->group_count &&
          info.recovery.groups_done == t->group_count && info.recovery.bytes_done > 0 &&
          info.recovery.objects_done == info.recovery.objects_total);
    trio_check_equal(t);
    /* Exact for good. */
    trio_stop_node(t, 2);
    trio_start_node(t, 2);
    CHECK(is_exact(t));
    finish(&w);
}

static void test_inexact(void **state)
{
    trio_run_recovery(scene_inexact, 3, 5);
}

/* --- a node that lives, but does not reach the owner --- */

static void set_way(struct trio *t, unsigned from, unsigned to, bool blocked)
{
    const struct sim_link link = {.blocked = blocked};
    sim_link_set(t->sim, t->nodes[from].rt, t->nodes[to].rt, link);
}

static bool is_out(void *arg)
{
    struct trio *t = arg;
    const struct objects *o = trio_objects(t, 0);
    for (uint32_t g = 0; g < o->map->group_count; g++)
        if (map_group_has(&o->map->groups[g], 2))
            return false;
    return true;
}

/* The owner says so, the leader drops it, writes go on; and it stays out until it answers again. */
static fiber_fn void scene_unreachable(struct trio *t)
{
    struct workload w = {.t = t, .owner = trio_owner(1, 20), .steps_left = 1000000};
    CHECK(trio_objects(t, 2)->self == 2);
    workload_start(&w);
    wait_for_progress(&w);
    set_way(t, 0, 2, true);
    if (t->seed % 2)
        set_way(t, 2, 0, true);
    uint64_t begun_ns = clock_now(t->rt);
    wait_for_progress(&w);
    wait_for_progress(&w);
    CHECK(clock_now(t->rt) - begun_ns < 20 * NS_PER_S && is_out(t));
    for (unsigned i = 0; i < 100; i++) {
        CHECK(fiber_sleep(t->rt, 200 * NS_PER_MS) == 0);
        CHECK(is_out(t));
    }
    sim_links_heal(t->sim);
    trio_settle_sync(t);
    finish(&w);
}

static void test_unreachable(void **state)
{
    trio_run_recovery(scene_unreachable, 3, 6);
}

int main(void)
{
    log_level = getenv("VERBOSE") ? LOG_DEBUG : LOG_ERROR;
    if (getenv("ONLY"))
        cmocka_set_test_filter(getenv("ONLY"));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_returns),     cmocka_unit_test(test_killed),
        cmocka_unit_test(test_owner_dies),  cmocka_unit_test(test_inexact),
        cmocka_unit_test(test_unreachable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
