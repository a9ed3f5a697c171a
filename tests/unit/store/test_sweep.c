/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise: one fixed scenario, run again and again with the power cut, or an I/O error, at its 1st,
 * 2nd, 3rd … write or flush until one run gets through: every answered change is there after
 * reopening (S1), check is clean (S2), an error never becomes a wrong answer. The store is nearly
 * full and its log tiny, so that blocks are reused at once and checkpoints run beside the writes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <unistd.h>
#include "base/err.h"
#include "base/log.h"
#include "sim/sim.h"
#include "store/store.h"

#define WRITERS 3u
#define SIZE    ((2 + 256 + 1024) * 4096)

/* A crashed node's memory is abandoned by design. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

enum scenario { SCENARIO_WRITES, SCENARIO_FULL, SCENARIO_METAS };

/* Writer i overwrites whole objects of 64 blocks with the number of the write; or sets the meta of
 * METAS objects at once, which fills the log faster than checkpoints can empty it. SCENARIO_FULL:
 * objects of 8 blocks, and hardly a free block, so that what is freed is reused at once. */
struct writer {
    struct sweep *sweep;
    unsigned id;
    uint32_t answered, tried;
};

struct sweep {
    struct rt *rt;
    struct store *s;
    struct wgroup group;
    struct writer writers[WRITERS];
    enum scenario scenario;
    unsigned writes, checkpoint_items;
    uint32_t object_bytes;
    bool finished;
    char error[256];
};

static void note(struct sweep *w, const char *what, int a)
{
    if (w->error[0] == '\0')
        snprintf(w->error, sizeof(w->error), "%s (%d)", what, a);
}

static void finding(void *arg, const char *text)
{
    note(arg, text, 0);
}

static struct oid writer_oid(unsigned id)
{
    return (struct oid){.vid = 7, .index = id};
}

static fiber_fn int write_next(struct writer *w, uint8_t *data)
{
    struct store_extent extent = {0, w->sweep->object_bytes};
    struct iovec iov = {data, extent.length};
    struct store_change c = {.kind = STORE_WRITE,
                             .oid = writer_oid(w->id),
                             .prev = {w->tried},
                             .next = {w->tried + 1},
                             .extents = &extent,
                             .extent_count = 1,
                             .iov = &iov,
                             .iov_count = 1};
    int r;

    memset(data, (int)++w->tried, extent.length);
    r = store_apply(w->sweep->s, &c, NULL);
    if (r == 0)
        w->answered = w->tried;
    return r;
}

static void writer_fiber(void *arg)
{
    struct writer *w = arg;
    uint8_t *data = aligned_alloc(4096, w->sweep->object_bytes);
    int r = 0;

    while (r == 0 && w->tried < w->sweep->writes)
        r = write_next(w, data);
    if (r < 0 && r != -EIO)
        note(w->sweep, "a write failed", r);
    free(data);
    wgroup_finish(&w->sweep->group);
}

/* Fills the store up, once the writers' objects are there. */
static fiber_fn void fill_up(struct sweep *w)
{
    uint8_t *data = aligned_alloc(4096, 64 * 4096);
    struct writer filler = {.sweep = w, .id = 1000};
    uint32_t bytes = w->object_bytes;
    int r = 0;

    for (unsigned i = 0; r == 0 && i < WRITERS; i++)
        r = write_next(&w->writers[i], data);
    for (w->object_bytes = 32 * 4096; r == 0 && w->object_bytes >= 4096; w->object_bytes /= 2) {
        while ((r = write_next(&filler, data)) == 0) {
            filler.id++;
            filler.tried = 0;
        }
        filler.tried = 0;
        r = r == -ENOSPC ? 0 : r;
    }
    w->object_bytes = bytes;
    free(data);
}

#define METAS 50u

static struct oid meta_oid(unsigned id, unsigned i)
{
    return (struct oid){.vid = 100 + id, .index = i};
}

