/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every driver's watches have in common: a queue and a fiber per watch, the keys it has told
 * of, whole commits, and the differences to a state when commits were missed. Drivers and the
 * simulated one use it.
 */
#pragma once
#include "cluster/driver.h"

/* One key as a commit left it. Pointers are borrowed. */
struct cs_change {
    const char *key;
    const void *value; /* NULL: deleted */
    size_t length;
    uint64_t revision; /* of the commit */
};

struct cs_watcher;
struct cs_watches {
    struct rt *rt;
    struct list watchers;
    struct wgroup running;
};

void cs_watches_init(struct cs_watches *ws, struct rt *rt);
/* Ends all watches: drops what is queued, waits for callbacks that are running. Not to be called
 * from one. */
fiber_fn void cs_watches_stop(struct cs_watches *ws);
/* Adds a watch, which says nothing until it was given its first state. 0 or -ENOMEM. */
int cs_watches_add(struct cs_watches *ws, const char *prefix, cs_watch_fn *fn, void *arg);
/* The next watch that waits for its first state, or NULL. */
struct cs_watcher *cs_watches_fresh(struct cs_watches *ws);
/* Iterates: NULL for the first, NULL at the end. */
struct cs_watcher *cs_watches_next(struct cs_watches *ws, struct cs_watcher *after);
const char *cs_watcher_prefix(const struct cs_watcher *w);
/* Tells w that the keys of its prefix are exactly `state` as of `revision`: all of it the first
 * time (with the end mark), later the differences to what it knows. 0 or -ENOMEM: the connection
 * must be given up (D4). */
int cs_watcher_state(struct cs_watcher *w, const struct cs_change *state, size_t count,
                     uint64_t revision);
/* Tells all watches of commits: rows of ascending revision, all rows of a commit together. Watches
 * that know a revision already are not told again. 0 or -ENOMEM as above. */
int cs_watches_commits(struct cs_watches *ws, const struct cs_change *rows, size_t count);
