/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entries in chunks, and a linear hash table per group: bucket_count grows one at a time, and only
 * the chain of one bucket is looked through to fill the new one.
 */
#include "store/entry.h"
#include <stdlib.h>
#include "base/err.h"

#define PAGES_PER_CHUNK (ENTRY_CHUNK / SLOTS_PER_PAGE)
#define TAKEN_ALL       UINT32_MAX
static_assert(SLOTS_PER_PAGE == 32, "a page's slots are the bits of a u32");

void entry_table_init(struct entry_table *t)
{
    *t = (struct entry_table){0};
}

void entry_table_done(struct entry_table *t)
{
    for (uint32_t i = 0; i < t->page_capacity / PAGES_PER_CHUNK; i++)
        free(t->chunks[i]);
    for (size_t i = 0; i < ARRAY_SIZE(t->groups); i++) {
        for (unsigned k = 0; t->groups[i] != NULL && k < ENTRY_GROUPS; k++)
            free(t->groups[i][k].buckets);
        free(t->groups[i]);
    }
    free(t->chunks);
    free(t->taken);
    entry_table_init(t);
}

int entry_table_reserve(struct entry_table *t, uint32_t page_count)
{
    uint32_t capacity, old = t->page_capacity;

    if (page_count > old) {
        capacity = ALIGN_UP(MAX(page_count, old + old / 4), PAGES_PER_CHUNK);
        struct entry **chunks = realloc(t->chunks, capacity / PAGES_PER_CHUNK * sizeof(*t->chunks));
        if (chunks == NULL)
            return -ENOMEM;
        t->chunks = chunks;
        uint32_t *taken = realloc(t->taken, capacity * sizeof(*taken));
        if (taken == NULL)
            return -ENOMEM;
        t->taken = taken;
        memset(taken + old, 0, (capacity - old) * sizeof(*taken));
        for (uint32_t i = old / PAGES_PER_CHUNK; i < capacity / PAGES_PER_CHUNK; i++)
            chunks[i] = NULL;
        t->page_capacity = capacity;
    }
    t->page_count = MAX(t->page_count, page_count);
    return 0;
}

/* --- groups --- */

const struct entry_group *entry_group_find(const struct entry_table *t, uint16_t group)
{
    const struct entry_group *some = t->groups[group / ENTRY_GROUPS];

    return some != NULL ? &some[group % ENTRY_GROUPS] : NULL;
}

struct entry_group *entry_group_get(struct entry_table *t, uint16_t group)
{
    struct entry_group **some = &t->groups[group / ENTRY_GROUPS];

    if (*some == NULL)
        *some = calloc(ENTRY_GROUPS, sizeof(**some));
    return *some != NULL ? &(*some)[group % ENTRY_GROUPS] : NULL;
}

/* All ones up to the highest bit that a number below `count` has. */
static uint32_t mask_of(uint32_t count)
{
    return count > 1 ? UINT32_MAX >> __builtin_clz(count - 1) : 0;
}

static uint32_t bucket_of(const struct entry_group *g, uint32_t hash)
{
    uint32_t mask = mask_of(g->bucket_count), i = hash & mask;

    return i < g->bucket_count ? i : hash & mask >> 1;
}

static uint32_t hash_of(const struct oid *oid)
{
    return (uint32_t)oid_hash(oid);
}

/* Adds a bucket, and moves to it what belongs there. */
static int group_grow(struct entry_table *t, struct entry_group *g)
{
    uint32_t added = g->bucket_count, *from, *to, n;

    if (added == g->bucket_capacity) {
        uint32_t capacity = added + added / 4 + 4;
        uint32_t *buckets = realloc(g->buckets, capacity * sizeof(*buckets));
        if (buckets == NULL)
            return -ENOMEM;
        g->buckets = buckets;
        g->bucket_capacity = capacity;
    }
    g->buckets[added] = ENTRY_NONE;
    g->bucket_count++;
    if (added == 0)
        return 0;
    from = &g->buckets[added & mask_of(g->bucket_count) >> 1];
    to = &g->buckets[added];
    for (n = *from; n != ENTRY_NONE; n = *from) {
        struct entry *e = entry_at(t, n);
        if (bucket_of(g, hash_of(&e->oid)) != added) {
            from = &e->hash_next;
            continue;
        }
        *from = e->hash_next;
        e->hash_next = ENTRY_NONE;
        *to = n;
        to = &e->hash_next;
    }
    return 0;
}

