/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole stores that were tampered with: an input is a script of edits to a good image, each of
 * which names its block by what it is (index page, leaf, log block …). Checksums do not stand in
 * the way (crc_none.c). Check, open, read everything, change, reopen, repair: nothing may crash or
 * hang, and after a repair no block may be used twice.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/err.h"
#include "base/log.h"
#include "store/walk.h"
#include "tests/damage/classes.h"
#include "tests/fuzz/fuzz.h"

#define SIZE    ((2u + 256 + 1280) * STORE_BLOCK)
#define BLOCKS  (SIZE / STORE_BLOCK)
#define EDITS   16u
#define OBJECTS 12u /* that are read and changed in each run */

/* --- the good images: a small one closed cleanly, one of everything with work in the log --- */

struct base {
    uint8_t *bytes;
    uint32_t by_class[BLOCK_CLASS_COUNT][BLOCKS];
    uint32_t count[BLOCK_CLASS_COUNT];
};
static struct base bases[2];
static struct sample world;

static void make_body(struct sample *p)
{
    sample_format(p);
    sample_open(p);
    if (bases[0].bytes == NULL) {
        sample_small(p);
        sample_close(p);
        return;
    }
    sample_fill(p);
    sample_close(p);
    sample_open(p);
    sample_change(p);
    fiber_sleep(p->rt, 3 * NS_PER_S);
}

static void classify_body(struct sample *p)
{
    struct base *b = bases[1].bytes != NULL ? &bases[1] : &bases[0];
    static uint8_t classes[BLOCKS];

    classify(p, classes, BLOCKS);
    for (uint32_t i = 0; i < BLOCKS; i++)
        b->by_class[classes[i]][b->count[classes[i]]++] = i;
}

static void make_bases(void)
{
    log_level = LOG_ERROR;
    for (unsigned i = 0; i < ARRAY_SIZE(bases); i++) {
        struct sample p;
        sample_init(&p, SIZE);
        sample_do(&p, make_body);
        sim_node_kill(p.sim, p.rt);
        bases[i].bytes = malloc(SIZE);
        ASSERT(bases[i].bytes != NULL);
        sample_do(&p, classify_body);
        memcpy(bases[i].bytes, sim_disk_bytes(p.sim, SAMPLE_PATH), SIZE);
        sample_done(&p);
    }
    sample_init(&world, SIZE);
}

/* --- the script --- */

enum edit_kind {
    EDIT_U8,
    EDIT_U16,
    EDIT_U32,
    EDIT_POINTER,
    EDIT_ZERO,
    EDIT_COPY,
    EDIT_BIT,
    EDIT_COUNT
};

/* 8 bytes: kind and class, which block of the class, where in it, value. */
struct edit {
    uint8_t kind, class;
    uint16_t which, where, value;
};

static uint32_t pick(const struct base *b, unsigned class, unsigned which)
{
    class = 1 + class % (BLOCK_CLASS_COUNT - 1);
    while (b->count[class] == 0)
        class = class % (BLOCK_CLASS_COUNT - 1) + 1;
    return b->by_class[class][which % b->count[class]];
}

/* Most of what matters lies at multiples of 4, much of it at the begin. */
static uint32_t place(uint16_t where, uint32_t size)
{
    uint32_t at = where & 0x8000 ? where & 0xfff : (where & 0x3f) * 4 + (where >> 6 & 0x1f) * 128;

    return MIN(at % STORE_BLOCK, STORE_BLOCK - size);
}

static void apply_edit(const struct base *b, uint8_t *disk, const struct edit *e)
{
    uint8_t *block = disk + (size_t)pick(b, e->class, e->which) * STORE_BLOCK;
    uint32_t other = pick(b, e->value >> 8, e->value & 0xff);

    switch (e->kind % EDIT_COUNT) {
    case EDIT_U8:
        block[place(e->where, 1)] = (uint8_t)e->value;
        break;
    case EDIT_U16:
        put_le16(block + place(e->where, 2), e->value);
        break;
    case EDIT_U32:
        put_le32(block + place(e->where, 4), (uint32_t)(int16_t)e->value);
        break;
    case EDIT_POINTER:
        put_le32(block + place(e->where, 4), other);
        break;
    case EDIT_ZERO:
        memset(block, 0, STORE_BLOCK);
        break;
    case EDIT_COPY:
        memmove(block, disk + (size_t)other * STORE_BLOCK, STORE_BLOCK);
        break;
    case EDIT_BIT:
        block[place(e->where, 1)] ^= (uint8_t)(1u << e->value % 8);
        break;
    }
}

static const uint8_t *script;
static size_t script_size;

