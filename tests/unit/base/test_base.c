/* SPDX-License-Identifier: Apache-2.0 */
/* Promise: errors, checked arithmetic, lists, hash table, identifiers, crc and byte order are as
 * stated. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"
#include "base/hash.h"
#include "base/ids.h"
#include "base/list.h"
#include "base/log.h"

static void test_err(void **state)
{
    assert_string_equal(err_text(-ENOENT), "does not exist");
    for (int e = -200; e < 200; e++)
        assert_true(err_text(e) && err_text(e)[0]);
    assert_non_null(err_text(INT32_MIN));
}

static void test_checked(void **state)
{
    uint64_t x = 5;
    assert_false(add_u64(UINT64_MAX, 1, &x));
    assert_false(mul_u64(1ULL << 32, 1ULL << 32, &x));
    assert_int_equal(x, 5);
    assert_true(add_u64(UINT64_MAX, 0, &x) && x == UINT64_MAX);
    assert_true(mul_u64(1ULL << 32, 1ULL << 31, &x) && x == 1ULL << 63);
    assert_int_equal(ALIGN_UP(4097u, 4096u), 8192);
    assert_int_equal(ALIGN_UP(4096u, 4096u), 4096);
    assert_int_equal(ALIGN_DOWN(4095u, 4096u), 0);
}

struct item {
    struct list link;
    struct hnode node;
    unsigned value;
};

static void test_list(void **state)
{
    struct list a = LIST_INIT(a), b = LIST_INIT(b);
    struct item items[4], *x, *tmp;
    for (unsigned i = 0; i < 4; i++) {
        items[i].value = i;
        list_push_back(i < 2 ? &a : &b, &items[i].link);
    }
    list_splice_back(&a, &b);
    assert_true(list_empty(&b));
    list_splice_back(&a, &b);
    unsigned next = 0;
    list_for_each (x, &a, link)
        assert_int_equal(x->value, next++);
    assert_int_equal(next, 4);
    list_for_each_safe (x, tmp, &a, link)
        list_remove(&x->link);
    assert_true(list_empty(&a));
    list_remove(&items[0].link); /* twice is harmless */
    list_push_back(&a, &items[1].link);
    list_push_front(&a, &items[2].link);
    assert_ptr_equal(list_first(&a, struct item, link), &items[2]);
}

static void test_hash(void **state)
{
    enum { COUNT = 5000 };
    struct htable t;
    struct item *items = calloc(COUNT, sizeof(*items));
    htable_init(&t);
    assert_null(htable_first(&t, 1));
    assert_null(htable_iter(&t, NULL));
    for (unsigned i = 0; i < COUNT; i++) {
        items[i].value = i;
        assert_int_equal(htable_insert(&t, &items[i].node, hash_u64(i / 2)), 0); /* in pairs */
    }
    for (unsigned i = 0; i < COUNT; i += 3)
        htable_remove(&t, &items[i].node);
    unsigned left = 0;
    for (unsigned i = 0; i < COUNT; i++) {
        bool found = false;
        for (struct hnode *n = htable_first(&t, hash_u64(i / 2)); n; n = htable_next_same(n))
            found |= n == &items[i].node;
        assert_int_equal(found, i % 3 != 0);
        left += found;
    }
    assert_int_equal(t.count, left);
    unsigned seen = 0;
    for (struct hnode *n = htable_iter(&t, NULL); n; n = htable_iter(&t, n))
        seen++;
    assert_int_equal(seen, left);
    htable_done(&t);
    free(items);
    assert_true(hash_bytes("a", 1) != hash_bytes("b", 1));
}

static void test_uuid(void **state)
{
    static const char text[] = "00112233-4455-6677-8899-aabbccddeeff";
    struct uuid u, v;
    char out[UUID_TEXT_SIZE];
    assert_int_equal(uuid_parse(text, &u), 0);
    uuid_format(&u, out);
    assert_string_equal(out, text);
    assert_int_equal(uuid_parse("00112233-4455-6677-8899-AABBCCDDEEFF", &v), 0);
    assert_true(uuid_equal(&u, &v) && !uuid_is_null(&u));
    /* every shorter text, and every text with one character spoilt, is refused */
    for (size_t i = 0; i < strlen(text); i++) {
        char bad[sizeof(text) + 1];
        memcpy(bad, text, sizeof(text));
        bad[i] = '\0';
        assert_int_equal(uuid_parse(bad, &v), -EINVAL);
        bad[i] = 'g';
        assert_int_equal(uuid_parse(bad, &v), -EINVAL);
    }
    assert_int_equal(uuid_parse("00112233-4455-6677-8899-aabbccddeeff0", &v), -EINVAL);
}

