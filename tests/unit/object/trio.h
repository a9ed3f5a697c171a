/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Three nodes (store, cluster, objects) in one process, over io_uring with the `local` driver and
 * real loopback sockets, or in the simulator. A scene is a fiber that drives them.
 */
#pragma once
#include "object/object_internal.h"
#include "sim/sim_cs.h"

#define TRIO_NODES   3u
#define TRIO_ENTRIES 4u /* per index block */
/* cmocka's assertions may not cross fiber stacks. */
#define CHECK(cond) ASSERT(cond)

struct trio;
struct trio_node {
    struct trio *t;
    unsigned index;
    struct rt *rt;
    struct store *store;
    struct cluster *cluster;
    struct objects *objects; /* NULL: the node is down */
    bool busy;               /* starting or stopping on a fiber of its own rt */
    char disk[128];
};

struct trio {
    struct rt *rt; /* of the scene */
    struct sim *sim;
    struct sim_cs *sim_cs;
    uint64_t seed;
    unsigned copies, group_count;
    enum cluster_recovery recovery;
    fiber_fn void (*scene)(struct trio *t);
    struct trio_node nodes[TRIO_NODES];
    char directory[64], spec[160];
    uint64_t random;
    unsigned deaf; /* bits of nodes that trio_change_map() does not reach */
};

/* Runs the scene with formatted nodes: once over io_uring, and over the simulator with several
 * seeds. */
void trio_run(fiber_fn void (*scene)(struct trio *t), unsigned copies, unsigned seeds);
void trio_run_sim(fiber_fn void (*scene)(struct trio *t), unsigned copies, unsigned seeds);
/* The same with a leader that lets nodes leave and join. */
void trio_run_recovery_real(fiber_fn void (*scene)(struct trio *t), unsigned copies); /* io_uring */
void trio_run_recovery(fiber_fn void (*scene)(struct trio *t), unsigned copies, unsigned seeds);

/* Waits until each running node acts on a map that lists all running nodes' sessions. */
fiber_fn void trio_settle_map(struct trio *t);
/* All running nodes act on a map much newer, which edit() has changed as a leader would: epochs of
 * groups whose sets it changes follow by themselves. The cluster's own maps are not heard any more
 * until they are newer; so no node may restart afterwards. */
fiber_fn void trio_change_map(struct trio *t, void (*edit)(void *arg, struct map *m), void *arg);
/* Sets of one group, by indexes of nodes; ends with -1. For edit(). */
void trio_set_in_sync(struct trio *t, struct map *m, uint32_t group, const int *nodes);
void trio_set_joining(struct trio *t, struct map *m, uint32_t group, const int *nodes);
/* Orderly, on the node's own rt; returns when it is done. */
fiber_fn void trio_stop_node(struct trio *t, unsigned i);
fiber_fn void trio_start_node(struct trio *t, unsigned i);
/* kill -9 or power cut; simulator only. */
fiber_fn void trio_kill_node(struct trio *t, unsigned i, bool power_cut);
/* A running node's disk is replaced by an empty one; it is down. */
fiber_fn void trio_wipe_node(struct trio *t, unsigned i);
/* Waits until every running node acts on a map in which all running nodes are in sync, and nobody
 * joins. */
fiber_fn void trio_settle_sync(struct trio *t);
/* Waits for fn(arg) to become true, with a deadline of a minute. */
fiber_fn void trio_wait(struct trio *t, bool (*fn)(void *arg), void *arg);
/* Deterministic from the seed. */
uint64_t trio_random(struct trio *t);

static inline struct objects *trio_objects(struct trio *t, unsigned i)
{
    return t->nodes[i].objects;
}
/* Oid of a family 7 object with the given vid. */
struct oid trio_oid(struct trio *t, uint64_t vid, unsigned level, uint32_t index);
/* The owner of volume 7 with that term. */
struct object_owner trio_owner(uint64_t term, uint64_t vid);
/* One write of `length` bytes of `fill` at `offset`. */
fiber_fn int trio_write(struct objects *o, const struct object_owner *owner, struct oid oid,
                        uint64_t prev, uint64_t next, uint32_t offset, uint32_t length,
                        uint8_t fill);
/* The object's byte at offset, through node i; -1 absent. */
fiber_fn int trio_byte(struct objects *o, struct oid oid, uint32_t offset);
/* C3: the stores of all nodes hold the same objects at the same versions and with the same meta. */
fiber_fn void trio_check_equal(struct trio *t);
/* Objects (not tombstones) on node i's own store. */
size_t trio_object_count(struct trio *t, unsigned i);
