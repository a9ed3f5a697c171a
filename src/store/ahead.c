/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zeroing ahead: in a file, room that has been written before waits for the allocator, because the
 * first write to a block that the file system only reserves makes the next flush commit its
 * journal.
 *
 * E1 Only free blocks are written, and they are held meanwhile (A1): live data cannot be touched.
 * E2 The frontier (A3) moves over a chunk when all its free blocks are written. Those that were
 *    taken have been written by whom they belong to. The superblock follows at checkpoints; after a
 *    crash the chunks since then are done again, where they are free.
 * E3 Guests come first: while they are at work, zeroing takes a quarter of the time. With enough
 *    ahead it rests.
 * E4 In a sparse file the store grows by this alone: the allocator stays below the frontier, so
 * that a full file system is met here, where nothing is lost by it, and not by a guest's write.
 */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/store_internal.h"

#define WORD_BLOCKS     64u
#define CHUNK_WORDS_MAX 64u            /* 16 MiB at a time */
#define TARGET_DEFAULT  (256ull << 20) /* bytes */
#define BUSY_PAUSES     3u             /* E3: per time at work */
#define PAUSE_MAX_NS    NS_PER_S
#define RETRY_AFTER_NS  (5 * NS_PER_S)

void ahead_init(struct store *s, const struct store_open_options *o)
{
    struct ahead *a = &s->ahead;
    bool is_file = s->disk->kind == DISK_FILE;
    uint64_t bytes = o->zero_ahead_bytes != 0 ? o->zero_ahead_bytes : TARGET_DEFAULT;

    a->off = !is_file || o->no_zero_ahead || s->super.zeroed >= s->space.count;
    a->target_words = (uint32_t)MIN(bytes / (WORD_BLOCKS * STORE_BLOCK), (uint64_t)UINT32_MAX);
    a->target_words = MAX(a->target_words, 1u);
    if (a->off)
        return;
    space_set_frontier(&s->space, s->super.zeroed);
    s->space.bounded = s->disk->sparse;
}

uint32_t ahead_frontier(const struct store *s)
{
    bool ignored = s->ahead.off && s->disk->kind == DISK_FILE;

    return ignored ? s->super.zeroed : s->space.frontier;
}

static uint32_t chunk_blocks(const struct store *s)
{
    return MIN(MAX(s->ahead.target_words / 4, 1u), CHUNK_WORDS_MAX) * WORD_BLOCKS;
}

static bool at_end(const struct store *s)
{
    return s->space.frontier == s->space.count;
}

static bool is_due(const struct store *s)
{
    const struct ahead *a = &s->ahead;

    if (a->off || at_end(s) || s->failed)
        return false;
    if (!a->wanted && s->space.ready_words >= (a->target_words + 1) / 2)
        return false;
    return !a->stuck || clock_now(s->rt) >= a->retry_ns;
}

void ahead_if_due(struct store *s)
{
    if (s->ahead.idle && is_due(s))
        waitq_wake_all(&s->ahead.wait);
}

bool ahead_grow(struct store *s)
{
    if (!s->space.bounded || s->ahead.off || at_end(s))
        return false;
    s->ahead.wanted = true;
    ahead_if_due(s);
    return !s->ahead.stuck;
}

uint32_t ahead_unreachable(const struct store *s)
{
    return s->space.bounded && s->ahead.stuck ? s->space.free_count - s->space.ready : 0;
}

/* How many blocks may be held: what checkpoints may need stays out of it. */
static uint32_t room(const struct store *s)
{
    uint64_t kept = s->reserve + ckpt_need(s);

    if (s->space.bounded)
        return chunk_blocks(s); /* beyond the frontier nobody misses them */
    return s->space.free_count > kept ? (uint32_t)(s->space.free_count - kept) : 0;
}

