/* SPDX-License-Identifier: Apache-2.0 */
/* Codec of the peer protocol: the header, and the bodies of changes and reads, which are on the
 * data path. */
#include "wire/peer.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"

#define PEER_MAGIC 0x5245504bu /* "KPER" */

enum {
    AT_MAGIC = 0,
    AT_VERSION = 4,
    AT_TYPE = 6,
    AT_FLAGS = 7,
    AT_ID = 8,
    AT_EPOCH = 16,
    AT_MAP_VERSION = 24,
    AT_GROUP = 32,
    AT_STATUS = 36,
    AT_BODY_LENGTH = 40,
    AT_PAYLOAD_LENGTH = 44,
    AT_FREE_BYTES = 48,
    AT_PAYLOAD_CRC = 56,
    AT_CRC = 60,
};
static_assert(AT_CRC + 4 == PEER_HEADER_BYTES, "the checksum ends the header");

/* Wire codes of errors: index in this table (P3); errno values differ between systems. */
static const int status_errors[] = {
    0,        -EINVAL,     -ENOENT,       -EEXIST, -ENOSPC, -ESTALE, -EUCLEAN,
    -EIO,     -ECONNRESET, -ETIMEDOUT,    -EAGAIN, -EBUSY,  -EROFS,  -ECANCELED,
    -EBADMSG, -EPROTO,     -ENAMETOOLONG, -EFBIG,  -ENOMEM, -EPERM,  -EMEDIUMTYPE,
};

static uint32_t status_to_wire(int status)
{
    for (size_t i = 0; i < ARRAY_SIZE(status_errors); i++)
        if (status_errors[i] == status)
            return (uint32_t)i;
    return 7; /* -EIO */
}

void peer_header_put(uint8_t out[PEER_HEADER_BYTES], const struct peer_header *h, const void *body)
{
    ASSERT(h->body_length <= PEER_BODY_MAX && h->payload_length <= PEER_PAYLOAD_MAX);
    put_le32(out + AT_MAGIC, PEER_MAGIC);
    put_le16(out + AT_VERSION, PEER_PROTOCOL_VERSION);
    out[AT_TYPE] = (uint8_t)h->type;
    out[AT_FLAGS] = (uint8_t)h->flags;
    put_le64(out + AT_ID, h->id);
    put_le64(out + AT_EPOCH, h->epoch);
    put_le64(out + AT_MAP_VERSION, h->map_version);
    put_le32(out + AT_GROUP, h->group);
    put_le32(out + AT_STATUS, status_to_wire(h->status));
    put_le32(out + AT_BODY_LENGTH, h->body_length);
    put_le32(out + AT_PAYLOAD_LENGTH, h->payload_length);
    put_le64(out + AT_FREE_BYTES, h->free_bytes);
    put_le32(out + AT_PAYLOAD_CRC, h->payload_crc);
    uint32_t crc = crc32c(0, out, AT_CRC);
    if (h->body_length > 0)
        crc = crc32c(crc, body, h->body_length);
    put_le32(out + AT_CRC, crc);
}

int peer_header_get(const uint8_t in[PEER_HEADER_BYTES], struct peer_header *ret)
{
    if (get_le32(in + AT_MAGIC) != PEER_MAGIC)
        return -EBADMSG;
    if (get_le16(in + AT_VERSION) != PEER_PROTOCOL_VERSION)
        return -EPROTO;
    uint32_t status = get_le32(in + AT_STATUS);
    struct peer_header h = {
        .type = in[AT_TYPE],
        .flags = in[AT_FLAGS],
        .id = get_le64(in + AT_ID),
        .epoch = get_le64(in + AT_EPOCH),
        .map_version = get_le64(in + AT_MAP_VERSION),
        .group = get_le32(in + AT_GROUP),
        .body_length = get_le32(in + AT_BODY_LENGTH),
        .payload_length = get_le32(in + AT_PAYLOAD_LENGTH),
        .free_bytes = get_le64(in + AT_FREE_BYTES),
        .payload_crc = get_le32(in + AT_PAYLOAD_CRC),
    };
    if (h.type < PEER_HELLO || h.type > PEER_TYPE_LAST || h.flags > PEER_REPLY ||
        status >= ARRAY_SIZE(status_errors) || h.body_length > PEER_BODY_MAX ||
        h.payload_length > PEER_PAYLOAD_MAX)
        return -EBADMSG;
    h.status = status_errors[status];
    *ret = h;
    return 0;
}

