/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The background fiber of an open volume: settles and publishes a moment after there was something
 * to do. An idle volume has no timer and no wake-ups.
 */
#include "base/err.h"
#include "base/log.h"
#include "volume/instance.h"

#define LOG_MODULE "volume"

#define SEQUENCE_RENEW (1ULL << (VERSION_SEQUENCE_BITS - 1)) /* far below the overflow (W3) */
#define RETRY_NS       (5 * NS_PER_S)

static bool ended(const struct instance *in)
{
    return in->background_stop || in->failed;
}

static bool has_to_publish(const struct instance *in)
{
    return instance_stable(in).value > in->published.value;
}

/* Waits until `deadline_ns`, unless it must hurry or end. */
static fiber_fn void gather_until(struct instance *in, uint64_t deadline_ns)
{
    while (!ended(in) && in->unlinked_count + in->punched_count < INSTANCE_HURRY_COUNT) {
        if (waitq_wait_until(&in->hurry, in->vs->rt, deadline_ns) == -ETIMEDOUT)
            return;
    }
}

static int edit_term(void *arg, struct registry_edit *e)
{
    const struct term *now = arg;
    if (e->record->lease.term.value >= RECORD_TERM_MAX)
        return -EFBIG;
    e->record->lease.term.value = now->value + 1;
    return 0;
}

/* W3: a new term before the sequence overflows, with nothing under way. */
static fiber_fn int renew_term(struct instance *in)
{
    struct term now = in->owner.term;
    gate_hold(in);
    int r = settle_all(in);
    if (!r)
        r = lease_edit(in, NULL, edit_term, &now);
    if (!r) {
        ASSERT(list_empty(&in->inflight));
        in->owner.term.value = now.value + 1;
        in->sequence = 0;
        index_forget_sequences(in);
    } else if (!in->failed) {
        instance_fail(in, r, "its versions are used up");
    }
    gate_release(in);
    return r;
}

static fiber_fn void work_once(struct instance *in)
{
    struct volumes *vs = in->vs;
    fmutex_lock(&in->settle_lock);
    int r = in->failed ? in->failed : settle_pass(in);
    if (!r && in->sequence > SEQUENCE_RENEW)
        r = renew_term(in);
    bool due = clock_now(vs->rt) - in->published_at_ns >= vs->publish_ns;
    if (!r && due && !in->background_stop)
        r = settle_publish(in);
    fmutex_unlock(&in->settle_lock);
    if (r && !in->failed) {
        log_warn("the index of volume %s cannot be written now: %s", in->name, err_text(r));
        uint64_t deadline = clock_now(vs->rt) + RETRY_NS;
        while (!ended(in) && waitq_wait_until(&in->hurry, vs->rt, deadline) != -ETIMEDOUT)
            ;
    }
}

static fiber_fn void background_main(void *arg)
{
    struct instance *in = arg;
    struct volumes *vs = in->vs;
    while (!ended(in)) {
        if (settle_has_work(in)) {
            gather_until(in, clock_now(vs->rt) + vs->delay_ns);
        } else if (has_to_publish(in)) {
            gather_until(in, in->published_at_ns + vs->publish_ns);
        } else {
            in->background_idle = true;
            waitq_wait(&in->work);
            in->background_idle = false;
            continue;
        }
        if (!ended(in))
            work_once(in);
    }
    in->background = false;
    waitq_wake_all(&in->background_ended);
    instance_unref(in);
}

int settle_start(struct instance *in)
{
    ASSERT(!in->background && !in->frozen);
    int r = fiber_spawn(in->vs->rt, "volume-settle", background_main, in);
    if (r)
        return r;
    instance_ref(in);
    in->background = true;
    return 0;
}

fiber_fn void settle_stop(struct instance *in)
{
    in->background_stop = true;
    waitq_wake_all(&in->work);
    waitq_wake_all(&in->hurry);
    while (in->background)
        waitq_wait(&in->background_ended);
    in->background_stop = false;
}
