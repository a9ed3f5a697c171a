/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Group commit: one fiber writes commits one after the other, another submits data early.
 *
 * G1 The log blocks of a commit are submitted only after the flush of the commit before returned;
 * its data may be written earlier. G2 A commit is answered when its data, its log blocks and one
 * flush after them are done (or all of them were written with FUA, or the device keeps what it has
 * completed). G3 A failed data write, log write or flush is final: what is on disk is then not
 * known any more.
 *
 *    fiber A: record, blocks ─┐             ┌─ data of the next commit goes out here
 *    fiber B: record, blocks ─┼─ gathering ─┤
 *    committer:   … flush │ take │ log+data │ wait │ flush │ apply, wake │ take …
 */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/sharing.h"
#include "store/store_internal.h"

#define COMMIT_BLOCKS_MAX 1024u
#define SETTLE_ROOM       2048u /* bytes of a commit kept for settles */
#define QUIET_NS          NS_PER_S

/* One write of neighbouring pieces. */
struct data_io {
    struct disk_io io;
    struct list link;
    struct store *store;
    struct commit *commit;
    struct iovec iov[DATA_IOV];
};

static void commit_reset(struct commit *c, uint64_t number)
{
    c->number = number;
    c->payload.length = 0;
    c->piece_count = c->piece_submitted = 0;
    c->error = 0;
    c->wanted = false;
    c->footprint = 0;
}

int commit_init(struct store *s)
{
    for (unsigned i = 0; i < ARRAY_SIZE(s->commits); i++) {
        enc_init(&s->commits[i].payload);
        list_init(&s->commits[i].changes);
        wgroup_init(&s->commits[i].io);
    }
    s->gathering = &s->commits[0];
    s->log.commit_blocks_max = MIN(s->super.log_count / 4, COMMIT_BLOCKS_MAX);
    s->log.buffer = aligned_alloc(STORE_BLOCK, (size_t)s->log.commit_blocks_max * STORE_BLOCK);
    return s->log.buffer != NULL ? 0 : -ENOMEM;
}

void commit_done(struct store *s)
{
    while (!list_empty(&s->data_free)) {
        struct data_io *d = list_first(&s->data_free, struct data_io, link);
        list_remove(&d->link);
        free(d);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(s->commits); i++) {
        enc_done(&s->commits[i].payload);
        free(s->commits[i].pieces);
    }
    free(s->settles);
    free(s->log.buffer);
}

size_t commit_bytes_max(const struct store *s)
{
    return (size_t)s->log.commit_blocks_max * LOG_PAYLOAD - SETTLE_ROOM;
}

fiber_fn int commit_room(struct store *s, size_t bytes)
{
    if (bytes > commit_bytes_max(s))
        return -EFBIG;
    while (s->gathering->payload.length + bytes > commit_bytes_max(s)) {
        int r = store_check_writable(s);
        if (r < 0)
            return r;
        commit_kick(s);
        waitq_wait(&s->room);
    }
    /* A record cut off by a lack of memory would make the whole log unreadable. */
    if (enc_reserve(&s->gathering->payload, bytes + SETTLE_ROOM) < 0)
        return -ENOMEM;
    return store_check_writable(s);
}

/* --- data --- */

static void data_done(struct disk_io *io)
{
    struct data_io *d = container_of(io, struct data_io, io);
    struct commit *c = d->commit;

    if (io->result < 0 && c->error == 0)
        c->error = io->result;
    list_push_front(&d->store->data_free, &d->link);
    wgroup_finish(&c->io);
}

static struct data_io *data_io_get(struct store *s)
{
    struct data_io *d;

    if (list_empty(&s->data_free)) {
        d = calloc(1, sizeof(*d));
        if (d == NULL)
            return NULL;
        list_init(&d->link);
        d->store = s;
        return d;
    }
    d = list_first(&s->data_free, struct data_io, link);
    list_remove(&d->link);
    return d;
}

/* Submits what was appended since the last call; neighbours go as one write. */
static void data_submit(struct store *s, struct commit *c)
{
    while (c->piece_submitted < c->piece_count) {
        struct data_io *d = data_io_get(s);
        uint32_t next = 0;
        unsigned n = 0;

        if (d == NULL) {
            c->error = -ENOMEM;
            return;
        }
        while (c->piece_submitted < c->piece_count && n < DATA_IOV) {
            const struct piece *p = &c->pieces[c->piece_submitted];
            if (n > 0 && p->block != next)
                break;
            if (n == 0)
                d->io.offset = block_offset(p->block);
            d->iov[n].iov_base = (void *)p->data;
            d->iov[n].iov_len = (size_t)p->count * STORE_BLOCK;
            next = p->block + p->count;
            n++;
            c->piece_submitted++;
        }
        d->io.op = DISK_WRITE;
        d->io.flags = s->fua ? DISK_IO_FUA : 0;
        d->io.iov = d->iov;
        d->io.iov_count = n;
        d->io.done = data_done;
        d->commit = c;
        wgroup_add(&c->io, 1);
        disk_submit(s->disk, &d->io);
    }
}