static void test_oid(void **state)
{
    struct oid o = {
        .vid = 0x1122334455667788, .index = 0x99aabbcc, .kind = 1, .level = 2, .group = 0xddee};
    uint8_t bytes[OID_BYTES];
    static const uint8_t expected[] = {0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
                                       0xcc, 0xbb, 0xaa, 0x99, 0x01, 0x02, 0xee, 0xdd};
    oid_put(bytes, &o);
    assert_memory_equal(bytes, expected, sizeof(expected));
    struct oid p = oid_get(bytes);
    assert_true(oid_equal(&o, &p) && oid_compare(&o, &p) == 0 && oid_hash(&o) == oid_hash(&p));
    p.index++;
    assert_true(oid_compare(&o, &p) < 0 && oid_compare(&p, &o) > 0);
    p.level--; /* level before index */
    assert_true(oid_compare(&p, &o) < 0);
    p.vid++; /* vid before all */
    assert_true(oid_compare(&o, &p) < 0);
    char text[OID_TEXT_SIZE];
    assert_true(strlen(oid_format(&o, text)) < sizeof(text));
    /* Part of the format: these values may never change. */
    assert_int_equal(oid_group(1, 0, 0, 0, 65536), 7138);
    assert_int_equal(oid_group(1, 0, 1, 0, 65536), 59183);
    assert_int_equal(oid_group(1, 1, 0, 0, 65536), 61691);
    assert_int_equal(oid_group(0xfedcba9876543210, 2, 77, 300, 1000), 914);
    unsigned used[8] = {0};
    for (uint32_t i = 0; i < 8000; i++) {
        uint16_t g = oid_group(7, 0, i, 100, 8);
        assert_true(g >= 100 && g < 108);
        used[g - 100]++;
    }
    for (unsigned i = 0; i < 8; i++)
        assert_in_range(used[i], 800, 1200);
}

static void test_version(void **state)
{
    struct version v = version_make((struct term){5}, 7);
    assert_int_equal(v.value, 5ULL << 40 | 7);
    assert_int_equal(version_term(v).value, 5);
}

static void test_crc(void **state)
{
    static const char digits[] = "123456789";
    assert_int_equal(crc32c(0, digits, 9), 0xe3069283);
    assert_int_equal(crc32c(0, digits, 0), 0);
    for (size_t i = 0; i <= 9; i++)
        assert_int_equal(crc32c(crc32c(0, digits, i), digits + i, 9 - i), 0xe3069283);
}

static void test_bytes(void **state)
{
    uint8_t b[9] = {0};
    put_le32(b + 1, 0x01020304);
    assert_int_equal(b[1], 4);
    assert_int_equal(get_le32(b + 1), 0x01020304);
    put_be64(b + 1, 0x0102030405060708);
    assert_int_equal(b[1], 1);
    assert_int_equal(get_be64(b + 1), 0x0102030405060708);
    assert_int_equal(get_be16(b + 1), 0x0102);
}

static void test_log_level(void **state)
{
    enum log_level level = LOG_ERROR;
    assert_int_equal(log_level_parse("debug", &level), 0);
    assert_int_equal(level, LOG_DEBUG);
    assert_int_equal(log_level_parse("loud", &level), -EINVAL);
    assert_int_equal(level, LOG_DEBUG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_err),     cmocka_unit_test(test_checked),
        cmocka_unit_test(test_list),    cmocka_unit_test(test_hash),
        cmocka_unit_test(test_uuid),    cmocka_unit_test(test_oid),
        cmocka_unit_test(test_version), cmocka_unit_test(test_crc),
        cmocka_unit_test(test_bytes),   cmocka_unit_test(test_log_level),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
