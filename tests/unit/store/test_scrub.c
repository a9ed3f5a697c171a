/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise: a scrub finds rot in every block that the store owns, as it lies on disk, cached or not;
 * structure that is good in memory is written anew. In the background it keeps to its rate, gives
 * way to guests, goes on where it was, and rests between passes.
 */
#include "fixture.h"

#define MIB        (1u << 20)
#define DATA_FIRST (2u + 256u)

static struct store_scrub_info info_of(struct fixture *f)
{
    struct store_scrub_info info;

    store_scrub_info(f->s, &info);
    return info;
}

/* One whole pass; what it found. */
static fiber_fn struct store_scrub_info whole_pass(struct fixture *f)
{
    struct store_scrub_info before = info_of(f), after;
    uint64_t bytes, errors;

    do {
        assert_int_equal(store_scrub_step(f->s, MIB, &bytes, &errors), 0);
        after = info_of(f);
    } while (after.passes == before.passes);
    after.errors -= before.errors;
    after.mended -= before.mended;
    after.bytes -= before.bytes;
    after.objects -= before.objects;
    return after;
}

/* Objects of one leaf and of many, metas in blocks, clones. */
static fiber_fn void make_objects(struct fixture *f)
{
    static const uint8_t meta[1000] = {1};
    struct oid wide = fixture_oid(1, 0), small = fixture_oid(1, 1);

    assert_int_equal(fixture_write(f, wide, ver(0, 0), ver(1, 1), 0, 8192, 1), 0);
    for (uint32_t i = 1; i < 6; i++)
        assert_int_equal(fixture_write(f, wide, ver(1, i), ver(1, i + 1), i * 2 * MIB, 4096, 2), 0);
    assert_int_equal(fixture_write(f, small, ver(0, 0), ver(1, 1), 0, 16384, 3), 0);
    assert_int_equal(store_meta_put(f->s, &small, 1, meta, sizeof(meta)), 0);
    assert_int_equal(fixture_clone(f, small, fixture_oid(1, 2), ver(1, 1)), 0);
}

static fiber_fn void warm(struct fixture *f)
{
    uint8_t meta[STORE_META_SIZE_MAX];
    struct oid small = fixture_oid(1, 1);
    uint64_t version;
    size_t length;

    for (uint32_t i = 0; i < 6; i++)
        assert_true(fixture_read(f, fixture_oid(1, 0), i * 2 * MIB, 4096) > 0);
    assert_int_equal(fixture_read(f, small, 0, 16384), 3);
    assert_int_equal(fixture_read(f, fixture_oid(1, 2), 0, 16384), 3);
    assert_int_equal(store_meta_get(f->s, &small, meta, &length, &version), 0);
}

