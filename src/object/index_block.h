/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes of an index block: the object (level >= 1) that holds one entry for each object one level
 * below, a header, and the references it has given up but not yet dropped ("owed"). Pure functions.
 *
 * X1 Entries come first, 16 bytes each, entry i at byte 16 * i; all zero is an empty entry (vid 0).
 * X2 The tail (header and owed list) starts at the first 4096-aligned offset behind the entries, so
 *    that one atomic write of changed entry pages and the tail is aligned (V2).
 * X3 The tail says everything that taking the block apart needs (family, group range): no volume
 *    record.
 *
 *   0          16         32                     tail_offset    + 64
 *   | entry 0  | entry 1  | ...  | zeros to 4096 | header       | owed 0 | owed 1 | ... | zeros |
 */
#pragma once
#include "base/ids.h"

#define INDEX_ENTRY_BYTES     16u
#define INDEX_HEADER_BYTES    64u
#define INDEX_OWED_BYTES      32u
#define INDEX_ENTRIES_DEFAULT 4096u
#define INDEX_ENTRIES_MAX     16384u
#define INDEX_OWED_COUNT_MAX  65536u /* bound for decoders; writers settle long before */
#define INDEX_PAGE            4096u

/* A reference to the object one level below: (entry.vid, level - 1, child index). */
struct index_entry {
    uint64_t vid; /* 0: empty */
    uint32_t generation;
    uint32_t flags; /* meaning belongs to volume/; kept as it is */
};

/* A reference that this block has given up: its drop is still to be sent or answered. */
struct index_owed {
    uint64_t vid;   /* of the target … */
    uint32_t index; /* … its position within its level … */
    uint8_t level;  /* … and its level */
    uint8_t copied; /* 1: this side took a copy of the target first (V3) */
    uint32_t generation;
};

struct index_header {
    uint8_t level;   /* of the block itself, >= 1 */
    uint64_t family; /* for oid_group() of children and targets */
    uint32_t group_base, group_count;
    uint32_t entries; /* entries per block, same on all levels of an image */
    uint32_t owed_count;
};

/* Offset of the tail: bytes of the entries, rounded up to 4096. */
static inline uint32_t index_tail_offset(uint32_t entries)
{
    return ALIGN_UP(entries * INDEX_ENTRY_BYTES, INDEX_PAGE);
}
/* Length of the tail with that many owed records, a multiple of 4096. */
static inline uint32_t index_tail_bytes(uint32_t owed_count)
{
    return ALIGN_UP(INDEX_HEADER_BYTES + owed_count * INDEX_OWED_BYTES, INDEX_PAGE);
}

/* One entry at `p` (16 bytes, any alignment). Every 16 bytes decode. */
void index_entry_put(uint8_t *p, const struct index_entry *e);
struct index_entry index_entry_get(const uint8_t *p);
static inline bool index_entry_empty(const struct index_entry *e)
{
    return e->vid == 0;
}

/* Writes the whole tail, index_tail_bytes(h->owed_count) bytes, padded with zeros. `owed` may be
 * NULL when the count is 0. */
void index_tail_encode(const struct index_header *h, const struct index_owed *owed, uint8_t *out);
/* Reads and checks the header alone from at least INDEX_HEADER_BYTES at the tail's beginning; tells
 * with owed_count how long the tail is. -EBADMSG: damaged, -EPROTO: unknown version. */
int index_header_decode(const uint8_t *tail, size_t length, struct index_header *ret);
/* Reads the owed list; `length` >= index_tail_bytes(h->owed_count), ret_owed holds h->owed_count
 * elements. -EBADMSG. */
int index_owed_decode(const uint8_t *tail, size_t length, const struct index_header *h,
                      struct index_owed *ret_owed);

/* Oid of what entry i of `block` refers to: child index = block index * entries + i, one level
 * lower, in the family's group. -EBADMSG: i, the level or the position is impossible. */
int index_child(const struct index_header *h, const struct oid *block, uint32_t i,
                const struct index_entry *e, struct oid *ret);
/* Oid of what an owed record refers to (same kind as the block). */
struct oid index_owed_target(const struct index_header *h, const struct oid *block,
                             const struct index_owed *owed);
/* Group of an object of that family. */
static inline uint16_t index_group(const struct index_header *h, unsigned level, uint32_t index)
{
    return oid_group(h->family, level, index, h->group_base, h->group_count);
}
