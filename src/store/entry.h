/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stays in memory of every object and tombstone: 56 bytes, found by oid, by group, by number.
 *
 * E1 An entry's number is that of its slot on disk. Entries do not move.
 * E2 Nothing here grows by copying much at once: entries come in chunks, and the hash table of a
 *    group grows by one bucket at a time.
 * E3 Every group has its own hash table, so listing a group is walking that, without links for it.
 */
#pragma once
#include "store/layout.h"

#define ENTRY_NONE   UINT32_MAX
#define ENTRY_CHUNK  1024u /* entries per allocation */
#define ENTRY_GROUPS 256u  /* groups per allocation; there may be 65536 */

enum onode_state { ONODE_ABSENT, ONODE_LIVE, ONODE_TOMBSTONE };

struct entry {
    struct oid oid;
    struct version version; /* of the object, or of its tombstone */
    uint64_t meta_version;
    uint32_t hash_next;          /* in the chain of its bucket */
    uint32_t vid_prev, vid_next; /* in the list of its image; next of a free entry: unused */
    uint32_t body;               /* number of its onode, if that is in memory */
    uint16_t block_count, end;   /* mapped blocks; one past the last mapped one */
    uint16_t meta_length;
    uint8_t state; /* enum onode_state */
    bool used;     /* in the table at all */
};
static_assert(sizeof(struct entry) == 56, "memory per object is promised");

struct entry_group {
    uint64_t digest;
    uint32_t *buckets; /* owned; bucket_count used of bucket_capacity */
    uint32_t bucket_count, bucket_capacity, count;
};

struct entry_table {
    struct entry **chunks; /* owned; NULL: nothing in it */
    uint32_t *taken;       /* per page of slots: a bit for each in use, or not to be used */
    uint32_t page_count, page_capacity;
    uint32_t page_hint; /* no page before it has a free slot */
    struct entry_group *groups[65536 / ENTRY_GROUPS];
};

void entry_table_init(struct entry_table *t);
void entry_table_done(struct entry_table *t);
/* Makes room for the slots of `page_count` pages. 0 or -ENOMEM. */
int entry_table_reserve(struct entry_table *t, uint32_t page_count);
/* Its number, or ENTRY_NONE. */
uint32_t entry_find(const struct entry_table *t, const struct oid *oid);
/* Adds an absent entry, in the lowest free slot, so that the slots stay dense. The oid must not be
 * there. 0 or -ENOMEM. */
int entry_insert(struct entry_table *t, const struct oid *oid, uint32_t *ret);
/* As entry_insert() in a slot that is free. */
int entry_insert_at(struct entry_table *t, const struct oid *oid, uint32_t number);
void entry_remove(struct entry_table *t, uint32_t number);
/* entry_insert() gives out no slot of the page any more. */
void entry_page_close(struct entry_table *t, uint32_t page);
/* NULL: it was never used. */
const struct entry_group *entry_group_find(const struct entry_table *t, uint16_t group);
/* Never fails for a group that has entries. NULL: out of memory. */
struct entry_group *entry_group_get(struct entry_table *t, uint16_t group);

static inline uint32_t entry_slot_count(const struct entry_table *t)
{
    return t->page_count * SLOTS_PER_PAGE;
}

/* NULL: the slot is free. */
static inline struct entry *entry_at(const struct entry_table *t, uint32_t number)
{
    struct entry *chunk;

    if (number >= entry_slot_count(t))
        return NULL;
    chunk = t->chunks[number / ENTRY_CHUNK];
    if (chunk == NULL || !chunk[number % ENTRY_CHUNK].used)
        return NULL;
    return &chunk[number % ENTRY_CHUNK];
}
