/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random changes to a store, next to a reference model in memory. Each worker owns its objects and
 * does one change at a time, so after a crash every object is as before or as after the change that
 * was under way.
 */
#pragma once
#include "store/store.h"

#define WORK_OBJECTS 6u
#define WORK_BLOCKS  (STORE_OBJECT_SIZE_MAX / STORE_BLOCK)

struct model_object {
    bool exists;
    struct version version, tombstone;
    uint64_t meta_version;
    uint8_t meta[STORE_META_SIZE_MAX];
    size_t meta_length;
    uint8_t **blocks; /* WORK_BLOCKS pointers, NULL: hole */
};

struct worker_state {
    unsigned id;
    uint64_t random;
    uint64_t sequence; /* of versions */
    struct model_object objects[WORK_OBJECTS];
    /* the change under way */
    bool busy;
    unsigned busy_object;
    struct model_object before;
    /* what went wrong, "" if nothing */
    char error[256];
    uint64_t done_count;
    bool saw_enospc;
};

void work_init(struct worker_state *w, unsigned id, uint64_t seed);
void work_done(struct worker_state *w);
struct oid work_oid(const struct worker_state *w, unsigned i);
uint64_t work_random(struct worker_state *w, uint64_t below);
/* Makes one random change. 0, or the error of the store (-EIO, -ECANCELED); -ENOSPC is undone and
 * counted. Sets w->error when the store did something wrong. */
fiber_fn int work_step(struct worker_state *w, struct store *s);
/* Compares all objects with the store, and adopts the state of the one under way. */
fiber_fn void work_verify(struct worker_state *w, struct store *s);
/* Compares one random range of one object. */
fiber_fn void work_read(struct worker_state *w, struct store *s);
