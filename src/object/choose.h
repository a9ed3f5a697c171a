/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which copy of an object wins when the copies of the in-sync nodes differ, and what each other
 * copy needs (replication.md L3). Pure functions of values.
 *
 * H1 The highest version wins, tombstones included: an answered change is on every in-sync node,
 *    so nothing higher than the winner was ever answered and nothing answered is higher.
 * H2 At equal versions an object beats a tombstone. (W3 makes that impossible; if it happens,
 *    data stays.)
 */
#pragma once
#include "base/ids.h"

/* What one node has of an object. version 0: neither object nor tombstone. */
struct copy_state {
    struct version version;
    bool tombstone;
};

struct choice {
    struct version version; /* 0: no node has anything */
    bool tombstone;
    unsigned donor; /* index of the first copy that is the winner */
};
/* count >= 1. */
void choose_copy(const struct copy_state *copies, unsigned count, struct choice *ret);

enum copy_action {
    COPY_KEEP,    /* is equal, or has nothing and nothing is wanted */
    COPY_INSTALL, /* gets the winner's content */
    COPY_REMOVE,  /* its object goes, with the winner's tombstone */
};
enum copy_action choose_action(const struct choice *c, const struct copy_state *copy);
