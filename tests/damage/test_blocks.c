/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise (S5): whatever happens to a block in use, nothing wrong is ever read, nothing crashes or
 * hangs, check names the damage, and a repair leaves a store that can be opened, in which
 * everything that it does not name is right, and every object can be replaced. Every class of block
 * is met with every kind of damage: a flipped bit, zeros, swapped with another block of its class
 * or another one, older content, another block's content (misdirected). Some blocks of each class,
 * or all of them with KELPIE_ALL=1.
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
#include "store/store_internal.h"
#include "tests/damage/classes.h"
#include "tests/damage/expect.h"

#define SIZE         (16u << 20)
#define BLOCKS       (SIZE / STORE_BLOCK)
#define PER_CLASS    3u /* blocks of each class in the ordinary run */
#define FINDINGS_MAX 400u

enum damage {
    DAMAGE_FLIP,
    DAMAGE_ZERO,
    DAMAGE_SWAP_SAME,
    DAMAGE_SWAP_OTHER,
    DAMAGE_STALE,
    DAMAGE_MISDIRECTED, /* the content of another block of the class was written here */
    DAMAGE_COUNT,
};
static const char *const damage_names[] = {"a flipped bit",          "zeros",
                                           "swapped with its class", "swapped with another class",
                                           "older content",          "another block's content"};

static struct world {
    struct sample p;
    const char *name;
    bool clean; /* nothing waits in the log */
    uint8_t *good, *older[3];
    uint8_t classes[BLOCKS];
    struct expect expect;
    unsigned cases, refused, repaired;
} world;

/* The case at hand. */
static struct now {
    uint32_t block, other; /* other: 0 if only one is damaged */
    enum damage damage;
    unsigned finding_count;
    char findings[FINDINGS_MAX][160];
} now;

/* Ends the program: cmocka cannot leave a fiber. */
static void failed(const char *what, const char *detail)
{
    printf("FAILED: %s image, block %u (%s), %s, other block %u (%s): %s: %s\n", world.name,
           now.block, block_class_names[world.classes[now.block]], damage_names[now.damage],
           now.other, block_class_names[world.classes[now.other]], what, detail);
    for (unsigned i = 0; i < MIN(now.finding_count, 20u); i++)
        printf("  %s\n", now.findings[i]);
    fflush(stdout);
    abort();
}

static uint8_t *disk_bytes(void)
{
    return sim_disk_bytes(world.p.sim, SAMPLE_PATH);
}

static uint8_t *disk_block(uint32_t b)
{
    return disk_bytes() + (size_t)b * STORE_BLOCK;
}

/* --- doing damage --- */

static uint32_t find_other(uint32_t block, bool same)
{
    for (uint32_t n = 1; n < BLOCKS; n++) {
        uint32_t b = (block + n * 7) % BLOCKS;
        bool alike = world.classes[b] == world.classes[block];
        if (b != block && world.classes[b] != BLOCK_FREE && alike == same &&
            memcmp(world.good + (size_t)b * STORE_BLOCK, world.good + (size_t)block * STORE_BLOCK,
                   STORE_BLOCK) != 0)
            return b;
    }
    return 0;
}

static bool make_stale(uint32_t block)
{
    for (unsigned i = 0; i < ARRAY_SIZE(world.older); i++) {
        const uint8_t *old = world.older[i] + (size_t)block * STORE_BLOCK;
        if (memcmp(old, disk_block(block), STORE_BLOCK) != 0) {
            memcpy(disk_block(block), old, STORE_BLOCK);
            return true;
        }
    }
    return false;
}

