/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The `zookeeper` cluster store driver: opening, closing and the contract's operations
 * (docs/decisions/0016-zookeeper.md).
 *
 * ZK1 All state belongs to the loop; the library's threads only post (zookeeper_link.c).
 * ZK2 Reads are answered from the connection's copy of the store, after it was brought to where the
 *     store was when they began. They give up (-ETIMEDOUT) when no server was reached for longer
 *     than the session's timeout; commits wait.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "cluster/drivers/drivers.h"
#include "cluster/drivers/zookeeper_internal.h"

#define LOG_MODULE "cluster"

#define BREATHE_NS (5 * NS_PER_MS)

struct zk *zk_of(struct cs *cs)
{
    return container_of(cs, struct zk, cs);
}

/* --- paths --- */

void zk_path(const struct zk *z, char out[ZK_PATH_SIZE], const char *name)
{
    snprintf(out, ZK_PATH_SIZE, "%s/%s", z->spec.root, name);
}

void zk_path_log(const struct zk *z, char out[ZK_PATH_SIZE], uint64_t revision)
{
    snprintf(out, ZK_PATH_SIZE, "%s/log/%020" PRIu64, z->spec.root, revision);
}

void zk_path_session(const struct zk *z, char out[ZK_PATH_SIZE], uint64_t session)
{
    snprintf(out, ZK_PATH_SIZE, "%s/session/%020" PRIu64, z->spec.root, session);
}

void zk_path_part(const struct zk *z, char out[ZK_PATH_SIZE], uint64_t session, uint64_t nonce,
                  unsigned part)
{
    snprintf(out, ZK_PATH_SIZE, "%s/part/%020" PRIu64 "-%016" PRIx64 "-%u", z->spec.root, session,
             nonce, part);
}

/* --- connection --- */

int zk_spawn(struct zk *z, const char *name, fiber_main *fn, struct wgroup *group)
{
    int r = fiber_spawn(z->cs.rt, name, fn, z);
    if (r == 0)
        wgroup_add(group, 1);
    return r;
}

void zk_wake_all(struct zk *z)
{
    waitq_wake_all(&z->changed);
    waitq_wake_all(&z->follow_wake);
    waitq_wake_all(&z->helper_wake);
}

void zk_lose(struct zk *z, const char *why)
{
    if (z->cs.lost || z->closing)
        return;
    z->cs.lost = true;
    log_error("lost the session with ZooKeeper at %s (%s): this node stops serving",
              z->spec.servers, why);
    zk_wake_all(z);
    if (z->cs.on_lost)
        z->cs.on_lost(z->cs.on_lost_arg);
}

static void on_event(void *arg, enum zk_event event)
{
    struct zk *z = arg;
    switch (event) {
    case ZK_CONNECTED:
        if (z->cs.session.value)
            log_info("connected with ZooKeeper at %s again", z->spec.servers);
        z->head_watched = z->sessions_watched = false;
        break;
    case ZK_DISCONNECTED:
        if (z->disconnected_ns == 0 && z->cs.session.value && !z->closing)
            log_warn("no connection with ZooKeeper at %s: trying its servers", z->spec.servers);
        break;
    case ZK_EXPIRED:
        zk_lose(z, "it has expired");
        break;
    case ZK_HEAD:
        z->head_watched = false;
        break;
    case ZK_SESSIONS:
        z->sessions_watched = false;
        break;
    case ZK_NO_WATCH:
        break;
    }
    if (zk_link_connected(z->link))
        z->disconnected_ns = 0;
    else if (z->disconnected_ns == 0)
        z->disconnected_ns = clock_now(z->cs.rt);
    zk_wake_all(z);
}

fiber_fn int zk_wait_connected(struct zk *z, uint64_t patience_ns)
{
    struct rt *rt = z->cs.rt;
    uint64_t log_at = clock_now(rt) + ZK_OUTAGE_LOG_NS;
    while (!zk_link_connected(z->link)) {
        uint64_t now = clock_now(rt), away = now - MIN(z->disconnected_ns, now);
        uint64_t seconds = away / NS_PER_S;
        if (z->cs.lost)
            return -EIO;
        if (z->closing || z->ending)
            return -ETIMEDOUT;
        if (away > patience_ns || (rt_stopping(rt) && away > NS_PER_S))
            return -ETIMEDOUT;
        if (now >= log_at) {
            log_warn("waiting for ZooKeeper at %s since %" PRIu64 " s: is it running, and is that "
                     "its address?",
                     z->spec.servers, seconds);
            log_at = now + ZK_OUTAGE_LOG_NS;
        }
        waitq_wait_until(&z->changed, rt, now + NS_PER_S);
    }
    return z->cs.lost ? -EIO : 0;
}

