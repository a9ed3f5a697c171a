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
 */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "cluster/map_internal.h"
#include "cluster/map_sets.h"

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

static bool set_text(char *to, const char *from, size_t size)
{
    if (strcmp(to, from) == 0)
        return false;
    memcpy(to, from, size);
    return true;
}

/* Brings one node up to date with its registration; true when anything differed. */
static bool update_node(struct map_node *n, const struct map_member *member)
{
    bool changed = false;
    struct session session = {member ? member->node.session.value : 0};
    if (n->session.value != session.value) {
        n->session = session;
        n->inexact = member && session.value != 0 && member->inexact;
        changed = true;
    }
    if (!member)
        return changed;
    const struct map_node *from = &member->node;
    changed |= n->weight != from->weight;
    n->weight = from->weight;
    changed |= set_text(n->name, from->name, sizeof(n->name));
    changed |= set_text(n->zone, from->zone, sizeof(n->zone));
    changed |= set_text(n->address, from->address, sizeof(n->address));
    changed |= set_text(n->admin, from->admin, sizeof(n->admin));
    changed |= set_text(n->nbd, from->nbd, sizeof(n->nbd));
    return changed;
}

static int next_nodes(struct map *m, const struct map_inputs *in, bool *changed)
{
    const struct map_member **list = NULL;
    unsigned list_count = 0;
    for (uint32_t i = 0; i < m->node_count; i++)
        *changed |= update_node(&m->nodes[i], find_member(in, &m->nodes[i].uuid));
    int r = new_members(m, in->members, in->member_count, &list, &list_count);
    if (r == 0)
        r = grow_nodes(m, list_count);
    for (unsigned i = 0; r == 0 && i < list_count; i++) {
        /* A registration without a session is not a node of the cluster yet. */
        if (list[i]->node.session.value == 0 || m->node_count >= MAP_NODE_COUNT_MAX ||
            m->node_number_next > UINT16_MAX)
            continue;
        append_node(m, &list[i]->node);
        m->nodes[m->node_count - 1].inexact = list[i]->inexact;
        *changed = true;
    }
    free(list);
    return r;
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
    bool nodes_changed = false, sets_changed = false;
    int r = next_nodes(m, in, &nodes_changed);
    if (r == 0 && in->recovery == MAP_RECOVERY_ON)
        r = map_next_sets(now, in, m, &sets_changed);
    else if (r == 0)
        advance_epochs(now, m);
    if (r < 0 || (!nodes_changed && !sets_changed)) {
        map_unref(m);
        return r;
    }
    *ret = m;
    return 0;
}
