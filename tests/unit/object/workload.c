/* SPDX-License-Identifier: Apache-2.0 */
/* See workload.h. */
#include "workload.h"
#include <stdlib.h>
#include <string.h>
#include "base/log.h"

#define LOG_MODULE "test"

uint8_t workload_fill(uint64_t version)
{
    return (uint8_t)(version * 37 % 255 + 1); /* never 0: installs turn zeros into holes */
}

static fiber_fn void writer_main(void *arg)
{
    struct workload *w = arg;
    struct trio *t = w->t;
    while (w->steps_left > 0) {
        w->steps_left--;
        unsigned k = (unsigned)(trio_random(t) % (w->objects ? w->objects : WORKLOAD_OBJECTS));
        struct chain *c = &w->chains[k];
        uint64_t prev = c->given, next = V(w->owner.term.value, ++w->sequence);
        void *data = malloc(WORKLOAD_SIZE);
        CHECK(data);
        memset(data, workload_fill(next), WORKLOAD_SIZE);
        const struct object_extent extent = {100, WORKLOAD_SIZE};
        const struct iovec iov = {data, WORKLOAD_SIZE};
        const struct object_change oc = {
            .kind = OBJECT_WRITE,
            .oid = trio_oid(t, 20, 0, k),
            .prev = {prev},
            .next = {next},
            .extents = &extent,
            .extent_count = 1,
            .iov = &iov,
            .iov_count = 1,
        };
        c->given = next; /* no suspension from here to the call */
        int r = object_change(trio_objects(t, 0), &w->owner, &oc);
        free(data);
        if (r != 0)
            log_error("seed %llu: change of object %u: %d", (unsigned long long)t->seed, k, r);
        CHECK(r == 0);
        c->answered = MAX(c->answered, next);
    }
    w->running--;
}

fiber_fn void workload_start(void *arg)
{
    struct workload *w = arg;
    for (unsigned i = 0; i < WORKLOAD_PIPELINE * 2; i++) {
        w->running++;
        CHECK(fiber_spawn(w->t->nodes[0].rt, "writer", writer_main, w) == 0);
    }
}

bool workload_ended(void *arg)
{
    const struct workload *w = arg;
    return w->running == 0;
}

void workload_drop_link(struct trio *t)
{
    struct objects *o = trio_objects(t, (unsigned)(trio_random(t) % TRIO_NODES));
    if (!o)
        return;
    struct node_state *n = o->nodes[trio_random(t) % 8];
    if (n)
        link_drop(&n->link);
}

fiber_fn void workload_check(struct workload *w, unsigned node)
{
    struct trio *t = w->t;
    for (unsigned k = 0; k < WORKLOAD_OBJECTS; k++) {
        struct oid oid = trio_oid(t, 20, 0, k);
        struct version v;
        uint8_t bytes[WORKLOAD_SIZE];
        int r = object_read(trio_objects(t, node), &oid, 100, WORKLOAD_SIZE, bytes, &v);
        if (w->chains[k].answered == 0 && r == -ENOENT)
            continue;
        CHECK(r == 0);
        CHECK(v.value >= w->chains[k].answered && v.value <= w->chains[k].given);
        for (unsigned i = 0; i < WORKLOAD_SIZE; i++)
            CHECK(bytes[i] == workload_fill(v.value));
    }
}
