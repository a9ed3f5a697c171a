/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ledger arithmetic and its encoding.
 *
 * L1 `counts` is ascending by generation and holds no zero; dead means: empty.
 * L2 `keys` is ascending by (sender, sender id, holder level, holder vid) and holds each key
 *    once.
 * L3 The default ledger has no encoding; every other one has exactly one.
 *
 * FORMAT.md has the encoding. Keys of one sender differ little, so that a key takes about five
 * bytes.
 */
#include "object/ledger.h"
#include <stdlib.h>
#include "base/bytes.h"
#include "base/err.h"

#define LEDGER_FORMAT 1
/* Bounds for decoding: meta is at most 4 KiB, so more cannot be meant. */
#define COUNT_MAX 4096u
#define KEY_MAX   4096u

int ledger_init(struct ledger *l)
{
    *l = (struct ledger){.state = LEDGER_LIVE};
    l->counts = malloc(sizeof(l->counts[0]));
    if (!l->counts)
        return -ENOMEM;
    l->counts[0] = (struct ledger_count){.generation = 0, .count = 1};
    l->count_count = 1;
    return 0;
}

void ledger_done(struct ledger *l)
{
    free(l->counts);
    free(l->keys);
    *l = (struct ledger){0};
}

bool ledger_is_default(const struct ledger *l)
{
    return l->state == LEDGER_LIVE && l->copies == 0 && l->key_count == 0 && l->count_count == 1 &&
           l->counts[0].generation == 0 && l->counts[0].count == 1;
}

int64_t ledger_get(const struct ledger *l, uint32_t generation)
{
    for (unsigned i = 0; i < l->count_count; i++)
        if (l->counts[i].generation == generation)
            return l->counts[i].count;
    return 0;
}

/* --- counts --- */

/* Adds to L[generation], keeping L1. -ENOMEM, -EFBIG. */
static int counts_add(struct ledger *l, uint32_t generation, int64_t by)
{
    if (by == 0)
        return 0;
    unsigned i = 0;
    while (i < l->count_count && l->counts[i].generation < generation)
        i++;
    if (i < l->count_count && l->counts[i].generation == generation) {
        int64_t sum;
        if (__builtin_add_overflow(l->counts[i].count, by, &sum))
            return -EFBIG;
        l->counts[i].count = sum;
        if (sum == 0) {
            l->count_count--;
            memmove(&l->counts[i], &l->counts[i + 1], (l->count_count - i) * sizeof(l->counts[0]));
        }
        return 0;
    }
    struct ledger_count *counts = realloc(l->counts, (l->count_count + 1) * sizeof(counts[0]));
    if (!counts)
        return -ENOMEM;
    l->counts = counts;
    memmove(&counts[i + 1], &counts[i], (l->count_count - i) * sizeof(counts[0]));
    counts[i] = (struct ledger_count){.generation = generation, .count = by};
    l->count_count++;
    return 0;
}

/* --- keys --- */

static int key_compare(const struct ledger_key *a, const struct ledger_key *b)
{
    if (a->sender != b->sender)
        return a->sender < b->sender ? -1 : 1;
    if (a->sender_id != b->sender_id)
        return a->sender_id < b->sender_id ? -1 : 1;
    if (a->holder_level != b->holder_level)
        return a->holder_level < b->holder_level ? -1 : 1;
    if (a->holder_vid != b->holder_vid)
        return a->holder_vid < b->holder_vid ? -1 : 1;
    return 0;
}

/* The key is the holder alone: a block whose volume died may be finished by its group's cascade. */
static unsigned key_find(const struct ledger *l, const struct ref_op *op)
{
    unsigned i = 0;
    while (i < l->key_count && !(l->keys[i].holder_vid == op->holder_vid &&
                                 l->keys[i].holder_level == op->holder_level))
        i++;
    return i;
}

/* Inserts, keeping L2; the key must be new. -ENOMEM. */
static int keys_insert(struct ledger *l, const struct ledger_key *k)
{
    struct ledger_key *keys = realloc(l->keys, (l->key_count + 1) * sizeof(keys[0]));
    if (!keys)
        return -ENOMEM;
    l->keys = keys;
    unsigned i = 0;
    while (i < l->key_count && key_compare(&keys[i], k) < 0)
        i++;
    memmove(&keys[i + 1], &keys[i], (l->key_count - i) * sizeof(keys[0]));
    keys[i] = *k;
    l->key_count++;
    return 0;
}

static void keys_remove(struct ledger *l, unsigned i)
{
    l->key_count--;
    memmove(&l->keys[i], &l->keys[i + 1], (l->key_count - i) * sizeof(l->keys[0]));
}

