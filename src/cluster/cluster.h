/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One node's membership in the cluster: session, map, leader duty, fencing.
 *
 * R6 A node serves nothing until the map lists its present session.
 *
 * Keys in the cluster store: "cluster" (format record), "node/UUID" (registration), "name/NAME"
 * (whose name it is), "session/UUID" (ephemeral), "leader" (ephemeral), "map/head", "map/shard/N",
 * "ack/UUID" (ephemeral: the map version this node has acted on), "vid" (counter), and those of
 * volume/ ("volume/", "trash/", "use/").
 */
#pragma once
#include "cluster/driver.h"
#include "cluster/map.h"

struct cluster;

struct cluster_options {
    const char *driver_spec; /* "local:/path/cluster.db" */
    struct cs *cs; /* takes (also when starting fails); not NULL: used instead of driver_spec */
    struct uuid store_uuid;
    struct uuid store_cluster; /* cluster the store belongs to, null: none */
    const char *name, *zone, *address, *admin, *nbd;
    uint32_t weight;
};

/* Connects, begins a session, registers, takes part in leader election, follows the map. Returns
 * when the first map (maybe the empty one) is known. -EMEDIUMTYPE: the store belongs to another
 * cluster. */
fiber_fn int cluster_start(struct rt *rt, const struct cluster_options *o, struct cluster **ret);
/* Ends the session and frees. */
fiber_fn void cluster_stop(struct cluster *c);

/* Present map; borrowed until the next suspension, map_ref() to keep. Never NULL. */
struct map *cluster_map(struct cluster *c);
struct cs *cluster_cs(struct cluster *c);
struct session cluster_session(const struct cluster *c);
/* Own node number, or -1 while not in the map. */
int cluster_self(const struct cluster *c);
/* True when this node may serve: its present session is in the map and confirmed. */
bool cluster_serving(const struct cluster *c);
bool cluster_is_leader(const struct cluster *c);

/* fn(arg, map) runs on a fiber for each new map, in order; the map is acknowledged after all
 * callbacks have returned (so that what L2 waits for, "acts on a map without that session", is
 * true). It is called at once with the present map when registered. */
typedef fiber_fn void cluster_map_fn(void *arg, struct map *m);
int cluster_on_map(struct cluster *c, cluster_map_fn *fn, void *arg);
/* Ends that: a running call is waited for, and none follows. */
fiber_fn void cluster_off_map(struct cluster *c, cluster_map_fn *fn, void *arg);
/* fn(arg) runs when this node becomes the leader (sweeps). */
int cluster_on_lead(struct cluster *c, void (*fn)(void *arg), void *arg);
/* Ends that. */
void cluster_off_lead(struct cluster *c, void (*fn)(void *arg), void *arg);

/* Waits until the present map's version is >= version. 0, -ECANCELED, -ETIMEDOUT (deadline on
 * clock_now). */
fiber_fn int cluster_wait_map(struct cluster *c, uint64_t version, uint64_t deadline_ns);
/* Waits for any newer map than `version`. */
fiber_fn int cluster_wait_change(struct cluster *c, uint64_t version, uint64_t deadline_ns);
/* L2: waits until `s` is not in the map and every live node has acknowledged a map without it. */
fiber_fn int cluster_wait_fenced(struct cluster *c, struct session s, uint64_t deadline_ns);

/* `dog cluster format`: makes the cluster out of the nodes registered now. -EEXIST: is formatted.
 */
fiber_fn int cluster_format(struct cluster *c, const struct map_format *f);
/* Next `count` vids, never given out before; *ret is the first. */
fiber_fn int cluster_new_vids(struct cluster *c, uint32_t count, struct vid *ret);
/* Nodes that are in the map without a live session: fills up to `max` numbers, returns their count.
 * For messages ("write waits for node b"). */
unsigned cluster_missing_nodes(struct cluster *c, uint16_t *ret_numbers, unsigned max);
