/* SPDX-License-Identifier: Apache-2.0 */
/* kill -9 of a process that runs a scenario on a real file. */
#pragma once
#include "points.h"
#include "scenario.h"

/* For each chosen n: a process runs the scenario through io_uring and is killed when it submits or
 * completes its n-th operation; another one checks the file. */
void sweep_killed(struct points *p, const struct scenario *sc);
