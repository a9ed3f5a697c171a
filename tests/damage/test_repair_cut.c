/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise: a power cut or an I/O error at any step of a repair leaves a store that the next repair
 * mends as if nothing had happened.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "store/log_scan.h"
#include "store/mend.h"
#include "store/record.h"
#include "tests/damage/classes.h"
#include "tests/damage/expect.h"

#define SIZE      (16u << 20)
#define BLOCKS    (SIZE / STORE_BLOCK)
#define STEPS_MAX 12u /* of many reads not each one fails */

/* A crashed node's memory is abandoned by design. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

static uint8_t *good, *damaged;
static uint8_t classes[BLOCKS];
static struct expect expect;

/* What one repair came to. */
static struct outcome {
    bool ended;
    int result;
    struct store_repair_report report;
    struct expect_result content;
} out;

static void make_body(struct sample *p)
{
    sample_format(p);
    sample_open(p);
    sample_fill(p);
    sample_close(p);
    sample_open(p);
    sample_change(p);
    fiber_sleep(p->rt, 3 * NS_PER_S);
}

static void look_body(struct sample *p)
{
    struct store_open_options options = {.read_only = true};

    classify(p, classes, BLOCKS);
    ASSERT(store_open(p->rt, SAMPLE_PATH, &options, &p->s) == 0);
    expect_take(&expect, p->s);
    sample_close(p);
}

static void make_good(void)
{
    struct sample p;

    sample_init(&p, SIZE);
    sample_do(&p, make_body);
    sim_node_kill(p.sim, p.rt);
    sample_do(&p, look_body);
    good = malloc(SIZE);
    damaged = malloc(SIZE);
    memcpy(good, sim_disk_bytes(p.sim, SAMPLE_PATH), SIZE);
    sample_done(&p);
}

static void put_body(struct sample *p)
{
    uint8_t *buffer = aligned_alloc(STORE_BLOCK, SIZE);
    struct disk *d;

    memcpy(buffer, damaged, SIZE);
    ASSERT(disk_open(p->rt, SAMPLE_PATH, 0, 0, &d) == 0);
    ASSERT(disk_write(d, 0, buffer, SIZE, 0) == 0 && disk_flush(d) == 0);
    disk_close(d);
    free(buffer);
}

static void repair_body(struct sample *p)
{
    out.result = store_repair(p->rt, SAMPLE_PATH, true, NULL, NULL, &out.report);
    out.ended = true;
}

static void compare_body(struct sample *p)
{
    repair_body(p);
    if (out.result < 0 || store_open(p->rt, SAMPLE_PATH, NULL, &p->s) < 0) {
        out.result = -EUCLEAN;
        return;
    }
    expect_compare(&expect, p->s, &out.content);
    sample_close(p);
}

/* Zeroes the first `count` blocks of a class. */
static void damage(enum block_class class, unsigned count)
{
    for (uint32_t b = 0; b < BLOCKS && count > 0; b++) {
        if (classes[b] == class) {
            memset(damaged + (size_t)b * STORE_BLOCK, 0, STORE_BLOCK);
            count--;
        }
    }
    ASSERT(count == 0);
}

/* Repairs; the fault comes at operation n (0: never). Then again, without. Returns the number of
 * operations of the first repair. */
static uint64_t repair_twice(enum disk_op op, enum sim_fault fault, uint64_t n)
{
    struct sample p;
    uint64_t before, count;

    sample_init(&p, SIZE);
    sample_do(&p, put_body);
    memset(&out, 0, sizeof(out));
    before = sim_disk_op_count(p.sim, SAMPLE_PATH, op);
    if (n > 0)
        sim_disk_fault(p.sim, SAMPLE_PATH, op, fault, n);
    sample_do(&p, repair_body);
    count = sim_disk_op_count(p.sim, SAMPLE_PATH, op) - before;
    sim_disk_fault(p.sim, SAMPLE_PATH, op, SIM_FAULT_NONE, 0);
    sample_do(&p, compare_body);
    sample_done(&p);
    return count;
}

