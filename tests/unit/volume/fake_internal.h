/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of the objects in memory: what fake_objects.c and fake_forward.c share. */
#pragma once
#include "fake_objects.h"

#define GROUP_MAX  64u
#define VOLUME_MAX 8192u

struct volume_state {
    uint64_t volume;
    struct term term;
    uint64_t floor;
};

struct fake_world {
    struct sim *sim;
    struct rt *rt;
    uint64_t seed;
    struct fake_options options;
    struct list objects, messages;
    struct waitq work;
    struct volume_state volumes[VOLUME_MAX];
    unsigned volume_count;
    uint64_t group_sequence[GROUP_MAX];
    unsigned group_dying[GROUP_MAX];
    struct fake_stats stats;
    struct oid refused;
    struct list services, forwards;
};

struct objects {
    struct list in_services;
    object_forward_fn *forward_fn;
    void *forward_arg;
    struct fake_world *w;
    struct rt *rt;
    struct cluster *cluster;
    int (*lookup)(void *arg, uint64_t volume, uint64_t *ret_floor);
    void *lookup_arg;
};

uint64_t fake_draw(struct fake_world *w);
bool fake_chance(struct fake_world *w, unsigned permille);

/* --- fake_forward.c --- */
void fake_forwards_free(struct fake_world *w);
/* The node's fibers are gone, or about to be. */
void fake_forwards_died(struct objects *o);
