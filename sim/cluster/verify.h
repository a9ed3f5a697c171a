/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What must be true when everything is healed and the guests have gone.
 *
 * V1 All images are there, no others, and read right (C1, C5, G4). V2 volume_check() comes to rest
 * without a finding (G1, G2). V3 Every object is on its group's nodes, byte for byte the same, and
 * nowhere else (C3), and recovery has ended before: each group has its copies. V4 When all is
 * deleted, nothing is left (in some seeds). V5 Every node ends orderly, and its store proves right
 * from the disk (S2).
 */
#pragma once
#include "sim/cluster/work.h"

/* Not on a fiber. Ends the program when something is wrong. */
void verify_all(struct work *k);