fiber_fn void zk_breathe(struct zk *z)
{
    waitq_wait_until(&z->changed, z->cs.rt, clock_now(z->cs.rt) + BREATHE_NS);
}

/* --- the operations --- */

static fiber_fn int zk_cs_txn(struct cs *cs, const struct cs_op *ops, unsigned count,
                              uint64_t *ret_revision)
{
    struct zk_commit c = {.kind = ZK_COMMIT_TXN, .ops = ops, .count = count};
    int r = zk_commit(zk_of(cs), &c);
    if (r == 0)
        *ret_revision = c.revision;
    return r;
}

static fiber_fn int zk_cs_get(struct cs *cs, const char *key, struct enc *ret_value,
                              uint64_t *ret_revision)
{
    struct zk *z = zk_of(cs);
    int r = cs->lost ? -EIO : zk_refresh(z, cs->timeout_ns);
    if (r < 0)
        return r == -ECANCELED ? -EIO : r;
    const struct zk_key *k = zk_state_get(&z->state, key);
    if (!k)
        return -ENOENT;
    enc_bytes(ret_value, k->value, k->length);
    *ret_revision = k->revision;
    return 0;
}

static fiber_fn int zk_cs_list(struct cs *cs, const char *prefix,
                               int (*fn)(void *arg, const char *key, const void *value,
                                         size_t length, uint64_t revision),
                               void *arg)
{
    struct zk *z = zk_of(cs);
    int r = cs->lost ? -EIO : zk_refresh(z, cs->timeout_ns);
    const struct zk_key *k;
    size_t position = 0;
    while (r == 0 && (k = zk_state_next(&z->state, prefix, &position))) {
        if (k->name[0] != ZK_OWN_KEY)
            r = fn(arg, k->name, k->value, k->length, k->revision);
    }
    return r;
}

static int zk_cs_watch(struct cs *cs, const char *prefix, cs_watch_fn *fn, void *arg)
{
    struct zk *z = zk_of(cs);
    int r = cs_watches_add(&z->watches, prefix, fn, arg);
    z->watch_barrier = true;
    waitq_wake_all(&z->follow_wake);
    return r;
}

/* --- open and close --- */

static fiber_fn int make_node(struct zk *z, const char *path)
{
    struct zk_call call;
    zk_start_create(z->link, &call, path, "", 0);
    int rc = zk_wait(&call);
    zk_call_done(&call);
    return rc == ZOK || rc == ZNODEEXISTS ? 0
           : zk_rc_unknown(rc)            ? -EAGAIN
           : rc == ZNOAUTH                ? -EPERM
                                          : -EIO;
}

/* The root and the nodes above it. */
static fiber_fn int make_root(struct zk *z)
{
    char path[ZK_PATH_SIZE];
    int r = 0;
    for (size_t i = 1; r == 0; i++) {
        if (z->spec.root[i] != '/' && z->spec.root[i] != '\0')
            continue;
        memcpy(path, z->spec.root, i);
        path[i] = '\0';
        r = make_node(z, path);
        if (z->spec.root[i] == '\0')
            break;
    }
    return r;
}

static fiber_fn int make_layout(struct zk *z)
{
    static const char *const names[] = {"log", "part", "session"};
    zoo_op_t ops[ARRAY_SIZE(names) + 1];
    zoo_op_result_t results[ARRAY_SIZE(names) + 1];
    char paths[ARRAY_SIZE(names) + 1][ZK_PATH_SIZE], created[ZK_PATH_SIZE];
    struct zk_call call;
    struct enc head;
    enc_init(&head);
    zk_head_encode(&head, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        zk_path(z, paths[i], names[i]);
        zoo_create_op_init(&ops[i], paths[i], "", 0, &ZOO_OPEN_ACL_UNSAFE, ZOO_PERSISTENT, created,
                           sizeof(created));
    }
    zk_path(z, paths[ARRAY_SIZE(names)], "head");
    zoo_create_op_init(&ops[ARRAY_SIZE(names)], paths[ARRAY_SIZE(names)], (const char *)head.data,
                       (int)head.length, &ZOO_OPEN_ACL_UNSAFE, ZOO_PERSISTENT, created,
                       sizeof(created));
    int r = head.error ? head.error : make_root(z);
    if (r == 0) {
        zk_start_multi(z->link, &call, ops, ARRAY_SIZE(ops), results);
        int rc = zk_wait(&call);
        zk_call_done(&call);
        r = rc == ZOK || rc == ZNODEEXISTS || zk_rc_unknown(rc) ? -EAGAIN
            : rc == ZNOAUTH                                     ? -EPERM
                                                                : -EIO;
    }
    enc_done(&head);
    return r;
}

