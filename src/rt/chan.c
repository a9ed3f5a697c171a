/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bounded queue of pointers between fibers.
 *
 * N1 Items come out in the order in which chan_push() returned.
 * N2 After chan_close() nothing is added; what is in is still handed out.
 */
#include <stdlib.h>
#include "base/err.h"
#include "rt/fiber.h"

struct chan {
    struct waitq not_empty, not_full;
    unsigned capacity, count, head;
    bool closed;
    void *items[];
};

struct chan *chan_new(unsigned capacity)
{
    ASSERT(capacity > 0);
    struct chan *c = malloc(sizeof(*c) + capacity * sizeof(c->items[0]));
    if (!c)
        return NULL;
    *c = (struct chan){.capacity = capacity};
    waitq_init(&c->not_empty);
    waitq_init(&c->not_full);
    return c;
}

void chan_free(struct chan *c)
{
    if (!c)
        return;
    ASSERT(waitq_empty(&c->not_empty) && waitq_empty(&c->not_full));
    free(c);
}

fiber_fn int chan_push(struct chan *c, void *item)
{
    ASSERT(item);
    while (c->count == c->capacity && !c->closed)
        waitq_wait(&c->not_full);
    if (c->closed)
        return -ECANCELED;
    c->items[(c->head + c->count) % c->capacity] = item;
    c->count++;
    waitq_wake_one(&c->not_empty);
    return 0;
}

fiber_fn void *chan_pop(struct chan *c)
{
    while (c->count == 0 && !c->closed)
        waitq_wait(&c->not_empty);
    if (c->count == 0)
        return NULL;
    void *item = c->items[c->head];
    c->head = (c->head + 1) % c->capacity;
    c->count--;
    waitq_wake_one(&c->not_full);
    return item;
}

void chan_close(struct chan *c)
{
    c->closed = true;
    waitq_wake_all(&c->not_empty);
    waitq_wake_all(&c->not_full);
}
