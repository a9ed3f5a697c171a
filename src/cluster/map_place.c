/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Placement (R5): which nodes hold a group. Weighted rendezvous hashing over zones, then over the
 * nodes of each chosen zone, with bounded load.
 *
 * P1 The copies of a group lie in different zones.
 * P2 No node holds more than max(ceil(share), 1.1 × share) groups of a pool, where share is what
 *    its weight entitles it to after no zone was given more than one copy of each group.
 * P3 A pure function of the map: the pool's other groups count as load, those without members as
 *    to come.
 *
 * A zone's probability to hold a copy (its inclusion, 0..1) follows its weight; the zones of one
 * group are drawn with these probabilities by Pareto sampling: the smallest (u/(1-u)) / (p/(1-p)),
 * u a hash of group and zone. As with plain rendezvous hashing only few groups change when a zone
 * comes or goes.
 *
 * The bound cannot paint itself into a corner: with T groups to place, each with k copies, into
 * zones that have room R, a solution exists as long as slack = sum of min(R, T) - kT is not
 * negative; and slack falls by one for each zone with R >= T that is left out. So at most `slack`
 * of those are left out.
 */
#include "cluster/map_internal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"

struct zone {
    uint64_t hash;
    double weight;    /* sum of its nodes */
    double inclusion; /* probability to hold a copy of a group */
    double score;     /* for the present group: the smallest are taken */
    uint64_t room;    /* copies that still fit */
    bool taken;
};

/* One per map_node, in the same order. */
struct place_node {
    uint32_t zone; /* index, UINT32_MAX: takes no data */
    uint32_t load, load_max;
};

struct place {
    const struct map *map;
    const struct map_pool *pool;
    struct zone *zones;
    uint32_t zone_count;
    struct place_node *nodes;
    uint32_t to_place; /* groups without members */
};

static double unit_hash(uint64_t a, uint64_t b)
{
    uint64_t h = hash_u64(a * 0x9e3779b97f4a7c15ULL + hash_u64(b));
    return ((double)(h >> 11) + 0.5) / 9007199254740992.0; /* 53 bits: 0 < u < 1 */
}

static void collect_zones(struct place *p)
{
    for (uint32_t i = 0; i < p->map->node_count; i++) {
        const struct map_node *n = &p->map->nodes[i];
        p->nodes[i].zone = UINT32_MAX;
        if (!map_node_takes_data(n))
            continue;
        uint64_t hash = hash_bytes(n->zone, strlen(n->zone));
        uint32_t z = 0;
        while (z < p->zone_count && p->zones[z].hash != hash)
            z++;
        if (z == p->zone_count)
            p->zones[p->zone_count++] = (struct zone){.hash = hash};
        p->zones[z].weight += n->weight;
        p->nodes[i].zone = z;
    }
}

/* Inclusions sum to `copies`, follow the weights, and none is above 1. */
static void set_inclusions(struct place *p, unsigned copies)
{
    double copies_left = copies, weight_left = 0;
    for (uint32_t z = 0; z < p->zone_count; z++)
        weight_left += p->zones[z].weight;
    bool again = true;
    while (again) {
        again = false;
        for (uint32_t z = 0; z < p->zone_count; z++) {
            struct zone *zone = &p->zones[z];
            if (zone->inclusion == 1 || zone->weight * copies_left < weight_left * (1 - 1e-12))
                continue;
            zone->inclusion = 1;
            copies_left -= 1;
            weight_left -= zone->weight;
            again = true;
        }
    }
    for (uint32_t z = 0; z < p->zone_count; z++) {
        if (p->zones[z].inclusion != 1)
            p->zones[z].inclusion = p->zones[z].weight * copies_left / weight_left;
    }
}

