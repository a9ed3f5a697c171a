/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The map's health (map_health.h).
 *
 * MH1 A group's health follows from its sets and its members' sessions alone.
 * MH2 Each reason names whom it is about, and what helps; what heals by itself says so.
 */
#include "cluster/map_health.h"
#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "base/err.h"

static const struct map_pool *pool_of(const struct map *m, uint32_t group)
{
    for (uint32_t i = 0; i < m->pool_count; i++) {
        const struct map_pool *p = &m->pools[i];
        if (group >= p->group_base && group - p->group_base < p->group_count)
            return p;
    }
    return NULL;
}

static bool is_live(const struct map *m, uint16_t number)
{
    const struct map_node *n = map_node(m, number);
    return n && n->session.value != 0;
}

enum map_group_health map_group_health(const struct map *m, uint32_t group)
{
    const struct map_group *g = &m->groups[group];
    const struct map_pool *pool = pool_of(m, group);
    unsigned live = 0, lost = 0;
    for (unsigned i = 0; i < g->in_sync_count; i++) {
        const struct map_node *n = map_node(m, g->in_sync[i]);
        live += n && n->session.value != 0;
        lost += !n || n->state == MAP_NODE_LOST;
    }
    if (!pool)
        return MAP_GROUP_FULL;
    if (live == 0)
        return lost == g->in_sync_count ? MAP_GROUP_LOST : MAP_GROUP_WAITING;
    if (live < g->in_sync_count || live < pool->min_copies)
        return MAP_GROUP_READ_ONLY;
    if (live < pool->copies)
        return MAP_GROUP_DEGRADED;
    return g->joining_count > 0 || live > pool->copies ? MAP_GROUP_MOVING : MAP_GROUP_FULL;
}

void map_health(const struct map *m, struct map_health *ret)
{
    struct map_health h = {0};
    for (uint32_t i = 0; i < m->group_count; i++) {
        h.groups[map_group_health(m, i)]++;
        h.joining += m->groups[i].joining_count > 0;
    }
    for (uint32_t i = 0; i < m->node_count; i++) {
        const struct map_node *n = &m->nodes[i];
        if (n->state == MAP_NODE_LOST)
            h.nodes_lost++;
        else if (n->session.value == 0)
            h.nodes_away++;
        else
            h.nodes_live++;
        h.nodes_draining += n->state == MAP_NODE_DRAINING;
        h.nodes_troubled += n->trouble != MAP_TROUBLE_NONE;
    }
    *ret = h;
}

bool map_health_good(const struct map_health *h)
{
    for (unsigned i = 0; i < MAP_GROUP_FULL; i++) {
        if (h->groups[i] > 0)
            return false;
    }
    return h->nodes_away + h->nodes_draining + h->nodes_lost + h->nodes_troubled == 0;
}

static bool has(const uint16_t *set, unsigned count, uint16_t node)
{
    for (unsigned i = 0; i < count; i++) {
        if (set[i] == node)
            return true;
    }
    return false;
}

static bool is_only(const struct map *m, const struct map_group *g, uint16_t node)
{
    for (unsigned i = 0; i < g->in_sync_count; i++) {
        if (g->in_sync[i] != node && is_live(m, g->in_sync[i]))
            return false;
    }
    return true;
}

void map_node_health(const struct map *m, uint16_t node, struct map_node_health *ret)
{
    struct map_node_health h = {0};
    for (uint32_t i = 0; i < m->group_count; i++) {
        const struct map_group *g = &m->groups[i];
        bool in_sync = map_group_in_sync(g, node);
        h.in_sync += in_sync;
        h.joining += !in_sync && map_group_has(g, node);
        h.only += in_sync && is_only(m, g, node);
        h.waited_for += in_sync && !is_live(m, node) && is_only(m, g, node);
        h.held += map_group_has(g, node) || has(g->last_full, g->last_full_count, node);
    }
    *ret = h;
}

/* --- reasons --- */

struct reasons {
    const struct map *m;
    uint64_t wall_s;
    void (*fn)(void *arg, const char *text);
    void *arg;
};

