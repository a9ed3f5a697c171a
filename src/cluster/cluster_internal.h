/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of struct cluster, shared by the files of this folder. */
#pragma once
#include "cluster/cluster.h"
#include "cluster/member.h"

#define KEY_CLUSTER "cluster"
#define KEY_LEADER  "leader"
#define KEY_VID     "vid"
#define KEY_HEAD    "map/head"

#define RETRY_NS NS_PER_S /* pause after the cluster store failed */

struct map_callback {
    struct list link;
    cluster_map_fn *fn;
    void *arg;
    bool called;
    uint64_t seen; /* version it was called with last */
};

struct lead_callback {
    struct list link;
    void (*fn)(void *arg);
    void *arg;
};

/* A map that was installed and whose callbacks have not run yet. */
struct map_pending {
    struct list link;
    struct map *map;
};

struct ack {
    struct list link;
    struct uuid uuid;
    struct session session;
    uint64_t version;
};

/* What this process knows of a node's presence. */
struct seen {
    struct list link;
    struct uuid uuid;
    bool was_here;    /* had a session since this process started */
    uint64_t away_ns; /* when this leader saw first that it has none, or trouble; 0: it is well */
};

/* The encoded map as the watch has told it, up to the present commit. */
struct map_raw {
    struct enc head;
    uint64_t head_revision; /* 0: there is no map */
    struct enc shards[MAP_GROUP_COUNT_MAX / MAP_SHARD_GROUPS];
};

struct cluster {
    struct rt *rt;
    struct cs *cs;
    struct map_node self; /* as registered; number is meaningless */
    struct uuid store_cluster;
    struct map *map;
    uint64_t map_revision; /* of the head that `map` was made from */
    struct map_raw raw;
    bool map_loaded;         /* the first one is known */
    int map_error;           /* why there is none */
    uint64_t applied, acked; /* versions whose callbacks have returned, that was acknowledged */
    struct list pending;     /* map_pending */
    struct list map_callbacks, lead_callbacks;
    struct fmutex callback_lock; /* callbacks run one at a time */

    struct session leader;    /* 0: nobody */
    uint64_t leader_revision; /* of its key */
    uint64_t leader_events;   /* told by the watch so far */
    bool leader_known;        /* the watch has told the first state */
    bool members_dirty;       /* a registration or session changed */

    bool acks_watched, acks_loaded;
    struct list acks;

    struct enc report;      /* encoded; what is to be written next */
    uint64_t report_number; /* of cluster_report() calls; 0: none */
    uint64_t report_written;
    bool inexact;

    enum map_recovery recovery;
    struct map_targets *targets; /* of the leader */
    uint64_t grace_end_ns, out_ns;
    uint64_t lead_again_ns; /* when time alone changes something: grace, out */
    uint64_t member_events; /* registrations, sessions, reports and wishes that changed */
    struct list seen;

    /* Everything that waits for any of the above waits here: changes are rare. */
    struct waitq changed;
    bool stopping;
    struct wgroup running;
};

/* Starts a fiber that cluster_stop() waits for. */
int cluster_spawn(struct cluster *c, const char *name, fiber_main *fn);
/* For fibers of cluster_spawn(), last. */
void cluster_fiber_end(struct cluster *c);
/* Waits for any change of the cluster's state. 0, -ECANCELED when stopping, -ETIMEDOUT. */
fiber_fn int cluster_wait(struct cluster *c, uint64_t deadline_ns);
/* Waits RETRY_NS; false when the fiber has to end. */
fiber_fn bool cluster_pause(struct cluster *c);

/* register.c: this node's keys. -EEXIST: the name is another node's; -EMEDIUMTYPE: another
 * cluster's store. */
fiber_fn int cluster_register(struct cluster *c);
/* follow.c: watches the map, runs callbacks, acknowledges. */
int cluster_follow(struct cluster *c);
void cluster_follow_done(struct cluster *c);
/* leader.c: election, and the leader's work. */
int cluster_lead(struct cluster *c);
/* report.c: writes what cluster_report() was given last. */
int cluster_reporting(struct cluster *c);
/* fence.c */
void cluster_fence_done(struct cluster *c);
/* format.c: the cluster record. 0 or -ENOENT, -EBADMSG, -EPROTO. */
fiber_fn int cluster_record_get(struct cluster *c, struct uuid *ret_cluster);
