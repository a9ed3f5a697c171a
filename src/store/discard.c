/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Freed space given back. Of a device in the background, in batches; of a file only when an
 * administrator asks for it once (store_trim()), for a hole is slow to write again.
 *
 * D1 Only free blocks are discarded, and they are held until the device has answered (A1, S3).
 * D2 What is on its way to be free is not free. What is free stays so through a crash: a discard
 *    takes nothing from replay.
 * D3 Regions of 1 MiB in which something was freed are noted; short runs in them stay as they are.
 */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/admit.h"

#define RUN_MIN     16u    /* blocks: shorter ones cost more than they give */
#define RUN_MAX     16384u /* 64 MiB at a time */
#define BATCH_MS    5000u  /* how long freed regions gather */
#define BUSY_PAUSES 3u     /* per time at work, while guests are busy */
#define RETRY_NS    (60 * NS_PER_S)

void discard_init(struct store *s, const struct store_open_options *o)
{
    s->discard.off = s->read_only || o->no_discard || s->disk->kind != DISK_DEVICE ||
                     s->disk->discard_bytes == 0;
    s->discard.batch_ns = (o->discard_batch_ms ? o->discard_batch_ms : BATCH_MS) * NS_PER_MS;
    s->space.notes_freed = !s->discard.off;
}

/* How many blocks may be held. */
static uint32_t room(const struct store *s)
{
    uint64_t kept = admit_kept(s), usable = space_usable(&s->space);

    return usable > kept ? (uint32_t)MIN(usable - kept, (uint64_t)RUN_MAX) : 0;
}

/* Discards what is whole of h: whole units of the device. */
static fiber_fn int discard_run(struct store *s, const struct space_hold *h)
{
    uint64_t unit = MAX(s->disk->discard_bytes, STORE_BLOCK);
    uint64_t start = ALIGN_UP(block_offset(h->start), unit);
    uint64_t end = ALIGN_DOWN(block_offset(h->start) + (uint64_t)h->count * STORE_BLOCK, unit);
    int r;

    if (h->count < RUN_MIN || start >= end)
        return 0;
    r = disk_discard(s->disk, start, end - start);
    s->stats.discarded_blocks += r == 0 ? (end - start) / STORE_BLOCK : 0;
    return r;
}

/* Discards the free runs of block indexes [from, to). -EAGAIN: too full to hold any. */
static fiber_fn int discard_range(struct store *s, uint32_t from, uint32_t to)
{
    struct space_hold h;
    uint32_t most = room(s);
    int r = 0;

    while (r == 0 && from < to && most > 0 &&
           space_hold_begin(&s->space, &h, from, to, MIN(most, to - from))) {
        r = discard_run(s, &h);
        space_hold_end(&s->space, &h);
        if (!waitq_empty(&s->space_wait))
            waitq_wake_all(&s->space_wait);
        from = h.start - s->space.first + h.count;
        most = room(s);
    }
    return r == 0 && most == 0 ? -EAGAIN : r;
}

static fiber_fn void pause_for(struct store *s, uint64_t ns)
{
    (void)waitq_wait_until(&s->discard.wait, s->rt, clock_now(s->rt) + ns);
}

/* All regions noted so far (D3). */
static fiber_fn void discard_batch(struct store *s)
{
    struct space *sp = &s->space;
    uint64_t changes = s->stats.changes + s->stats.reads;
    uint32_t region = 0;

    while (s->mode == STORE_SERVING && !s->failed && space_next_freed(sp, &region)) {
        uint32_t from = region * SPACE_REGION_BLOCKS;
        uint64_t start = clock_now(s->rt);
        int r;
        space_forget_freed(sp, region);
        r = discard_range(s, from, (uint32_t)MIN((uint64_t)from + SPACE_REGION_BLOCKS, sp->count));
        if (r < 0 && r != -EAGAIN) {
            log_warn("%s: discarding failed (%s): freed space is not given back any more",
                     s->disk->name, err_text(r));
            s->discard.off = true;
            sp->notes_freed = false;
            return;
        }
        if (r == -EAGAIN) {
            space_note_freed(sp, from);
            pause_for(s, RETRY_NS);
        } else if (s->stats.changes + s->stats.reads != changes) {
            pause_for(s, (clock_now(s->rt) - start) * BUSY_PAUSES);
        }
        changes = s->stats.changes + s->stats.reads;
        region++;
    }
}

fiber_fn void discard_main(void *arg)
{
    struct store *s = arg;

    while (s->mode == STORE_SERVING) {
        uint32_t region = 0;
        if (s->discard.off || s->failed || !space_next_freed(&s->space, &region)) {
            s->discard.idle = true;
            waitq_wait(&s->discard.wait);
            s->discard.idle = false;
            continue;
        }
        pause_for(s, s->discard.batch_ns);
        discard_batch(s);
    }
    wgroup_finish(&s->fibers);
}

void discard_if_due(struct store *s)
{
    uint32_t region = 0;

    if (s->discard.idle && !s->discard.off && space_next_freed(&s->space, &region))
        waitq_wake_all(&s->discard.wait);
}

/* --- once, on request --- */

/* Of a file, what zeroing ahead would write at once stays; what lies behind it counts as unwritten
 * before it is punched. */
static fiber_fn int keep_some(struct store *s, uint64_t keep_bytes, uint32_t *ret_from)
{
    struct super next;
    int r;

    *ret_from = 0;
    if (s->disk->kind != DISK_FILE)
        return 0;
    *ret_from = space_ready_until(&s->space, (uint32_t)(keep_bytes / STORE_BLOCK));
    fmutex_lock(&s->super_lock);
    next = s->super;
    next.compat |= LAYOUT_COMPAT_ZEROED;
    next.zeroed = MIN(next.zeroed, *ret_from);
    r = super_write(s, &next);
    fmutex_unlock(&s->super_lock);
    return r;
}

static fiber_fn int trim(struct store *s, uint64_t keep_bytes)
{
    uint32_t at, end;
    int r = keep_some(s, keep_bytes, &at);

    for (; r == 0 && at < s->space.count; at = end) {
        end = (uint32_t)MIN((uint64_t)at + RUN_MAX, (uint64_t)s->space.count);
        r = discard_range(s, at, end);
        if (r == -EAGAIN)
            r = 0; /* full: there is nothing to give back */
        if (r == 0 && rt_stopping(s->rt))
            r = -ECANCELED;
    }
    if (r < 0)
        log_error("%s: giving back free space failed: %s", s->disk->name, err_text(r));
    return r;
}

fiber_fn int store_trim(struct rt *rt, const char *path, uint64_t keep_bytes, uint64_t *ret_bytes)
{
    const struct store_open_options options = {.no_zero_ahead = true, .no_discard = true};
    struct store *s;
    int r = store_open(rt, path, &options, &s), r_close;

    if (r < 0)
        return r;
    r = trim(s, keep_bytes);
    *ret_bytes = s->stats.discarded_blocks * STORE_BLOCK;
    r_close = store_close(s);
    return r < 0 ? r : r_close;
}
