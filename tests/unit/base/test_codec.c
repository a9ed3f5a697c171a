/* SPDX-License-Identifier: Apache-2.0 */
/* Promise: what the encoder writes the decoder reads; nothing else is accepted, nothing read past
 * the end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/codec.h"
#include "base/err.h"

static const uint64_t unsigned_values[] = {0,     1,          127,        128,       16383,
                                           16384, UINT32_MAX, 1ULL << 63, UINT64_MAX};
static const int64_t signed_values[] = {0, -1, 1, 63, -64, 64, -65, INT64_MAX, INT64_MIN};

static void encode_all(struct enc *e)
{
    enc_init(e);
    enc_u8(e, 0x12);
    enc_u16(e, 0x1234);
    enc_u32(e, 0x12345678);
    enc_u64(e, 0x123456789abcdef0);
    for (size_t i = 0; i < ARRAY_SIZE(unsigned_values); i++)
        enc_varint(e, unsigned_values[i]);
    for (size_t i = 0; i < ARRAY_SIZE(signed_values); i++)
        enc_svarint(e, signed_values[i]);
    enc_blob(e, "blob", 4);
    enc_blob(e, NULL, 0);
    enc_str(e, "string");
    assert_int_equal(e->error, 0);
}

static int decode_all(const void *p, size_t length)
{
    struct dec d;
    char text[7];
    size_t n;
    bool ok = true;
    dec_init(&d, p, length);
    ok &= dec_u8(&d) == 0x12;
    ok &= dec_u16(&d) == 0x1234;
    ok &= dec_u32(&d) == 0x12345678;
    ok &= dec_u64(&d) == 0x123456789abcdef0;
    for (size_t i = 0; i < ARRAY_SIZE(unsigned_values); i++)
        ok &= dec_varint(&d) == unsigned_values[i];
    for (size_t i = 0; i < ARRAY_SIZE(signed_values); i++)
        ok &= dec_svarint(&d) == signed_values[i];
    const uint8_t *blob = dec_blob(&d, &n);
    ok &= blob && n == 4 && memcmp(blob, "blob", 4) == 0;
    ok &= dec_blob(&d, &n) && n == 0;
    dec_str(&d, text, sizeof(text));
    ok &= strcmp(text, "string") == 0;
    int r = dec_finish(&d);
    assert_true(ok || r < 0);
    return r;
}

static void test_round_trip(void **state)
{
    struct enc e;
    encode_all(&e);
    assert_int_equal(decode_all(e.data, e.length), 0);
    /* Every prefix, in memory of just that size, fails without reading past its end. */
    for (size_t length = 0; length < e.length; length++) {
        uint8_t *copy = malloc(length ? length : 1);
        memcpy(copy, e.data, length);
        assert_int_equal(decode_all(copy, length), -EBADMSG);
        free(copy);
    }
    enc_u8(&e, 0); /* one byte too many */
    assert_int_equal(decode_all(e.data, e.length), -EBADMSG);
    enc_done(&e);
}

static int decode_varint(const uint8_t *p, size_t length)
{
    struct dec d;
    dec_init(&d, p, length);
    (void)dec_varint(&d);
    return dec_finish(&d);
}

static void test_varint_malformed(void **state)
{
    static const uint8_t largest[] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 1};
    static const uint8_t too_large[] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 2};
    static const uint8_t endless[] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
    static const uint8_t overlong[] = {0x80, 0};
    assert_int_equal(decode_varint(largest, sizeof(largest)), 0);
    assert_int_equal(decode_varint(too_large, sizeof(too_large)), -EBADMSG);
    assert_int_equal(decode_varint(endless, sizeof(endless)), -EBADMSG);
    assert_int_equal(decode_varint(overlong, sizeof(overlong)), -EBADMSG);
}

static void test_strings(void **state)
{
    struct enc e;
    struct dec d;
    char text[4] = "xx";
    enc_init(&e);
    enc_str(&e, "four");
    dec_init(&d, e.data, e.length);
    dec_str(&d, text, sizeof(text)); /* no room for the terminator */
    assert_int_equal(d.error, -EBADMSG);
    assert_int_equal(text[0], 0);
    assert_int_equal(dec_left(&d), 0);
    assert_int_equal(dec_u8(&d), 0); /* E2 */
    enc_done(&e);
    enc_init(&e);
    enc_blob(&e, "a\0b", 3);
    dec_init(&d, e.data, e.length);
    dec_str(&d, text, sizeof(text));
    assert_int_equal(d.error, -EBADMSG);
    enc_done(&e);
    static const uint8_t huge[] = {255, 255, 255, 255, 'x'};
    size_t n = 1;
    dec_init(&d, huge, sizeof(huge));
    assert_null(dec_blob(&d, &n));
    assert_int_equal(n, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_varint_malformed),
        cmocka_unit_test(test_strings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
