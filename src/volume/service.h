/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The volume service of one node: what all its open images share. Private to volume/.
 */
#pragma once
#include "volume/forward.h"
#include "volume/names.h"
#include "volume/parallel.h"
#include "volume/registry.h"

struct sweeper;
struct volumes {
    struct rt *rt;
    struct cluster *cluster;
    struct objects *objects;
    uint32_t entries; /* of an index block of new volumes */
    uint64_t cache_bytes_max, cache_bytes;
    struct list cached_blocks; /* loaded leaves, least recently used first: struct block.lru_link */
    struct list instances;     /* struct instance.link */
    struct waitq instances_changed;
    bool stopping;
    uint64_t grace_ns;   /* an image stays open that long after its last user */
    uint64_t delay_ns;   /* work of the index gathers that long before it is written */
    uint64_t publish_ns; /* S is published at most that often */
    struct sweeper *sweeper;
    struct forward_service forward; /* L4 */
};

static inline struct cs *service_cs(struct volumes *vs)
{
    return cluster_cs(vs->cluster);
}

/* Fills the text (ret may be NULL) and returns r. */
int volume_error_set(struct volume_error *ret, int r, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* For what the cluster store or the object service answered while `what` (with the name) was done.
 */
int volume_error_of(struct volume_error *ret, int r, const char *what, const char *name);
