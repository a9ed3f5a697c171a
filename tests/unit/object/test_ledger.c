/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise: a ledger equals a plain model of refcount.md after every sequence of operations, in
 * every order and with every repetition; its encoding comes back exactly, and nothing else decodes.
 */
#include "object/ledger.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"

#define GENERATIONS 4
#define HOLDERS     5

/* refcount.md in arrays. */
struct model {
    int64_t counts[GENERATIONS + 1];
    uint64_t copies;
    uint64_t stamps[HOLDERS]; /* 0: key unknown */
    bool dead;
};

static void model_init(struct model *m)
{
    *m = (struct model){.counts = {1}};
}

static enum ledger_outcome model_apply(struct model *m, const struct ref_op *op)
{
    if (m->dead)
        return LEDGER_DUPLICATE;
    if (m->stamps[op->holder_vid]) {
        if (op->stamp > m->stamps[op->holder_vid])
            m->stamps[op->holder_vid] = op->stamp;
        return LEDGER_DUPLICATE;
    }
    m->stamps[op->holder_vid] = op->stamp;
    m->counts[op->generation] -= 1;
    m->counts[op->generation + 1] += (int64_t)op->copies;
    m->copies += op->copied;
    for (unsigned g = 0; g <= GENERATIONS; g++)
        if (m->counts[g] != 0)
            return LEDGER_CHANGED;
    m->dead = true;
    memset(m->stamps, 0, sizeof(m->stamps));
    return LEDGER_DIED;
}

static void check_equal(const struct ledger *l, const struct model *m)
{
    unsigned nonzero = 0, keys = 0;
    for (uint32_t g = 0; g <= GENERATIONS; g++) {
        assert_int_equal(ledger_get(l, g), m->counts[g]);
        nonzero += m->counts[g] != 0;
    }
    for (unsigned h = 0; h < HOLDERS; h++)
        keys += m->stamps[h] != 0;
    assert_int_equal(l->count_count, nonzero);
    assert_int_equal(l->key_count, keys);
    for (unsigned i = 0; i < l->key_count; i++)
        assert_int_equal(l->keys[i].stamp, m->stamps[l->keys[i].holder_vid]);
    assert_int_equal(l->copies, m->copies);
    assert_int_equal(l->state, m->dead ? LEDGER_DYING : LEDGER_LIVE);
}

/* Encode, decode, compare; every truncation and every changed byte is refused or decodes to
 * something else that encodes back to the same bytes (E3 of the codec: one encoding per value). */
static void check_codec(const struct ledger *l, bool thorough)
{
    struct enc e, again;
    struct ledger back;
    enc_init(&e);
    ledger_encode(l, &e);
    assert_int_equal(e.error, 0);
    assert_int_equal(e.length == 0, ledger_is_default(l));
    assert_int_equal(ledger_decode(e.data, e.length, &back), 0);
    assert_int_equal(back.key_count, l->key_count);
    enc_init(&again);
    ledger_encode(&back, &again);
    assert_int_equal(again.length, e.length);
    if (e.length)
        assert_memory_equal(again.data, e.data, e.length);
    enc_done(&again);
    ledger_done(&back);
    for (size_t n = 1; n < e.length; n++)
        assert_true(ledger_decode(e.data, n, &back) < 0);
    for (size_t i = 0; i < e.length && thorough; i++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            e.data[i] ^= 1u << bit;
            if (ledger_decode(e.data, e.length, &back) == 0) {
                enc_init(&again);
                ledger_encode(&back, &again);
                assert_int_equal(again.length, e.length);
                assert_memory_equal(again.data, e.data, e.length);
                enc_done(&again);
                ledger_done(&back);
            }
            e.data[i] ^= 1u << bit;
        }
    }
    enc_done(&e);
}

static struct ref_op op_of(unsigned holder, unsigned generation, unsigned copies, unsigned copied)
{
    return (struct ref_op){
        .kind = REF_DROP,
        .holder_vid = holder,
        .holder_level = 1,
        .generation = generation,
        .copies = copies,
        .copied = (uint8_t)copied,
        .stamp = 100 + holder,
    };
}

static unsigned sequences;

/* All sequences (with repetition) of the operations up to `depth` more. */
static void explore(const struct ledger *l, const struct model *m, const struct ref_op *ops,
                    unsigned count, unsigned depth)
{
    sequences++;
    for (unsigned i = 0; i < count && depth > 0; i++) {
        struct enc e;
        struct ledger next;
        struct model next_model = *m;
        enum ledger_outcome outcome;
        struct ref_op op = ops[i];
        op.stamp += depth * 10;
        enc_init(&e);
        ledger_encode(l, &e);
        assert_int_equal(ledger_decode(e.data, e.length, &next), 0);
        enc_done(&e);
        assert_int_equal(ledger_apply(&next, &op, REF_SENDER_VOLUME, 7, &outcome), 0);
        assert_int_equal(outcome, model_apply(&next_model, &op));
        check_equal(&next, &next_model);
        check_codec(&next, depth == 1 && sequences % 50 == 0);
        explore(&next, &next_model, ops, count, depth - 1);
        ledger_done(&next);
    }
}

