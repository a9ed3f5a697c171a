/* SPDX-License-Identifier: Apache-2.0 */
/* What the map's health says in a number of situations: counts, and the sentences that an
 * administrator reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "cluster/map_health.h"
#include "members.h"

#define GROUPS 10
#define NOW_S  1000000

/* Nodes n000 to n003 in zones of their own; groups on 0, 1 and 2, three copies, two at least. */
static struct map *make_map(void)
{
    struct map_member members[4];
    struct map *m;
    for (unsigned i = 0; i < 4; i++)
        members[i] = make_member(i, i, 1024, 100 + i);
    struct map_format f = make_format(3, GROUPS);
    assert_int_equal(map_first(&f, members, 4, &m), 0);
    for (uint32_t g = 0; g < GROUPS; g++)
        m->groups[g] = (struct map_group){.epoch = {1},
                                          .in_sync_count = 3,
                                          .in_sync = {0, 1, 2},
                                          .last_full_count = 3,
                                          .last_full = {0, 1, 2}};
    return m;
}

static void die(struct map *m, uint16_t node)
{
    m->nodes[node].session.value = 0;
    m->nodes[node].away_since = NOW_S - 300;
}

static void set_in_sync(struct map *m, uint32_t group, uint8_t count, uint16_t a, uint16_t b)
{
    struct map_group *g = &m->groups[group];
    memset(g->in_sync, 0, sizeof(g->in_sync));
    g->in_sync[0] = a;
    g->in_sync[1] = count > 1 ? b : 0;
    g->in_sync_count = count;
}

static void test_groups(void **state)
{
    struct map *m = make_map();
    struct map_health h;
    map_health(m, &h);
    assert_int_equal(h.groups[MAP_GROUP_FULL], GROUPS);
    assert_true(h.nodes_live == 4 && h.joining == 0 && map_health_good(&h));
    /* one of each */
    m->groups[0].joining[m->groups[0].joining_count++] = 3;
    set_in_sync(m, 1, 2, 0, 1);
    set_in_sync(m, 2, 1, 0, 0);
    assert_int_equal(map_group_health(m, 0), MAP_GROUP_MOVING);
    assert_int_equal(map_group_health(m, 1), MAP_GROUP_DEGRADED);
    assert_int_equal(map_group_health(m, 2), MAP_GROUP_READ_ONLY);
    die(m, 2); /* in sync of the others, not dropped yet: writes wait for it */
    assert_int_equal(map_group_health(m, 1), MAP_GROUP_DEGRADED);
    assert_int_equal(map_group_health(m, 3), MAP_GROUP_READ_ONLY);
    die(m, 0);
    assert_int_equal(map_group_health(m, 2), MAP_GROUP_WAITING);
    m->nodes[0].state = MAP_NODE_LOST;
    assert_int_equal(map_group_health(m, 2), MAP_GROUP_LOST);
    map_health(m, &h);
    assert_int_equal(h.groups[MAP_GROUP_LOST], 1);
    assert_int_equal(h.groups[MAP_GROUP_READ_ONLY], 9);
    assert_true(h.nodes_live == 2 && h.nodes_away == 1 && h.nodes_lost == 1 && h.joining == 1);
    assert_false(map_health_good(&h));
    map_unref(m);
}

static void test_nodes(void **state)
{
    struct map *m = make_map();
    struct map_node_health h;
    map_node_health(m, 1, &h);
    assert_true(h.in_sync == GROUPS && h.joining == 0 && h.only == 0 && h.waited_for == 0 &&
                h.held == GROUPS);
    map_node_health(m, 3, &h);
    assert_true(h.in_sync == 0 && h.held == 0);
    m->groups[4].joining[m->groups[4].joining_count++] = 3;
    map_node_health(m, 3, &h);
    assert_true(h.joining == 1 && h.held == 1);
    set_in_sync(m, 2, 1, 1, 0);
    map_node_health(m, 1, &h);
    assert_true(h.only == 1 && h.waited_for == 0);
    die(m, 1);
    map_node_health(m, 1, &h);
    assert_true(h.only == 1 && h.waited_for == 1);
    map_node_health(m, 0, &h);
    assert_true(h.in_sync == GROUPS - 1 && h.held == GROUPS); /* last_full lists it still */
    map_unref(m);
}

