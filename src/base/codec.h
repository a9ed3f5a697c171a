/* SPDX-License-Identifier: Apache-2.0 */
/* Encoder into a growing buffer and bounds-checked decoder, little-endian. Both latch the first
 * error, so that a codec is written straight through and checks once at its end. */
#pragma once
#include "base/check.h"

struct enc {
    uint8_t *data; /* owned; NULL while empty */
    size_t length, capacity;
    int error; /* 0 or -ENOMEM */
};

void enc_init(struct enc *e);
void enc_done(struct enc *e);
/* Makes room, so that appending the next `length` bytes cannot fail. 0 or -ENOMEM, which is not
 * latched. */
int enc_reserve(struct enc *e, size_t length);
void enc_u8(struct enc *e, uint8_t v);
void enc_u16(struct enc *e, uint16_t v);
void enc_u32(struct enc *e, uint32_t v);
void enc_u64(struct enc *e, uint64_t v);
/* LEB128: 7 bits a byte, low bits first; signed values zigzag-coded. */
void enc_varint(struct enc *e, uint64_t v);
void enc_svarint(struct enc *e, int64_t v);
void enc_bytes(struct enc *e, const void *p, size_t length);
/* u32 length, then the bytes. */
void enc_blob(struct enc *e, const void *p, size_t length);
/* As a blob of strlen(s) bytes, no terminator. */
void enc_str(struct enc *e, const char *s);

struct dec {
    const uint8_t *data; /* borrowed */
    size_t length, position;
    int error; /* 0, or -EBADMSG once anything ran past the end or was malformed */
};

void dec_init(struct dec *d, const void *p, size_t length);
/* All return 0 (or an empty range) once the decoder has failed. */
uint8_t dec_u8(struct dec *d);
uint16_t dec_u16(struct dec *d);
uint32_t dec_u32(struct dec *d);
uint64_t dec_u64(struct dec *d);
uint64_t dec_varint(struct dec *d);
int64_t dec_svarint(struct dec *d);
/* Borrowed pointer into the input, or NULL on failure. */
const uint8_t *dec_bytes(struct dec *d, size_t length);
const uint8_t *dec_blob(struct dec *d, size_t *ret_length);
/* Copies a string and terminates it; a string that does not fit into `size` bytes, or that holds a
 * NUL, is an error. */
void dec_str(struct dec *d, char *out, size_t size);
size_t dec_left(const struct dec *d);
/* 0 if nothing failed and nothing is left over, else -EBADMSG. */
int dec_finish(struct dec *d);
