/* SPDX-License-Identifier: Apache-2.0 */
/* Objects in memory. */
#include "backend.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

void backend_new(struct harness *h)
{
    h->world = fake_world_new(h->sim, h->seed ^ 0x5555, &(struct fake_options){0});
    backend_calm(h);
}

void backend_free(struct harness *h)
{
    fake_world_free(h->world);
}

fiber_fn void backend_prepare(struct gateway *g, struct cluster_options *o)
{
    o->address = "tcp:127.0.0.1:7000";
}

fiber_fn void backend_start(struct gateway *g)
{
    ASSERT(fake_objects_start(g->h->world, g->rt, g->cluster, &g->objects) == 0);
}

fiber_fn void backend_stop(struct gateway *g)
{
    fake_objects_stop(g->objects);
}

fiber_fn void backend_stopped(struct gateway *g)
{
    free(g->objects);
}

void backend_dies(struct gateway *g)
{
    fake_objects_died(g->objects);
}

void backend_rough(struct harness *h)
{
    struct fake_options *o = fake_world_options(h->world);
    o->stale_permille = harness_draw(h) % 4 == 0 ? 5 : 0;
    o->full_permille = harness_draw(h) % 4 == 0 ? 20 : 0;
    o->delay_ns_max = NS_PER_US << harness_draw(h) % 12;
}

void backend_rough_links(struct harness *h)
{
    struct fake_options *o = fake_world_options(h->world);
    o->break_permille = harness_draw(h) % 2 ? 0 : 1u << harness_draw(h) % 8;
    o->full_forward_permille = harness_draw(h) % 2 ? 0 : 1u << harness_draw(h) % 8;
    o->lose_answers = harness_draw(h) % 5;
    o->delay_ns_max = NS_PER_US << harness_draw(h) % 14;
}

void backend_calm(struct harness *h)
{
    *fake_world_options(h->world) = (struct fake_options){.delay_ns_max = 300 * NS_PER_US};
}

fiber_fn size_t backend_key_count(struct gateway *g)
{
    return fake_world_key_count(g->h->world, g->objects);
}

uint64_t backend_object_count(struct harness *h)
{
    return fake_world_object_count(h->world);
}

void backend_print(struct harness *h)
{
    struct fake_stats s;
    fake_world_stats(h->world, &s);
    fprintf(stderr,
            "  %" PRIu64 " changes, %" PRIu64 " clones, %" PRIu64 " references, %" PRIu64
            " blocks taken apart, %" PRIu64 " forwarded, %" PRIu64 " breaks\n",
            s.changes, s.clones, s.refs, s.cascades, s.forwards, s.breaks);
}
