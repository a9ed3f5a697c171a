/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise: a full store refuses data and goes on. Removals, punches, overwrites and metas work,
 * logs and checkpoints never run out of room, and the figures of store_usage() are exactly what a
 * walk over the disk finds. Filling, deleting and filling again, with crashes in between, leaves
 * exactly the same room every time.
 */
#include <stdio.h>
#include "fixture.h"
#include "workload.h"

#define KIB 1024u

/* A crashed node's memory is abandoned by design. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

static struct store_usage usage_of(struct fixture *f)
{
    struct store_usage u;

    store_usage(f->s, &u);
    assert_int_equal(u.size_bytes, u.data_bytes + u.record_bytes + u.pending_bytes +
                                       u.unreachable_bytes + u.reserve_bytes + u.free_bytes);
    assert_int_equal(u.used_bytes, u.data_bytes + u.record_bytes);
    return u;
}

static fiber_fn void reopen(struct fixture *f)
{
    fixture_close(f);
    fixture_open(f);
}

/* Removes all objects and forgets them. */
static fiber_fn void remove_all(struct fixture *f)
{
    struct store_filter filter = {0};
    struct store_entry *entries;
    size_t count;

    assert_int_equal(store_list(f->s, &filter, &entries, &count), 0);
    for (size_t i = 0; i < count; i++) {
        const struct store_entry *e = &entries[i];
        if (!e->tombstone)
            assert_int_equal(fixture_change(f, STORE_REMOVE, e->oid, e->version,
                                            (struct version){e->version.value + 1}),
                             0);
        store_settle(f->s, (struct vid){e->oid.vid}, (struct version){UINT64_MAX});
    }
    free(entries);
}

/* --- many at once --- */

/* Runs fn for every index below `count`, all at the same time. */
struct crowd {
    struct fixture *f;
    int (*fn)(struct fixture *f, uint32_t i);
    struct wgroup group;
    unsigned ok, full;
};

struct member {
    struct crowd *crowd;
    uint32_t i;
};

static void member_fiber(void *arg)
{
    struct member *m = arg;
    int r = m->crowd->fn(m->crowd->f, m->i);

    assert_true(r == 0 || r == -ENOSPC);
    m->crowd->ok += r == 0;
    m->crowd->full += r == -ENOSPC;
    wgroup_finish(&m->crowd->group);
}

static fiber_fn struct crowd all_at_once(struct fixture *f, uint32_t count,
                                         int (*fn)(struct fixture *f, uint32_t i))
{
    struct member *members = calloc(count, sizeof(*members));
    struct crowd c = {.f = f, .fn = fn};

    wgroup_init(&c.group);
    wgroup_add(&c.group, (int)count);
    for (uint32_t i = 0; i < count; i++) {
        members[i] = (struct member){&c, i};
        assert_int_equal(fiber_spawn(f->rt, "crowd", member_fiber, &members[i]), 0);
    }
    wgroup_wait(&c.group);
    free(members);
    assert_int_equal(store_failed(f->s), 0);
    return c;
}

static int change_extent(struct fixture *f, enum store_change_kind kind, struct oid oid,
                         struct version prev, uint32_t offset, uint32_t length)
{
    struct store_extent extent = {offset, length};
    struct store_change c = {.kind = kind,
                             .oid = oid,
                             .prev = prev,
                             .next = {prev.value + 1},
                             .extents = &extent,
                             .extent_count = 1};

    if (prev.value == 0)
        c.next = ver(1, 1);
    return store_apply(f->s, &c, NULL);
}

/* --- attacks: states that a store might never get out of --- */

static int punch_clone(struct fixture *f, uint32_t i)
{
    return change_extent(f, STORE_PUNCH, fixture_oid(2, i), ver(1, 1), 4096 * (i % 500), 4096);
}

