/* SPDX-License-Identifier: Apache-2.0 */
/* Who may take the last blocks of a store (admit.c). */
#pragma once
#include "store/store_internal.h"

enum demand_kind {
    DEMAND_DATA,      /* takes blocks for good: leaves the reserve */
    DEMAND_OVERWRITE, /* gives back as much as it takes, once it is durable */
    DEMAND_RECORD,    /* takes a block for good, but must go on when data cannot: metas */
    DEMAND_FREES,     /* takes nothing for good */
};

struct demand {
    enum demand_kind kind;
    uint64_t blocks;    /* of data */
    uint64_t footprint; /* structure blocks that a checkpoint may have to write because of it */
};

/* Adds what changing the object's record, `leaves` of its maps, and the share counts of
 * `share_pages` pages comes to. */
void demand_add(const struct store *s, struct demand *d, uint32_t leaves, uint32_t share_pages);
/* Pages of share counts that blocks [start, end) of o lie in, estimated from above; its leaves must
 * be loaded. */
uint32_t demand_share_pages(const struct store *s, struct onode *o, uint32_t start, uint32_t end);
/* 0: there is room, and nothing has suspended; record it, with admit_note(). -ENOSPC; -EAGAIN:
 * waited for room, look again; -EIO, -ECANCELED. */
fiber_fn int admit_demand(struct store *s, const struct demand *d);
static inline void admit_note(struct store *s, const struct demand *d)
{
    s->gathering->footprint += d->footprint;
}
/* Blocks of which data gets none. */
uint64_t admit_kept(const struct store *s);
