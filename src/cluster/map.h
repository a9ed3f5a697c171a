/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cluster map: an immutable value. Nodes with their sessions, pools, and for each group its
 * sets and epoch. Pure functions over it; nothing here suspends.
 */
#pragma once
#include "base/codec.h"
#include "base/ids.h"

#define MAP_NODE_COUNT_MAX   1024u
#define MAP_GROUP_MEMBER_MAX 16u
#define MAP_NAME_SIZE        64
#define MAP_ADDRESS_SIZE     128
#define MAP_POOL_COUNT_MAX   256u
#define MAP_GROUP_COUNT_MAX  65536u /* a group's number has 16 bits in an oid */

/* Lost: an administrator gave its store up; it never comes back. */
enum map_node_state { MAP_NODE_ACTIVE, MAP_NODE_DRAINING, MAP_NODE_LOST };
/* Why a live node is kept out of in_sync (R1b). */
enum map_trouble {
    MAP_TROUBLE_NONE,
    MAP_TROUBLE_STORE,     /* its own store cannot write: trouble_error */
    MAP_TROUBLE_UNREACHED, /* trouble_by, maybe others too, cannot reach it */
    MAP_TROUBLE_ALONE,     /* it cannot reach others, trouble_by among them */
};

struct map_node {
    uint16_t number;        /* short, never reused; what groups list */
    struct uuid uuid;       /* of its store */
    struct session session; /* 0: no live session */
    enum map_node_state state;
    uint32_t weight; /* 1024 = 1 TiB by default; 0: takes no data */
    bool inexact;    /* its present session began with a store that may lack something */
    bool out;        /* away or in trouble for too long: its groups are kept elsewhere */
    enum map_trouble trouble;
    uint16_t trouble_by;      /* a node's number */
    uint16_t trouble_error;   /* errno, positive */
    uint64_t away_since;      /* seconds since 1970 by the leader's clock; 0: here, or not known */
    char name[MAP_NAME_SIZE]; /* for people; unique */
    char zone[MAP_NAME_SIZE]; /* failure domain */
    char address[MAP_ADDRESS_SIZE]; /* peer address, "tcp:127.0.0.1:7001" */
    char admin[MAP_ADDRESS_SIZE];   /* where dog and redirects go */
    char nbd[MAP_ADDRESS_SIZE];     /* NBD over TCP, or empty */
};

struct map_pool {
    uint16_t id;
    char name[MAP_NAME_SIZE];
    uint8_t copies;
    uint8_t min_copies;
    uint32_t group_base, group_count; /* its groups: [base, base + count) */
    uint32_t object_size;             /* default for new volumes, bytes */
};

struct map_group {
    struct epoch epoch;
    uint8_t in_sync_count, joining_count, last_full_count;
    uint16_t in_sync[MAP_GROUP_MEMBER_MAX]; /* node numbers; [0] is the primary */
    uint16_t joining[MAP_GROUP_MEMBER_MAX];
    uint16_t last_full[MAP_GROUP_MEMBER_MAX];
};

struct map {
    unsigned references;
    uint64_t version; /* 0: the empty map before `dog cluster format` */
    struct uuid cluster;
    char cluster_name[MAP_NAME_SIZE];
    uint32_t node_count, pool_count, group_count;
    uint32_t node_number_next; /* for the next new node: numbers are never reused */
    struct map_node *nodes;    /* ascending by number */
    struct map_pool *pools;
    struct map_group *groups; /* indexed by group number */
};

struct map *map_new(void); /* version 0, empty; returns owned, NULL if out of memory */
struct map *map_clone(const struct map *m); /* deep copy with one reference, to be changed */
struct map *map_ref(struct map *m);
void map_unref(struct map *m);

const struct map_node *map_node(const struct map *m, uint16_t number); /* NULL: unknown */
const struct map_node *map_node_by_uuid(const struct map *m, const struct uuid *u);
const struct map_node *map_node_by_session(const struct map *m,
                                           struct session s); /* R6; NULL: refused */
const struct map_node *map_node_by_name(const struct map *m, const char *name);
const struct map_pool *map_pool_by_name(const struct map *m, const char *name);
const struct map_pool *map_pool(const struct map *m, uint16_t id);
bool map_group_in_sync(const struct map_group *g, uint16_t node);
/* In any of the sets that take writes: in_sync or joining. */
bool map_group_has(const struct map_group *g, uint16_t node);
/* Groups are placed on it: it has weight, is neither draining, lost nor out. */
bool map_node_takes_data(const struct map_node *n);
uint32_t map_shard_count(const struct map *m);

