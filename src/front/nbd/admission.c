/* SPDX-License-Identifier: Apache-2.0 */
/* Admission of requests: counters with a fair queue; see admission.h for A1 to A3. */
#include "front/nbd/admission.h"

struct admission_waiter {
    struct list link; /* admission.waiters */
    struct fiber *fiber;
    size_t bytes;
};

void admission_init(struct admission *a, size_t bytes_max, unsigned count_max)
{
    ASSERT(bytes_max > 0 && count_max > 0);
    *a = (struct admission){.bytes_max = bytes_max, .count_max = count_max};
    list_init(&a->waiters);
}

static bool take(struct admission *a, size_t bytes)
{
    bool alone = a->bytes_used == 0;
    bool fits = bytes <= a->bytes_max && a->bytes_used <= a->bytes_max - bytes;
    if (a->count_used >= a->count_max || (bytes > 0 && !alone && !fits))
        return false;
    a->count_used++;
    a->bytes_used += bytes;
    return true;
}

bool admission_try(struct admission *a, size_t bytes)
{
    return !admission_contended(a) && take(a, bytes); /* A3 */
}

fiber_fn void admission_enter(struct admission *a, size_t bytes)
{
    if (admission_try(a, bytes))
        return;
    struct admission_waiter w = {.fiber = fiber_current(), .bytes = bytes};
    list_push_back(&a->waiters, &w.link);
    fiber_suspend(); /* admission_leave() took the room for us before it woke us */
}

void admission_leave(struct admission *a, size_t bytes)
{
    ASSERT(a->count_used > 0 && a->bytes_used >= bytes);
    a->count_used--;
    a->bytes_used -= bytes;
    while (!list_empty(&a->waiters)) {
        struct admission_waiter *w = list_first(&a->waiters, struct admission_waiter, link);
        if (!take(a, w->bytes))
            break;
        list_remove(&w->link);
        fiber_wake(w->fiber);
    }
}