int commit_data(struct store *s, uint32_t block, uint32_t count, const uint8_t *data)
{
    struct commit *c = s->gathering;

    ASSERT(((uintptr_t)data & (STORE_BLOCK - 1)) == 0);
    s->stats.data_blocks_written += count;
    if (c->piece_count > c->piece_submitted) {
        struct piece *last = &c->pieces[c->piece_count - 1];
        if (last->block + last->count == block &&
            last->data + (size_t)last->count * STORE_BLOCK == data) {
            last->count += count;
            return 0;
        }
    }
    if (c->piece_count == c->piece_capacity) {
        size_t capacity = c->piece_capacity * 2 + 64;
        struct piece *pieces = realloc(c->pieces, capacity * sizeof(*pieces));
        if (pieces == NULL)
            return -ENOMEM;
        c->pieces = pieces;
        c->piece_capacity = capacity;
    }
    c->pieces[c->piece_count++] = (struct piece){block, count, data};
    return 0;
}

void commit_data_early(struct store *s)
{
    data_submit(s, s->gathering);
}

fiber_fn void commit_pump(void *arg)
{
    struct store *s = arg;

    while (s->mode == STORE_SERVING) {
        if (s->failed == 0)
            data_submit(s, s->gathering);
        waitq_wait(&s->pump_wait);
    }
    wgroup_finish(&s->fibers);
}

/* --- waiting --- */

void commit_kick(struct store *s)
{
    s->gathering->wanted = true;
    if (s->committer_idle)
        waitq_wake_one(&s->commit_wait);
    else
        waitq_wake_one(&s->pump_wait);
}

fiber_fn int commit_wait_mine(struct store *s)
{
    struct waiter w = {.fiber = fiber_current()};

    if (s->failed == 0) {
        list_push_back(&s->gathering->changes, &w.link);
        while (!w.done)
            fiber_suspend();
    }
    return s->failed ? -EIO : 0;
}

fiber_fn int commit_wait_number(struct store *s, uint64_t number)
{
    while (s->committed < number && s->failed == 0)
        waitq_wait(&s->durable);
    return s->committed < number ? -EIO : 0;
}

static void waiters_wake(struct commit *c)
{
    struct waiter *w, *tmp;

    list_for_each_safe (w, tmp, &c->changes, link) {
        list_remove(&w->link);
        w->done = true;
        fiber_wake(w->fiber);
    }
}

void store_fail(struct store *s, int error, const char *what)
{
    if (s->failed == 0) {
        s->failed = error;
        log_error("%s: %s failed (%s); the store has stopped serving, nothing answered is lost%s",
                  s->disk->name, what, err_text(error),
                  error == -ENOSPC && s->disk->sparse
                      ? "; its file system is full: make room there, then start again"
                      : "");
    }
    for (unsigned i = 0; i < ARRAY_SIZE(s->commits); i++) {
        if (s->commits[i].io.pending == 0) /* else the committer does it, the memory is in use */
            waiters_wake(&s->commits[i]);
    }
    waitq_wake_all(&s->room);
    waitq_wake_all(&s->durable);
    waitq_wake_all(&s->space_wait);
    waitq_wake_all(&s->ckpt_done);
    waitq_wake_all(&s->ckpt_wait);
    waitq_wake_all(&s->ckpt_step);
    waitq_wake_all(&s->commit_wait);
}

int store_check_writable(const struct store *s)
{
    if (s->failed || s->read_only)
        return s->failed ? -EIO : -EROFS;
    return s->mode == STORE_CLOSING ? -ECANCELED : 0;
}

/* --- the log --- */

static uint32_t log_blocks_of(const struct commit *c)
{
    return MAX(1u, (uint32_t)((c->payload.length + LOG_PAYLOAD - 1) / LOG_PAYLOAD));
}

/* Cuts the payload into log blocks in s->log.buffer. */
static void log_build(struct store *s, const struct commit *c, uint32_t blocks)
{
    size_t position = 0;

    ASSERT(blocks <= s->log.commit_blocks_max);
    for (uint32_t i = 0; i < blocks; i++) {
        uint8_t *out = s->log.buffer + (size_t)i * STORE_BLOCK;
        size_t n = MIN(c->payload.length - position, LOG_PAYLOAD);
        struct log_header h = {
            .sequence = s->log.sequence + i,
            .commit = c->number,
            .boot = s->log.boot,
            .prev_crc = s->log.prev_crc,
            .flags = (i == 0 ? LOG_BEGIN : 0) | (i + 1 == blocks ? LOG_END : 0),
            .length = (uint16_t)n,
            .index = i,
        };
        if (n > 0)
            memcpy(out + LOG_HEADER_SIZE, c->payload.data + position, n);
        memset(out + LOG_HEADER_SIZE + n, 0, LOG_PAYLOAD - n);
        log_block_encode(s->salt, &h, out);
        s->log.prev_crc = h.crc;
        position += n;
    }
    s->log.sequence += blocks;
    s->stats.log_blocks += blocks;
}

