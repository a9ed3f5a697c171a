/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise: share counts need not be in memory. With a cache far smaller than they are, clones are
 * made, changed and removed without losing count (S2); a page of them that cannot be read costs
 * space, never data, and is named.
 */
#include "fixture.h"
#include "store/store_internal.h"

#define SIZE    (256u << 20) /* 30 pages of counts */
#define OBJECTS 100u
#define BYTES   (1u << 20)

static struct oid origin(unsigned i)
{
    return fixture_oid(1, i);
}

static struct oid copy(unsigned i)
{
    return fixture_oid(2, i);
}

static uint8_t fill_of(unsigned i)
{
    return (uint8_t)(1 + i % 200);
}

static void make_clones(struct fixture *f)
{
    for (unsigned i = 0; i < OBJECTS; i++) {
        assert_int_equal(
            fixture_write(f, origin(i), STORE_PREV_NONE, ver(1, 1), 0, BYTES, fill_of(i)), 0);
        assert_int_equal(fixture_clone(f, origin(i), copy(i), ver(1, 1)), 0);
    }
}

static uint64_t used_bytes(struct fixture *f)
{
    struct store_usage usage;

    store_usage(f->s, &usage);
    return usage.data_bytes;
}

static uint64_t shared_bytes(struct fixture *f)
{
    struct store_usage usage;

    store_usage(f->s, &usage);
    return usage.shared_bytes;
}

/* Jumps from object to object, so that each step needs another page. */
static void body_paging(struct fixture *f)
{
    const struct share *sh;
    uint32_t loaded_max = 0;

    f->cache_bytes = 64 << 10; /* 16 pages */
    fixture_open(f);
    make_clones(f);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
    fixture_open(f);
    sh = &f->s->share;
    assert_int_equal(sh->loaded, 0);
    assert_true(sh->missing >= 12);
    assert_int_equal(shared_bytes(f), OBJECTS * BYTES);
    for (unsigned i = 0, k = 0; i < OBJECTS; i++, k = (k + 37) % OBJECTS) {
        assert_int_equal(fixture_write(f, copy(k), ver(1, 1), ver(1, 2), 4096 * k, 4096, 255), 0);
        loaded_max = MAX(loaded_max, sh->loaded - sh->tree.levels[0].dirty_count);
    }
    assert_int_equal(shared_bytes(f), OBJECTS * (BYTES - 4096));
    assert_in_range(loaded_max, 1, 8);
    for (unsigned i = 0, k = 0; i < OBJECTS; i++, k = (k + 61) % OBJECTS) {
        assert_int_equal(fixture_change(f, STORE_REMOVE, origin(k), ver(1, 1), ver(1, 3)), 0);
        assert_int_equal(fixture_read(f, copy(k), 0, 4096 * k), k > 0 ? fill_of(k) : 0);
        assert_int_equal(fixture_read(f, copy(k), 4096 * k, 4096), 255);
    }
    assert_int_equal(shared_bytes(f), 0);
    assert_int_equal(used_bytes(f), OBJECTS * BYTES);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_paging(void **state)
{
    (void)state;
    fixture_run(SIZE, DISK_WRITE_BACK, body_paging);
}

/* The first page of counts that is on disk. */
static uint32_t damage_a_page(struct fixture *f)
{
    const struct tree_level *level = &f->s->share.tree.levels[0];
    uint32_t p = 0, block;

    while (level->ptrs[p].block == 0)
        p++;
    block = level->ptrs[p].block;
    fixture_close(f);
    sim_disk_bytes(f->sim, "disk")[(uint64_t)block * 4096 + 77] ^= 4;
    return p;
}

static void body_unreadable(struct fixture *f)
{
    uint32_t page;
    uint64_t used;

    fixture_open(f);
    make_clones(f);
    fixture_close(f);
    fixture_open(f);
    page = damage_a_page(f);
    assert_int_equal(fixture_check(f), 1);
    assert_non_null(strstr(f->findings[0], "share counts"));
    fixture_open(f);
    assert_int_equal(f->s->share.damaged, 1);
    used = used_bytes(f);
    for (unsigned i = 0; i < OBJECTS; i++) {
        assert_int_equal(fixture_change(f, STORE_REMOVE, copy(i), ver(1, 1), ver(1, 2)), 0);
        assert_int_equal(fixture_read(f, origin(i), 0, BYTES), fill_of(i));
    }
    assert_int_equal(used_bytes(f), used);
    for (unsigned i = 0; i < OBJECTS; i++)
        assert_int_equal(fixture_change(f, STORE_REMOVE, origin(i), ver(1, 1), ver(1, 2)), 0);
    /* What the page counts is lost, and nothing else. */
    assert_in_range(used_bytes(f), 4096, SHARE_PAGE_COUNTS * 4096);
    for (unsigned i = 0; i < OBJECTS; i++)
        assert_int_equal(
            fixture_write(f, origin(i), STORE_PREV_NONE, ver(1, 3), 0, BYTES, fill_of(i)), 0);
    fixture_close(f);
    fixture_open(f);
    assert_int_equal(f->s->share.damaged, 1);
    for (unsigned i = 0; i < OBJECTS; i++)
        assert_int_equal(fixture_read(f, origin(i), 0, BYTES), fill_of(i));
    for (unsigned k = page * SHARE_PAGE_COUNTS; k < (page + 1) * SHARE_PAGE_COUNTS; k += 100)
        assert_false(share_is_known(&f->s->share, f->s->space.first + k));
    fixture_close(f);
}

static void test_unreadable(void **state)
{
    (void)state;
    fixture_run(SIZE, DISK_WRITE_BACK, body_unreadable);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_paging),
                                       cmocka_unit_test(test_unreadable)};

    if (getenv("STORE_LOG") == NULL)
        log_level = LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
