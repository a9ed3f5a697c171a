/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise S5: what is not a good store is refused, a flipped byte anywhere in use is found by check
 * and never read as good, damage to the log is told from a torn tail.
 */
#include "fixture.h"
#include <stdio.h>
#include "store/layout.h"

#define A fixture_oid(1, 0)

static void body_refusals(struct fixture *f)
{
    struct store_format_options options = {.log_bytes = 1 << 20};
    struct store *other = NULL;
    struct uuid cluster = {{1}}, wrong = {{2}}, id, got;
    struct store_check_report report;

    /* something is there */
    assert_int_equal(store_format(f->rt, "disk", &options, NULL, NULL), -EEXIST);
    fixture_open(f);
    assert_int_equal(store_open(f->rt, "disk", NULL, &other), -EBUSY);
    assert_int_equal(store_check(f->rt, "disk", false, NULL, NULL, &report), -EBUSY);
    assert_int_equal(store_set_cluster(f->s, &cluster), 0);
    assert_int_equal(store_set_cluster(f->s, &cluster), 0);
    assert_int_equal(store_set_cluster(f->s, &wrong), -EMEDIUMTYPE);
    fixture_close(f);
    fixture_open(f);
    store_ids(f->s, &id, &got);
    assert_true(uuid_equal(&got, &cluster));
    fixture_close(f);
    options.overwrite = true;
    assert_int_equal(store_format(f->rt, "disk", &options, NULL, NULL), 0);
    fixture_open(f);
    store_ids(f->s, &id, &got);
    assert_true(uuid_is_null(&got));
    fixture_close(f);
    /* neither store nor empty */
    memset(sim_disk_bytes(f->sim, "disk"), 0, 16 << 20);
    sim_disk_bytes(f->sim, "disk")[100000] = 1;
    options.overwrite = false;
    assert_int_equal(store_format(f->rt, "disk", &options, NULL, NULL), -EEXIST);
    assert_int_equal(store_open(f->rt, "disk", NULL, &other), -EMEDIUMTYPE);
    assert_int_equal(store_check(f->rt, "disk", false, NULL, NULL, &report), -EMEDIUMTYPE);
    options.size = 1 << 20;
    options.overwrite = true;
    assert_int_equal(store_format(f->rt, "disk", &options, NULL, NULL), -ENOSPC);
    options.size = 0;
    options.log_bytes = 4096;
    assert_int_equal(store_format(f->rt, "disk", &options, NULL, NULL), -EINVAL);
}

static void test_refusals(void **state)
{
    (void)state;
    fixture_run(16 << 20, DISK_WRITE_BACK, body_refusals);
}

/* A store whose end is missing. */
static void body_truncated(struct fixture *f)
{
    struct store *s = NULL;
    struct store_check_report report;

    assert_int_equal(sim_disk_new(f->sim, "short", 8 << 20, DISK_WRITE_BACK), 0);
    memcpy(sim_disk_bytes(f->sim, "short"), sim_disk_bytes(f->sim, "disk"), 8 << 20);
    assert_int_equal(store_open(f->rt, "short", NULL, &s), -EUCLEAN);
    assert_int_equal(store_check(f->rt, "short", false, NULL, NULL, &report), 0);
    assert_int_equal(report.error_count, 1);
}

static void test_truncated(void **state)
{
    (void)state;
    fixture_run(16 << 20, DISK_WRITE_BACK, body_truncated);
}

/* Some of everything: large object with indirect block, shared blocks, meta in a block, tombstone.
 */
static void fill(struct fixture *f)
{
    struct oid oid = fixture_oid(1, 0);
    uint8_t meta[1000];

    memset(meta, 3, sizeof(meta));
    assert_int_equal(fixture_write(f, oid, STORE_PREV_NONE, ver(1, 1), 0, 100000, 1), 0);
    assert_int_equal(fixture_write(f, oid, ver(1, 1), ver(1, 2), 20 << 20, 4096, 2), 0);
    assert_int_equal(store_meta_put(f->s, &oid, 1, meta, sizeof(meta)), 0);
    assert_int_equal(fixture_clone(f, oid, fixture_oid(1, 1), ver(1, 3)), 0);
    for (uint32_t i = 2; i < 40; i++)
        assert_int_equal(
            fixture_write(f, fixture_oid(1, i), STORE_PREV_NONE, ver(1, i), 4096, 8192, (uint8_t)i),
            0);
    assert_int_equal(fixture_change(f, STORE_REMOVE, fixture_oid(1, 5), ver(1, 5), ver(1, 99)), 0);
}

