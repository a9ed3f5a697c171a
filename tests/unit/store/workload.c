/* SPDX-License-Identifier: Apache-2.0 */
/* The random workload and its model. */
#include "workload.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"

#define EXTENTS_MAX 4u
#define DATA_MAX    (512u << 10)

uint64_t work_random(struct worker_state *w, uint64_t below)
{
    w->random += 0x9e3779b97f4a7c15ull;
    return below ? hash_u64(w->random) % below : 0;
}

void work_init(struct worker_state *w, unsigned id, uint64_t seed)
{
    memset(w, 0, sizeof(*w));
    w->id = id;
    w->random = hash_u64(seed * 1000 + id + 1);
    for (unsigned i = 0; i < WORK_OBJECTS; i++)
        w->objects[i].blocks = calloc(WORK_BLOCKS, sizeof(uint8_t *));
}

static void object_clear(struct model_object *o)
{
    for (unsigned i = 0; i < WORK_BLOCKS; i++) {
        free(o->blocks[i]);
        o->blocks[i] = NULL;
    }
}

static void object_free(struct model_object *o)
{
    if (o->blocks == NULL)
        return;
    object_clear(o);
    free(o->blocks);
    o->blocks = NULL;
}

static uint8_t **blocks_copy(const struct model_object *from)
{
    uint8_t **blocks = calloc(WORK_BLOCKS, sizeof(uint8_t *));

    for (unsigned i = 0; i < WORK_BLOCKS; i++) {
        if (from->blocks[i] != NULL) {
            blocks[i] = malloc(STORE_BLOCK);
            memcpy(blocks[i], from->blocks[i], STORE_BLOCK);
        }
    }
    return blocks;
}

void work_done(struct worker_state *w)
{
    for (unsigned i = 0; i < WORK_OBJECTS; i++)
        object_free(&w->objects[i]);
    object_free(&w->before);
}

struct oid work_oid(const struct worker_state *w, unsigned i)
{
    return (struct oid){.vid = 100 + w->id, .index = i, .group = (uint16_t)(i % 3)};
}

static void fail(struct worker_state *w, unsigned i, const char *what, int64_t a, int64_t b)
{
    if (w->error[0] == '\0')
        snprintf(w->error, sizeof(w->error), "worker %u object %u after %llu changes: %s %lld %lld",
                 w->id, i, (unsigned long long)w->done_count, what, (long long)a, (long long)b);
}

/* --- ranges --- */

/* Mostly low blocks, sometimes around leaf borders and far out (indirect). */
static uint32_t random_offset(struct worker_state *w)
{
    static const uint32_t bases[] = {0, 0, 0, 0, (2u << 20) - 65536, (8u << 20) - 65536, 30u << 20};
    uint32_t offset =
        bases[work_random(w, ARRAY_SIZE(bases))] + (uint32_t)work_random(w, 256 << 10);

    return work_random(w, 3) ? ALIGN_DOWN(offset, STORE_BLOCK) : offset;
}

static uint32_t random_length(struct worker_state *w)
{
    switch (work_random(w, 6)) {
    case 0:
        return 1 + (uint32_t)work_random(w, 6000);
    case 1:
        return (uint32_t)(1 + work_random(w, 32)) * STORE_BLOCK;
    case 2:
        return 1 + (uint32_t)work_random(w, 100000);
    default:
        return STORE_BLOCK;
    }
}

static unsigned random_extents(struct worker_state *w, struct store_extent *extents,
                               bool may_be_none)
{
    unsigned n = 1 + (work_random(w, 3) == 0 ? (unsigned)work_random(w, EXTENTS_MAX) : 0);
    uint32_t at = random_offset(w);

    if (may_be_none && work_random(w, 2))
        return 0;
    for (unsigned i = 0; i < n; i++) {
        extents[i] = (struct store_extent){at, random_length(w)};
        at += extents[i].length + (uint32_t)work_random(w, 10000);
        if (work_random(w, 2))
            at = ALIGN_UP(at, STORE_BLOCK);
    }
    return n;
}

/* --- the model --- */

