/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Encoder and decoder of our own little-endian formats.
 *
 * E1 Once an encoder failed its content is unspecified and nothing more is appended.
 * E2 Once a decoder failed it yields zeros and never reads again; it never reads past its end.
 * E3 Every value has one encoding: a varint longer than needed is malformed.
 */
#include "base/codec.h"
#include <stdlib.h>
#include "base/bytes.h"
#include "base/err.h"

#define CAPACITY_MIN    64
#define VARINT_SIZE_MAX 10

void enc_init(struct enc *e)
{
    *e = (struct enc){0};
}

void enc_done(struct enc *e)
{
    free(e->data);
    enc_init(e);
}

int enc_reserve(struct enc *e, size_t length)
{
    if (length <= e->capacity - e->length)
        return 0;
    size_t capacity = MAX(e->capacity, (size_t)CAPACITY_MIN);
    while (capacity - e->length < length) {
        if (__builtin_mul_overflow(capacity, (size_t)2, &capacity))
            return -ENOMEM;
    }
    uint8_t *data = realloc(e->data, capacity);
    if (!data)
        return -ENOMEM;
    e->data = data;
    e->capacity = capacity;
    return 0;
}

/* Room for `length` more bytes, counted as written; NULL once the encoder failed. */
static uint8_t *enc_extend(struct enc *e, size_t length)
{
    if (e->error)
        return NULL;
    e->error = enc_reserve(e, length);
    if (e->error)
        return NULL;
    uint8_t *p = e->data + e->length;
    e->length += length;
    return p;
}

void enc_u8(struct enc *e, uint8_t v)
{
    enc_bytes(e, &v, 1);
}

void enc_u16(struct enc *e, uint16_t v)
{
    uint8_t bytes[2];
    put_le16(bytes, v);
    enc_bytes(e, bytes, sizeof(bytes));
}

void enc_u32(struct enc *e, uint32_t v)
{
    uint8_t bytes[4];
    put_le32(bytes, v);
    enc_bytes(e, bytes, sizeof(bytes));
}

void enc_u64(struct enc *e, uint64_t v)
{
    uint8_t bytes[8];
    put_le64(bytes, v);
    enc_bytes(e, bytes, sizeof(bytes));
}

void enc_varint(struct enc *e, uint64_t v)
{
    uint8_t bytes[VARINT_SIZE_MAX];
    size_t n = 0;
    while (v >= 0x80) {
        bytes[n++] = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    bytes[n++] = (uint8_t)v;
    enc_bytes(e, bytes, n);
}

void enc_svarint(struct enc *e, int64_t v)
{
    enc_varint(e, (uint64_t)v << 1 ^ (v < 0 ? UINT64_MAX : 0));
}

void enc_bytes(struct enc *e, const void *p, size_t length)
{
    if (length == 0)
        return;
    uint8_t *out = enc_extend(e, length);
    if (out)
        memcpy(out, p, length);
}

void enc_blob(struct enc *e, const void *p, size_t length)
{
    ASSERT(length <= UINT32_MAX);
    enc_u32(e, (uint32_t)length);
    enc_bytes(e, p, length);
}

void enc_str(struct enc *e, const char *s)
{
    enc_blob(e, s, strlen(s));
}

void dec_init(struct dec *d, const void *p, size_t length)
{
    *d = (struct dec){.data = p, .length = length};
}

const uint8_t *dec_bytes(struct dec *d, size_t length)
{
    static const uint8_t nothing[1];
    if (d->error)
        return NULL;
    if (length > d->length - d->position) {
        d->error = -EBADMSG;
        return NULL;
    }
    if (length == 0)
        return nothing; /* d->data itself may be NULL */
    const uint8_t *p = d->data + d->position;
    d->position += length;
    return p;
}

uint8_t dec_u8(struct dec *d)
{
    const uint8_t *p = dec_bytes(d, 1);
    return p ? *p : 0;
}

uint16_t dec_u16(struct dec *d)
{
    const uint8_t *p = dec_bytes(d, 2);
    return p ? get_le16(p) : 0;
}

uint32_t dec_u32(struct dec *d)
{
    const uint8_t *p = dec_bytes(d, 4);
    return p ? get_le32(p) : 0;
}

uint64_t dec_u64(struct dec *d)
{
    const uint8_t *p = dec_bytes(d, 8);
    return p ? get_le64(p) : 0;
}

uint64_t dec_varint(struct dec *d)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < VARINT_SIZE_MAX; i++) {
        uint8_t byte = dec_u8(d);
        if (d->error)
            return 0;
        v |= (uint64_t)(byte & 0x7f) << (7 * i);
        if (byte & 0x80)
            continue;
        bool too_long = i > 0 && byte == 0;
        bool too_large = i == VARINT_SIZE_MAX - 1 && byte > 1;
        if (too_long || too_large)
            break;
        return v;
    }
    d->error = -EBADMSG;
    return 0;
}

int64_t dec_svarint(struct dec *d)
{
    uint64_t v = dec_varint(d);
    return (int64_t)(v >> 1 ^ (v & 1 ? UINT64_MAX : 0));
}

const uint8_t *dec_blob(struct dec *d, size_t *ret_length)
{
    uint32_t length = dec_u32(d);
    const uint8_t *p = dec_bytes(d, length);
    *ret_length = p ? length : 0;
    return p;
}

void dec_str(struct dec *d, char *out, size_t size)
{
    ASSERT(size > 0);
    out[0] = '\0';
    size_t length;
    const uint8_t *p = dec_blob(d, &length);
    if (!p)
        return;
    if (length >= size || memchr(p, 0, length)) {
        d->error = -EBADMSG;
        return;
    }
    memcpy(out, p, length);
    out[length] = '\0';
}

size_t dec_left(const struct dec *d)
{
    return d->error ? 0 : d->length - d->position;
}

int dec_finish(struct dec *d)
{
    if (!d->error && d->position != d->length)
        d->error = -EBADMSG;
    return d->error;
}
