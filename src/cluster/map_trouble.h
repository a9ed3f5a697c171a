/* SPDX-License-Identifier: Apache-2.0 */
/* Which live nodes are kept out of in_sync (R1b). Private to this folder. */
#pragma once
#include "cluster/map.h"

/* Sets trouble, trouble_by and trouble_error of all nodes of m from the reports of their present
 * sessions. -ENOMEM. */
int map_next_troubles(struct map *m, const struct map_inputs *in);
