/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise: every message of the peer protocol comes back as it was sent; every truncation is
 * refused; every flipped bit of header or body is seen by the checksum; no bytes whatever make a
 * decoder read past its end (ASan watches).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "wire/peer.h"

static void test_header(void **state)
{
    static const int errors[] = {0,       -EINVAL,  -ENOENT, -ENOSPC,
                                 -ESTALE, -EUCLEAN, -EAGAIN, -EMEDIUMTYPE};
    const uint8_t body[] = {1, 2, 3, 4, 5};
    for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
        const struct peer_header h = {
            .type = PEER_HELLO + i % PEER_TYPE_LAST,
            .flags = i % 2,
            .id = 0x1122334455667788 + i,
            .epoch = 42,
            .map_version = 43,
            .group = i % 3 ? i : PEER_NO_GROUP,
            .status = errors[i],
            .body_length = sizeof(body),
            .payload_length = PEER_PAYLOAD_MAX,
            .free_bytes = UINT64_MAX,
            .payload_crc = 0xdeadbeef,
        };
        uint8_t bytes[PEER_HEADER_BYTES];
        struct peer_header back;
        peer_header_put(bytes, &h, body);
        assert_int_equal(peer_header_get(bytes, &back), 0);
        assert_int_equal(back.type, h.type);
        assert_int_equal(back.flags, h.flags);
        assert_int_equal(back.id, h.id);
        assert_int_equal(back.epoch, h.epoch);
        assert_int_equal(back.map_version, h.map_version);
        assert_int_equal(back.group, h.group);
        assert_int_equal(back.status, h.status);
        assert_int_equal(back.body_length, h.body_length);
        assert_int_equal(back.payload_length, h.payload_length);
        assert_int_equal(back.free_bytes, h.free_bytes);
        assert_int_equal(back.payload_crc, h.payload_crc);
        assert_int_equal(peer_header_check(bytes, body, sizeof(body)), 0);
        for (unsigned bit = 0; bit < 8 * PEER_HEADER_BYTES; bit++) {
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            int r = peer_header_get(bytes, &back);
            if (r == 0)
                r = peer_header_check(bytes, body, sizeof(body));
            assert_true(r == -EBADMSG || r == -EPROTO);
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        for (unsigned bit = 0; bit < 8 * sizeof(body); bit++) {
            uint8_t damaged[sizeof(body)];
            memcpy(damaged, body, sizeof(body));
            damaged[bit / 8] ^= (uint8_t)(1u << bit % 8);
            assert_int_equal(peer_header_check(bytes, damaged, sizeof(body)), -EBADMSG);
        }
    }
}

static void test_change(void **state)
{
    struct peer_change c = {
        .owner = {.volume = 1, .term = {2}, .stable = {3}, .vid = {4}},
        .kind = PEER_CHANGE_CLONE,
        .oid = {.vid = 5, .index = 6, .level = 1, .group = 7},
        .source = {.vid = 8, .index = 9, .group = 10},
        .prev = {11},
        .next = {12},
    };
    for (unsigned n = 0; n <= PEER_EXTENT_COUNT_MAX; n++) {
        uint8_t bytes[PEER_CHANGE_BYTES_MAX];
        struct peer_change back;
        c.extent_count = n;
        for (unsigned i = 0; i < n; i++)
            c.extents[i] = (struct peer_extent){i * 8192, i + 1};
        size_t length = peer_change_put(bytes, &c);
        assert_int_equal(peer_change_get(bytes, length, &back), 0);
        assert_int_equal(back.owner.volume, 1);
        assert_int_equal(back.owner.term.value, 2);
        assert_int_equal(back.owner.stable.value, 3);
        assert_int_equal(back.owner.vid.value, 4);
        assert_int_equal(back.kind, c.kind);
        assert_true(oid_equal(&back.oid, &c.oid) && oid_equal(&back.source, &c.source));
        assert_int_equal(back.prev.value, 11);
        assert_int_equal(back.next.value, 12);
        assert_int_equal(back.extent_count, n);
        for (unsigned i = 0; i < n; i++)
            assert_true(back.extents[i].offset == i * 8192 && back.extents[i].length == i + 1);
        for (size_t k = 0; k < length; k++) {
            uint8_t *part = malloc(k + 1); /* exact, so that ASan sees every step too far */
            memcpy(part, bytes, k);
            assert_int_equal(peer_change_get(part, k, &back), -EBADMSG);
            free(part);
        }
        assert_int_equal(peer_change_get(bytes, length + 1, &back), -EBADMSG);
    }
    const struct peer_read r = {.oid = c.oid, .offset = 4096, .length = 77};
    uint8_t bytes[PEER_READ_BYTES];
    struct peer_read back;
    peer_read_put(bytes, &r);
    assert_int_equal(peer_read_get(bytes, sizeof(bytes), &back), 0);
    assert_true(oid_equal(&back.oid, &r.oid) && back.offset == 4096 && back.length == 77);
    assert_int_equal(peer_read_get(bytes, sizeof(bytes) - 1, &back), -EBADMSG);
}