__attribute__((format(printf, 2, 3))) static void say(const struct reasons *r, const char *format,
                                                      ...)
{
    char text[MAP_REASON_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text) - 1, format, args);
    va_end(args);
    size_t length = strlen(text);
    text[0] = (char)toupper((unsigned char)text[0]);
    text[length] = '.';
    text[length + 1] = '\0';
    r->fn(r->arg, text);
}

static const char *groups(uint32_t count)
{
    return count == 1 ? "group" : "groups";
}

/* "for 12 minutes"; "" when it is not known. */
static void away_for(const struct reasons *r, const struct map_node *n, char out[64])
{
    out[0] = '\0';
    if (n->away_since == 0 || r->wall_s < n->away_since)
        return;
    uint64_t s = r->wall_s - n->away_since;
    if (s < 120)
        snprintf(out, 64, " for %" PRIu64 " s", s);
    else if (s < 120 * 60)
        snprintf(out, 64, " for %" PRIu64 " minutes", s / 60);
    else
        snprintf(out, 64, " for %" PRIu64 " hours", s / 3600);
}

static void say_away(const struct reasons *r, const struct map_node *n)
{
    struct map_node_health h;
    char since[64];
    map_node_health(r->m, n->number, &h);
    away_for(r, n, since);
    if (h.waited_for > 0)
        say(r,
            "node %s is away%s, and %" PRIu32 " %s cannot be read or written without it or another "
            "of their last nodes: start it; if its disk is gone for good, `dog node lost %s`",
            n->name, since, h.waited_for, groups(h.waited_for), n->name);
    else if (h.in_sync > 0)
        say(r,
            "node %s is away%s; writes to %" PRIu32 " %s wait until it is back or its grace period "
            "ends",
            n->name, since, h.in_sync, groups(h.in_sync));
    else if (n->out)
        say(r,
            "node %s is away%s; its groups are kept on other nodes as far as there are zones: "
            "start "
            "it, or `dog node remove %s`",
            n->name, since, n->name);
    else
        say(r,
            "node %s is away%s; its groups have a copy less: start it, or wait until they are "
            "copied to other nodes",
            n->name, since);
}

static void say_lost(const struct reasons *r, const struct map_node *n)
{
    struct map_node_health h;
    map_node_health(r->m, n->number, &h);
    if (h.in_sync > 0)
        say(r,
            "node %s was given up, and nobody else has all that was written to %" PRIu32
            " %s: `dog node lost %s --accept-loss NODE` continues with what NODE has",
            n->name, h.in_sync, groups(h.in_sync), n->name);
    else if (h.held > 0)
        say(r,
            "node %s was given up; %" PRIu32 " %s may still need to know that, until they have "
            "enough copies again",
            n->name, h.held, groups(h.held));
    else
        say(r, "node %s was given up and holds nothing any more: `dog node remove %s` forgets it",
            n->name, n->name);
}

static void say_trouble(const struct reasons *r, const struct map_node *n)
{
    const struct map_node *by = map_node(r->m, n->trouble_by);
    const char *other = by ? by->name : "another node";
    if (n->trouble == MAP_TROUBLE_STORE)
        say(r,
            "node %s cannot write to its store (%s): it holds no data until that is mended; look "
            "at "
            "its disk and log",
            n->name, strerror(n->trouble_error));
    else if (n->trouble == MAP_TROUBLE_UNREACHED)
        say(r,
            "node %s cannot be reached by node %s, maybe others too: it holds no data until it "
            "can; "
            "look at the network between them",
            n->name, other);
    else
        say(r,
            "node %s cannot reach node %s, maybe others too: it holds no data until it can; look "
            "at "
            "its network",
            n->name, other);
}

/* Zones of nodes that could hold data if all were here. */
static unsigned count_zones(const struct map *m)
{
    unsigned zones = 0;
    for (uint32_t i = 0; i < m->node_count; i++) {
        bool first = map_node_takes_data(&m->nodes[i]);
        for (uint32_t k = 0; first && k < i; k++)
            first = !map_node_takes_data(&m->nodes[k]) ||
                    strcmp(m->nodes[k].zone, m->nodes[i].zone) != 0;
        zones += first;
    }
    return zones;
}

