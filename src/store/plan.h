/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a change means in blocks: whole blocks with the memory they are written from, blocks that
 * must be merged with their old content, whole ranges to punch.
 */
#pragma once
#include "store/store_internal.h"

#define PLAN_SEGMENTS_INLINE 4u

/* Blocks [start, start + count) of the object, written from data (4096-aligned, contiguous). */
struct plan_segment {
    uint32_t start, count;
    uint8_t *data;
    bool merge; /* one block in a buffer of ours, of which only parts are given */
    bool skip;  /* turned out to need nothing (punch of a hole) */
};

/* Part of a block to be merged: bytes [offset, offset + length) of it. */
struct plan_patch {
    uint32_t segment;
    uint32_t offset, length;
    unsigned iov_index; /* where its bytes begin; unused for punches (zeros) */
    size_t iov_offset;
};

struct plan {
    const struct store_change *change;
    struct plan_segment *segments, inline_segments[PLAN_SEGMENTS_INLINE];
    uint32_t segment_count, segment_capacity;
    uint32_t block_count; /* over all segments */
    uint32_t patch_count, punch_count;
    struct plan_patch patches[2 * STORE_EXTENT_COUNT_MAX];
    struct record_run punches[STORE_EXTENT_COUNT_MAX];
    uint8_t *copies; /* owned: aligned blocks that the data is copied to */
    uint32_t copy_count, copies_used;
};

/* Checks the change and lays it out. 0, -EINVAL, -ENOMEM. The plan is to be ended by plan_done().
 */
int plan_init(struct plan *p, const struct store_change *c);
void plan_done(struct plan *p);
/* Fills a merge segment: `old` content (NULL: zeros), then the given parts. */
void plan_merge(struct plan *p, uint32_t segment, const uint8_t *old);
/* STORE_INSTALL, after all merges: takes out the blocks that are all zero. 0 or -ENOMEM. */
int plan_drop_zeros(struct plan *p);
static inline bool plan_has_merge(const struct plan *p)
{
    return p->patch_count > 0;
}
