/* SPDX-License-Identifier: Apache-2.0 */
/* See expect.h. */
#include "tests/damage/expect.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/crc32c.h"
#include "base/err.h"

static void note_run(void *arg, uint64_t offset, uint64_t length, bool mapped)
{
    struct expect_object *o = arg;

    for (uint64_t at = offset; mapped && at < offset + length; at += STORE_BLOCK) {
        if (o->count == o->capacity) {
            o->capacity = o->capacity * 2 + 16;
            o->blocks = realloc(o->blocks, o->capacity * sizeof(*o->blocks));
            o->crcs = realloc(o->crcs, o->capacity * sizeof(*o->crcs));
            ASSERT(o->blocks != NULL && o->crcs != NULL);
        }
        o->blocks[o->count++] = (uint32_t)(at / STORE_BLOCK);
    }
}

static uint8_t page[STORE_BLOCK] __attribute__((aligned(STORE_BLOCK)));

static fiber_fn void take_object(struct expect_object *o, struct store *s)
{
    uint64_t meta_version;
    size_t length;

    store_stat(s, &o->entry.oid, &o->stat);
    if (o->entry.tombstone)
        return;
    ASSERT(store_map(s, &o->entry.oid, 0, STORE_OBJECT_SIZE_MAX, note_run, o) == 0);
    for (uint32_t i = 0; i < o->count; i++) {
        ASSERT(store_read(s, &o->entry.oid, (uint64_t)o->blocks[i] * STORE_BLOCK, STORE_BLOCK, page,
                          NULL) == 0);
        o->crcs[i] = crc32c(0, page, STORE_BLOCK);
    }
    ASSERT(store_meta_get(s, &o->entry.oid, page, &length, &meta_version) == 0);
    o->meta_crc = crc32c(0, page, length);
}

fiber_fn void expect_take(struct expect *e, struct store *s)
{
    struct store_filter all = {0};
    struct store_entry *entries;

    ASSERT(store_list(s, &all, &entries, &e->count) == 0);
    e->objects = calloc(e->count, sizeof(*e->objects));
    ASSERT(e->objects != NULL);
    for (size_t i = 0; i < e->count; i++) {
        e->objects[i].entry = entries[i];
        take_object(&e->objects[i], s);
    }
    free(entries);
}

void expect_done(struct expect *e)
{
    for (size_t i = 0; i < e->count; i++) {
        free(e->objects[i].blocks);
        free(e->objects[i].crcs);
    }
    free(e->objects);
    *e = (struct expect){0};
}

static void wrong(struct expect_result *r, const struct expect_object *o, const char *what,
                  int64_t a)
{
    char name[OID_TEXT_SIZE];

    if (r->wrong[0] == '\0')
        snprintf(r->wrong, sizeof(r->wrong), "object %s: %s %lld", oid_format(&o->entry.oid, name),
                 what, (long long)a);
}

static fiber_fn void compare_block(const struct expect_object *o, struct store *s, uint32_t i,
                                   struct expect_result *ret)
{
    int r =
        store_read(s, &o->entry.oid, (uint64_t)o->blocks[i] * STORE_BLOCK, STORE_BLOCK, page, NULL);

    if (r == -EUCLEAN)
        ret->bad++;
    else if (r < 0)
        wrong(ret, o, "reading failed", r);
    else if (crc32c(0, page, STORE_BLOCK) != o->crcs[i])
        wrong(ret, o, "wrong content at block", o->blocks[i]);
}

/* Holes must be holes: a mapping too many would be wrong content. */
static fiber_fn void compare_map(const struct expect_object *o, struct store *s,
                                 struct expect_result *ret)
{
    struct expect_object have = {0};
    int r = store_map(s, &o->entry.oid, 0, STORE_OBJECT_SIZE_MAX, note_run, &have);

    if (r == -EUCLEAN)
        ret->bad++;
    else if (r < 0)
        wrong(ret, o, "mapping failed", r);
    else if (have.count != o->count ||
             (o->count > 0 && memcmp(have.blocks, o->blocks, o->count * sizeof(*o->blocks)) != 0))
        wrong(ret, o, "another map, blocks:", have.count);
    free(have.blocks);
    free(have.crcs);
}

static fiber_fn void compare_meta(const struct expect_object *o, struct store *s,
                                  struct expect_result *ret)
{
    uint64_t meta_version;
    size_t length;
    int r = store_meta_get(s, &o->entry.oid, page, &length, &meta_version);

    if (r == -EUCLEAN)
        ret->bad++;
    else if (r < 0)
        wrong(ret, o, "reading meta failed", r);
    else if (crc32c(0, page, length) != o->meta_crc)
        wrong(ret, o, "wrong meta of length", (int64_t)length);
}

static fiber_fn void compare_object(const struct expect_object *o, struct store *s,
                                    struct expect_result *ret)
{
    struct store_stat stat;

    store_stat(s, &o->entry.oid, &stat);
    if (stat.version.value == 0 && stat.tombstone.value == 0) {
        ret->missing++;
        return;
    }
    if (stat.version.value != o->stat.version.value ||
        stat.tombstone.value != o->stat.tombstone.value ||
        stat.meta_version != o->stat.meta_version) {
        ret->versions++; /* an older one, content and all: only of an inexact store */
        return;
    }
    if (o->entry.tombstone)
        return;
    for (uint32_t i = 0; i < o->count; i++)
        compare_block(o, s, i, ret);
    compare_map(o, s, ret);
    compare_meta(o, s, ret);
}

fiber_fn void expect_compare(const struct expect *e, struct store *s, struct expect_result *ret)
{
    struct store_filter all = {0};
    struct store_entry *entries;
    size_t count;

    *ret = (struct expect_result){0};
    for (size_t i = 0; i < e->count; i++)
        compare_object(&e->objects[i], s, ret);
    ASSERT(store_list(s, &all, &entries, &count) == 0);
    if (count + ret->missing > e->count)
        ret->versions += (unsigned)(count + ret->missing - e->count);
    free(entries);
}
