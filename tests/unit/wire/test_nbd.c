/* SPDX-License-Identifier: Apache-2.0 */
/* The NBD codec: round trips, exact bytes, truncation at every length, hostile lengths. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/bytes.h"
#include "base/err.h"
#include "wire/nbd.h"

/* Big-endian message under construction. */
struct message {
    uint8_t bytes[256];
    size_t length;
};

static void put_u16(struct message *m, uint16_t v)
{
    put_be16(m->bytes + m->length, v);
    m->length += 2;
}

static void put_u32(struct message *m, uint32_t v)
{
    put_be32(m->bytes + m->length, v);
    m->length += 4;
}

static void put_text(struct message *m, const char *s)
{
    put_u32(m, (uint32_t)strlen(s));
    memcpy(m->bytes + m->length, s, strlen(s));
    m->length += strlen(s);
}

/* A copy of exactly that size, so that the sanitizer sees a read past its end. */
static void *exact(const void *p, size_t length)
{
    void *copy = malloc(length ? length : 1);
    assert_non_null(copy);
    memcpy(copy, p, length);
    return copy;
}

static void assert_text(struct nbd_string s, const char *expected)
{
    assert_int_equal(s.length, strlen(expected));
    assert_memory_equal(s.bytes, expected, s.length);
}

static void test_greeting(void **state)
{
    static const uint8_t expected[NBD_GREETING_SIZE] = "NBDMAGICIHAVEOPT\0\3";
    uint8_t out[NBD_GREETING_SIZE];
    nbd_greeting_put(out);
    assert_memory_equal(out, expected, sizeof(out));
}

static void test_client_flags(void **state)
{
    uint8_t in[NBD_CLIENT_FLAGS_SIZE];
    unsigned flags = 77;
    for (uint32_t v = 0; v < 4; v++) {
        put_be32(in, v);
        assert_int_equal(nbd_client_flags_get(in, &flags), 0);
        assert_int_equal(flags, v);
    }
    for (unsigned bit = 2; bit < 32; bit++) {
        flags = 77;
        put_be32(in, 1u << bit | 3);
        assert_int_equal(nbd_client_flags_get(in, &flags), -EPROTO);
        assert_int_equal(flags, 77);
    }
}

static void test_option(void **state)
{
    uint8_t bytes[NBD_OPTION_SIZE];
    struct nbd_option o = {.code = 0xdeadbeef, .length = 0xfffffffe}, back = {0};
    nbd_option_put(bytes, &o);
    assert_memory_equal(bytes, "IHAVEOPT\xde\xad\xbe\xef\xff\xff\xff\xfe", sizeof(bytes));
    assert_int_equal(nbd_option_get(bytes, &back), 0);
    assert_int_equal(back.code, o.code);
    assert_int_equal(back.length, o.length);
    for (size_t i = 0; i < 8; i++) {
        bytes[i] ^= 1;
        assert_int_equal(nbd_option_get(bytes, &back), -EBADMSG);
        bytes[i] ^= 1;
    }
}

/* Every proper prefix of m, and m with one byte more, must be refused. */
static void assert_only_whole(const struct message *m, int (*get)(const void *, size_t))
{
    for (size_t length = 0; length <= m->length + 1; length++) {
        void *copy = exact(m->bytes, length);
        assert_int_equal(get(copy, length), length == m->length ? 0 : -EBADMSG);
        free(copy);
    }
}

static int get_info_request(const void *data, size_t length)
{
    struct nbd_info_request q;
    return nbd_info_request_get(data, length, &q);
}

static int get_meta_request(const void *data, size_t length)
{
    struct nbd_meta_request m;
    return nbd_meta_request_get(data, length, &m);
}

static void test_info_request(void **state)
{
    struct message m = {0};
    put_text(&m, "disk@monday");
    put_u16(&m, 4);
    put_u16(&m, NBD_INFO_BLOCK_SIZE);
    put_u16(&m, 999); /* unknown ones are ignored */
    put_u16(&m, NBD_INFO_NAME);
    put_u16(&m, NBD_INFO_EXPORT);
    struct nbd_info_request q;
    assert_int_equal(nbd_info_request_get(m.bytes, m.length, &q), 0);
    assert_text(q.name, "disk@monday");
    assert_true(q.wants_block_size && q.wants_name && !q.wants_description);
    assert_only_whole(&m, get_info_request);
}

