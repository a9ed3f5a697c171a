/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Election, and what the leader does: keep the map in step with registrations and sessions.
 *
 * LE1 The leader is who holds the key "leader"; each map is written under the condition that it
 *     still does, and that the map it was computed from is still the present one.
 * LE2 Registrations and sessions are read after that map was known, so a session that an earlier
 *     leader saw end does not come back (N4).
 * LE3 Several changes make one map: those that arrive while one is being written wait for the
 *     next.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "cluster/cluster_internal.h"
#include "cluster/map_write.h"

#define LOG_MODULE "cluster"

#define BATCH_NS (5 * NS_PER_MS) /* events of one cause arrive together */

static fiber_fn void on_leader_key(void *arg, const char *key, const void *value, size_t length,
                                   uint64_t revision, bool more)
{
    struct cluster *c = arg;
    struct claim claim = {0};
    if (!key) {
        c->leader_known = true;
        waitq_wake_all(&c->changed);
        return;
    }
    if (strcmp(key, KEY_LEADER) != 0)
        return;
    bool was_leader = cluster_is_leader(c);
    if (value && claim_decode(value, length, &claim) < 0)
        log_error("the cluster store's key %s cannot be understood", key);
    c->leader_events++;
    c->leader_revision = value ? revision : 0;
    c->leader = claim.session;
    if (cluster_is_leader(c) && !was_leader) {
        log_info("node %s leads the cluster", c->self.name);
        c->members_dirty = true;
        struct lead_callback *cb;
        list_for_each (cb, &c->lead_callbacks, link)
            cb->fn(cb->arg);
    }
    waitq_wake_all(&c->changed);
}

static fiber_fn void on_member_key(void *arg, const char *key, const void *value, size_t length,
                                   uint64_t revision, bool more)
{
    struct cluster *c = arg;
    c->members_dirty = true;
    if (!more && cluster_is_leader(c))
        waitq_wake_all(&c->changed);
}

static fiber_fn int try_to_lead(struct cluster *c)
{
    struct claim claim = {.uuid = c->self.uuid, .session = c->cs->session};
    struct enc e;
    enc_init(&e);
    claim_encode(&claim, &e);
    struct cs_op op = {.kind = CS_PUT,
                       .key = KEY_LEADER,
                       .revision = CS_REVISION_ABSENT,
                       .value = e.data,
                       .length = e.length,
                       .ephemeral = true};
    int r = e.error ? e.error : cs_txn(c->cs, &op, 1, NULL);
    enc_done(&e);
    return r;
}

static fiber_fn void elect_main(void *arg)
{
    struct cluster *c = arg;
    uint64_t tried = UINT64_MAX; /* leader_events at the last try: its outcome is an event, too */
    while (!c->stopping) {
        if (!c->leader_known || c->leader_revision != 0 || c->cs->lost ||
            tried == c->leader_events) {
            waitq_wait(&c->changed);
            continue;
        }
        tried = c->leader_events;
        int r = try_to_lead(c);
        if (r == 0 || r == -ESTALE)
            continue;
        log_warn("cannot take part in electing a leader: %s", err_text(r));
        if (!cluster_pause(c))
            break;
        tried = UINT64_MAX;
    }
    cluster_fiber_end(c);
}

/* --- the leader's work --- */

static void log_changes(const struct map *now, const struct map *next)
{
    for (uint32_t i = 0; i < next->node_count; i++) {
        const struct map_node *n = &next->nodes[i], *old = map_node(now, n->number);
        if (!old)
            log_info("map %" PRIu64
                     ": node %s is new; it holds no groups until data is moved to it",
                     next->version, n->name);
        else if (old->session.value != n->session.value && n->session.value == 0)
            log_warn("map %" PRIu64 ": node %s is gone", next->version, n->name);
        else if (old->session.value != n->session.value)
            log_info("map %" PRIu64 ": node %s is here with session %" PRIu64, next->version,
                     n->name, n->session.value);
    }
}

