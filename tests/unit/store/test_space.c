/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise: a file that is not written yet is zeroed ahead of the allocator, so that changes do not
 * meet unwritten blocks; what has been done is remembered; and a sparse file on a full file system
 * refuses data like a full store, without any other harm. Freed space of a device is discarded,
 * never while it could be in use; that of a file is punched when asked for.
 */
#include "base/bytes.h"
#include "base/crc32c.h"
#include "fixture.h"

#define MIB (1u << 20)

struct setup {
    uint64_t size, zero_bytes, ahead_bytes;
    uint64_t room; /* of the sparse file's file system; 0: not sparse */
    void (*body)(struct fixture *f);
};

struct running {
    const struct setup *setup;
    struct fixture f;
};

static void setup_fiber(void *arg)
{
    struct running *x = arg;
    struct store_format_options options = {
        .log_bytes = MIB, .sparse = x->setup->room != 0, .zero_bytes = x->setup->zero_bytes};

    assert_int_equal(store_format(x->f.rt, "disk", &options, NULL, NULL), 0);
    x->setup->body(&x->f);
    x->f.ran = true;
}

static void run_setup(const struct setup *setup)
{
    struct running x = {.setup = setup, .f = {.zero_ahead_bytes = setup->ahead_bytes}};

    x.f.sim = sim_new(7);
    x.f.rt = sim_node_new(x.f.sim, NULL);
    assert_int_equal(sim_disk_new(x.f.sim, "disk", setup->size, DISK_WRITE_BACK), 0);
    /* Counts hole writes in any case. */
    sim_disk_sparse(x.f.sim, "disk", setup->room != 0 ? setup->room : setup->size);
    sim_do(x.f.sim, x.f.rt, setup_fiber, &x);
    assert_true(x.f.ran);
    sim_free(x.f.sim);
}

static uint64_t zeroed(struct fixture *f)
{
    struct store_stats stats;

    store_stats(f->s, &stats);
    return stats.zeroed_blocks;
}

static uint64_t free_bytes(struct fixture *f)
{
    struct store_usage usage;

    store_usage(f->s, &usage);
    return usage.free_bytes;
}

/* --- zeroing ahead --- */

