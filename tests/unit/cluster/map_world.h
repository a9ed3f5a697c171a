/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small model of a cluster around map_next: nodes that die, return, lose something, complain and
 * report; wishes of administrators; pools that change. The leader's every step is checked against
 * the rules of replication.md, said differently than the code says them; above all: every in-sync
 * node has everything that was answered.
 *
 * What is answered: after each step every group takes a write that is on all its in-sync nodes, if
 * all of them are there with the session that the map lists, and they are min_copies at least.
 * Nodes that join have it only once they have reported the group for its present epoch.
 */
#pragma once
#include "cluster/map.h"

#define NODES_MAX  6
#define GROUPS_MAX 8
#define LOG_MAX    256

enum kind {
    DIE,
    RETURN,
    RETURN_INEXACT,
    REPORT,
    FAIL,     /* its store cannot write, or can again */
    DRAIN,    /* or the opposite */
    REWEIGHT, /* to nothing, or back */
    OUT,
    LOST,
    ACCEPT_LOSS, /* the next node is the heir */
    REMOVE,
    COMPLAIN, /* about the next node, or no more */
    KIND_COUNT,
    POWER_CUT = KIND_COUNT, /* of no node in particular */
    GRACE_OVER,
    MIN_COPIES, /* 1 or as before */
    COPIES,     /* one less or as before */
    ALL_KIND_COUNT
};

struct actor {
    struct map_member member; /* session 0: dead */
    struct map_node_wish wish;
    bool registered, fails, complains, seen, out;
    bool lacks; /* lost something that no map has told of: its store will say so again */
    struct cluster_joined joined[GROUPS_MAX];
    uint32_t joined_count;
    uint64_t report_session; /* that wrote the present report; 0: there is none */
    bool holds[GROUPS_MAX];  /* everything that was answered in the group */
};

struct world {
    struct map *now;
    struct actor actors[NODES_MAX];
    unsigned actor_count;
    bool grace;              /* sessions that were not seen are waited for */
    bool broken[GROUPS_MAX]; /* no copy is left, or a loss was accepted */
    uint64_t session_next;
    uint8_t copies, min_copies; /* as formatted */
    struct map_pool_wish pool;
    struct map_targets *targets; /* NULL: the leader keeps none */
    unsigned pending;            /* events since the leader acted */
    char log[LOG_MAX];           /* the events, for messages */
};

/* `spare` more nodes than those that the groups are placed on at first. */
void world_init(struct world *w, unsigned nodes, unsigned spare, uint8_t copies, uint8_t min_copies,
                uint32_t groups);
/* Events are numbers below this one: the kinds of each node, then the others. */
unsigned event_count(const struct world *w);
/* False: nothing happens by it here. */
bool apply(struct world *w, unsigned event);
/* The leader acts, and its step is checked; true when there was a next map. */
bool lead(struct world *w);
/* When nothing happens any more and everybody does his duty, all is well in a few maps. The world
 * stays as it is. */
void settle(const struct world *from);
/* A digest of all that matters for what follows. */
uint64_t fingerprint(struct world *w);