static void test_meta_request(void **state)
{
    struct message m = {0};
    put_text(&m, "disk");
    put_u32(&m, 3);
    put_text(&m, "base:allocation");
    put_text(&m, "");
    put_text(&m, "qemu:dirty-bitmap:x");
    struct nbd_meta_request q;
    assert_int_equal(nbd_meta_request_get(m.bytes, m.length, &q), 0);
    assert_text(q.name, "disk");
    assert_int_equal(q.query_count, 3);
    assert_text(nbd_meta_request_next(&q), "base:allocation");
    assert_text(nbd_meta_request_next(&q), "");
    assert_text(nbd_meta_request_next(&q), "qemu:dirty-bitmap:x");
    assert_int_equal(q.query_count, 0);
    assert_only_whole(&m, get_meta_request);
}

static void test_hostile_lengths(void **state)
{
    static const uint32_t lengths[] = {5, 0x7fffffff, 0x80000000, 0xfffffff8, 0xffffffff};
    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        struct message m = {0};
        put_u32(&m, lengths[i]); /* of a name that is not there */
        put_u32(&m, 0);
        uint8_t *copy = exact(m.bytes, m.length);
        assert_int_equal(get_info_request(copy, m.length), -EBADMSG);
        assert_int_equal(get_meta_request(copy, m.length), -EBADMSG);
        free(copy);
        m.length = 0;
        put_text(&m, "x");
        put_u32(&m, lengths[i]); /* queries that are not there */
        copy = exact(m.bytes, m.length);
        assert_int_equal(get_meta_request(copy, m.length), -EBADMSG);
        free(copy);
    }
}

static void test_name_longer_than_the_protocol_allows(void **state)
{
    for (uint32_t length = NBD_STRING_SIZE_MAX; length <= NBD_STRING_SIZE_MAX + 1; length++) {
        uint8_t *data = calloc(1, 4 + length + 2);
        put_be32(data, length);
        int r = get_info_request(data, 4 + length + 2);
        assert_int_equal(r, length <= NBD_STRING_SIZE_MAX ? 0 : -EBADMSG);
        free(data);
    }
}

/* The reply at *position: its header, checked to lie inside e; *position moves behind it. */
static const uint8_t *take_reply(const struct enc *e, size_t *position,
                                 struct nbd_option_reply *ret)
{
    assert_true(e->length - *position >= NBD_OPTION_REPLY_SIZE);
    assert_int_equal(nbd_option_reply_get(e->data + *position, ret), 0);
    const uint8_t *data = e->data + *position + NBD_OPTION_REPLY_SIZE;
    *position += NBD_OPTION_REPLY_SIZE + ret->length;
    assert_true(*position <= e->length);
    return data;
}

static void test_option_replies(void **state)
{
    struct enc e;
    enc_init(&e);
    nbd_reply_ack(&e, NBD_OPT_LIST);
    nbd_reply_error(&e, NBD_OPT_GO, NBD_REP_ERR_UNKNOWN, "no");
    nbd_reply_error(&e, 12345, NBD_REP_ERR_UNSUP, NULL);
    nbd_reply_server(&e, "disk", "about");
    nbd_reply_info_export(&e, NBD_OPT_GO, 0x0102030405060708, 0x0fed);
    nbd_reply_info_text(&e, NBD_OPT_INFO, NBD_INFO_NAME, "disk");
    nbd_reply_info_block_size(&e, NBD_OPT_INFO);
    nbd_reply_meta_context(&e, NBD_OPT_SET_META_CONTEXT, 1, "base:allocation");
    assert_int_equal(e.error, 0);
    struct {
        uint32_t option, code, length;
        const char *data;
    } expected[] = {
        {NBD_OPT_LIST, NBD_REP_ACK, 0, ""},
        {NBD_OPT_GO, NBD_REP_ERR_UNKNOWN, 2, "no"},
        {12345, NBD_REP_ERR_UNSUP, 0, ""},
        {NBD_OPT_LIST, NBD_REP_SERVER, 13, "\0\0\0\4diskabout"},
        {NBD_OPT_GO, NBD_REP_INFO, 12, "\0\0\1\2\3\4\5\6\7\x8\x0f\xed"},
        {NBD_OPT_INFO, NBD_REP_INFO, 6, "\0\1disk"},
        {NBD_OPT_INFO, NBD_REP_INFO, 14, "\0\3\0\0\0\1\0\0\x10\0\2\0\0\0"},
        {NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, 19, "\0\0\0\1base:allocation"},
    };
    size_t position = 0;
    for (size_t i = 0; i < ARRAY_SIZE(expected); i++) {
        struct nbd_option_reply r;
        const uint8_t *data = take_reply(&e, &position, &r);
        assert_int_equal(r.option, expected[i].option);
        assert_int_equal(r.code, expected[i].code);
        assert_int_equal(r.length, expected[i].length);
        assert_memory_equal(data, expected[i].data, r.length);
    }
    assert_int_equal(position, e.length);
    enc_done(&e);
}