static void test_exhaustive(void **state)
{
    /* Object sets of operations: a chain of copies, a fan, drops before what they need. */
    const struct ref_op sets[][4] = {
        {op_of(0, 0, 1, 0), op_of(1, 1, 1, 0), op_of(2, 2, 0, 0), op_of(3, 2, 0, 1)},
        {op_of(0, 0, 3, 0), op_of(1, 1, 0, 0), op_of(2, 1, 0, 1), op_of(3, 1, 0, 0)},
        {op_of(0, 0, 2, 0), op_of(1, 1, 2, 0), op_of(2, 1, 0, 0), op_of(3, 2, 0, 0)},
        {op_of(0, 0, 0, 0), op_of(1, 1, 0, 1), op_of(2, 2, 0, 1), op_of(3, 3, 0, 0)},
    };
    for (unsigned s = 0; s < ARRAY_SIZE(sets); s++) {
        struct ledger l;
        struct model m;
        model_init(&m);
        assert_int_equal(ledger_init(&l), 0);
        assert_true(ledger_is_default(&l));
        explore(&l, &m, sets[s], 4, 6);
        ledger_done(&l);
    }
    assert_true(sequences > 10000);
}

/* All orders of the complete set lead to death exactly at the last one. */
static void test_orders(void **state)
{
    const struct ref_op ops[] = {op_of(0, 0, 2, 0), op_of(1, 1, 1, 0), op_of(2, 1, 0, 1),
                                 op_of(3, 2, 0, 0)};
    for (unsigned code = 0; code < 256; code++) {
        unsigned order[4] = {code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6 & 3};
        unsigned seen = 1u << order[0] | 1u << order[1] | 1u << order[2] | 1u << order[3];
        if (seen != 15)
            continue;
        struct ledger l;
        assert_int_equal(ledger_init(&l), 0);
        for (unsigned i = 0; i < 4; i++) {
            enum ledger_outcome outcome;
            assert_int_equal(ledger_apply(&l, &ops[order[i]], REF_SENDER_GROUP, 3, &outcome), 0);
            assert_int_equal(outcome, i == 3 ? LEDGER_DIED : LEDGER_CHANGED);
        }
        assert_int_equal(l.copies, 1);
        ledger_done(&l);
    }
}

static void test_keys(void **state)
{
    struct ledger l;
    enum ledger_outcome outcome;
    assert_int_equal(ledger_init(&l), 0);
    for (unsigned h = 0; h < 500; h++) {
        struct ref_op op = op_of(h * 7 % 500, 1, 0, 0);
        op.stamp = (5ULL << 40) + h;
        op.holder_level = (uint8_t)(1 + h % 2);
        assert_int_equal(
            ledger_apply(&l, &op, h % 3 ? REF_SENDER_GROUP : REF_SENDER_VOLUME, h % 5, &outcome),
            0);
        assert_int_equal(outcome, LEDGER_CHANGED);
    }
    assert_int_equal(l.key_count, 500);
    check_codec(&l, true);
    struct enc e;
    enc_init(&e);
    ledger_encode(&l, &e);
    assert_true(e.length < 4096); /* keys are small */
    enc_done(&e);
    /* Floors erase the keys of their sender alone. */
    unsigned expected = 0, left = l.key_count;
    for (unsigned h = 0; h < 500; h++)
        expected += h % 3 == 0 && h % 5 == 0 && h <= 250;
    assert_int_equal(ledger_erase_keys(&l, REF_SENDER_VOLUME, 0, (5ULL << 40) + 250), expected);
    left -= expected;
    assert_int_equal(l.key_count, left);
    assert_int_equal(ledger_erase_keys(&l, REF_SENDER_VOLUME, 9, UINT64_MAX), 0);
    for (unsigned s = 0; s < 5; s++) {
        left -= ledger_erase_keys(&l, REF_SENDER_VOLUME, s, UINT64_MAX);
        left -= ledger_erase_keys(&l, REF_SENDER_GROUP, s, UINT64_MAX);
    }
    assert_int_equal(left, 0);
    assert_int_equal(l.key_count, 0);
    check_codec(&l, true);
    ledger_done(&l);
}

static void test_limits(void **state)
{
    struct ledger l;
    enum ledger_outcome outcome;
    struct ref_op op = op_of(1, 0, 0, 0);
    assert_int_equal(ledger_init(&l), 0);
    op.copies = UINT64_MAX;
    assert_int_equal(ledger_apply(&l, &op, REF_SENDER_VOLUME, 1, &outcome), -EFBIG);
    ledger_done(&l);
    assert_int_equal(ledger_init(&l), 0);
    op.copies = INT64_MAX;
    op.generation = 5;
    assert_int_equal(ledger_apply(&l, &op, REF_SENDER_VOLUME, 1, &outcome), 0);
    op.holder_vid = 2;
    assert_int_equal(ledger_apply(&l, &op, REF_SENDER_VOLUME, 1, &outcome), -EFBIG);
    ledger_done(&l);
    assert_int_equal(ledger_init(&l), 0);
    op.generation = UINT32_MAX;
    op.copies = 1;
    assert_int_equal(ledger_apply(&l, &op, REF_SENDER_VOLUME, 1, &outcome), -EFBIG);
    ledger_done(&l);
    /* A root. */
    assert_int_equal(ledger_init(&l), 0);
    const struct ref_op kill = {.kind = REF_KILL, .copies = 4};
    assert_int_equal(ledger_apply(&l, &kill, REF_SENDER_REGISTRY, 0, &outcome), 0);
    assert_int_equal(outcome, LEDGER_DIED);
    assert_int_equal(l.copies, 4);
    assert_int_equal(ledger_apply(&l, &kill, REF_SENDER_REGISTRY, 0, &outcome), 0);
    assert_int_equal(outcome, LEDGER_DUPLICATE);
    check_codec(&l, true);
    ledger_done(&l);
    static const uint8_t unknown[] = {9, 0, 0, 0, 0};
    assert_int_equal(ledger_decode(unknown, sizeof(unknown), &l), -EPROTO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exhaustive),
        cmocka_unit_test(test_orders),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