/* Small writes with pauses, as many as three quarters of the store. */
static fiber_fn void ahead_body(struct fixture *f)
{
    uint64_t before, index = 0;

    fixture_open(f);
    before = sim_disk_hole_writes(f->sim, "disk");
    for (uint32_t i = 0; i < 6; i++) {
        for (uint32_t k = 0; k < 512; k++) {
            assert_int_equal(fixture_write(f, fixture_oid(1, i), k == 0 ? ver(0, 0) : ver(1, k),
                                           ver(1, k + 1), k * 4096, 4096, (uint8_t)(k + i)),
                             0);
            if (++index % 16 == 0)
                assert_int_equal(fiber_sleep(f->rt, 20 * NS_PER_MS), 0);
        }
    }
    assert_true(zeroed(f) > 0);
    assert_int_equal(sim_disk_hole_writes(f->sim, "disk"), before);
    for (uint32_t i = 0; i < 6; i++) {
        for (uint32_t k = 0; k < 512; k++)
            assert_int_equal(fixture_read(f, fixture_oid(1, i), k * 4096, 4096), (uint8_t)(k + i));
    }
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_changes_meet_written_blocks(void **state)
{
    (void)state;
    run_setup(&(struct setup){
        .size = 17 * MIB, .zero_bytes = MIB, .ahead_bytes = 2 * MIB, .body = ahead_body});
}

/* With enough ahead it rests, and starts again where it stopped. */
static fiber_fn void remembers_body(struct fixture *f)
{
    uint64_t first, again;

    fixture_open(f);
    assert_int_equal(fiber_sleep(f->rt, NS_PER_S), 0);
    assert_int_equal(zeroed(f), 0); /* 4 MiB are written, 2 are wanted */
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(fixture_write(f, fixture_oid(1, i), ver(0, 0), ver(1, 1), 0, 2 * MIB, 1),
                         0);
    assert_int_equal(fiber_sleep(f->rt, NS_PER_S), 0);
    first = zeroed(f);
    assert_true(first >= 2 * MIB / 4096 && first < 4 * MIB / 4096);
    fixture_close(f);

    fixture_open(f);
    assert_int_equal(fiber_sleep(f->rt, NS_PER_S), 0);
    again = zeroed(f);
    assert_int_equal(again, 0);
    for (uint32_t i = 2; i < 7; i++)
        assert_int_equal(fixture_write(f, fixture_oid(1, i), ver(0, 0), ver(1, 1), 0, 2 * MIB, 1),
                         0);
    assert_int_equal(fiber_sleep(f->rt, NS_PER_S), 0);
    /* All of it, but not twice. What the checkpoint or the writes themselves took is missing. */
    assert_true(first + zeroed(f) > 0 && first + zeroed(f) <= 12 * MIB / 4096);
    fixture_close(f);
    fixture_open(f);
    assert_int_equal(fiber_sleep(f->rt, NS_PER_S), 0);
    assert_int_equal(zeroed(f), 0);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_remembers(void **state)
{
    (void)state;
    run_setup(&(struct setup){
        .size = 17 * MIB, .zero_bytes = 4 * MIB, .ahead_bytes = 2 * MIB, .body = remembers_body});
}

/* A failed zeroing write harms nothing, and is tried again. */
static fiber_fn void zero_error_body(struct fixture *f)
{
    fixture_open(f);
    assert_int_equal(fiber_sleep(f->rt, 3 * NS_PER_S), 0); /* the empty commit is through */
    assert_int_equal(fixture_write(f, fixture_oid(1, 0), ver(0, 0), ver(1, 1), 0, MIB + MIB / 2, 5),
                     0);
    sim_disk_fault(f->sim, "disk", DISK_ZERO, SIM_FAULT_EIO_ONCE, 1);
    assert_int_equal(fiber_sleep(f->rt, 100 * NS_PER_MS), 0);
    assert_int_equal(store_failed(f->s), 0);
    assert_int_equal(zeroed(f), 0);
    assert_int_equal(fiber_sleep(f->rt, 6 * NS_PER_S), 0);
    assert_int_equal(fixture_write(f, fixture_oid(1, 0), ver(1, 1), ver(1, 2), 0, 4096, 6), 0);
    assert_int_equal(fiber_sleep(f->rt, NS_PER_S), 0);
    assert_true(zeroed(f) > 0);
    assert_int_equal(fixture_read(f, fixture_oid(1, 0), 4096, MIB - 4096), 5);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_zero_error(void **state)
{
    (void)state;
    run_setup(&(struct setup){
        .size = 17 * MIB, .zero_bytes = 2 * MIB, .ahead_bytes = 2 * MIB, .body = zero_error_body});
}

/* --- sparse files --- */

static fiber_fn unsigned fill(struct fixture *f, uint64_t vid, unsigned count_max)
{
    unsigned n = 0;
    int r = 0;

    while (n < count_max && r == 0) {
        r = fixture_write(f, fixture_oid(vid, n), ver(0, 0), ver(1, 1), 0, MIB, (uint8_t)(n + 1));
        n += r == 0;
    }
    assert_true(r == 0 || r == -ENOSPC);
    return n;
}

static fiber_fn void full_file_system_body(struct fixture *f)
{
    uint64_t before = sim_disk_hole_writes(f->sim, "disk"); /* by the format */
    unsigned n, m;

    fixture_open(f);
    n = fill(f, 1, 100);
    assert_true(n > 5 && n < 15);
    assert_int_equal(store_failed(f->s), 0);
    assert_int_equal(sim_disk_hole_writes(f->sim, "disk"), before);
    assert_true(free_bytes(f) < MIB + MIB / 2); /* does not promise what cannot be had */
    /* Removal makes room in what the store has. */
    assert_int_equal(fixture_change(f, STORE_REMOVE, fixture_oid(1, 0), ver(1, 1), ver(1, 2)), 0);
    assert_int_equal(fixture_write(f, fixture_oid(1, 99), ver(0, 0), ver(1, 1), 0, MIB / 2, 9), 0);
    /* So does the administrator, outside. */
    sim_disk_sparse(f->sim, "disk", 64 * MIB);
    assert_int_equal(fiber_sleep(f->rt, 6 * NS_PER_S), 0);
    (void)fill(f, 2, 1); /* may still be refused; starts the next try */
    assert_int_equal(fiber_sleep(f->rt, NS_PER_S), 0);
    m = fill(f, 3, 100);
    assert_true(m > 8);
    assert_int_equal(sim_disk_hole_writes(f->sim, "disk"), before);
    for (unsigned i = 1; i < n; i++)
        assert_int_equal(fixture_read(f, fixture_oid(1, i), 0, MIB), (int)(i + 1));
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
    fixture_open(f);
    fixture_close(f);
}

static void test_full_file_system(void **state)
{
    (void)state;
    run_setup(&(struct setup){.size = 33 * MIB,
                              .zero_bytes = 2 * MIB,
                              .ahead_bytes = 2 * MIB,
                              .room = 12 * MIB,
                              .body = full_file_system_body});
}

/* --- giving space back --- */

static uint64_t discarded(struct fixture *f)
{
    struct store_stats stats;

    store_stats(f->s, &stats);
    return stats.discarded_blocks;
}

static fiber_fn void discard_body(struct fixture *f)
{
    sim_disk_device(f->sim, "disk", 65536);
    fixture_open(f);
    for (uint32_t i = 0; i < 8; i++)
        assert_int_equal(fixture_write(f, fixture_oid(1, i), ver(0, 0), ver(1, 1), 0, MIB, 5), 0);
    assert_int_equal(fiber_sleep(f->rt, 10 * NS_PER_S), 0);
    assert_int_equal(discarded(f), 0); /* nothing was freed */
    for (uint32_t i = 0; i < 8; i += 2)
        assert_int_equal(fixture_change(f, STORE_REMOVE, fixture_oid(1, i), ver(1, 1), ver(1, 2)),
                         0);
    assert_int_equal(fiber_sleep(f->rt, 20 * NS_PER_S), 0);
    assert_true(discarded(f) >= 3 * MIB / 4096);
    for (uint32_t i = 1; i < 8; i += 2)
        assert_int_equal(fixture_read(f, fixture_oid(1, i), 0, MIB), 5);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_device_gets_space_back(void **state)
{
    (void)state;
    run_setup(&(struct setup){.size = 17 * MIB, .body = discard_body});
}

/* A block is not reusable while the device may still be discarding it (S3): with hardly any room
 * left, writes take at once what removals free. */
static fiber_fn void discard_reuse_body(struct fixture *f)
{
    uint32_t n = 0;

    sim_disk_device(f->sim, "disk", 4096);
    f->discard_batch_ms = 1;
    fixture_open(f);
    while (fixture_write(f, fixture_oid(1, n), ver(0, 0), ver(1, 1), 0, 131072, (uint8_t)n) == 0)
        n++;
    assert_true(n > 20);
    for (uint32_t round = 1; round < 30; round++) {
        for (uint32_t i = 0; i < n; i += 2)
            assert_int_equal(
                fixture_change(f, STORE_REMOVE, fixture_oid(1, i), ver(round, 1), ver(round, 2)),
                0);
        for (uint32_t i = 0; i < n; i += 2)
            assert_int_equal(fixture_write(f, fixture_oid(1, i), ver(0, 0), ver(round + 1, 1), 0,
                                           131072, (uint8_t)(i + round)),
                             0);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(fixture_read(f, fixture_oid(1, i), 0, 131072),
                             (uint8_t)(i % 2 ? i : i + round));
    }
    assert_true(discarded(f) > 0);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_no_reuse_while_discarding(void **state)
{
    (void)state;
    run_setup(&(struct setup){.size = 6 * MIB, .body = discard_reuse_body});
}

static fiber_fn void trim_body(struct fixture *f)
{
    uint64_t bytes = 0, before = sim_disk_hole_writes(f->sim, "disk");

    fixture_open(f);
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(fixture_write(f, fixture_oid(1, i), ver(0, 0), ver(1, 1), 0, MIB, 5), 0);
    for (uint32_t i = 1; i < 10; i++)
        assert_int_equal(fixture_change(f, STORE_REMOVE, fixture_oid(1, i), ver(1, 1), ver(1, 2)),
                         0);
    assert_int_equal(fiber_sleep(f->rt, 10 * NS_PER_S), 0);
    assert_int_equal(discarded(f), 0); /* a file keeps what it has */
    assert_int_equal(store_trim(f->rt, "disk", 2 * MIB, &bytes), -EBUSY);
    fixture_close(f);
    assert_int_equal(store_trim(f->rt, "disk", 2 * MIB, &bytes), 0);
    assert_true(bytes > 8 * MIB && bytes < 14 * MIB);
    assert_int_equal(fixture_check(f), 0);
    fixture_open(f); /* zeroes again what it needs */
    assert_int_equal(fixture_read(f, fixture_oid(1, 0), 0, MIB), 5);
    for (uint32_t i = 1; i < 10; i++)
        assert_int_equal(fixture_write(f, fixture_oid(2, i), ver(0, 0), ver(1, 1), 0, MIB, 6), 0);
    assert_true(zeroed(f) > 0);
    assert_int_equal(sim_disk_hole_writes(f->sim, "disk"), before);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_trim(void **state)
{
    (void)state;
    run_setup(&(struct setup){.size = 17 * MIB, .ahead_bytes = 2 * MIB, .body = trim_body});
}

/* --- older stores --- */

/* Takes the feature out of both copies of the superblock. */
static void make_old(struct fixture *f)
{
    for (unsigned i = 0; i < 2; i++) {
        uint8_t *sb = sim_disk_bytes(f->sim, "disk") + i * 4096;
        assert_int_equal(sb[56], 1);
        sb[56] = 0;
        memset(sb + 256, 0, 4);
        put_le32(sb + 8, 0);
        put_le32(sb + 8, crc32c(0, sb, 4096));
    }
}

static fiber_fn void old_body(struct fixture *f)
{
    make_old(f);
    fixture_open(f);
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(fixture_write(f, fixture_oid(1, i), ver(0, 0), ver(1, 1), 0, MIB, 1), 0);
    assert_int_equal(fiber_sleep(f->rt, NS_PER_S), 0);
    assert_int_equal(zeroed(f), 0);
    fixture_close(f);
    assert_int_equal(sim_disk_bytes(f->sim, "disk")[56], 0);
    assert_int_equal(fixture_check(f), 0);
}

static void test_old_store_counts_as_written(void **state)
{
    (void)state;
    run_setup(&(struct setup){
        .size = 17 * MIB, .zero_bytes = MIB, .ahead_bytes = 2 * MIB, .body = old_body});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_changes_meet_written_blocks),
        cmocka_unit_test(test_remembers),
        cmocka_unit_test(test_zero_error),
        cmocka_unit_test(test_full_file_system),
        cmocka_unit_test(test_device_gets_space_back),
        cmocka_unit_test(test_no_reuse_while_discarding),
        cmocka_unit_test(test_trim),
        cmocka_unit_test(test_old_store_counts_as_written),
    };

    if (getenv("STORE_LOG") == NULL)
        log_level = LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
