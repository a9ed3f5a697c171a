/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fencing (L2): knowing that no live node acts for a session any more.
 *
 * FE1 A session that is absent from one map is absent from all later ones, so the first version
 *     known to lack it is what every live node must have acknowledged.
 * FE2 An acknowledgement counts only for the session that gave it.
 */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "cluster/cluster_internal.h"

#define LOG_MODULE "cluster"

static struct ack *find_ack(struct cluster *c, const struct uuid *u)
{
    struct ack *a;
    list_for_each (a, &c->acks, link) {
        if (uuid_equal(&a->uuid, u))
            return a;
    }
    return NULL;
}

static fiber_fn void on_ack_key(void *arg, const char *key, const void *value, size_t length,
                                uint64_t revision, bool more)
{
    struct cluster *c = arg;
    struct claim claim = {0};
    if (!key) {
        c->acks_loaded = true;
        waitq_wake_all(&c->changed);
        return;
    }
    if (member_key_parse(key, &claim.uuid) < 0)
        return;
    struct ack *a = find_ack(c, &claim.uuid);
    if (!a) {
        a = calloc(1, sizeof(*a));
        if (!a)
            return; /* whoever waits for it times out */
        a->uuid = claim.uuid;
        list_push_back(&c->acks, &a->link);
    }
    if (value && claim_decode(value, length, &claim) < 0) {
        log_warn("the cluster store's key %s cannot be understood", key);
        claim.session.value = 0;
    }
    a->session = claim.session;
    a->version = claim.version;
    waitq_wake_all(&c->changed);
}

static bool all_acknowledged(struct cluster *c, uint64_t version)
{
    for (uint32_t i = 0; i < c->map->node_count; i++) {
        const struct map_node *n = &c->map->nodes[i];
        if (n->session.value == 0)
            continue;
        const struct ack *a = find_ack(c, &n->uuid);
        if (!a || a->session.value != n->session.value || a->version < version)
            return false;
    }
    return true;
}

fiber_fn int cluster_wait_fenced(struct cluster *c, struct session s, uint64_t deadline_ns)
{
    if (!c->acks_watched) {
        int r = cs_watch(c->cs, "ack/", on_ack_key, c);
        if (r < 0)
            return r;
        c->acks_watched = true;
    }
    bool absent = false;
    uint64_t version = 0;
    for (;;) {
        if (!absent && !map_node_by_session(c->map, s)) {
            absent = true;
            version = c->map->version;
        }
        if (absent && c->acks_loaded && all_acknowledged(c, version))
            return 0;
        int r = cluster_wait(c, deadline_ns);
        if (r < 0)
            return r;
    }
}

void cluster_fence_done(struct cluster *c)
{
    struct ack *a, *next;
    list_for_each_safe (a, next, &c->acks, link)
        free(a);
}