/* Punching shared blocks gives nothing back, but makes a map of each clone to be written anew. */
static fiber_fn void dirty_maps_body(struct fixture *f)
{
    uint64_t empty;
    uint32_t n = 0;
    struct crowd c;

    fixture_open(f);
    reopen(f);
    assert_int_equal(fixture_write(f, fixture_oid(1, 0), ver(0, 0), ver(1, 1), 0, 2048 * KIB, 7),
                     0);
    remove_all(f);
    reopen(f);
    empty = usage_of(f).free_bytes;
    assert_int_equal(fixture_write(f, fixture_oid(1, 0), ver(0, 0), ver(1, 1), 0, 2048 * KIB, 7),
                     0);
    while (fixture_clone(f, fixture_oid(1, 0), fixture_oid(2, n), ver(1, 1)) == 0)
        n++;
    assert_true(n > 200);
    c = all_at_once(f, n, punch_clone);
    assert_int_equal(c.ok, n);
    assert_int_equal(fixture_read(f, fixture_oid(2, 3), 4096 * 3, 4096), 0);
    assert_int_equal(fixture_read(f, fixture_oid(2, 3), 4096 * 4, 4096), 7);
    reopen(f);
    remove_all(f);
    reopen(f);
    assert_int_equal(usage_of(f).free_bytes, empty);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static int put_meta(struct fixture *f, uint32_t i)
{
    static const uint8_t meta[3000] = {1, 2, 3};
    struct oid oid = fixture_oid(1, i);

    return store_meta_put(f->s, &oid, 1, meta, sizeof(meta));
}

static int shrink_meta(struct fixture *f, uint32_t i)
{
    struct oid oid = fixture_oid(1, i);

    return store_meta_put(f->s, &oid, 2, "short", 5);
}

/* Metas need blocks. When their part of the reserve is used up they are refused; everything else
 * goes on. */
static fiber_fn void metas_body(struct fixture *f)
{
    uint64_t empty;
    uint32_t n = 0;
    struct crowd c;

    fixture_open(f);
    assert_int_equal(fixture_write(f, fixture_oid(1, 0), ver(0, 0), ver(1, 1), 0, 4096, 7), 0);
    remove_all(f);
    reopen(f);
    empty = usage_of(f).free_bytes;
    while (fixture_write(f, fixture_oid(1, n), ver(0, 0), ver(1, 1), 0, 4096, 7) == 0)
        n++;
    assert_true(n > 300);
    c = all_at_once(f, n, put_meta);
    assert_true(c.ok > 5 && c.full > 5);
    c = all_at_once(f, n, put_meta); /* those that were refused once more, in this state */
    reopen(f);
    c = all_at_once(f, n, shrink_meta);
    assert_int_equal(c.ok, n);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(fixture_write(f, fixture_oid(1, i), ver(1, 1), ver(1, 2), 0, 4096, 8), 0);
    remove_all(f);
    reopen(f);
    assert_int_equal(usage_of(f).free_bytes, empty);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static int punch_new(struct fixture *f, uint32_t i)
{
    return change_extent(f, STORE_PUNCH, fixture_oid(3, i), ver(0, 0), 0, 4096);
}

static int remove_new(struct fixture *f, uint32_t i)
{
    return fixture_change(f, STORE_REMOVE, fixture_oid(3, i), ver(1, 1), ver(1, 2));
}

/* Objects without a block, and tombstones, take records. */
static fiber_fn void records_body(struct fixture *f)
{
    uint64_t empty;
    uint32_t n = 0, m;
    struct crowd c;

    fixture_open(f);
    assert_int_equal(fixture_write(f, fixture_oid(1, 0), ver(0, 0), ver(1, 1), 0, 4096, 7), 0);
    remove_all(f);
    reopen(f);
    empty = usage_of(f).free_bytes;
    while (fixture_write(f, fixture_oid(1, n), ver(0, 0), ver(1, 1), 0, 16 * KIB, 7) == 0)
        n++;
    for (m = 0; punch_new(f, m) == 0; m++)
        ;
    assert_true(m > 100);
    assert_int_equal(store_failed(f->s), 0);
    reopen(f);
    assert_int_equal(punch_new(f, m), -ENOSPC);
    c = all_at_once(f, MIN(m, 1500u), remove_new); /* become tombstones: no room yet */
    assert_int_equal(c.full, 0);
    reopen(f);
    for (uint32_t i = 0; i < 8; i++) /* more than the records have taken of the reserve */
        assert_int_equal(fixture_change(f, STORE_REMOVE, fixture_oid(1, i), ver(1, 1), ver(1, 2)),
                         0);
    assert_int_equal(fixture_write(f, fixture_oid(4, 0), ver(0, 0), ver(1, 1), 0, 4096, 9), 0);
    remove_all(f);
    reopen(f);
    assert_int_equal(usage_of(f).free_bytes, empty);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static int overwrite(struct fixture *f, uint32_t i)
{
    int r = 0;

    for (uint32_t k = 0; r == 0 && k < 20; k++)
        r = fixture_write(f, fixture_oid(1, i), ver(1, k + 1), ver(1, k + 2), (k % 4) * 4096, 4096,
                          (uint8_t)k);
    return r;
}

static int overwrite_shared(struct fixture *f, uint32_t i)
{
    int r = fixture_clone(f, fixture_oid(1, i), fixture_oid(5, i), ver(1, 1));

    return r == 0 ? fixture_write(f, fixture_oid(5, i), ver(1, 1), ver(1, 2), 0, 16 * KIB, 3) : r;
}

static fiber_fn void overwrites_body(struct fixture *f)
{
    uint64_t free_bytes;
    uint32_t n = 0;
    struct crowd c;

    fixture_open(f);
    while (fixture_write(f, fixture_oid(1, n), ver(0, 0), ver(1, 1), 0, 16 * KIB, 7) == 0)
        n++;
    reopen(f);
    free_bytes = usage_of(f).free_bytes;
    c = all_at_once(f, n, overwrite);
    assert_int_equal(c.ok, n);
    reopen(f);
    assert_int_equal(usage_of(f).free_bytes, free_bytes);
    c = all_at_once(f, n, overwrite_shared); /* as far as there is room for it */
    assert_true(c.full > 0);
    remove_all(f);
    reopen(f);
    assert_true(usage_of(f).free_bytes > 4000 * KIB);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_attacks(void **state)
{
    static void (*const bodies[])(struct fixture * f) = {dirty_maps_body, metas_body, records_body,
                                                         overwrites_body};
    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(bodies); i++) {
        fixture_run((2 + 256 + 1300) * 4096, DISK_WRITE_BACK, bodies[i]);
        fixture_run(16 << 20, DISK_FUA, bodies[i]);
    }
}

/* --- drift --- */

#define DRIFT_KINDS 8u
#define FIXED_OPS   45u

struct drift {
    struct fixture f;
    uint64_t random;
    unsigned round;
    uint64_t empty_free, empty_used; /* 0: not known yet */
    uint64_t fixed_data[DRIFT_KINDS], fixed_shared[DRIFT_KINDS], fixed_used[DRIFT_KINDS];
    uint64_t crashes, refusals;
};

static uint64_t rnd(struct drift *d, uint64_t below)
{
    d->random += 0x9e3779b97f4a7c15ull;
    return hash_u64(d->random) % below;
}

static struct version object_version(struct fixture *f, struct oid oid)
{
    struct store_stat stat;

    store_stat(f->s, &oid, &stat);
    return stat.version;
}

/* The same changes in each round of a kind: they fit. */
static fiber_fn void fixed_changes(struct drift *d)
{
    struct fixture *f = &d->f;
    uint32_t count = 0;

    d->random = 1000 + d->round % DRIFT_KINDS;
    for (unsigned k = 0; k < FIXED_OPS; k++) {
        static const uint32_t lengths[] = {4096, 12288, 65536, 262144, 5000};
        uint32_t pick = (uint32_t)rnd(d, 10), i = count > 0 ? (uint32_t)rnd(d, count) : 0;
        uint32_t length = lengths[rnd(d, ARRAY_SIZE(lengths))];
        uint32_t offset = (uint32_t)rnd(d, 3) * 1048576 + (uint32_t)rnd(d, 40) * 4096;
        struct oid oid = fixture_oid(7, i);
        struct version v = object_version(f, oid);
        uint8_t meta[2000] = {(uint8_t)k};
        if (count == 0 || pick < 4)
            assert_int_equal(fixture_write(f, fixture_oid(7, count++), ver(0, 0), ver(1, 1), offset,
                                           length, (uint8_t)k),
                             0);
        else if (pick < 6)
            assert_int_equal(fixture_clone(f, oid, fixture_oid(7, count++), ver(1, 1)), 0);
        else if (pick < 7)
            assert_int_equal(change_extent(f, STORE_PUNCH, oid, v, offset, length), 0);
        else if (pick < 8)
            assert_int_equal(store_meta_put(f->s, &oid, k + 1, meta, k % 2 ? 2000 : 20), 0);
        else
            assert_int_equal(
                fixture_write(f, oid, v, (struct version){v.value + 1}, offset, length, 1), 0);
    }
}

/* As much as there is room for, then what must go on when there is none. */
static fiber_fn void fill_up(struct drift *d)
{
    struct fixture *f = &d->f;
    struct oid oid = fixture_oid(8, 0);
    uint32_t n = 0;
    int r;

    while ((r = fixture_write(f, fixture_oid(8, n), ver(0, 0), ver(1, 1), 0, n % 2 ? 65536 : 4096,
                              2)) == 0)
        n++;
    assert_int_equal(r, -ENOSPC);
    assert_true(n > 2);
    d->refusals++;
    assert_int_equal(fixture_write(f, oid, ver(1, 1), ver(1, 2), 0, 4096, 3), 0);
    assert_int_equal(store_meta_put(f->s, &oid, 1, "ledger", 6), 0);
    assert_int_equal(change_extent(f, STORE_PUNCH, fixture_oid(8, 1), ver(1, 1), 4096, 8192), 0);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(fixture_change(f, STORE_REMOVE, fixture_oid(8, i),
                                        object_version(f, fixture_oid(8, i)), ver(2, 1)),
                         0);
    store_settle(f->s, (struct vid){8}, ver(2, 1));
}

static void expect_same(uint64_t *first, uint64_t value)
{
    if (*first == 0)
        *first = value;
    assert_int_equal(value, *first);
}

static void drift_fiber(void *arg)
{
    struct drift *d = arg;
    struct fixture *f = &d->f;
    unsigned kind = d->round % DRIFT_KINDS;
    bool look = d->round % 5 == 0;

    fixture_open(f);
    remove_all(f); /* what a crash has left */
    if (look) {
        reopen(f);
        expect_same(&d->empty_free, usage_of(f).free_bytes);
        expect_same(&d->empty_used, usage_of(f).used_bytes);
    }
    fixed_changes(d);
    expect_same(&d->fixed_data[kind], usage_of(f).data_bytes);
    expect_same(&d->fixed_shared[kind], usage_of(f).shared_bytes);
    fill_up(d);
    assert_int_equal(usage_of(f).data_bytes, d->fixed_data[kind]);
    if (look) {
        reopen(f);
        expect_same(&d->fixed_used[kind], usage_of(f).used_bytes);
    }
    remove_all(f);
    assert_int_equal(usage_of(f).data_bytes, 0);
    fiber_sleep(f->rt, 5 * NS_PER_S); /* a checkpoint that is due ends */
    assert_int_equal(usage_of(f).pending_bytes, 0);
    fixture_close(f);
    if (d->round % 50 == 0)
        assert_int_equal(fixture_check(f), 0);
    f->ran = true;
}

static void format_fiber(void *arg)
{
    struct drift *d = arg;
    struct store_format_options options = {.log_bytes = 1 << 20};

    assert_int_equal(store_format(d->f.rt, "disk", &options, NULL, NULL), 0);
    fixture_open(&d->f);
    assert_int_equal(fixture_write(&d->f, fixture_oid(1, 0), ver(0, 0), ver(1, 1), 0, 4096, 1), 0);
    remove_all(&d->f);
    fixture_close(&d->f);
}

static void test_no_drift(void **state)
{
    const char *text = getenv("STORE_ROUNDS");
    unsigned rounds = text != NULL ? (unsigned)atoi(text) : 1000;
    struct drift *d = calloc(1, sizeof(*d));

    (void)state;
    d->f.sim = sim_new(11);
    d->f.rt = sim_node_new(d->f.sim, NULL);
    assert_int_equal(sim_disk_new(d->f.sim, "disk", 12 << 20, DISK_WRITE_BACK), 0);
    sim_do(d->f.sim, d->f.rt, format_fiber, d);
    for (d->round = 0; d->round < rounds; d->round++) {
        bool crash = d->round % 7 == 3;
        d->f.ran = false;
        if (crash)
            sim_disk_fault(d->f.sim, "disk", DISK_WRITE, SIM_FAULT_CRASH, 1 + d->round * 13 % 400);
        sim_do(d->f.sim, d->f.rt, drift_fiber, d);
        sim_disk_fault(d->f.sim, "disk", DISK_WRITE, SIM_FAULT_NONE, 0);
        assert_true(d->f.ran || crash);
        d->crashes += !d->f.ran;
    }
    assert_true(d->refusals > rounds / 2 && (rounds < 10 || d->crashes > 0));
    sim_free(d->f.sim);
    free(d);
}

/* --- figures --- */

#define WORKERS 3u

struct figures {
    struct fixture f;
    struct worker_state workers[WORKERS];
    struct wgroup group;
    struct store_usage usage;
    bool close;
};

struct job {
    struct figures *x;
    struct worker_state *w;
};

static void worker_fiber(void *arg)
{
    struct job *j = arg;

    for (unsigned i = 0; i < 60; i++)
        assert_int_equal(work_step(j->w, j->x->f.s), 0);
    wgroup_finish(&j->x->group);
}

static void figures_fiber(void *arg)
{
    static struct job jobs[WORKERS];
    struct figures *x = arg;

    fixture_open(&x->f);
    wgroup_init(&x->group);
    wgroup_add(&x->group, WORKERS);
    for (unsigned i = 0; i < WORKERS; i++) {
        jobs[i] = (struct job){x, &x->workers[i]};
        fiber_spawn(x->f.rt, "worker", worker_fiber, &jobs[i]);
    }
    wgroup_wait(&x->group);
    if (x->close)
        reopen(&x->f);
    fiber_sleep(x->f.rt, 5 * NS_PER_S); /* a checkpoint that is due ends */
    x->usage = usage_of(&x->f);
    x->f.ran = true;
}

static void finding(void *arg, const char *text)
{
    fail_msg("%s", text);
}

/* The walk counts owners of each block, from what is on disk. */
static void compare_fiber(void *arg)
{
    struct figures *x = arg;
    struct store_check_report report;

    assert_int_equal(store_check(x->f.rt, "disk", false, finding, NULL, &report), 0);
    assert_int_equal(report.error_count, 0);
    assert_int_equal(x->usage.used_bytes, report.block_count * 4096);
    assert_int_equal(x->usage.record_bytes, report.structure_block_count * 4096);
    assert_int_equal(x->usage.shared_bytes, report.extra_user_count * 4096);
    assert_int_equal(x->usage.pending_bytes, 0);
    assert_int_equal(x->usage.size_bytes - x->usage.used_bytes, report.free_block_count * 4096);
    assert_int_equal(x->usage.object_count, report.object_count);
    assert_int_equal(x->usage.tombstone_count, report.tombstone_count);
}

static void run_figures(uint64_t seed)
{
    struct figures *x = calloc(1, sizeof(*x));

    x->close = seed % 2;
    x->f.sim = sim_new(seed);
    x->f.rt = sim_node_new(x->f.sim, NULL);
    assert_int_equal(sim_disk_new(x->f.sim, "disk", 64 << 20, DISK_WRITE_BACK), 0);
    for (unsigned i = 0; i < WORKERS; i++)
        work_init(&x->workers[i], i, seed);
    for (unsigned round = 0; round < 4; round++) {
        if (round == 0) {
            struct drift d = {.f = x->f};
            sim_do(x->f.sim, x->f.rt, format_fiber, &d);
        }
        x->f.ran = false;
        sim_do(x->f.sim, x->f.rt, figures_fiber, x);
        assert_true(x->f.ran);
        sim_node_crash(x->f.sim, x->f.rt); /* nothing is under way; what is dirty is in the log */
        sim_do(x->f.sim, x->f.rt, compare_fiber, x);
    }
    for (unsigned i = 0; i < WORKERS; i++)
        work_done(&x->workers[i]);
    sim_free(x->f.sim);
    free(x);
}

static void test_figures_are_exact(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 6; seed++)
        run_figures(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attacks),
        cmocka_unit_test(test_figures_are_exact),
        cmocka_unit_test(test_no_drift),
    };

    if (getenv("STORE_LOG") == NULL)
        log_level = LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
