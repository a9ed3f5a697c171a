/* SPDX-License-Identifier: Apache-2.0 */
/* Pipelined writes of a few objects by the owner on node 0, and what must be found of them. */
#pragma once
#include "trio.h"

#define V(term, sequence) (((uint64_t)(term) << 40) | (sequence))
#define WORKLOAD_OBJECTS  6u
#define WORKLOAD_PIPELINE 4u
#define WORKLOAD_STEPS    60u
#define WORKLOAD_SIZE     20000u

/* Each change writes `fill` = low byte of its number over the whole object, so content tells the
 * version. */
struct workload {
    struct trio *t;
    struct object_owner owner;
    uint64_t sequence;
    struct chain {
        uint64_t given;    /* version of the last change handed to object_change() */
        uint64_t answered; /* … answered */
    } chains[WORKLOAD_OBJECTS];
    unsigned steps_left, running;
    unsigned objects; /* 0: all; few of them make long pipelines */
    bool dead;        /* the owner's node was killed */
};

uint8_t workload_fill(uint64_t version);
/* Spawns the writers on node 0 (a fiber_main: may run anywhere). */
fiber_fn void workload_start(void *arg);
/* For trio_wait(). */
bool workload_ended(void *arg);
/* A random connection of a random node breaks. */
void workload_drop_link(struct trio *t);
/* What node `node` reads is what was answered, or given later. */
fiber_fn void workload_check(struct workload *w, unsigned node);