uint32_t entry_find(const struct entry_table *t, const struct oid *oid)
{
    const struct entry_group *g = entry_group_find(t, oid->group);
    uint32_t n;

    if (g == NULL || g->count == 0)
        return ENTRY_NONE;
    n = g->buckets[bucket_of(g, hash_of(oid))];
    while (n != ENTRY_NONE) {
        const struct entry *e = &t->chunks[n / ENTRY_CHUNK][n % ENTRY_CHUNK];
        if (oid_equal(&e->oid, oid))
            break;
        n = e->hash_next;
    }
    return n;
}

/* --- slots --- */

/* The lowest free slot. */
static int slot_find(struct entry_table *t, uint32_t *ret)
{
    uint32_t page = t->page_hint;

    while (page < t->page_count && t->taken[page] == TAKEN_ALL)
        page++;
    if (page == t->page_count) {
        int r = page < UINT32_MAX / SLOTS_PER_PAGE ? entry_table_reserve(t, page + 1) : -ENOMEM;
        if (r < 0)
            return r;
    }
    t->page_hint = page;
    *ret = page * SLOTS_PER_PAGE + (uint32_t)__builtin_ctz(~t->taken[page]);
    return 0;
}

int entry_insert_at(struct entry_table *t, const struct oid *oid, uint32_t number)
{
    uint32_t page = number / SLOTS_PER_PAGE, bit = 1u << number % SLOTS_PER_PAGE, *bucket;
    struct entry **chunk = &t->chunks[number / ENTRY_CHUNK], *e;
    struct entry_group *g = entry_group_get(t, oid->group);

    ASSERT(page < t->page_count);
    if (g == NULL)
        return -ENOMEM;
    if (*chunk == NULL)
        *chunk = calloc(ENTRY_CHUNK, sizeof(**chunk));
    if (*chunk == NULL)
        return -ENOMEM;
    if (g->count >= g->bucket_count && group_grow(t, g) < 0 && g->bucket_count == 0)
        return -ENOMEM; /* else the chains are only longer */
    e = &(*chunk)[number % ENTRY_CHUNK];
    ASSERT(!e->used);
    bucket = &g->buckets[bucket_of(g, hash_of(oid))];
    *e = (struct entry){.oid = *oid,
                        .hash_next = *bucket,
                        .vid_prev = ENTRY_NONE,
                        .vid_next = ENTRY_NONE,
                        .body = ENTRY_NONE,
                        .state = ONODE_ABSENT,
                        .used = true};
    *bucket = number;
    g->count++;
    t->taken[page] |= bit;
    return 0;
}

int entry_insert(struct entry_table *t, const struct oid *oid, uint32_t *ret)
{
    uint32_t number;
    int r = slot_find(t, &number);

    if (r == 0)
        r = entry_insert_at(t, oid, number);
    if (r == 0)
        *ret = number;
    return r;
}

/* Gives the chunk back when nothing is in it. */
static void chunk_trim(struct entry_table *t, uint32_t page)
{
    uint32_t first = ALIGN_DOWN(page, PAGES_PER_CHUNK);

    for (uint32_t p = first; p < first + PAGES_PER_CHUNK; p++) {
        if (t->taken[p] != 0)
            return;
    }
    free(t->chunks[first / PAGES_PER_CHUNK]);
    t->chunks[first / PAGES_PER_CHUNK] = NULL;
}

void entry_remove(struct entry_table *t, uint32_t number)
{
    struct entry *e = entry_at(t, number);
    struct entry_group *g = entry_group_get(t, e->oid.group);
    uint32_t *link = &g->buckets[bucket_of(g, hash_of(&e->oid))];
    uint32_t page = number / SLOTS_PER_PAGE;

    while (*link != number)
        link = &entry_at(t, *link)->hash_next;
    *link = e->hash_next;
    g->count--;
    *e = (struct entry){.used = false};
    t->taken[page] &= ~(1u << number % SLOTS_PER_PAGE);
    t->page_hint = MIN(t->page_hint, page);
    if (t->taken[page] == 0)
        chunk_trim(t, page);
}

void entry_page_close(struct entry_table *t, uint32_t page)
{
    t->taken[page] = TAKEN_ALL;
}