/* Every block that is owned matters to check, no free block does: so it looks at everything in use.
 */
static void body_flips(struct fixture *f)
{
    uint8_t *bytes = sim_disk_bytes(f->sim, "disk");
    uint32_t blocks = (7 << 20) / 4096, log_end = 2 + 256, found = 0;
    struct store_check_report report;

    fixture_open(f);
    fill(f);
    fixture_close(f);
    assert_int_equal(store_check(f->rt, "disk", true, NULL, NULL, &report), 0);
    assert_int_equal(report.error_count, 0);
    assert_int_equal(report.shared_block_count, 26);
    for (uint32_t b = 0; b < blocks; b++) {
        uint8_t *p = bytes + (size_t)b * 4096 + (b * 37) % 200; /* superblocks: the part in use */
        struct store_check_report damaged;
        *p ^= 0x40;
        assert_int_equal(store_check(f->rt, "disk", true, NULL, NULL, &damaged), 0);
        *p ^= 0x40;
        found += damaged.error_count > 0;
        if (b >= 2 && b < log_end)
            assert_int_equal(damaged.error_count, 0); /* nothing to replay */
    }
    assert_int_equal(found, report.block_count + 2);
}

static void test_flips(void **state)
{
    (void)state;

    fixture_run(7 << 20, DISK_WRITE_BACK, body_flips);
}

/* Many flips at once, also beside the checksums' reach: no crash, and no byte is read wrongly. */
static void body_fuzz(struct fixture *f)
{
    size_t size = 7 << 20;
    uint8_t *bytes = sim_disk_bytes(f->sim, "disk"), *good = malloc(size);
    uint64_t random = 7;
    unsigned opened = 0;

    fixture_open(f);
    fill(f);
    fixture_close(f);
    memcpy(good, bytes, size);
    for (unsigned round = 0; round < 150; round++) {
        struct store_open_options options = {.read_only = round % 2};
        struct store *s = NULL;
        for (unsigned k = 0; k < 1 + round % 40; k++) {
            random = hash_u64(random + k + round);
            uint64_t block = round % 3 ? random % 2000 : 258 + random % 300;
            if (block < 2 && round % 4)
                continue;
            bytes[(block * 4096 + (random >> 20) % 4096) % size] ^=
                (uint8_t)(1u << (random >> 60) % 8);
        }
        if (store_open(f->rt, "disk", &options, &s) == 0) {
            opened++;
            f->s = s;
            for (uint32_t i = 2; i < 40; i++) {
                int r = fixture_read(f, fixture_oid(1, i), 4096, 8192);
                assert_true(r == (int)i || r == -EUCLEAN || (i == 5 && r == -ENOENT));
                if (!options.read_only)
                    (void)fixture_change(f, STORE_REMOVE, fixture_oid(1, i), ver(1, i),
                                         ver(1, 200 + i));
            }
            (void)store_close(s);
        }
        memcpy(bytes, good, size);
    }
    assert_true(opened > 10);
    free(good);
}

static void test_fuzz(void **state)
{
    (void)state;
    fixture_run(7 << 20, DISK_WRITE_THROUGH, body_fuzz);
}

/* A superblock that is older than the log is refused, not believed: it would lose answered changes.
 */
static void body_outdated(struct fixture *f)
{
    uint8_t *bytes = sim_disk_bytes(f->sim, "disk"), *old = malloc(8192);
    struct store *s = NULL;

    fixture_open(f);
    for (uint32_t i = 0; i < 1000; i++) {
        assert_int_equal(
            fixture_write(f, A, i ? ver(1, i) : STORE_PREV_NONE, ver(1, i + 1), 0, 4096, 1), 0);
        if (i == 500)
            memcpy(old, bytes, 8192);
    }
    fixture_close(f);
    memcpy(bytes, old, 8192);
    assert_int_equal(store_open(f->rt, "disk", NULL, &s), -EUCLEAN);
    free(old);
}

