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
 * LE4 A node that has had no session since this process started is waited for until the grace
 *     period is over: all may just have started. One that was seen is not.
 * LE5 The keys of a node that was removed go in the transaction of the map that does not list it,
 *     under the condition that it has not registered since. The wish of a lost one stays for ever.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "cluster/cluster_internal.h"
#include "cluster/map_write.h"

#define LOG_MODULE "cluster"

#define BATCH_NS (5 * NS_PER_MS) /* events of one cause arrive together */

static struct seen *find_seen(const struct cluster *c, const struct uuid *u)
{
    struct seen *seen;
    list_for_each (seen, &c->seen, link) {
        if (uuid_equal(&seen->uuid, u))
            return seen;
    }
    return NULL;
}

/* NULL: out of memory; then the node is missed for a little longer than needed. */
static struct seen *make_seen(struct cluster *c, const struct uuid *u)
{
    struct seen *seen = find_seen(c, u);
    if (seen)
        return seen;
    seen = calloc(1, sizeof(*seen));
    if (!seen)
        return NULL;
    seen->uuid = *u;
    list_push_back(&c->seen, &seen->link);
    return seen;
}

static void forget_absences(struct cluster *c)
{
    struct seen *seen;
    list_for_each (seen, &c->seen, link)
        seen->away_ns = 0;
}

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
        c->lead_again_ns = 0;
        forget_absences(c);
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
    c->member_events++;
    if (!more && cluster_is_leader(c))
        waitq_wake_all(&c->changed);
}