static fiber_fn int make_objects(struct sweep *w, unsigned id)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < METAS; i++) {
        struct store_change c = {.kind = STORE_PUNCH, .oid = meta_oid(id, i), .next = {1}};
        r = store_apply(w->s, &c, NULL);
    }
    return r;
}

static void meta_fiber(void *arg)
{
    struct writer *w = arg;
    uint8_t *meta = malloc(STORE_META_SIZE_MAX);
    struct store_meta_change batch[METAS];
    int r = make_objects(w->sweep, w->id);

    while (r == 0 && w->tried < 12) {
        memset(meta, (int)++w->tried, STORE_META_SIZE_MAX);
        for (unsigned i = 0; i < METAS; i++)
            batch[i] = (struct store_meta_change){.oid = meta_oid(w->id, i),
                                                  .meta_version = w->tried,
                                                  .meta = meta,
                                                  .length = STORE_META_SIZE_MAX};
        r = store_meta_apply(w->sweep->s, batch, METAS);
        if (r == 0)
            w->answered = w->tried;
    }
    if (r < 0 && r != -EIO)
        note(w->sweep, "meta", r);
    free(meta);
    wgroup_finish(&w->sweep->group);
}

static fiber_fn void verify_metas(struct sweep *w, unsigned id)
{
    uint8_t *meta = malloc(STORE_META_SIZE_MAX);
    uint64_t first = 0;

    for (unsigned i = 0; i < METAS; i++) {
        struct oid oid = meta_oid(id, i);
        size_t length = 0;
        uint64_t v = 0;
        int r = store_meta_get(w->s, &oid, meta, &length, &v);
        if (i == 0)
            first = v;
        if (r == -ENOENT ? w->writers[id].answered > 0 : r < 0 || v != first)
            note(w, "metas of one batch differ", (int)v);
        if (v < w->writers[id].answered || v > w->writers[id].tried)
            note(w, "an answered meta is lost", (int)v);
        for (size_t k = 0; r == 0 && k < length; k++) {
            if (meta[k] != (uint8_t)v)
                note(w, "wrong meta", (int)v);
        }
    }
    free(meta);
}

static void format_fiber(void *arg)
{
    struct sweep *w = arg;
    struct store_format_options options = {.log_bytes = 1 << 20};

    if (store_format(w->rt, "disk", &options, NULL, NULL) < 0)
        note(w, "format", 0);
}

static void write_fiber(void *arg)
{
    struct sweep *w = arg;
    const struct store_open_options options = {.checkpoint_items = w->checkpoint_items};

    if (store_open(w->rt, "disk", &options, &w->s) < 0)
        return;
    for (unsigned i = 0; i < WRITERS; i++)
        w->writers[i] = (struct writer){.sweep = w, .id = i};
    if (w->scenario == SCENARIO_FULL)
        fill_up(w);
    wgroup_init(&w->group);
    wgroup_add(&w->group, WRITERS);
    for (unsigned i = 0; i < WRITERS; i++) {
        fiber_spawn(w->rt, "writer", w->scenario == SCENARIO_METAS ? meta_fiber : writer_fiber,
                    &w->writers[i]);
    }
    wgroup_wait(&w->group);
    w->finished = store_close(w->s) == 0;
}

static void verify_fiber(void *arg)
{
    struct sweep *w = arg;
    struct store_check_report report;
    uint8_t *data = aligned_alloc(4096, w->object_bytes);
    int r = store_check(w->rt, "disk", true, finding, w, &report);

    if (r == 0)
        r = store_open(w->rt, "disk", NULL, &w->s);
    if (r < 0) {
        note(w, "check or open", r);
        return;
    }
    if (store_is_inexact(w->s))
        note(w, "taken for damaged", 0);
    for (unsigned i = 0; i < WRITERS && w->scenario == SCENARIO_METAS; i++)
        verify_metas(w, i);
    for (unsigned i = 0; i < WRITERS && w->scenario != SCENARIO_METAS; i++) {
        struct oid oid = writer_oid(i);
        struct version v = {0};
        r = store_read(w->s, &oid, 0, w->object_bytes, data, &v);
        if (v.value < w->writers[i].answered || v.value > w->writers[i].tried)
            note(w, "an answered write is lost", (int)v.value);
        for (uint32_t k = 0; r == 0 && k < w->object_bytes; k++) {
            if (data[k] != (uint8_t)v.value)
                r = -EUCLEAN;
        }
        if (r != 0 && r != -ENOENT)
            note(w, "wrong content", r);
    }
    free(data);
    r = store_close(w->s);
    if (r < 0)
        note(w, "close", r);
}

