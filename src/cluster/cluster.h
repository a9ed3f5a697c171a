/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One node's membership in the cluster: session, map, leader duty, fencing.
 *
 * R6 A node serves nothing until the map lists its present session.
 *
 * Keys in the cluster store: "cluster" (format record), "node/UUID" (registration), "name/NAME"
 * (whose name it is), "session/UUID" (ephemeral), "leader" (ephemeral), "map/head", "map/shard/N",
 * "ack/UUID" (ephemeral: the map version this node has acted on), "report/UUID" (ephemeral: what
 * the node told by cluster_report()), "wish/node/UUID" and "wish/pool/ID" (what administrators
 * want), "vid" (counter), and those of volume/ ("volume/", "trash/", "use/").
 */
#pragma once
#include "cluster/driver.h"
#include "cluster/map.h"

struct cluster;

/* Whether a leader changes the sets of groups: dead nodes leave in_sync, live ones join (R1, R2,
 * R5). All nodes of a cluster should say the same, for each may come to lead; off is for tests. */
enum cluster_recovery { CLUSTER_RECOVERY_DEFAULT, CLUSTER_RECOVERY_OFF, CLUSTER_RECOVERY_ON };
#define CLUSTER_RECOVERY_BY_DEFAULT CLUSTER_RECOVERY_ON

struct cluster_options {
    const char *driver_spec; /* "local:/path/cluster.db" */
    struct cs *cs; /* takes (also when starting fails); not NULL: used instead of driver_spec */
    struct uuid store_uuid;
    struct uuid store_cluster; /* cluster the store belongs to, null: none */
    const char *name, *zone, *address, *admin, *nbd;
    uint32_t weight;
    /* Says whether this node works: its session is confirmed only after it returned 0 (drivers
     * whose sessions time out). Hangs or fails when the disk does. NULL: it always works. */
    fiber_fn int (*probe)(void *arg);
    void *probe_arg;
    bool inexact; /* the store may lack something: it leaves in_sync everywhere and joins anew */
    enum cluster_recovery recovery;
    /* How long after the start of this process a node that it has not seen yet is waited for before
     * it leaves in_sync (the start of a whole cluster). 0: 10 s; tests pass 1. */
    uint64_t grace_ns;
    /* How long a node may be away or in trouble before its groups are copied to others. 0: 600 s.
     * Counted by each leader anew. */
    uint64_t out_ns;
};

/* Connects, begins a session, registers, takes part in leader election, follows the map. Returns
 * when the first map (maybe the empty one) is known. -EMEDIUMTYPE: the store belongs to another
 * cluster, or was given up. */
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
/* 0, or how long ago the session was confirmed when that is too long ago to serve: the cluster
 * store is out of reach, or this node's disk hangs. */
uint64_t cluster_unconfirmed_ns(const struct cluster *c);
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
/* The same, until this node acts on it: all callbacks have returned from it. Not from a callback.
 */
fiber_fn int cluster_wait_applied(struct cluster *c, uint64_t version, uint64_t deadline_ns);
/* Waits for any newer map than `version`. */
fiber_fn int cluster_wait_change(struct cluster *c, uint64_t version, uint64_t deadline_ns);
/* L2: waits until `s` is not in the map and every live node has acknowledged a map without it. */
fiber_fn int cluster_wait_fenced(struct cluster *c, struct session s, uint64_t deadline_ns);

/* `dog cluster format`: makes the cluster out of the nodes registered now. -EEXIST: is formatted.
 */
fiber_fn int cluster_format(struct cluster *c, const struct map_format *f);
/* Next `count` vids, never given out before; *ret is the first. */
fiber_fn int cluster_new_vids(struct cluster *c, uint32_t count, struct vid *ret);
/* Tells the leader, by the ephemeral key report/UUID: which groups this node has joined completely
 * (R2), whom it cannot reach, whether its store fails (R1b). A report replaces the one before, so
 * it names all of that as it is now; a group leaves the list once the map lists the node as in sync
 * there, or has another epoch for it. Copies; does not suspend; several within 50 ms are one write;
 * repeated until the cluster store has it. The leader counts a report only for the session that the
 * map lists. 0, -EINVAL: more than MAP_GROUP_COUNT_MAX groups or MAP_NODE_COUNT_MAX nodes; -ENOMEM.
 */
int cluster_report(struct cluster *c, const struct cluster_report *r);
/* What an administrator wants of a node. Kept in the cluster store until it is wished otherwise, or
 * the node has left; the leader acts on it. */
enum cluster_wish_kind {
    CLUSTER_WISH_DRAIN,   /* groups move elsewhere; it stays a node */
    CLUSTER_WISH_UNDRAIN, /* takes back draining and removing */
    CLUSTER_WISH_WEIGHT,  /* `weight` instead of the registered one; CLUSTER_WEIGHT_REGISTERED: that
                           */
    CLUSTER_WISH_REMOVE,  /* drain; then, once it holds nothing and does not run, forget it and its
                             name. A lost node is forgotten as soon as no group needs it */
    CLUSTER_WISH_LOST,    /* its store is gone for good. Cannot be taken back: that store never
                             comes back, whatever is on it */
    CLUSTER_WISH_ACCEPT_LOSS, /* it is lost, and where no other node has everything, what `heir`
                                 holds is taken: answered writes may be missing there */
};
#define CLUSTER_WEIGHT_REGISTERED UINT32_MAX
struct cluster_wish {
    enum cluster_wish_kind kind;
    const char *node; /* its name */
    uint32_t weight;
    const char *heir; /* a node's name */
};
/* 0: it is written (the map follows soon, if a leader is there). -ENOENT: no such node, or heir;
 * -EBUSY: a node that is to be lost has a session: stop it first; -EALREADY: the node was lost
 * before, which nothing but removing and accepting the loss follows; -EINVAL: an heir that is lost
 * or the node itself. */
fiber_fn int cluster_node_wish(struct cluster *c, const struct cluster_wish *w);
/* Wishes another number of copies for a pool. -ENOENT; -EINVAL: 0, more than MAP_GROUP_MEMBER_MAX,
 * or min_copies above copies. More copies than zones are taken as far as zones go. */
fiber_fn int cluster_pool_wish(struct cluster *c, const char *pool, uint8_t copies,
                               uint8_t min_copies);

/* Nodes that are in the map without a live session: fills up to `max` numbers, returns their count.
 * For messages ("write waits for node b"). */
unsigned cluster_missing_nodes(struct cluster *c, uint16_t *ret_numbers, unsigned max);