static void set_limits(struct place *p)
{
    for (uint32_t i = 0; i < p->map->node_count; i++) {
        struct place_node *n = &p->nodes[i];
        if (n->zone == UINT32_MAX)
            continue;
        const struct zone *z = &p->zones[n->zone];
        double share = z->inclusion * p->pool->group_count * p->map->nodes[i].weight / z->weight;
        n->load_max = (uint32_t)fmax(ceil(share - 1e-6), floor(share * 1.1));
    }
}

static void count_load(struct place *p, const struct map_group *g, const uint16_t *set,
                       unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        const struct map_node *n = map_node(p->map, set[i]);
        if (n)
            p->nodes[n - p->map->nodes].load++;
    }
}

static void count_loads(struct place *p, uint32_t except_group)
{
    for (uint32_t i = 0; i < p->pool->group_count; i++) {
        uint32_t number = p->pool->group_base + i;
        const struct map_group *g = &p->map->groups[number];
        if (number == except_group || g->in_sync_count + g->joining_count == 0) {
            p->to_place++;
            continue;
        }
        count_load(p, g, g->in_sync, g->in_sync_count);
        count_load(p, g, g->joining, g->joining_count);
    }
}

void place_free(struct place *p)
{
    if (!p)
        return;
    free(p->zones);
    free(p->nodes);
    free(p);
}

static int place_make(const struct map *m, const struct map_pool *pool, uint8_t copies,
                      struct place **ret)
{
    if (copies == 0 || copies > MAP_GROUP_MEMBER_MAX)
        return -EINVAL;
    struct place *p = calloc(1, sizeof(*p));
    if (!p)
        return -ENOMEM;
    *p = (struct place){.map = m, .pool = pool};
    p->zones = calloc(m->node_count + 1, sizeof(*p->zones));
    p->nodes = calloc(m->node_count + 1, sizeof(*p->nodes));
    int r = p->zones && p->nodes ? 0 : -ENOMEM;
    if (r == 0) {
        collect_zones(p);
        r = p->zone_count < copies ? -ENOSPC : 0;
    }
    if (r < 0) {
        place_free(p);
        return r;
    }
    set_inclusions(p, copies);
    set_limits(p);
    *ret = p;
    return 0;
}

int place_new(const struct map *m, const struct map_pool *pool, uint32_t except_group,
              uint8_t copies, struct place **ret)
{
    int r = place_make(m, pool, copies, ret);
    if (r == 0)
        count_loads(*ret, except_group);
    return r;
}

int place_new_empty(const struct map *m, const struct map_pool *pool, uint8_t copies,
                    struct place **ret)
{
    int r = place_make(m, pool, copies, ret);
    if (r == 0)
        (*ret)->to_place = pool->group_count;
    return r;
}

/* Room and score of every zone for this group; the slack that the header comment defines. */
static int64_t score_zones(struct place *p, uint32_t group, unsigned copies)
{
    for (uint32_t z = 0; z < p->zone_count; z++) {
        struct zone *zone = &p->zones[z];
        double u = unit_hash(zone->hash, group);
        zone->room = 0;
        zone->taken = false;
        if (copies == 1)
            zone->score = -log(u) / zone->weight; /* exact for a single draw */
        else
            zone->score = zone->inclusion >= 1 ? 0 : u / (1 - u) * (1 / zone->inclusion - 1);
    }
    for (uint32_t i = 0; i < p->map->node_count; i++) {
        const struct place_node *n = &p->nodes[i];
        if (n->zone != UINT32_MAX && n->load < n->load_max)
            p->zones[n->zone].room += n->load_max - n->load;
    }
    int64_t slack = -(int64_t)copies * p->to_place;
    for (uint32_t z = 0; z < p->zone_count; z++)
        slack += (int64_t)MIN(p->zones[z].room, p->to_place);
    return slack;
}

enum zone_want { WANT_OPEN, WANT_FULL_ROOM, WANT_ANY };