static void model_write(struct model_object *o, uint32_t offset, const uint8_t *data,
                        uint32_t length)
{
    while (length > 0) {
        uint32_t b = offset / STORE_BLOCK, within = offset % STORE_BLOCK;
        uint32_t n = MIN(STORE_BLOCK - within, length);
        if (o->blocks[b] == NULL && data == NULL) {
            offset += n;
            length -= n;
            continue;
        }
        if (o->blocks[b] == NULL)
            o->blocks[b] = calloc(1, STORE_BLOCK);
        if (data != NULL) {
            memcpy(o->blocks[b] + within, data, n);
            data += n;
        } else if (n == STORE_BLOCK) {
            free(o->blocks[b]);
            o->blocks[b] = NULL;
        } else {
            memset(o->blocks[b] + within, 0, n);
        }
        offset += n;
        length -= n;
    }
}

static void model_reset(struct model_object *o)
{
    object_clear(o);
    o->exists = false;
    o->version.value = 0;
    o->meta_version = 0;
    o->meta_length = 0;
}

/* --- changes --- */

struct attempt {
    struct store_change c;
    struct store_extent extents[EXTENTS_MAX];
    struct iovec iov[8];
    uint8_t *data, *memory;
    size_t bytes;
};

static void fill_data(struct worker_state *w, struct attempt *a)
{
    bool aligned = work_random(w, 2);
    size_t at = 0;

    for (unsigned i = 0; i < a->c.extent_count; i++)
        a->bytes += a->extents[i].length;
    a->memory = aligned_alloc(STORE_BLOCK, ALIGN_UP(a->bytes + 2 * STORE_BLOCK, STORE_BLOCK));
    a->data = a->memory + (aligned ? 0 : 1 + work_random(w, 4000));
    for (size_t i = 0; i < a->bytes; i++) {
        if (i % 512 == 0)
            at = work_random(w, 1 << 30);
        a->data[i] = (uint8_t)(at + i * 7);
    }
    if (a->c.kind == STORE_INSTALL && work_random(w, 2)) /* zero blocks become holes */
        memset(a->data, 0, MIN(a->bytes, (size_t)3 * STORE_BLOCK));
    at = 0;
    for (unsigned n = 0; n < ARRAY_SIZE(a->iov); n++) {
        size_t length = a->bytes - at;
        if (n + 1 < ARRAY_SIZE(a->iov) && work_random(w, 2))
            length = MIN(length, aligned ? STORE_BLOCK * (1 + work_random(w, 8))
                                         : 1 + work_random(w, 20000));
        a->iov[n] = (struct iovec){a->data + at, length};
        at += length;
        a->c.iov_count = n + 1;
        if (at == a->bytes)
            break;
    }
    a->c.iov = a->iov;
}

static struct version next_version(struct worker_state *w)
{
    return version_make((struct term){3}, ++w->sequence);
}

static void keep_before(struct worker_state *w, unsigned i)
{
    struct model_object *o = &w->objects[i];

    object_free(&w->before);
    w->before = *o;
    w->before.blocks = blocks_copy(o);
    w->busy_object = i;
    w->busy = true;
}

static void undo(struct worker_state *w)
{
    object_free(&w->objects[w->busy_object]);
    w->objects[w->busy_object] = w->before;
    w->before.blocks = NULL;
}

static void model_extents(struct model_object *o, const struct attempt *a)
{
    size_t at = 0;

    for (unsigned k = 0; k < a->c.extent_count; k++) {
        const struct store_extent *e = &a->extents[k];
        if (a->c.kind == STORE_PUNCH)
            model_write(o, e->offset, NULL, e->length);
        else
            model_write(o, e->offset, a->data + at, e->length);
        at += e->length;
    }
}

