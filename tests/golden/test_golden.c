/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promise: every format version that ever was can still be read. Each kept image is opened,
 * compared with the text that was written when it was made, checked, changed and reopened.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "image.h"
#include "store/layout.h"

/* The folder of each format version is kept for ever. */
static const struct golden {
    const char *image, *text;
} goldens[] = {
    {"v1/clean.img.xz", "v1/clean.txt"},
    {"v1/wide.img.xz", "v1/clean.txt"},
    {"v1/log.img.xz", "v1/log.txt"},
    {"v1/tail.img.xz", "v1/log.txt"},
    {"v1-hints/clean.img.xz", "v1-hints/clean.txt"},
};

static const char *folder;
static const struct golden *now;
static uint8_t *image;
static uint64_t image_size;

static char *read_text(const char *name)
{
    char path[512], *text = calloc(1, 1 << 20);
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    f = fopen(path, "r");
    assert_non_null(f);
    assert_true(fread(text, 1, (1 << 20) - 1, f) > 0);
    fclose(f);
    return text;
}

static fiber_fn char *describe(struct sample *p)
{
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);

    assert_non_null(f);
    image_describe(p->s, f);
    fclose(f);
    return text;
}

static fiber_fn void expect_content(struct sample *p)
{
    char *want = read_text(now->text), *have = describe(p);

    assert_string_equal(have, want);
    free(want);
    free(have);
}

static void finding(void *arg, const char *text)
{
    fail_msg("%s: check says: %s", (const char *)arg, text);
}

static fiber_fn void expect_clean(struct sample *p)
{
    struct store_check_report report;

    assert_int_equal(store_check(p->rt, SAMPLE_PATH, true, finding, (void *)now->image, &report),
                     0);
    assert_int_equal(report.error_count, 0);
    assert_true(report.object_count > 100 && report.shared_block_count > 20 &&
                report.tombstone_count > 0);
}

/* One object before and after this version has changed it. */
struct changed {
    struct store_entry entry;
    uint8_t *data; /* as it must be after the change */
    size_t length;
};

static struct version next_of(const struct store_entry *e)
{
    return (struct version){e->version.value + (1000ull << 8)};
}

static fiber_fn void change_one(struct sample *p, struct changed *c)
{
    static uint8_t block[8192] __attribute__((aligned(4096)));
    struct store_extent extent = {2000, 5000};
    struct iovec iov = {block, extent.length};
    struct store_change w = {.kind = STORE_WRITE,
                             .oid = c->entry.oid,
                             .prev = c->entry.version,
                             .next = next_of(&c->entry),
                             .extents = &extent,
                             .extent_count = 1,
                             .iov = &iov,
                             .iov_count = 1};
    struct store_stat stat;

    memset(block, 0x42, sizeof(block));
    store_stat(p->s, &c->entry.oid, &stat);
    c->length = MAX(stat.end, 8192u);
    c->data = calloc(1, c->length);
    assert_int_equal(store_read(p->s, &c->entry.oid, 0, c->length, c->data, NULL), 0);
    memcpy(c->data + extent.offset, block, extent.length);
    assert_int_equal(store_apply(p->s, &w, NULL), 0);
}

static fiber_fn void expect_changed(struct sample *p, const struct changed *c)
{
    uint8_t *data = malloc(c->length);
    struct version version;

    assert_int_equal(store_read(p->s, &c->entry.oid, 0, c->length, data, &version), 0);
    assert_int_equal(version.value, next_of(&c->entry).value);
    assert_memory_equal(data, c->data, c->length);
    free(data);
}

/* Changes every third object, clones every 30th and removes every 31st; each is as it should be now
 * and after reopening. */
static fiber_fn void change_and_reopen(struct sample *p)
{
    struct store_filter all = {0};
    struct store_entry *entries;
    struct changed *list;
    size_t count, n = 0;

    assert_int_equal(store_list(p->s, &all, &entries, &count), 0);
    list = calloc(count, sizeof(*list));
    for (size_t i = 0; i < count; i++) {
        struct oid copy = sample_oid(90, (uint32_t)i);
        struct store_change c = {.kind = STORE_REMOVE,
                                 .oid = entries[i].oid,
                                 .prev = entries[i].version,
                                 .next = next_of(&entries[i])};
        if (entries[i].tombstone)
            continue;
        if (i % 3 == 0) {
            list[n].entry = entries[i];
            change_one(p, &list[n++]);
        } else if (i % 31 == 0) {
            assert_int_equal(store_apply(p->s, &c, NULL), 0);
        }
        if (i % 30 == 0) {
            c = (struct store_change){
                .kind = STORE_CLONE, .oid = copy, .source = entries[i].oid, .next = {1}};
            assert_int_equal(store_apply(p->s, &c, NULL), 0);
        }
    }
    assert_true(n > 30);
    for (size_t i = 0; i < n; i++)
        expect_changed(p, &list[i]);
    sample_close(p);
    sample_open(p);
    for (size_t i = 0; i < n; i++) {
        expect_changed(p, &list[i]);
        free(list[i].data);
    }
    free(list);
    free(entries);
}

static void body(struct sample *p)
{
    struct store_open_options read_only = {.read_only = true};
    struct super super;

    image_to_disk(p, image, image_size);
    assert_int_equal(store_open(p->rt, SAMPLE_PATH, &read_only, &p->s), 0);
    expect_content(p);
    sample_close(p);
    assert_memory_equal(sim_disk_bytes(p->sim, SAMPLE_PATH), image, image_size);
    expect_clean(p);
    sample_open(p);
    assert_false(store_is_inexact(p->s));
    expect_content(p);
    change_and_reopen(p);
    sample_close(p);
    expect_clean(p);
    /* What was opened is now a store of this version, with its log empty. */
    assert_int_equal(super_decode(sim_disk_bytes(p->sim, SAMPLE_PATH), &super), 0);
    p->s = NULL;
}

static void test_golden(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(goldens); i++) {
        char path[512];
        struct sample p;
        now = &goldens[i];
        snprintf(path, sizeof(path), "%s/%s", folder, now->image);
        image_size = image_load(path, &image);
        sample_init(&p, image_size);
        p.s = (void *)1; /* body sets it to NULL at its end */
        sample_do(&p, body);
        assert_null(p.s);
        sample_done(&p);
        free(image);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden)};

    ASSERT(argc == 2);
    folder = argv[1];
    log_level = LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
