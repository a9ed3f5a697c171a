/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checkpoints: the exact state after one commit, written to fresh blocks while requests go on.
 *
 * K1 The state is that of one moment: the last step takes all that is dirty then, in one go. Passes
 * before it make that little: they take what is dirty a few at a time and let requests go on in
 * between (as one moves a running virtual machine); what changes again is taken again.
 *
 * K2 What the last checkpoint owned and this one does not stays untouched until the superblock
 * names this one, durably.
 *
 * K3 The bitmap that is written shows exactly what the committed state owns: blocks of commits
 * under way, freed blocks that readers hold up, and the old structure blocks are free in it.
 *
 * K4 The log may be reused up to the first commit that this checkpoint does not contain: the first
 * one behind the last step.
 *
 * K5 Commits wait for the passes only when changes make things dirty as fast as they are taken, and
 * each of them only for a few steps.
 */
#define LOG_MODULE "store"
#include "store/checkpoint.h"
#include "base/err.h"
#include "base/log.h"

#define LAST_ITEMS  256u /* that the last step may find: below 1 ms */
#define PASSES_CALM 4u   /* that may fail to get there before commits are slowed down */
#define PASSES_MAX  16u
#define PACE_STEPS  8u              /* K5 */
#define PACE_NS_MAX (2 * NS_PER_MS) /* a request may meet two commits */
#define REST_NS_MAX (5 * NS_PER_MS)

/* --- estimates --- */

uint64_t ckpt_need(const struct store *s)
{
    uint64_t n =
        s->cache.dirty_count + tree_dirty_count(&s->index.tree) + tree_dirty_count(&s->share.tree);
    uint64_t bitmap = 0;

    n += s->index.late.count;
    n += s->cache.dirty_count / SLOT_LEAVES; /* indirect blocks of large objects */
    for (unsigned l = 0; l < s->bitmap.height; l++)
        bitmap += s->bitmap.levels[l].count;
    return n + MIN(bitmap, 2 * n + tree_dirty_count(&s->bitmap) + 4);
}

/* What the last step would have to take, but for the tables. */
static uint64_t items_left(const struct store *s)
{
    uint64_t n = s->cache.dirty_count + s->stale.count + s->index.late.count;

    if (s->index.tree.height > 0)
        n += s->index.tree.levels[0].dirty_count;
    return n + s->share.tree.levels[0].dirty_count + s->bitmap.levels[0].dirty_count;
}

/* The passes may need a block for the same thing again and again, none of which comes back before
 * the end. */
static bool has_room(const struct store *s)
{
    return space_usable(&s->space) > 2 * ckpt_need(s) + s->reserve / 2;
}

/* --- steps: what is done between two suspensions --- */

void ckpt_init(struct store *s, unsigned last_items)
{
    s->ckpt_last_items = last_items != 0 ? last_items : LAST_ITEMS;
}

/* 100 to 200 us. */
static size_t step_size(const struct store *s)
{
    return s->ckpt_last_items / 4 + 1;
}

struct step {
    uint64_t start_ns, items;
};

static struct step step_begin(const struct ckpt *ck)
{
    return (struct step){clock_now(ck->s->rt), ck->items};
}

static void step_end(struct ckpt *ck, const struct step *step)
{
    struct store_stats *stats = &ck->s->stats;

    stats->checkpoint_step_ns_max =
        MAX(stats->checkpoint_step_ns_max, clock_now(ck->s->rt) - step->start_ns);
    stats->checkpoint_step_items_max =
        MAX(stats->checkpoint_step_items_max, ck->items - step->items);
}

/* How a pass keeps what it has taken. */
enum haste {
    CALM, /* writes it as it goes, so that it does not pile up in memory */
    RUSH, /* writes it after the last step: there is little, and soon even less if we are quick */
};

/* K5, or the cache is about to be full of what only a checkpoint can let go. */
static bool is_pressed(const struct ckpt *ck)
{
    return ck->pressing || cache_dirty_bytes(ck->s) > ck->s->cache.bytes_max / 4 * 3;
}

/* Writes what is queued. Requests get half of the disk's time, unless somebody waits for the end.
 */
static fiber_fn int carry_out(struct ckpt *ck)
{
    struct store *s = ck->s;
    bool hurry = is_pressed(ck) || s->mode == STORE_CLOSING || !waitq_empty(&s->ckpt_done) ||
                 !waitq_empty(&s->space_wait);

    return writes_carry_out(&ck->writes, s->disk, hurry ? 0 : REST_NS_MAX);
}

static fiber_fn int breathe(struct ckpt *ck, enum haste haste)
{
    struct store *s = ck->s;
    int r = 0;

    ck->steps++;
    waitq_wake_all(&s->ckpt_step);
    if (haste == CALM && ck->writes.count >= s->ckpt_last_items / 2)
        r = carry_out(ck);
    else if (fiber_sleep(s->rt, 0) < 0) /* a yield would not let the loop look at the disk */
        fiber_yield();                  /* the process is stopping */
    return r == 0 && s->failed ? -ECANCELED : r;
}

/* --- passes --- */

