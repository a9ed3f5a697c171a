/* SPDX-License-Identifier: Apache-2.0 */
/* The decisions of forwarding: repetitions of changes, and who may have the volume. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include "base/err.h"
#include "base/hash.h"
#include "rt/rt.h"
#include "volume/forward.h"

static void test_repeated(void **state)
{
    struct forward_window w;
    int r = 1;
    forward_window_init(&w);
    assert_int_equal(forward_window_begin(&w, 1, 1, &r), FORWARD_BEGIN);
    assert_int_equal(forward_window_begin(&w, 1, 1, &r), FORWARD_RUNNING);
    assert_int_equal(forward_window_begin(&w, 2, 1, &r), FORWARD_BEGIN);
    forward_window_end(&w, 1, -ENOSPC);
    assert_int_equal(forward_window_begin(&w, 1, 1, &r), FORWARD_ENDED);
    assert_int_equal(r, -ENOSPC);
    assert_int_equal(forward_window_begin(&w, 3, 2, &r), FORWARD_BEGIN);
    assert_int_equal(forward_window_begin(&w, 1, 1, &r), FORWARD_REFUSED); /* was answered */
    assert_int_equal(forward_window_begin(&w, 2, 2, &r), FORWARD_RUNNING);
    assert_int_equal(forward_window_begin(&w, 2 + FORWARD_WINDOW, 2, &r), FORWARD_REFUSED);
    assert_int_equal(forward_window_begin(&w, 1 + FORWARD_WINDOW, 2, &r), FORWARD_BEGIN);
    assert_int_equal(forward_window_begin(&w, UINT64_MAX, 2, &r), FORWARD_REFUSED);
}

/* A sender as forward.c is one, on a network that repeats and reorders without end, against a plain
 * table of what was begun: never twice, and every repetition that is answered gets the result of
 * the one execution. */
#define IDS 2000u
static void test_random_network(void **state)
{
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct forward_window w;
        static struct {
            unsigned begun;
            bool ended, answered;
            uint64_t floors[4]; /* of copies under way; 0 none */
        } ids[IDS + 1];
        __builtin_memset(ids, 0, sizeof(ids));
        uint64_t draw = seed << 32, last = 0, floor = 1;
        forward_window_init(&w);
        while (floor <= IDS) {
            uint64_t x = hash_u64(++draw), id = floor + x % FORWARD_WINDOW;
            id = id > last ? last : id;
            switch (x >> 32 & 3) {
            case 0: /* a new one */
                if (last < IDS && last + 1 - floor < FORWARD_WINDOW)
                    id = ++last;
                __attribute__((fallthrough));
            case 1: /* sent (again) */
                if (id >= floor && !ids[id].answered)
                    ids[id].floors[x >> 40 & 3] = floor;
                break;
            case 2: { /* one of any age arrives */
                id = 1 + (x >> 16) % (last ? last : 1);
                if (x & 1 && last >= floor)
                    id = floor + (x >> 16) % (last - floor + 1);
                uint64_t *copy = &ids[id].floors[x >> 40 & 3];
                int r = 0;
                if (!*copy)
                    break;
                enum forward_verdict v = forward_window_begin(&w, id, *copy, &r);
                assert_true(v != FORWARD_BEGIN || ids[id].begun == 0);
                ids[id].begun += v == FORWARD_BEGIN;
                assert_true(v != FORWARD_ENDED || (ids[id].ended && r == -(int)(id % 100)));
                assert_true(v != FORWARD_REFUSED || ids[id].answered);
                if (v == FORWARD_ENDED)
                    ids[id].answered = true;
                break;
            }
            case 3: /* one ends; its answer may arrive */
                if (last < floor)
                    break;
                id = floor + x % (last - floor + 1);
                if (ids[id].begun && !ids[id].ended) {
                    forward_window_end(&w, id, -(int)(id % 100));
                    ids[id].ended = true;
                    ids[id].answered = x >> 50 & 1;
                }
                break;
            }
            while (floor <= last && ids[floor].answered)
                floor++;
        }
        for (unsigned i = 1; i <= IDS; i++)
            assert_int_equal(ids[i].begun, 1);
    }
}

static void test_offers(void **state)
{
    static const uint64_t idle[] = {0, FORWARD_IDLE_NS - 1, FORWARD_IDLE_NS, UINT64_MAX};
    for (unsigned i = 0; i < 3 * 3 * 4 * 4 * 2; i++) {
        struct forward_view v = {.own_users = i % 3,
                                 .operations = i / 3 % 3,
                                 .nodes = i / 9 % 4,
                                 .own_idle_ns = idle[i / 36 % 4],
                                 .sound = i / 144 % 2};
        bool expected =
            v.sound && v.own_users == 0 && v.operations == 0 && v.nodes == 1 && i / 36 % 4 >= 2;
        assert_int_equal(forward_offers(&v), expected);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_repeated),
        cmocka_unit_test(test_random_network),
        cmocka_unit_test(test_offers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
