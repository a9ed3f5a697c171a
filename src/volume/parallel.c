/* SPDX-License-Identifier: Apache-2.0 */
/* Fan-out over fibers. */
#include "volume/parallel.h"
#include <stdlib.h>
#include "base/check.h"
#include "base/err.h"

struct parallel {
    unsigned references; /* the caller and the helpers, started or not */
    unsigned next, count, running;
    int error;
    int (*fn)(void *arg, unsigned i);
    void *arg; /* valid while items remain: a late helper does not touch it */
    struct waitq finished;
};

static fiber_fn void take_items(struct parallel *p)
{
    while (p->next < p->count) {
        unsigned i = p->next++;
        p->running++;
        int r = p->fn(p->arg, i);
        p->running--;
        if (r && !p->error)
            p->error = r;
    }
    if (p->running == 0)
        waitq_wake_all(&p->finished);
}

static void parallel_unref(struct parallel *p)
{
    ASSERT(p->references > 0);
    if (--p->references == 0)
        free(p);
}

static fiber_fn void helper_main(void *arg)
{
    take_items(arg);
    parallel_unref(arg);
}

static fiber_fn int run_alone(unsigned count, int (*fn)(void *arg, unsigned i), void *arg)
{
    int error = 0;
    for (unsigned i = 0; i < count; i++) {
        int r = fn(arg, i);
        if (r && !error)
            error = r;
    }
    return error;
}

fiber_fn int parallel_run(struct rt *rt, unsigned count, unsigned width,
                          fiber_fn int (*fn)(void *arg, unsigned i), void *arg)
{
    struct parallel *p = count > 1 && width > 1 ? calloc(1, sizeof(*p)) : NULL;
    if (!p)
        return run_alone(count, fn, arg);
    *p = (struct parallel){.references = 1, .count = count, .fn = fn, .arg = arg};
    waitq_init(&p->finished);
    for (unsigned i = 1; i < MIN(width, count); i++) {
        p->references++;
        if (fiber_spawn(rt, "volume-part", helper_main, p)) {
            p->references--;
            break;
        }
    }
    take_items(p);
    while (p->running > 0)
        waitq_wait(&p->finished);
    int error = p->error;
    parallel_unref(p);
    return error;
}
