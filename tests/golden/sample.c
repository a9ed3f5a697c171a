/* SPDX-License-Identifier: Apache-2.0 */
/* See sample.h. Content is made of few different words, so that images compress well. */
#include "sample.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"

#define MIB (1u << 20)

void sample_init(struct sample *p, uint64_t size)
{
    *p = (struct sample){.sim = sim_new(7)};
    p->rt = sim_node_new(p->sim, NULL);
    ASSERT(sim_disk_new(p->sim, SAMPLE_PATH, size, DISK_WRITE_BACK) == 0);
}

void sample_done(struct sample *p)
{
    sim_free(p->sim);
}

struct doing {
    struct sample *p;
    void (*body)(struct sample *p);
};

static void do_fiber(void *arg)
{
    struct doing *d = arg;

    d->body(d->p);
}

void sample_do(struct sample *p, void (*body)(struct sample *p))
{
    struct doing d = {p, body};

    sim_do(p->sim, p->rt, do_fiber, &d);
}

fiber_fn void sample_format(struct sample *p)
{
    struct store_format_options options = {.log_bytes = MIB};

    for (unsigned i = 0; i < sizeof(options.store_uuid.bytes); i++)
        options.store_uuid.bytes[i] = (uint8_t)(0x11 * i + 1);
    ASSERT(store_format(p->rt, SAMPLE_PATH, &options, NULL, NULL) == 0);
}

fiber_fn void sample_open(struct sample *p)
{
    ASSERT(store_open(p->rt, SAMPLE_PATH, NULL, &p->s) == 0);
}

fiber_fn void sample_close(struct sample *p)
{
    ASSERT(store_close(p->s) == 0);
    p->s = NULL;
}

struct oid sample_oid(uint64_t vid, uint32_t index)
{
    return (struct oid){.vid = vid, .index = index, .group = (uint16_t)(index % 5)};
}

static struct version ver(uint64_t term, uint64_t sequence)
{
    return version_make((struct term){term}, sequence);
}

/* Each block repeats a word of its own. */
static void fill_data(uint8_t *data, uint32_t length, uint64_t seed)
{
    for (uint32_t i = 0; i < length; i++) {
        uint64_t word = hash_u64(seed * 1000003 + i / STORE_BLOCK + 1);
        data[i] = (uint8_t)(word >> 8 * (i % 8));
    }
}

/* Changes `count` extents of the object from version (term 1, prev) to (term 1, next). */
static fiber_fn void change(struct sample *p, enum store_change_kind kind, struct oid oid,
                            uint64_t prev, uint64_t next, const struct store_extent *extents,
                            unsigned count)
{
    struct store_change c = {.kind = kind,
                             .oid = oid,
                             .prev = prev != 0 ? ver(1, prev) : STORE_PREV_NONE,
                             .next = ver(1, next),
                             .extents = extents,
                             .extent_count = count};
    struct iovec iov = {0};
    uint8_t *data = NULL;

    for (unsigned i = 0; i < count; i++)
        iov.iov_len += extents[i].length;
    if (kind != STORE_PUNCH && kind != STORE_REMOVE && iov.iov_len > 0) {
        data = aligned_alloc(STORE_BLOCK, ALIGN_UP(iov.iov_len, (size_t)STORE_BLOCK));
        ASSERT(data != NULL);
        fill_data(data, (uint32_t)iov.iov_len, oid.vid * 131 + oid.index * 17 + next);
        iov.iov_base = data;
        c.iov = &iov;
        c.iov_count = 1;
    }
    ASSERT(store_apply(p->s, &c, NULL) == 0);
    free(data);
}

static fiber_fn void put(struct sample *p, struct oid oid, uint64_t prev, uint64_t next,
                         uint32_t offset, uint32_t length)
{
    struct store_extent extent = {offset, length};

    change(p, STORE_WRITE, oid, prev, next, &extent, 1);
}

static fiber_fn void punch(struct sample *p, struct oid oid, uint64_t prev, uint64_t next,
                           uint32_t offset, uint32_t length)
{
    struct store_extent extent = {offset, length};

    change(p, STORE_PUNCH, oid, prev, next, &extent, 1);
}

static fiber_fn void clone(struct sample *p, struct oid source, struct oid oid, uint64_t next,
                           uint32_t offset, uint32_t length)
{
    uint8_t *data = aligned_alloc(STORE_BLOCK, ALIGN_UP(length + 1, STORE_BLOCK));
    struct store_extent extent = {offset, length};
    struct iovec iov = {data, length};
    struct store_change c = {
        .kind = STORE_CLONE, .oid = oid, .source = source, .next = ver(1, next)};

    ASSERT(data != NULL);
    if (length > 0) {
        fill_data(data, length, oid.index * 7 + next);
        c.extents = &extent;
        c.extent_count = 1;
        c.iov = &iov;
        c.iov_count = 1;
    }
    ASSERT(store_apply(p->s, &c, NULL) == 0);
    free(data);
}

static fiber_fn void meta(struct sample *p, struct oid oid, uint64_t meta_version, size_t length)
{
    uint8_t data[STORE_META_SIZE_MAX];

    fill_data(data, (uint32_t)length, oid.index + meta_version);
    ASSERT(store_meta_put(p->s, &oid, meta_version, data, length) == 0);
}

