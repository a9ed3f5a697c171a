/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The leader's pure functions: the first map, and the next one after something changed.
 *
 * N1 The version grows by one with each map.
 * N2 A group's epoch is the version at which its sets or the session of one of its members last
 *    changed (R6).
 * N3 A node keeps its number when its session or its registration is gone; its places go by R1
 *    (map_sets.c), or stay when recovery is off.
 * N4 A session that left the map never returns: members hold what the cluster store said after it
 *    held `now` (the caller's duty), and session ids are never reused.
 * N5 A node that was given up stays so: it has no session, and its store's uuid never enters again
 *    as long as the wish is kept, which outlives its place in the map.
 */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "cluster/map_internal.h"
#include "cluster/map_sets.h"
#include "cluster/map_trouble.h"

#define GROUP_COUNT_DEFAULT 4096u
#define OBJECT_SIZE_DEFAULT (4u << 20)
#define OBJECT_SIZE_MIN     4096u
#define OBJECT_SIZE_MAX     (64u << 20)
#define POOL_NAME_DEFAULT   "default"

static int check_format(const struct map_format *f)
{
    if (f->copies == 0 || f->copies > MAP_GROUP_MEMBER_MAX || f->min_copies > f->copies)
        return -EINVAL;
    if (f->group_count > MAP_GROUP_COUNT_MAX || uuid_is_null(&f->cluster))
        return -EINVAL;
    if (f->object_size != 0 &&
        (f->object_size < OBJECT_SIZE_MIN || f->object_size > OBJECT_SIZE_MAX ||
         (f->object_size & (f->object_size - 1)) != 0))
        return -EINVAL;
    return 0;
}

/* Room for `extra` more nodes. */
static int grow_nodes(struct map *m, unsigned extra)
{
    struct map_node *nodes = realloc(m->nodes, (m->node_count + extra + 1) * sizeof(*nodes));
    if (!nodes)
        return -ENOMEM;
    m->nodes = nodes;
    return 0;
}

static void append_node(struct map *m, const struct map_node *from)
{
    ASSERT(m->node_number_next <= UINT16_MAX);
    struct map_node *n = &m->nodes[m->node_count++];
    *n = *from;
    n->number = (uint16_t)m->node_number_next++;
    n->state = MAP_NODE_ACTIVE;
}

/* Numbers are given out in the order of names, so that equal input gives an equal map. */
static int compare_members(const void *a, const void *b)
{
    const struct map_member *const *x = a, *const *y = b;
    int order = strcmp((*x)->node.name, (*y)->node.name);
    return order ? order : memcmp((*x)->node.uuid.bytes, (*y)->node.uuid.bytes, 16);
}

/* The members that `m` does not list, sorted; *ret is owned. */
static int new_members(const struct map *m, const struct map_member *members, unsigned count,
                       const struct map_member ***ret, unsigned *ret_count)
{
    const struct map_member **list = calloc(count + 1, sizeof(*list));
    if (!list)
        return -ENOMEM;
    unsigned n = 0;
    for (unsigned i = 0; i < count; i++) {
        if (!map_node_by_uuid(m, &members[i].node.uuid))
            list[n++] = &members[i];
    }
    qsort(list, n, sizeof(*list), compare_members);
    *ret = list;
    *ret_count = n;
    return 0;
}

static void make_pool(struct map *m, const struct map_format *f)
{
    struct map_pool *p = &m->pools[0];
    *p = (struct map_pool){
        .id = 1,
        .copies = f->copies,
        .min_copies = f->min_copies ? f->min_copies : (uint8_t)(f->copies / 2 + 1),
        .group_count = m->group_count,
        .object_size = f->object_size ? f->object_size : OBJECT_SIZE_DEFAULT,
    };
    memcpy(p->name, POOL_NAME_DEFAULT, sizeof(POOL_NAME_DEFAULT));
    m->pool_count = 1;
}

static int place_all(struct map *m, uint8_t copies)
{
    struct place *place;
    int r = place_new(m, &m->pools[0], UINT32_MAX, copies, &place);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < m->group_count; i++) {
        struct map_group *g = &m->groups[i];
        place_group(place, i, copies, g->in_sync);
        g->in_sync_count = g->last_full_count = copies;
        memcpy(g->last_full, g->in_sync, sizeof(g->last_full));
        g->epoch.value = m->version;
    }
    place_free(place);
    return 0;
}