/* One kind of body: encodes itself, decodes and compares. */
struct body_case {
    void (*encode)(struct enc *e);
    int (*decode)(const void *p, size_t length); /* -EBADMSG, or checks the values and returns 0 */
};

static void encode_hello(struct enc *e)
{
    struct peer_hello h = {.session = {9}, .version_min = 1, .version_max = 3};
    memset(&h.cluster, 1, 16);
    memset(&h.node, 2, 16);
    memset(&h.target, 3, 16);
    peer_hello_encode(&h, e);
}

static int decode_hello(const void *p, size_t length)
{
    struct peer_hello h;
    int r = peer_hello_decode(p, length, &h);
    return r < 0                                                                   ? r
           : h.session.value == 9 && h.version_max == 3 && h.target.bytes[15] == 3 ? 0
                                                                                   : 1;
}

static void encode_hello_reply(struct enc *e)
{
    const struct peer_hello_reply h = {.session = {8}, .version = 1, .text = "not here"};
    peer_hello_reply_encode(&h, e);
}

static int decode_hello_reply(const void *p, size_t length)
{
    struct peer_hello_reply h;
    int r = peer_hello_reply_decode(p, length, &h);
    return r < 0 ? r : h.session.value == 8 && strcmp(h.text, "not here") == 0 ? 0 : 1;
}

static const struct oid an_oid = {.vid = 5, .index = 6, .kind = 1, .level = 2, .group = 7};

static void encode_entry(struct enc *e)
{
    const struct peer_entry en = {.oid = an_oid,
                                  .version = {4},
                                  .empty = true,
                                  .meta_version = 77,
                                  .end = 4096,
                                  .meta = (const uint8_t *)"meta",
                                  .meta_length = 4};
    peer_entry_encode(&en, e);
}

static int decode_entry(const void *p, size_t length)
{
    struct dec d;
    struct peer_entry en;
    dec_init(&d, p, length);
    peer_entry_decode(&d, &en);
    int r = dec_finish(&d);
    if (r < 0)
        return r;
    return oid_equal(&en.oid, &an_oid) && en.version.value == 4 && en.empty && !en.tombstone &&
                   en.meta_version == 77 && en.end == 4096 && en.meta_length == 4 &&
                   memcmp(en.meta, "meta", 4) == 0
               ? 0
               : 1;
}

static void encode_meta(struct enc *e)
{
    const struct peer_meta m = {.oid = an_oid,
                                .epoch = 3,
                                .meta_version = 77,
                                .remove = true,
                                .next = {6},
                                .meta = (const uint8_t *)"meta",
                                .meta_length = 4};
    peer_meta_encode(&m, e);
}

static int decode_meta(const void *p, size_t length)
{
    struct dec d;
    struct peer_meta m;
    dec_init(&d, p, length);
    peer_meta_decode(&d, &m);
    int r = dec_finish(&d);
    if (r < 0)
        return r;
    return oid_equal(&m.oid, &an_oid) && m.epoch == 3 && m.meta_version == 77 && m.remove &&
                   m.next.value == 6 && m.meta_length == 4
               ? 0
               : 1;
}

static void encode_refs(struct enc *e)
{
    const struct peer_refs_head h = {PEER_SENDER_GROUP, 11, 12, 13, 1};
    const struct peer_ref r = {PEER_REF_DROP, an_oid, 21, 22, 3, 1, 23, 24, 25};
    peer_refs_head_encode(&h, e);
    peer_ref_encode(&r, e);
}

