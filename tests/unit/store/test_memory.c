/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise: an object takes at most 64 bytes of memory while it is not in use. Its record is read
 * back when it is needed, whole, whatever else lies on its page of the index; what stat and list
 * tell needs none; a page that cannot be read back costs nothing but the objects on it, and those
 * only until it can be read again.
 */
#include "fixture.h"
#include <malloc.h>
#include "store/layout.h"

#define MANY      100000u /* objects of which the memory is measured */
#define SOME      3000u   /* objects whose records come and go */
#define WORKERS   64u
#define CACHE_MIN 1u /* as little as the store can do with */
#define DISK_SIZE (96ull << 20)

size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));

static size_t allocated(void)
{
    struct mallinfo2 i;

    if (__sanitizer_get_current_allocated_bytes != NULL)
        return __sanitizer_get_current_allocated_bytes();
    i = mallinfo2();
    return i.uordblks + i.hblkhd;
}

/* Calls fn(f, i) for all i below count on many fibers at once, so that they share commits. */
struct crowd {
    struct fixture *f;
    void (*fn)(struct fixture *f, unsigned i);
    unsigned next, count;
    struct wgroup group;
};

static void crowd_fiber(void *arg)
{
    struct crowd *c = arg;

    while (c->next < c->count)
        c->fn(c->f, c->next++);
    wgroup_finish(&c->group);
}

static fiber_fn void crowd(struct fixture *f, unsigned count,
                           void (*fn)(struct fixture *, unsigned))
{
    struct crowd c = {.f = f, .fn = fn, .count = count};

    wgroup_init(&c.group);
    wgroup_add(&c.group, WORKERS);
    for (unsigned i = 0; i < WORKERS; i++)
        assert_int_equal(fiber_spawn(f->rt, "crowd", crowd_fiber, &c), 0);
    wgroup_wait(&c.group);
}

static struct oid many_oid(unsigned i)
{
    return (struct oid){.vid = 1 + i % 10, .index = i / 10, .group = (uint16_t)(i % 256)};
}

static void make_one(struct fixture *f, unsigned i)
{
    assert_int_equal(fixture_change(f, STORE_PUNCH, many_oid(i), STORE_PREV_NONE, ver(1, 1 + i)),
                     0);
}

static void remove_one(struct fixture *f, unsigned i)
{
    if (i % 3 == 0)
        assert_int_equal(fixture_change(f, STORE_REMOVE, many_oid(i), ver(1, 1 + i), ver(2, 1 + i)),
                         0);
}

