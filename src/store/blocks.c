/* SPDX-License-Identifier: Apache-2.0 */
/* Reading structure blocks and checking them against their pointers (L1). */
#define LOG_MODULE "store"
#include <stdarg.h>
#include <stdio.h>
#include "base/err.h"
#include "base/log.h"
#include "store/store_internal.h"

#define BATCH      256u /* blocks */
#define RUN_BLOCKS 32u  /* neighbours in one request */

void store_problem(struct store *s, uint64_t block, const char *format, ...)
{
    char text[160];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    snprintf(s->problem, sizeof(s->problem), "offset %llu: %s",
             (unsigned long long)block * STORE_BLOCK, text);
    log_error("%s: %s", s->disk->name, s->problem);
}

int store_check_twice(struct store *s)
{
    if (s->space.twice == 0)
        return 0;
    store_problem(s, s->space.twice,
                  "a block, or one near it, was given back by more users than it has: free space "
                  "or share counts are damaged; sheep check --repair mends them");
    return -EUCLEAN;
}

static const char *type_name(unsigned type)
{
    switch (type) {
    case PAGE_INDEX:
        return "object index page";
    case PAGE_BITMAP:
        return "bitmap page";
    case PAGE_SHARE:
        return "share count page";
    case PAGE_LEAF:
        return "object map";
    case PAGE_META:
        return "object meta";
    case PAGE_INDIRECT:
        return "object map index";
    default:
        return "page table";
    }
}

static int check(struct store *s, const struct block_want *w, const uint8_t *data)
{
    if (layout_crc(s->salt, w->type, w->position, data) == w->ptr.crc)
        return 0;
    s->stats.checksum_errors++;
    store_problem(s, w->ptr.block, "checksum error in %s %u", type_name(w->type), w->position);
    return -EUCLEAN;
}

static int check_range(struct store *s, const struct block_want *w)
{
    if (space_covers(&s->space, w->ptr.block))
        return 0;
    store_problem(s, w->ptr.block, "pointer to %s %u leads outside the store", type_name(w->type),
                  w->position);
    return -EUCLEAN;
}

fiber_fn int block_read_one(struct store *s, const struct block_want *w, uint8_t *buffer)
{
    const uint8_t *unwritten = ckpt_unwritten(s, w->ptr.block);
    struct space_reader reader;
    int r = check_range(s, w);

    if (r < 0)
        return r;
    if (unwritten != NULL) {
        memcpy(buffer, unwritten, STORE_BLOCK);
        return check(s, w, buffer);
    }
    space_reader_begin(&s->space, &reader); /* a checkpoint may give the block up meanwhile (S3) */
    r = disk_read(s->disk, block_offset(w->ptr.block), buffer, STORE_BLOCK);
    if (space_reader_end(&s->space, &reader))
        waitq_wake_all(&s->space_wait);
    return r == 0 ? check(s, w, buffer) : r;
}

/* --- many --- */

struct batch_io {
    struct disk_io io;
    struct iovec iov;
    struct wgroup *group;
};

/* Blocks being read; while one batch is worked on the next one is on its way. */
struct batch {
    const struct block_want *const *wants;
    size_t count, io_count;
    struct batch_io *ios; /* owned, as is the buffer */
    uint8_t *buffer;
    struct wgroup group;
    struct space_reader reader;
};

static int batch_init(struct batch *b, size_t count)
{
    b->count = b->io_count = 0;
    wgroup_init(&b->group);
    b->ios = malloc(count * sizeof(*b->ios));
    b->buffer = aligned_alloc(STORE_BLOCK, count * STORE_BLOCK);
    return b->ios != NULL && b->buffer != NULL ? 0 : -ENOMEM;
}

static void batch_done(struct batch *b)
{
    free(b->ios);
    free(b->buffer);
}

static void batch_io_done(struct disk_io *io)
{
    wgroup_finish(container_of(io, struct batch_io, io)->group);
}

