/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise: however much a checkpoint has to write, it does only a little of it without letting
 * requests go on, and what it keeps in memory does not grow with it. (bench/scale has the times, on
 * 4 TiB with a million objects.)
 */
#include "fixture.h"
#include "store/store_internal.h"

#define SIZE    (4ull << 30)
#define OBJECTS 50000u
#define WRITERS 16u
/* The last step: what it may find, what that makes dirty in its turn (index and bitmap pages), and
 * all tables. */
#define STEP_MAX (3 * 256u + 16)

struct crowd {
    struct fixture *f;
    struct wgroup group;
    unsigned next, limit;
    uint64_t round;
};

static void writer(void *arg)
{
    struct crowd *c = arg;

    while (c->next < c->limit) {
        unsigned i = c->next++ * 7919u % OBJECTS;
        struct version prev = {c->round}, next = {c->round + 1};
        assert_int_equal(fixture_write(c->f, fixture_oid(1, i), prev, next,
                                       (uint32_t)c->round * 4096, 4096, (uint8_t)i),
                         0);
    }
    wgroup_finish(&c->group);
}

static fiber_fn void write_all(struct crowd *c, unsigned count)
{
    c->next = 0;
    c->limit = count;
    wgroup_init(&c->group);
    wgroup_add(&c->group, WRITERS);
    for (unsigned i = 0; i < WRITERS; i++)
        fiber_spawn(c->f->rt, "writer", writer, c);
    wgroup_wait(&c->group);
    c->round++;
}

/* Every object is written once, then half of them again: each time another leaf, index page and
 * bitmap page is dirty. */
static void body_steps(struct fixture *f)
{
    struct crowd c = {.f = f};
    struct store_stats stats;
    size_t pages;

    f->cache_bytes = 64 << 20;
    fixture_open(f);
    write_all(&c, OBJECTS);
    write_all(&c, OBJECTS / 2);
    store_stats(f->s, &stats);
    assert_true(stats.checkpoints >= 2);
    assert_true(stats.checkpoint_blocks > 10 * STEP_MAX);
    assert_in_range(stats.checkpoint_step_items_max, 1, STEP_MAX);
    /* Leaves stay in the cache; what else a checkpoint has queued is bounded. */
    pages = f->s->pages.used - f->s->cache.count - f->s->share.loaded;
    assert_in_range(pages, 0, 4 * 256 + STEP_MAX);
    fixture_close(f);
    fixture_open(f);
    assert_int_equal(f->s->index.object_count, OBJECTS);
    for (unsigned i = 0; i < OBJECTS; i += 1000)
        assert_int_equal(fixture_read(f, fixture_oid(1, i), 0, 4096), (uint8_t)i);
    fixture_close(f);
}

static void test_steps(void **state)
{
    (void)state;
    fixture_run(SIZE, DISK_WRITE_BACK, body_steps);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steps)};

    if (getenv("STORE_LOG") == NULL)
        log_level = LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
