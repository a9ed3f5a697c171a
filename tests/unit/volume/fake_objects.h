/* SPDX-License-Identifier: Apache-2.0 */
/*
 * object.h in memory, for tests of volume/: single atomic copies behind a hostile network. Requests
 * are delayed at random, in order per sender and object; those of a dead sender arrive late or
 * never, until it is fenced. Ledgers are the real ones; dying blocks are taken apart by messages
 * that are delayed like all others.
 */
#pragma once
#include "object/object.h"
#include "sim/sim.h"

struct fake_world;
struct fake_options {
    unsigned stale_permille; /* changes refused with -ESTALE although nothing is wrong */
    unsigned full_permille;  /* allocating changes refused with -ENOSPC */
    uint64_t delay_ns_max;
    unsigned break_permille; /* messages of volume/: the connection breaks at one that often */
    unsigned full_forward_permille; /* … or there is no room for it */
    uint64_t lose_answers; /* so many of the next ones are served, and their answers lost */
};
struct fake_world *fake_world_new(struct sim *s, uint64_t seed, const struct fake_options *o);
void fake_world_free(struct fake_world *w);
/* May be changed at any time. */
struct fake_options *fake_world_options(struct fake_world *w);
/* The service of one node. */
fiber_fn int fake_objects_start(struct fake_world *w, struct rt *rt, struct cluster *c,
                                struct objects **ret);
/* Orderly: breaks connections, waits for what it serves. */
fiber_fn void fake_objects_stop(struct objects *o);
/* Its node died: nobody waits for its requests any more. */
void fake_objects_died(struct objects *o);
/* Stored objects, without tombstones. */
size_t fake_world_object_count(const struct fake_world *w);
/* Keys in all ledgers after those at or below the floors are erased. fiber of a node. */
fiber_fn size_t fake_world_key_count(struct fake_world *w, struct objects *o);
bool fake_world_quiet(const struct fake_world *w);
/* Damage, to see a check find it: adds to L[0] of the first data object with a ledger; or removes
 * one. */
bool fake_world_break_ledger(struct fake_world *w);
bool fake_world_lose_object(struct fake_world *w, unsigned level);
void fake_world_add_orphan(struct fake_world *w, const struct oid *oid);
struct fake_stats {
    uint64_t changes, clones, refs, reads, removes, cascades, forwards, breaks;
};
void fake_world_stats(const struct fake_world *w, struct fake_stats *ret);