struct said {
    char text[16 * MAP_REASON_SIZE];
    unsigned count;
};

static void collect(void *arg, const char *text)
{
    struct said *s = arg;
    s->count++;
    assert_true(strlen(text) + 1 < MAP_REASON_SIZE);
    strcat(s->text, text);
    strcat(s->text, "\n");
}

/* `count` reasons, among them one that has these words. */
static void expect(struct map *m, unsigned count, const char *words)
{
    struct said s = {.count = 0};
    map_health_reasons(m, NOW_S, collect, &s);
    if (!strstr(s.text, words) || s.count != count)
        fail_msg("%u reasons, \"%s\" wanted, said was:\n%s", count, words, s.text);
}

static void test_reasons_of_nodes(void **state)
{
    struct map *m = make_map();
    expect(m, 0, "");
    die(m, 2);
    expect(m, 2, "Node n002 is away for 5 minutes; writes to 10 groups wait");
    for (uint32_t g = 0; g < GROUPS; g++)
        set_in_sync(m, g, 2, 0, 1);
    expect(m, 2, "Node n002 is away for 5 minutes; its groups have a copy less");
    expect(m, 2, "10 groups have fewer copies than wanted; 0 are being copied");
    m->nodes[2].out = true;
    m->nodes[2].away_since = NOW_S - 3 * 3600;
    expect(m, 2, "Node n002 is away for 3 hours; its groups are kept on other nodes");
    set_in_sync(m, 3, 1, 0, 0);
    set_in_sync(m, 4, 1, 0, 0);
    expect(m, 3, "2 groups can be read, but writes wait");
    die(m, 0);
    expect(m, 3, "Node n000 is away for 5 minutes, and 2 groups cannot be read or written");
    expect(m, 3, "`dog node lost n000`");
    expect(m, 3, "8 groups can be read, but writes wait");
    m->nodes[0].state = MAP_NODE_LOST;
    expect(m, 4, "nobody else has all that was written to 10 groups"); /* and two zones are left */
    map_unref(m);
}

static void test_reasons_of_wishes(void **state)
{
    struct map *m = make_map();
    m->nodes[3].state = MAP_NODE_DRAINING;
    expect(m, 1, "Node n003 is empty: stop it and `dog node remove n003`");
    m->nodes[3].state = MAP_NODE_ACTIVE;
    m->nodes[2].state = MAP_NODE_DRAINING;
    expect(m, 1, "Node n002 is being emptied: 10 groups left");
    strcpy(m->nodes[3].zone, m->nodes[1].zone);
    expect(m, 2, "3 copies need as many zones and the others have 2");
    expect(m, 2, "Pool default wants 3 copies, but the nodes that take data are in 2 zones");
    m->nodes[2].state = MAP_NODE_ACTIVE;
    m->nodes[1].trouble = MAP_TROUBLE_STORE;
    m->nodes[1].trouble_error = EIO;
    expect(m, 1, "Node n001 cannot write to its store (Input/output error)");
    m->nodes[1].trouble = MAP_TROUBLE_UNREACHED;
    m->nodes[1].trouble_by = 3;
    expect(m, 1, "Node n001 cannot be reached by node n003");
    m->nodes[1].trouble = MAP_TROUBLE_ALONE;
    expect(m, 1, "Node n001 cannot reach node n003");
    m->nodes[1].trouble = MAP_TROUBLE_NONE;
    m->groups[0].joining[m->groups[0].joining_count++] = 3;
    expect(m, 1, "1 group is moving to where it should be; nothing has to be done.");
    map_unref(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_nodes),
        cmocka_unit_test(test_reasons_of_nodes),
        cmocka_unit_test(test_reasons_of_wishes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
