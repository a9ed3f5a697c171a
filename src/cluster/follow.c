/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Following the map: assembles it from its keys, installs it, runs callbacks, acknowledges.
 *
 * FW1 A map is assembled only at the end of a commit, so it is one that a leader wrote.
 * FW2 Versions that are installed grow; callbacks run one at a time, for each map, in order.
 * FW3 A version is acknowledged only after all callbacks have returned from it (L2).
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "cluster/cluster_internal.h"

#define LOG_MODULE "cluster"

static const char shard_prefix[] = "map/shard/";

static void give_up(struct cluster *c, int r)
{
    if (c->map_error == 0)
        c->map_error = r;
    waitq_wake_all(&c->changed);
}

static int assemble(struct cluster *c, struct map **ret)
{
    struct map *m;
    int r = map_decode_head(c->raw.head.data, c->raw.head.length, &m);
    if (r < 0)
        return r;
    for (uint32_t i = 0; r == 0 && i < map_shard_count(m); i++)
        r = map_decode_shard(m, i, c->raw.shards[i].data, c->raw.shards[i].length);
    if (r < 0) {
        map_unref(m);
        return r;
    }
    *ret = m;
    return 0;
}

static int check_map_cluster(struct cluster *c, const struct map *m)
{
    const struct uuid *expected = c->map->version > 0 ? &c->map->cluster : &c->store_cluster;
    if (uuid_is_null(expected) || uuid_equal(expected, &m->cluster))
        return 0;
    char mine[UUID_TEXT_SIZE], theirs[UUID_TEXT_SIZE];
    uuid_format(expected, mine);
    uuid_format(&m->cluster, theirs);
    log_error(
        "this store belongs to cluster %s, but the map is of cluster %s: this node does not serve",
        mine, theirs);
    return -EMEDIUMTYPE;
}

static int install(struct cluster *c, struct map *m)
{
    struct map_pending *p = malloc(sizeof(*p));
    if (!p)
        return -ENOMEM;
    p->map = map_ref(m);
    list_push_back(&c->pending, &p->link);
    bool was_in = cluster_self(c) >= 0 && cluster_serving(c);
    map_unref(c->map);
    c->map = m;
    c->map_revision = c->raw.head_revision;
    c->members_dirty = true; /* the leader looks whether it lists what is registered */
    if (!was_in && cluster_serving(c))
        log_info("node %s is in map %" PRIu64 " with session %" PRIu64, c->self.name, m->version,
                 c->cs->session.value);
    log_debug("map %" PRIu64 " installed", m->version);
    waitq_wake_all(&c->changed);
    return 0;
}

static void assemble_and_install(struct cluster *c)
{
    if (c->raw.head_revision == 0 || c->map_error)
        return;
    struct map *m = NULL;
    int r = assemble(c, &m);
    if (r < 0) {
        log_error("the cluster map cannot be read: %s", err_text(r));
        give_up(c, r);
        return;
    }
    if (m->version <= c->map->version) {
        map_unref(m);
        return;
    }
    r = check_map_cluster(c, m);
    if (r == 0)
        r = install(c, m);
    if (r < 0) {
        map_unref(m);
        give_up(c, r);
    }
}

static void set_raw(struct enc *e, const void *value, size_t length)
{
    enc_done(e);
    if (value)
        enc_bytes(e, value, length);
}

/* Number of a shard's key, or -1. */
static int64_t parse_shard(const char *key)
{
    if (strncmp(key, shard_prefix, sizeof(shard_prefix) - 1) != 0)
        return -1;
    char *end;
    unsigned long n = strtoul(key + sizeof(shard_prefix) - 1, &end, 10);
    return *end == '\0' && n < ARRAY_SIZE(((struct map_raw *)NULL)->shards) ? (int64_t)n : -1;
}

static fiber_fn void on_map_key(void *arg, const char *key, const void *value, size_t length,
                                uint64_t revision, bool more)
{
    struct cluster *c = arg;
    if (!key) {
        c->map_loaded = true;
        waitq_wake_all(&c->changed);
        return;
    }
    int64_t shard = parse_shard(key);
    if (strcmp(key, KEY_HEAD) == 0) {
        set_raw(&c->raw.head, value, length);
        c->raw.head_revision = value ? revision : 0;
        if (!value && c->map->version > 0)
            log_error("the cluster map was removed from the cluster store; map %" PRIu64
                      " stays in use",
                      c->map->version);
    } else if (shard >= 0) {
        set_raw(&c->raw.shards[shard], value, length);
    }
    if (!more)
        assemble_and_install(c);
}

/* --- callbacks --- */