static void sweep(const char *what, enum disk_op op, enum sim_fault fault)
{
    uint64_t count = repair_twice(op, fault, 0), step = MAX(count / STEPS_MAX, 1ull);
    struct outcome whole = out;

    assert_int_equal(whole.result, 0);
    assert_string_equal(whole.content.wrong, "");
    assert_true(count > 5);
    for (uint64_t n = 1; n <= count; n += step) {
        (void)repair_twice(op, fault, n);
        if (out.result != 0 || out.content.wrong[0] != '\0' ||
            out.content.bad > whole.content.bad || out.content.missing > whole.content.missing)
            fail_msg("%s, fault %d at operation %d number %llu: result %d, %s, %u bad for %u, %u "
                     "missing for %u",
                     what, fault, op, (unsigned long long)n, out.result, out.content.wrong,
                     out.content.bad, whole.content.bad, out.content.missing,
                     whole.content.missing);
    }
    print_message("%s, fault %d at each of %llu operations: %u bad, %u missing as without\n", what,
                  fault, (unsigned long long)count, whole.content.bad, whole.content.missing);
}

static void test_cut(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        enum block_class classes[3];
    } cases[] = {
        {"index, bitmap and share pages", {BLOCK_INDEX, BLOCK_BITMAP, BLOCK_SHARE}},
        {"maps and a superblock", {BLOCK_LEAF, BLOCK_INDIRECT, BLOCK_SUPER}},
    };

    make_good();
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        memcpy(damaged, good, SIZE);
        for (unsigned k = 0; k < ARRAY_SIZE(cases[i].classes); k++)
            damage(cases[i].classes[k], 1);
        sweep(cases[i].what, DISK_WRITE, SIM_FAULT_CRASH);
        sweep(cases[i].what, DISK_WRITE, SIM_FAULT_EIO_ONCE);
        sweep(cases[i].what, DISK_WRITE, SIM_FAULT_EIO_FROM);
        sweep(cases[i].what, DISK_READ, SIM_FAULT_EIO_ONCE);
    }
    expect_done(&expect);
    free(good);
    free(damaged);
}

/* A block that a commit in the log has written, and the checkpoint does not know. */
static fiber_fn uint32_t find_pending(struct walk *w)
{
    struct log_commit c = {.valid = true};
    uint32_t block = 0;
    struct log_scan sc;

    ASSERT(log_scan_init(&sc, w->disk, &w->super, w->salt) == 0);
    enc_init(&c.payload);
    while (block == 0 && c.valid) {
        struct record rec;
        struct dec d;
        ASSERT(log_scan_next(&sc, &c) == 0);
        dec_init(&d, c.payload.data, c.payload.length);
        if (c.valid && dec_left(&d) > 0 && record_take(&d, &rec) == 0 && rec.run_count > 0)
            block = record_run_get(&rec, 0).block;
    }
    enc_done(&c.payload);
    log_scan_done(&sc);
    return block;
}

static void pending_body(struct sample *p)
{
    struct walk w = {0};
    struct mend m;

    ASSERT(walk_open(p->rt, SAMPLE_PATH, 0, &w) == 0 && mend_init(&m, &w) == 0);
    ASSERT(walk_run(&w) == 0 && walk_is_damaged(&w));
    m.cursor = find_pending(&w) - w.super.data_first;
    ASSERT(m.cursor < BLOCKS);
    ASSERT(mend_write(&m) == 0);
    mend_done(&m);
    walk_close(&w);
    compare_body(p);
}

/* What the log has written is not written over, even if it is the first free block (M1). */
static void test_pending(void **state)
{
    struct sample p;

    (void)state;
    make_good();
    memcpy(damaged, good, SIZE);
    damage(BLOCK_BITMAP, 1);
    sample_init(&p, SIZE);
    sample_do(&p, put_body);
    memset(&out, 0, sizeof(out));
    sample_do(&p, pending_body);
    assert_true(out.ended);
    assert_int_equal(out.result, 0);
    assert_string_equal(out.content.wrong, "");
    assert_int_equal(out.content.bad + out.content.missing + out.content.versions, 0);
    sample_done(&p);
    expect_done(&expect);
    free(good);
    free(damaged);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_pending), cmocka_unit_test(test_cut)};

    log_level = LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
