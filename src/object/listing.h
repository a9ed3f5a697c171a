/* SPDX-License-Identifier: Apache-2.0 */
/* What one node stores, asked for page by page. */
#pragma once
#include "object/object_internal.h"

/* fn gets each entry in oid order; it may suspend, and the entry's meta lives only for the call. A
 * nonzero return stops the listing and is returned. *ret_map_version (may be NULL): the highest map
 * version of an answer; none is below the one acted on here at the beginning. Returns 0,
 * -ECANCELED, or an error of the node; with CALL_FAIL_FAST in `flags` also -ECONNRESET. */
struct listing {
    uint16_t node;
    unsigned flags;          /* of the calls */
    bool gated;              /* of a group, answered only at this node's epoch of it */
    struct peer_list filter; /* after and limit are filled in */
    int (*fn)(void *arg, const struct peer_entry *e);
    void *arg;
};
fiber_fn int listing_run(struct objects *o, const struct listing *l,
                         const struct object_owner *owner, uint64_t *ret_map_version);
