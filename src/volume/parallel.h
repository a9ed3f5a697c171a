/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The same work for many items at once, on a few fibers.
 *
 * The caller takes part and waits only for the items, never for a helper to start: so it makes
 * progress even when no further fiber can be had (F3).
 */
#pragma once
#include "rt/rt.h"

/* fn(arg, i) for each i below count, in rising order, at most `width` at once. Returns when all are
 * done: 0 or the first error seen (the others still run). */
fiber_fn int parallel_run(struct rt *rt, unsigned count, unsigned width,
                          fiber_fn int (*fn)(void *arg, unsigned i), void *arg);
