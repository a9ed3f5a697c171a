/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codec of the NBD protocol; see nbd.h for N1 and N2.
 *
 * N3 What is announced (flags of the greeting, limits) is what nbd_client_flags_get() and the
 * server accept.
 */
#include "wire/nbd.h"
#include "base/bytes.h"
#include "base/err.h"

#define MAGIC_HELLO        0x4e42444d41474943ULL /* "NBDMAGIC" */
#define MAGIC_OPTION       0x49484156454f5054ULL /* "IHAVEOPT" */
#define MAGIC_OPTION_REPLY 0x0003e889045565a9ULL
#define MAGIC_REQUEST      0x25609513u
#define MAGIC_SIMPLE_REPLY 0x67446698u
#define MAGIC_CHUNK        0x668e33efu

#define SERVER_FLAGS (NBD_CLIENT_FIXED_NEWSTYLE | NBD_CLIENT_NO_ZEROES) /* same bits both ways */

#define CHUNK_FLAG_DONE 1u
enum chunk_type {
    CHUNK_NONE = 0,
    CHUNK_OFFSET_DATA = 1,
    CHUNK_OFFSET_HOLE = 2,
    CHUNK_BLOCK_STATUS = 5,
    CHUNK_ERROR = 0x8001,
};
#define CHUNK_SIZE         20
#define EXPORT_ZEROES_SIZE 124

/* --- big-endian cursor over received bytes --- */

struct cursor {
    const uint8_t *p;
    size_t left;
    bool failed; /* latched; every value is 0 then */
};

static const uint8_t *take(struct cursor *c, size_t length)
{
    if (c->failed || length > c->left) {
        c->failed = true;
        return NULL;
    }
    const uint8_t *p = c->p;
    c->p += length;
    c->left -= length;
    return p;
}

static uint16_t take_u16(struct cursor *c)
{
    const uint8_t *p = take(c, 2);
    return p ? get_be16(p) : 0;
}

static uint32_t take_u32(struct cursor *c)
{
    const uint8_t *p = take(c, 4);
    return p ? get_be32(p) : 0;
}

/* u32 length, then the bytes. */
static struct nbd_string take_string(struct cursor *c)
{
    uint32_t length = take_u32(c);
    if (length > NBD_STRING_SIZE_MAX)
        c->failed = true;
    const uint8_t *p = take(c, length);
    if (!p)
        return (struct nbd_string){"", 0};
    return (struct nbd_string){(const char *)p, length};
}

/* --- handshake: what clients send --- */

void nbd_greeting_put(uint8_t out[NBD_GREETING_SIZE])
{
    put_be64(out, MAGIC_HELLO);
    put_be64(out + 8, MAGIC_OPTION);
    put_be16(out + 16, SERVER_FLAGS);
}

int nbd_client_flags_get(const uint8_t in[NBD_CLIENT_FLAGS_SIZE], unsigned *ret)
{
    uint32_t flags = get_be32(in);
    if (flags & ~(uint32_t)SERVER_FLAGS)
        return -EPROTO;
    *ret = flags;
    return 0;
}

int nbd_option_get(const uint8_t in[NBD_OPTION_SIZE], struct nbd_option *ret)
{
    if (get_be64(in) != MAGIC_OPTION)
        return -EBADMSG;
    *ret = (struct nbd_option){.code = get_be32(in + 8), .length = get_be32(in + 12)};
    return 0;
}

void nbd_option_put(uint8_t out[NBD_OPTION_SIZE], const struct nbd_option *o)
{
    put_be64(out, MAGIC_OPTION);
    put_be32(out + 8, o->code);
    put_be32(out + 12, o->length);
}

int nbd_info_request_get(const void *data, size_t length, struct nbd_info_request *ret)
{
    struct cursor c = {.p = data, .left = length};
    struct nbd_info_request q = {.name = take_string(&c)};
    unsigned count = take_u16(&c);
    for (unsigned i = 0; i < count && !c.failed; i++) {
        switch (take_u16(&c)) {
        case NBD_INFO_NAME:
            q.wants_name = true;
            break;
        case NBD_INFO_DESCRIPTION:
            q.wants_description = true;
            break;
        case NBD_INFO_BLOCK_SIZE:
            q.wants_block_size = true;
            break;
        default: /* the protocol wants unknown ones ignored */
            break;
        }
    }
    if (c.failed || c.left > 0)
        return -EBADMSG;
    *ret = q;
    return 0;
}