/* The known key i is named again: it keeps its newest stamp, and who gave that. */
static int key_refresh(struct ledger *l, unsigned i, const struct ledger_key *k)
{
    if (k->stamp <= l->keys[i].stamp && l->keys[i].sender == k->sender &&
        l->keys[i].sender_id == k->sender_id)
        return 0;
    struct ledger_key newest = *k;
    if (l->keys[i].sender == k->sender && l->keys[i].sender_id == k->sender_id)
        newest.stamp = MAX(newest.stamp, l->keys[i].stamp);
    keys_remove(l,
                i); /* its place in the order may change; the memory stays, so this cannot fail */
    unsigned at = 0;
    while (at < l->key_count && key_compare(&l->keys[at], &newest) < 0)
        at++;
    memmove(&l->keys[at + 1], &l->keys[at], (l->key_count - at) * sizeof(l->keys[0]));
    l->keys[at] = newest;
    l->key_count++;
    return 0;
}

unsigned ledger_erase_keys(struct ledger *l, enum ref_sender_kind sender, uint64_t sender_id,
                           uint64_t floor)
{
    unsigned kept = 0, erased = 0;
    for (unsigned i = 0; i < l->key_count; i++) {
        const struct ledger_key *k = &l->keys[i];
        if (k->sender == sender && k->sender_id == sender_id && k->stamp <= floor)
            erased++;
        else
            l->keys[kept++] = *k;
    }
    l->key_count = kept;
    return erased;
}

/* --- operations --- */

/* All of the ledger's arithmetic. The order makes a failure leave L as it was or ahead by nothing:
 * the caller throws the ledger away on error. */
static int drop_counts(struct ledger *l, const struct ref_op *op)
{
    if (op->copies > INT64_MAX || (op->copies > 0 && op->generation == UINT32_MAX))
        return -EFBIG;
    int r = counts_add(l, op->generation, -1);
    if (r == 0)
        r = counts_add(l, op->generation + 1, (int64_t)op->copies);
    if (r == 0 && !add_u64(l->copies, op->copied, &l->copies))
        r = -EFBIG;
    return r;
}

static int apply_drop(struct ledger *l, const struct ref_op *op, enum ref_sender_kind sender,
                      uint64_t sender_id, enum ledger_outcome *ret)
{
    const struct ledger_key k = {
        .holder_vid = op->holder_vid,
        .holder_level = op->holder_level,
        .sender = sender,
        .sender_id = sender_id,
        .stamp = op->stamp,
    };
    unsigned i = key_find(l, op);
    if (i < l->key_count) {
        *ret = LEDGER_DUPLICATE;
        return key_refresh(l, i, &k);
    }
    int r = keys_insert(l, &k);
    if (r == 0)
        r = drop_counts(l, op);
    if (r < 0)
        return r;
    *ret = LEDGER_CHANGED;
    return 0;
}

int ledger_apply(struct ledger *l, const struct ref_op *op, enum ref_sender_kind sender,
                 uint64_t sender_id, enum ledger_outcome *ret)
{
    if (l->state == LEDGER_DYING) {
        *ret = LEDGER_DUPLICATE;
        return 0;
    }
    if (op->kind == REF_KILL) {
        l->count_count = 0;
        l->copies = op->copies;
    } else {
        int r = apply_drop(l, op, sender, sender_id, ret);
        if (r < 0 || *ret == LEDGER_DUPLICATE)
            return r;
    }
    *ret = LEDGER_CHANGED;
    if (l->count_count == 0) {
        /* Nothing that is still to come can change a dead ledger, so its keys have no use. */
        l->state = LEDGER_DYING;
        l->key_count = 0;
        *ret = LEDGER_DIED;
    }
    return 0;
}

/* --- encoding --- */

static bool same_run(const struct ledger_key *a, const struct ledger_key *b)
{
    return a->sender == b->sender && a->sender_id == b->sender_id &&
           a->holder_level == b->holder_level;
}

/* Index behind the run of keys that begins at `from`. */
static unsigned run_end(const struct ledger *l, unsigned from)
{
    unsigned to = from;
    while (to < l->key_count && same_run(&l->keys[from], &l->keys[to]))
        to++;
    return to;
}

static void run_encode(const struct ledger *l, unsigned from, unsigned to, struct enc *e)
{
    const struct ledger_key *first = &l->keys[from];
    uint64_t lowest = UINT64_MAX, vid = 0;
    for (unsigned i = from; i < to; i++)
        lowest = MIN(lowest, l->keys[i].stamp);
    enc_u8(e, (uint8_t)first->sender);
    enc_u8(e, first->holder_level);
    enc_varint(e, first->sender_id);
    enc_varint(e, lowest);
    enc_varint(e, to - from);
    for (unsigned i = from; i < to; i++) {
        enc_varint(e, l->keys[i].holder_vid - vid);
        enc_varint(e, l->keys[i].stamp - lowest);
        vid = l->keys[i].holder_vid;
    }
}

