/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chained hash table.
 *
 * H1 bucket_count is 0 or a power of two; a node is in the bucket hash & (bucket_count - 1).
 * H2 The table grows when it holds more nodes than buckets; failing to grow is not an error, chains
 *    only get longer.
 */
#include "base/hash.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"

#define BUCKET_COUNT_MIN 16

void htable_init(struct htable *t)
{
    *t = (struct htable){0};
}

void htable_done(struct htable *t)
{
    free(t->buckets);
    htable_init(t);
}

static struct hnode **bucket_of(const struct htable *t, uint64_t hash)
{
    return &t->buckets[hash & (t->bucket_count - 1)];
}

static int grow(struct htable *t)
{
    size_t bucket_count = MAX(t->bucket_count * 2, (size_t)BUCKET_COUNT_MIN);
    struct hnode **buckets = calloc(bucket_count, sizeof(*buckets));
    if (!buckets)
        return -ENOMEM;
    struct htable old = *t;
    t->buckets = buckets;
    t->bucket_count = bucket_count;
    for (size_t i = 0; i < old.bucket_count; i++) {
        struct hnode *next;
        for (struct hnode *n = old.buckets[i]; n; n = next) {
            next = n->next;
            struct hnode **bucket = bucket_of(t, n->hash);
            n->next = *bucket;
            *bucket = n;
        }
    }
    free(old.buckets);
    return 0;
}

int htable_insert(struct htable *t, struct hnode *n, uint64_t hash)
{
    if (t->count >= t->bucket_count) {
        int r = grow(t);
        if (r < 0 && t->bucket_count == 0)
            return r;
    }
    struct hnode **bucket = bucket_of(t, hash);
    n->hash = hash;
    n->next = *bucket;
    *bucket = n;
    t->count++;
    return 0;
}

void htable_remove(struct htable *t, struct hnode *n)
{
    ASSERT(t->count > 0);
    struct hnode **link = bucket_of(t, n->hash);
    while (*link != n) {
        ASSERT(*link != NULL);
        link = &(*link)->next;
    }
    *link = n->next;
    n->next = NULL;
    t->count--;
}

static struct hnode *first_of_hash(struct hnode *n, uint64_t hash)
{
    while (n && n->hash != hash)
        n = n->next;
    return n;
}

struct hnode *htable_first(const struct htable *t, uint64_t hash)
{
    if (t->count == 0)
        return NULL;
    return first_of_hash(*bucket_of(t, hash), hash);
}

struct hnode *htable_next_same(const struct hnode *n)
{
    return first_of_hash(n->next, n->hash);
}

struct hnode *htable_iter(const struct htable *t, const struct hnode *after)
{
    size_t i = 0;
    if (after) {
        if (after->next)
            return after->next;
        i = (after->hash & (t->bucket_count - 1)) + 1;
    }
    for (; i < t->bucket_count; i++) {
        if (t->buckets[i])
            return t->buckets[i];
    }
    return NULL;
}

uint64_t hash_bytes(const void *p, size_t length)
{
    const uint8_t *bytes = p;
    uint64_t h = 0xcbf29ce484222325ULL;
    for (size_t i = 0; i < length; i++)
        h = (h ^ bytes[i]) * 0x100000001b3ULL;
    return hash_u64(h);
}
