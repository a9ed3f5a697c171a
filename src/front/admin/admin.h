/* SPDX-License-Identifier: Apache-2.0 */
/* The admin server: what dog talks to. Every sheep has one, and each answers for the whole cluster.
 */
#pragma once
#include "rt/rt.h"
#include "volume/volume.h"

struct admin;
struct admin_options {
    struct listener **listeners;   /* takes each; tcp and unix */
    unsigned listener_count;       /* 1 to ADMIN_LISTENER_COUNT_MAX */
    unsigned connection_count_max; /* 0: 64; further ones are closed with a log line */
    /* Borrowed; outlive the server. */
    struct cluster *cluster;
    struct objects *objects;
    struct volumes *volumes;
};
#define ADMIN_LISTENER_COUNT_MAX 16u

/* Starts accepting. 0 or -ENOMEM (the listeners are closed then). Works before the cluster is
 * formatted. */
int admin_start(struct rt *rt, const struct admin_options *o, struct admin **ret);
/* Stops accepting, breaks all connections, waits until the operations begun by them have returned,
 * frees. */
fiber_fn void admin_stop(struct admin *a);
