/* SPDX-License-Identifier: Apache-2.0 */
/* The leader's pure functions: rules of the first map, and map_next exhaustively for three nodes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include "base/err.h"
#include "members.h"

static void test_first_refusals(void **state)
{
    struct map_member members[3];
    for (unsigned i = 0; i < 3; i++)
        members[i] = make_member(i, i, 1024, i + 1);
    struct map *m = NULL;
    struct map_format f = make_format(0, 8);
    assert_int_equal(map_first(&f, members, 3, &m), -EINVAL);
    f = make_format(MAP_GROUP_MEMBER_MAX + 1, 8);
    assert_int_equal(map_first(&f, members, 3, &m), -EINVAL);
    f = make_format(4, 8);
    assert_int_equal(map_first(&f, members, 3, &m), -ENOSPC);
    f = make_format(3, MAP_GROUP_COUNT_MAX + 1);
    assert_int_equal(map_first(&f, members, 3, &m), -EINVAL);
    f = make_format(2, 8);
    f.min_copies = 3;
    assert_int_equal(map_first(&f, members, 3, &m), -EINVAL);
    f.min_copies = 0;
    f.object_size = 3 << 20;
    assert_int_equal(map_first(&f, members, 3, &m), -EINVAL);
    f.object_size = 0;
    memset(&f.cluster, 0, sizeof(f.cluster));
    assert_int_equal(map_first(&f, members, 3, &m), -EINVAL);
    f = make_format(1, 8);
    assert_int_equal(map_first(&f, members, 0, &m), -ENOSPC);
    assert_null(m);
}

static void test_first_defaults(void **state)
{
    struct map_member members[3];
    for (unsigned i = 0; i < 3; i++)
        members[2 - i] = make_member(i, i, 1024, i + 1);
    struct map_format f = make_format(3, 0);
    struct map *m;
    assert_int_equal(map_first(&f, members, 3, &m), 0);
    assert_int_equal(m->version, 1);
    assert_int_equal(m->pool_count, 1);
    assert_string_equal(m->pools[0].name, "default");
    assert_int_equal(m->pools[0].min_copies, 2);
    assert_int_equal(m->pools[0].object_size, 4 << 20);
    assert_int_equal(m->pools[0].group_count, 4096);
    assert_int_equal(m->node_number_next, 3);
    for (unsigned i = 0; i < 3; i++) { /* numbers follow names, whatever the order of the members */
        assert_int_equal(m->nodes[i].number, i);
        assert_string_equal(m->nodes[i].name, members[2 - i].node.name);
    }
    map_unref(m);
}

/* Without recovery. */
static int next_map(const struct map *now, const struct map_member *members, unsigned count,
                    struct map **ret)
{
    struct map_inputs in = {.members = members, .member_count = count};
    return map_next(now, &in, ret);
}

enum presence { SAME, ENDED, RESTARTED, UNREGISTERED, PRESENCE_COUNT };

/* The rules of map_next, said a second time. */
static void check_next(const struct map *now, const struct map *next, const enum presence *presence,
                       bool extra)
{
    bool differs = extra;
    for (unsigned i = 0; i < 3; i++)
        differs |= presence[i] != SAME;
    if (!differs) {
        assert_null(next);
        return;
    }
    assert_non_null(next);
    assert_int_equal(next->version, now->version + 1);
    assert_int_equal(next->node_count, now->node_count + extra);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(next->nodes[i].number, i);
        assert_int_equal(next->nodes[i].session.value, presence[i] == SAME        ? 10 + i
                                                       : presence[i] == RESTARTED ? 20 + i
                                                                                  : 0);
    }
    if (extra) {
        assert_int_equal(next->nodes[3].number, 3);
        assert_int_equal(next->nodes[3].session.value, 33);
        assert_int_equal(next->node_number_next, 4);
    }
    for (uint32_t g = 0; g < now->group_count; g++) {
        const struct map_group *a = &now->groups[g], *b = &next->groups[g];
        bool touched = false;
        for (unsigned i = 0; i < 3; i++)
            touched |= presence[i] != SAME && map_group_has(a, (uint16_t)i);
        assert_int_equal(b->epoch.value, touched ? next->version : a->epoch.value);
        assert_int_equal(a->in_sync_count, b->in_sync_count);
        assert_memory_equal(a->in_sync, b->in_sync, sizeof(a->in_sync)); /* N3 */
    }
}

static void test_next_exhaustive(void **state)
{
    /* Two copies on three nodes: each node misses some groups. */
    struct map_member members[4];
    for (unsigned i = 0; i < 3; i++)
        members[i] = make_member(i, i, 1024, 10 + i);
    struct map_format f = make_format(2, 12);
    struct map *now;
    assert_int_equal(map_first(&f, members, 3, &now), 0);
    for (unsigned code = 0; code < PRESENCE_COUNT * PRESENCE_COUNT * PRESENCE_COUNT * 3; code++) {
        enum presence presence[3] = {code % 4, code / 4 % 4, code / 16 % 4};
        unsigned extra = code / 64; /* 0: none, 1: registered without a session, 2: with one */
        unsigned count = 0;
        struct map_member present[4];
        for (unsigned i = 3; i-- > 0;) {
            if (presence[i] == UNREGISTERED)
                continue;
            present[count] = members[i];
            present[count++].node.session.value = presence[i] == SAME    ? 10 + i
                                                  : presence[i] == ENDED ? 0
                                                                         : 20 + i;
        }
        if (extra)
            present[count++] = make_member(3, 3, 1024, extra == 2 ? 33 : 0);
        struct map *next, *again;
        assert_int_equal(next_map(now, present, count, &next), 0);
        check_next(now, next, presence, extra == 2);
        assert_int_equal(next_map(next ? next : now, present, count, &again), 0);
        assert_null(again);
        map_unref(next);
    }
    map_unref(now);
}

/* What people change does not touch the groups. */
static void test_next_attributes(void **state)
{
    struct map_member members[3];
    for (unsigned i = 0; i < 3; i++)
        members[i] = make_member(i, i, 1024, 10 + i);
    struct map_format f = make_format(3, 12);
    struct map *now, *next;
    assert_int_equal(map_first(&f, members, 3, &now), 0);
    for (unsigned what = 0; what < 6; what++) {
        struct map_member changed[3];
        memcpy(changed, members, sizeof(changed));
        struct map_node *n = &changed[1].node;
        char *const texts[] = {n->name, n->zone, n->address, n->admin, n->nbd};
        if (what == 5)
            n->weight = 7;
        else
            strcpy(texts[what], "changed");
        assert_int_equal(next_map(now, changed, 3, &next), 0);
        assert_non_null(next);
        const struct map_node *m = &next->nodes[1];
        const char *const seen[] = {m->name, m->zone, m->address, m->admin, m->nbd};
        if (what == 5)
            assert_int_equal(m->weight, 7);
        else
            assert_string_equal(seen[what], "changed");
        assert_memory_equal(now->groups, next->groups, now->group_count * sizeof(now->groups[0]));
        map_unref(next);
    }
    map_unref(now);
    struct map *empty = map_new();
    assert_int_equal(next_map(empty, members, 3, &next), 0);
    assert_null(next); /* before `dog cluster format` nothing follows */
    map_unref(empty);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_refusals),
        cmocka_unit_test(test_first_defaults),
        cmocka_unit_test(test_next_exhaustive),
        cmocka_unit_test(test_next_attributes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