static int decode_refs(const void *p, size_t length)
{
    struct dec d;
    struct peer_refs_head h;
    struct peer_ref r;
    dec_init(&d, p, length);
    peer_refs_head_decode(&d, &h);
    peer_ref_decode(&d, &r);
    int e = dec_finish(&d);
    if (e < 0)
        return e;
    return h.sender == PEER_SENDER_GROUP && h.sender_id == 11 && h.authority == 12 &&
                   h.floor == 13 && h.count == 1 && r.kind == PEER_REF_DROP &&
                   oid_equal(&r.target, &an_oid) && r.epoch == 21 && r.holder_vid == 22 &&
                   r.holder_level == 3 && r.copied == 1 && r.generation == 23 && r.copies == 24 &&
                   r.stamp == 25
               ? 0
               : 1;
}

static void encode_list(struct enc *e)
{
    const struct peer_list l = {PEER_LIST_BY_VID | PEER_LIST_META, {3}, 4, {5}, an_oid, 100};
    peer_list_encode(&l, e);
}

static int decode_list(const void *p, size_t length)
{
    struct peer_list l;
    int r = peer_list_decode(p, length, &l);
    if (r < 0)
        return r;
    return l.flags == 5 && l.vid.value == 3 && l.group == 4 && l.above.value == 5 &&
                   oid_equal(&l.after, &an_oid) && l.limit == 100
               ? 0
               : 1;
}

static void encode_settle(struct enc *e)
{
    const struct peer_settle s = {{3}, {4}};
    peer_settle_encode(&s, e);
}

static int decode_settle(const void *p, size_t length)
{
    struct peer_settle s;
    int r = peer_settle_decode(p, length, &s);
    return r < 0 ? r : s.vid.value == 3 && s.stable.value == 4 ? 0 : 1;
}

static void encode_info(struct enc *e)
{
    const struct peer_info i = {.size_bytes = 1,
                                .uptime_ns = 12,
                                .dying_count = 8,
                                .inexact = true,
                                .failed = -EIO,
                                .scrub_mended = 23,
                                .scrub_last = "rot",
                                .groups_total = 24,
                                .join_eta_s = 30};
    peer_info_encode(&i, e);
}

static int decode_info(const void *p, size_t length)
{
    struct peer_info i;
    int r = peer_info_decode(p, length, &i);
    if (r == 0 && i.groups_total == 0)
        return -EBADMSG; /* as an older node tells it: see test_older_info() */
    return r < 0 ? r
           : i.size_bytes == 1 && i.uptime_ns == 12 && i.dying_count == 8 && i.inexact &&
                   i.failed == -EIO && i.scrub_mended == 23 && strcmp(i.scrub_last, "rot") == 0 &&
                   i.join_eta_s == 30
               ? 0
               : 1;
}

static void encode_run(struct enc *e)
{
    const struct peer_run run = {1, 2, true};
    peer_run_encode(&run, e);
}

static int decode_run(const void *p, size_t length)
{
    struct dec d;
    struct peer_run run;
    dec_init(&d, p, length);
    peer_run_decode(&d, &run);
    int r = dec_finish(&d);
    return r < 0 ? r : run.offset == 1 && run.length == 2 && run.mapped ? 0 : 1;
}

static void encode_forward(struct enc *e)
{
    const struct peer_forward f = {.kind = PEER_FORWARD_WRITE,
                                   .handle = 1,
                                   .id = 9,
                                   .floor = 3,
                                   .offset = 4,
                                   .length = 5,
                                   .flags = 6};
    peer_forward_encode(&f, e);
}

static int decode_forward(const void *p, size_t length)
{
    struct peer_forward f;
    int r = peer_forward_decode(p, length, &f);
    return r < 0 ? r
           : f.kind == PEER_FORWARD_WRITE && f.handle == 1 && f.id == 9 && f.floor == 3 &&
                   f.offset == 4 && f.length == 5 && f.flags == 6 && f.name[0] == '\0'
               ? 0
               : 1;
}

static void encode_attach(struct enc *e)
{
    const struct peer_forward f = {.kind = PEER_FORWARD_ATTACH, .handle = 2, .name = "vm"};
    peer_forward_encode(&f, e);
}

static int decode_attach(const void *p, size_t length)
{
    struct peer_forward f;
    int r = peer_forward_decode(p, length, &f);
    return r < 0                                                                         ? r
           : f.kind == PEER_FORWARD_ATTACH && f.handle == 2 && strcmp(f.name, "vm") == 0 ? 0
                                                                                         : 1;
}

static void encode_forward_reply(struct enc *e)
{
    const struct peer_forward_reply r = {true, 1, 2, 1};
    const struct peer_forward_run run = {3, true};
    peer_forward_reply_encode(&r, e);
    peer_forward_run_encode(&run, e);
}

