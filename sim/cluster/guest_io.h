/* SPDX-License-Identifier: Apache-2.0 */
/* What a guest does with a volume that it has opened. */
#pragma once
#include "sim/cluster/work.h"

/* Opens the volume on some node, does a share of the plan's I/O, closes it. */
fiber_fn void guest_use(struct work *k, struct volume_model *m);
/* work.c: a snapshot of a volume that is open on node n. */
fiber_fn void work_snapshot(struct work *k, struct volume_model *m, struct node *n);