/* Every block in turn, with all of the structure in memory. */
static fiber_fn void each_block_body(struct fixture *f)
{
    uint8_t *bytes = sim_disk_bytes(f->sim, "disk");
    unsigned structure = 0, data = 0, unused = 0;
    bool used[4096];

    fixture_open(f);
    make_objects(f);
    fixture_close(f);
    fixture_open(f);
    warm(f);
    assert_int_equal(whole_pass(f).errors, 0);
    for (uint32_t b = 0; b < 4096; b++) { /* what is mended moves */
        const uint8_t *p = bytes + (size_t)b * 4096;
        used[b] = (b < 2 || b >= DATA_FIRST) && (p[0] != 0 || memcmp(p, p + 1, 4095) != 0);
    }
    for (uint32_t b = 0; b < 4096; b++) {
        uint8_t *p = bytes + (size_t)b * 4096 + 77;
        struct store_scrub_info found;
        if (!used[b])
            continue;
        *p ^= 0x10;
        found = whole_pass(f);
        assert_int_equal(fiber_sleep(f->rt, NS_PER_S), 0); /* for the checkpoint */
        if (found.mended > 0) {
            structure++;
            assert_true(found.errors >= found.mended);
        } else {
            data += found.errors > 0;
            unused += found.errors == 0;
            *p ^= 0x10;
        }
        assert_int_equal(whole_pass(f).errors, 0);
    }
    assert_true(structure > 8 && data >= 11 && unused < 10);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_finds_and_mends(void **state)
{
    (void)state;
    fixture_run(16 * MIB, DISK_WRITE_BACK, each_block_body);
}

/* What is not in memory cannot be mended; it is found, and named. */
static fiber_fn void uncached_body(struct fixture *f)
{
    uint8_t *bytes = sim_disk_bytes(f->sim, "disk");
    unsigned lost = 0, mended = 0;

    fixture_open(f);
    make_objects(f);
    fixture_close(f);
    for (uint32_t b = DATA_FIRST; b < 4096; b++) {
        uint8_t *p = bytes + (size_t)b * 4096 + 77;
        struct store_scrub_info found;
        if (p[-77] == 0 && memcmp(p - 77, p - 76, 4095) == 0)
            continue;
        fixture_open(f); /* nothing is cached */
        *p ^= 0x10;
        found = whole_pass(f);
        lost += found.errors > found.mended;
        mended += found.mended > 0;
        if (found.errors > found.mended)
            assert_string_not_equal(found.last, "");
        *p ^= 0x10;
        fixture_close(f);
    }
    assert_true(lost > 11 && mended > 0);
}

static void test_finds_what_is_not_cached(void **state)
{
    (void)state;
    fixture_run(16 * MIB, DISK_WRITE_BACK, uncached_body);
}

/* --- in the background --- */

static fiber_fn void background_body(struct fixture *f)
{
    struct store_scrub_info info;

    f->scrub_rate = MIB;
    fixture_open(f); /* nothing to read but the superblock */
    assert_int_equal(fiber_sleep(f->rt, 3600 * NS_PER_S), 0);
    info = info_of(f);
    assert_int_equal(info.objects, 0);
    assert_int_equal(info.passes, 1);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(fixture_write(f, fixture_oid(1, i), ver(0, 0), ver(1, 1), 0, MIB, 1), 0);
    assert_int_equal(fiber_sleep(f->rt, 2 * NS_PER_S), 0); /* woken; MIB a second */
    info = info_of(f);
    assert_true(info.bytes > MIB && info.bytes < 3 * MIB);
    assert_int_equal(info.passes, 1);
    fixture_close(f);

    fixture_open(f); /* goes on */
    assert_int_equal(fiber_sleep(f->rt, 1500 * NS_PER_MS), 0);
    assert_int_equal(info_of(f).passes, 0);
    assert_int_equal(fiber_sleep(f->rt, 3 * NS_PER_S), 0);
    info = info_of(f);
    assert_int_equal(info.passes, 1);
    assert_true(info.objects < 4 && info.objects >= 2);
    assert_int_equal(fiber_sleep(f->rt, 3600 * NS_PER_S), 0); /* rests for a day */
    assert_int_equal(info_of(f).bytes, info.bytes);
    assert_int_equal(fiber_sleep(f->rt, 24 * 3600 * NS_PER_S), 0);
    assert_int_equal(info_of(f).passes, 2);
    assert_int_equal(info_of(f).objects, info.objects + 4);
    assert_int_equal(info_of(f).errors, 0);
    fixture_close(f);
}

static fiber_fn void busy_body(struct fixture *f)
{
    uint64_t end, version = 1;
    struct store_scrub_info info;

    f->scrub_rate = MIB;
    fixture_open(f);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(fixture_write(f, fixture_oid(1, i), ver(0, 0), ver(1, 1), 0, MIB, 1), 0);
    end = clock_now(f->rt) + 16 * NS_PER_S;
    while (clock_now(f->rt) < end) {
        assert_int_equal(
            fixture_write(f, fixture_oid(1, 0), ver(1, version), ver(1, version + 1), 0, 4096, 1),
            0);
        version++;
        assert_int_equal(fiber_sleep(f->rt, 20 * NS_PER_MS), 0);
    }
    info = info_of(f); /* a sixteenth of 16 MiB */
    assert_true(info.bytes > MIB / 4 && info.bytes <= 3 * MIB / 2);
    fixture_close(f);
}

static void test_background(void **state)
{
    (void)state;
    fixture_run(16 * MIB, DISK_WRITE_BACK, background_body);
    fixture_run(16 * MIB, DISK_WRITE_BACK, busy_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finds_and_mends),
        cmocka_unit_test(test_finds_what_is_not_cached),
        cmocka_unit_test(test_background),
    };

    if (getenv("STORE_LOG") == NULL)
        log_level = LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
