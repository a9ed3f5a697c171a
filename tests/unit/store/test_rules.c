/* SPDX-License-Identifier: Apache-2.0 */
/* Promise: the rules of store.h about versions, idempotence, meta, tombstones, lists, pins and
 * space. */
#include "fixture.h"
#include "store/layout.h"

#define A fixture_oid(1, 0)
#define B fixture_oid(1, 1)
#define C fixture_oid(2, 2)

static void body_versions(struct fixture *f)
{
    struct version current;
    struct store_change c = {.kind = STORE_PUNCH, .oid = A, .prev = ver(1, 9), .next = ver(1, 10)};

    fixture_open(f);
    assert_int_equal(fixture_write(f, A, ver(1, 1), ver(1, 2), 0, 4096, 1), -ESTALE); /* absent */
    assert_int_equal(fixture_write(f, A, STORE_PREV_NONE, ver(1, 5), 0, 4096, 1), 0);
    assert_int_equal(fixture_write(f, A, STORE_PREV_NONE, ver(1, 6), 0, 4096, 2), -ESTALE);
    assert_int_equal(fixture_write(f, A, STORE_PREV_NONE, ver(1, 5), 0, 4096, 3), 0); /* done */
    assert_int_equal(fixture_write(f, A, ver(1, 1), ver(1, 4), 0, 4096, 3), 0);       /* done */
    assert_int_equal(fixture_read(f, A, 0, 4096), 1);
    assert_int_equal(store_apply(f->s, &c, &current), -ESTALE);
    assert_int_equal(current.value, ver(1, 5).value);
    assert_int_equal(fixture_write(f, A, STORE_PREV_OLDER_TERM, ver(1, 6), 0, 4096, 4), -ESTALE);
    assert_int_equal(fixture_write(f, A, STORE_PREV_OLDER_TERM, ver(2, 1), 0, 4096, 4), 0);
    assert_int_equal(fixture_write(f, A, ver(2, 1), ver(1, 9), 0, 4096, 5), -ESTALE); /* back */
    assert_int_equal(fixture_read(f, A, 0, 4096), 4);
    assert_int_equal(fixture_change(f, STORE_REMOVE, B, STORE_PREV_NONE, ver(1, 1)),
                     0); /* absent */
    assert_int_equal(fixture_change(f, STORE_REMOVE, A, ver(1, 5), ver(2, 2)), -ESTALE);
    assert_int_equal(fixture_change(f, STORE_REMOVE, A, ver(2, 1), ver(2, 2)), 0);
    assert_int_equal(fixture_change(f, STORE_REMOVE, A, ver(2, 1), ver(2, 2)), 0);
    assert_int_equal(fixture_read(f, A, 0, 4096), -ENOENT);
    /* A late write of before the removal is done already; one that is not newer is stale. */
    assert_int_equal(fixture_write(f, A, ver(2, 1), ver(2, 2), 0, 4096, 6), 0);
    assert_int_equal(fixture_write(f, A, STORE_PREV_NONE, ver(1, 9), 0, 4096, 6), -ESTALE);
    assert_int_equal(fixture_read(f, A, 0, 4096), -ENOENT);
    assert_int_equal(fixture_write(f, A, STORE_PREV_NONE, ver(2, 3), 0, 4096, 7), 0);
    assert_int_equal(fixture_read(f, A, 0, 4096), 7);
    assert_int_equal(fixture_write(f, A, ver(2, 3), (struct version){0}, 0, 4096, 7), -EINVAL);
    fixture_close(f);
}

static void test_versions(void **state)
{
    (void)state;
    fixture_run(16 << 20, DISK_WRITE_BACK, body_versions);
}

/* Changes that name the version of one still under way are accepted in order. */
struct chain {
    struct fixture *f;
    unsigned i;
    int result;
    struct wgroup *group;
    uint64_t term;
};

static void chain_fiber(void *arg)
{
    struct chain *c = arg;

    if (c->f->s == NULL)
        c->result = -ECANCELED; /* closed before this fiber ran */
    else
        c->result = fixture_write(c->f, A, ver(c->term, c->i + 1), ver(c->term, c->i + 2),
                                  c->i % 3 == 2 ? 100 : 0, 4096, (uint8_t)(c->i + 1));
    wgroup_finish(c->group);
}

