/* SPDX-License-Identifier: Apache-2.0 */
/* The nemesis: breaks things by the plan, and heals most of them after a while. */
#pragma once
#include "sim/cluster/world.h"

/* Starts its fiber; it ends when world.healing is set. */
void faults_start(struct world *w);
