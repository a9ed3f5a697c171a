/* SPDX-License-Identifier: Apache-2.0 */
/* Stands between the store and the seam's disks: passes each operation on, and lets faults strike.
 */
#pragma once
#include "points.h"
#include "rt/rt.h"

struct sim;

struct seam {
    struct points *points;
    struct sim *sim; /* NULL on io_uring */
    const char *path;
    struct rt *rt;
    bool failing;         /* operations fail from now on */
    bool struck_change;   /* it was a write or a flush that failed */
    unsigned flush_count; /* flushes since then */
};

/* Disks that are opened on rt from now on go through here. After each restart of the node anew. */
void seam_attach(struct seam *s, struct rt *rt);
/* Nothing fails any more. */
void seam_heal(struct seam *s);
