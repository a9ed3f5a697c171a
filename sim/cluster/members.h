/* SPDX-License-Identifier: Apache-2.0 */
/* The administrator as a fault: nodes are added, drained, reweighted, replaced; copies changed. */
#pragma once
#include "sim/cluster/world.h"

/* Carries out FAULT_DRAIN … FAULT_JOIN; true when something was begun. */
bool members_strike(struct world *w, enum fault_kind kind);
/* Takes all wishes back, and brings in who is not there yet. On a fiber of the guests. */
fiber_fn void members_heal(struct world *w);
