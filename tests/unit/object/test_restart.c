/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise: C1 to C3 for objects, as far as nodes come back: pipelined changes of many objects,
 * while replicas restart, connections break and the owner itself dies, are applied once and in
 * order; after a takeover and object_reconcile() all copies are equal, answered changes are there,
 * and at most one unanswered step more per object.
 */
#include "base/log.h"
#include "workload.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#define LOG_MODULE "test"
/* --- connections break --- */

static fiber_fn void scene_drops(struct trio *t)
{
    struct workload w = {.t = t, .owner = trio_owner(1, 20), .steps_left = WORKLOAD_STEPS * 3};
    workload_start(&w);
    while (w.running > 0) {
        workload_drop_link(t);
        CHECK(fiber_sleep(t->rt, trio_random(t) % (3 * NS_PER_MS)) == 0);
    }
    for (unsigned k = 0; k < WORKLOAD_OBJECTS; k++)
        CHECK(w.chains[k].given == w.chains[k].answered);
    trio_check_equal(t);
    workload_check(&w, 1);
}

static void test_drops(void **state)
{
    trio_run(scene_drops, 3, 30);
}

/* --- replicas restart --- */

static fiber_fn void scene_restart(struct trio *t)
{
    struct workload w = {.t = t, .owner = trio_owner(1, 20), .steps_left = 1000000};
    char text[300];
    workload_start(&w);
    CHECK(fiber_sleep(t->rt, trio_random(t) % (20 * NS_PER_MS)) == 0);
    trio_stop_node(t, 2);
    CHECK(fiber_sleep(t->rt, 2 * NS_PER_S) == 0);
    /* Writes wait, and it is said for whom. */
    CHECK(w.running > 0);
    object_waiting_text(trio_objects(t, 0), text, sizeof(text));
    CHECK(strstr(text, "node c") && strstr(text, "no live session") && strstr(text, "writes"));
    w.steps_left = WORKLOAD_STEPS;
    trio_start_node(t, 2);
    trio_wait(t, workload_ended, &w);
    trio_check_equal(t);
    workload_check(&w, 2);
}

static void test_restart(void **state)
{
    trio_run(scene_restart, 3, 10);
}

static fiber_fn void scene_killed(struct trio *t)
{
    struct workload w = {.t = t, .owner = trio_owner(1, 20), .steps_left = WORKLOAD_STEPS * 4};
    w.objects = t->seed % 2 ? 1 : WORKLOAD_OBJECTS;
    workload_start(&w);
    for (unsigned i = 0; i < 4; i++) {
        unsigned victim = 1 + (unsigned)(trio_random(t) % 2);
        CHECK(fiber_sleep(t->rt, trio_random(t) % (10 * NS_PER_MS)) == 0);
        trio_kill_node(t, victim, trio_random(t) % 2);
        CHECK(fiber_sleep(t->rt, trio_random(t) % (200 * NS_PER_MS)) == 0);
        workload_drop_link(t);
        trio_start_node(t, victim);
    }
    trio_wait(t, workload_ended, &w);
    trio_check_equal(t);
    workload_check(&w, 1);
}

static void test_killed(void **state)
{
    trio_run_sim(scene_killed, 3, 40);
}

/* --- the owner dies, another takes over --- */

static unsigned found_count;
static struct object_found found[WORKLOAD_OBJECTS + 1];

static void add_found(void *arg, const struct object_found *f)
{
    CHECK(found_count < WORKLOAD_OBJECTS);
    CHECK(found_count == 0 || oid_compare(&found[found_count - 1].oid, &f->oid) < 0);
    found[found_count++] = *f;
}