/* False: there is no such damage to this block. */
static bool do_damage(void)
{
    uint8_t copy[STORE_BLOCK], *p = disk_block(now.block);
    bool swap = now.damage == DAMAGE_SWAP_SAME || now.damage == DAMAGE_SWAP_OTHER;

    memcpy(disk_bytes(), world.good, SIZE);
    now.other = 0;
    if (swap || now.damage == DAMAGE_MISDIRECTED) {
        uint32_t other = find_other(now.block, now.damage != DAMAGE_SWAP_OTHER);
        if (other == 0)
            return false;
        memcpy(copy, p, STORE_BLOCK);
        memcpy(p, disk_block(other), STORE_BLOCK);
        if (swap) {
            memcpy(disk_block(other), copy, STORE_BLOCK);
            now.other = other;
        }
        return true;
    }
    switch (now.damage) {
    case DAMAGE_FLIP:
        /* in the part in use; of a log block in its first record */
        p[world.classes[now.block] == BLOCK_LOG ? LOG_HEADER_SIZE + 20
                                                : hash_u64(now.block) % 128] ^=
            (uint8_t)(1u << now.block % 8);
        return true;
    case DAMAGE_ZERO:
        memset(p, 0, STORE_BLOCK);
        return memcmp(p, world.good + (size_t)now.block * STORE_BLOCK, STORE_BLOCK) != 0;
    default:
        return make_stale(now.block);
    }
}

/* --- judging --- */

static void finding(void *arg, const char *text)
{
    (void)arg;
    if (now.finding_count < FINDINGS_MAX)
        snprintf(now.findings[now.finding_count], sizeof(now.findings[0]), "%s", text);
    now.finding_count++;
}

static bool named(uint32_t block)
{
    char want[40];

    snprintf(want, sizeof(want), "offset %llu:", (unsigned long long)block * STORE_BLOCK);
    for (unsigned i = 0; i < MIN(now.finding_count, FINDINGS_MAX); i++) {
        if (strstr(now.findings[i], want) != NULL)
            return true;
    }
    return false;
}

static fiber_fn unsigned check(void)
{
    struct store_check_report report;

    now.finding_count = 0;
    assert_int_equal(store_check(world.p.rt, SAMPLE_PATH, true, finding, NULL, &report), 0);
    assert_int_equal(report.error_count, now.finding_count);
    return now.finding_count;
}

/* Both copies of the superblock say the same, wherever they are; one that is a step behind looks
 * like the moment between two writes. With commits in the log, some of the checkpoint is not needed
 * any more. */
static bool may_be_silent(void)
{
    return !world.clean || (world.classes[now.block] == BLOCK_SUPER &&
                            (now.damage == DAMAGE_SWAP_SAME || now.damage == DAMAGE_STALE));
}

static void judge_read(const struct expect_result *e, bool inexact)
{
    if (e->wrong[0] != '\0')
        failed("wrong", e->wrong);
    if ((e->missing > 0 || e->versions > 0) && !inexact)
        failed("objects are missing or changed, and nothing says so", "");
}

static const struct store_change *replacement(const struct expect_object *o, struct version next)
{
    static uint8_t data[STORE_BLOCK] __attribute__((aligned(STORE_BLOCK)));
    static const struct store_extent extent = {0, STORE_BLOCK};
    static struct iovec iov = {data, STORE_BLOCK};
    static struct store_change c;

    memset(data, 0x99, sizeof(data));
    c = (struct store_change){.kind = STORE_INSTALL,
                              .oid = o->entry.oid,
                              .next = next,
                              .extents = &extent,
                              .extent_count = 1,
                              .iov = &iov,
                              .iov_count = 1};
    return &c;
}

/* Changes a bit of everything: each may only work or say -EUCLEAN. */
static fiber_fn void change_things(struct store *s)
{
    for (size_t i = 0; i < world.expect.count; i += 5) {
        const struct expect_object *o = &world.expect.objects[i];
        struct version next = {o->entry.version.value + 1000};
        struct store_change c = *replacement(o, next);
        struct store_stat stat;
        int r;
        store_stat(s, &o->entry.oid, &stat);
        if (stat.version.value == 0)
            continue;
        c.prev = stat.version;
        c.kind = i % 3 == 0 ? STORE_WRITE : i % 3 == 1 ? STORE_INSTALL : STORE_REMOVE;
        if (c.kind == STORE_REMOVE)
            c.extent_count = c.iov_count = 0;
        r = store_apply(s, &c, NULL);
        if (r < 0 && !(r == -EUCLEAN && c.kind == STORE_WRITE))
            failed("a change failed", err_text(r));
    }
}