static void tamper(void)
{
    const struct base *b = &bases[script_size > 0 && script[0] & 1];
    uint8_t *disk = sim_disk_bytes(world.sim, SAMPLE_PATH);

    memcpy(disk, b->bytes, SIZE);
    for (size_t i = 0; i < EDITS && 1 + 8 * (i + 1) <= script_size; i++) {
        const uint8_t *p = script + 1 + 8 * i;
        struct edit e = {p[0], p[1], get_le16(p + 2), get_le16(p + 4), get_le16(p + 6)};
        apply_edit(b, disk, &e);
    }
}

/* --- using it --- */

static uint8_t page[2 * STORE_BLOCK] __attribute__((aligned(STORE_BLOCK)));

static void ignore_run(void *arg, uint64_t offset, uint64_t length, bool mapped)
{
}

static fiber_fn void read_object(struct store *s, const struct oid *oid, bool map)
{
    struct store_stat stat;
    uint64_t meta_version;
    size_t length;

    store_stat(s, oid, &stat);
    (void)store_read(s, oid, 0, sizeof(page), page, NULL);
    if (stat.end >= STORE_BLOCK)
        (void)store_read(s, oid, stat.end - STORE_BLOCK, STORE_BLOCK, page, NULL);
    if (map)
        (void)store_map(s, oid, 0, STORE_OBJECT_SIZE_MAX, ignore_run, NULL);
    (void)store_meta_get(s, oid, page, &length, &meta_version);
}

static fiber_fn void change_object(struct store *s, const struct store_entry *e, unsigned i)
{
    static const enum store_change_kind kinds[] = {STORE_WRITE, STORE_REMOVE, STORE_INSTALL,
                                                   STORE_CLONE, STORE_PUNCH};
    struct store_extent extent = {1000, 5000};
    struct iovec iov = {page, extent.length};
    struct store_change c = {.kind = kinds[i % ARRAY_SIZE(kinds)],
                             .oid = e->oid,
                             .prev = e->version,
                             .next = {e->version.value + 1},
                             .extents = &extent,
                             .extent_count = 1};

    if (c.kind == STORE_CLONE) {
        c.source = e->oid;
        c.oid = (struct oid){.vid = 77, .index = i};
        c.prev = STORE_PREV_NONE;
        c.next.value = 1;
    }
    if (c.kind == STORE_REMOVE)
        c.extent_count = 0;
    if (c.kind == STORE_WRITE || c.kind == STORE_INSTALL || c.kind == STORE_CLONE) {
        c.iov = &iov;
        c.iov_count = 1;
    }
    (void)store_apply(s, &c, NULL);
    (void)store_meta_put(s, &e->oid, e->meta_version + 1, page, i % 2 ? 20 : 500);
}

static fiber_fn void use(struct store *s)
{
    struct store_filter all = {0};
    struct store_entry *entries;
    uint64_t bytes, errors;
    size_t count;

    (void)store_scrub_step(s, 1 << 20, &bytes, &errors);
    if (store_list(s, &all, &entries, &count) < 0)
        return;
    for (size_t i = 0; i < count; i++)
        read_object(s, &entries[i].oid, i % 8 == 0);
    for (size_t i = 0; i < count; i += MAX(count / OBJECTS, 1u))
        change_object(s, &entries[i], (unsigned)(i * OBJECTS / MAX(count, 1u)));
    free(entries);
}

static void no_double_use(void *arg, const char *line)
{
    static const char *const never[] = {"owners", "owner too", "users", "second record"};

    if (strncmp(line, "left: ", 6) != 0)
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(never); i++) {
        if (strstr(line, never[i]) != NULL) {
            fprintf(stderr, "after a repair: %s\n", line);
            *(bool *)arg = true;
        }
    }
}

static bool done;

static void run_body(struct sample *p)
{
    struct store_check_report report;
    struct store_repair_report repair;
    struct store *s;
    bool bad = false;

    tamper();
    (void)store_check(p->rt, SAMPLE_PATH, true, NULL, NULL, &report);
    for (unsigned i = 0; i < 2 && store_open(p->rt, SAMPLE_PATH, NULL, &s) == 0; i++) {
        use(s);
        (void)store_close(s);
    }
    tamper();
    if (store_repair(p->rt, SAMPLE_PATH, true, no_double_use, &bad, &repair) == 0) {
        if (store_open(p->rt, SAMPLE_PATH, NULL, &s) == 0) {
            ASSERT(!bad);
            use(s);
            ASSERT(store_close(s) == 0);
        }
    }
    done = true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (world.sim == NULL)
        make_bases();
    script = data;
    script_size = size;
    done = false;
    sample_do(&world, run_body);
    ASSERT(done);
    return 0;
}
