/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise S1: after a power cut at any write or flush, unflushed writes lost, kept or torn, every
 * answered change is there and the one under way is there wholly or not at all (S4); check finds
 * the disk consistent before and after the replay (S2), and the tail is never taken for damage.
 * Also when the power goes while the store is opened after a kill -9, whose last commit was
 * complete in the cache of the disk and never flushed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "sim/sim.h"
#include "workload.h"

#define WORKERS 3u

/* A crashed node's memory is abandoned by design. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

struct run {
    struct sim *sim;
    struct rt *rt;
    uint64_t seed;
    unsigned round;
    struct worker_state workers[WORKERS];
    struct store *store;
    struct wgroup group;
    uint64_t commits, checkpoints, zeroed;
    char error[512];
};

struct job {
    struct run *run;
    struct worker_state *w;
};

static void note(struct run *run, const char *text)
{
    if (run->error[0] == '\0')
        snprintf(run->error, sizeof(run->error), "seed %llu round %u: %s",
                 (unsigned long long)run->seed, run->round, text);
}

static void finding(void *arg, const char *text)
{
    note(arg, text);
}

static void worker_fiber(void *arg)
{
    struct job *j = arg;
    unsigned steps = 20 + (unsigned)work_random(j->w, 100);

    for (unsigned i = 0; i < steps && j->w->error[0] == '\0'; i++) {
        if (work_step(j->w, j->run->store) < 0)
            break;
    }
    wgroup_finish(&j->run->group);
}

static void check_disk(struct run *run)
{
    struct store_check_report report;
    int r = store_check(run->rt, "disk", true, finding, run, &report);

    if (r < 0)
        note(run, err_text(r));
}

static void format_fiber(void *arg)
{
    struct run *run = arg;
    /* Every other run has most of its disk unwritten, and zeroes it in small steps next to the
     * work. */
    struct store_format_options options = {.log_bytes = 1 << 20,
                                           .zero_bytes = run->seed % 2 ? 1 << 20 : 0};

    if (store_format(run->rt, "disk", &options, NULL, NULL) < 0)
        note(run, "format failed");
}

static void round_fiber(void *arg)
{
    struct run *run = arg;
    struct store_open_options options = {
        .cache_bytes = run->seed % 4 < 2 ? 1 << 20 : 64 << 10,
        .checkpoint_items = run->seed % 2 ? 1 + run->seed % 5 : 0,
        .zero_ahead_bytes = 1 << 20,
        .discard_batch_ms = 1,
    };
    static struct job jobs[WORKERS];
    struct store_stats stats;
    int r;

    check_disk(run);
    r = store_open(run->rt, "disk", &options, &run->store);
    if (r < 0) {
        note(run, err_text(r));
        return;
    }
    if (store_is_inexact(run->store))
        note(run, "a tear was taken for damage");
    for (unsigned i = 0; i < WORKERS; i++) {
        work_verify(&run->workers[i], run->store);
        if (run->workers[i].error[0] != '\0')
            note(run, run->workers[i].error);
    }
    if (run->error[0] != '\0')
        return;
    wgroup_init(&run->group);
    wgroup_add(&run->group, WORKERS);
    for (unsigned i = 0; i < WORKERS; i++) {
        jobs[i] = (struct job){run, &run->workers[i]};
        fiber_spawn(run->rt, "worker", worker_fiber, &jobs[i]);
    }
    wgroup_wait(&run->group);
    store_stats(run->store, &stats);
    run->commits += stats.commits;
    run->checkpoints += stats.checkpoints;
    run->zeroed += stats.zeroed_blocks;
    if (run->seed % 3 == 0)
        fiber_sleep(run->rt, 2 * NS_PER_S); /* the empty commit */
    r = store_close(run->store);
    if (r < 0)
        note(run, "close failed");
}

static void run_seed(uint64_t seed, unsigned rounds, uint64_t size, enum disk_durability durability)
{
    struct run *run = calloc(1, sizeof(*run));
    char error[sizeof(run->error)];

    run->sim = sim_new(seed);
    run->seed = seed;
    run->rt = sim_node_new(run->sim, NULL);
    assert_int_equal(sim_disk_new(run->sim, "disk", size, durability), 0);
    if (seed % 4 == 2) /* freed blocks are discarded at once, in units that are not blocks */
        sim_disk_device(run->sim, "disk", seed % 8 == 2 ? 4096 : 16384);
    if (seed % 4 == 3)
        sim_disk_sparse(run->sim, "disk", size);
    for (unsigned i = 0; i < WORKERS; i++)
        work_init(&run->workers[i], i, seed);
    sim_do(run->sim, run->rt, format_fiber, run);
    for (run->round = 0; run->round < rounds && run->error[0] == '\0'; run->round++) {
        uint64_t nth = 1 + work_random(&run->workers[0], run->round % 3 == 0 ? 30 : 600);
        enum sim_fault fault = run->round % 2 == 1 ? SIM_FAULT_KILL : SIM_FAULT_CRASH;
        if (run->round > 0 && run->round % 2 == 0) /* after a kill, and soon */
            nth = 1 + work_random(&run->workers[0], 6);
        sim_disk_fault(run->sim, "disk", DISK_WRITE, fault, nth);
        sim_do(run->sim, run->rt, round_fiber, run);
        sim_disk_fault(run->sim, "disk", DISK_WRITE, SIM_FAULT_NONE, 0);
    }
    for (unsigned i = 0; i < WORKERS; i++)
        work_done(&run->workers[i]);
    memcpy(error, run->error, sizeof(error));
    sim_free(run->sim);
    free(run);
    if (error[0] != '\0')
        fail_msg("%s", error);
}

static unsigned seeds(unsigned standard)
{
    const char *s = getenv("STORE_SEEDS");

    return s != NULL ? (unsigned)atoi(s) : standard;
}

static void test_power_cuts(void **state)
{
    const char *first = getenv("STORE_SEED");
    uint64_t from = first != NULL ? strtoull(first, NULL, 10) : 1;
    (void)state;

    for (uint64_t seed = from; seed < from + seeds(12); seed++)
        run_seed(seed, 8, seed % 4 == 1 ? (2 + 256 + 1024) * 4096 : 48 << 20,
                 (enum disk_durability)(seed % 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_power_cuts)};

    if (getenv("STORE_LOG") == NULL)
        log_level = LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
