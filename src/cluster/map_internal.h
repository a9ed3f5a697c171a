/* SPDX-License-Identifier: Apache-2.0 */
/* Placement of many groups in a row, as map_first() needs it. */
#pragma once
#include "cluster/map.h"

struct place; /* loads and limits of one pool */

/* Counts the loads of the pool's groups but `except_group` (UINT32_MAX: none). The map may gain
 * members of groups only through what place_group() returned. -EINVAL, -ENOSPC: fewer zones than
 * copies. */
int place_new(const struct map *m, const struct map_pool *pool, uint32_t except_group,
              uint8_t copies, struct place **ret);
/* As if no group had members: where all of the pool's groups should be, place_group() for each in
 * ascending order. Depends on nothing but the nodes that take data, and the pool. */
int place_new_empty(const struct map *m, const struct map_pool *pool, uint8_t copies,
                    struct place **ret);
/* Chooses the nodes of a group without members, counts them as load. */
void place_group(struct place *p, uint32_t group, uint8_t copies, uint16_t *ret_nodes);
void place_free(struct place *p); /* NULL is allowed */