int peer_header_check(const uint8_t in[PEER_HEADER_BYTES], const void *body, size_t length)
{
    uint32_t crc = crc32c(0, in, AT_CRC);
    if (length > 0)
        crc = crc32c(crc, body, length);
    return crc == get_le32(in + AT_CRC) ? 0 : -EBADMSG;
}

/* Offsets within the body of a CHANGE. */
enum {
    AT_VOLUME = 0,
    AT_TERM = 8,
    AT_STABLE = 16,
    AT_VID = 24,
    AT_OID = 32,
    AT_SOURCE = 48,
    AT_PREV = 64,
    AT_NEXT = 72,
    AT_KIND = 80,
    AT_EXTENT_COUNT = 81,
    AT_EXTENTS = 88,
};
static_assert(AT_EXTENTS + 8 * PEER_EXTENT_COUNT_MAX == PEER_CHANGE_BYTES_MAX, "largest body");

size_t peer_change_put(uint8_t out[PEER_CHANGE_BYTES_MAX], const struct peer_change *c)
{
    ASSERT(c->extent_count <= PEER_EXTENT_COUNT_MAX);
    put_le64(out + AT_VOLUME, c->owner.volume);
    put_le64(out + AT_TERM, c->owner.term.value);
    put_le64(out + AT_STABLE, c->owner.stable.value);
    put_le64(out + AT_VID, c->owner.vid.value);
    oid_put(out + AT_OID, &c->oid);
    oid_put(out + AT_SOURCE, &c->source);
    put_le64(out + AT_PREV, c->prev.value);
    put_le64(out + AT_NEXT, c->next.value);
    memset(out + AT_KIND, 0, AT_EXTENTS - AT_KIND);
    out[AT_KIND] = (uint8_t)c->kind;
    out[AT_EXTENT_COUNT] = (uint8_t)c->extent_count;
    for (unsigned i = 0; i < c->extent_count; i++) {
        put_le32(out + AT_EXTENTS + 8 * i, c->extents[i].offset);
        put_le32(out + AT_EXTENTS + 8 * i + 4, c->extents[i].length);
    }
    return AT_EXTENTS + 8u * c->extent_count;
}

int peer_change_get(const void *body, size_t length, struct peer_change *ret)
{
    const uint8_t *p = body;
    if (length < AT_EXTENTS)
        return -EBADMSG;
    unsigned extent_count = p[AT_EXTENT_COUNT];
    if (p[AT_KIND] > PEER_CHANGE_NOTE || extent_count > PEER_EXTENT_COUNT_MAX ||
        length != AT_EXTENTS + 8u * extent_count)
        return -EBADMSG;
    ret->owner = (struct peer_owner){
        .volume = get_le64(p + AT_VOLUME),
        .term = {get_le64(p + AT_TERM)},
        .stable = {get_le64(p + AT_STABLE)},
        .vid = {get_le64(p + AT_VID)},
    };
    ret->kind = p[AT_KIND];
    ret->oid = oid_get(p + AT_OID);
    ret->source = oid_get(p + AT_SOURCE);
    ret->prev.value = get_le64(p + AT_PREV);
    ret->next.value = get_le64(p + AT_NEXT);
    ret->extent_count = extent_count;
    for (unsigned i = 0; i < extent_count; i++) {
        ret->extents[i].offset = get_le32(p + AT_EXTENTS + 8 * i);
        ret->extents[i].length = get_le32(p + AT_EXTENTS + 8 * i + 4);
    }
    return 0;
}

void peer_read_put(uint8_t out[PEER_READ_BYTES], const struct peer_read *r)
{
    oid_put(out, &r->oid);
    put_le32(out + 16, r->offset);
    put_le32(out + 20, r->length);
}

int peer_read_get(const void *body, size_t length, struct peer_read *ret)
{
    const uint8_t *p = body;
    if (length != PEER_READ_BYTES)
        return -EBADMSG;
    *ret = (struct peer_read){
        .oid = oid_get(p),
        .offset = get_le32(p + 16),
        .length = get_le32(p + 20),
    };
    return 0;
}