static void test_outdated(void **state)
{
    (void)state;
    fixture_run(16 << 20, DISK_WRITE_BACK, body_outdated);
}

/* --- versions and features --- */

struct flags {
    uint32_t version;
    uint64_t compat, ro_compat, incompat;
};

/* Gives a copy of the superblock these flags, and the kept range a content. */
static void set_flags(struct fixture *f, unsigned copy, struct flags flags)
{
    uint8_t *p = sim_disk_bytes(f->sim, "disk") + copy * 4096;

    put_le32(p + 12, flags.version);
    put_le64(p + 56, flags.compat);
    put_le64(p + 64, flags.ro_compat);
    put_le64(p + 72, flags.incompat);
    memset(p + SUPER_KEPT_OFFSET, 0x77, SUPER_KEPT_SIZE);
    put_le32(p + 8, 0);
    put_le32(p + 8, crc32c(0, p, 4096));
}

static fiber_fn void expect_open(struct fixture *f, struct flags flags, int read_only, int writable)
{
    struct store_open_options options = {.read_only = true};
    struct store_check_report report;
    int r;

    for (unsigned i = 0; i < 2; i++)
        set_flags(f, i, flags);
    r = store_open(f->rt, "disk", &options, &f->s);
    assert_int_equal(r, read_only);
    if (r == 0) {
        assert_int_equal(fixture_read(f, A, 0, 4096), 5);
        assert_int_equal(fixture_write(f, A, ver(1, 1), ver(1, 2), 0, 4096, 6), -EROFS);
        fixture_close(f);
    }
    assert_int_equal(store_check(f->rt, "disk", true, NULL, NULL, &report), read_only);
    r = store_open(f->rt, "disk", NULL, &f->s);
    assert_int_equal(r, writable);
    if (r == 0)
        fixture_close(f);
}

/* Unknown compatible features are kept, unknown read-only compatible ones allow reading, unknown
 * incompatible ones and versions nothing. */
static void body_features(struct fixture *f)
{
    uint8_t *bytes = sim_disk_bytes(f->sim, "disk"), *before = malloc(8192);
    struct super super;

    fixture_open(f);
    assert_int_equal(fixture_write(f, A, STORE_PREV_NONE, ver(1, 1), 0, 4096, 5), 0);
    fixture_close(f);
    expect_open(f, (struct flags){.version = 1, .compat = 1ull << 63 | 1}, 0, 0);
    for (unsigned i = 0; i < 2; i++) { /* after it was written by this version */
        assert_int_equal(super_decode(bytes + i * 4096, &super), 0);
        assert_true(super.compat == (1ull << 63 | 1));
        for (unsigned k = 0; k < SUPER_KEPT_SIZE; k++)
            assert_int_equal(bytes[i * 4096 + SUPER_KEPT_OFFSET + k], 0x77);
    }
    memcpy(before, bytes, 8192);
    expect_open(f, (struct flags){.version = 1, .ro_compat = 1ull << 62}, 0, -EPROTO);
    expect_open(f, (struct flags){.version = 1, .incompat = 1ull << 61}, -EPROTO, -EPROTO);
    expect_open(f, (struct flags){.version = 2}, -EPROTO, -EPROTO);
    expect_open(f, (struct flags){.version = 0}, -EPROTO, -EPROTO);
    /* the newer copy decides: behind it nobody may go back */
    memcpy(bytes, before, 8192);
    assert_true(super_decode(bytes, &super) == 0);
    set_flags(f, get_le64(bytes + 16) > get_le64(bytes + 4096 + 16) ? 0 : 1,
              (struct flags){.version = 2});
    assert_int_equal(store_open(f->rt, "disk", NULL, &f->s), -EPROTO);
    memcpy(bytes, before, 8192);
    fixture_open(f);
    fixture_close(f);
    free(before);
}

static void test_features(void **state)
{
    (void)state;
    fixture_run(16 << 20, DISK_WRITE_BACK, body_features);
}

/* --- the log --- */

struct logged {
    struct sim *sim;
    struct rt *rt;
    bool quiet; /* let the empty commit follow */
};

