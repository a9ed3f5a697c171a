/* SPDX-License-Identifier: Apache-2.0 */
/* Claims, reports and wishes as values: nothing damaged or forged is taken, old versions are. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"
#include "cluster/member.h"

enum value { CLAIM, REPORT, NODE_WISH, POOL_WISH, VALUE_COUNT };

static struct uuid some_uuid(uint8_t first)
{
    struct uuid u;
    for (unsigned i = 0; i < sizeof(u.bytes); i++)
        u.bytes[i] = (uint8_t)(first + i);
    return u;
}

static const uint16_t unreachable[] = {3, 900, 65535};
static const struct cluster_joined joined[] = {{0, 1}, {65535, 1ull << 60}};
static const struct cluster_report said = {joined, 2, unreachable, 3, -EIO};

static void encode(enum value value, struct enc *e)
{
    struct uuid uuid = some_uuid(1);
    struct claim claim = {uuid, {7}, 1ull << 40, true};
    struct map_node_wish node = {uuid, true, false, true, true, true, 4096, some_uuid(9)};
    struct map_pool_wish pool = {300, 3, 2};
    enc_init(e);
    switch (value) {
    case CLAIM:
        claim_encode(&claim, e);
        break;
    case REPORT:
        report_encode(&uuid, claim.session, &said, e);
        break;
    case NODE_WISH:
        wish_encode_node(&node, e);
        break;
    default:
        wish_encode_pool(&pool, e);
    }
    assert_int_equal(e->error, 0);
}

static void check_report(const struct map_report *r)
{
    struct uuid uuid = some_uuid(1);
    assert_true(uuid_equal(&r->uuid, &uuid) && r->session.value == 7);
    assert_int_equal(r->said.failed, -EIO);
    assert_int_equal(r->said.unreachable_count, 3);
    assert_memory_equal(r->said.unreachable, unreachable, sizeof(unreachable));
    assert_int_equal(r->said.joined_count, 2);
    for (unsigned i = 0; i < 2; i++)
        assert_true(r->said.joined[i].group == joined[i].group &&
                    r->said.joined[i].epoch == joined[i].epoch);
}

/* Decodes from memory of exactly that size; `expect` says whether the content must be right. */
static int decode(enum value value, const uint8_t *data, size_t length, bool expect)
{
    uint8_t *copy = malloc(length ? length : 1);
    struct uuid uuid = some_uuid(1), heir = some_uuid(9);
    struct claim claim;
    struct map_report report;
    struct map_node_wish node;
    struct map_pool_wish pool;
    int r;
    assert_non_null(copy);
    memcpy(copy, data, length);
    if (value == CLAIM) {
        r = claim_decode(copy, length, &claim);
        if (r == 0 && expect)
            assert_true(uuid_equal(&claim.uuid, &uuid) && claim.session.value == 7 &&
                        claim.version == 1ull << 40 && claim.inexact);
    } else if (value == REPORT) {
        r = report_decode(copy, length, &report);
        if (r == 0 && expect)
            check_report(&report);
        if (r == 0)
            report_done(&report);
    } else if (value == NODE_WISH) {
        r = wish_decode_node(copy, length, &node);
        if (r == 0 && expect)
            assert_true(uuid_equal(&node.uuid, &uuid) && node.drain && !node.remove && node.lost &&
                        node.accept_loss && node.has_weight && node.weight == 4096 &&
                        uuid_equal(&node.heir, &heir));
    } else {
        r = wish_decode_pool(copy, length, &pool);
        if (r == 0 && expect)
            assert_true(pool.id == 300 && pool.copies == 3 && pool.min_copies == 2);
    }
    free(copy);
    return r;
}

static void refix_checksum(struct enc *e)
{
    put_le32(e->data + e->length - 4, crc32c(0, e->data, e->length - 4));
}

static void test_values(void **state)
{
    static const int newest[VALUE_COUNT] = {2, 1, 1, 1};
    for (enum value v = CLAIM; v < VALUE_COUNT; v++) {
        struct enc e;
        encode(v, &e);
        assert_int_equal(decode(v, e.data, e.length, true), 0);
        for (size_t length = 0; length < e.length; length++)
            assert_int_equal(decode(v, e.data, length, false), -EBADMSG);
        for (size_t bit = 0; bit < e.length * 8; bit++) {
            e.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
            assert_int_equal(decode(v, e.data, e.length, false), -EBADMSG);
            e.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        for (size_t i = 0; i + 4 < e.length; i++) { /* forged: the checksum fits */
            static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};
            uint8_t old = e.data[i];
            for (size_t k = 0; k < ARRAY_SIZE(values); k++) {
                e.data[i] = values[k];
                refix_checksum(&e);
                int r = decode(v, e.data, e.length, false);
                assert_true(r == 0 || r == -EBADMSG || r == -EPROTO);
            }
            e.data[i] = old;
        }
        put_le16(e.data, (uint16_t)(newest[v] + 1));
        refix_checksum(&e);
        assert_int_equal(decode(v, e.data, e.length, false), -EPROTO);
        enc_done(&e);
    }
}

/* A claim of version 1 has no flags. */
static void test_old_claim(void **state)
{
    struct enc e;
    struct claim claim;
    encode(CLAIM, &e);
    put_le16(e.data, 1);
    e.length--;
    refix_checksum(&e);
    assert_int_equal(claim_decode(e.data, e.length, &claim), 0);
    assert_true(claim.session.value == 7 && !claim.inexact);
    enc_done(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_old_claim),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
