/* SPDX-License-Identifier: Apache-2.0 */
/* Codecs of superblock, log block and object slot. Nothing here does I/O. */
#include "store/layout.h"
#include "base/err.h"

static const uint8_t super_magic[8] = {'K', 'e', 'l', 'p', 'i', 'e', 'S', '1'};
#define LOG_MAGIC 0x676f4c4bu /* "KLog" */

static_assert(SLOTS_PER_PAGE == 32, "the format says so");
static_assert(OBJECT_LEAVES_MAX * SLOT_LEAF_SIZE <= STORE_BLOCK, "leaf pointers fit one block");
static_assert(40 + SLOT_LEAVES * SLOT_LEAF_SIZE + SLOT_META_INLINE == SLOT_SIZE, "slot is full");

uint64_t layout_salt(const struct uuid *store)
{
    return get_le64(store->bytes) ^ hash_u64(get_le64(store->bytes + 8));
}

uint32_t layout_crc(uint64_t salt, unsigned type, uint32_t position, const void *block)
{
    uint8_t seed[16];

    put_le64(seed, salt);
    put_le32(seed + 8, type);
    put_le32(seed + 12, position);
    return crc32c(crc32c(0, seed, sizeof(seed)), block, STORE_BLOCK);
}

void super_encode(const struct super *sb, uint8_t out[STORE_BLOCK])
{
    uint8_t *p = out;

    memset(out, 0, STORE_BLOCK);
    memcpy(p, super_magic, 8);
    /* 8: crc */
    put_le32(p + 12, LAYOUT_VERSION);
    put_le64(p + 16, sb->generation);
    memcpy(p + 24, sb->store.bytes, 16);
    memcpy(p + 40, sb->cluster.bytes, 16);
    put_le64(p + 56, sb->compat);
    put_le64(p + 64, sb->ro_compat);
    put_le64(p + 72, sb->incompat);
    put_le64(p + 80, sb->size);
    put_le32(p + 88, sb->log_first);
    put_le32(p + 92, sb->log_count);
    put_le32(p + 96, sb->data_first);
    put_le32(p + 100, sb->block_count);
    put_le32(p + 104, sb->flags);
    put_le64(p + 112, sb->commit);
    put_le64(p + 120, sb->log_sequence);
    put_le32(p + 128, sb->log_prev_crc);
    put_le32(p + 132, sb->boot);
    for (unsigned i = 0; i < TREE_COUNT; i++) {
        put_le32(p + 136 + 12 * i, sb->trees[i].page_count);
        put_le32(p + 140 + 12 * i, sb->trees[i].ptr.block);
        put_le32(p + 144 + 12 * i, sb->trees[i].ptr.crc);
    }
    memcpy(p + SUPER_KEPT_OFFSET, sb->kept, SUPER_KEPT_SIZE);
    if (sb->compat & LAYOUT_COMPAT_ZEROED)
        put_le32(p + SUPER_KEPT_OFFSET, sb->zeroed);
    if (sb->compat & LAYOUT_COMPAT_ZEROED)
        put_le32(p + SUPER_KEPT_OFFSET + 4, sb->scrub_slot);
    put_le32(p + 8, crc32c(0, out, STORE_BLOCK));
}

/* The figures of a superblock with a right checksum may still be another program's idea. */
static bool super_sane(const struct super *sb)
{
    if (sb->size / STORE_BLOCK != sb->block_count || sb->log_first != LAYOUT_LOG_FIRST)
        return false;
    if (sb->log_count < LAYOUT_LOG_COUNT_MIN || sb->log_count >= sb->block_count)
        return false;
    if (sb->data_first != sb->log_first + sb->log_count || sb->data_first >= sb->block_count)
        return false;
    for (unsigned i = 0; i < TREE_COUNT; i++) {
        uint32_t b = sb->trees[i].ptr.block;
        if (b != 0 && (b < sb->data_first || b >= sb->block_count))
            return false;
    }
    return true;
}

