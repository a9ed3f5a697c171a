/* SPDX-License-Identifier: Apache-2.0 */
/* The codec of records and trash: round trips, every truncation, every flipped bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "volume/record.h"

static struct image make_image(uint64_t vid)
{
    return (struct image){.vid = {vid},
                          .parent = {vid - 1},
                          .family = 3,
                          .group_base = 5,
                          .group_count = 4096,
                          .pool = 1,
                          .object_size = 4u << 20,
                          .entries = 4096,
                          .size = 123456789,
                          .created_wall_ns = 77,
                          .root_copies = 2,
                          .number = (uint32_t)vid};
}

static void make_record(struct record *r)
{
    record_init(r);
    strcpy(r->name, "größe");
    r->volume = 9;
    r->working = make_image(12);
    r->lease = (struct record_lease){
        .session = {44}, .term = {RECORD_TERM_MAX}, .map_version = 6, .clean = false};
    memset(r->lease.node.bytes, 0xab, sizeof(r->lease.node.bytes));
    r->stable.value = 1ULL << 63 | 5;
    r->number_next = 13;
    r->pending = (struct record_pending){.kind = PENDING_SNAPSHOT,
                                         .image = make_image(13),
                                         .source = {4},
                                         .name = "n",
                                         .tag = "tag"};
    struct image i = make_image(10);
    assert_int_equal(record_snapshot_add(r, &i, "one"), 0);
    i = make_image(11);
    assert_int_equal(record_snapshot_add(r, &i, "two"), 0);
    r->snapshots[1].state = SNAPSHOT_DELETING;
    assert_int_equal(record_pin_add(r, (struct vid){10}, (struct vid){20}, "clone"), 0);
}

static void test_round_trip(void **state)
{
    struct record r, d;
    struct enc e, again;
    enc_init(&e);
    enc_init(&again);
    make_record(&r);
    record_encode(&r, &e);
    assert_int_equal(record_decode(e.data, e.length, &d), 0);
    record_encode(&d, &again);
    assert_int_equal(e.length, again.length);
    assert_memory_equal(e.data, again.data, e.length);
    assert_string_equal(d.name, r.name);
    assert_int_equal(d.snapshot_count, 2);
    assert_int_equal(d.snapshots[1].state, SNAPSHOT_DELETING);
    assert_int_equal(d.working.size, 123456789);
    assert_true(record_is_pinned(&d, (struct vid){10}));
    assert_false(record_is_pinned(&d, (struct vid){11}));
    record_pin_remove(&d, (struct vid){20});
    assert_false(record_is_pinned(&d, (struct vid){10}));
    assert_non_null(record_snapshot_by_vid(&d, (struct vid){11}));
    record_snapshot_remove(&d, record_snapshot_by_tag(&d, "one"));
    assert_null(record_snapshot_by_tag(&d, "one"));
    assert_string_equal(d.snapshots[0].tag, "two");
    record_done(&r);
    record_done(&d);
    enc_done(&e);
    enc_done(&again);
}

static void test_damage(void **state)
{
    struct record r, d;
    struct trash t = {.vid = {5}, .family = 5, .group_count = 16, .root_copies = 3}, u;
    struct enc e, x;
    enc_init(&e);
    enc_init(&x);
    make_record(&r);
    record_encode(&r, &e);
    trash_encode(&t, &x);
    assert_int_equal(trash_decode(x.data, x.length, &u), 0);
    assert_int_equal(u.root_copies, 3);
    for (size_t n = 0; n < e.length; n++) { /* copies, so that overruns are seen */
        uint8_t *p = malloc(n ? n : 1);
        memcpy(p, e.data, n);
        assert_int_equal(record_decode(p, n, &d), -EBADMSG);
        free(p);
    }
    for (size_t bit = 0; bit < e.length * 8; bit++) {
        e.data[bit / 8] ^= 1u << bit % 8;
        assert_true(record_decode(e.data, e.length, &d) < 0);
        e.data[bit / 8] ^= 1u << bit % 8;
    }
    for (size_t bit = 0; bit < x.length * 8; bit++) {
        x.data[bit / 8] ^= 1u << bit % 8;
        assert_true(trash_decode(x.data, x.length, &u) < 0);
        x.data[bit / 8] ^= 1u << bit % 8;
    }
    record_done(&r);
    enc_done(&e);
    enc_done(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip),
                                       cmocka_unit_test(test_damage)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