/* Codec: one header value and shards of MAP_SHARD_GROUPS groups each; every value ends in its
 * CRC32C. */
#define MAP_SHARD_GROUPS 1024u
void map_encode_head(const struct map *m, struct enc *e);
void map_encode_shard(const struct map *m, uint32_t shard, struct enc *e);
int map_decode_head(const void *p, size_t length, struct map **ret); /* -EBADMSG, -EPROTO */
int map_decode_shard(struct map *m, uint32_t shard, const void *p, size_t length);

/* --- what nodes report (cluster_report()) --- */
/* A group that a joining node holds completely, for exactly that epoch of the group (R2). */
struct cluster_joined {
    uint32_t group;
    uint64_t epoch;
};

struct cluster_report {
    const struct cluster_joined *joined; /* every group it joins and has completed */
    uint32_t joined_count;
    const uint16_t *unreachable; /* numbers of live nodes that it cannot reach now (R1b) */
    unsigned unreachable_count;
    int failed; /* 0, or the negative errno for which its own store cannot write */
};

/* --- the leader's pure functions --- */
/* One registered node as its key in the cluster store describes it. */
struct map_member {
    struct map_node node; /* number is meaningless; session 0 when it has none now */
    bool inexact;         /* its present session began with a store that may lack something */
    uint64_t revision;    /* of its key */
};

/* What an administrator wants of a node, and of a pool. */
struct map_node_wish {
    struct uuid uuid;
    bool drain;       /* move its groups elsewhere */
    bool remove;      /* and forget it when it holds nothing and does not run */
    bool lost;        /* its store is gone for good; cannot be taken back */
    bool accept_loss; /* where only lost nodes have everything, `heir` has to do */
    bool has_weight;
    uint32_t weight; /* instead of the registered one */
    struct uuid heir;
};
struct map_pool_wish {
    uint16_t id;
    uint8_t copies, min_copies;
};

/* The report that a session has written last. */
struct map_report {
    struct uuid uuid;
    struct session session;
    struct cluster_report said;
};

struct map_targets *map_targets_new(void); /* returns owned, NULL if out of memory */
void map_targets_free(struct map_targets *t);

/* Off: groups keep the nodes that the first map gave them, dead or alive, and nobody joins. */
enum map_recovery { MAP_RECOVERY_OFF, MAP_RECOVERY_ON };

/* Everything but the present map that the next one is made of. All is borrowed. */
struct map_inputs {
    const struct map_member *members;
    unsigned member_count;
    const struct map_report *reports;
    unsigned report_count;
    /* Numbers of nodes without a session that may still come after a start of everything: they
     * stay in in_sync. */
    const uint16_t *spared;
    unsigned spared_count;
    /* Numbers of nodes that have been without a session, or in trouble, for longer than the delay.
     */
    const uint16_t *out;
    unsigned out_count;
    const struct map_node_wish *node_wishes;
    unsigned node_wish_count;
    const struct map_pool_wish *pool_wishes;
    unsigned pool_wish_count;
    /* Kept between calls, so that groups are placed anew only when something differs that their
     * places depend on. NULL: the result is the same. */
    struct map_targets *targets;
    uint64_t wall_s; /* seconds since 1970, for away_since */
    enum map_recovery recovery;
};

/* First map from the nodes registered at format time: numbers them, makes the pool, places each
 * group by weighted rendezvous over zones, then nodes, with bounded load. -EINVAL: copies 0 or
 * above MAP_GROUP_MEMBER_MAX; -ENOSPC: fewer zones than copies. */
struct map_format {
    char cluster_name[MAP_NAME_SIZE];
    struct uuid cluster;
    uint8_t copies, min_copies;
    uint32_t group_count; /* 0: 4096 */
    uint32_t object_size; /* 0: 4 MiB */
};
int map_first(const struct map_format *f, const struct map_member *members, unsigned count,
              struct map **ret);
#define MAP_REMOVALS_MAX 16u /* nodes that one next map lacks at most */
/* Next map after anything in `in` changed; *ret NULL when nothing differs. With recovery R1, R2 and
 * R5 move nodes between the sets (map_sets.c); without it a node that is gone keeps its places. A
 * changed session advances the epoch of every group the node is in (R6). */
int map_next(const struct map *now, const struct map_inputs *in, struct map **ret);
/* Places one group: node numbers by preference, `copies` of them in different zones. */
int map_place(const struct map *m, uint32_t group, uint8_t copies, uint16_t *ret_nodes);
