/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store that holds one of everything the format has, always the same. Golden images are made of
 * it, the damage tests break it block by block, and it seeds the fuzzing of images.
 */
#pragma once
#include "sim/sim.h"
#include "store/store.h"

#define SAMPLE_PATH "disk"

struct sample {
    struct sim *sim;
    struct rt *rt;
    struct store *s;
};

/* An own simulation with a disk of `size` bytes. */
void sample_init(struct sample *p, uint64_t size);
void sample_done(struct sample *p);
/* Runs body(p) on a fiber until all is quiet. */
void sample_do(struct sample *p, void (*body)(struct sample *p));

/* Formats, with the smallest log and a fixed uuid. */
fiber_fn void sample_format(struct sample *p);
/* Opens and closes; asserts that it works. */
fiber_fn void sample_open(struct sample *p);
fiber_fn void sample_close(struct sample *p);

/* The first half of the content: several index pages, objects of one, four and many leaves, clones,
 * metas within the record and in blocks, tombstones, holes, an empty object. Best followed by a
 * checkpoint. */
fiber_fn void sample_fill(struct sample *p);
/* The second half, which should stay in the log: every kind of record, commits of several blocks.
 */
fiber_fn void sample_change(struct sample *p);
/* The last change of sample_change()'s way: one block of a new object, all bytes SAMPLE_TAIL_FILL.
 */
#define SAMPLE_TAIL_FILL 0xd7
fiber_fn void sample_tail(struct sample *p);
/* A handful of objects at least: for images that must stay small. */
fiber_fn void sample_small(struct sample *p);

struct oid sample_oid(uint64_t vid, uint32_t index);