static void log_submit(struct store *s, struct commit *c, uint64_t sequence, uint32_t blocks)
{
    uint32_t done = 0;

    while (done < blocks) {
        uint32_t at = (uint32_t)((sequence + done) % s->super.log_count);
        uint32_t n = MIN(blocks - done, s->super.log_count - at);
        struct data_io *d = data_io_get(s);
        if (d == NULL) {
            c->error = -ENOMEM;
            return;
        }
        d->iov[0].iov_base = s->log.buffer + (size_t)done * STORE_BLOCK;
        d->iov[0].iov_len = (size_t)n * STORE_BLOCK;
        d->io = (struct disk_io){.op = DISK_WRITE,
                                 .flags = s->fua ? DISK_IO_FUA : 0,
                                 .offset = block_offset(s->super.log_first + at),
                                 .iov = d->iov,
                                 .iov_count = 1,
                                 .done = data_done};
        d->commit = c;
        wgroup_add(&c->io, 1);
        disk_submit(s->disk, &d->io);
        done += n;
    }
}

fiber_fn int store_flush_disk(struct store *s)
{
    if (s->unsafe_no_flush)
        return 0;
    s->stats.flushes++;
    return disk_flush(s->disk);
}

/* Writes c's log blocks next to its data, and makes both durable (G1, G2). */
static fiber_fn int commit_write(struct store *s, struct commit *c)
{
    uint32_t blocks = log_blocks_of(c);
    uint64_t sequence = s->log.sequence;
    const char *what = "writing to the log or to data blocks";
    int r;

    log_build(s, c, blocks);
    log_submit(s, c, sequence, blocks);
    wgroup_wait(&c->io);
    r = c->error;
    if (r == 0 && !s->fua && s->disk->durability != DISK_WRITE_THROUGH) {
        what = "a flush";
        r = store_flush_disk(s);
    }
    if (r < 0) {
        store_fail(s, r, what);
        return r;
    }
    s->log.last_is_empty = c->payload.length == 0;
    s->stats.commits++;
    return 0;
}

static int commit_apply(struct store *s, struct commit *c)
{
    struct dec d;
    int r = 0;

    dec_init(&d, c->payload.data, c->payload.length);
    while (r == 0 && dec_left(&d) > 0) {
        struct record rec;
        r = record_take(&d, &rec);
        ASSERT(r == 0);
        r = apply_record(s, &rec, APPLY_RUNNING);
    }
    s->committed = c->number;
    c->footprint = 0; /* part of ckpt_need() now */
    log_note_applied(s);
    if (r == 0)
        r = space_release(&s->space, &s->freed);
    return r == 0 ? store_check_twice(s) : r;
}

/* --- the committer --- */

static void settles_append(struct store *s, struct commit *c)
{
    size_t n = MIN(s->settle_count, SETTLE_ROOM / RECORD_SETTLE_SIZE);

    if (enc_reserve(&c->payload, n * RECORD_SETTLE_SIZE) < 0)
        return; /* with a later commit */
    for (size_t i = 0; i < n; i++)
        record_settle(&c->payload, s->settles[i].vid, s->settles[i].stable);
    if (n > 0)
        memmove(s->settles, s->settles + n, (s->settle_count - n) * sizeof(*s->settles));
    s->settle_count -= n;
}

static uint64_t log_used(const struct store *s)
{
    return s->log.sequence - s->log.tail;
}

/* Waits until the ring has room for the commit; requests wait with it, they do not fail. */
static fiber_fn int log_wait_space(struct store *s, uint32_t blocks)
{
    while (log_used(s) + blocks > s->super.log_count) {
        if (s->failed)
            return -EIO;
        if (s->mode == STORE_CLOSING && s->ckpt == NULL) {
            (void)ckpt_write(s); /* the checkpointer has ended */
        } else {
            ckpt_want(s);
            waitq_wait(&s->ckpt_done);
        }
    }
    return 0;
}

/* However large the ring: an open after a crash reads and applies what was logged since. */
#define LOG_REPLAY_BLOCKS 65536u /* 256 MiB */

