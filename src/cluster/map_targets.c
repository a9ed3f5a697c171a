/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where each group should be: placed anew from nothing whenever the nodes or pools that it depends
 * on differ, which is seldom, while maps come often.
 *
 * MT1 The targets are those that place_group() gives for an empty map with the same nodes and
 *     pools, whatever was asked before.
 */
#include "cluster/map_targets.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "cluster/map_internal.h"

struct map_targets *map_targets_new(void)
{
    struct map_targets *t = calloc(1, sizeof(*t));
    if (t)
        enc_init(&t->basis);
    return t;
}

void map_targets_free(struct map_targets *t)
{
    if (!t)
        return;
    enc_done(&t->basis);
    free(t->counts);
    free(t->nodes);
    free(t);
}

static void encode_basis(const struct map *m, struct enc *e)
{
    enc_u32(e, m->group_count);
    for (uint32_t i = 0; i < m->pool_count; i++) {
        enc_u32(e, m->pools[i].group_base);
        enc_u32(e, m->pools[i].group_count);
        enc_u8(e, m->pools[i].copies);
    }
    for (uint32_t i = 0; i < m->node_count; i++) {
        const struct map_node *n = &m->nodes[i];
        if (!map_node_takes_data(n))
            continue;
        enc_u16(e, n->number);
        enc_bytes(e, n->uuid.bytes, sizeof(n->uuid.bytes));
        enc_u32(e, n->weight);
        enc_str(e, n->zone);
    }
}

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

/* As many copies as there are zones for. */
static int place_pool(struct map_targets *t, const struct map *m, const struct map_pool *pool,
                      unsigned zones)
{
    struct place *place;
    uint8_t copies = (uint8_t)MIN((unsigned)pool->copies, zones);
    if (copies == 0)
        return 0;
    int r = place_new_empty(m, pool, copies, &place);
    if (r < 0)
        return r;
    for (uint32_t i = pool->group_base; i < pool->group_base + pool->group_count; i++) {
        place_group(place, i, copies, t->nodes[i]);
        t->counts[i] = copies;
    }
    place_free(place);
    return 0;
}

static int place_all(struct map_targets *t, const struct map *m)
{
    unsigned zones = count_zones(m);
    t->group_count = m->group_count;
    t->counts = calloc(m->group_count + 1, sizeof(*t->counts));
    t->nodes = calloc(m->group_count + 1, sizeof(*t->nodes));
    int r = t->counts && t->nodes ? 0 : -ENOMEM;
    for (uint32_t i = 0; r == 0 && i < m->pool_count; i++)
        r = place_pool(t, m, &m->pools[i], zones);
    return r;
}

int map_targets_update(struct map_targets *t, const struct map *m)
{
    struct map_targets next = {.group_count = 0};
    enc_init(&next.basis);
    encode_basis(m, &next.basis);
    int r = next.basis.error;
    bool same = r == 0 && t->nodes && next.basis.length == t->basis.length &&
                memcmp(next.basis.data, t->basis.data, next.basis.length) == 0;
    if (r == 0 && !same)
        r = place_all(&next, m);
    if (r == 0 && !same) { /* from here on `next` holds what was there before */
        struct map_targets old = *t;
        *t = next;
        next = old;
    }
    enc_done(&next.basis);
    if (!same) {
        free(next.counts);
        free(next.nodes);
    }
    return r;
}
