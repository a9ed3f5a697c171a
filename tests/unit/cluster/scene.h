/* SPDX-License-Identifier: Apache-2.0 */
/* Scenes: nodes that share one rt, over `local` and, with several seeds, over the simulated cluster
 * store. */
#pragma once
#include "cluster/cluster.h"
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

uint64_t soon(struct world *w);
uint64_t in_a_moment(struct world *w);
void node_options(struct world *w, unsigned i, struct cluster_options *ret);
fiber_fn struct cluster *start_node(struct world *w, unsigned i);
fiber_fn int try_start(struct world *w, struct cluster_options *o);
struct map_format three_copies(void);
fiber_fn void start_cluster(struct world *w, struct cluster *c[3]);
fiber_fn void stop_all(struct cluster **c, unsigned count);
/* Waits until node `number` has session s in c's map. */
fiber_fn void wait_session(struct world *w, struct cluster *c, uint16_t number, uint64_t session);
/* Waits until one of the nodes leads; no two ever do. */
fiber_fn struct cluster *wait_leader(struct world *w, struct cluster **c, unsigned count);
/* Runs a scene over every cluster store of this kind of test. */
void run_everywhere(fiber_fn void (*scene)(struct world *w));

#define SCENE_TEST(name)                                                                           \
    static void test_##name(void **state)                                                          \
    {                                                                                              \
        run_everywhere(name##_scene);                                                              \
    }