static void model_apply(struct worker_state *w, unsigned i, unsigned source,
                        const struct attempt *a)
{
    struct model_object *o = &w->objects[i];

    if (a->c.kind == STORE_REMOVE) {
        bool existed = o->exists;
        model_reset(o);
        if (existed)
            o->tombstone = a->c.next;
        return;
    }
    if (a->c.kind == STORE_CLONE) {
        object_free(o);
        o->blocks = blocks_copy(&w->objects[source]);
    }
    if (a->c.kind == STORE_INSTALL)
        object_clear(o);
    if (!o->exists) {
        o->meta_version = 0;
        o->meta_length = 0;
    }
    model_extents(o, a);
    o->exists = true;
    o->version = a->c.next;
    o->tombstone.value = 0;
}

static enum store_change_kind random_kind(struct worker_state *w)
{
    uint64_t x = work_random(w, 20);

    return x < 12   ? STORE_WRITE
           : x < 15 ? STORE_CLONE
           : x < 17 ? STORE_PUNCH
           : x < 18 ? STORE_INSTALL
                    : STORE_REMOVE;
}

static struct version random_prev(struct worker_state *w, const struct model_object *o)
{
    return o->exists ? o->version : STORE_PREV_NONE;
}

static fiber_fn int change_step(struct worker_state *w, struct store *s)
{
    unsigned i = (unsigned)work_random(w, WORK_OBJECTS),
             source = (unsigned)work_random(w, WORK_OBJECTS);
    struct model_object *o = &w->objects[i];
    struct attempt a = {.bytes = 0};
    struct version current;
    int r;

    a.c.kind = random_kind(w);
    if (a.c.kind == STORE_CLONE && (o->exists || source == i || !w->objects[source].exists))
        a.c.kind = o->exists && work_random(w, 2) ? STORE_REMOVE : STORE_WRITE;
    a.c.oid = work_oid(w, i);
    a.c.source = work_oid(w, source);
    a.c.prev = random_prev(w, o);
    a.c.next = next_version(w);
    if (a.c.kind != STORE_REMOVE) {
        a.c.extents = a.extents;
        a.c.extent_count = random_extents(w, a.extents, a.c.kind == STORE_CLONE);
    }
    if (a.c.kind != STORE_REMOVE && a.c.kind != STORE_PUNCH)
        fill_data(w, &a);
    keep_before(w, i);
    model_apply(w, i, source, &a);
    r = store_apply(s, &a.c, &current);
    free(a.memory);
    if (r == -ENOSPC) {
        w->saw_enospc = true;
        if (a.c.kind == STORE_REMOVE)
            fail(w, i, "a removal got ENOSPC", a.c.kind, 0);
        undo(w);
        r = 0;
    } else if (r != 0 && r != -EIO && r != -ECANCELED) {
        fail(w, i, "a change failed", a.c.kind, r);
    }
    return r;
}

static fiber_fn int meta_step(struct worker_state *w, struct store *s)
{
    unsigned i = (unsigned)work_random(w, WORK_OBJECTS);
    struct model_object *o = &w->objects[i];
    struct oid oid = work_oid(w, i);
    size_t length =
        work_random(w, 3) ? work_random(w, 60) : work_random(w, STORE_META_SIZE_MAX + 1);
    uint8_t meta[STORE_META_SIZE_MAX];
    bool exists = o->exists;
    int r;

    for (size_t k = 0; k < length; k++)
        meta[k] = (uint8_t)work_random(w, 256);
    keep_before(w, i);
    if (exists) {
        memcpy(o->meta, meta, length);
        o->meta_length = length;
        o->meta_version += 1 + work_random(w, 5);
    }
    r = store_meta_put(s, &oid, exists ? o->meta_version : 7, meta, length);
    if (!exists) {
        if (r != -ENOENT && r != -EIO && r != -ECANCELED)
            fail(w, i, "meta of an absent object", r, 0);
        return r == -ENOENT ? 0 : r;
    }
    if (r != 0 && r != -EIO && r != -ECANCELED)
        fail(w, i, "meta_put", r, (int64_t)length);
    return r;
}

fiber_fn int work_step(struct worker_state *w, struct store *s)
{
    int r = work_random(w, 6) == 0 ? meta_step(w, s) : change_step(w, s);

    if (r == 0) {
        w->busy = false;
        w->done_count++;
        if (work_random(w, 40) == 0) {
            store_settle(s, (struct vid){100 + w->id}, version_make((struct term){3}, w->sequence));
            for (unsigned i = 0; i < WORK_OBJECTS; i++)
                w->objects[i].tombstone.value = 0;
        }
    }
    return r;
}