int map_first(const struct map_format *f, const struct map_member *members, unsigned count,
              struct map **ret)
{
    int r = check_format(f);
    if (r < 0)
        return r;
    if (count > MAP_NODE_COUNT_MAX)
        return -EINVAL;
    struct map *m = map_new();
    const struct map_member **list = NULL;
    unsigned list_count = 0;
    if (!m)
        return -ENOMEM;
    m->version = 1;
    m->cluster = f->cluster;
    memcpy(m->cluster_name, f->cluster_name, sizeof(m->cluster_name));
    m->cluster_name[sizeof(m->cluster_name) - 1] = '\0';
    m->group_count = f->group_count ? f->group_count : GROUP_COUNT_DEFAULT;
    m->groups = calloc(m->group_count, sizeof(*m->groups));
    m->pools = calloc(1, sizeof(*m->pools));
    r = m->groups && m->pools ? grow_nodes(m, count) : -ENOMEM;
    if (r == 0)
        r = new_members(m, members, count, &list, &list_count);
    if (r == 0) {
        for (unsigned i = 0; i < list_count; i++)
            append_node(m, &list[i]->node);
        make_pool(m, f);
        r = place_all(m, f->copies);
    }
    free(list);
    if (r < 0) {
        map_unref(m);
        return r;
    }
    *ret = m;
    return 0;
}

static const struct map_member *find_member(const struct map_inputs *in, const struct uuid *u)
{
    for (unsigned i = 0; i < in->member_count; i++) {
        if (uuid_equal(&in->members[i].node.uuid, u))
            return &in->members[i];
    }
    return NULL;
}

static const struct map_node_wish *find_wish(const struct map_inputs *in, const struct uuid *u)
{
    for (unsigned i = 0; i < in->node_wish_count; i++) {
        if (uuid_equal(&in->node_wishes[i].uuid, u))
            return &in->node_wishes[i];
    }
    return NULL;
}

static bool is_listed(const uint16_t *numbers, unsigned count, uint16_t number)
{
    for (unsigned i = 0; i < count; i++) {
        if (numbers[i] == number)
            return true;
    }
    return false;
}

/* The state that the wishes give; lost stays lost (N5). */
static enum map_node_state wished_state(const struct map_node *n, const struct map_node_wish *wish)
{
    if (n->state == MAP_NODE_LOST || (wish && wish->lost))
        return MAP_NODE_LOST;
    return wish && (wish->drain || wish->remove) ? MAP_NODE_DRAINING : MAP_NODE_ACTIVE;
}

static void update_session(struct map_node *n, const struct map_inputs *in,
                           const struct map_member *member)
{
    struct session session = {member ? member->node.session.value : 0};
    if (n->state == MAP_NODE_LOST)
        session.value = 0;
    if (n->session.value != session.value) {
        n->inexact = session.value != 0 && member->inexact;
        n->away_since = session.value != 0 ? 0 : in->wall_s;
    }
    n->session = session;
}

/* Away, or of no use, for too long: until it is back and well. */
static void update_out(struct map *m, const struct map_inputs *in)
{
    for (uint32_t i = 0; i < m->node_count; i++) {
        struct map_node *n = &m->nodes[i];
        bool well = n->session.value != 0 && n->trouble == MAP_TROUBLE_NONE;
        n->out = !well && (n->out || is_listed(in->out, in->out_count, n->number));
    }
}

static void update_texts(struct map_node *n, const struct map_node *from)
{
    memcpy(n->name, from->name, sizeof(n->name));
    memcpy(n->zone, from->zone, sizeof(n->zone));
    memcpy(n->address, from->address, sizeof(n->address));
    memcpy(n->admin, from->admin, sizeof(n->admin));
    memcpy(n->nbd, from->nbd, sizeof(n->nbd));
}

/* Brings one node up to date with its registration and the wishes. */
static void update_node(struct map_node *n, const struct map_inputs *in)
{
    const struct map_member *member = find_member(in, &n->uuid);
    const struct map_node_wish *wish = find_wish(in, &n->uuid);
    n->state = wished_state(n, wish);
    update_session(n, in, member);
    if (member) {
        update_texts(n, &member->node);
        n->weight = member->node.weight;
    }
    if (wish && wish->has_weight)
        n->weight = wish->weight;
}

static bool nodes_differ(const struct map_node *a, const struct map_node *b)
{
    return a->session.value != b->session.value || a->state != b->state || a->weight != b->weight ||
           a->inexact != b->inexact || a->out != b->out || a->trouble != b->trouble ||
           a->trouble_by != b->trouble_by || a->trouble_error != b->trouble_error ||
           a->away_since != b->away_since || strcmp(a->name, b->name) != 0 ||
           strcmp(a->zone, b->zone) != 0 || strcmp(a->address, b->address) != 0 ||
           strcmp(a->admin, b->admin) != 0 || strcmp(a->nbd, b->nbd) != 0;
}