static fiber_fn int pass_leaves(struct ckpt *ck, enum haste haste)
{
    struct store *s = ck->s;
    size_t left = s->cache.dirty_count + s->stale.count, n = 1;
    int r = 0;

    while (r == 0 && left > 0 && n > 0) {
        struct step step = step_begin(ck);
        r = snapshot_take_leaves(ck, MIN(left, step_size(s)), &n);
        step_end(ck, &step);
        left -= n;
        if (r == 0)
            r = breathe(ck, haste);
    }
    return r;
}

static fiber_fn int pass_pages(struct ckpt *ck, struct tree *t, enum haste haste)
{
    uint32_t cursor = 0;
    size_t n = 1;
    int r = 0;

    while (r == 0 && n > 0) {
        struct step step = step_begin(ck);
        r = snapshot_take_pages(ck, t, &cursor, step_size(ck->s), &n);
        step_end(ck, &step);
        if (r == 0 && n > 0)
            r = breathe(ck, haste);
    }
    return r;
}

/* In the order in which one makes the other dirty. */
static fiber_fn int pass(struct ckpt *ck, enum haste haste)
{
    int r = pass_leaves(ck, haste);

    if (r == 0)
        r = index_prepare(ck->s);
    if (r == 0)
        r = pass_pages(ck, &ck->s->index.tree, haste);
    if (r == 0)
        r = pass_pages(ck, &ck->s->share.tree, haste);
    if (r == 0)
        r = pass_pages(ck, &ck->s->bitmap, haste);
    return r;
}

static fiber_fn int passes(struct ckpt *ck)
{
    struct store *s = ck->s;
    int r = 0;

    for (unsigned n = 0; r == 0 && n < PASSES_MAX; n++) {
        uint64_t left = items_left(s);
        if (left <= s->ckpt_last_items || !has_room(s))
            break;
        ck->pressing = n >= PASSES_CALM;
        s->stats.checkpoint_passes++;
        r = pass(ck, left <= 4 * s->ckpt_last_items ? RUSH : CALM);
    }
    return r;
}

fiber_fn void ckpt_pace(struct store *s)
{
    uint64_t end = 0, steps = 0;

    while (s->ckpt != NULL && s->ckpt->passing && s->failed == 0 && is_pressed(s->ckpt)) {
        uint64_t now = clock_now(s->rt);
        if (end == 0) {
            end = now + PACE_NS_MAX;
            steps = s->ckpt->steps + PACE_STEPS;
        }
        if (now >= end || s->ckpt->steps >= steps)
            break;
        waitq_wait(&s->ckpt_step);
    }
}

/* --- the whole --- */

static fiber_fn int take(struct ckpt *ck)
{
    struct step step;
    int r = snapshot_init(ck);

    ck->s->index.epoch++;
    if (r == 0 && ckpt_need(ck->s) > space_usable(&ck->s->space))
        r = -ENOSPC;
    ck->passing = true;
    if (r == 0)
        r = passes(ck);
    if (r == 0)
        r = index_prepare(ck->s);
    ck->passing = false;
    waitq_wake_all(&ck->s->ckpt_step);
    if (r < 0)
        return r;
    step = step_begin(ck);
    r = snapshot_take_rest(ck);
    step_end(ck, &step);
    return r;
}

static fiber_fn int write_super(struct ckpt *ck)
{
    struct store *s = ck->s;
    int r;

    fmutex_lock(&s->super_lock);
    ck->super.cluster = s->super.cluster; /* may have been set meanwhile */
    ck->super.flags = s->super.flags;
    r = super_write(s, &ck->super);
    fmutex_unlock(&s->super_lock);
    return r;
}

fiber_fn int ckpt_write(struct store *s)
{
    struct ckpt ck = {.s = s, .super = s->super};
    const char *what = "preparing a checkpoint";
    int r;

    ASSERT(s->ckpt == NULL);
    s->ckpt = &ck;
    s->ckpt_wanted = false;
    r = take(&ck);
    if (r == 0)
        r = store_check_twice(s);
    if (r == 0) {
        what = "writing a checkpoint";
        r = carry_out(&ck);
    }
    if (r == 0)
        r = store_flush_disk(s);
    if (r == 0)
        r = write_super(&ck);
    if (r == 0) {
        s->log.tail = ck.super.log_sequence; /* K4 */
        r = space_release(&s->space, &ck.freed);
        s->stats.checkpoints++;
    }
    s->stats.checkpoint_blocks += ck.writes.written;
    s->ckpt = NULL;
    snapshot_done(&ck);
    if (r < 0)
        store_fail(s, r, what);
    waitq_wake_all(&s->ckpt_step);
    waitq_wake_all(&s->ckpt_done);
    waitq_wake_all(&s->space_wait);
    return r;
}

void ckpt_want(struct store *s)
{
    if (s->ckpt_wanted || s->failed)
        return;
    s->ckpt_wanted = true;
    waitq_wake_all(&s->ckpt_wait);
}

const uint8_t *ckpt_unwritten(const struct store *s, uint32_t block)
{
    const struct write_entry *e = s->ckpt != NULL ? writes_find(&s->ckpt->writes, block) : NULL;

    return e != NULL ? e->data : NULL;
}

fiber_fn void ckpt_main(void *arg)
{
    struct store *s = arg;

    while (s->mode == STORE_SERVING) {
        if (s->ckpt_wanted && s->failed == 0)
            (void)ckpt_write(s); /* has failed the store if it failed */
        else
            waitq_wait(&s->ckpt_wait);
    }
    wgroup_finish(&s->fibers);
}
