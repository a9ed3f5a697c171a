/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The blocks that a checkpoint is about to write, by block number.
 *
 * W1 While a block is here its content on disk is not yet what its pointer says: readers take it
 *    from here (writes_find()).
 * W2 A block that is here may still be given new content; one that was written may not, somebody
 *    may be reading it.
 */
#pragma once
#include "base/hash.h"
#include "rt/rt.h"
#include "store/pages.h"

struct leaf;

struct write_entry {
    struct hnode node;
    uint32_t block;
    uint8_t *data;     /* a page of the pool's */
    struct leaf *leaf; /* whose data it is; NULL: ours, goes back when it is written */
};

struct writes {
    struct page_pool *pages;
    struct htable by_block;
    struct write_entry **queue; /* owned */
    size_t count, capacity;
    uint64_t written; /* blocks, so far */
};

void writes_init(struct writes *w, struct page_pool *pages);
/* Lets go of what was not written. */
void writes_done(struct writes *w);
/* NULL: not here. */
struct write_entry *writes_find(const struct writes *w, uint32_t block);
/* A page of ours for the block, content undefined; the block must not be here. 0 or -ENOMEM. */
int writes_add_page(struct writes *w, uint32_t block, uint8_t **ret);
/* The leaf's data is to be written to the block, in place of what may be here for it. Until then
 * leaf->write names the entry. 0 or -ENOMEM. */
int writes_put_leaf(struct writes *w, uint32_t block, struct leaf *l);
/* The leaf is going to change or to go: its data is the entry's from now on. */
void writes_take_data(struct leaf *l);
/* Writes everything that is here, and after every few writes leaves the disk to others for as long
 * as those took, at most rest_ns_max. Nothing may be added meanwhile. 0 or the first error. */
fiber_fn int writes_carry_out(struct writes *w, struct disk *disk, uint64_t rest_ns_max);