/* LE4: remembers whom this process has seen with a session. */
static fiber_fn void on_session_key(void *arg, const char *key, const void *value, size_t length,
                                    uint64_t revision, bool more)
{
    struct cluster *c = arg;
    struct uuid uuid;
    if (key && value && member_key_parse(key, &uuid) == 0) {
        struct seen *seen = make_seen(c, &uuid);
        if (seen)
            seen->was_here = true;
    }
    on_member_key(arg, key, value, length, revision, more);
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

static void log_wishes(const struct map *next, const struct map_node *old, const struct map_node *n)
{
    static const char *const states[] = {"takes data again", "is to be emptied",
                                         "was given up; its groups are made anew elsewhere"};
    static const char *const troubles[] = {
        "may be in sync again", "cannot write to its store and leaves in_sync",
        "cannot be reached by others and leaves in_sync", "cannot reach others and leaves in_sync"};
    if (old->state != n->state)
        log_info("map %" PRIu64 ": node %s %s", next->version, n->name, states[n->state]);
    if (old->trouble != n->trouble)
        log_warn("map %" PRIu64 ": node %s %s", next->version, n->name, troubles[n->trouble]);
    if (!old->out && n->out)
        log_warn("map %" PRIu64
                 ": node %s is away or in trouble for too long; its groups are copied "
                 "to others",
                 next->version, n->name);
    if (old->weight != n->weight)
        log_info("map %" PRIu64 ": node %s has weight %" PRIu32, next->version, n->name, n->weight);
}

static void log_changes(const struct map *now, const struct map *next)
{
    for (uint32_t i = 0; i < now->node_count; i++) {
        const struct map_node *n = map_node(next, now->nodes[i].number);
        if (n)
            log_wishes(next, &now->nodes[i], n);
        else
            log_info("map %" PRIu64 ": node %s was removed", next->version, now->nodes[i].name);
    }
    for (uint32_t i = 0; i < next->node_count; i++) {
        const struct map_node *n = &next->nodes[i], *old = map_node(now, n->number);
        if (!old)
            log_info("map %" PRIu64 ": node %s is new", next->version, n->name);
        else if (old->session.value != n->session.value && n->session.value == 0)
            log_warn("map %" PRIu64 ": node %s is gone", next->version, n->name);
        else if (old->session.value != n->session.value)
            log_info("map %" PRIu64 ": node %s is here with session %" PRIu64, next->version,
                     n->name, n->session.value);
    }
}

/* LE5: the keys of a node that `next` does not list any more. */
struct removal {
    char node[CS_KEY_SIZE], name[CS_KEY_SIZE], wish[CS_KEY_SIZE];
};

static void add_removal(struct map_write *w, const struct map_inputs *in, const struct map_node *n,
                        struct removal *keys)
{
    member_key(keys->node, "node", &n->uuid);
    member_key(keys->wish, "wish/node", &n->uuid);
    snprintf(keys->name, sizeof(keys->name), "name/%s", n->name);
    uint64_t revision = CS_REVISION_ABSENT;
    for (unsigned i = 0; i < in->member_count; i++) {
        if (uuid_equal(&in->members[i].node.uuid, &n->uuid))
            revision = in->members[i].revision;
    }
    enum cs_op_kind kind = revision == CS_REVISION_ABSENT ? CS_CHECK : CS_DELETE;
    w->ops[w->count++] = (struct cs_op){.kind = kind, .key = keys->node, .revision = revision};
    w->ops[w->count++] =
        (struct cs_op){.kind = CS_DELETE, .key = keys->name, .revision = CS_REVISION_ANY};
    if (n->state != MAP_NODE_LOST)
        w->ops[w->count++] =
            (struct cs_op){.kind = CS_DELETE, .key = keys->wish, .revision = CS_REVISION_ANY};
}

static fiber_fn int write_map(struct cluster *c, const struct map_inputs *in, const struct map *now,
                              const struct map *next, uint64_t head_revision,
                              uint64_t leader_revision)
{
    struct map_write *w;
    int r = map_write_new(now, next, &w);
    if (r < 0)
        return r;
    w->ops[0].revision = head_revision;
    w->ops[w->count++] =
        (struct cs_op){.kind = CS_CHECK, .key = KEY_LEADER, .revision = leader_revision};
    struct removal keys[MAP_REMOVALS_MAX];
    unsigned removals = 0;
    for (uint32_t i = 0; i < now->node_count; i++) {
        if (!map_node(next, now->nodes[i].number))
            add_removal(w, in, &now->nodes[i], &keys[removals++]);
    }
    r = cs_txn(c->cs, w->ops, w->count, NULL);
    map_write_free(w);
    return r;
}

/* What the next map is made of, as read from the cluster store. */
struct gathered {
    struct map_member *members;
    struct map_report *reports;
    struct map_node_wish *node_wishes;
    struct map_pool_wish *pool_wishes;
    uint16_t *spared, *out;
    struct map_inputs in;
};

static void gathered_done(struct gathered *g)
{
    free(g->members);
    report_list_free(g->reports, g->in.report_count);
    free(g->node_wishes);
    free(g->pool_wishes);
    free(g->spared);
    free(g->out);
}

static bool has_session(const struct gathered *g, const struct uuid *u)
{
    for (unsigned i = 0; i < g->in.member_count; i++) {
        if (uuid_equal(&g->members[i].node.uuid, u))
            return g->members[i].node.session.value != 0;
    }
    return false;
}

/* LE4, and who has been away or in trouble for so long that its groups are to be copied to others.
 */
static int judge_absent(struct cluster *c, const struct map *now, struct gathered *g)
{
    uint64_t time = clock_now(c->rt);
    bool grace = time < c->grace_end_ns;
    c->lead_again_ns = grace ? c->grace_end_ns : UINT64_MAX;
    g->spared = calloc(now->node_count + 1, sizeof(*g->spared));
    g->out = calloc(now->node_count + 1, sizeof(*g->out));
    if (!g->spared || !g->out)
        return -ENOMEM;
    for (uint32_t i = 0; i < now->node_count; i++) {
        const struct map_node *n = &now->nodes[i];
        struct seen *seen = make_seen(c, &n->uuid);
        if (!seen)
            continue;
        bool here = has_session(g, &n->uuid);
        if (here && n->trouble == MAP_TROUBLE_NONE) {
            seen->away_ns = 0;
            continue;
        }
        if (grace && !seen->was_here && !here)
            g->spared[g->in.spared_count++] = n->number;
        if (seen->away_ns == 0)
            seen->away_ns = MAX(time, (uint64_t)1);
        if (time - MIN(time, seen->away_ns) >= c->out_ns)
            g->out[g->in.out_count++] = n->number;
        else if (!n->out)
            c->lead_again_ns = MIN(c->lead_again_ns, seen->away_ns + c->out_ns);
    }
    g->in.spared = g->spared;
    g->in.out = g->out;
    return 0;
}

static fiber_fn int gather(struct cluster *c, const struct map *now, struct gathered *g)
{
    g->in.recovery = c->recovery;
    g->in.targets = c->targets;
    g->in.wall_s = clock_wall(c->rt) / NS_PER_S;
    int r = member_list(c->cs, &g->members, &g->in.member_count);
    if (r == 0)
        r = report_list(c->cs, &g->reports, &g->in.report_count);
    if (r == 0)
        r = wish_list(c->cs, &g->node_wishes, &g->in.node_wish_count, &g->pool_wishes,
                      &g->in.pool_wish_count);
    g->in.members = g->members;
    g->in.reports = g->reports;
    g->in.node_wishes = g->node_wishes;
    g->in.pool_wishes = g->pool_wishes;
    return r < 0 ? r : judge_absent(c, now, g);
}

/* One step of leading: reads what is registered and writes the next map if anything differs.
 * -ESTALE: the map or the leader is another by now. */
static fiber_fn int lead_once(struct cluster *c, uint64_t head_revision, uint64_t leader_revision)
{
    struct map *now = map_ref(c->map), *next = NULL;
    struct gathered g = {0};
    int r = gather(c, now, &g);
    if (r == 0)
        r = map_next(now, &g.in, &next);
    if (r == 0 && next) {
        r = write_map(c, &g.in, now, next, head_revision, leader_revision);
        if (r == 0)
            log_changes(now, next);
    }
    gathered_done(&g);
    map_unref(next);
    map_unref(now);
    return r;
}

static bool may_lead(const struct cluster *c)
{
    return cluster_is_leader(c) && c->map->version > 0 && !c->cs->lost && !c->map_error;
}

static fiber_fn void lead_main(void *arg)
{
    struct cluster *c = arg;
    while (!c->stopping) {
        if (!may_lead(c)) {
            waitq_wait(&c->changed);
            continue;
        }
        if (!c->members_dirty && clock_now(c->rt) < c->lead_again_ns) {
            waitq_wait_until(&c->changed, c->rt, c->lead_again_ns);
            continue;
        }
        if (fiber_sleep(c->rt, BATCH_NS) < 0)
            break;
        if (c->stopping || !cluster_is_leader(c))
            continue;
        uint64_t head_revision = c->map_revision, leader_revision = c->leader_revision;
        uint64_t events = c->member_events;
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
                   c->leader_revision == leader_revision && c->member_events == events) {
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
        r = cs_watch(c->cs, "session/", on_session_key, c);
    if (r == 0)
        r = cs_watch(c->cs, "report/", on_member_key, c);
    if (r == 0)
        r = cs_watch(c->cs, "wish/", on_member_key, c);
    return r;
}
