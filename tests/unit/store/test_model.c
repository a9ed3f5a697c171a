/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise: whatever mix of changes several fibers make at once, the store holds what a simple model
 * holds, before and after closing, and check finds it consistent (S2).
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
#include "rt/uring/uring.h"
#include "sim/sim.h"
#include "workload.h"

#define WORKERS 4u

struct run {
    struct rt *rt;
    const char *path;
    uint64_t seed, size, log_bytes;
    uint64_t cache_bytes; /* 0: by the seed */
    unsigned rounds, steps;
    struct worker_state workers[WORKERS];
    struct store *store;
    struct wgroup group;
    char error[512];
};

struct job {
    struct run *run;
    struct worker_state *w;
};

static void note(struct run *run, const char *text)
{
    if (run->error[0] == '\0')
        snprintf(run->error, sizeof(run->error), "seed %llu: %s", (unsigned long long)run->seed,
                 text);
}

static void worker_fiber(void *arg)
{
    struct job *j = arg;

    for (unsigned i = 0; i < j->run->steps && j->w->error[0] == '\0'; i++) {
        if (work_random(j->w, 4) == 0)
            work_read(j->w, j->run->store);
        if (work_step(j->w, j->run->store) < 0) {
            note(j->run, "a step failed");
            break;
        }
    }
    wgroup_finish(&j->run->group);
}

static void finding(void *arg, const char *text)
{
    note(arg, text);
}

static void work_round(struct run *run)
{
    struct job jobs[WORKERS];

    wgroup_init(&run->group);
    wgroup_add(&run->group, WORKERS);
    for (unsigned i = 0; i < WORKERS; i++) {
        jobs[i] = (struct job){run, &run->workers[i]};
        fiber_spawn(run->rt, "worker", worker_fiber, &jobs[i]);
    }
    wgroup_wait(&run->group);
    for (unsigned i = 0; i < WORKERS; i++) {
        work_verify(&run->workers[i], run->store);
        if (run->workers[i].error[0] != '\0')
            note(run, run->workers[i].error);
    }
}

static void run_fiber(void *arg)
{
    struct run *run = arg;
    struct store_format_options options = {.size = run->size, .log_bytes = run->log_bytes};
    struct store_open_options open_options = {
        .cache_bytes = run->cache_bytes != 0 ? run->cache_bytes
                       : run->seed % 4 < 2   ? 1 << 20
                                             : 64 << 10,
        .checkpoint_items = run->seed % 2 ? 3 : 0,
    };
    int r = store_format(run->rt, run->path, &options, NULL, NULL);

    if (r < 0)
        note(run, "format failed");
    for (unsigned round = 0; round < run->rounds && run->error[0] == '\0'; round++) {
        struct store_check_report report;
        r = store_open(run->rt, run->path, &open_options, &run->store);
        if (r < 0) {
            note(run, err_text(r));
            break;
        }
        for (unsigned i = 0; i < WORKERS; i++)
            work_verify(&run->workers[i], run->store);
        work_round(run);
        r = store_close(run->store);
        if (r < 0)
            note(run, "close failed");
        r = store_check(run->rt, run->path, true, finding, run, &report);
        if (r < 0 || report.error_count > 0)
            note(run, "check failed");
    }
}

static void run_init(struct run *run, uint64_t seed)
{
    memset(run, 0, sizeof(*run));
    run->seed = seed;
    run->size = 96 << 20;
    run->log_bytes = 1 << 20;
    run->rounds = 3;
    run->steps = 120;
    for (unsigned i = 0; i < WORKERS; i++)
        work_init(&run->workers[i], i, seed);
}

static void run_done(struct run *run)
{
    for (unsigned i = 0; i < WORKERS; i++)
        work_done(&run->workers[i]);
    if (run->error[0] != '\0')
        fail_msg("%s", run->error);
}

static void run_in_sim(uint64_t seed, enum disk_durability durability, uint64_t size,
                       uint64_t cache_bytes)
{
    struct sim *sim = sim_new(seed);
    struct run run;

    run_init(&run, seed);
    run.rt = sim_node_new(sim, NULL);
    run.path = "disk";
    run.size = size;
    run.cache_bytes = cache_bytes;
    assert_int_equal(sim_disk_new(sim, "disk", size, durability), 0);
    sim_do(sim, run.rt, run_fiber, &run);
    sim_free(sim);
    run_done(&run);
}

static void test_sim_model(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++)
        run_in_sim(seed, (enum disk_durability)(seed % 3), 96 << 20, 0);
}

/* So small that ENOSPC happens all the time. */
static void test_sim_model_full(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 3; seed++)
        run_in_sim(seed, DISK_WRITE_BACK, 8 << 20, 0);
}

/* With the least cache, so that records, maps and index pages come and go all the time, and
 * checkpoints with them. */
static void test_sim_model_small_cache(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 3; seed++)
        run_in_sim(seed, (enum disk_durability)(seed % 3), 96 << 20, 1);
    run_in_sim(4, DISK_WRITE_BACK, 8 << 20, 1);
}

static void test_uring_model(void **state)
{
    char dir[] = "/tmp/store-test-XXXXXX", path[64];
    struct run run;
    (void)state;

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/disk", dir);
    run_init(&run, 77);
    run.path = path;
    assert_int_equal(rt_uring_new(NULL, &run.rt), 0);
    assert_int_equal(fiber_spawn(run.rt, "test", run_fiber, &run), 0);
    assert_int_equal(rt_uring_run(run.rt), 0);
    rt_uring_free(run.rt);
    unlink(path);
    rmdir(dir);
    run_done(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sim_model),
        cmocka_unit_test(test_sim_model_full),
        cmocka_unit_test(test_sim_model_small_cache),
        cmocka_unit_test(test_uring_model),
    };

    log_level = LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
