/* SPDX-License-Identifier: Apache-2.0 */
/*
 * volume.h in memory, as far as a front end calls it, so that a front end can be tested and
 * measured alone. Names decide behaviour:
 *
 *   "broken"  reads and writes that touch [1 MiB, 2 MiB) fail with -EIO, [2 MiB, 3 MiB) with
 * -EUCLEAN, writes to [3 MiB, 4 MiB) with -ENOSPC "busy"    cannot be opened: owned by another node
 *   "slow"    every operation takes 20 ms
 */
#pragma once
#include "volume/volume.h"

/* No volumes yet. Returns owned, or NULL when out of memory. */
struct volumes *fake_volumes_new(struct rt *rt);
void fake_volumes_free(struct volumes *vs);
/* A volume (tag "") or snapshot of zeros. 0 or negative errno. */
int fake_volumes_add(struct volumes *vs, const char *name, const char *tag, uint64_t size);
/* References from volume_open() that were not closed yet, and operations that are running now. */
unsigned fake_volumes_open_count(const struct volumes *vs);
/* FAKE_YIELDS: every operation suspends once, as that of a real volume does. */
enum fake_speed { FAKE_IMMEDIATE, FAKE_YIELDS };
void fake_volumes_set_speed(struct volumes *vs, enum fake_speed speed);
