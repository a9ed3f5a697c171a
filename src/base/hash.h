/* SPDX-License-Identifier: Apache-2.0 */
/* Intrusive chained hash table that grows by doubling. The caller hashes and compares. */
#pragma once
#include "base/check.h"

struct hnode {
    struct hnode *next;
    uint64_t hash;
};

struct htable {
    struct hnode **buckets;
    size_t bucket_count; /* a power of two, or 0 before the first insert */
    size_t count;
};

void htable_init(struct htable *t);
/* Frees the bucket array only; the nodes belong to the caller. */
void htable_done(struct htable *t);
/* Does not check for an equal node already there. Returns 0 or -ENOMEM. */
int htable_insert(struct htable *t, struct hnode *n, uint64_t hash);
/* n must be in the table. */
void htable_remove(struct htable *t, struct hnode *n);
/* First node of that hash, or NULL; then htable_next_same() for the others of equal hash. */
struct hnode *htable_first(const struct htable *t, uint64_t hash);
struct hnode *htable_next_same(const struct hnode *n);
/* Iteration over everything, in no order: start with NULL. The node just returned may be removed
 * only after the next one was fetched. */
struct hnode *htable_iter(const struct htable *t, const struct hnode *after);

/* 64-bit mixer (finalizer of MurmurHash3). */
static inline uint64_t hash_u64(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ULL;
    x ^= x >> 33;
    return x;
}
/* FNV-1a with a final mix. */
uint64_t hash_bytes(const void *p, size_t length);