static void test_long_text_is_cut(void **state)
{
    char *text = malloc(NBD_STRING_SIZE_MAX + 100);
    memset(text, 'x', NBD_STRING_SIZE_MAX + 99);
    text[NBD_STRING_SIZE_MAX + 99] = '\0';
    struct enc e;
    enc_init(&e);
    nbd_reply_error(&e, NBD_OPT_GO, NBD_REP_ERR_POLICY, text);
    assert_int_equal(e.length, NBD_OPTION_REPLY_SIZE + NBD_STRING_SIZE_MAX);
    enc_done(&e);
    free(text);
}

static void test_export_name_answer(void **state)
{
    struct enc e;
    enc_init(&e);
    nbd_export_name_answer(&e, 7, 0x0103, NBD_ZEROES_LEFT_OUT);
    assert_int_equal(e.length, 10);
    assert_memory_equal(e.data, "\0\0\0\0\0\0\0\7\1\3", 10);
    enc_done(&e);
    nbd_export_name_answer(&e, 7, 0x0103, NBD_ZEROES_SENT);
    assert_int_equal(e.length, 134);
    enc_done(&e);
}

static void test_request(void **state)
{
    struct nbd_request r = {.flags = 0x0102,
                            .command = 0x0304,
                            .cookie = 0x0506070809101112,
                            .offset = 0xf314151617181920,
                            .length = 0xf1222324},
                       back = {0};
    uint8_t bytes[NBD_REQUEST_SIZE];
    nbd_request_put(bytes, &r);
    assert_memory_equal(bytes,
                        "\x25\x60\x95\x13\1\2\3\4\5\6\7\x8\x9\x10\x11\x12"
                        "\xf3\x14\x15\x16\x17\x18\x19\x20\xf1\x22\x23\x24",
                        sizeof(bytes));
    assert_int_equal(nbd_request_get(bytes, &back), 0);
    assert_int_equal(back.flags, r.flags);
    assert_int_equal(back.command, r.command);
    assert_int_equal(back.cookie, r.cookie);
    assert_int_equal(back.offset, r.offset);
    assert_int_equal(back.length, r.length);
    bytes[3] ^= 0x80;
    assert_int_equal(nbd_request_get(bytes, &back), -EBADMSG);
}

static void test_replies(void **state)
{
    uint8_t out[NBD_CHUNK_HEAD_SIZE_MAX];
    const uint64_t cookie = 0x1112131415161718;
    nbd_simple_reply_put(out, cookie, NBD_ENOSPC);
    assert_memory_equal(out, "\x67\x44\x66\x98\0\0\0\x1c\x11\x12\x13\x14\x15\x16\x17\x18", 16);

#define CHUNK(type) "\x66\x8e\x33\xef\0\1" type "\x11\x12\x13\x14\x15\x16\x17\x18"
    assert_int_equal(nbd_chunk_none_put(out, cookie), 20);
    assert_memory_equal(out, CHUNK("\0\0") "\0\0\0\0", 20);
    assert_int_equal(nbd_chunk_data_put(out, cookie, 0x0a, 0x1000), 28);
    assert_memory_equal(out, CHUNK("\0\1") "\0\0\x10\x08\0\0\0\0\0\0\0\x0a", 28);
    assert_int_equal(nbd_chunk_hole_put(out, cookie, 0x0a, 0x1000), 32);
    assert_memory_equal(out, CHUNK("\0\2") "\0\0\0\x0c\0\0\0\0\0\0\0\x0a\0\0\x10\0", 32);
    assert_int_equal(nbd_chunk_error_put(out, cookie, NBD_EIO), 26);
    assert_memory_equal(out, CHUNK("\x80\1") "\0\0\0\6\0\0\0\5\0\0", 26);
    assert_int_equal(nbd_chunk_status_put(out, cookie, 1, 2), 24);
    assert_memory_equal(out, CHUNK("\0\5") "\0\0\0\x14\0\0\0\1", 24);
    nbd_extent_put(out, 0x01020304, NBD_STATE_HOLE | NBD_STATE_ZERO);
    assert_memory_equal(out, "\1\2\3\4\0\0\0\3", 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greeting),
        cmocka_unit_test(test_client_flags),
        cmocka_unit_test(test_option),
        cmocka_unit_test(test_info_request),
        cmocka_unit_test(test_meta_request),
        cmocka_unit_test(test_hostile_lengths),
        cmocka_unit_test(test_name_longer_than_the_protocol_allows),
        cmocka_unit_test(test_option_replies),
        cmocka_unit_test(test_long_text_is_cut),
        cmocka_unit_test(test_export_name_answer),
        cmocka_unit_test(test_request),
        cmocka_unit_test(test_replies),
    };
    return cmocka_run_group_tests_name("wire/nbd", tests, NULL, NULL);
}