fiber_fn void sample_fill(struct sample *p)
{
    struct uuid cluster = {{0xc1, 0x05, 7}};
    struct store_extent spread[3] = {{0, 4096}, {3 * MIB, 8192}, {7 * MIB, 4096}};

    ASSERT(store_set_cluster(p->s, &cluster) == 0);
    for (uint32_t i = 0; i < 110; i++)
        put(p, sample_oid(1, i), 0, 1 + i, (i % 3) * 4096, i % 4 == 0 ? 10000 : 4096);
    /* more than four leaves, some of them absent; its clone, and a clone of that */
    put(p, sample_oid(2, 0), 0, 10, 0, 100000);
    put(p, sample_oid(2, 0), 10, 11, 20 * MIB, 8192);
    put(p, sample_oid(2, 0), 11, 12, 63 * MIB, 4096);
    put(p, sample_oid(2, 0), 12, 13, 2 * MIB - 4096, 8192);
    clone(p, sample_oid(2, 0), sample_oid(3, 0), 20, 5000, 3000);
    clone(p, sample_oid(3, 0), sample_oid(4, 0), 21, 0, 0);
    put(p, sample_oid(4, 0), 21, 22, 20 * MIB, 4096);
    /* four leaves: what fits the record */
    change(p, STORE_WRITE, sample_oid(2, 1), 0, 30, spread, ARRAY_SIZE(spread));
    punch(p, sample_oid(2, 2), 0, 31, 4096, 8192); /* exists, and is empty */
    put(p, sample_oid(2, 3), 0, 32, 0, 600 * 4096);
    punch(p, sample_oid(2, 3), 32, 33, 5000, 300000);
    meta(p, sample_oid(1, 1), 1, 1);
    meta(p, sample_oid(1, 2), 1, 40);
    meta(p, sample_oid(1, 3), 1, 41);
    meta(p, sample_oid(2, 0), 5, 4096);
    meta(p, sample_oid(2, 2), 9, 300);
    for (uint32_t i = 20; i < 30; i++)
        change(p, STORE_REMOVE, sample_oid(1, i), 1 + i, 200 + i, NULL, 0);
    put(p, sample_oid(5, 0), 0, 1, 0, 4096);
    change(p, STORE_REMOVE, sample_oid(5, 0), 1, 2, NULL, 0);
    store_settle(p->s, (struct vid){5}, ver(1, 2));
    put(p, sample_oid(1, 20), 0, 300, 0, 4096); /* in place of a tombstone */
}

fiber_fn void sample_change(struct sample *p)
{
    struct store_extent two[2] = {{0, 4096}, {12288, 4096}};
    uint8_t bytes[100];
    struct store_meta_change batch[3] = {
        {.oid = sample_oid(1, 40), .meta_version = 3, .meta = bytes, .length = 12},
        {.oid = sample_oid(1, 41), .meta_version = 3, .meta = bytes, .length = 100},
        {.oid = sample_oid(1, 42), .remove = true, .next = ver(1, 400)},
    };

    memset(bytes, 0x3c, sizeof(bytes));
    put(p, sample_oid(1, 50), 51, 500, 0, 4096);
    put(p, sample_oid(1, 51), 52, 501, 4100, 9000);
    put(p, sample_oid(6, 0), 0, 1, 0, 64 * 4096);
    put(p, sample_oid(6, 0), 1, 2, 17 * MIB, 4096);
    clone(p, sample_oid(2, 0), sample_oid(6, 1), 3, 4096, 4096);
    clone(p, sample_oid(6, 0), sample_oid(6, 2), 4, 0, 0);
    punch(p, sample_oid(3, 0), 20, 40, 8192, 40960);
    change(p, STORE_INSTALL, sample_oid(1, 52), 53, 502, two, ARRAY_SIZE(two));
    change(p, STORE_REMOVE, sample_oid(1, 53), 54, 503, NULL, 0);
    change(p, STORE_REMOVE, sample_oid(4, 0), 22, 41, NULL, 0);
    meta(p, sample_oid(1, 54), 1, 4096); /* a commit of two blocks */
    meta(p, sample_oid(1, 3), 2, 10);
    meta(p, sample_oid(1, 2), 2, 900);
    ASSERT(store_meta_apply(p->s, batch, ARRAY_SIZE(batch)) == 0);
    store_settle(p->s, (struct vid){1}, ver(1, 225));
    /* blocks that were freed behind the checkpoint are used again */
    for (uint64_t i = 3; i < 20; i++)
        put(p, sample_oid(6, 0), i - 1, i, 0, 16 * 4096);
}

fiber_fn void sample_tail(struct sample *p)
{
    static uint8_t data[STORE_BLOCK] __attribute__((aligned(STORE_BLOCK)));
    struct store_extent extent = {0, STORE_BLOCK};
    struct iovec iov = {data, STORE_BLOCK};
    struct store_change c = {.kind = STORE_WRITE,
                             .oid = sample_oid(7, 0),
                             .next = ver(1, 1),
                             .extents = &extent,
                             .extent_count = 1,
                             .iov = &iov,
                             .iov_count = 1};

    memset(data, SAMPLE_TAIL_FILL, sizeof(data));
    ASSERT(store_apply(p->s, &c, NULL) == 0);
}

fiber_fn void sample_small(struct sample *p)
{
    put(p, sample_oid(1, 0), 0, 1, 0, 8192);
    put(p, sample_oid(1, 0), 1, 2, 9 * MIB, 4096);
    clone(p, sample_oid(1, 0), sample_oid(1, 1), 3, 0, 4096);
    meta(p, sample_oid(1, 0), 1, 300);
    meta(p, sample_oid(1, 1), 1, 20);
    for (uint32_t i = 2; i < 36; i++)
        punch(p, sample_oid(1, i), 0, 2 + i, 0, 4096);
    change(p, STORE_REMOVE, sample_oid(1, 5), 7, 50, NULL, 0);
}
