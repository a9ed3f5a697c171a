/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise: reference messages are applied once, on all in-sync nodes; what dies is removed
 * everywhere, index blocks after everything below them was dropped; nothing else is touched.
 */
#include "base/log.h"
#include "trio.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#define V(term, sequence) (((uint64_t)(term) << 40) | (sequence))

static fiber_fn void put_block(struct trio *t, struct objects *o, const struct object_owner *w,
                               struct oid block, uint64_t next, const struct index_entry *entries)
{
    const struct index_header h = {
        .level = block.level,
        .family = 7,
        .group_count = t->group_count,
        .entries = TRIO_ENTRIES,
    };
    uint32_t tail_at = index_tail_offset(TRIO_ENTRIES), length = tail_at + index_tail_bytes(0);
    uint8_t *bytes = buf_get(t->rt, length);
    memset(bytes, 0, length);
    for (unsigned i = 0; i < TRIO_ENTRIES; i++)
        index_entry_put(bytes + i * INDEX_ENTRY_BYTES, &entries[i]);
    index_tail_encode(&h, NULL, bytes + tail_at);
    const struct object_extent extent = {0, length};
    const struct iovec iov = {bytes, length};
    const struct object_change c = {
        .kind = OBJECT_WRITE,
        .oid = block,
        .next = {next},
        .extents = &extent,
        .extent_count = 1,
        .iov = &iov,
        .iov_count = 1,
    };
    CHECK(object_change(o, w, &c) == 0);
    buf_put(t->rt, bytes);
}

/* Image `vid`: root, leaf 0 with two data objects of its own (positions 0 and 2). */
static fiber_fn void put_image(struct trio *t, const struct object_owner *w, uint64_t vid,
                               uint64_t *sequence)
{
    struct objects *o = trio_objects(t, 0);
    CHECK(trio_write(o, w, trio_oid(t, vid, 0, 0), 0, V(1, ++*sequence), 0, 4096, 1) == 0);
    CHECK(trio_write(o, w, trio_oid(t, vid, 0, 2), 0, V(1, ++*sequence), 0, 4096, 2) == 0);
    const struct index_entry leaf[TRIO_ENTRIES] = {{.vid = vid}, {0}, {.vid = vid}};
    put_block(t, o, w, trio_oid(t, vid, 1, 0), V(1, ++*sequence), leaf);
    const struct index_entry root[TRIO_ENTRIES] = {{.vid = vid}};
    put_block(t, o, w, trio_oid(t, vid, 2, 0), V(1, ++*sequence), root);
}

/* Root of `vid` is a copy of the root of `of`: entries with generation + 1. */
static fiber_fn void put_root_copy(struct trio *t, const struct object_owner *w, uint64_t vid,
                                   uint64_t of, uint32_t generation, uint64_t *sequence)
{
    const struct index_entry root[TRIO_ENTRIES] = {{.vid = of, .generation = generation}};
    put_block(t, trio_objects(t, 0), w, trio_oid(t, vid, 2, 0), V(1, ++*sequence), root);
}

static fiber_fn int kill(struct objects *o, struct oid root, uint64_t copies)
{
    const struct ref_op op = {.kind = REF_KILL, .target = root, .copies = copies};
    return object_refs(o, NULL, REF_SENDER_REGISTRY, &op, 1);
}

struct count_wanted {
    struct trio *t;
    size_t count;
};

static bool count_is(void *arg)
{
    const struct count_wanted *c = arg;
    for (unsigned i = 0; i < TRIO_NODES; i++)
        if (trio_object_count(c->t, i) != c->count || reclaim_count(c->t->nodes[i].objects) > 0)
            return false;
    return true;
}

static fiber_fn void wait_count(struct trio *t, size_t count)
{
    struct count_wanted c = {t, count};
    trio_wait(t, count_is, &c);
}

/* One image, killed: everything goes. */
static fiber_fn void scene_cascade(struct trio *t)
{
    const struct object_owner w = trio_owner(1, 20);
    uint64_t sequence = 0;
    put_image(t, &w, 20, &sequence);
    CHECK(trio_object_count(t, 1) == 4);
    CHECK(kill(trio_objects(t, 1), trio_oid(t, 20, 2, 0), 0) == 0);
    wait_count(t, 0);
    /* Absent: done. */
    CHECK(kill(trio_objects(t, 1), trio_oid(t, 20, 2, 0), 0) == 0);
}

static void test_cascade(void **state)
{
    trio_run(scene_cascade, 3, 5);
}

/* Three images share one leaf; each death in turn, in an order from the seed. */
static fiber_fn void scene_shared(struct trio *t)
{
    const struct object_owner w = trio_owner(1, 20);
    uint64_t sequence = 0;
    put_image(t, &w, 20, &sequence);
    put_root_copy(t, &w, 21, 20, 1, &sequence); /* copy of root 20 */
    put_root_copy(t, &w, 22, 20, 2, &sequence); /* copy of root 21 */
    uint64_t copies[] = {1, 1, 0};
    unsigned order[] = {0, 1, 2};
    for (unsigned i = 0; i < 2; i++) {
        unsigned k = i + (unsigned)(trio_random(t) % (3 - i)), x = order[i];
        order[i] = order[k];
        order[k] = x;
    }
    for (unsigned i = 0; i < 3; i++) {
        CHECK(trio_byte(trio_objects(t, 2), trio_oid(t, 20, 0, 2), 0) == 2);
        CHECK(kill(trio_objects(t, i), trio_oid(t, 20 + order[i], 2, 0), copies[order[i]]) == 0);
        wait_count(t, i == 2 ? 0 : 3 + 2 - i); /* leaf, two data, the roots left */
        trio_check_equal(t);
    }
}