int super_decode(const uint8_t in[STORE_BLOCK], struct super *ret)
{
    uint8_t copy[STORE_BLOCK];
    struct super sb = {0};
    const uint8_t *p = copy;

    if (memcmp(in, super_magic, 8) != 0)
        return -EMEDIUMTYPE;
    memcpy(copy, in, STORE_BLOCK);
    put_le32(copy + 8, 0);
    if (crc32c(0, copy, STORE_BLOCK) != get_le32(in + 8))
        return -EUCLEAN;
    sb.version = get_le32(p + 12);
    sb.generation = get_le64(p + 16);
    if (sb.version != LAYOUT_VERSION) {
        *ret = sb;
        return -EPROTO;
    }
    memcpy(sb.store.bytes, p + 24, 16);
    memcpy(sb.cluster.bytes, p + 40, 16);
    sb.compat = get_le64(p + 56);
    sb.ro_compat = get_le64(p + 64);
    sb.incompat = get_le64(p + 72);
    sb.size = get_le64(p + 80);
    sb.log_first = get_le32(p + 88);
    sb.log_count = get_le32(p + 92);
    sb.data_first = get_le32(p + 96);
    sb.block_count = get_le32(p + 100);
    sb.flags = get_le32(p + 104);
    sb.commit = get_le64(p + 112);
    sb.log_sequence = get_le64(p + 120);
    sb.log_prev_crc = get_le32(p + 128);
    sb.boot = get_le32(p + 132);
    for (unsigned i = 0; i < TREE_COUNT; i++) {
        sb.trees[i].page_count = get_le32(p + 136 + 12 * i);
        sb.trees[i].ptr.block = get_le32(p + 140 + 12 * i);
        sb.trees[i].ptr.crc = get_le32(p + 144 + 12 * i);
    }
    memcpy(sb.kept, p + SUPER_KEPT_OFFSET, SUPER_KEPT_SIZE);
    sb.zeroed = sb.compat & LAYOUT_COMPAT_ZEROED ? get_le32(p + SUPER_KEPT_OFFSET) : UINT32_MAX;
    sb.scrub_slot = sb.compat & LAYOUT_COMPAT_ZEROED ? get_le32(p + SUPER_KEPT_OFFSET + 4) : 0;
    if (sb.incompat & ~LAYOUT_INCOMPAT) {
        *ret = sb;
        return -EPROTO;
    }
    if (!super_sane(&sb))
        return -EUCLEAN;
    *ret = sb;
    return 0;
}

int layout_plan(uint64_t size, uint64_t log_bytes, struct super *ret, uint64_t *ret_min)
{
    const uint64_t mib = 1 << 20;
    uint64_t blocks = size / STORE_BLOCK, log;

    if (log_bytes == 0) {
        log_bytes = MIN(MAX(32 * mib, size / 256), 1024 * mib);
        if (log_bytes > size / 8) /* small stores: tests, demonstrations */
            log_bytes = MAX(size / 8, (uint64_t)LAYOUT_LOG_COUNT_MIN * STORE_BLOCK);
    }
    log = log_bytes / STORE_BLOCK;
    if (log < LAYOUT_LOG_COUNT_MIN)
        return -EINVAL;
    *ret_min = (LAYOUT_SUPER_COPIES + log + LAYOUT_DATA_MIN) * STORE_BLOCK;
    if (blocks * STORE_BLOCK < *ret_min)
        return -ENOSPC;
    if (blocks > LAYOUT_BLOCKS_MAX)
        return -EFBIG;
    ret->size = blocks * STORE_BLOCK;
    ret->block_count = (uint32_t)blocks;
    ret->log_first = LAYOUT_LOG_FIRST;
    ret->log_count = (uint32_t)log;
    ret->data_first = ret->log_first + ret->log_count;
    return 0;
}

void log_block_encode(uint64_t salt, struct log_header *h, uint8_t out[STORE_BLOCK])
{
    ASSERT(h->length <= LOG_PAYLOAD);
    put_le32(out, LOG_MAGIC);
    put_le32(out + 4, 0);
    put_le64(out + 8, salt);
    put_le64(out + 16, h->sequence);
    put_le64(out + 24, h->commit);
    put_le32(out + 32, h->boot);
    put_le32(out + 36, h->prev_crc);
    put_le16(out + 40, h->flags);
    put_le16(out + 42, h->length);
    put_le32(out + 44, h->index);
    memset(out + 48, 0, LOG_HEADER_SIZE - 48);
    h->crc = crc32c(0, out, STORE_BLOCK);
    put_le32(out + 4, h->crc);
}