static fiber_fn void take_over(struct workload *w, struct trio *t, uint64_t above)
{
    struct object_owner next = trio_owner(2, 20);
    found_count = 0;
    CHECK(object_reconcile(trio_objects(t, 1), &next, (struct vid){20}, (struct version){above},
                           add_found, NULL) == 0);
    unsigned expected = 0;
    for (unsigned k = 0; k < WORKLOAD_OBJECTS; k++)
        expected += w->chains[k].answered > above;
    CHECK(found_count >= expected);
    for (unsigned i = 0; i < found_count; i++) {
        const struct chain *c = &w->chains[found[i].oid.index];
        CHECK(!found[i].tombstone && !found[i].empty);
        CHECK(found[i].version.value >= c->answered && found[i].version.value <= c->given);
    }
    trio_check_equal(t);
    workload_check(w, 2);
}

static fiber_fn void scene_takeover(struct trio *t)
{
    struct workload *w = calloc(1, sizeof(*w)); /* its writers die with their node */
    CHECK(w);
    *w = (struct workload){.t = t, .owner = trio_owner(1, 20), .steps_left = WORKLOAD_STEPS * 10};
    workload_start(w);
    CHECK(fiber_sleep(t->rt, trio_random(t) % (30 * NS_PER_MS)) == 0);
    bool all = trio_random(t) % 2;
    for (unsigned i = 0; i < TRIO_NODES; i++)
        if (i == 0 || all)
            trio_kill_node(t, i, trio_random(t) % 2);
    CHECK(fiber_sleep(t->rt, trio_random(t) % (200 * NS_PER_MS)) == 0);
    for (unsigned i = TRIO_NODES; i-- > 0;)
        if (i == 0 || all)
            trio_start_node(t, i);
    trio_settle_map(t);
    take_over(w, t, 0);
    take_over(w, t, V(1, trio_random(t) % 50));
    free(w);
}

static void test_takeover(void **state)
{
    trio_run_sim(scene_takeover, 3, 60);
}

/* --- evening out --- */

static fiber_fn void own_change(struct trio *t, unsigned node, enum store_change_kind kind,
                                struct oid oid, uint64_t prev, uint64_t next, uint8_t fill)
{
    uint8_t bytes[512];
    memset(bytes, fill, sizeof(bytes));
    const struct store_extent extent = {0, sizeof(bytes)};
    const struct iovec iov = {bytes, sizeof(bytes)};
    const struct store_change c = {
        .kind = kind,
        .oid = oid,
        .prev = {prev},
        .next = {next},
        .extents = &extent,
        .extent_count = kind == STORE_REMOVE ? 0 : 1,
        .iov = kind == STORE_WRITE ? &iov : NULL,
        .iov_count = kind == STORE_WRITE ? 1 : 0,
    };
    CHECK(store_apply(t->nodes[node].store, &c, NULL) == 0);
}

/* What a dying owner can leave: every way in which three copies can differ by one step. */
static fiber_fn void scene_uneven(struct trio *t)
{
    struct object_owner w = trio_owner(1, 20), next = trio_owner(2, 20);
    for (unsigned mask = 1; mask < 8; mask++) {
        for (unsigned kind = 0; kind < 4; kind++) {
            struct oid oid = trio_oid(t, 20, 0, mask * 4 + kind);
            if (kind > 0) /* 0: a creation */
                CHECK(trio_write(trio_objects(t, 0), &w, oid, 0, V(1, 1), 0, 4096, 1) == 0);
            for (unsigned i = 0; i < TRIO_NODES; i++) {
                if (!(mask >> i & 1))
                    continue;
                static const enum store_change_kind kinds[] = {STORE_WRITE, STORE_WRITE,
                                                               STORE_PUNCH, STORE_REMOVE};
                own_change(t, i, kinds[kind], oid, kind > 0 ? V(1, 1) : 0, V(1, 2), 2);
            }
            struct object_found f;
            CHECK(object_reconcile_one(trio_objects(t, 1), &next, &oid, &f) == 0);
            CHECK(f.version.value == V(1, 2) && f.tombstone == (kind == 3));
            for (unsigned i = 0; i < TRIO_NODES; i++)
                CHECK(trio_byte(trio_objects(t, i), oid, 0) == (kind == 3   ? -1
                                                                : kind == 2 ? 0
                                                                            : 2));
        }
    }
    trio_check_equal(t);
    struct object_found f;
    struct oid absent = trio_oid(t, 20, 0, 1);
    CHECK(object_reconcile_one(trio_objects(t, 1), &next, &absent, &f) == 0);
    CHECK(f.version.value == 0 && !f.tombstone);
}