static void body_chain(struct fixture *f)
{
    struct chain chain[30];
    struct wgroup group;
    struct store_stats before, after;

    fixture_open(f);
    assert_int_equal(fixture_change(f, STORE_PUNCH, A, STORE_PREV_NONE, ver(1, 1)), 0);
    store_stats(f->s, &before);
    wgroup_init(&group);
    wgroup_add(&group, ARRAY_SIZE(chain));
    for (unsigned i = 0; i < ARRAY_SIZE(chain); i++) {
        chain[i] = (struct chain){f, i, 1, &group, 1};
        fiber_spawn(f->rt, "chain", chain_fiber, &chain[i]);
    }
    wgroup_wait(&group);
    for (unsigned i = 0; i < ARRAY_SIZE(chain); i++)
        assert_int_equal(chain[i].result, 0);
    assert_int_equal(fixture_read(f, A, 0, 100), 29);
    assert_int_equal(fixture_read(f, A, 100, 4096), 30);
    store_stats(f->s, &after);
    /* Group commit: partial writes wait for the commit before, whole ones join. */
    assert_in_range(after.commits - before.commits, 2, 24);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_chain(void **state)
{
    (void)state;
    fixture_run(16 << 20, DISK_WRITE_BACK, body_chain);
    fixture_run(16 << 20, DISK_FUA, body_chain);
}

static void body_clone(struct fixture *f)
{
    struct store_usage before, usage;

    fixture_open(f);
    assert_int_equal(fixture_clone(f, A, B, ver(1, 1)), -ENOENT);
    assert_int_equal(fixture_write(f, A, STORE_PREV_NONE, ver(1, 1), 0, 4 << 20, 1), 0);
    store_usage(f->s, &before);
    assert_int_equal(fixture_clone(f, A, B, ver(1, 2)), 0);
    store_usage(f->s, &usage);
    assert_int_equal(usage.data_bytes, before.data_bytes);
    assert_int_equal(usage.shared_bytes, 4 << 20);
    assert_int_equal(fixture_clone(f, A, B, ver(1, 3)), -ESTALE);
    assert_int_equal(fixture_write(f, B, ver(1, 2), ver(1, 3), 4096, 4096, 2), 0);
    assert_int_equal(fixture_read(f, A, 0, 4 << 20), 1);
    assert_int_equal(fixture_read(f, B, 4096, 4096), 2);
    store_usage(f->s, &usage);
    assert_int_equal(usage.shared_bytes, (4 << 20) - 4096);
    assert_int_equal(fixture_change(f, STORE_REMOVE, A, ver(1, 1), ver(1, 4)), 0);
    store_usage(f->s, &usage);
    assert_int_equal(usage.shared_bytes, 0);
    assert_int_equal(fixture_read(f, B, 0, 4096), 1);
    assert_int_equal(fixture_change(f, STORE_REMOVE, B, ver(1, 3), ver(1, 5)), 0);
    store_settle(f->s, (struct vid){1}, ver(1, 5));
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
    fixture_open(f);
    store_usage(f->s, &usage);
    assert_int_equal(usage.data_bytes, 0);
    assert_int_equal(usage.object_count + usage.tombstone_count, 0);
    assert_true(usage.used_bytes <= 3 * 4096);
    fixture_close(f);
}

static void test_clone(void **state)
{
    (void)state;
    fixture_run(24 << 20, DISK_WRITE_BACK, body_clone);
}

static void body_install(struct fixture *f)
{
    static uint8_t data[3 * 4096] __attribute__((aligned(4096)));
    struct store_extent extent = {8192, sizeof(data)};
    struct iovec iov = {data, sizeof(data)};
    struct store_change c = {.kind = STORE_INSTALL,
                             .oid = A,
                             .prev = ver(1, 1),
                             .next = ver(1, 1),
                             .extents = &extent,
                             .extent_count = 1,
                             .iov = &iov,
                             .iov_count = 1};
    struct store_stat stat;

    fixture_open(f);
    assert_int_equal(fixture_write(f, A, STORE_PREV_NONE, ver(1, 1), 0, 16 << 20, 9), 0);
    assert_int_equal(store_meta_put(f->s, &c.oid, 4, "meta", 4), 0);
    memset(data, 5, 4096);
    memset(data + 8192, 6, 4096);
    assert_int_equal(store_apply(f->s, &c, NULL), 0); /* the same version: repair */
    assert_int_equal(fixture_read(f, A, 0, 8192), 0);
    assert_int_equal(fixture_read(f, A, 8192, 4096), 5);
    assert_int_equal(fixture_read(f, A, 12288, 4096), 0);
    assert_int_equal(fixture_read(f, A, 16384, 4096), 6);
    store_stat(f->s, &c.oid, &stat);
    assert_int_equal(stat.block_count, 2);
    assert_int_equal(stat.end, 20480);
    assert_int_equal(stat.meta_version, 4);
    c.prev = ver(1, 7);
    assert_int_equal(store_apply(f->s, &c, NULL), -ESTALE);
    c.prev = STORE_PREV_NONE;
    assert_int_equal(store_apply(f->s, &c, NULL), -ESTALE);
    c.oid = B;
    assert_int_equal(store_apply(f->s, &c, NULL), 0);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_install(void **state)
{
    (void)state;
    fixture_run(32 << 20, DISK_WRITE_BACK, body_install);
}

static void body_meta(struct fixture *f)
{
    struct oid a = A, b = B, c = C;
    uint8_t big[4096], got[4096];
    size_t length;
    uint64_t meta_version;

    memset(big, 7, sizeof(big));
    fixture_open(f);
    assert_int_equal(store_meta_put(f->s, &a, 1, "x", 1), -ENOENT);
    assert_int_equal(fixture_write(f, A, STORE_PREV_NONE, ver(1, 1), 0, 4096, 1), 0);
    assert_int_equal(fixture_write(f, B, STORE_PREV_NONE, ver(1, 1), 0, 4096, 1), 0);
    assert_int_equal(store_meta_put(f->s, &a, 5, "hello", 5), 0);
    assert_int_equal(store_meta_put(f->s, &a, 5, "again", 5), 0);
    assert_int_equal(store_meta_put(f->s, &a, 4, "older", 5), -ESTALE);
    assert_int_equal(store_meta_get(f->s, &a, got, &length, &meta_version), 0);
    assert_memory_equal(got, "hello", 5);
    struct store_meta_change batch[] = {
        {.oid = a, .meta_version = 6, .meta = big, .length = 4096},
        {.oid = b, .remove = true, .next = {0}},
    };
    assert_int_equal(store_meta_apply(f->s, batch, 2), 0);
    batch[1] = (struct store_meta_change){.oid = c, .meta_version = 1, .meta = "", .length = 0};
    batch[0].meta_version = 7;
    assert_int_equal(store_meta_apply(f->s, batch, 2), -ENOENT); /* all or nothing */
    fixture_close(f);
    fixture_open(f);
    assert_int_equal(store_meta_get(f->s, &a, got, &length, &meta_version), 0);
    assert_int_equal(length, 4096);
    assert_int_equal(meta_version, 6);
    assert_memory_equal(got, big, 4096);
    struct store_stat stat;
    store_stat(f->s, &b, &stat);
    assert_int_equal(stat.version.value, 0);
    assert_int_equal(stat.tombstone.value, 0);
    assert_int_equal(store_meta_put(f->s, &a, 9, NULL, 0), 0);
    assert_int_equal(store_meta_get(f->s, &a, got, &length, &meta_version), 0);
    assert_int_equal(length, 0);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_meta(void **state)
{
    (void)state;
    fixture_run(16 << 20, DISK_WRITE_BACK, body_meta);
}

static void body_lists(struct fixture *f)
{
    struct store_entry *entries;
    size_t count;
    uint64_t digest;

    fixture_open(f);
    for (uint32_t i = 0; i < 50; i++)
        assert_int_equal(
            fixture_write(f, fixture_oid(1 + i % 2, i), STORE_PREV_NONE, ver(1, i + 1), 0, 4096, 1),
            0);
    assert_int_equal(fixture_change(f, STORE_REMOVE, fixture_oid(1, 10), ver(1, 11), ver(1, 60)),
                     0);
    struct store_filter filter = {.by_vid = true, .vid = {1}, .above = ver(1, 40)};
    assert_int_equal(store_list(f->s, &filter, &entries, &count), 0);
    assert_int_equal(count, 5 + 1); /* 41, 43 … 49 and the tombstone */
    assert_true(entries[0].tombstone && entries[0].oid.index == 10);
    for (size_t i = 1; i < count; i++)
        assert_true(oid_compare(&entries[i - 1].oid, &entries[i].oid) < 0);
    free(entries);
    filter = (struct store_filter){.by_group = true, .group = 3};
    assert_int_equal(store_list(f->s, &filter, &entries, &count), 0);
    assert_int_equal(count, 7); /* 3, 10 (tombstone), 17, 24, 31, 38, 45 */
    free(entries);
    digest = store_digest(f->s, 3);
    assert_int_equal(fixture_write(f, fixture_oid(2, 3), ver(1, 4), ver(1, 61), 0, 4096, 2), 0);
    assert_int_not_equal(store_digest(f->s, 3), digest);
    digest = store_digest(f->s, 3);
    fixture_close(f);
    fixture_open(f);
    assert_int_equal(store_digest(f->s, 3), digest);
    store_settle(f->s, (struct vid){1}, ver(1, 60));
    assert_int_equal(store_digest(f->s, 3), digest); /* tombstones do not count */
    filter = (struct store_filter){.above = {0}};
    assert_int_equal(store_list(f->s, &filter, &entries, &count), 0);
    assert_int_equal(count, 49);
    free(entries);
    fixture_close(f);
}

static void test_lists(void **state)
{
    (void)state;
    fixture_run(16 << 20, DISK_WRITE_BACK, body_lists);
}

static void add_run(void *arg, uint64_t offset, uint64_t length, bool mapped)
{
    uint64_t *runs = arg;

    runs[0]++;
    runs[1] += mapped ? length : 0;
    (void)offset;
}

static void body_pin(struct fixture *f)
{
    struct store_pin *pin;
    struct oid a = A;
    uint8_t *data = malloc(100000);
    uint64_t runs[2] = {0};

    fixture_open(f);
    assert_int_equal(fixture_write(f, A, STORE_PREV_NONE, ver(1, 1), 8192, 65536, 1), 0);
    assert_int_equal(store_map(f->s, &a, 0, 1 << 20, add_run, runs), 0);
    assert_int_equal(runs[0], 3);
    assert_int_equal(runs[1], 65536);
    assert_int_equal(store_pin(f->s, &a, &pin), 0);
    assert_int_equal(fixture_change(f, STORE_REMOVE, A, ver(1, 1), ver(1, 2)), 0);
    for (uint32_t i = 0; i < 200; i++) /* would reuse the blocks many times over */
        assert_int_equal(
            fixture_write(f, B, i ? ver(1, i) : STORE_PREV_NONE, ver(1, i + 1), 0, 65536, 2), 0);
    assert_int_equal(store_pin_read(pin, 8191, 65537, data), 0);
    assert_int_equal(data[0], 0);
    for (unsigned i = 1; i < 65537; i++)
        assert_int_equal(data[i], 1);
    store_unpin(pin);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
    free(data);
}

static void test_pin(void **state)
{
    (void)state;
    fixture_run(64 << 20, DISK_WRITE_BACK, body_pin);
}

/* A full store refuses new data, but removes, punches, overwrites and takes meta; then it has room
 * again. */
static void body_full(struct fixture *f)
{
    uint32_t n = 0;
    struct store_usage usage;
    int r;

    fixture_open(f);
    do {
        r = fixture_write(f, fixture_oid(1, n), STORE_PREV_NONE, ver(1, 1), 0, 32768, 1);
        n += r == 0;
    } while (r == 0);
    assert_int_equal(r, -ENOSPC);
    assert_true(n > 50);
    store_usage(f->s, &usage);
    assert_true(usage.free_bytes < 65536);
    for (uint32_t i = 0; i < n; i++) { /* unshared overwrites, more than the reserve */
        struct oid oid = fixture_oid(1, i);
        assert_int_equal(fixture_write(f, oid, ver(1, 1), ver(1, 2), 0, 4096, 2), 0);
        assert_int_equal(store_meta_put(f->s, &oid, 1, "ledger", 6), 0);
    }
    assert_int_equal(fixture_write(f, fixture_oid(2, 0), STORE_PREV_NONE, ver(1, 1), 0, 65536, 1),
                     -ENOSPC);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(fixture_change(f, STORE_REMOVE, fixture_oid(1, i), ver(1, 2), ver(1, 3)),
                         0);
    assert_int_equal(fixture_write(f, fixture_oid(2, 0), STORE_PREV_NONE, ver(1, 1), 0, 65536, 1),
                     0);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_full(void **state)
{
    (void)state;
    fixture_run(8 << 20, DISK_WRITE_BACK, body_full);
}

/* A tiny log is wrapped many times, checkpoints running beside the writes. */
static void body_wrap(struct fixture *f)
{
    struct store_stats stats;

    fixture_open(f);
    for (uint32_t i = 0; i < 1500; i++)
        assert_int_equal(fixture_write(f, fixture_oid(1, i % 5),
                                       i < 5 ? STORE_PREV_NONE : ver(1, i - 4), ver(1, i + 1),
                                       (i % 64) * 4096, 4096, (uint8_t)i),
                         0);
    store_stats(f->s, &stats);
    assert_true(stats.log_blocks >= 1500);
    assert_true(stats.checkpoints >= 5);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
    fixture_open(f);
    store_stats(f->s, &stats);
    assert_int_equal(fixture_read(f, fixture_oid(1, 4), (1499 % 64) * 4096, 4096), 1499 % 256);
    fixture_close(f);
}

static void test_wrap(void **state)
{
    (void)state;
    fixture_run(16 << 20, DISK_WRITE_BACK, body_wrap);
    fixture_run(16 << 20, DISK_WRITE_THROUGH, body_wrap);
}

/* A failed flush is final: everybody gets -EIO, reads too, and nothing answered is lost. */
static void body_failed_flush(struct fixture *f)
{
    fixture_open(f);
    assert_int_equal(fixture_write(f, A, STORE_PREV_NONE, ver(1, 1), 0, 4096, 1), 0);
    sim_disk_fault(f->sim, "disk", DISK_FLUSH, SIM_FAULT_EIO_ONCE, 3); /* data, log, flush */
    assert_int_equal(fixture_write(f, A, ver(1, 1), ver(1, 2), 0, 4096, 2), -EIO);
    assert_int_equal(store_failed(f->s), -EIO);
    assert_int_equal(fixture_write(f, B, STORE_PREV_NONE, ver(1, 2), 0, 4096, 2), -EIO);
    assert_int_equal(store_close(f->s), -EIO);
    fixture_open(f);
    assert_in_range(fixture_read(f, A, 0, 4096), 1, 2);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_failed_flush(void **state)
{
    (void)state;
    fixture_run(16 << 20, DISK_WRITE_BACK, body_failed_flush);
}

/* Closing finishes what is in flight: each call is answered, and what was answered with 0 is there.
 */
static void body_close(struct fixture *f)
{
    for (unsigned round = 0; round < 20; round++) {
        struct chain chain[30];
        struct wgroup group;
        unsigned good = 0;

        fixture_open(f);
        (void)fixture_change(f, STORE_PUNCH, A, STORE_PREV_OLDER_TERM, ver(round + 2, 1));
        wgroup_init(&group);
        wgroup_add(&group, ARRAY_SIZE(chain));
        for (unsigned i = 0; i < ARRAY_SIZE(chain); i++) {
            chain[i] = (struct chain){f, i, 1, &group, round + 2};
            fiber_spawn(f->rt, "chain", chain_fiber, &chain[i]);
        }
        for (unsigned i = 0; i < round; i++)
            fiber_yield();
        struct store *s = f->s;
        f->s = NULL; /* fibers that come later do not call */
        assert_int_equal(store_close(s), 0);
        wgroup_wait(&group);
        fixture_open(f);
        for (unsigned i = 0; i < ARRAY_SIZE(chain); i++) {
            assert_true(chain[i].result == 0 || chain[i].result == -ECANCELED ||
                        chain[i].result == -ESTALE);
            if (chain[i].result == 0)
                good = i + 1;
        }
        if (good > 0)
            assert_int_equal(fixture_read(f, A, 200, 100), good);
        fixture_close(f);
        assert_int_equal(fixture_check(f), 0);
    }
}

static void test_close(void **state)
{
    (void)state;
    fixture_run(16 << 20, DISK_WRITE_BACK, body_close);
}

/* Far more maps than the cache holds: they come and go while fibers read, write, clone and remove.
 */
#define MANY 400u

struct churn {
    struct fixture *f;
    struct wgroup *group;
    unsigned id;
    uint64_t version[MANY];
};

static void churn_fiber(void *arg)
{
    struct churn *c = arg;
    uint64_t random = c->id;

    for (unsigned n = 0; n < 600; n++) {
        random = hash_u64(random + n);
        unsigned i = random % MANY, other = (random >> 20) % MANY;
        struct oid oid = fixture_oid(c->id, i), source = fixture_oid(c->id, other);
        uint64_t *v = &c->version[i];
        int r = fixture_read(c->f, oid, 0, 8192), want = *v ? (int)(i % 200) : -ENOENT;
        assert_int_equal(r, want);
        if (*v == 0 && c->version[other] != 0 && i % 200 == other % 200)
            r = fixture_clone(c->f, source, oid, ver(1, n + 1));
        else if (*v != 0 && random % 3 == 0)
            r = fixture_change(c->f, STORE_REMOVE, oid, (struct version){*v}, ver(1, n + 1));
        else
            r = fixture_write(c->f, oid, (struct version){*v}, ver(1, n + 1), 0, 8192,
                              (uint8_t)(i % 200));
        assert_int_equal(r, 0);
        *v = *v != 0 && random % 3 == 0 ? 0 : ver(1, n + 1).value;
        if (*v != 0 && random % 5 == 0) {
            uint8_t meta[500];
            memset(meta, (int)i, sizeof(meta));
            assert_int_equal(store_meta_put(c->f->s, &oid, n + 1, meta, sizeof(meta)), 0);
        }
    }
    wgroup_finish(c->group);
}

static void body_churn(struct fixture *f)
{
    struct churn *c = calloc(3, sizeof(*c));
    struct wgroup group;

    f->cache_bytes = 1; /* the least */
    fixture_open(f);
    wgroup_init(&group);
    wgroup_add(&group, 3);
    for (unsigned i = 0; i < 3; i++) {
        c[i].f = f;
        c[i].group = &group;
        c[i].id = i + 1;
        fiber_spawn(f->rt, "churn", churn_fiber, &c[i]);
    }
    wgroup_wait(&group);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
    free(c);
}

static void test_churn(void **state)
{
    (void)state;
    fixture_run(48 << 20, DISK_WRITE_BACK, body_churn);
}

/* More clones than a share count can hold: the last ones copy. */
static void body_many_clones(struct fixture *f)
{
    struct store_usage usage;

    fixture_open(f);
    assert_int_equal(fixture_write(f, A, STORE_PREV_NONE, ver(1, 1), 0, 4096, 3), 0);
    for (uint32_t i = 0; i < 58000; i++)
        assert_int_equal(fixture_clone(f, A, fixture_oid(9, i), ver(1, 1)), 0);
    store_usage(f->s, &usage);
    assert_true(usage.data_bytes > 4096);
    assert_int_equal(fixture_read(f, fixture_oid(9, 57999), 0, 4096), 3);
    fixture_close(f);
    assert_int_equal(fixture_check(f), 0);
}

static void test_many_clones(void **state)
{
    (void)state;
    if (getenv("STORE_SLOW") != NULL)
        fixture_run(600 << 20, DISK_WRITE_THROUGH, body_many_clones);
}

/* The index outgrows its root table for an object that is then not made. */
static void body_refused_growth(struct fixture *f)
{
    unsigned count = SLOTS_PER_PAGE;

    fixture_open(f);
    for (unsigned i = 0; i < count; i++)
        assert_int_equal(
            fixture_write(f, fixture_oid(1, i), STORE_PREV_NONE, ver(1, 1), 0, 4096, 7), 0);
    fixture_close(f);
    for (unsigned change = 0; change < 2; change++) {
        fixture_open(f);
        if (change)
            assert_int_equal(fixture_write(f, fixture_oid(1, 0), ver(1, 1), ver(1, 2), 0, 4096, 7),
                             0);
        assert_int_equal(fixture_write(f, fixture_oid(1, count), ver(1, 1), ver(1, 2), 0, 4096, 7),
                         -ESTALE);
        fixture_close(f);
        assert_int_equal(fixture_check(f), 0);
        fixture_open(f);
        for (unsigned i = 0; i < count; i++)
            assert_int_equal(fixture_read(f, fixture_oid(1, i), 0, 4096), 7);
        fixture_close(f);
    }
}

static void test_refused_growth(void **state)
{
    (void)state;
    fixture_run(16 << 20, DISK_WRITE_BACK, body_refused_growth);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_versions),    cmocka_unit_test(test_chain),
        cmocka_unit_test(test_clone),       cmocka_unit_test(test_install),
        cmocka_unit_test(test_meta),        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_pin),         cmocka_unit_test(test_full),
        cmocka_unit_test(test_wrap),        cmocka_unit_test(test_failed_flush),
        cmocka_unit_test(test_many_clones), cmocka_unit_test(test_churn),
        cmocka_unit_test(test_close),       cmocka_unit_test(test_refused_growth),
    };

    log_level = LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
