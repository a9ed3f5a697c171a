/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Admission of requests: what all connections together may have in progress.
 *
 * It is smaller than the fibers and buffers of the node, so that guests alone can never use up what
 * the node's own service to its peers needs: two nodes that wait for each other would wait for
 * ever.
 *
 * A1 bytes_used <= bytes_max, but for one request that is larger than bytes_max and alone.
 * A2 count_used <= count_max.
 * A3 First come, first served: nobody overtakes a waiter.
 */
#pragma once
#include "rt/fiber.h"

struct admission {
    size_t bytes_max, bytes_used;
    unsigned count_max, count_used;
    struct list waiters;
};

void admission_init(struct admission *a, size_t bytes_max, unsigned count_max);
/* Takes the room of one request with `bytes` of payload (0: none) if it is there at once. */
bool admission_try(struct admission *a, size_t bytes);
/* The same, and suspends until there is room. */
fiber_fn void admission_enter(struct admission *a, size_t bytes);
/* Gives it back; may be called on the loop. */
void admission_leave(struct admission *a, size_t bytes);
static inline bool admission_contended(const struct admission *a)
{
    return !list_empty(&a->waiters);
}
