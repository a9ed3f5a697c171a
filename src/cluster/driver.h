/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver contract: a small linearizable key-value store shared by all nodes, with
 * compare-and-set, multi-key transactions, sessions with ephemeral keys, and watches delivered in
 * commit order. The same contract test runs over every driver.
 *
 * D1 A transaction applies whole or not at all, and is durable when it returns 0.
 * D2 Each key has a revision: the number of the commit that wrote it last; revisions grow, and a
 *    key that was deleted and made again has a higher one.
 * D3 An ephemeral key disappears when its session ends, in one commit, and not before.
 * D4 A watcher sees every commit that touches its prefix, in order, once, beginning with the state
 *    at the time of the call. A connection that was away for longer than the store keeps commits
 *    gets what it missed as one commit: each key's last change, with the key's own revision.
 */
#pragma once
#include "base/codec.h"
#include "base/ids.h"
#include "rt/rt.h"

#define CS_KEY_SIZE  256 /* with the terminator */
#define CS_VALUE_MAX (1u << 20)

struct cs; /* one node's connection, with its session */

/* `where` is driver-specific ("/path/cluster.db" for local). Begins a new session. -EPROTO: made by
 * an unknown version; -EIO … *ret is owned. */
typedef fiber_fn int cs_open_fn(struct rt *rt, const char *where, struct cs **ret);

#define CS_REVISION_ANY    UINT64_MAX /* no condition */
#define CS_REVISION_ABSENT 0          /* the key must not exist */

enum cs_op_kind { CS_CHECK, CS_PUT, CS_DELETE };
struct cs_op {
    enum cs_op_kind kind;
    const char *key;   /* printable ASCII without spaces, components separated by '/' */
    uint64_t revision; /* condition on the present revision */
    const void *value; /* CS_PUT */
    size_t length;
    bool ephemeral; /* CS_PUT: belongs to this session */
};

/* Events of a watch. value == NULL: deleted. Runs on a fiber of its own per watch, in commit order;
 * may suspend (later events wait). `more` tells that further events of the same commit follow. */
typedef fiber_fn void cs_watch_fn(void *arg, const char *key, const void *value, size_t length,
                                  uint64_t revision, bool more);

struct cs_ops {
    const char *name;
    void (*close)(struct cs *cs);
    int (*txn)(struct cs *cs, const struct cs_op *ops, unsigned count, uint64_t *ret_revision);
    int (*get)(struct cs *cs, const char *key, struct enc *ret_value, uint64_t *ret_revision);
    int (*list)(struct cs *cs, const char *prefix,
                int (*fn)(void *arg, const char *key, const void *value, size_t length,
                          uint64_t revision),
                void *arg);
    int (*watch)(struct cs *cs, const char *prefix, cs_watch_fn *fn, void *arg);
};
struct cs {
    const struct cs_ops *ops;
    struct rt *rt;
    struct session session;     /* unique for ever within this cluster store */
    bool lost;                  /* the session has ended under us: stop serving */
    void (*on_lost)(void *arg); /* may be NULL */
    void *on_lost_arg;
    /* Drivers whose sessions end by themselves when nothing is heard of them (else timeout_ns is 0
     * and the rest is not used): the session was known to live when the clock was `confirmed_ns`,
     * and may have ended `timeout_ns` later. It is confirmed again and again, each time after
     * `probe` has returned 0; a probe that hangs or fails ends the session. */
    uint64_t timeout_ns, confirmed_ns;
    fiber_fn int (*probe)(void *arg); /* may be NULL */
    void *probe_arg;
};

/* --- what everyone calls --- */
/* Ends the session (ephemeral keys go) and frees. */
fiber_fn void cs_close(struct cs *cs);
/* 0 and *ret_revision (may be NULL), -ESTALE: a condition did not hold, nothing was done;
 * -ETIMEDOUT or -ECONNRESET: outcome unknown; -EIO; -EFBIG;
 * -ENOSPC: the store is full, nothing was done. */
fiber_fn int cs_txn(struct cs *cs, const struct cs_op *ops, unsigned count, uint64_t *ret_revision);
/* Appends the value to *ret_value (an initialised encoder). 0, -ENOENT; this and cs_list() also
 * -ETIMEDOUT: the store cannot be reached, -EIO. */
fiber_fn int cs_get(struct cs *cs, const char *key, struct enc *ret_value, uint64_t *ret_revision);
/* Calls fn for each key that starts with prefix, in byte order, all from one state; fn must not
 * suspend; a nonzero return stops and is returned. */
fiber_fn int cs_list(struct cs *cs, const char *prefix,
                     int (*fn)(void *arg, const char *key, const void *value, size_t length,
                               uint64_t revision),
                     void *arg);
/* Starts a watch that lives as long as the connection. First delivers the present state of the
 * prefix, each key with its own revision (ended by a call with key == NULL and the state's
 * revision), then changes. Not to be closed from fn. */
int cs_watch(struct cs *cs, const char *prefix, cs_watch_fn *fn, void *arg);

/* The visible table of drivers (drivers.c). "local:/path" -> the opener and "/path"; NULL if
 * unknown. */
struct cs_driver {
    const char *name;
    cs_open_fn *open;
    const char *help;
};
extern const struct cs_driver
    cs_drivers[]; /* ended by name == NULL; defined in drivers/drivers.c */
const struct cs_driver *cs_driver_find(const char *spec, const char **ret_where);
