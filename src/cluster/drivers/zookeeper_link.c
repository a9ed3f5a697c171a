/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The library's handle and its threads.
 *
 * ZL1 The library's threads touch a zk_call until they post it, and nothing else of ours.
 * ZL2 Each started call is answered once, by its completion or, when the library refuses it, in
 *     place; so a call may live on the stack of the fiber that waits for it.
 * ZL3 Nothing is posted after zookeeper_close() has returned; what was posted before is run before
 *     the handle's memory goes.
 */
#include "cluster/drivers/zookeeper_link.h"
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/err.h"
#include "base/log.h"

#define LOG_MODULE "cluster"

#define POST_RETRY_US 1000

struct link_event {
    struct zk_link *link;
    enum zk_event event;
};

struct zk_link {
    struct rt *rt;
    struct worker *worker; /* for what blocks: init and close */
    zhandle_t *handle;
    struct zk_link_options options;
    struct link_event events[ZK_EVENT_COUNT];
    atomic_uint posted; /* events on their way to the loop */
    struct waitq drained;
    bool connected, expired, closing;
};

/* --- from the library's threads --- */

/* A post must not get lost: its fiber would wait for ever. */
static void post(struct rt *rt, void (*fn)(void *arg), void *arg)
{
    while (rt_post(rt, fn, arg) < 0)
        usleep(POST_RETRY_US);
}

static void event_arrived(void *arg)
{
    struct link_event *e = arg;
    struct zk_link *l = e->link;
    if (e->event == ZK_CONNECTED || e->event == ZK_DISCONNECTED)
        l->connected = e->event == ZK_CONNECTED;
    if (e->event == ZK_EXPIRED) {
        l->connected = false;
        l->expired = true;
    }
    if (!l->closing)
        l->options.on_event(l->options.arg, e->event);
    if (atomic_fetch_sub(&l->posted, 1) == 1)
        waitq_wake_all(&l->drained);
}

static void post_event(struct zk_link *l, enum zk_event event)
{
    atomic_fetch_add(&l->posted, 1);
    post(l->rt, event_arrived, &l->events[event]);
}

static void on_session(zhandle_t *handle, int type, int state, const char *path, void *context)
{
    struct zk_link *l = context;
    if (type != ZOO_SESSION_EVENT)
        return;
    if (state == ZOO_CONNECTED_STATE)
        post_event(l, ZK_CONNECTED);
    else if (state == ZOO_EXPIRED_SESSION_STATE || state == ZOO_AUTH_FAILED_STATE)
        post_event(l, ZK_EXPIRED);
    else
        post_event(l, ZK_DISCONNECTED);
}

static void on_head(zhandle_t *handle, int type, int state, const char *path, void *context)
{
    if (type != ZOO_SESSION_EVENT)
        post_event(context, ZK_HEAD);
}

static void on_sessions(zhandle_t *handle, int type, int state, const char *path, void *context)
{
    if (type != ZOO_SESSION_EVENT)
        post_event(context, ZK_SESSIONS);
}

static void on_log_line(const char *message)
{
    log_debug("zookeeper: %s", message);
}

static void call_arrived(void *arg)
{
    struct zk_call *c = arg;
    c->done = true;
    waitq_wake_all(&c->wake);
}

static void finish_call(struct zk_call *c, int rc)
{
    c->rc = rc;
    post(c->link->rt, call_arrived, c);
}

static void on_void(int rc, const void *data)
{
    finish_call((struct zk_call *)data, rc);
}

static void on_stat(int rc, const struct Stat *stat, const void *data)
{
    finish_call((struct zk_call *)data, rc);
}

static void on_string(int rc, const char *value, const void *data)
{
    finish_call((struct zk_call *)data, rc);
}

static void on_data(int rc, const char *value, int length, const struct Stat *stat,
                    const void *data)
{
    struct zk_call *c = (struct zk_call *)data;
    if (rc == ZOK) {
        c->length = length > 0 ? (size_t)length : 0;
        c->version = stat->version;
        c->data = malloc(c->length + 1);
        if (!c->data)
            rc = ZSYSTEMERROR;
        else if (c->length > 0)
            memcpy(c->data, value, c->length);
    }
    finish_call(c, rc);
}

static void on_names(int rc, const struct String_vector *names, const void *data)
{
    struct zk_call *c = (struct zk_call *)data;
    unsigned count = rc == ZOK && names ? (unsigned)names->count : 0;
    if (rc == ZOK) {
        c->names = calloc(count + 1, sizeof(char *));
        if (!c->names)
            rc = ZSYSTEMERROR;
    }
    for (unsigned i = 0; i < count && rc == ZOK; i++) {
        c->names[i] = strdup(names->data[i]);
        if (c->names[i])
            c->name_count++;
        else
            rc = ZSYSTEMERROR;
    }
    finish_call(c, rc);
}

/* --- requests --- */

static void begin_call(struct zk_link *l, struct zk_call *c)
{
    *c = (struct zk_call){.link = l};
    waitq_init(&c->wake);
}

