/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reclaim and care in the background: roots in the trash are killed, and what nobody owns is
 * completed.
 *
 * L6 A volume left unclean by a dead owner for 60 s is opened, reconciled and closed by the
 * leader's node.
 */
#pragma once
#include "volume/service.h"

fiber_fn int sweep_start(struct volumes *vs);
fiber_fn void sweep_stop(struct volumes *vs);
/* There is new trash. Does not suspend. */
void sweep_trash_soon(struct volumes *vs);
/* A volume was left in disorder on this node. */
void sweep_soon(struct volumes *vs);
/* All trash, now; for tests and checks. */
fiber_fn int sweep_trash(struct volumes *vs);
