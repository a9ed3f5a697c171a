/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a test body on a fiber of a real io_uring loop, or of a simulated node. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/err.h"
#include "rt/uring/uring.h"
#include "sim/sim.h"

/* cmocka leaves a failed assertion by longjmp(), which may not cross fiber stacks: on a fiber use
 * this. */
#define CHECK(cond) ASSERT(cond)

static inline void run_on_uring(const struct rt_options *options, fiber_main *body)
{
    struct rt *rt;
    assert_int_equal(rt_uring_new(options, &rt), 0);
    assert_int_equal(fiber_spawn(rt, "test", body, rt), 0);
    assert_int_equal(rt_uring_run(rt), 0);
    rt_uring_free(rt);
}

static inline void run_on_sim(const struct rt_options *options, fiber_main *body)
{
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct sim *s = sim_new(seed);
        struct rt *rt = sim_node_new(s, options);
        sim_do(s, rt, body, rt);
        sim_free(s);
    }
}