static int decode_forward_reply(const void *p, size_t length)
{
    struct dec d;
    struct peer_forward_reply r;
    struct peer_forward_run run;
    dec_init(&d, p, length);
    peer_forward_reply_decode(&d, &r);
    peer_forward_run_decode(&d, &run);
    int e = dec_finish(&d);
    return e < 0 ? e
           : r.offer && r.size == 1 && r.object_size == 2 && r.run_count == 1 && run.length == 3 &&
                   run.mapped
               ? 0
               : 1;
}

/* What no honest gateway sends. */
static void test_unsound_forward(void **state)
{
    static const struct peer_forward bad[] = {
        {.kind = PEER_FORWARD_WRITE, .handle = 0, .id = 1, .floor = 1, .length = 1},
        {.kind = PEER_FORWARD_WRITE, .handle = 1, .id = 0, .floor = 0, .length = 1},
        {.kind = PEER_FORWARD_WRITE, .handle = 1, .id = 1, .floor = 2, .length = 1},
        {.kind = PEER_FORWARD_WRITE, .handle = 1, .id = 1, .floor = 1, .length = 0},
        {.kind = PEER_FORWARD_READ, .handle = 1, .length = PEER_FORWARD_DATA_MAX + 1},
        {.kind = PEER_FORWARD_READ, .handle = 1, .id = 1, .floor = 1, .length = 1},
        {.kind = PEER_FORWARD_ATTACH, .handle = 1},
        {.kind = PEER_FORWARD_FLUSH, .handle = 1, .name = "x"},
        {.kind = PEER_FORWARD_MAP, .handle = 1, .length = 1, .flags = 0},
        {.kind = PEER_FORWARD_MAP, .handle = 1, .length = 1, .flags = PEER_FORWARD_RUNS_MAX + 1},
        {.kind = 0, .handle = 1},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        struct peer_forward f;
        struct enc e;
        enc_init(&e);
        peer_forward_encode(&bad[i], &e);
        assert_int_equal(peer_forward_decode(e.data, e.length, &f), -EBADMSG);
        enc_done(&e);
    }
}

static const struct body_case bodies[] = {
    {encode_hello, decode_hello},   {encode_hello_reply, decode_hello_reply},
    {encode_entry, decode_entry},   {encode_meta, decode_meta},
    {encode_refs, decode_refs},     {encode_list, decode_list},
    {encode_settle, decode_settle}, {encode_info, decode_info},
    {encode_run, decode_run},       {encode_forward, decode_forward},
    {encode_attach, decode_attach}, {encode_forward_reply, decode_forward_reply},
};

/* A node of before the figures of joining, and one of after more of them. */
static void test_older_info(void **state)
{
    struct peer_info i;
    struct enc e;
    enc_init(&e);
    encode_info(&e);
    size_t length = e.length, tail = 1 + 7 * 8;
    assert_int_equal(peer_info_decode(e.data, length - tail, &i), 0);
    assert_int_equal(i.scrub_mended, 23);
    assert_int_equal(i.groups_total, 0);
    ((uint8_t *)e.data)[length - tail]++;
    enc_u64(&e, 99);
    assert_int_equal(peer_info_decode(e.data, e.length, &i), 0);
    assert_int_equal(i.groups_total, 24);
    assert_int_equal(i.join_eta_s, 30);
    enc_done(&e);
}

static void test_bodies(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(bodies); i++) {
        struct enc e;
        enc_init(&e);
        bodies[i].encode(&e);
        assert_int_equal(e.error, 0);
        assert_int_equal(bodies[i].decode(e.data, e.length), 0);
        for (size_t n = 0; n < e.length; n++) {
            uint8_t *part = malloc(n + 1);
            memcpy(part, e.data, n);
            assert_int_equal(bodies[i].decode(part, n), -EBADMSG);
            free(part);
        }
        /* Changed bytes: refused or another value; never a step outside. */
        for (size_t k = 0; k < e.length; k++) {
            for (unsigned v = 0; v < 256; v++) {
                uint8_t *copy = malloc(e.length);
                memcpy(copy, e.data, e.length);
                copy[k] = (uint8_t)v;
                int r = bodies[i].decode(copy, e.length);
                assert_true(r == -EBADMSG || r == 1 || r == 0);
                free(copy);
            }
        }
        enc_done(&e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header),          cmocka_unit_test(test_change),
        cmocka_unit_test(test_older_info),      cmocka_unit_test(test_bodies),
        cmocka_unit_test(test_unsound_forward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
