/* SPDX-License-Identifier: Apache-2.0 */
/*
 * map_next over all sequences of events up to some length, and over long walks (map_world.h).
 *
 * States that were met before, with as many steps left, are not gone into again; what does not
 * matter for what follows (the values of epochs and sessions) is left out of the comparison.
 * MAP_MODEL_MORE=1 makes all sequences longer by one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "map_world.h"

struct visited {
    uint64_t *keys; /* 0: free */
    uint8_t *left;
    size_t size, used;
};

/* True when the state was gone into with at least as many steps left. */
static bool visit(struct visited *v, uint64_t key, unsigned left)
{
    size_t i = key & (v->size - 1);
    while (v->keys[i] != 0 && v->keys[i] != key)
        i = (i + 1) & (v->size - 1);
    if (v->keys[i] == key && v->left[i] >= left)
        return true;
    v->used += v->keys[i] == 0;
    assert_true(v->used * 2 < v->size);
    v->keys[i] = key;
    v->left[i] = (uint8_t)left;
    return false;
}

struct search {
    struct visited visited;
    unsigned batch; /* events that the leader sees at once */
    uint64_t steps, settled;
};

static void go(struct search *s, struct world *w, unsigned left)
{
    if (w->pending == 0 && visit(&s->visited, fingerprint(w), left))
        return;
    if (w->pending == 0) {
        s->settled++;
        settle(w);
    }
    for (unsigned event = 0; left > 0 && event < event_count(w); event++) {
        struct world next = *w;
        map_ref(next.now);
        if (apply(&next, event)) {
            s->steps++;
            if (next.pending == s->batch || left == 1)
                lead(&next);
            go(s, &next, left - 1);
        }
        map_unref(next.now);
    }
}

static void search_all(unsigned nodes, unsigned spare, uint8_t copies, uint8_t min_copies,
                       uint32_t groups, unsigned length, unsigned batch)
{
    struct search s = {.batch = batch, .visited = {.size = 1u << 22}};
    struct world w;
    s.visited.keys = calloc(s.visited.size, sizeof(*s.visited.keys));
    s.visited.left = calloc(s.visited.size, 1);
    assert_true(s.visited.keys && s.visited.left);
    world_init(&w, nodes, spare, copies, min_copies, groups);
    go(&s, &w, length);
    print_message(
        "%u+%u nodes, %u copies (%u), %u groups, %u events by %u: %llu steps, %llu states\n", nodes,
        spare, copies, min_copies, groups, length, batch, (unsigned long long)s.steps,
        (unsigned long long)s.visited.used);
    map_unref(w.now);
    free(s.visited.keys);
    free(s.visited.left);
}

static unsigned depth(unsigned by_default)
{
    const char *more = getenv("MAP_MODEL_MORE");
    return by_default + (more ? (unsigned)atoi(more) : 0);
}

static void test_three_nodes(void **state)
{
    search_all(3, 0, 3, 2, 1, depth(4), 1);
    search_all(3, 0, 2, 1, 3, depth(3), 1);
}

static void test_batches(void **state)
{
    search_all(3, 0, 3, 2, 1, depth(4), 2);
}

static void test_more_nodes(void **state)
{
    search_all(3, 1, 2, 2, 2, depth(3), 1);
    search_all(4, 1, 3, 2, 2, depth(2), 1);
}

/* Long walks, in which rare states follow each other. */
static void test_walks(void **state)
{
    uint64_t random = 88172645463325252ull;
    struct map_targets *targets = map_targets_new();
    unsigned walks = 300 * (depth(0) + 1);
    for (unsigned walk = 0; walk < walks; walk++) {
        struct world w;
        unsigned nodes = 3 + walk % 3;
        world_init(&w, nodes, walk % 2, 2 + walk / 2 % 2, 1 + walk / 4 % 2, 1 + walk % GROUPS_MAX);
        w.targets = targets;
        for (unsigned i = 0; i < 120; i++) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            unsigned event = (unsigned)(random >> 20) % event_count(&w);
            bool rare = event < KIND_COUNT * w.actor_count &&
                        (event % KIND_COUNT == LOST || event % KIND_COUNT == ACCEPT_LOSS ||
                         event % KIND_COUNT == RETURN_INEXACT);
            if (rare && (random >> 40) % 8 != 0)
                continue;
            if (strlen(w.log) > LOG_MAX - 32)
                memmove(w.log, w.log + LOG_MAX / 2, LOG_MAX / 2); /* the last ones tell most */
            struct world before = w;
            map_ref(before.now);
            if (!apply(&w, event)) {
                map_unref(w.now);
                w = before;
                continue;
            }
            map_unref(before.now);
            if ((random >> 50) % 3 != 0)
                lead(&w);
        }
        lead(&w);
        settle(&w);
        map_unref(w.now);
    }
    map_targets_free(targets);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_three_nodes),
        cmocka_unit_test(test_batches),
        cmocka_unit_test(test_more_nodes),
        cmocka_unit_test(test_walks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
