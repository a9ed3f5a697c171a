/* SPDX-License-Identifier: Apache-2.0 */
/* A map as the operations of the transaction that writes it. Private to this folder. */
#pragma once
#include "cluster/driver.h"
#include "cluster/map.h"

#define SHARD_COUNT_MAX (MAP_GROUP_COUNT_MAX / MAP_SHARD_GROUPS)

struct map_write {
    struct enc head, shards[SHARD_COUNT_MAX];
    char keys[SHARD_COUNT_MAX][32];
    struct cs_op
        ops[SHARD_COUNT_MAX + 2 + 3 * MAP_REMOVALS_MAX]; /* the head first, its condition to be set;
                                                            room for more of the leader's */
    unsigned count;
};

/* The head and the shards in which `next` differs from `now` (NULL: all). *ret is owned. */
int map_write_new(const struct map *now, const struct map *next, struct map_write **ret);
void map_write_free(struct map_write *w);
