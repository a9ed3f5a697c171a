/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cluster map as a value: life and look-ups.
 *
 * M1 Once a map was shared (a second reference) nobody changes it; a changed map is a clone.
 * M2 Nodes ascend by number and numbers are below node_number_next.
 */
#include "cluster/map.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"

struct map *map_new(void)
{
    struct map *m = calloc(1, sizeof(*m));
    if (m)
        m->references = 1;
    return m;
}

static void *copy_array(const void *from, size_t count, size_t size)
{
    void *p = calloc(count ? count : 1, size);
    if (p && count)
        memcpy(p, from, count * size);
    return p;
}

struct map *map_clone(const struct map *m)
{
    struct map *copy = map_new();
    if (!copy)
        return NULL;
    *copy = *m;
    copy->references = 1;
    copy->nodes = copy_array(m->nodes, m->node_count, sizeof(*m->nodes));
    copy->pools = copy_array(m->pools, m->pool_count, sizeof(*m->pools));
    copy->groups = copy_array(m->groups, m->group_count, sizeof(*m->groups));
    if (!copy->nodes || !copy->pools || !copy->groups) {
        map_unref(copy);
        return NULL;
    }
    return copy;
}

struct map *map_ref(struct map *m)
{
    ASSERT(m->references > 0);
    m->references++;
    return m;
}

void map_unref(struct map *m)
{
    if (!m)
        return;
    ASSERT(m->references > 0);
    if (--m->references > 0)
        return;
    free(m->nodes);
    free(m->pools);
    free(m->groups);
    free(m);
}

const struct map_node *map_node(const struct map *m, uint16_t number)
{
    size_t low = 0, high = m->node_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (m->nodes[middle].number < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low < m->node_count && m->nodes[low].number == number ? &m->nodes[low] : NULL;
}

const struct map_node *map_node_by_uuid(const struct map *m, const struct uuid *u)
{
    for (uint32_t i = 0; i < m->node_count; i++) {
        if (uuid_equal(&m->nodes[i].uuid, u))
            return &m->nodes[i];
    }
    return NULL;
}

const struct map_node *map_node_by_session(const struct map *m, struct session s)
{
    if (s.value == 0)
        return NULL;
    for (uint32_t i = 0; i < m->node_count; i++) {
        if (m->nodes[i].session.value == s.value)
            return &m->nodes[i];
    }
    return NULL;
}

const struct map_node *map_node_by_name(const struct map *m, const char *name)
{
    for (uint32_t i = 0; i < m->node_count; i++) {
        if (strcmp(m->nodes[i].name, name) == 0)
            return &m->nodes[i];
    }
    return NULL;
}

const struct map_pool *map_pool_by_name(const struct map *m, const char *name)
{
    for (uint32_t i = 0; i < m->pool_count; i++) {
        if (strcmp(m->pools[i].name, name) == 0)
            return &m->pools[i];
    }
    return NULL;
}

const struct map_pool *map_pool(const struct map *m, uint16_t id)
{
    for (uint32_t i = 0; i < m->pool_count; i++) {
        if (m->pools[i].id == id)
            return &m->pools[i];
    }
    return NULL;
}

static bool set_has(const uint16_t *set, unsigned count, uint16_t node)
{
    for (unsigned i = 0; i < count; i++) {
        if (set[i] == node)
            return true;
    }
    return false;
}

bool map_group_in_sync(const struct map_group *g, uint16_t node)
{
    return set_has(g->in_sync, g->in_sync_count, node);
}

bool map_group_has(const struct map_group *g, uint16_t node)
{
    return map_group_in_sync(g, node) || set_has(g->joining, g->joining_count, node);
}

bool map_node_takes_data(const struct map_node *n)
{
    return n->weight > 0 && n->state == MAP_NODE_ACTIVE && !n->out;
}

uint32_t map_shard_count(const struct map *m)
{
    return (m->group_count + MAP_SHARD_GROUPS - 1) / MAP_SHARD_GROUPS;
}