/* A registration without a session is not a node of the cluster yet; one given up never will. */
static bool may_enter(const struct map *m, const struct map_inputs *in,
                      const struct map_member *member)
{
    const struct map_node_wish *wish = find_wish(in, &member->node.uuid);
    return member->node.session.value != 0 && !(wish && wish->lost) &&
           m->node_count < MAP_NODE_COUNT_MAX && m->node_number_next <= UINT16_MAX;
}

static int next_nodes(struct map *m, const struct map_inputs *in)
{
    const struct map_member **list = NULL;
    unsigned list_count = 0;
    for (uint32_t i = 0; i < m->node_count; i++)
        update_node(&m->nodes[i], in);
    int r = new_members(m, in->members, in->member_count, &list, &list_count);
    if (r == 0)
        r = grow_nodes(m, list_count);
    for (unsigned i = 0; r == 0 && i < list_count; i++) {
        if (!may_enter(m, in, list[i]))
            continue;
        append_node(m, &list[i]->node);
        struct map_node *n = &m->nodes[m->node_count - 1];
        n->inexact = list[i]->inexact;
        update_node(n, in);
    }
    free(list);
    return r;
}

static void next_pools(struct map *m, const struct map_inputs *in)
{
    for (unsigned i = 0; i < in->pool_wish_count; i++) {
        const struct map_pool_wish *w = &in->pool_wishes[i];
        for (uint32_t k = 0; k < m->pool_count; k++) {
            struct map_pool *p = &m->pools[k];
            if (p->id != w->id || w->copies == 0 || w->copies > MAP_GROUP_MEMBER_MAX ||
                w->min_copies == 0 || w->min_copies > w->copies)
                continue;
            p->copies = w->copies;
            p->min_copies = w->min_copies;
        }
    }
}

/* In any set of any group, last_full too. */
static bool is_needed(const struct map *m, uint16_t node)
{
    for (uint32_t i = 0; i < m->group_count; i++) {
        const struct map_group *g = &m->groups[i];
        if (map_group_has(g, node) || is_listed(g->last_full, g->last_full_count, node))
            return true;
    }
    return false;
}

/* Nodes that are to be removed, hold nothing and do not run leave the map. */
static void remove_nodes(struct map *m, const struct map_inputs *in)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < m->node_count; i++) {
        const struct map_node *n = &m->nodes[i];
        const struct map_node_wish *wish = find_wish(in, &n->uuid);
        if (!wish || !wish->remove || n->session.value != 0 || i - kept >= MAP_REMOVALS_MAX ||
            is_needed(m, n->number))
            m->nodes[kept++] = *n;
    }
    m->node_count = kept;
}

static bool heads_differ(const struct map *a, const struct map *b)
{
    if (a->node_count != b->node_count)
        return true;
    for (uint32_t i = 0; i < a->node_count; i++) {
        if (a->nodes[i].number != b->nodes[i].number || nodes_differ(&a->nodes[i], &b->nodes[i]))
            return true;
    }
    for (uint32_t i = 0; i < a->pool_count; i++) {
        if (a->pools[i].copies != b->pools[i].copies ||
            a->pools[i].min_copies != b->pools[i].min_copies)
            return true;
    }
    return false;
}

/* Recovery is off: places stay, and only sessions advance epochs (R6). */
static void advance_epochs(const struct map *now, struct map *m)
{
    for (uint32_t i = 0; i < now->node_count; i++) {
        const struct map_node *old = &now->nodes[i], *n = map_node(m, old->number);
        if (n->session.value == old->session.value)
            continue;
        for (uint32_t k = 0; k < m->group_count; k++) {
            if (map_group_has(&m->groups[k], n->number))
                m->groups[k].epoch.value = m->version;
        }
    }
}

int map_next(const struct map *now, const struct map_inputs *in, struct map **ret)
{
    *ret = NULL;
    if (now->version == 0)
        return 0;
    struct map *m = map_clone(now);
    if (!m)
        return -ENOMEM;
    m->version++;
    bool sets_changed = false;
    int r = next_nodes(m, in);
    if (r == 0)
        r = map_next_troubles(m, in);
    update_out(m, in);
    next_pools(m, in);
    if (r == 0 && in->recovery == MAP_RECOVERY_ON)
        r = map_next_sets(now, in, m, &sets_changed);
    else if (r == 0)
        advance_epochs(now, m);
    if (r == 0)
        remove_nodes(m, in);
    if (r < 0 || (!sets_changed && !heads_differ(now, m))) {
        map_unref(m);
        return r;
    }
    *ret = m;
    return 0;
}
