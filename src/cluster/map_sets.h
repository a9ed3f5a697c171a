/* SPDX-License-Identifier: Apache-2.0 */
/* The step from one map to the next in the sets of its groups. Private to this folder. */
#pragma once
#include "cluster/map.h"

/* `m` is a clone of `now` with the next version and the next nodes; its groups get their next sets
 * and epochs. *ret_changed: any of them differs. -ENOMEM. */
int map_next_sets(const struct map *now, const struct map_inputs *in, struct map *m,
                  bool *ret_changed);
