/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The background scrub: a fiber that goes on with the pass at a set rate.
 *
 * B1 Never faster than the rate, half a megabyte at a time. While guests are at work it waits, up
 *    to BUSY_DELAYS times as long: a store that is never idle is still read, at a sixteenth.
 * B2 Passes begin at least a day apart. In between, and while there is nothing to read, the fiber
 *    sleeps.
 */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/store_internal.h"

#define BUSY_DELAYS    15u
#define TURN_BYTES     (512u << 10)
#define PASS_PERIOD_NS (24ull * 3600 * NS_PER_S)
#define RETRY_NS       (10 * NS_PER_S)

static uint64_t duration(const struct store *s, uint64_t bytes)
{
    return (uint64_t)((double)bytes * (double)NS_PER_S / (double)s->scrub.info.rate);
}

/* Have guests done anything since the last look? */
static bool guests_busy(struct store *s)
{
    struct scrub *c = &s->scrub;
    uint64_t done = s->stats.changes + s->stats.reads - c->own_reads;
    bool busy = s->running != NULL || done != c->seen;

    c->seen = done;
    return busy;
}

static fiber_fn void pause_until(struct store *s, uint64_t ns)
{
    (void)waitq_wait_until(&s->scrub.wait, s->rt, ns);
}

/* B2 */
static fiber_fn void rest(struct store *s, uint64_t pass_start_ns, bool was_empty)
{
    struct scrub *c = &s->scrub;
    uint64_t changes = s->stats.changes;

    if (!was_empty) {
        while (s->mode == STORE_SERVING && clock_now(s->rt) < pass_start_ns + PASS_PERIOD_NS)
            pause_until(s, pass_start_ns + PASS_PERIOD_NS);
        return;
    }
    c->idle = true;
    while (s->mode == STORE_SERVING && s->stats.changes == changes)
        waitq_wait(&c->wait);
    c->idle = false;
}

static fiber_fn void scrub_until_stopped(struct store *s, uint8_t *buffer)
{
    struct scrub *c = &s->scrub;
    uint64_t pass_start_ns = clock_now(s->rt), pass_objects = c->info.objects;
    unsigned delays = 0;

    while (s->mode == STORE_SERVING && s->failed == 0) {
        uint64_t start = clock_now(s->rt), bytes = c->info.bytes, passes = c->info.passes;
        int r;
        if (guests_busy(s) && delays++ < BUSY_DELAYS) {
            pause_until(s, start + duration(s, TURN_BYTES));
            continue;
        }
        delays = 0;
        r = scrub_next(s, buffer);
        bytes = c->info.bytes - bytes;
        if (r < 0)
            pause_until(s, clock_now(s->rt) + RETRY_NS);
        else if (bytes > 0)
            pause_until(s, start + duration(s, bytes));
        if (r == 0 && c->info.passes != passes) {
            rest(s, pass_start_ns, c->info.objects == pass_objects);
            pass_start_ns = clock_now(s->rt);
            pass_objects = c->info.objects;
        }
    }
}

fiber_fn void scrub_main(void *arg)
{
    struct store *s = arg;
    uint8_t *buffer = scrub_buffer_new();

    if (buffer != NULL)
        scrub_until_stopped(s, buffer);
    else
        log_warn("%s: out of memory: no scrubbing", s->disk->name);
    free(buffer);
    wgroup_finish(&s->fibers);
}