/* Finds the head, or makes everything when there is none. */
static fiber_fn int find_layout(struct zk *z)
{
    bool made = false;
    for (;;) {
        int r = zk_wait_connected(z, UINT64_MAX);
        if (r < 0)
            return r;
        struct zk_call call;
        char path[ZK_PATH_SIZE];
        uint64_t revision;
        zk_path(z, path, "head");
        zk_start_get(z->link, &call, path, ZK_NO_WATCH);
        int rc = zk_wait(&call);
        r = rc == ZOK ? zk_head_decode(call.data, call.length, &revision) : -EAGAIN;
        if (rc == ZOK && r == 0)
            zk_learn_head(z, revision, call.version);
        zk_call_done(&call);
        if (rc == ZOK)
            return r;
        if (rc == ZNONODE && made)
            return -EMEDIUMTYPE;
        if (rc == ZNOAUTH)
            return -EPERM;
        if (rc == ZNONODE) {
            r = make_layout(z);
            made = zk_link_connected(z->link);
        }
        if (r < 0 && r != -EAGAIN)
            return r;
        zk_breathe(z);
    }
}

static void explain(const struct zk *z, int r)
{
    const char *where = z->spec.root, *servers = z->spec.servers;
    if (r == -EPROTO)
        log_error("the cluster store %s in ZooKeeper at %s is of a newer version: use that", where,
                  servers);
    else if (r == -EMEDIUMTYPE || r == -EBADMSG)
        log_error("%s in ZooKeeper at %s is not a cluster store: give the path of one, or one that "
                  "does not exist yet",
                  where, servers);
    else if (r == -EPERM)
        log_error("ZooKeeper at %s does not let us use %s: its nodes need permissions for "
                  "everyone",
                  servers, where);
    else
        log_error("the cluster store %s in ZooKeeper at %s cannot be used: %s", where, servers,
                  err_text(r));
}

static fiber_fn int start(struct zk *z)
{
    int r = find_layout(z);
    if (r == 0)
        r = zk_load(z);
    z->gap = false; /* nobody watches yet */
    if (r == 0)
        r = zk_spawn(z, "zk-follow", zk_follow_main, &z->follower);
    if (r == 0)
        r = zk_session_begin(z);
    if (r < 0)
        explain(z, r);
    return r;
}

static fiber_fn void zk_cs_close(struct cs *cs)
{
    struct zk *z = zk_of(cs);
    zk_session_end(z);
    z->closing = true;
    zk_wake_all(z);
    wgroup_wait(&z->follower);
    cs_watches_stop(&z->watches);
    zk_link_close(z->link);
    zk_state_done(&z->state);
    free(z);
}

static const struct cs_ops zk_ops = {
    .name = "zookeeper",
    .close = zk_cs_close,
    .txn = zk_cs_txn,
    .get = zk_cs_get,
    .list = zk_cs_list,
    .watch = zk_cs_watch,
};

static struct zk *zk_new(struct rt *rt, const char *where, int *ret_error)
{
    const char *why = "";
    struct zk *z = calloc(1, sizeof(*z));
    *ret_error = z ? zk_spec_parse(where, &z->spec, &why) : -ENOMEM;
    if (*ret_error < 0) {
        if (z)
            log_error("\"zookeeper:%.200s\" cannot be a cluster store: %s. An example: "
                      "zookeeper:a.example:2181,b.example:2181,c.example:2181/kelpie",
                      where, why);
        free(z);
        return NULL;
    }
    z->cs = (struct cs){.ops = &zk_ops, .rt = rt};
    z->disconnected_ns = clock_now(rt);
    zk_state_init(&z->state);
    cs_watches_init(&z->watches, rt);
    fmutex_init(&z->commit_lock);
    waitq_init(&z->follow_wake);
    waitq_init(&z->helper_wake);
    waitq_init(&z->changed);
    wgroup_init(&z->follower);
    wgroup_init(&z->helpers);
    return z;
}

fiber_fn int zookeeper_cs_open(struct rt *rt, const char *where, struct cs **ret)
{
    int r;
    struct zk *z = zk_new(rt, where, &r);
    if (!z)
        return r;
    struct zk_link_options o = {.servers = z->spec.servers,
                                .timeout_ms = z->spec.timeout_ms,
                                .on_event = on_event,
                                .arg = z};
    r = zk_link_open(rt, &o, &z->link);
    if (r < 0) {
        if (r == -EINVAL)
            log_error("the names of the ZooKeeper servers %s cannot be resolved", z->spec.servers);
        free(z);
        return r;
    }
    r = start(z);
    if (r < 0) {
        zk_cs_close(&z->cs);
        return r;
    }
    *ret = &z->cs;
    return 0;
}
