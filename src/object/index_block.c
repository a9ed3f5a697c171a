/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codec of index blocks; FORMAT.md has the table of offsets.
 *
 * X4 A tail is good only if both checksums hold: one over the header, one over the owed records,
 *    so that the header alone can be trusted before the length of the rest is known.
 * X5 A CRC behind what it covers makes the CRC of both together the same whatever they are. The
 *    store's checksum of the block would then be good for any other header, too: for one that lay
 *    in that place before and was not overwritten when the power went. So the header's is mixed.
 */
#include "object/index_block.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"

#define INDEX_MAGIC   0x58494b4bu /* "KKIX" */
#define INDEX_VERSION 2           /* 1: the checksum of the header was its plain CRC */

/* Offsets within the header. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 4,
    AT_LEVEL = 6,
    AT_FAMILY = 8,
    AT_GROUP_BASE = 16,
    AT_GROUP_COUNT = 20,
    AT_ENTRIES = 24,
    AT_OWED_COUNT = 28,
    AT_OWED_CRC = 56,
    AT_HEADER_CRC = 60,
};
static_assert(AT_HEADER_CRC + 4 == INDEX_HEADER_BYTES, "the checksum ends the header");
static_assert(INDEX_PAGE % INDEX_ENTRY_BYTES == 0, "no entry crosses a page");
static_assert((INDEX_PAGE - INDEX_HEADER_BYTES) % INDEX_OWED_BYTES == 0,
              "no record crosses a page");

/* X5 */
static uint32_t header_checksum(const uint8_t *header, uint16_t version)
{
    uint32_t crc = crc32c(0, header, AT_HEADER_CRC);
    return version == 1 ? crc : crc * 0x9e3779b1u;
}

void index_entry_put(uint8_t *p, const struct index_entry *e)
{
    put_le64(p, e->vid);
    put_le32(p + 8, e->generation);
    put_le32(p + 12, e->flags);
}

struct index_entry index_entry_get(const uint8_t *p)
{
    return (struct index_entry){
        .vid = get_le64(p),
        .generation = get_le32(p + 8),
        .flags = get_le32(p + 12),
    };
}

static bool header_plausible(const struct index_header *h)
{
    return h->level >= 1 && h->entries >= 1 && h->entries <= INDEX_ENTRIES_MAX &&
           h->group_count >= 1 && (uint64_t)h->group_base + h->group_count <= 1u << 16 &&
           h->owed_count <= INDEX_OWED_COUNT_MAX;
}

static void owed_put(uint8_t *p, const struct index_owed *o)
{
    memset(p, 0, INDEX_OWED_BYTES);
    put_le64(p, o->vid);
    put_le32(p + 8, o->index);
    p[12] = o->level;
    p[13] = o->copied;
    put_le32(p + 16, o->generation);
}

void index_tail_encode(const struct index_header *h, const struct index_owed *owed, uint8_t *out)
{
    ASSERT(header_plausible(h));
    ASSERT(owed || h->owed_count == 0);
    memset(out, 0, index_tail_bytes(h->owed_count));
    uint8_t *records = out + INDEX_HEADER_BYTES;
    for (uint32_t i = 0; i < h->owed_count; i++)
        owed_put(records + (size_t)i * INDEX_OWED_BYTES, &owed[i]);
    put_le32(out + AT_MAGIC, INDEX_MAGIC);
    put_le16(out + AT_VERSION, INDEX_VERSION);
    out[AT_LEVEL] = h->level;
    put_le64(out + AT_FAMILY, h->family);
    put_le32(out + AT_GROUP_BASE, h->group_base);
    put_le32(out + AT_GROUP_COUNT, h->group_count);
    put_le32(out + AT_ENTRIES, h->entries);
    put_le32(out + AT_OWED_COUNT, h->owed_count);
    put_le32(out + AT_OWED_CRC, crc32c(0, records, (size_t)h->owed_count * INDEX_OWED_BYTES));
    put_le32(out + AT_HEADER_CRC, header_checksum(out, INDEX_VERSION));
}

int index_header_decode(const uint8_t *tail, size_t length, struct index_header *ret)
{
    if (length < INDEX_HEADER_BYTES || get_le32(tail + AT_MAGIC) != INDEX_MAGIC)
        return -EBADMSG;
    uint16_t version = get_le16(tail + AT_VERSION);
    if (get_le32(tail + AT_HEADER_CRC) != header_checksum(tail, version))
        return -EBADMSG;
    if (version == 0 || version > INDEX_VERSION)
        return -EPROTO;
    struct index_header h = {
        .level = tail[AT_LEVEL],
        .family = get_le64(tail + AT_FAMILY),
        .group_base = get_le32(tail + AT_GROUP_BASE),
        .group_count = get_le32(tail + AT_GROUP_COUNT),
        .entries = get_le32(tail + AT_ENTRIES),
        .owed_count = get_le32(tail + AT_OWED_COUNT),
    };
    if (!header_plausible(&h))
        return -EBADMSG;
    *ret = h;
    return 0;
}

int index_owed_decode(const uint8_t *tail, size_t length, const struct index_header *h,
                      struct index_owed *ret_owed)
{
    size_t bytes = (size_t)h->owed_count * INDEX_OWED_BYTES;
    if (length < INDEX_HEADER_BYTES + bytes)
        return -EBADMSG;
    const uint8_t *p = tail + INDEX_HEADER_BYTES;
    if (get_le32(tail + AT_OWED_CRC) != crc32c(0, p, bytes))
        return -EBADMSG;
    for (uint32_t i = 0; i < h->owed_count; i++, p += INDEX_OWED_BYTES) {
        if (p[13] > 1)
            return -EBADMSG;
        ret_owed[i] = (struct index_owed){
            .vid = get_le64(p),
            .index = get_le32(p + 8),
            .level = p[12],
            .copied = p[13],
            .generation = get_le32(p + 16),
        };
    }
    return 0;
}

int index_child(const struct index_header *h, const struct oid *block, uint32_t i,
                const struct index_entry *e, struct oid *ret)
{
    uint64_t index = (uint64_t)block->index * h->entries + i;
    if (block->level < 1 || block->level != h->level || i >= h->entries || index > UINT32_MAX)
        return -EBADMSG;
    *ret = (struct oid){
        .vid = e->vid,
        .index = (uint32_t)index,
        .kind = block->kind,
        .level = (uint8_t)(block->level - 1),
        .group = index_group(h, block->level - 1u, (uint32_t)index),
    };
    return 0;
}

struct oid index_owed_target(const struct index_header *h, const struct oid *block,
                             const struct index_owed *owed)
{
    return (struct oid){
        .vid = owed->vid,
        .index = owed->index,
        .kind = block->kind,
        .level = owed->level,
        .group = index_group(h, owed->level, owed->index),
    };
}