static fiber_fn int write_map(struct cluster *c, const struct map *now, const struct map *next,
                              uint64_t head_revision, uint64_t leader_revision)
{
    struct map_write *w;
    int r = map_write_new(now, next, &w);
    if (r < 0)
        return r;
    w->ops[0].revision = head_revision;
    w->ops[w->count++] =
        (struct cs_op){.kind = CS_CHECK, .key = KEY_LEADER, .revision = leader_revision};
    r = cs_txn(c->cs, w->ops, w->count, NULL);
    map_write_free(w);
    return r;
}

/* One step of leading: reads what is registered and writes the next map if anything differs.
 * -ESTALE: the map or the leader is another by now. */
static fiber_fn int lead_once(struct cluster *c, uint64_t head_revision, uint64_t leader_revision)
{
    struct map *now = map_ref(c->map), *next = NULL;
    struct map_member *members = NULL;
    unsigned count = 0;
    int r = member_list(c->cs, &members, &count);
    if (r == 0)
        r = map_next(now, members, count, &next);
    if (r == 0 && next) {
        r = write_map(c, now, next, head_revision, leader_revision);
        if (r == 0)
            log_changes(now, next);
    }
    free(members);
    map_unref(next);
    map_unref(now);
    return r;
}

static fiber_fn void lead_main(void *arg)
{
    struct cluster *c = arg;
    while (!c->stopping) {
        if (!cluster_is_leader(c) || !c->members_dirty || c->map->version == 0 || c->cs->lost ||
            c->map_error) {
            waitq_wait(&c->changed);
            continue;
        }
        if (fiber_sleep(c->rt, BATCH_NS) < 0)
            break;
        if (c->stopping || !cluster_is_leader(c))
            continue;
        uint64_t head_revision = c->map_revision, leader_revision = c->leader_revision;
        c->members_dirty = false;
        int r = lead_once(c, head_revision, leader_revision);
        if (r == 0)
            continue;
        c->members_dirty = true;
        if (r != -ESTALE) {
            log_warn("the next cluster map cannot be written: %s", err_text(r));
            if (!cluster_pause(c))
                break;
        } else if (!c->stopping && c->map_revision == head_revision &&
                   c->leader_revision == leader_revision) {
            waitq_wait(&c->changed); /* what made it stale is still on its way to us */
        }
    }
    cluster_fiber_end(c);
}

bool cluster_is_leader(const struct cluster *c)
{
    return c->leader.value != 0 && c->leader.value == c->cs->session.value && !c->cs->lost;
}

int cluster_on_lead(struct cluster *c, void (*fn)(void *arg), void *arg)
{
    struct lead_callback *cb = malloc(sizeof(*cb));
    if (!cb)
        return -ENOMEM;
    *cb = (struct lead_callback){.fn = fn, .arg = arg};
    list_push_back(&c->lead_callbacks, &cb->link);
    if (cluster_is_leader(c))
        fn(arg);
    return 0;
}

void cluster_off_lead(struct cluster *c, void (*fn)(void *arg), void *arg)
{
    struct lead_callback *cb, *tmp;
    list_for_each_safe (cb, tmp, &c->lead_callbacks, link) {
        if (cb->fn != fn || cb->arg != arg)
            continue;
        list_remove(&cb->link);
        free(cb);
    }
}

int cluster_lead(struct cluster *c)
{
    int r = cluster_spawn(c, "cluster-elect", elect_main);
    if (r == 0)
        r = cluster_spawn(c, "cluster-lead", lead_main);
    if (r == 0)
        r = cs_watch(c->cs, KEY_LEADER, on_leader_key, c);
    if (r == 0)
        r = cs_watch(c->cs, "node/", on_member_key, c);
    if (r == 0)
        r = cs_watch(c->cs, "session/", on_member_key, c);
    return r;
}
