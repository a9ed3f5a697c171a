/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes on disk: constants and codecs. FORMAT.md has the offsets.
 *
 * L1 Every structure is found through a pointer that carries its CRC32C, seeded with store, type
 * and position, up to the superblock, which carries its own: a stale or foreign block never passes.
 */
#pragma once
#include "base/bytes.h"
#include "base/crc32c.h"
#include "store/store.h"

/* Format version and features of each kind that this program knows (FORMAT.md, "Versions"). */
#define LAYOUT_VERSION       1u
#define LAYOUT_COMPAT        LAYOUT_COMPAT_ZEROED
#define LAYOUT_RO_COMPAT     0ull
#define LAYOUT_INCOMPAT      0ull
#define LAYOUT_COMPAT_ZEROED 1ull /* super.zeroed holds something */
#define LAYOUT_SUPER_COPIES  2u
#define LAYOUT_LOG_FIRST     LAYOUT_SUPER_COPIES
#define LAYOUT_LOG_COUNT_MIN 256u
#define LAYOUT_DATA_MIN      1024u /* blocks after the log in the smallest store */
#define LAYOUT_BLOCKS_MAX    UINT32_MAX

#define LEAF_ENTRIES      512u                                  /* blocks described by one leaf */
#define OBJECT_BLOCKS_MAX (STORE_OBJECT_SIZE_MAX / STORE_BLOCK) /* 16384 */
#define OBJECT_LEAVES_MAX (OBJECT_BLOCKS_MAX / LEAF_ENTRIES)    /* 32 */

#define SLOT_SIZE         128u
#define SLOTS_PER_PAGE    (STORE_BLOCK / SLOT_SIZE)
#define SLOT_LEAVES       4u
#define SLOT_META_INLINE  40u
#define BITMAP_PAGE_BITS  (STORE_BLOCK * 8)
#define SHARE_PAGE_COUNTS (STORE_BLOCK / 2)
#define SHARE_MAX         UINT16_MAX
#define TREE_FANOUT       (STORE_BLOCK / 8)
#define TREE_LEVELS       5u

/* Where a block is and what it must hold. block 0 (the superblock) means: nothing there. */
struct block_ptr {
    uint32_t block, crc;
};

enum page_type {
    PAGE_INDEX = 1,
    PAGE_BITMAP = 2,
    PAGE_SHARE = 3,
    PAGE_LEAF = 4,
    PAGE_META = 5,
    PAGE_INDIRECT = 6,
    PAGE_TABLE = 0x100, /* | type of the array << 4 | level */
};

/* A number by which blocks of different stores differ. */
uint64_t layout_salt(const struct uuid *store);
/* The checksum that a pointer to a structure block carries (L1). */
uint32_t layout_crc(uint64_t salt, unsigned type, uint32_t position, const void *block);

enum { TREE_INDEX, TREE_BITMAP, TREE_SHARE, TREE_COUNT };
struct tree_root {
    uint32_t page_count;
    struct block_ptr ptr;
};

#define SUPER_INEXACT 1u /* opened with a damaged log, and not marked exact since */

#define SUPER_KEPT_OFFSET 256u
#define SUPER_KEPT_SIZE   256u

struct super {
    uint32_t version; /* format version found; LAYOUT_VERSION is written */
    uint64_t generation;
    struct uuid store, cluster;
    uint64_t compat, ro_compat, incompat;
    uint64_t size; /* bytes */
    uint32_t log_first, log_count, data_first, block_count;
    uint32_t flags;
    /* the checkpoint: the state after `commit`; replay goes on at log_sequence */
    uint64_t commit, log_sequence;
    uint32_t log_prev_crc, boot;
    struct tree_root trees[TREE_COUNT];
    uint8_t kept[SUPER_KEPT_SIZE]; /* belongs to compatible features: written back as it was */
    uint32_t zeroed; /* data blocks, from the first, that have been written; all without the feature
                        LAYOUT_COMPAT_ZEROED. May be too low (advice), and above their number */
    uint32_t scrub_slot; /* with the same feature: where the scrub goes on (advice) */
};

void super_encode(const struct super *sb, uint8_t out[STORE_BLOCK]);
/* 0, -EMEDIUMTYPE (no superblock), -EUCLEAN (checksum or impossible figures). -EPROTO: of a version
 * or with an incompatible feature that is not known; *ret then says which, the rest of it is not to
 * be used but for the generation. */
int super_decode(const uint8_t in[STORE_BLOCK], struct super *ret);
/* Fills in the figures of a store of `size` bytes; log_bytes 0: chosen. -ENOSPC: too small, and
 * *ret_min is the least size; -EINVAL, -EFBIG. */
int layout_plan(uint64_t size, uint64_t log_bytes, struct super *ret, uint64_t *ret_min);

#define LOG_HEADER_SIZE 64u
#define LOG_PAYLOAD     (STORE_BLOCK - LOG_HEADER_SIZE)
enum { LOG_BEGIN = 1, LOG_END = 2 };

/* Header of one log block; it lies at log_first + sequence % log_count. */
struct log_header {
    uint64_t sequence, commit;
    uint32_t boot, prev_crc;
    uint16_t flags, length; /* payload bytes used */
    uint32_t index;         /* within the commit */
    uint32_t crc;           /* set by encode, checked by decode */
};

/* Writes header and checksum around the payload already at out + LOG_HEADER_SIZE. */
void log_block_encode(uint64_t salt, struct log_header *h, uint8_t out[STORE_BLOCK]);
/* 0, -EUCLEAN. */
int log_block_decode(uint64_t salt, const uint8_t in[STORE_BLOCK], struct log_header *ret);

struct slot_leaf {
    struct block_ptr ptr;
    uint16_t used, end; /* mapped blocks; one past the last mapped one */
};

enum {
    SLOT_USED = 1,
    SLOT_TOMBSTONE = 2,
    SLOT_INDIRECT = 4,
    SLOT_META_BLOCK = 8,
    SLOT_DAMAGED = 16
};

/* One object record. With SLOT_INDIRECT leaves[0].ptr names the block with the leaf pointers. */
struct slot {
    struct oid oid;
    struct version version;
    uint64_t meta_version;
    uint16_t flags, meta_length;
    uint8_t leaf_count;
    struct slot_leaf leaves[SLOT_LEAVES];
    struct block_ptr meta;
    uint8_t meta_inline[SLOT_META_INLINE];
};

void slot_encode(const struct slot *slot, uint8_t out[SLOT_SIZE]);
/* 0 (flags 0: free slot) or -EUCLEAN. */
int slot_decode(const uint8_t in[SLOT_SIZE], struct slot *ret);

#define SLOT_LEAF_SIZE 12u
void slot_leaf_encode(const struct slot_leaf *l, uint8_t out[SLOT_LEAF_SIZE]);
int slot_leaf_decode(const uint8_t in[SLOT_LEAF_SIZE], struct slot_leaf *ret);

static inline struct block_ptr leaf_entry(const uint8_t *leaf, unsigned i)
{
    return (struct block_ptr){get_le32(leaf + 8 * i), get_le32(leaf + 8 * i + 4)};
}
static inline void leaf_entry_set(uint8_t *leaf, unsigned i, struct block_ptr p)
{
    put_le32(leaf + 8 * i, p.block);
    put_le32(leaf + 8 * i + 4, p.crc);
}