static fiber_fn int zero_run(struct store *s, const struct space_hold *h)
{
    int r = disk_zero(s->disk, block_offset(h->start), (uint64_t)h->count * STORE_BLOCK);

    s->stats.zeroed_blocks += r == 0 ? h->count : 0;
    return r;
}

/* Writes the free blocks of the chunk at the frontier, and moves it (E2). -EAGAIN: the disk is too
 * full to hold anything. */
static fiber_fn int zero_chunk(struct store *s)
{
    struct space *sp = &s->space;
    uint32_t at = sp->frontier, end = MIN(at + chunk_blocks(s), sp->count);
    struct space_hold h;
    int r = 0;

    if (end < at)
        end = sp->count;
    if (room(s) == 0)
        return -EAGAIN;
    while (r == 0 && space_hold_begin(sp, &h, at, end, MIN(room(s), chunk_blocks(s)))) {
        r = zero_run(s, &h);
        space_hold_end(sp, &h);
        at = h.start - sp->first + h.count;
        if (r == 0 && (s->failed || s->mode != STORE_SERVING))
            r = -ECANCELED;
        if (r == 0 && room(s) == 0)
            r = -EAGAIN;
    }
    if (r == 0)
        space_set_frontier(sp, end);
    if (!waitq_empty(&s->space_wait))
        waitq_wake_all(&s->space_wait);
    return r;
}

static void note_result(struct store *s, int r)
{
    struct ahead *a = &s->ahead;

    if (r == 0 && a->stuck)
        log_info("%s: zeroing ahead goes on", s->disk->name);
    if (r == 0) {
        a->stuck = false;
        return;
    }
    if (!a->stuck && r == -ENOSPC && s->space.bounded)
        log_error("%s: its file system is full: the store cannot grow beyond %u of %u MiB until "
                  "there is room",
                  s->disk->name, s->space.frontier / 256, s->space.count / 256);
    else if (!a->stuck && r != -EAGAIN)
        log_warn("%s: zeroing ahead failed at offset %llu (%s); tried again later, writes may be "
                 "slower until then",
                 s->disk->name,
                 (unsigned long long)block_offset(s->space.first + s->space.frontier), err_text(r));
    a->stuck = true;
    a->retry_ns = clock_now(s->rt) + RETRY_AFTER_NS;
}

/* True when guests did something since the last call. */
static bool guests_busy(struct store *s)
{
    uint64_t done = s->stats.changes + s->stats.reads;
    bool busy = s->running != NULL || done != s->ahead.seen;

    s->ahead.seen = done;
    return busy;
}

/* E3 */
static fiber_fn void zero_until_enough(struct store *s)
{
    struct ahead *a = &s->ahead;

    while (s->mode == STORE_SERVING && !s->failed && !at_end(s) &&
           (a->wanted || s->space.ready_words < a->target_words)) {
        uint64_t start = clock_now(s->rt), end;
        int r = zero_chunk(s);
        if (r == -ECANCELED)
            return;
        a->wanted = false;
        note_result(s, r);
        if (r < 0)
            return;
        end = clock_now(s->rt);
        if (guests_busy(s))
            (void)waitq_wait_until(&a->wait, s->rt,
                                   end + MIN((end - start) * BUSY_PAUSES, PAUSE_MAX_NS));
    }
}

fiber_fn void ahead_main(void *arg)
{
    struct store *s = arg;

    while (s->mode == STORE_SERVING) {
        if (is_due(s)) {
            zero_until_enough(s);
            continue;
        }
        s->ahead.idle = true;
        waitq_wait(&s->ahead.wait);
        s->ahead.idle = false;
    }
    wgroup_finish(&s->fibers);
}

fiber_fn int ahead_at_open(struct store *s)
{
    int r = 0;

    while (r == 0 && s->space.bounded && !at_end(s) &&
           space_usable(&s->space) < ckpt_need(s) + s->reserve)
        r = zero_chunk(s);
    if (r < 0)
        note_result(s, r);
    return 0; /* what does not fit is refused later */
}
