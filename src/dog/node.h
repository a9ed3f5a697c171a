/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of `dog node` share: verbs, one file per group. */
#pragma once
#include "dog/dog.h"

int node_run_drain(struct dog *d);
int node_run_weight(struct dog *d);
int node_run_lost(struct dog *d);
int node_run_remove(struct dog *d);
int node_run_recovery(struct dog *d);