/* One request for neighbours: the wants are sorted by block. */
static void batch_submit(struct store *s, struct batch *b, size_t first, size_t count)
{
    struct batch_io *bio = &b->ios[b->io_count++];

    *bio = (struct batch_io){.group = &b->group};
    bio->iov = (struct iovec){b->buffer + first * STORE_BLOCK, count * STORE_BLOCK};
    bio->io.op = DISK_READ;
    bio->io.offset = block_offset(b->wants[first]->ptr.block);
    bio->io.iov = &bio->iov;
    bio->io.iov_count = 1;
    bio->io.done = batch_io_done;
    wgroup_add(&b->group, 1);
    disk_submit(s->disk, &bio->io);
}

static void batch_begin(struct store *s, struct batch *b, const struct block_want *const *wants,
                        size_t count)
{
    b->wants = wants;
    b->count = count;
    b->io_count = 0;
    space_reader_begin(&s->space, &b->reader); /* as in block_read_one() */
    for (size_t i = 0, n; i < count; i += n) {
        const uint8_t *unwritten = ckpt_unwritten(s, wants[i]->ptr.block);
        n = 1;
        if (unwritten != NULL) {
            memcpy(b->buffer + i * STORE_BLOCK, unwritten, STORE_BLOCK);
            continue;
        }
        while (i + n < count && n < RUN_BLOCKS &&
               wants[i + n]->ptr.block == wants[i]->ptr.block + n &&
               ckpt_unwritten(s, wants[i + n]->ptr.block) == NULL)
            n++;
        batch_submit(s, b, i, n);
    }
}

/* Waits, checks, and hands out what was read. */
static fiber_fn int batch_end(struct store *s, struct batch *b,
                              int (*fn)(void *arg, const struct block_want *w, const uint8_t *data),
                              void *arg, int r)
{
    if (b->count == 0)
        return r;
    wgroup_wait(&b->group);
    if (space_reader_end(&s->space, &b->reader))
        waitq_wake_all(&s->space_wait);
    for (size_t i = 0; r == 0 && i < b->io_count; i++)
        r = b->ios[i].io.result;
    for (size_t i = 0; r == 0 && i < b->count; i++)
        r = check(s, b->wants[i], b->buffer + i * STORE_BLOCK);
    for (size_t i = 0; r == 0 && i < b->count; i++)
        r = fn(arg, b->wants[i], b->buffer + i * STORE_BLOCK);
    b->count = 0;
    return r;
}

static int compare_wants(const void *a, const void *b)
{
    const struct block_want *const *x = a, *const *y = b;

    return (*x)->ptr.block < (*y)->ptr.block ? -1 : (*x)->ptr.block > (*y)->ptr.block;
}

static fiber_fn int read_sorted(
    struct store *s, const struct block_want *const *wants, size_t count,
    int (*fn)(void *arg, const struct block_want *w, const uint8_t *data), void *arg)
{
    struct batch batches[2];
    size_t each = MIN(count, BATCH), at = 0;
    int r = batch_init(&batches[0], each), r_other = batch_init(&batches[1], each);

    r = MIN(r, r_other);
    for (unsigned k = 0; r == 0 && at < count; k++) {
        size_t n = MIN(count - at, BATCH);
        batch_begin(s, &batches[k % 2], wants + at, n);
        at += n;
        r = batch_end(s, &batches[(k + 1) % 2], fn, arg, 0);
    }
    for (unsigned k = 0; k < 2; k++)
        r = batch_end(s, &batches[k], fn, arg, r);
    batch_done(&batches[0]);
    batch_done(&batches[1]);
    return r;
}

fiber_fn int blocks_read(struct store *s, const struct block_want *wants, size_t count,
                         int (*fn)(void *arg, const struct block_want *w, const uint8_t *data),
                         void *arg)
{
    const struct block_want **sorted;
    int r = 0;

    if (count == 0)
        return 0;
    sorted = malloc(count * sizeof(const struct block_want *));
    if (sorted == NULL)
        return -ENOMEM;
    for (size_t i = 0; r == 0 && i < count; i++) {
        sorted[i] = &wants[i];
        r = check_range(s, &wants[i]);
    }
    if (r == 0) {
        qsort(sorted, count, sizeof(const struct block_want *), compare_wants);
        r = read_sorted(s, (const struct block_want *const *)sorted, count, fn, arg);
    }
    free(sorted);
    return r;
}
