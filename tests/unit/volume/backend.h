/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What holds the objects under the tests of volume/: backend_fake.c (objects in memory behind a
 * hostile network) or backend_real.c (stores on simulated disks and the object service).
 */
#pragma once
#include "harness.h"

void backend_new(struct harness *h);
void backend_free(struct harness *h);
/* Before the node joins the cluster; fills the address. */
fiber_fn void backend_prepare(struct gateway *g, struct cluster_options *o);
/* The node serves: makes g->objects. */
fiber_fn void backend_start(struct gateway *g);
/* Before and after the cluster stops. */
fiber_fn void backend_stop(struct gateway *g);
fiber_fn void backend_stopped(struct gateway *g);
/* The node is about to lose its power. */
void backend_dies(struct gateway *g);
/* Trouble from now on, drawn from the seed; or none. */
void backend_rough(struct harness *h);
void backend_calm(struct harness *h);
/* Trouble of the way between gateways only. */
void backend_rough_links(struct harness *h);
/* At rest: ledger keys that no floor has erased yet (0 where that cannot be told). */
fiber_fn size_t backend_key_count(struct gateway *g);
/* How many stored objects must be seen by a check: UINT64_MAX where that cannot be told. */
uint64_t backend_object_count(struct harness *h);
void backend_print(struct harness *h);
