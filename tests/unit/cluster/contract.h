/* SPDX-License-Identifier: Apache-2.0 */
/* The driver contract's test, for any driver. */
#pragma once
#include "cluster/driver.h"

struct contract {
    struct rt *rt;
    fiber_fn int (*open)(struct contract *k, struct cs **ret); /* a new session of the same store */
    void *arg;
};

/* Runs all checks; aborts at the first that fails. */
fiber_fn void contract_run(struct contract *k);
