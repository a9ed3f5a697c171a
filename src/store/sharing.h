/* SPDX-License-Identifier: Apache-2.0 */
/* Brings share counts into memory before they are needed (X2, P1). */
#pragma once
#include "store/store_internal.h"

/* Loads the page of a block's count. 0 also when it cannot be read (X3), -ENOMEM. */
fiber_fn int sharing_load(struct store *s, uint32_t block);
/* Loads what applying the records of a commit will touch: of each record, the blocks that are
 * mapped now where it changes something, and the blocks that it brings (a later record of the same
 * commit may share or drop those). Between its return and the applying nothing may suspend. */
fiber_fn int sharing_prepare(struct store *s, const struct commit *c);
/* As sharing_prepare() for one record. */
fiber_fn int sharing_prepare_record(struct store *s, const struct record *rec);
/* Looks at all pages on disk, at open, for the totals. Those that cannot be read are named (X3). */
fiber_fn int sharing_count(struct store *s);
