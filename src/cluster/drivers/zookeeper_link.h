/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One handle of ZooKeeper's C library, for fibers: requests are started and waited for, and the
 * library's threads only post to the loop. Private to drivers/zookeeper*.c.
 */
#pragma once
#include <zookeeper/zookeeper.h>
#include "rt/rt.h"

/* What happens by itself; told on the loop, not on a fiber. */
enum zk_event {
    ZK_CONNECTED,    /* requests can be made; watches were set again by the library */
    ZK_DISCONNECTED, /* the library looks for another server */
    ZK_EXPIRED,      /* the session is over for good */
    ZK_HEAD,         /* the watch of a get has fired */
    ZK_SESSIONS,     /* the watch of a listing has fired */
    ZK_NO_WATCH,     /* for requests: no watch wanted */
};
#define ZK_EVENT_COUNT ZK_NO_WATCH

struct zk_link;
struct zk_link_options {
    const char *servers; /* "host:port,host:port" */
    unsigned timeout_ms; /* of the session; the servers may choose another */
    void (*on_event)(void *arg, enum zk_event event);
    void *arg;
};

/* A request under way; lives until zk_wait() has returned. */
struct zk_call {
    struct zk_link *link;
    struct waitq wake;
    bool done;
    int rc; /* ZOK, ZNONODE … */
    int32_t version;
    uint8_t *data; /* owned until zk_call_done() */
    size_t length;
    char **names; /* owned likewise */
    unsigned name_count;
};

/* Begins to connect (see ZK_CONNECTED); *ret is set before the first event. -EINVAL: the servers'
 * names cannot be resolved; -ENOMEM. */
fiber_fn int zk_link_open(struct rt *rt, const struct zk_link_options *o, struct zk_link **ret);
/* Ends the session, if a server can be reached, and frees. No call may be under way. */
fiber_fn void zk_link_close(struct zk_link *l);
bool zk_link_connected(const struct zk_link *l);
/* The session's timeout as the servers granted it; after ZK_CONNECTED. */
uint64_t zk_link_timeout_ns(const struct zk_link *l);

void zk_start_get(struct zk_link *l, struct zk_call *c, const char *path, enum zk_event watch);
void zk_start_children(struct zk_link *l, struct zk_call *c, const char *path, enum zk_event watch);
/* What follows sees at least what was committed before this. */
void zk_start_sync(struct zk_link *l, struct zk_call *c, const char *path);
void zk_start_set(struct zk_link *l, struct zk_call *c, const char *path, const void *data,
                  size_t length);
void zk_start_create(struct zk_link *l, struct zk_call *c, const char *path, const void *data,
                     size_t length);
void zk_start_delete(struct zk_link *l, struct zk_call *c, const char *path);
/* `results` must live as long as the call. */
void zk_start_multi(struct zk_link *l, struct zk_call *c, const zoo_op_t *ops, unsigned count,
                    zoo_op_result_t *results);
/* Returns c->rc. */
fiber_fn int zk_wait(struct zk_call *c);
void zk_call_done(struct zk_call *c);
/* The answer is that nobody knows: connection lost, timed out, handle not usable now. */
bool zk_rc_unknown(int rc);
/* For messages. */
const char *zk_rc_text(int rc);

/* Any thread: deletes a node without waiting or telling anybody. */
void zk_link_delete_blindly(struct zk_link *l, const char *path);
