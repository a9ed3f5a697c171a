/* SPDX-License-Identifier: Apache-2.0 */
/* Between mend.c and mend_arrays.c. */
#pragma once
#include "store/mend.h"

/* A free block, owned as structure from now on. 0 or -ENOSPC. */
int mend_alloc(struct mend *m, uint32_t *ret);
/* The new checkpoint does not own this structure block of the old one; it stays untouched (M1). */
void mend_release(struct mend *m, uint32_t block);
/* Writes a structure block to a free place. */
fiber_fn int mend_put(struct mend *m, unsigned type, uint32_t position, const uint8_t *data,
                      struct block_ptr *ret);
/* Releases all tables, and the pages of bitmap and share counts, of the old checkpoint. */
void mend_forget_tables(struct mend *m);
/* Writes the tables over these pages. */
fiber_fn int mend_tables(struct mend *m, unsigned type, const struct block_ptr *pages,
                         uint32_t count, struct tree_root *ret);
fiber_fn int mend_share(struct mend *m, struct tree_root *ret);
/* Last: nothing may be allocated or released after it. */
fiber_fn int mend_bitmap(struct mend *m, struct tree_root *ret);