int log_block_decode(uint64_t salt, const uint8_t in[STORE_BLOCK], struct log_header *ret)
{
    static const uint8_t zero[4];
    uint32_t crc;

    if (get_le32(in) != LOG_MAGIC || get_le64(in + 8) != salt)
        return -EUCLEAN;
    crc = crc32c(0, in, 4);
    crc = crc32c(crc, zero, 4);
    crc = crc32c(crc, in + 8, STORE_BLOCK - 8);
    if (crc != get_le32(in + 4) || get_le16(in + 42) > LOG_PAYLOAD)
        return -EUCLEAN;
    *ret = (struct log_header){
        .sequence = get_le64(in + 16),
        .commit = get_le64(in + 24),
        .boot = get_le32(in + 32),
        .prev_crc = get_le32(in + 36),
        .flags = get_le16(in + 40),
        .length = get_le16(in + 42),
        .index = get_le32(in + 44),
        .crc = crc,
    };
    return 0;
}

void slot_leaf_encode(const struct slot_leaf *l, uint8_t out[SLOT_LEAF_SIZE])
{
    put_le32(out, l->ptr.block);
    put_le32(out + 4, l->ptr.crc);
    put_le16(out + 8, l->used);
    put_le16(out + 10, l->end);
}

int slot_leaf_decode(const uint8_t in[SLOT_LEAF_SIZE], struct slot_leaf *ret)
{
    *ret = (struct slot_leaf){.ptr = {get_le32(in), get_le32(in + 4)},
                              .used = get_le16(in + 8),
                              .end = get_le16(in + 10)};
    if (ret->used > ret->end || ret->end > LEAF_ENTRIES ||
        (ret->ptr.block == 0) != (ret->used == 0) || (ret->used == 0) != (ret->end == 0))
        return -EUCLEAN;
    return 0;
}

void slot_encode(const struct slot *slot, uint8_t out[SLOT_SIZE])
{
    memset(out, 0, SLOT_SIZE);
    if (slot->flags == 0)
        return;
    oid_put(out, &slot->oid);
    put_le64(out + 16, slot->version.value);
    put_le64(out + 24, slot->meta_version);
    put_le16(out + 32, slot->flags);
    put_le16(out + 34, slot->meta_length);
    out[36] = slot->leaf_count;
    for (unsigned i = 0; i < SLOT_LEAVES; i++)
        slot_leaf_encode(&slot->leaves[i], out + 40 + SLOT_LEAF_SIZE * i);
    if (slot->flags & SLOT_META_BLOCK) {
        put_le32(out + 88, slot->meta.block);
        put_le32(out + 92, slot->meta.crc);
    } else {
        memcpy(out + 88, slot->meta_inline, SLOT_META_INLINE);
    }
}

int slot_decode(const uint8_t in[SLOT_SIZE], struct slot *ret)
{
    memset(ret, 0, sizeof(*ret));
    ret->flags = get_le16(in + 32);
    if (ret->flags == 0)
        return 0;
    ret->oid = oid_get(in);
    ret->version.value = get_le64(in + 16);
    ret->meta_version = get_le64(in + 24);
    ret->meta_length = get_le16(in + 34);
    ret->leaf_count = in[36];
    if (!(ret->flags & SLOT_USED) || ret->leaf_count > OBJECT_LEAVES_MAX ||
        ret->meta_length > STORE_META_SIZE_MAX)
        return -EUCLEAN;
    if (!(ret->flags & SLOT_INDIRECT) != (ret->leaf_count <= SLOT_LEAVES) ||
        !(ret->flags & SLOT_META_BLOCK) != (ret->meta_length <= SLOT_META_INLINE))
        return -EUCLEAN;
    if ((ret->flags & SLOT_TOMBSTONE) && (ret->leaf_count > 0 || ret->meta_length > 0))
        return -EUCLEAN;
    for (unsigned i = 0; i < SLOT_LEAVES; i++) {
        int r = slot_leaf_decode(in + 40 + SLOT_LEAF_SIZE * i, &ret->leaves[i]);
        if (r < 0 && !(ret->flags & SLOT_INDIRECT))
            return r;
    }
    if (ret->flags & SLOT_META_BLOCK)
        ret->meta = (struct block_ptr){get_le32(in + 88), get_le32(in + 92)};
    else
        memcpy(ret->meta_inline, in + 88, SLOT_META_INLINE);
    return 0;
}