static void test_uneven(void **state)
{
    trio_run(scene_uneven, 3, 2);
}

/* --- cancelling --- */

static struct object_owner cancelled_owner;
static int cancelled_result;

static fiber_fn void cancelled_main(void *arg)
{
    struct trio *t = arg;
    cancelled_result = trio_write(trio_objects(t, 0), &cancelled_owner, trio_oid(t, 20, 0, 0), 0,
                                  V(1, 1), 0, 4096, 1);
}

static bool has_result(void *arg)
{
    return cancelled_result != 1;
}

static fiber_fn void scene_cancel(struct trio *t)
{
    trio_stop_node(t, 1);
    cancelled_owner = trio_owner(1, 20);
    cancelled_result = 1;
    CHECK(fiber_spawn(t->nodes[0].rt, "cancelled", cancelled_main, t) == 0);
    CHECK(fiber_sleep(t->rt, 50 * NS_PER_MS) == 0);
    CHECK(cancelled_result == 1);
    cancelled_owner.cancelled = true;
    trio_wait(t, has_result, NULL);
    CHECK(cancelled_result == -ECANCELED);
    trio_start_node(t, 1);
    trio_settle_map(t);
}

static void test_cancel(void **state)
{
    trio_run(scene_cancel, 3, 3);
}

/* --- a bad block --- */

static bool found_bytes(uint8_t *disk, size_t size, const uint8_t *pattern, size_t length)
{
    for (size_t i = 0; i + length <= size; i += 4096) {
        if (memcmp(disk + i, pattern, length) == 0) {
            disk[i + 77] ^= 0x10;
            return true;
        }
    }
    return false;
}

static bool is_repaired(void *arg)
{
    struct trio *t = arg;
    return trio_objects(t, 0)->repairs_running == 0;
}

static fiber_fn void scene_rot(struct trio *t)
{
    struct object_owner w = trio_owner(1, 20);
    struct oid oid = trio_oid(t, 20, 0, 0);
    uint8_t pattern[4096], bytes[4096];
    memset(pattern, 0x5a, sizeof(pattern));
    CHECK(trio_write(trio_objects(t, 0), &w, oid, 0, V(1, 1), 0, 8192, 0x5a) == 0);
    CHECK(
        found_bytes(sim_disk_bytes(t->sim, t->nodes[0].disk), 40u << 20, pattern, sizeof(pattern)));
    struct version v;
    CHECK(object_read(trio_objects(t, 0), &oid, 0, 4096, bytes, &v) == 0);
    CHECK(memcmp(bytes, pattern, sizeof(bytes)) == 0 && v.value == V(1, 1));
    trio_wait(t, is_repaired, t);
    CHECK(store_read(t->nodes[0].store, &oid, 0, 4096, bytes, &v) == 0);
    CHECK(memcmp(bytes, pattern, sizeof(bytes)) == 0 && v.value == V(1, 1));
    /* All copies bad: told, never invented. */
    for (unsigned i = 0; i < TRIO_NODES; i++)
        while (found_bytes(sim_disk_bytes(t->sim, t->nodes[i].disk), 40u << 20, pattern,
                           sizeof(pattern)))
            ;
    CHECK(object_read(trio_objects(t, 0), &oid, 0, 4096, bytes, &v) == -EUCLEAN);
}

static void test_rot(void **state)
{
    trio_run_sim(scene_rot, 3, 3);
}

int main(void)
{
    log_level = LOG_ERROR;
    if (getenv("ONLY"))
        cmocka_set_test_filter(getenv("ONLY"));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_drops),  cmocka_unit_test(test_restart),
        cmocka_unit_test(test_killed), cmocka_unit_test(test_takeover),
        cmocka_unit_test(test_uneven), cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_rot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
