/* SPDX-License-Identifier: Apache-2.0 */
/* Frames of the admin protocol: round trips, and everything hostile is refused (A1, A2). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/bytes.h"
#include "base/err.h"
#include "wire/admin.h"

static void test_round_trip(void **state)
{
    static const char text[] = "{\"op\":\"node.list\"}";
    uint8_t bytes[ADMIN_HEADER_SIZE];
    struct admin_header h;
    admin_header_put(bytes, ADMIN_JSON, text, sizeof(text) - 1);
    assert_int_equal(admin_header_get(bytes, ADMIN_FROM_CLIENT, &h), 0);
    assert_int_equal(h.kind, ADMIN_JSON);
    assert_int_equal(h.length, sizeof(text) - 1);
    assert_int_equal(admin_payload_check(&h, text), 0);
}

static void test_empty_data_ends(void **state)
{
    uint8_t bytes[ADMIN_HEADER_SIZE];
    struct admin_header h;
    admin_header_put(bytes, ADMIN_DATA, NULL, 0);
    assert_int_equal(admin_header_get(bytes, ADMIN_FROM_CLIENT, &h), 0);
    assert_int_equal(admin_payload_check(&h, NULL), 0);
}

/* Every single bit, in header and payload: refused by one check or the other. */
static void test_every_bit_flip_is_seen(void **state)
{
    uint8_t frame[ADMIN_HEADER_SIZE + 9], *payload = frame + ADMIN_HEADER_SIZE;
    memcpy(payload, "{\"op\":1}\n", 9);
    admin_header_put(frame, ADMIN_JSON, payload, 9);
    for (size_t bit = 0; bit < 8 * sizeof(frame); bit++) {
        struct admin_header h;
        frame[bit / 8] ^= (uint8_t)(1u << bit % 8);
        int r = admin_header_get(frame, ADMIN_FROM_CLIENT, &h);
        if (r == 0) {
            /* The length may have grown: what would be read is not what was sent. */
            uint8_t *received = calloc(1, h.length + 1);
            memcpy(received, payload, h.length < 9 ? h.length : 9);
            r = admin_payload_check(&h, received);
            free(received);
        }
        assert_int_not_equal(r, 0);
        frame[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

static int get(uint32_t length, uint32_t kind, enum admin_side side)
{
    uint8_t bytes[ADMIN_HEADER_SIZE] = {0};
    struct admin_header h;
    put_le32(bytes, length);
    put_le32(bytes + 4, kind);
    return admin_header_get(bytes, side, &h);
}

static void test_lengths_are_bounded(void **state)
{
    assert_int_equal(get(ADMIN_REQUEST_MAX, ADMIN_JSON, ADMIN_FROM_CLIENT), 0);
    assert_int_equal(get(ADMIN_REQUEST_MAX + 1, ADMIN_JSON, ADMIN_FROM_CLIENT), -EFBIG);
    assert_int_equal(get(ADMIN_REQUEST_MAX + 1, ADMIN_JSON, ADMIN_FROM_SERVER), 0);
    assert_int_equal(get(ADMIN_ANSWER_MAX + 1, ADMIN_JSON, ADMIN_FROM_SERVER), -EFBIG);
    assert_int_equal(get(0, ADMIN_JSON, ADMIN_FROM_CLIENT), -EBADMSG);
    assert_int_equal(get(ADMIN_DATA_MAX, ADMIN_DATA, ADMIN_FROM_CLIENT), 0);
    assert_int_equal(get(ADMIN_DATA_MAX + 1, ADMIN_DATA, ADMIN_FROM_CLIENT), -EFBIG);
    assert_int_equal(get(UINT32_MAX, ADMIN_DATA, ADMIN_FROM_SERVER), -EFBIG);
    assert_int_equal(get(8, ADMIN_ZEROS, ADMIN_FROM_CLIENT), 0);
    assert_int_equal(get(7, ADMIN_ZEROS, ADMIN_FROM_CLIENT), -EBADMSG);
    assert_int_equal(get(8, 0, ADMIN_FROM_CLIENT), -EBADMSG);
    assert_int_equal(get(8, 4, ADMIN_FROM_CLIENT), -EBADMSG);
}

static void test_magic(void **state)
{
    assert_int_equal(admin_magic_parse((const uint8_t *)"KELPADM1"), ADMIN_MAGIC_OURS);
    assert_int_equal(admin_magic_parse((const uint8_t *)"KELPADM2"), ADMIN_MAGIC_OTHER_VERSION);
    assert_int_equal(admin_magic_parse((const uint8_t *)"GET / HT"), ADMIN_MAGIC_FOREIGN);
}

static bool nested(unsigned depth)
{
    char text[64] = "";
    memset(text, '[', depth);
    return admin_json_depth_ok(text, depth);
}

static void test_nesting(void **state)
{
    static const char in_string[] = "{\"a\":\"[[[[[[[[[[[[[[[[[[[[\\\"[[[[[[[[[[[[\"}";
    static const char behind_string[] = "[\"\\\\\",[[[[[[[[[[[[[[[[";
    static const char wide[] = "[[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[]]";
    assert_true(nested(ADMIN_JSON_DEPTH_MAX));
    assert_false(nested(ADMIN_JSON_DEPTH_MAX + 1));
    assert_true(admin_json_depth_ok(in_string, sizeof(in_string) - 1));
    assert_false(admin_json_depth_ok(behind_string, sizeof(behind_string) - 1));
    assert_true(admin_json_depth_ok(wide, sizeof(wide) - 1));
    assert_true(admin_json_depth_ok("\"\\", 2)); /* ends inside an escape */
}

static void test_errors_travel_by_name(void **state)
{
    static const int all[] = {-EINVAL,       -ENOENT, -EEXIST,     -ENOSPC,    -ESTALE,
                              -EUCLEAN,      -EIO,    -ECONNRESET, -ETIMEDOUT, -EAGAIN,
                              -EBUSY,        -EROFS,  -ECANCELED,  -EBADMSG,   -EPROTO,
                              -ENAMETOOLONG, -EFBIG,  -ENOMEM,     -EPERM,     -EMEDIUMTYPE};
    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        assert_int_equal(admin_errno_parse(admin_errno_name(all[i])), all[i]);
    assert_string_equal(admin_errno_name(-EXDEV), "EIO");
    assert_int_equal(admin_errno_parse("EWHAT"), -EIO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_empty_data_ends),
        cmocka_unit_test(test_every_bit_flip_is_seen),
        cmocka_unit_test(test_lengths_are_bounded),
        cmocka_unit_test(test_magic),
        cmocka_unit_test(test_nesting),
        cmocka_unit_test(test_errors_travel_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