int nbd_meta_request_get(const void *data, size_t length, struct nbd_meta_request *ret)
{
    struct cursor c = {.p = data, .left = length};
    struct nbd_meta_request m = {.name = take_string(&c)};
    m.query_count = take_u32(&c);
    m.next = c.p;
    for (uint32_t i = 0; i < m.query_count && !c.failed; i++)
        take_string(&c);
    if (c.failed || c.left > 0)
        return -EBADMSG;
    *ret = m;
    return 0;
}

struct nbd_string nbd_meta_request_next(struct nbd_meta_request *m)
{
    ASSERT(m->query_count > 0);
    struct nbd_string s = {.bytes = (const char *)m->next + 4, .length = get_be32(m->next)};
    m->next += 4 + s.length;
    m->query_count--;
    return s;
}

/* --- handshake: what we answer --- */

static void enc_be16(struct enc *e, uint16_t v)
{
    uint8_t bytes[2];
    put_be16(bytes, v);
    enc_bytes(e, bytes, sizeof(bytes));
}

static void enc_be32(struct enc *e, uint32_t v)
{
    uint8_t bytes[4];
    put_be32(bytes, v);
    enc_bytes(e, bytes, sizeof(bytes));
}

static void enc_be64(struct enc *e, uint64_t v)
{
    uint8_t bytes[8];
    put_be64(bytes, v);
    enc_bytes(e, bytes, sizeof(bytes));
}

static void enc_reply(struct enc *e, uint32_t option, uint32_t code, size_t length)
{
    ASSERT(length <= UINT32_MAX);
    enc_be64(e, MAGIC_OPTION_REPLY);
    enc_be32(e, option);
    enc_be32(e, code);
    enc_be32(e, (uint32_t)length);
}

/* Length of s as it is sent. */
static size_t text_length(const char *s)
{
    return s ? strnlen(s, NBD_STRING_SIZE_MAX) : 0;
}

void nbd_reply_ack(struct enc *e, uint32_t option)
{
    enc_reply(e, option, NBD_REP_ACK, 0);
}

void nbd_reply_error(struct enc *e, uint32_t option, enum nbd_reply_code code, const char *text)
{
    ASSERT((uint32_t)code & NBD_REP_ERROR_BIT);
    size_t length = text_length(text);
    enc_reply(e, option, (uint32_t)code, length);
    enc_bytes(e, text, length);
}

void nbd_reply_server(struct enc *e, const char *name, const char *description)
{
    size_t name_length = text_length(name), description_length = text_length(description);
    enc_reply(e, NBD_OPT_LIST, NBD_REP_SERVER, 4 + name_length + description_length);
    enc_be32(e, (uint32_t)name_length);
    enc_bytes(e, name, name_length);
    enc_bytes(e, description, description_length);
}

void nbd_reply_info_export(struct enc *e, uint32_t option, uint64_t size, unsigned flags)
{
    ASSERT(flags <= UINT16_MAX);
    enc_reply(e, option, NBD_REP_INFO, 12);
    enc_be16(e, NBD_INFO_EXPORT);
    enc_be64(e, size);
    enc_be16(e, (uint16_t)flags);
}

void nbd_reply_info_text(struct enc *e, uint32_t option, enum nbd_info info, const char *text)
{
    ASSERT(info == NBD_INFO_NAME || info == NBD_INFO_DESCRIPTION);
    size_t length = text_length(text);
    enc_reply(e, option, NBD_REP_INFO, 2 + length);
    enc_be16(e, (uint16_t)info);
    enc_bytes(e, text, length);
}

void nbd_reply_info_block_size(struct enc *e, uint32_t option)
{
    enc_reply(e, option, NBD_REP_INFO, 14);
    enc_be16(e, NBD_INFO_BLOCK_SIZE);
    enc_be32(e, NBD_BLOCK_SIZE_MIN);
    enc_be32(e, NBD_BLOCK_SIZE_BEST);
    enc_be32(e, NBD_PAYLOAD_SIZE_MAX);
}

void nbd_reply_meta_context(struct enc *e, uint32_t option, uint32_t id, const char *name)
{
    size_t length = text_length(name);
    enc_reply(e, option, NBD_REP_META_CONTEXT, 4 + length);
    enc_be32(e, id);
    enc_bytes(e, name, length);
}

void nbd_export_name_answer(struct enc *e, uint64_t size, unsigned flags, enum nbd_zeroes zeroes)
{
    static const uint8_t zero_bytes[EXPORT_ZEROES_SIZE];
    ASSERT(flags <= UINT16_MAX);
    enc_be64(e, size);
    enc_be16(e, (uint16_t)flags);
    if (zeroes == NBD_ZEROES_SENT)
        enc_bytes(e, zero_bytes, sizeof(zero_bytes));
}