static void logged_fiber(void *arg)
{
    struct logged *l = arg;
    struct store_format_options options = {.log_bytes = 1 << 20};
    struct fixture f = {.sim = l->sim, .rt = l->rt};

    assert_int_equal(store_format(l->rt, "disk", &options, NULL, NULL), 0);
    fixture_open(&f);
    for (uint32_t i = 0; i < 20; i++)
        assert_int_equal(
            fixture_write(&f, fixture_oid(1, i), STORE_PREV_NONE, ver(1, i + 1), 0, 4096, 1), 0);
    if (l->quiet)
        fiber_sleep(l->rt, 3 * NS_PER_S);
    sim_node_kill(l->sim, l->rt);
}

struct reopened {
    struct rt *rt;
    int result;
    bool inexact, inexact_again, inexact_marked;
    uint64_t objects;
};

static void reopen_fiber(void *arg)
{
    struct reopened *o = arg;
    struct store *s;
    struct store_usage usage;

    o->result = store_open(o->rt, "disk", NULL, &s);
    if (o->result < 0)
        return;
    o->inexact = store_is_inexact(s);
    store_usage(s, &usage);
    o->objects = usage.object_count;
    (void)store_close(s);
    assert_int_equal(store_open(o->rt, "disk", NULL, &s), 0);
    o->inexact_again = store_is_inexact(s);
    assert_int_equal(store_mark_exact(s), 0);
    assert_false(store_is_inexact(s));
    (void)store_close(s);
    assert_int_equal(store_open(o->rt, "disk", NULL, &s), 0);
    o->inexact_marked = store_is_inexact(s);
    (void)store_close(s);
}

/* Log block 0 is the commit at open, then one per write, then perhaps the empty one. */
static struct reopened damage_log(bool quiet, uint32_t block)
{
    struct logged l = {.sim = sim_new(5), .quiet = quiet};
    struct reopened o = {0};

    l.rt = sim_node_new(l.sim, NULL);
    assert_int_equal(sim_disk_new(l.sim, "disk", 16 << 20, DISK_WRITE_BACK), 0);
    sim_do(l.sim, l.rt, logged_fiber, &l);
    sim_disk_bytes(l.sim, "disk")[(2 + block) * 4096 + 70] ^= 1;
    o.rt = l.rt;
    sim_do(l.sim, l.rt, reopen_fiber, &o);
    sim_free(l.sim);
    return o;
}

/* --- older content of a log block --- */

static void dropped_fiber(void *arg)
{
    struct logged *l = arg;
    struct store_format_options options = {.log_bytes = 1 << 20};
    struct fixture f = {.sim = l->sim, .rt = l->rt};

    assert_int_equal(store_format(l->rt, "disk", &options, NULL, NULL), 0);
    fixture_open(&f);
    assert_int_equal(fixture_write(&f, A, STORE_PREV_NONE, ver(1, 1), 0, 4096, 0xe1), 0);
    assert_int_equal(
        fixture_write(&f, fixture_oid(1, 1), STORE_PREV_NONE, ver(1, 2), 0, 4096, 0xe2), 0);
    sim_node_kill(l->sim, l->rt);
}

static void after_fiber(void *arg)
{
    struct logged *l = arg;
    struct fixture f = {.sim = l->sim, .rt = l->rt};

    fixture_open(&f);
    assert_int_equal(fixture_read(&f, fixture_oid(1, 1), 0, 4096), -ENOENT); /* dropped */
    for (uint32_t i = 2; i < 6; i++)
        assert_int_equal(
            fixture_write(&f, fixture_oid(1, i), STORE_PREV_NONE, ver(1, i + 1), 0, 4096, 1), 0);
    fiber_sleep(l->rt, 3 * NS_PER_S);
    sim_node_kill(l->sim, l->rt);
}

/* A commit was dropped as torn, another one written over it, and then that place shows the dropped
 * one again: it fits what lies before it, and nothing behind it. */