static fiber_fn void scrub(struct store *s)
{
    uint64_t bytes, errors;
    int r = store_scrub_step(s, 8 << 20, &bytes, &errors);

    if (r < 0)
        failed("scrubbing failed", err_text(r));
}

/* Check, open, read, scrub, change, close. */
static fiber_fn void use_damaged(void)
{
    unsigned found = check();
    bool said = named(now.block) || (now.other != 0 && named(now.other));
    struct expect_result e;
    char problem[256];
    struct store *s;
    int r;

    /* which copy of two equal superblocks is the wrong one cannot be known */
    said = said || (found > 0 && world.classes[now.block] == BLOCK_SUPER);
    if (!may_be_silent() && !said)
        failed("check does not name it", now.finding_count > 0 ? now.findings[0] : "no finding");
    r = store_open_explain(world.p.rt, SAMPLE_PATH, NULL, &s, problem);
    if (r == -EUCLEAN || r == -EMEDIUMTYPE) {
        world.refused++;
        if (found == 0 || problem[0] == '\0')
            failed("refused, but check found nothing, or no reason was given", problem);
        return;
    }
    if (r < 0)
        failed("opening failed", err_text(r));
    expect_compare(&world.expect, s, &e);
    judge_read(&e, store_is_inexact(s));
    if (found == 0 && (e.bad > 0 || e.missing > 0 || e.versions > 0 || store_is_inexact(s)))
        failed("check found nothing, reading did", problem);
    scrub(s);
    change_things(s);
    r = store_close(s);
    if (r < 0)
        failed("closing failed", err_text(r));
}

/* The layer above replaces what cannot be read, and then all is well again. */
static fiber_fn void replace_bad(struct store *s)
{
    for (size_t i = 0; i < world.expect.count; i++) {
        const struct expect_object *o = &world.expect.objects[i];
        struct store_stat stat;
        struct store_change c;
        int r = 0;
        store_stat(s, &o->entry.oid, &stat);
        if (stat.version.value == 0)
            continue;
        for (uint32_t k = 0; r == 0 && k < MAX(o->count, 1u); k++) {
            static uint8_t block[STORE_BLOCK] __attribute__((aligned(STORE_BLOCK)));
            uint64_t at = o->count > 0 ? (uint64_t)o->blocks[k] * STORE_BLOCK : 0;
            r = store_read(s, &o->entry.oid, at, STORE_BLOCK, block, NULL);
        }
        if (r == 0)
            continue;
        c = *replacement(o, stat.version);
        c.prev = stat.version;
        r = store_apply(s, &c, NULL);
        if (r < 0)
            failed("an object cannot be replaced", err_text(r));
    }
}

/* Only metas may be left: nothing in the store can say them again. */
static void expect_only_metas_left(void)
{
    for (unsigned i = 0; i < MIN(now.finding_count, FINDINGS_MAX); i++) {
        if (strstr(now.findings[i], "meta") == NULL)
            failed("left after repair and replacement", now.findings[i]);
    }
}

static fiber_fn void repair_and_use(bool hopeless)
{
    struct store_repair_report report;
    struct expect_result e;
    struct store *s;
    int r;

    now.finding_count = 0;
    r = store_repair(world.p.rt, SAMPLE_PATH, true, finding, NULL, &report);
    if (r < 0)
        failed("repair failed", err_text(r));
    r = store_open(world.p.rt, SAMPLE_PATH, NULL, &s);
    if (r < 0 && hopeless)
        return;
    if (r < 0)
        failed("cannot be opened after repair", now.findings[0]);
    if (report.inexact != store_is_inexact(s))
        failed("repair does not say that the store is inexact", "");
    world.repaired++;
    expect_compare(&world.expect, s, &e);
    judge_read(&e, store_is_inexact(s));
    if (e.bad > 0 && report.left.error_count == 0)
        failed("bad blocks that repair did not name", "");
    replace_bad(s);
    r = store_close(s);
    if (r < 0)
        failed("closing failed", err_text(r));
    (void)check();
    expect_only_metas_left();
}