static void say_draining(const struct reasons *r, const struct map_node *n)
{
    struct map_node_health h;
    map_node_health(r->m, n->number, &h);
    unsigned zones = count_zones(r->m), copies = 0;
    for (uint32_t i = 0; i < r->m->pool_count; i++)
        copies = MAX(copies, (unsigned)r->m->pools[i].copies);
    if (h.held == 0)
        say(r, "node %s is empty: stop it and `dog node remove %s`, or `dog node drain %s --undo`",
            n->name, n->name, n->name);
    else if (zones < copies)
        say(r,
            "node %s is to be emptied, but %u copies need as many zones and the others have %u: "
            "add "
            "a node in another zone, or ask for fewer copies",
            n->name, copies, zones);
    else
        say(r, "node %s is being emptied: %" PRIu32 " %s left", n->name, h.held, groups(h.held));
}

static void say_pool(const struct reasons *r, const struct map_pool *p)
{
    unsigned zones = count_zones(r->m);
    if (zones < p->copies)
        say(r,
            "pool %s wants %u copies, but the nodes that take data are in %u %s: add nodes in "
            "other "
            "zones",
            p->name, p->copies, zones, zones == 1 ? "zone" : "zones");
}

static void say_groups(const struct reasons *r, const struct map_health *h)
{
    if (h->groups[MAP_GROUP_READ_ONLY] > 0)
        say(r,
            "%" PRIu32 " %s can be read, but writes wait: fewer copies are in sync than the pool "
            "requires for writing",
            h->groups[MAP_GROUP_READ_ONLY], groups(h->groups[MAP_GROUP_READ_ONLY]));
    if (h->groups[MAP_GROUP_DEGRADED] > 0)
        say(r, "%" PRIu32 " %s %s fewer copies than wanted; %" PRIu32 " %s being copied",
            h->groups[MAP_GROUP_DEGRADED], groups(h->groups[MAP_GROUP_DEGRADED]),
            h->groups[MAP_GROUP_DEGRADED] == 1 ? "has" : "have", h->joining,
            h->joining == 1 ? "is" : "are");
    if (h->groups[MAP_GROUP_MOVING] > 0)
        say(r, "%" PRIu32 " %s %s moving to where %s should be; nothing has to be done",
            h->groups[MAP_GROUP_MOVING], groups(h->groups[MAP_GROUP_MOVING]),
            h->groups[MAP_GROUP_MOVING] == 1 ? "is" : "are",
            h->groups[MAP_GROUP_MOVING] == 1 ? "it" : "they");
}

typedef void node_reason(const struct reasons *r, const struct map_node *n);

static bool is_lost(const struct map_node *n)
{
    return n->state == MAP_NODE_LOST;
}

static bool is_away(const struct map_node *n)
{
    return n->session.value == 0 && !is_lost(n);
}

static bool is_troubled(const struct map_node *n)
{
    return n->trouble != MAP_TROUBLE_NONE;
}

static bool is_draining(const struct map_node *n)
{
    return n->state == MAP_NODE_DRAINING;
}

void map_health_reasons(const struct map *m, uint64_t wall_s,
                        void (*fn)(void *arg, const char *text), void *arg)
{
    static const struct {
        bool (*applies)(const struct map_node *n);
        node_reason *say;
    } of_nodes[] = {
        {is_lost, say_lost},
        {is_away, say_away},
        {is_troubled, say_trouble},
        {is_draining, say_draining},
    };
    struct reasons r = {.m = m, .wall_s = wall_s, .fn = fn, .arg = arg};
    struct map_health h;
    map_health(m, &h);
    for (size_t k = 0; k < ARRAY_SIZE(of_nodes); k++) {
        for (uint32_t i = 0; i < m->node_count; i++) {
            if (of_nodes[k].applies(&m->nodes[i]))
                of_nodes[k].say(&r, &m->nodes[i]);
        }
    }
    for (uint32_t i = 0; i < m->pool_count; i++)
        say_pool(&r, &m->pools[i]);
    say_groups(&r, &h);
}