static void test_log_stale(void **state)
{
    struct logged l = {.sim = sim_new(5)};
    struct reopened o = {0};
    uint8_t *bytes, dropped[4096], data[4096];
    const uint32_t block = 2 + 2; /* the commit at open, two writes */

    (void)state;
    l.rt = sim_node_new(l.sim, NULL);
    assert_int_equal(sim_disk_new(l.sim, "disk", 16 << 20, DISK_WRITE_BACK), 0);
    sim_do(l.sim, l.rt, dropped_fiber, &l);
    bytes = sim_disk_bytes(l.sim, "disk");
    memcpy(dropped, bytes + block * 4096, 4096);
    memset(data, 0xe2, sizeof(data));
    for (uint32_t b = 258; b < 4096; b++) {
        if (memcmp(bytes + (size_t)b * 4096, data, 4096) == 0)
            memset(bytes + (size_t)b * 4096, 0, 512);
    }
    sim_do(l.sim, l.rt, after_fiber, &l);
    assert_memory_not_equal(bytes + block * 4096, dropped, 4096);
    memcpy(bytes + block * 4096, dropped, 4096);
    o.rt = l.rt;
    sim_do(l.sim, l.rt, reopen_fiber, &o);
    assert_int_equal(o.result, 0);
    assert_true(o.inexact);
    sim_free(l.sim);
}

static void test_log_damage(void **state)
{
    (void)state;
    struct reopened o = damage_log(false, 60); /* behind the end */
    assert_int_equal(o.result, 0);
    assert_int_equal(o.objects, 20);
    assert_false(o.inexact);
    o = damage_log(false, 20); /* the last commit: taken for a tear */
    assert_int_equal(o.objects, 19);
    assert_false(o.inexact);
    o = damage_log(true, 20); /* an empty commit follows: damage */
    assert_int_equal(o.objects, 19);
    assert_true(o.inexact);
    assert_true(o.inexact_again); /* closing does not bring anything back */
    assert_false(o.inexact_marked);
    o = damage_log(false, 10);
    assert_int_equal(o.objects, 9);
    assert_true(o.inexact);
}

/* Rotten data: reads and merges say so, and a repair mends it. */
static void body_rot(struct fixture *f)
{
    uint8_t *bytes = sim_disk_bytes(f->sim, "disk");
    static uint8_t data[8192] __attribute__((aligned(4096)));
    struct store_extent extent = {0, 8192};
    struct iovec iov = {data, 8192};
    struct store_change c = {.kind = STORE_INSTALL,
                             .oid = A,
                             .prev = ver(1, 1),
                             .next = ver(1, 1),
                             .extents = &extent,
                             .extent_count = 1,
                             .iov = &iov,
                             .iov_count = 1};
    uint64_t read, errors;
    unsigned hit = 0;

    memset(data, 0x5a, sizeof(data));
    fixture_open(f);
    assert_int_equal(fixture_write(f, A, STORE_PREV_NONE, ver(1, 1), 0, 8192, 0x5a), 0);
    for (uint32_t b = 258; b < 4096 && hit == 0; b++) {
        if (memcmp(bytes + (size_t)b * 4096, data, 4096) == 0) {
            bytes[(size_t)b * 4096 + 5] = 0;
            hit++;
        }
    }
    assert_int_equal(hit, 1);
    assert_int_equal(fixture_read(f, A, 0, 4096), -EUCLEAN);
    assert_int_equal(fixture_read(f, A, 4096, 4096), 0x5a);
    assert_int_equal(fixture_write(f, A, ver(1, 1), ver(1, 2), 10, 10, 1), -EUCLEAN);
    assert_int_equal(store_scrub_step(f->s, 1 << 20, &read, &errors), 0);
    assert_int_equal(errors, 1);
    assert_int_equal(store_apply(f->s, &c, NULL), 0);
    assert_int_equal(fixture_read(f, A, 0, 8192), 0x5a);
    assert_int_equal(store_scrub_step(f->s, 1 << 20, &read, &errors), 0);
    assert_int_equal(errors, 0);
    assert_true(read >= 8192 && read < 65536); /* with the structure */
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_rot(void **state)
{
    (void)state;
    fixture_run(16 << 20, DISK_WRITE_BACK, body_rot);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outdated),   cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_truncated),  cmocka_unit_test(test_rot),
        cmocka_unit_test(test_log_damage), cmocka_unit_test(test_flips),
        cmocka_unit_test(test_fuzz),       cmocka_unit_test(test_features),
        cmocka_unit_test(test_log_stale),
    };

    log_level = LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
