/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the map says about the cluster's health: counts, and reasons in plain words with what to do.
 * Pure functions over the map. What a node alone knows (progress, bad blocks, full disks) is not
 * in it.
 */
#pragma once
#include "cluster/map.h"

/* Every group is in exactly one of these, the worst first. */
enum map_group_health {
    MAP_GROUP_LOST,      /* every node that has everything was given up: an administrator decides */
    MAP_GROUP_WAITING,   /* no live node is in sync: all its I/O waits */
    MAP_GROUP_READ_ONLY, /* fewer than min_copies in sync, or one of them is away: writes wait */
    MAP_GROUP_DEGRADED,  /* fewer than `copies` in sync; I/O goes on */
    MAP_GROUP_MOVING,    /* all copies are there; some node is joining */
    MAP_GROUP_FULL,
    MAP_GROUP_HEALTH_COUNT
};
/* NULL pool: the group is of none (MAP_GROUP_FULL). */
enum map_group_health map_group_health(const struct map *m, uint32_t group);

struct map_health {
    uint32_t groups[MAP_GROUP_HEALTH_COUNT];
    uint32_t joining; /* groups with a joining node, whatever else they are */
    unsigned nodes_live, nodes_away, nodes_draining, nodes_lost, nodes_troubled;
};
void map_health(const struct map *m, struct map_health *ret);
/* Nothing is left to be done by itself or by anybody: each group full, each node here and well. */
bool map_health_good(const struct map_health *h);

/* What hangs on one node, in groups. */
struct map_node_health {
    uint32_t in_sync, joining;
    uint32_t only;       /* in sync on no other live node */
    uint32_t waited_for; /* waiting groups in which it has everything: its return would help */
    uint32_t held;       /* in any of the sets, last_full too: not empty yet */
};
void map_node_health(const struct map *m, uint16_t node, struct map_node_health *ret);

#define MAP_REASON_SIZE 512
/* Calls fn for each thing that is not as it should be, the most pressing first: a sentence, with
 * its full stop, that says what, of whom, and what to do. `wall_s`: now, in seconds since 1970. */
void map_health_reasons(const struct map *m, uint64_t wall_s,
                        void (*fn)(void *arg, const char *text), void *arg);