/* One run with the fault at the nth operation; true when it never came. */
static bool run(enum scenario scenario, enum sim_fault fault, uint64_t nth,
                enum disk_durability durability)
{
    uint64_t seed = nth;
    int err = dup(2), null = open("/dev/null", O_WRONLY); /* the injected error is logged */

    struct sim *sim = sim_new(seed);
    struct sweep *w = calloc(1, sizeof(*w));
    char error[320] = "";
    bool finished;

    if (getenv("STORE_LOG") == NULL)
        dup2(null, 2);
    w->scenario = scenario;
    w->checkpoint_items = nth % 4; /* 0: checkpoints in one step */
    w->writes = scenario == SCENARIO_FULL ? 250 : 170;
    w->object_bytes = (scenario == SCENARIO_FULL ? 8 : 64) * 4096;
    w->rt = sim_node_new(sim, NULL);
    assert_int_equal(sim_disk_new(sim, "disk", SIZE, durability), 0);
    sim_do(sim, w->rt, format_fiber, w);
    sim_disk_fault(sim, "disk", DISK_WRITE, fault, nth);
    sim_do(sim, w->rt, write_fiber, w);
    finished = w->finished;
    sim_disk_fault(sim, "disk", DISK_WRITE, SIM_FAULT_NONE, 0);
    w->object_bytes = (scenario == SCENARIO_FULL ? 8 : 64) * 4096; /* fill_up() was cut off */
    sim_do(sim, w->rt, verify_fiber, w);
    if (w->error[0] != '\0')
        snprintf(error, sizeof(error), "fault %d at operation %llu: %s", (int)fault,
                 (unsigned long long)nth, w->error);
    sim_free(sim);
    free(w);
    dup2(err, 2);
    close(err);
    close(null);
    if (error[0] != '\0')
        fail_msg("%s", error);
    return finished;
}

/* All of them with STORE_SLOW, else a share of them that differs from place to place. */
static void sweep(enum scenario scenario, enum sim_fault fault, enum disk_durability durability)
{
    uint64_t step = getenv("STORE_SLOW") != NULL ? 1 : 13, nth = 1;

    while (!run(scenario, fault, nth, durability)) {
        nth += 1 + hash_u64(nth) % (2 * step - 1);
        assert_in_range(nth, 1, 100000);
    }
    assert_true(nth > 200);
}

static void test_power_cut_everywhere(void **state)
{
    (void)state;
    sweep(SCENARIO_WRITES, SIM_FAULT_CRASH, DISK_WRITE_BACK);
}

static void test_power_cut_on_full_disk(void **state)
{
    (void)state;
    sweep(SCENARIO_FULL, SIM_FAULT_CRASH, DISK_WRITE_BACK);
}

static void test_error_everywhere(void **state)
{
    (void)state;
    sweep(SCENARIO_WRITES, SIM_FAULT_EIO_ONCE, DISK_FUA);
}

static void test_power_cut_with_full_log(void **state)
{
    (void)state;
    sweep(SCENARIO_METAS, SIM_FAULT_CRASH, DISK_WRITE_BACK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_power_cut_everywhere),
        cmocka_unit_test(test_power_cut_on_full_disk),
        cmocka_unit_test(test_error_everywhere),
        cmocka_unit_test(test_power_cut_with_full_log),
    };

    log_level = LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