/* rc: of starting it. */
static void started(struct zk_call *c, int rc)
{
    if (rc == ZOK)
        return;
    c->rc = rc;
    c->done = true;
}

void zk_start_get(struct zk_link *l, struct zk_call *c, const char *path, enum zk_event watch)
{
    begin_call(l, c);
    started(c, zoo_awget(l->handle, path, watch == ZK_HEAD ? on_head : NULL, l, on_data, c));
}

void zk_start_children(struct zk_link *l, struct zk_call *c, const char *path, enum zk_event watch)
{
    begin_call(l, c);
    started(c, zoo_awget_children(l->handle, path, watch == ZK_SESSIONS ? on_sessions : NULL, l,
                                  on_names, c));
}

void zk_start_sync(struct zk_link *l, struct zk_call *c, const char *path)
{
    begin_call(l, c);
    started(c, zoo_async(l->handle, path, on_string, c));
}

void zk_start_set(struct zk_link *l, struct zk_call *c, const char *path, const void *data,
                  size_t length)
{
    begin_call(l, c);
    started(c, zoo_aset(l->handle, path, data, (int)length, -1, on_stat, c));
}

void zk_start_create(struct zk_link *l, struct zk_call *c, const char *path, const void *data,
                     size_t length)
{
    begin_call(l, c);
    started(c, zoo_acreate(l->handle, path, data, (int)length, &ZOO_OPEN_ACL_UNSAFE, ZOO_PERSISTENT,
                           on_string, c));
}

void zk_start_delete(struct zk_link *l, struct zk_call *c, const char *path)
{
    begin_call(l, c);
    started(c, zoo_adelete(l->handle, path, -1, on_void, c));
}

void zk_start_multi(struct zk_link *l, struct zk_call *c, const zoo_op_t *ops, unsigned count,
                    zoo_op_result_t *results)
{
    begin_call(l, c);
    memset(results, 0, count * sizeof(*results));
    started(c, zoo_amulti(l->handle, (int)count, ops, results, on_void, c));
}

fiber_fn int zk_wait(struct zk_call *c)
{
    while (!c->done)
        waitq_wait(&c->wake);
    return c->rc;
}

void zk_call_done(struct zk_call *c)
{
    free(c->data);
    for (unsigned i = 0; i < c->name_count; i++)
        free(c->names[i]);
    free(c->names);
    c->data = NULL;
    c->names = NULL;
    c->name_count = 0;
}

bool zk_rc_unknown(int rc)
{
    return rc == ZCONNECTIONLOSS || rc == ZOPERATIONTIMEOUT || rc == ZINVALIDSTATE ||
           rc == ZSESSIONMOVED || rc == ZCLOSING || rc == ZSESSIONEXPIRED || rc == ZTHROTTLEDOP;
}

const char *zk_rc_text(int rc)
{
    return zerror(rc);
}

static void on_ignored(int rc, const void *data)
{
}

void zk_link_delete_blindly(struct zk_link *l, const char *path)
{
    zoo_adelete(l->handle, path, -1, on_ignored, NULL);
}

/* --- life --- */

struct open_call {
    struct zk_link *link;
    int error; /* errno of the library */
};

static void call_open(void *arg)
{
    struct open_call *c = arg;
    struct zk_link *l = c->link;
    zoo_set_debug_level(ZOO_LOG_LEVEL_WARN);
    errno = 0;
    l->handle = zookeeper_init2(l->options.servers, on_session, (int)l->options.timeout_ms, NULL, l,
                                ZOO_NO_LOG_CLIENTENV, on_log_line);
    c->error = errno;
}

static void call_close(void *arg)
{
    struct zk_link *l = arg;
    zookeeper_close(l->handle);
}

fiber_fn int zk_link_open(struct rt *rt, const struct zk_link_options *o, struct zk_link **ret)
{
    struct zk_link *l = calloc(1, sizeof(*l));
    if (!l)
        return -ENOMEM;
    l->rt = rt;
    l->options = *o;
    waitq_init(&l->drained);
    for (unsigned i = 0; i < ZK_EVENT_COUNT; i++)
        l->events[i] = (struct link_event){.link = l, .event = (enum zk_event)i};
    int r = worker_start(rt, "zookeeper", &l->worker);
    if (r < 0) {
        free(l);
        return r;
    }
    struct open_call c = {.link = l};
    *ret = l; /* events may come before the worker's answer */
    worker_call(l->worker, call_open, &c);
    if (!l->handle) {
        worker_stop(l->worker);
        free(l);
        *ret = NULL;
        return c.error == ENOMEM ? -ENOMEM : -EINVAL;
    }
    return 0;
}

fiber_fn void zk_link_close(struct zk_link *l)
{
    l->closing = true;
    worker_call(l->worker, call_close, l);
    while (atomic_load(&l->posted) > 0)
        waitq_wait(&l->drained);
    worker_stop(l->worker);
    free(l);
}

bool zk_link_connected(const struct zk_link *l)
{
    return l->connected && !l->expired;
}

uint64_t zk_link_timeout_ns(const struct zk_link *l)
{
    return (uint64_t)zoo_recv_timeout(l->handle) * NS_PER_MS;
}
