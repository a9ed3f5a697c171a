/* SPDX-License-Identifier: Apache-2.0 */
/* Between walk.c and walk_objects.c. */
#pragma once
#include "store/walk.h"

/* V1: true when nothing has claimed the block before. */
bool walk_claim_structure(struct walk *w, uint32_t block);
/* All pages of the index, and all that its records point to. */
fiber_fn int walk_objects(struct walk *w);
void walk_seen_free(struct walk *w);
