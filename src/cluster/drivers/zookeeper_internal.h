/* SPDX-License-Identifier: Apache-2.0 */
/* One connection of the zookeeper driver, shared by the files zookeeper*.c. */
#pragma once
#include "cluster/drivers/zookeeper_link.h"
#include "cluster/drivers/zookeeper_spec.h"
#include "cluster/drivers/zookeeper_state.h"
#include "cluster/drivers/zookeeper_watchdog.h"
#include "cluster/watch.h"

#define ZK_PATH_SIZE (ZK_ROOT_SIZE + 64)

/* Keys that begin with this byte are the driver's own; the contract's keys cannot. */
#define ZK_OWN_KEY       '\x01'
#define ZK_SESSION_KEY   "\x01session/"
#define ZK_KEEP_COUNT    1024u
#define ZK_KEEP_BYTES    (16u << 20)
#define ZK_OUTAGE_LOG_NS (10 * NS_PER_S)

struct zk_commit;

struct zk {
    struct cs cs; /* first */
    struct zk_spec spec;
    struct zk_link *link;
    struct zk_watchdog *watchdog; /* NULL until the session has begun */
    struct zk_state state;
    uint64_t head_revision; /* the last commit that we know of … */
    int32_t head_version;   /* … and the version that the head's node had with it */
    bool gap;               /* state was read anew, and watches were not told yet */
    unsigned gap_count;     /* how often it was */
    struct zk_commit *pending;
    struct fmutex commit_lock;
    struct cs_watches watches;
    bool watch_barrier;    /* a new watch wants a state that is not older than it */
    bool head_watched;     /* the watch on the head is set and has not fired */
    bool sessions_watched; /* likewise, on the listing of sessions */
    bool closing, ending;
    uint64_t disconnected_ns; /* since when */
    struct waitq follow_wake; /* the follower has something to do */
    struct waitq helper_wake; /* reaper and heart */
    struct waitq changed;     /* state, head, connection or loss */
    struct wgroup follower, helpers;
};

/* --- zookeeper.c --- */
struct zk *zk_of(struct cs *cs);
/* Path of a node: zk_path(z, out, "head"). */
void zk_path(const struct zk *z, char out[ZK_PATH_SIZE], const char *name);
void zk_path_log(const struct zk *z, char out[ZK_PATH_SIZE], uint64_t revision);
void zk_path_session(const struct zk *z, char out[ZK_PATH_SIZE], uint64_t session);
void zk_path_part(const struct zk *z, char out[ZK_PATH_SIZE], uint64_t session, uint64_t nonce,
                  unsigned part);
int zk_spawn(struct zk *z, const char *name, fiber_main *fn, struct wgroup *group);
/* Wakes whoever waits for anything of this connection. */
void zk_wake_all(struct zk *z);
/* The connection is of no use any more: tells once. */
void zk_lose(struct zk *z, const char *why);
/* Waits for a connection. 0; -EIO: lost; -ETIMEDOUT: there was none for longer than that, or the
 * program is being stopped (and there was none for a second), or the connection closed. */
fiber_fn int zk_wait_connected(struct zk *z, uint64_t patience_ns);
/* After an answer that nobody knows: a moment, for the news of a lost connection to arrive. */
fiber_fn void zk_breathe(struct zk *z);

/* --- zookeeper_session.c --- */
/* Begins this connection's session and starts what keeps it; the follower runs. */
fiber_fn int zk_session_begin(struct zk *z);
/* Stops that, and ends the session if it can. Also after a begin that failed. */
fiber_fn void zk_session_end(struct zk *z);

/* --- zookeeper_follow.c --- */
/* Reads the whole log into the state. */
fiber_fn int zk_load(struct zk *z);
/* Brings the state to where the store is now or later (a linearizable read). 0, or as
 * zk_wait_connected(). */
fiber_fn int zk_refresh(struct zk *z, uint64_t patience_ns);
/* Waits until the state holds all that we know of. */
fiber_fn int zk_catch_up(struct zk *z, uint64_t patience_ns);
/* Takes in an entry if it is the next one; tells pending commit and watches. */
int zk_take(struct zk *z, const struct zk_header *h, const struct zk_change *changes,
            unsigned count);
void zk_learn_head(struct zk *z, uint64_t revision, int32_t version);
fiber_fn void zk_follow_main(void *arg);

/* --- zookeeper_commit.c --- */
enum zk_commit_kind {
    ZK_COMMIT_TXN,
    ZK_COMMIT_BEGIN, /* begins this connection's session: its revision is the id */
    ZK_COMMIT_END,   /* ends a session and deletes its keys: ours, or one that is over */
};
struct zk_commit {
    enum zk_commit_kind kind;
    const struct cs_op *ops;
    unsigned count;
    uint64_t session; /* ZK_COMMIT_END */
    uint64_t revision;
    /* private */
    uint64_t nonce;
    bool done;
    bool sent;    /* at least once */
    bool unknown; /* an attempt may have succeeded, or may still */
    bool has_parts;
    uint64_t base;      /* of the last attempt … */
    unsigned gap_count; /* … and of z then */
};
/* 0 and c->revision, or as cs_txn(). ZK_COMMIT_END of another's: -EBUSY when it lives. */
fiber_fn int zk_commit(struct zk *z, struct zk_commit *c);
/* The driver's own key that lives as long as the session. */
void zk_session_key(char out[CS_KEY_SIZE], uint64_t session);
/* Deletes parts that no entry speaks of and that no living session may still commit. */
fiber_fn void zk_sweep_parts(struct zk *z);
