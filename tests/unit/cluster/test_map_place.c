/* SPDX-License-Identifier: Apache-2.0 */
/* Placement: different zones, bounded load, few moves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include "base/err.h"
#include "members.h"

#define NODES_MAX 64

static unsigned zone_of(const struct map *m, uint16_t number)
{
    return (unsigned)strtoul(map_node(m, number)->zone + 1, NULL, 10);
}

/* What each node is entitled to: by weight, but no zone more than one copy of each group. */
static void expected_shares(const struct map *m, unsigned copies, double *ret)
{
    double zone_weight[NODES_MAX] = {0}, zone_share[NODES_MAX] = {0};
    for (uint32_t i = 0; i < m->node_count; i++)
        zone_weight[zone_of(m, m->nodes[i].number)] += m->nodes[i].weight;
    /* The factor f with sum of min(1, f × weight) = copies, by bisection: independent of the code.
     */
    double low = 0, high = 1e9;
    for (unsigned step = 0; step < 200; step++) {
        double f = (low + high) / 2, sum = 0;
        for (unsigned z = 0; z < NODES_MAX; z++)
            sum += fmin(1, f * zone_weight[z]);
        if (sum < copies)
            low = f;
        else
            high = f;
    }
    for (unsigned z = 0; z < NODES_MAX; z++)
        zone_share[z] = fmin(1, high * zone_weight[z]);
    for (uint32_t i = 0; i < m->node_count; i++) {
        unsigned z = zone_of(m, m->nodes[i].number);
        ret[i] = m->nodes[i].weight
                     ? zone_share[z] * m->group_count * m->nodes[i].weight / zone_weight[z]
                     : 0;
    }
}

static void check_placement(const struct map *m, unsigned copies)
{
    unsigned load[NODES_MAX] = {0};
    double share[NODES_MAX];
    for (uint32_t i = 0; i < m->group_count; i++) {
        const struct map_group *g = &m->groups[i];
        assert_int_equal(g->in_sync_count, copies);
        assert_int_equal(g->joining_count, 0);
        assert_int_equal(g->epoch.value, 1);
        assert_int_equal(g->last_full_count, copies);
        assert_memory_equal(g->in_sync, g->last_full, sizeof(g->in_sync));
        uint64_t zones = 0;
        for (unsigned c = 0; c < copies; c++) {
            zones |= 1ull << zone_of(m, g->in_sync[c]);
            load[map_node(m, g->in_sync[c]) - m->nodes]++;
        }
        assert_int_equal(__builtin_popcountll(zones), copies);
    }
    expected_shares(m, copies, share);
    for (uint32_t i = 0; i < m->node_count; i++) {
        double limit = fmax(ceil(share[i] - 1e-7), share[i] * 1.1);
        if (load[i] > limit + 1e-3)
            fail_msg("node %u holds %u groups, share %f", i, load[i], share[i]);
    }
}

static struct map *place(const struct map_member *members, unsigned count, uint8_t copies,
                         uint32_t groups)
{
    struct map_format f = make_format(copies, groups);
    struct map *m = NULL;
    int r = map_first(&f, members, count, &m);
    if (r < 0)
        fail_msg("map_first: %s", err_text(r));
    return m;
}

/* Up to five nodes in all divisions into zones, weights 0 to 2, one to three copies. */
static void test_exhaustive(void **state)
{
    unsigned placed = 0, refused = 0;
    for (unsigned nodes = 1; nodes <= 4; nodes++) {
        unsigned zone_codes = 1u << (2 * nodes), weight_codes = (unsigned)pow(3, nodes);
        for (unsigned zc = 0; zc < zone_codes; zc++) {
            for (unsigned wc = 0; wc < weight_codes; wc++) {
                struct map_member members[4];
                unsigned zones = 0, w = wc;
                for (unsigned i = 0; i < nodes; i++, w /= 3) {
                    members[i] = make_member(i, zc >> (2 * i) & 3, w % 3 * 1024, 1);
                    zones |= (w % 3 ? 1u : 0u) << (zc >> (2 * i) & 3);
                }
                for (uint8_t copies = 1; copies <= 3; copies++) {
                    struct map_format f = make_format(copies, 8);
                    struct map *m = NULL;
                    int r = map_first(&f, members, nodes, &m);
                    if ((unsigned)__builtin_popcount(zones) < copies) {
                        assert_int_equal(r, -ENOSPC);
                        refused++;
                        continue;
                    }
                    assert_int_equal(r, 0);
                    check_placement(m, copies);
                    map_unref(m);
                    placed++;
                }
            }
        }
    }
    assert_true(placed > 10000 && refused > 10000);
}

static uint64_t random_state;