int nbd_option_reply_get(const uint8_t in[NBD_OPTION_REPLY_SIZE], struct nbd_option_reply *ret)
{
    if (get_be64(in) != MAGIC_OPTION_REPLY)
        return -EBADMSG;
    *ret = (struct nbd_option_reply){
        .option = get_be32(in + 8), .code = get_be32(in + 12), .length = get_be32(in + 16)};
    return 0;
}

/* --- transmission --- */

int nbd_request_get(const uint8_t in[NBD_REQUEST_SIZE], struct nbd_request *ret)
{
    if (get_be32(in) != MAGIC_REQUEST)
        return -EBADMSG;
    *ret = (struct nbd_request){
        .flags = get_be16(in + 4),
        .command = get_be16(in + 6),
        .cookie = get_be64(in + 8),
        .offset = get_be64(in + 16),
        .length = get_be32(in + 24),
    };
    return 0;
}

void nbd_request_put(uint8_t out[NBD_REQUEST_SIZE], const struct nbd_request *r)
{
    put_be32(out, MAGIC_REQUEST);
    put_be16(out + 4, r->flags);
    put_be16(out + 6, r->command);
    put_be64(out + 8, r->cookie);
    put_be64(out + 16, r->offset);
    put_be32(out + 24, r->length);
}

void nbd_simple_reply_put(uint8_t out[NBD_SIMPLE_REPLY_SIZE], uint64_t cookie, enum nbd_error error)
{
    put_be32(out, MAGIC_SIMPLE_REPLY);
    put_be32(out + 4, error);
    put_be64(out + 8, cookie);
}

/* Every reply of ours is one chunk, so it is always the last. `length` counts what follows. */
static void chunk_put(uint8_t out[CHUNK_SIZE], uint64_t cookie, enum chunk_type type,
                      uint32_t length)
{
    put_be32(out, MAGIC_CHUNK);
    put_be16(out + 4, CHUNK_FLAG_DONE);
    put_be16(out + 6, (uint16_t)type);
    put_be64(out + 8, cookie);
    put_be32(out + 16, length);
}

size_t nbd_chunk_none_put(uint8_t out[NBD_CHUNK_HEAD_SIZE_MAX], uint64_t cookie)
{
    chunk_put(out, cookie, CHUNK_NONE, 0);
    return CHUNK_SIZE;
}

size_t nbd_chunk_data_put(uint8_t out[NBD_CHUNK_HEAD_SIZE_MAX], uint64_t cookie, uint64_t offset,
                          uint32_t length)
{
    ASSERT(length > 0 && length <= NBD_PAYLOAD_SIZE_MAX);
    chunk_put(out, cookie, CHUNK_OFFSET_DATA, 8 + length);
    put_be64(out + CHUNK_SIZE, offset);
    return CHUNK_SIZE + 8;
}

size_t nbd_chunk_hole_put(uint8_t out[NBD_CHUNK_HEAD_SIZE_MAX], uint64_t cookie, uint64_t offset,
                          uint32_t length)
{
    static_assert(CHUNK_SIZE + 12 <= NBD_CHUNK_HEAD_SIZE_MAX, "the longest header");
    ASSERT(length > 0);
    chunk_put(out, cookie, CHUNK_OFFSET_HOLE, 12);
    put_be64(out + CHUNK_SIZE, offset);
    put_be32(out + CHUNK_SIZE + 8, length);
    return CHUNK_SIZE + 12;
}

size_t nbd_chunk_error_put(uint8_t out[NBD_CHUNK_HEAD_SIZE_MAX], uint64_t cookie,
                           enum nbd_error error)
{
    ASSERT(error != NBD_OK);
    chunk_put(out, cookie, CHUNK_ERROR, 6);
    put_be32(out + CHUNK_SIZE, error);
    put_be16(out + CHUNK_SIZE + 4, 0); /* no text */
    return CHUNK_SIZE + 6;
}

size_t nbd_chunk_status_put(uint8_t out[NBD_CHUNK_HEAD_SIZE_MAX], uint64_t cookie,
                            uint32_t context_id, uint32_t count)
{
    ASSERT(count > 0 && count <= NBD_PAYLOAD_SIZE_MAX / NBD_EXTENT_SIZE);
    chunk_put(out, cookie, CHUNK_BLOCK_STATUS, 4 + count * NBD_EXTENT_SIZE);
    put_be32(out + CHUNK_SIZE, context_id);
    return CHUNK_SIZE + 4;
}

void nbd_extent_put(uint8_t out[NBD_EXTENT_SIZE], uint32_t length, unsigned flags)
{
    put_be32(out, length);
    put_be32(out + 4, flags);
}