static void body_bytes(struct fixture *f)
{
    struct store_stats stats;
    size_t empty, closed, full;

    closed = allocated();
    fixture_open(f);
    empty = allocated() - closed;
    crowd(f, MANY, make_one);
    crowd(f, MANY, remove_one); /* tombstones count, too */
    fixture_close(f);
    closed = allocated();
    fixture_open(f);
    full = allocated() - closed;
    store_stats(f->s, &stats);
    assert_int_equal(stats.record_loads, 0);
    print_message("%zu bytes for %u objects and tombstones: %.1f each\n", full - empty, MANY,
                  (double)(full - empty) / MANY);
    assert_in_range(full - empty, 1, 64 * MANY);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_bytes_per_object(void **state)
{
    (void)state;
    fixture_run(DISK_SIZE, DISK_WRITE_BACK, body_bytes);
}

/* --- records that come and go --- */

/* Object i has three states in turn: written once, written twice with meta, removed. */
static unsigned stage[SOME];

static struct oid some_oid(unsigned i)
{
    return fixture_oid(1 + i % 5, i);
}

static struct version stage_version(unsigned i)
{
    return ver(1, 1 + stage[i]);
}

static fiber_fn void advance(struct fixture *f, unsigned i)
{
    struct version prev = stage_version(i);
    struct oid oid = some_oid(i);
    uint8_t meta[100];

    switch (stage[i]++ % 3) {
    case 0:
        assert_int_equal(fixture_write(f, oid, STORE_PREV_NONE, stage_version(i), 4096 * (i % 3),
                                       4096, (uint8_t)i),
                         0);
        break;
    case 1:
        assert_int_equal(fixture_write(f, oid, prev, stage_version(i), 100, 200, (uint8_t)(i + 1)),
                         0);
        memset(meta, (int)i, sizeof(meta));
        assert_int_equal(
            store_meta_put(f->s, &oid, stage[i], meta, i % 2 ? sizeof(meta) : sizeof(meta) / 4), 0);
        break;
    default:
        assert_int_equal(fixture_change(f, STORE_REMOVE, oid, prev, stage_version(i)), 0);
        break;
    }
}

static fiber_fn void verify_content(struct fixture *f, unsigned i)
{
    struct oid oid = some_oid(i);
    bool twice = stage[i] % 3 == 2;
    uint8_t meta[STORE_META_SIZE_MAX];
    uint64_t meta_version;
    size_t length;

    if (i % 3 != 0 || !twice)
        assert_int_equal(fixture_read(f, oid, 4096 * (i % 3), 4096), (uint8_t)i);
    if (!twice)
        return;
    assert_int_equal(fixture_read(f, oid, 100, 200), (uint8_t)(i + 1));
    assert_int_equal(store_meta_get(f->s, &oid, meta, &length, &meta_version), 0);
    assert_int_equal(length, i % 2 ? 100 : 25);
    assert_int_equal(meta[length - 1], (uint8_t)i);
}

static void verify_one(struct fixture *f, unsigned i)
{
    struct oid oid = some_oid(i);
    struct store_stat stat;

    store_stat(f->s, &oid, &stat);
    if (stage[i] == 0) {
        assert_int_equal(stat.version.value, 0);
    } else if (stage[i] % 3 == 0) {
        assert_int_equal(stat.version.value, 0);
        assert_int_equal(stat.tombstone.value, stage_version(i).value);
    } else {
        assert_int_equal(stat.version.value, stage_version(i).value);
        assert_int_equal(stat.end, 4096 * (i % 3 + 1));
        assert_int_equal(stat.block_count, stage[i] % 3 == 2 && i % 3 != 0 ? 2 : 1);
        verify_content(f, i);
    }
}

/* A few objects that lie far apart, so that the next one's record is rarely there. */
static void look_at_one(struct fixture *f, unsigned i)
{
    verify_one(f, (unsigned)(hash_u64(i) % SOME));
}

static void advance_one(struct fixture *f, unsigned i)
{
    if (hash_u64(stage[i] * 100003 + i) % 3 != 0)
        advance(f, i);
}

static void body_come_and_go(struct fixture *f)
{
    struct store_stats stats;

    memset(stage, 0, sizeof(stage));
    f->cache_bytes = CACHE_MIN;
    fixture_open(f);
    for (unsigned round = 0; round < 4; round++) {
        crowd(f, SOME, advance_one);
        crowd(f, SOME, look_at_one);
        crowd(f, SOME, verify_one);
        store_stats(f->s, &stats);
        assert_true(stats.record_loads > SOME / 4);
        assert_true(stats.cached_bytes < 4u << 20); /* what is in use or dirty may be above */
        if (round % 2 == 1) {
            fixture_close(f);
            assert_int_equal(fixture_check(f), 0);
            fixture_open(f);
        }
    }
    fixture_close(f);
}

static void test_come_and_go(void **state)
{
    (void)state;
    fixture_run(DISK_SIZE, DISK_WRITE_BACK, body_come_and_go);
}

/* --- what entries alone tell --- */

static void body_no_records(struct fixture *f)
{
    struct store_filter all = {0}, group = {.by_group = true, .group = 3};
    struct store_entry *entries;
    struct store_stats stats;
    size_t count, in_group;
    uint64_t digest;

    memset(stage, 0, sizeof(stage));
    fixture_open(f);
    crowd(f, SOME, advance_one);
    crowd(f, SOME, advance_one);
    digest = store_digest(f->s, 3);
    assert_int_equal(store_list(f->s, &all, &entries, &count), 0);
    free(entries);
    fixture_close(f);
    fixture_open(f);
    for (unsigned i = 0; i < SOME; i++) {
        struct oid oid = some_oid(i);
        struct store_stat stat;
        store_stat(f->s, &oid, &stat);
        assert_int_equal(stat.version.value, stage[i] > 0 ? stage_version(i).value : 0);
        assert_int_equal(stat.end, stage[i] > 0 ? 4096 * (i % 3 + 1) : 0);
        assert_int_equal(stat.meta_length, stage[i] != 2 ? 0 : i % 2 ? 100 : 25);
    }
    assert_int_equal(store_list(f->s, &all, &entries, &in_group), 0);
    assert_int_equal(in_group, count);
    free(entries);
    assert_int_equal(store_list(f->s, &group, &entries, &in_group), 0);
    assert_in_range(in_group, 1, count / 5);
    for (size_t i = 0; i < in_group; i++)
        assert_int_equal(entries[i].oid.group, 3);
    free(entries);
    assert_true(store_digest(f->s, 3) == digest);
    store_stats(f->s, &stats);
    assert_int_equal(stats.record_loads, 0);
    assert_int_equal(stats.cached_bytes, 0);
    crowd(f, SOME, verify_one);
    store_stats(f->s, &stats);
    assert_true(stats.record_loads > 0);
    fixture_close(f);
}

static void test_no_records(void **state)
{
    (void)state;
    fixture_run(DISK_SIZE, DISK_WRITE_BACK, body_no_records);
}

/* --- settling tombstones whose pages are not in memory --- */

static void remove_some(struct fixture *f, unsigned i)
{
    if (stage[i] % 3 == 1 && i % 2 == 0) {
        stage[i] = 3;
        assert_int_equal(fixture_change(f, STORE_REMOVE, some_oid(i), ver(1, 2), stage_version(i)),
                         0);
    }
}

static void body_settle(struct fixture *f)
{
    struct store_usage usage;

    memset(stage, 0, sizeof(stage));
    f->cache_bytes = CACHE_MIN;
    fixture_open(f);
    crowd(f, SOME, advance_one);
    crowd(f, SOME, remove_some);
    fixture_close(f);
    fixture_open(f);
    store_usage(f->s, &usage);
    assert_true(usage.tombstone_count > SOME / 5);
    for (uint64_t vid = 1; vid <= 5; vid++)
        store_settle(f->s, (struct vid){vid}, ver(1, 4));
    store_usage(f->s, &usage);
    assert_int_equal(usage.tombstone_count, 0);
    for (unsigned i = 0; i < SOME; i++)
        stage[i] = stage[i] == 3 ? 0 : stage[i];
    crowd(f, SOME / 2, advance_one); /* in slots that have become free, too */
    crowd(f, SOME, verify_one);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
    fixture_open(f);
    crowd(f, SOME, verify_one);
    fixture_close(f);
}

static void test_settle(void **state)
{
    (void)state;
    fixture_run(DISK_SIZE, DISK_WRITE_BACK, body_settle);
}

/* --- a page that cannot be read back --- */

/* Where the index page with an object's record is. */
static uint8_t *page_of(struct fixture *f, struct oid oid)
{
    uint8_t *bytes = sim_disk_bytes(f->sim, "disk"), head[OID_BYTES + 8], *found = NULL;

    oid_put(head, &oid);
    put_le64(head + OID_BYTES, ver(1, 2).value);
    for (size_t at = (2 + 256) * STORE_BLOCK; at < DISK_SIZE; at += SLOT_SIZE) {
        if (memcmp(bytes + at, head, sizeof(head)) == 0) {
            assert_null(found); /* written by one checkpoint only */
            found = bytes + ALIGN_DOWN(at, STORE_BLOCK);
        }
    }
    assert_non_null(found);
    return found;
}

static void write_first(struct fixture *f, unsigned i)
{
    stage[i] = 1;
    assert_int_equal(
        fixture_write(f, some_oid(i), STORE_PREV_NONE, ver(1, 2), 4096 * (i % 3), 4096, (uint8_t)i),
        0);
}

static void body_bad_page(struct fixture *f)
{
    uint8_t *page, good[STORE_BLOCK];
    unsigned bad = 0, created = 0;

    memset(stage, 0, sizeof(stage));
    fixture_open(f);
    crowd(f, 200, write_first);
    fixture_close(f);
    page = page_of(f, some_oid(40));
    memcpy(good, page, STORE_BLOCK);
    fixture_open(f);
    page[17] ^= 1;
    for (unsigned i = 0; i < 200; i++) {
        int r = fixture_read(f, some_oid(i), 4096 * (i % 3), 4096);
        bad += r == -EUCLEAN;
        assert_true(r == -EUCLEAN || r == (uint8_t)i);
        if (r == -EUCLEAN) {
            assert_int_equal(fixture_write(f, some_oid(i), ver(1, 2), ver(1, 3), 0, 100, 1),
                             -EUCLEAN);
            assert_int_equal(fixture_change(f, STORE_REMOVE, some_oid(i), ver(1, 2), ver(1, 3)),
                             -EUCLEAN);
        } else {
            stage[i] = 2;
            assert_int_equal(fixture_write(f, some_oid(i), ver(1, 2), ver(1, 3), 0, 4096, 1), 0);
        }
    }
    assert_int_equal(bad, SLOTS_PER_PAGE);
    for (unsigned i = 200; i < 300; i++) { /* the bad page may have free slots */
        if (fixture_write(f, some_oid(i), STORE_PREV_NONE, ver(1, 2), 0, 4096, 1) == 0)
            created++;
    }
    assert_in_range(created, 99, 100);
    fixture_close(f);
    memcpy(page, good, STORE_BLOCK);
    fixture_open(f);
    for (unsigned i = 0; i < 200; i++) {
        assert_int_equal(fixture_read(f, some_oid(i), 4096 * (i % 3), 4096),
                         stage[i] == 2 && i % 3 == 0 ? 1 : (uint8_t)i);
    }
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_bad_page(void **state)
{
    (void)state;
    fixture_run(DISK_SIZE, DISK_WRITE_BACK, body_bad_page);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_per_object), cmocka_unit_test(test_come_and_go),
        cmocka_unit_test(test_no_records),       cmocka_unit_test(test_settle),
        cmocka_unit_test(test_bad_page),
    };

    log_level = LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