void ledger_encode(const struct ledger *l, struct enc *e)
{
    if (ledger_is_default(l))
        return; /* L3 */
    enc_u8(e, LEDGER_FORMAT);
    enc_u8(e, (uint8_t)l->state);
    enc_varint(e, l->copies);
    enc_varint(e, l->count_count);
    uint32_t generation = 0;
    for (unsigned i = 0; i < l->count_count; i++) {
        enc_varint(e, l->counts[i].generation - generation);
        enc_svarint(e, l->counts[i].count);
        generation = l->counts[i].generation;
    }
    unsigned runs = 0;
    for (unsigned i = 0; i < l->key_count; i = run_end(l, i))
        runs++;
    enc_varint(e, runs);
    for (unsigned i = 0; i < l->key_count; i = run_end(l, i))
        run_encode(l, i, run_end(l, i), e);
}

static void fail(struct dec *d)
{
    if (!d->error)
        d->error = -EBADMSG;
}

static int counts_decode(struct dec *d, struct ledger *l)
{
    uint64_t n = dec_varint(d);
    if (n > COUNT_MAX || n > dec_left(d))
        return -EBADMSG;
    l->counts = calloc(n + 1, sizeof(l->counts[0]));
    if (!l->counts)
        return -ENOMEM;
    uint64_t generation = 0;
    for (uint64_t i = 0; i < n && !d->error; i++) {
        uint64_t delta = dec_varint(d);
        int64_t count = dec_svarint(d);
        if (count == 0 || (i > 0 && delta == 0) || delta > UINT32_MAX ||
            generation + delta > UINT32_MAX)
            fail(d);
        generation += delta;
        l->counts[l->count_count++] =
            (struct ledger_count){.generation = (uint32_t)generation, .count = count};
    }
    return d->error;
}

static int run_decode(struct dec *d, struct ledger *l)
{
    /* One statement each: the order within an initializer is the compiler's choice. */
    struct ledger_key k = {0};
    k.sender = dec_u8(d);
    k.holder_level = dec_u8(d);
    k.sender_id = dec_varint(d);
    uint64_t lowest = dec_varint(d), n = dec_varint(d);
    if (d->error || k.sender > REF_SENDER_REGISTRY || n == 0 || n > KEY_MAX || n > dec_left(d))
        return -EBADMSG;
    struct ledger_key *keys = realloc(l->keys, (l->key_count + n) * sizeof(keys[0]));
    if (!keys)
        return -ENOMEM;
    l->keys = keys;
    uint64_t lowest_seen = UINT64_MAX;
    for (uint64_t i = 0; i < n && !d->error; i++) {
        uint64_t delta = dec_varint(d), above = dec_varint(d);
        if ((i > 0 && delta == 0) || !add_u64(k.holder_vid, delta, &k.holder_vid) ||
            !add_u64(lowest, above, &k.stamp))
            fail(d);
        lowest_seen = MIN(lowest_seen, k.stamp);
        if (i == 0 && l->key_count > 0 &&
            (key_compare(&keys[l->key_count - 1], &k) >= 0 ||
             same_run(&keys[l->key_count - 1], &k)))
            fail(d);
        keys[l->key_count++] = k;
    }
    if (lowest_seen != lowest)
        fail(d);
    return d->error;
}

int ledger_decode(const void *p, size_t length, struct ledger *ret)
{
    if (length == 0)
        return ledger_init(ret);
    struct dec d;
    dec_init(&d, p, length);
    if (dec_u8(&d) != LEDGER_FORMAT)
        return -EPROTO;
    struct ledger l = {0};
    uint8_t state = dec_u8(&d);
    l.state = state;
    l.copies = dec_varint(&d);
    int r = counts_decode(&d, &l);
    uint64_t runs = r == 0 ? dec_varint(&d) : 0;
    for (uint64_t i = 0; i < runs && r == 0; i++)
        r = run_decode(&d, &l);
    if (r == 0)
        r = dec_finish(&d);
    /* Dead and dying are one thing; and the default has no encoding (L3). */
    if (r == 0 && (state > LEDGER_DYING || (state == LEDGER_DYING) != (l.count_count == 0) ||
                   (state == LEDGER_DYING && l.key_count > 0) || ledger_is_default(&l)))
        r = -EBADMSG;
    if (r < 0) {
        ledger_done(&l);
        return r;
    }
    *ret = l;
    return 0;
}