/* Swapping both superblocks' places, or one with something else, leaves one; only both gone is the
 * end. */
static bool is_hopeless(void)
{
    return world.classes[now.block] == BLOCK_SUPER && now.other != 0 &&
           world.classes[now.other] == BLOCK_SUPER;
}

static fiber_fn void one_case(void)
{
    if (!do_damage())
        return;
    world.cases++;
    use_damaged();
    (void)do_damage();
    repair_and_use(is_hopeless());
}

static void damage_body(struct sample *p)
{
    bool all = getenv("KELPIE_ALL") != NULL;
    unsigned per_class[BLOCK_CLASS_COUNT] = {0}, total[BLOCK_CLASS_COUNT] = {0};

    sample_open(p);
    expect_take(&world.expect, p->s);
    store_close(p->s);
    for (uint32_t b = 0; b < BLOCKS; b++)
        total[world.classes[b]]++;
    for (uint32_t b = 0; b < BLOCKS; b++) {
        unsigned class = world.classes[b], n = per_class[class]++;
        unsigned step = MAX(total[class] / PER_CLASS, 1u);
        if (class == BLOCK_FREE || (!all && (n % step != 0 || n / step >= PER_CLASS)))
            continue;
        for (unsigned d = 0; d < DAMAGE_COUNT; d++) {
            now = (struct now){.block = b, .damage = (enum damage)d};
            one_case();
        }
    }
    expect_done(&world.expect);
    /* every class was there, and the damage was not all of one outcome */
    for (unsigned c = BLOCK_SUPER; c < BLOCK_CLASS_COUNT; c++)
        assert_true(total[c] > 0 || (c == BLOCK_LOG && world.clean));
    assert_true(world.cases > 100 && world.refused > 10 && world.repaired > 100);
    print_message("%s: %u cases, %u refused, %u repaired\n", world.name, world.cases, world.refused,
                  world.repaired);
    world.cases = 0;
}

/* --- the stores --- */

static void keep(uint8_t **copy)
{
    free(*copy);
    *copy = malloc(SIZE);
    memcpy(*copy, disk_bytes(), SIZE);
}

static void first_body(struct sample *p)
{
    sample_format(p);
    sample_open(p);
    sample_small(p);
    sample_close(p);
    keep(&world.older[2]);
    p->s = NULL;
}

static void make_body(struct sample *p)
{
    sample_format(p);
    sample_open(p);
    sample_fill(p);
    sample_close(p);
    keep(&world.older[1]);
    sample_open(p);
    sample_change(p);
    keep(&world.older[0]);
    if (world.clean)
        sample_close(p);
    else
        fiber_sleep(p->rt, 3 * NS_PER_S);
}

static void classify_body(struct sample *p)
{
    classify(p, world.classes, BLOCKS);
}

static void run_world(const char *name, bool clean)
{
    world.name = name;
    world.clean = clean;
    sample_init(&world.p, SIZE);
    sample_do(&world.p, first_body);
    sample_done(&world.p);
    sample_init(&world.p, SIZE);
    sample_do(&world.p, make_body);
    sim_node_kill(world.p.sim, world.p.rt);
    sample_do(&world.p, classify_body);
    keep(&world.good);
    sample_do(&world.p, damage_body);
    assert_int_equal(world.cases, 0); /* it came to its end */
    sample_done(&world.p);
}

static void test_clean(void **state)
{
    (void)state;
    run_world("clean", true);
}

static void test_log(void **state)
{
    (void)state;
    run_world("log", false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_clean), cmocka_unit_test(test_log)};

    log_level = LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
