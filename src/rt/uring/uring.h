/* SPDX-License-Identifier: Apache-2.0 */
/* The seam on io_uring. The only face of src/rt/uring. */
#pragma once
#include "rt/rt.h"

/* 0, or -ENOSYS (no io_uring: kernel too old or forbidden), -ENOMEM … *ret is owned. */
int rt_uring_new(const struct rt_options *options, struct rt **ret);
/* Runs until rt_stop() was called and no fiber is left, or until no fiber is left at all. Blocks
 * without using CPU while nothing happens. Returns 0 or a negative errno of the ring. */
int rt_uring_run(struct rt *rt);
/* Calls fn(arg, signal) on the loop when one of SIGINT, SIGTERM, SIGHUP arrives (they are blocked).
 */
int rt_uring_on_signal(struct rt *rt, void (*fn)(void *arg, int signal), void *arg);
void rt_uring_free(struct rt *rt);