static uint64_t next_random(uint64_t below)
{
    random_state += 0x9e3779b97f4a7c15ull;
    return hash_u64(random_state) % below;
}

static void test_random_weights(void **state)
{
    for (unsigned round = 0; round < 300; round++) {
        random_state = round;
        unsigned nodes = 3 + (unsigned)next_random(40), zones = 3 + (unsigned)next_random(10);
        uint8_t copies = (uint8_t)(1 + next_random(MIN(MIN(zones, nodes), 4u)));
        struct map_member members[NODES_MAX];
        for (unsigned i = 0; i < nodes; i++)
            members[i] = make_member(i, i < copies ? i : (unsigned)next_random(zones),
                                     (uint32_t)(1 + next_random(round % 3 ? 8 : 4096)), 1);
        static const uint32_t groups[] = {16, 64, 512, 1024};
        struct map *m = place(members, nodes, copies, groups[next_random(4)]);
        check_placement(m, copies);
        map_unref(m);
    }
}

/* Where the bound leaves no room to spare, the last groups still find their zones. */
static void test_tight(void **state)
{
    for (unsigned first_zone = 0; first_zone < 56; first_zone++) {
        struct map_member members[6];
        for (unsigned i = 0; i < 6; i++)
            members[i] = make_member(i, first_zone + i, 1024, 1);
        for (unsigned nodes = 3; nodes <= 6; nodes++) {
            for (uint8_t copies = 1; copies < nodes; copies++) {
                struct map *m = place(members, nodes, copies, nodes * 2);
                check_placement(m, copies);
                map_unref(m);
            }
        }
    }
}

/* The default: three equal nodes, and nine in three zones; primaries are spread, too. */
static void test_primaries(void **state)
{
    for (unsigned nodes = 3; nodes <= 9; nodes += 3) {
        struct map_member members[9];
        unsigned primaries[9] = {0};
        for (unsigned i = 0; i < nodes; i++)
            members[i] = make_member(i, i % 3, 1024, 1);
        struct map *m = place(members, nodes, 3, 0);
        assert_int_equal(m->group_count, 4096);
        check_placement(m, 3);
        for (uint32_t i = 0; i < m->group_count; i++)
            primaries[m->groups[i].in_sync[0]]++;
        for (unsigned i = 0; i < nodes; i++)
            assert_true(primaries[i] > 0.85 * 4096 / nodes && primaries[i] < 1.15 * 4096 / nodes);
        map_unref(m);
    }
}

/* As with rendezvous hashing, one node more moves about its share, not everything. */
static void test_few_moves(void **state)
{
    struct map_member members[10];
    for (unsigned i = 0; i < 10; i++)
        members[i] = make_member(i, i, 1024, 1);
    struct map *a = place(members, 9, 3, 4096), *b = place(members, 10, 3, 4096);
    unsigned moved = 0;
    for (uint32_t i = 0; i < a->group_count; i++) {
        for (unsigned c = 0; c < 3; c++)
            moved += !map_group_in_sync(&b->groups[i], a->groups[i].in_sync[c]);
    }
    assert_true(moved < 2 * 3 * 4096 / 10); /* 0.1 of all copies at least have to */
    map_unref(a);
    map_unref(b);
}

/* A single group, with the others as load. */
static void test_one_group(void **state)
{
    struct map_member members[5];
    for (unsigned i = 0; i < 5; i++)
        members[i] = make_member(i, i, 1024, 1);
    struct map *m = place(members, 5, 3, 100);
    for (uint32_t group = 0; group < 100; group++) {
        uint16_t nodes[3];
        assert_int_equal(map_place(m, group, 3, nodes), 0);
        struct map_group *g = &m->groups[group];
        memcpy(g->in_sync, nodes, sizeof(nodes));
        memcpy(g->last_full, nodes, sizeof(nodes));
        check_placement(m, 3);
    }
    uint16_t nodes[MAP_GROUP_MEMBER_MAX];
    assert_int_equal(map_place(m, 100, 3, nodes), -ENOENT);
    assert_int_equal(map_place(m, 0, 6, nodes), -ENOSPC);
    assert_int_equal(map_place(m, 0, 0, nodes), -EINVAL);
    m->nodes[0].state = m->nodes[1].state = MAP_NODE_DRAINING;
    assert_int_equal(map_place(m, 0, 3, nodes), 0);
    assert_true(nodes[0] >= 2 && nodes[1] >= 2 && nodes[2] >= 2);
    assert_int_equal(map_place(m, 0, 4, nodes), -ENOSPC);
    map_unref(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exhaustive), cmocka_unit_test(test_random_weights),
        cmocka_unit_test(test_tight),      cmocka_unit_test(test_primaries),
        cmocka_unit_test(test_few_moves),  cmocka_unit_test(test_one_group),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
