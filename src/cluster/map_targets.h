/* SPDX-License-Identifier: Apache-2.0 */
/* Where each group should be (R5), kept as long as that does not change. Private to this folder. */
#pragma once
#include "cluster/map.h"

struct map_targets {
    struct enc basis; /* all that the rest was computed from */
    uint32_t group_count;
    uint8_t *counts; /* by group */
    uint16_t (*nodes)[MAP_GROUP_MEMBER_MAX];
};

/* Brings them up to date with m: its pools, and its nodes that take data. -ENOMEM: as it was. */
int map_targets_update(struct map_targets *t, const struct map *m);
