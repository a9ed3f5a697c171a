/* SPDX-License-Identifier: Apache-2.0 */
/* A copy of a key prefix kept by a watch, with the log of what the watch said. */
#pragma once
#include "cluster/driver.h"

struct mirror_event {
    char key[CS_KEY_SIZE]; /* "" for the end mark */
    bool deleted, more;
    uint64_t revision;
    size_t length;
    uint32_t checksum; /* of the value */
};

struct mirror {
    struct rt *rt;
    struct waitq changed;
    struct mirror_event *events;
    size_t count, capacity;
    size_t end_at;    /* index of the end mark + 1; 0: not seen */
    uint64_t slow_ns; /* the callback takes that long */
};

void mirror_init(struct mirror *m, struct rt *rt, struct cs *cs, const char *prefix);
/* The connection must be closed. */
void mirror_done(struct mirror *m);
/* Last event of the key, or NULL. */
const struct mirror_event *mirror_find(const struct mirror *m, const char *key);
bool mirror_has(const struct mirror *m, const char *key);
/* Waits until the mirror has (or lacks) the key; aborts after 30 s. */
fiber_fn void mirror_wait_key(struct mirror *m, const char *key);
fiber_fn void mirror_wait_gone(struct mirror *m, const char *key);
/* Waits until everything up to the revision was told (the last of its events in this prefix). */
fiber_fn void mirror_wait_revision(struct mirror *m, uint64_t revision);
/* D4: revisions ascend, `more` separates commits, nothing after the end mark is older than the
 * state. */
void mirror_check_order(const struct mirror *m);