static void checkpoint_if_due(struct store *s)
{
    if (s->ckpt != NULL)
        return; /* what it gives back is not counted yet */
    /* The last: a checkpoint needs free blocks before it gives others back. */
    if (log_used(s) > MIN(s->super.log_count / 2, LOG_REPLAY_BLOCKS) ||
        cache_dirty_bytes(s) > s->cache.bytes_max / 2 ||
        (space_usable(&s->space) < 2 * s->reserve && ckpt_need(s) > space_usable(&s->space) / 2))
        ckpt_want(s);
}

/* Takes what has gathered; what comes from now on goes to the next commit. */
static struct commit *commit_take(struct store *s)
{
    struct commit *c = s->gathering;
    struct commit *next = c == &s->commits[0] ? &s->commits[1] : &s->commits[0];

    ASSERT(next->io.pending == 0 && list_empty(&next->changes));
    data_submit(s, c);
    settles_append(s, c);
    ASSERT(c->payload.error == 0); /* commit_room() */
    commit_reset(next, c->number + 1);
    s->running = c;
    s->gathering = next;
    waitq_wake_all(&s->room);
    return c;
}

/* Nothing of the commit is in the log yet: what is known to be incomplete does not get there. */
static fiber_fn int commit_give_up(struct store *s, struct commit *c)
{
    wgroup_wait(&c->io);
    if (c->error != 0)
        store_fail(s, c->error, "writing to data blocks");
    return -EIO;
}

static fiber_fn void commit_one(struct store *s)
{
    struct commit *c = commit_take(s);
    int r = log_wait_space(s, log_blocks_of(c));

    if (r == 0 && c->error == 0)
        r = commit_write(s, c);
    else
        r = commit_give_up(s, c);
    if (r == 0) {
        r = sharing_prepare(s, c);    /* its blocks are pending still (N2) */
        if (r == 0 && s->failed == 0) /* else its callers are gone, and what it needs with them */
            r = commit_apply(s, c);
        if (r < 0)
            store_fail(s, r, "applying a commit");
    }
    s->running = NULL;
    waiters_wake(c);
    if (!waitq_empty(&s->durable))
        waitq_wake_all(&s->durable);
    if (!waitq_empty(&s->space_wait))
        waitq_wake_all(&s->space_wait);
    if (s->failed)
        return;
    checkpoint_if_due(s);
    ahead_if_due(s);
    scrub_changed(s);
    discard_if_due(s);
    leaf_cache_shrink(s);
    if (!s->log.last_is_empty) {
        s->last_commit_ns = clock_now(s->rt);
        if (!timer_armed(&s->quiet))
            timer_arm(&s->quiet, s->last_commit_ns + QUIET_NS);
    }
}

fiber_fn void commit_main(void *arg)
{
    struct store *s = arg;

    for (;;) {
        if (s->failed) {
            wgroup_wait(&s->gathering->io);
            waiters_wake(s->gathering);
        }
        if (s->failed || !s->gathering->wanted) {
            if (s->mode == STORE_CLOSING)
                break;
            s->committer_idle = true;
            waitq_wait(&s->commit_wait);
            s->committer_idle = false;
            continue;
        }
        ckpt_pace(s);
        if (s->failed)
            continue; /* meanwhile: who waited is gone, and the data with him */
        commit_one(s);
        /* Those just answered are often about to send the next change: let them join. */
        fiber_yield();
    }
    wgroup_finish(&s->fibers);
}

void commit_quiet(struct timer *t)
{
    struct store *s = container_of(t, struct store, quiet);
    uint64_t due = s->last_commit_ns + QUIET_NS;

    if (s->log.last_is_empty || s->failed || s->mode != STORE_SERVING)
        return;
    if (due > clock_now(s->rt))
        timer_arm(&s->quiet, due);
    else
        commit_kick(s);
}

fiber_fn int commit_write_empty(struct store *s)
{
    struct commit *c = s->gathering;
    int r;

    ASSERT(c->payload.length == 0);
    c->number = s->committed + 1;
    r = commit_write(s, c);
    if (r < 0)
        return r;
    s->committed = c->number;
    log_note_applied(s);
    commit_reset(c, s->committed + 1);
    return 0;
}

static void payload_each_block(const struct commit *c, void (*fn)(void *arg, uint32_t block),
                               void *arg)
{
    struct dec d;

    dec_init(&d, c->payload.data, c->payload.length);
    while (dec_left(&d) > 0) {
        struct record rec;
        int r = record_take(&d, &rec);
        ASSERT(r == 0);
        for (unsigned i = 0; i < rec.run_count; i++) {
            struct record_run run = record_run_get(&rec, i);
            for (uint32_t k = 0; k < run.count; k++)
                fn(arg, run.block + k);
        }
    }
}

void commit_each_pending(struct store *s, void (*fn)(void *arg, uint32_t block), void *arg)
{
    payload_each_block(s->gathering, fn, arg);
    if (s->running != NULL)
        payload_each_block(s->running, fn, arg);
}