static struct zone *best_zone(struct place *p, enum zone_want want)
{
    struct zone *best = NULL;
    for (uint32_t z = 0; z < p->zone_count; z++) {
        struct zone *zone = &p->zones[z];
        if (zone->taken || (want == WANT_OPEN && zone->room == 0) ||
            (want == WANT_FULL_ROOM && zone->room < p->to_place))
            continue;
        if (!best || zone->score < best->score)
            best = zone;
    }
    return best;
}

static struct zone *worst_taken(struct place *p)
{
    struct zone *worst = NULL;
    for (uint32_t z = 0; z < p->zone_count; z++) {
        struct zone *zone = &p->zones[z];
        if (zone->taken && zone->room < p->to_place && (!worst || zone->score > worst->score))
            worst = zone;
    }
    return worst;
}

static void take_zones(struct place *p, uint32_t group, unsigned copies)
{
    int64_t slack = score_zones(p, group, copies);
    for (unsigned i = 0; i < copies; i++) {
        struct zone *zone = best_zone(p, WANT_OPEN);
        if (!zone)
            zone = best_zone(p, WANT_ANY); /* only when the map was already beyond the bound */
        zone->taken = true;
    }
    int64_t left_out = 0;
    for (uint32_t z = 0; z < p->zone_count; z++)
        left_out += !p->zones[z].taken && p->zones[z].room >= p->to_place;
    while (left_out > MAX(slack, 0)) {
        struct zone *in = best_zone(p, WANT_FULL_ROOM), *out = worst_taken(p);
        if (!in || !out)
            break;
        in->taken = true;
        out->taken = false;
        left_out--;
    }
}

/* The zone's node for this group: the best score with room, or with the least load if none has. */
static uint32_t take_node(const struct place *p, uint32_t zone, uint32_t group, double *ret_score)
{
    uint32_t best = UINT32_MAX;
    double best_score = 0;
    for (int bounded = 1; bounded >= 0 && best == UINT32_MAX; bounded--) {
        for (uint32_t i = 0; i < p->map->node_count; i++) {
            if (p->nodes[i].zone != zone || (bounded && p->nodes[i].load >= p->nodes[i].load_max))
                continue;
            const struct map_node *n = &p->map->nodes[i];
            double u = unit_hash(hash_bytes(n->uuid.bytes, sizeof(n->uuid.bytes)), group);
            double score = -log(u) / n->weight;
            if (best == UINT32_MAX || score < best_score) {
                best = i;
                best_score = score;
            }
        }
    }
    ASSERT(best != UINT32_MAX);
    *ret_score = best_score;
    return best;
}

void place_group(struct place *p, uint32_t group, uint8_t copies, uint16_t *ret_nodes)
{
    ASSERT(p->to_place > 0 && p->zone_count >= copies);
    take_zones(p, group, copies);
    double scores[MAP_GROUP_MEMBER_MAX];
    unsigned count = 0;
    for (uint32_t z = 0; z < p->zone_count; z++) {
        if (!p->zones[z].taken)
            continue;
        double score;
        uint32_t index = take_node(p, z, group, &score);
        p->nodes[index].load++;
        /* Sorted by the node's own score, so that primaries spread by weight too. */
        unsigned at = count++;
        for (; at > 0 && scores[at - 1] > score; at--) {
            scores[at] = scores[at - 1];
            ret_nodes[at] = ret_nodes[at - 1];
        }
        scores[at] = score;
        ret_nodes[at] = p->map->nodes[index].number;
    }
    ASSERT(count == copies);
    p->to_place--;
}

int map_place(const struct map *m, uint32_t group, uint8_t copies, uint16_t *ret_nodes)
{
    for (uint32_t i = 0; i < m->pool_count; i++) {
        const struct map_pool *pool = &m->pools[i];
        if (group < pool->group_base || group - pool->group_base >= pool->group_count)
            continue;
        struct place *p;
        int r = place_new(m, pool, group, copies, &p);
        if (r < 0)
            return r;
        place_group(p, group, copies, ret_nodes);
        place_free(p);
        return 0;
    }
    return -ENOENT;
}