static fiber_fn void call_back(struct map_callback *cb, struct map *m)
{
    if (cb->called && cb->seen >= m->version)
        return;
    cb->called = true;
    cb->seen = m->version;
    cb->fn(cb->arg, m);
}

static fiber_fn void apply_main(void *arg)
{
    struct cluster *c = arg;
    while (!c->stopping) {
        if (list_empty(&c->pending)) {
            waitq_wait(&c->changed);
            continue;
        }
        struct map_pending *p = list_first(&c->pending, struct map_pending, link);
        list_remove(&p->link);
        fmutex_lock(&c->callback_lock);
        struct map_callback *cb;
        list_for_each (cb, &c->map_callbacks, link)
            call_back(cb, p->map);
        fmutex_unlock(&c->callback_lock);
        c->applied = p->map->version;
        map_unref(p->map);
        free(p);
        waitq_wake_all(&c->changed);
    }
    cluster_fiber_end(c);
}

struct first_call {
    struct cluster *c;
    struct map_callback *cb;
};

static fiber_fn void first_call_main(void *arg)
{
    struct first_call f = *(struct first_call *)arg;
    free(arg);
    struct cluster *c = f.c;
    fmutex_lock(&c->callback_lock);
    struct map *m = map_ref(c->map);
    if (!c->stopping && !f.cb->called)
        call_back(f.cb, m);
    map_unref(m);
    fmutex_unlock(&c->callback_lock);
    cluster_fiber_end(c);
}

int cluster_on_map(struct cluster *c, cluster_map_fn *fn, void *arg)
{
    struct map_callback *cb = malloc(sizeof(*cb));
    struct first_call *f = malloc(sizeof(*f));
    int r = cb && f ? 0 : -ENOMEM;
    if (r == 0) {
        *cb = (struct map_callback){.fn = fn, .arg = arg};
        *f = (struct first_call){.c = c, .cb = cb};
        r = fiber_spawn(c->rt, "cluster-map", first_call_main, f);
    }
    if (r < 0) {
        free(cb);
        free(f);
        return r;
    }
    wgroup_add(&c->running, 1);
    list_push_back(&c->map_callbacks, &cb->link);
    return 0;
}

static fiber_fn void ignore_map(void *arg, struct map *m)
{
}

fiber_fn void cluster_off_map(struct cluster *c, cluster_map_fn *fn, void *arg)
{
    fmutex_lock(&c->callback_lock);
    struct map_callback *cb;
    list_for_each (cb, &c->map_callbacks, link) {
        if (cb->fn == fn && cb->arg == arg)
            cb->fn = ignore_map; /* stays on the list: its first call may still be on its way */
    }
    fmutex_unlock(&c->callback_lock);
}

/* --- acknowledging --- */

static fiber_fn int put_ack(struct cluster *c, uint64_t version)
{
    char key[CS_KEY_SIZE];
    struct claim claim = {.uuid = c->self.uuid, .session = c->cs->session, .version = version};
    struct enc e;
    member_key(key, "ack", &c->self.uuid);
    enc_init(&e);
    claim_encode(&claim, &e);
    struct cs_op op = {.kind = CS_PUT,
                       .key = key,
                       .revision = CS_REVISION_ANY,
                       .value = e.data,
                       .length = e.length,
                       .ephemeral = true};
    int r = e.error ? e.error : cs_txn(c->cs, &op, 1, NULL);
    enc_done(&e);
    return r;
}

static fiber_fn void ack_main(void *arg)
{
    struct cluster *c = arg;
    while (!c->stopping) {
        if (c->acked >= c->applied || c->cs->lost) {
            waitq_wait(&c->changed);
            continue;
        }
        uint64_t version = c->applied;
        int r = put_ack(c, version);
        if (r == 0) {
            c->acked = version;
            continue;
        }
        log_warn("map %" PRIu64 " cannot be acknowledged: %s", version, err_text(r));
        if (!cluster_pause(c))
            break;
    }
    cluster_fiber_end(c);
}

int cluster_follow(struct cluster *c)
{
    int r = cluster_spawn(c, "cluster-apply", apply_main);
    if (r == 0)
        r = cluster_spawn(c, "cluster-ack", ack_main);
    if (r == 0)
        r = cs_watch(c->cs, "map/", on_map_key, c);
    return r;
}

void cluster_follow_done(struct cluster *c)
{
    struct map_pending *p, *next;
    list_for_each_safe (p, next, &c->pending, link) {
        map_unref(p->map);
        free(p);
    }
    struct map_callback *cb, *next_cb;
    list_for_each_safe (cb, next_cb, &c->map_callbacks, link)
        free(cb);
    enc_done(&c->raw.head);
    for (size_t i = 0; i < ARRAY_SIZE(c->raw.shards); i++)
        enc_done(&c->raw.shards[i]);
}
