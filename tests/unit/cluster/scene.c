/* SPDX-License-Identifier: Apache-2.0 */
/* What scenes have in common (scene.h). */
#include "scene.h"
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

uint64_t soon(struct world *w)
{
    return clock_now(w->rt) + 30 * NS_PER_S;
}

uint64_t in_a_moment(struct world *w)
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

void node_options(struct world *w, unsigned i, struct cluster_options *ret)
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

fiber_fn struct cluster *start_node(struct world *w, unsigned i)
{
    struct cluster_options o;
    struct cluster *c = NULL;
    node_options(w, i, &o);
    ASSERT(cluster_start(w->rt, &o, &c) == 0 && c);
    ASSERT(cluster_map(c) && cluster_session(c).value != 0);
    return c;
}

struct map_format three_copies(void)
{
    return (struct map_format){.copies = 3, .cluster_name = "test", .group_count = 64};
}

fiber_fn void start_cluster(struct world *w, struct cluster *c[3])
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

fiber_fn void stop_all(struct cluster **c, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (c[i])
            cluster_stop(c[i]);
    }
}

fiber_fn void wait_session(struct world *w, struct cluster *c, uint16_t number, uint64_t session)
{
    for (;;) {
        struct map *m = cluster_map(c);
        const struct map_node *n = map_node(m, number);
        if (n && n->session.value == session)
            return;
        ASSERT(cluster_wait_change(c, m->version, soon(w)) == 0);
    }
}

fiber_fn struct cluster *wait_leader(struct world *w, struct cluster **c, unsigned count)
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

fiber_fn int try_start(struct world *w, struct cluster_options *o)
{
    struct cluster *c;
    int r = cluster_start(w->rt, o, &c);
    if (r == 0)
        cluster_stop(c);
    return r;
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

void run_everywhere(fiber_fn void (*scene)(struct world *w))
{
    log_level = getenv("TEST_LOG") ? LOG_DEBUG : LOG_ERROR;
    for (uint64_t seed = 0; seed < SIM_SEEDS; seed++)
        run_sim(scene, seed);
    run_local(scene);
}