/* --- comparing --- */

/* -1: equal, else the first block that differs; -2: the record differs. */
static fiber_fn int compare(struct worker_state *w, struct store *s, unsigned i,
                            const struct model_object *o)
{
    static const uint8_t zero[STORE_BLOCK];
    struct oid oid = work_oid(w, i);
    const size_t step = 1 << 20;
    struct store_stat stat;
    uint8_t *buffer, meta[STORE_META_SIZE_MAX];
    int result = -1;

    store_stat(s, &oid, &stat);
    if (stat.version.value != (o->exists ? o->version.value : 0))
        return -2;
    if (!o->exists)
        return -1;
    if (stat.meta_version != o->meta_version || stat.meta_length != o->meta_length)
        return -3;
    if (o->meta_length > 0) {
        size_t length;
        uint64_t meta_version;
        if (store_meta_get(s, &oid, meta, &length, &meta_version) != 0 ||
            length != o->meta_length || memcmp(meta, o->meta, length) != 0)
            return -4;
    }
    buffer = aligned_alloc(STORE_BLOCK, step);
    for (uint32_t at = 0; result == -1 && at < MAX(stat.end, 1u); at += step) {
        struct version version;
        int r = store_read(s, &oid, at, step, buffer, &version);
        if (r != 0 || version.value != o->version.value)
            result = -5;
        for (uint32_t k = 0; result == -1 && k < step / STORE_BLOCK; k++) {
            const uint8_t *want = o->blocks[at / STORE_BLOCK + k];
            if (memcmp(buffer + k * STORE_BLOCK, want ? want : zero, STORE_BLOCK) != 0)
                result = (int)(at / STORE_BLOCK + k);
        }
    }
    for (uint32_t b = stat.end / STORE_BLOCK; result == -1 && b < WORK_BLOCKS; b++) {
        if (o->blocks[b] != NULL && memcmp(o->blocks[b], zero, STORE_BLOCK) != 0)
            result = (int)b;
    }
    free(buffer);
    return result;
}

fiber_fn void work_verify(struct worker_state *w, struct store *s)
{
    for (unsigned i = 0; i < WORK_OBJECTS; i++) {
        int r = compare(w, s, i, &w->objects[i]);
        if (r != -1 && w->busy && w->busy_object == i) {
            r = compare(w, s, i, &w->before);
            if (r == -1)
                undo(w);
        }
        if (r != -1)
            fail(w, i,
                 w->busy && w->busy_object == i ? "neither as before nor as after" : "differs", r,
                 (int64_t)w->objects[i].version.value & 0xffffff);
    }
    w->busy = false;
}

fiber_fn void work_read(struct worker_state *w, struct store *s)
{
    unsigned i = (unsigned)work_random(w, WORK_OBJECTS);
    const struct model_object *o = &w->objects[i];
    struct oid oid = work_oid(w, i);
    uint32_t offset = random_offset(w), length = random_length(w);
    uint8_t *memory = aligned_alloc(STORE_BLOCK, ALIGN_UP(length + STORE_BLOCK, STORE_BLOCK));
    uint8_t *buffer = memory + (work_random(w, 2) ? 0 : 64);
    struct version version;
    int r = store_read(s, &oid, offset, length, buffer, &version);

    if (r != (o->exists ? 0 : -ENOENT) || (r == 0 && version.value != o->version.value)) {
        if (r != -EIO)
            fail(w, i, "read", r, (int64_t)version.value);
    } else {
        for (uint32_t k = 0; k < length; k++) {
            const uint8_t *b = o->blocks[(offset + k) / STORE_BLOCK];
            if (buffer[k] != (b ? b[(offset + k) % STORE_BLOCK] : 0)) {
                fail(w, i, "read wrong byte at", offset + k, buffer[k]);
                break;
            }
        }
    }
    free(memory);
}