static void test_shared(void **state)
{
    trio_run(scene_shared, 3, 12);
}

/* V3: the owner drops with copied = 1; every message is repeated; an old stamp or term is refused.
 */
static fiber_fn void scene_owner(struct trio *t)
{
    struct object_owner w = trio_owner(2, 20);
    struct oid d = trio_oid(t, 20, 0, 5);
    CHECK(trio_write(trio_objects(t, 0), &w, d, 0, V(2, 1), 0, 4096, 9) == 0);
    struct ref_op op = {
        .kind = REF_DROP,
        .target = d,
        .holder_vid = 31,
        .holder_level = 1,
        .generation = 1,
        .stamp = V(2, 10),
    };
    for (unsigned i = 0; i < 3; i++) /* the same key: once */
        CHECK(object_refs(trio_objects(t, i), &w, REF_SENDER_VOLUME, &op, 1) == 0);
    struct ledger l;
    struct {
        uint8_t bytes[STORE_META_SIZE_MAX];
        size_t length;
        uint64_t version;
    } m;
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        CHECK(store_meta_get(t->nodes[i].store, &d, m.bytes, &m.length, &m.version) == 0);
        CHECK(ledger_decode(m.bytes, m.length, &l) == 0);
        CHECK(ledger_get(&l, 0) == 1 && ledger_get(&l, 1) == -1 && l.key_count == 1);
        ledger_done(&l);
    }
    /* Fenced: an older term; a stamp at the floor. */
    struct object_owner old = trio_owner(1, 20);
    CHECK(object_refs(trio_objects(t, 1), &old, REF_SENDER_VOLUME, &op, 1) == -ESTALE);
    w.stable.value = V(2, 11);
    CHECK(object_refs(trio_objects(t, 1), &w, REF_SENDER_VOLUME, &op, 1) == -ESTALE);
    /* A dying holder whose copies account for it: {0:1, 1:-1} + drop(0, copies 1) = dead. */
    op.holder_vid = 20;
    op.generation = 0;
    op.copies = 1;
    op.stamp = V(2, 12);
    CHECK(object_refs(trio_objects(t, 2), &w, REF_SENDER_VOLUME, &op, 1) == 0);
    for (unsigned i = 0; i < TRIO_NODES; i++)
        CHECK(trio_object_count(t, i) == 0);
    CHECK(object_refs(trio_objects(t, 2), &w, REF_SENDER_VOLUME, &op, 1) == 0);
}

static void test_owner(void **state)
{
    trio_run(scene_owner, 3, 5);
}

/* A large batch over all homes at once. */
static fiber_fn void scene_batches(struct trio *t)
{
    struct object_owner w = trio_owner(1, 20);
    enum { COUNT = 600 };
    struct ref_op *ops = calloc(COUNT, sizeof(*ops));
    CHECK(ops);
    for (unsigned i = 0; i < COUNT; i++) {
        if (i % 20 == 0)
            CHECK(trio_write(trio_objects(t, 0), &w, trio_oid(t, 20, 0, i), 0, V(1, i + 1), 0, 512,
                             7) == 0);
        ops[i] = (struct ref_op){
            .kind = REF_DROP,
            .target = trio_oid(t, 20, 0, i),
            .holder_vid = 20,
            .holder_level = 1,
            .stamp = V(1, 1000 + i),
        };
    }
    CHECK(trio_object_count(t, 2) == COUNT / 20);
    CHECK(object_refs(trio_objects(t, 1), &w, REF_SENDER_VOLUME, ops, COUNT) == 0);
    for (unsigned i = 0; i < TRIO_NODES; i++)
        CHECK(trio_object_count(t, i) == 0);
    free(ops);
}

static void test_batches(void **state)
{
    trio_run(scene_batches, 3, 2);
    trio_run(scene_batches, 3, 2);
}

/* Cascades while nodes are killed and the power goes: at rest, nothing is left and nothing was
 * taken early. */
static fiber_fn void scene_killed(struct trio *t)
{
    const struct object_owner w = trio_owner(1, 20);
    uint64_t sequence = 0;
    put_image(t, &w, 20, &sequence);
    put_root_copy(t, &w, 21, 20, 1, &sequence);
    put_root_copy(t, &w, 22, 20, 2, &sequence);
    put_root_copy(t, &w, 23, 20, 1, &sequence);
    static const uint64_t copies[] = {2, 1, 0, 0};
    for (unsigned i = 0; i < 4; i++) {
        unsigned victim = (unsigned)(trio_random(t) % TRIO_NODES);
        CHECK(trio_byte(trio_objects(t, 0), trio_oid(t, 20, 0, 2), 0) == 2);
        CHECK(kill(trio_objects(t, (victim + 1) % 3), trio_oid(t, 20 + i, 2, 0), copies[i]) == 0);
        CHECK(fiber_sleep(t->rt, trio_random(t) % (4 * NS_PER_MS)) == 0);
        trio_kill_node(t, victim, trio_random(t) % 2);
        CHECK(fiber_sleep(t->rt, trio_random(t) % (300 * NS_PER_MS)) == 0);
        trio_start_node(t, victim);
        trio_settle_map(t);
        wait_count(t, i == 3 ? 0 : 3 + 3 - i);
        trio_check_equal(t);
    }
}

static void test_killed(void **state)
{
    trio_run_sim(scene_killed, 3, 60);
}

int main(void)
{
    log_level = LOG_ERROR;
    if (getenv("ONLY"))
        cmocka_set_test_filter(getenv("ONLY"));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cascade), cmocka_unit_test(test_shared), cmocka_unit_test(test_owner),
        cmocka_unit_test(test_batches), cmocka_unit_test(test_killed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
