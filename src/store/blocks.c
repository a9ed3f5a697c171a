/* SPDX-License-Identifier: Apache-2.0 */
/* Reading structure blocks and checking them against their pointers (L1). */
#define LOG_MODULE "store"
#include <stdarg.h>
#include <stdio.h>
#include "base/err.h"
#include "base/log.h"
#include "store/store_internal.h"

#define BATCH 64u

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

struct batch_io {
    struct disk_io io;
    struct iovec iov;
    struct wgroup *group;
};

static void batch_io_done(struct disk_io *io)
{
    wgroup_finish(container_of(io, struct batch_io, io)->group);
}

static fiber_fn int read_batch(struct store *s, const struct block_want *wants, size_t n,
                               struct batch_io *ios, uint8_t *buffer)
{
    struct space_reader reader;
    struct wgroup group;
    int r = 0;

    wgroup_init(&group);
    space_reader_begin(&s->space, &reader); /* as in block_read_one() */
    for (size_t i = 0; i < n; i++) {
        const uint8_t *unwritten = ckpt_unwritten(s, wants[i].ptr.block);
        ios[i] = (struct batch_io){.group = &group};
        if (unwritten != NULL) {
            memcpy(buffer + i * STORE_BLOCK, unwritten, STORE_BLOCK);
            continue;
        }
        ios[i].iov = (struct iovec){buffer + i * STORE_BLOCK, STORE_BLOCK};
        ios[i].io.op = DISK_READ;
        ios[i].io.offset = block_offset(wants[i].ptr.block);
        ios[i].io.iov = &ios[i].iov;
        ios[i].io.iov_count = 1;
        ios[i].io.done = batch_io_done;
        wgroup_add(&group, 1);
        disk_submit(s->disk, &ios[i].io);
    }
    wgroup_wait(&group);
    if (space_reader_end(&s->space, &reader))
        waitq_wake_all(&s->space_wait);
    for (size_t i = 0; r == 0 && i < n; i++) {
        r = ios[i].io.result;
        if (r == 0)
            r = check(s, &wants[i], buffer + i * STORE_BLOCK);
    }
    return r;
}

fiber_fn int blocks_read(struct store *s, const struct block_want *wants, size_t count,
                         int (*fn)(void *arg, const struct block_want *w, const uint8_t *data),
                         void *arg)
{
    uint8_t *buffer = aligned_alloc(STORE_BLOCK, (size_t)BATCH * STORE_BLOCK);
    struct batch_io *ios = malloc(BATCH * sizeof(*ios));
    int r = buffer != NULL && ios != NULL ? 0 : -ENOMEM;

    for (size_t i = 0; r == 0 && i < count; i++)
        r = check_range(s, &wants[i]);
    for (size_t at = 0; r == 0 && at < count; at += BATCH) {
        size_t n = MIN(count - at, BATCH);
        r = read_batch(s, wants + at, n, ios, buffer);
        for (size_t i = 0; r == 0 && i < n; i++)
            r = fn(arg, &wants[at + i], buffer + i * STORE_BLOCK);
    }
    free(ios);
    free(buffer);
    return r;
}
