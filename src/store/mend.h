/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing a checkpoint anew from what a walk found good: free-space bitmap and share counts
 * computed from the objects, index pages without what is lost.
 *
 * M1 Nothing that the present checkpoint or the log behind it refers to is written over: a power
 * cut leaves the store as it was. The new checkpoint counts from the write of a superblock on.
 * M2 It stands for the same commit as the old one, so the log is replayed on it as before. Objects
 * that the log names and the index has lost get a record marked damaged: replay must not make them
 * anew, as if nothing had been there before.
 */
#pragma once
#include "store/u32vec.h"
#include "store/walk.h"

struct mend {
    struct walk *w;
    struct walk_object *objects; /* owned: records that are changed or dropped, ascending */
    size_t object_count, object_capacity;
    struct oid *missing; /* owned: M2 */
    size_t missing_count, missing_capacity;
    uint64_t *busy; /* owned: M1, by block from data_first on */
    uint32_t cursor;
    struct u32vec reserved; /* blocks to be used next, last one first */
    uint8_t *page;          /* owned */
};

/* To be called before the walk, which then collects into m. */
int mend_init(struct mend *m, struct walk *w);
void mend_done(struct mend *m);
/* After the walk: writes. 0; -ENOSPC: not enough free blocks, nothing has changed; -EIO. Tells what
 * it did through the walk's report. */
fiber_fn int mend_write(struct mend *m);
