/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What fibers wait on: wait queues, sleep, mutex, wait group.
 *
 * Y1 A woken fiber is off its wait queue before it runs; a second wake finds the next one.
 *    The same goes for its deadline: one that passes after the wake has no effect.
 * Y2 fmutex passes ownership on inside unlock, so nobody can overtake the queue.
 */
#include "base/err.h"
#include "rt/seam.h"

void waitq_init(struct waitq *q)
{
    list_init(&q->waiters);
}

fiber_fn void waitq_wait(struct waitq *q)
{
    struct fiber *f = fiber_current();
    ASSERT(f);
    list_push_back(&q->waiters, &f->link);
    fiber_suspend();
}

struct timed_wait {
    struct timer timer;
    struct fiber *fiber;
    bool timed_out;
};

static void timed_wait_fire(struct timer *t)
{
    struct timed_wait *w = container_of(t, struct timed_wait, timer);
    if (w->fiber->state != FIBER_SUSPENDED)
        return; /* Y1: woken already, and its link is on the list of those that will run */
    w->timed_out = true;
    list_remove(&w->fiber->link);
    fiber_wake(w->fiber);
}

fiber_fn int waitq_wait_until(struct waitq *q, struct rt *rt, uint64_t deadline_ns)
{
    if (deadline_ns == UINT64_MAX) {
        waitq_wait(q);
        return 0;
    }
    if (deadline_ns <= clock_now(rt))
        return -ETIMEDOUT;
    struct timed_wait w = {.fiber = fiber_current()};
    timer_init(&w.timer, rt, timed_wait_fire);
    timer_arm(&w.timer, deadline_ns);
    waitq_wait(q);
    timer_cancel(&w.timer);
    return w.timed_out ? -ETIMEDOUT : 0;
}

void waitq_wake_one(struct waitq *q)
{
    if (list_empty(&q->waiters))
        return;
    struct fiber *f = list_first(&q->waiters, struct fiber, link);
    list_remove(&f->link);
    fiber_wake(f);
}

void waitq_wake_all(struct waitq *q)
{
    while (!list_empty(&q->waiters))
        waitq_wake_one(q);
}

fiber_fn int fiber_sleep_until(struct rt *rt, uint64_t deadline_ns)
{
    if (rt->stopping) {
        fiber_yield(); /* so that a loop that ignores the error does not stop everybody */
        return -ECANCELED;
    }
    if (deadline_ns <= clock_now(rt)) {
        fiber_yield();
        return 0;
    }
    return waitq_wait_until(&rt->sleepers, rt, deadline_ns) == -ETIMEDOUT ? 0 : -ECANCELED;
}

fiber_fn int fiber_sleep(struct rt *rt, uint64_t duration_ns)
{
    uint64_t deadline_ns = UINT64_MAX;
    (void)add_u64(clock_now(rt), duration_ns, &deadline_ns);
    return fiber_sleep_until(rt, deadline_ns);
}

void fmutex_init(struct fmutex *m)
{
    m->owner = NULL;
    waitq_init(&m->waiters);
}

bool fmutex_trylock(struct fmutex *m)
{
    struct fiber *f = fiber_current();
    ASSERT(f);
    if (m->owner)
        return false;
    m->owner = f;
    return true;
}

fiber_fn void fmutex_lock(struct fmutex *m)
{
    ASSERT(m->owner != fiber_current());
    if (fmutex_trylock(m))
        return;
    waitq_wait(&m->waiters);
    ASSERT(m->owner == fiber_current());
}

void fmutex_unlock(struct fmutex *m)
{
    ASSERT(m->owner && m->owner == fiber_current());
    m->owner = NULL;
    if (!waitq_empty(&m->waiters)) {
        m->owner = list_first(&m->waiters.waiters, struct fiber, link);
        waitq_wake_one(&m->waiters);
    }
}

void wgroup_init(struct wgroup *g)
{
    g->pending = 0;
    waitq_init(&g->waiters);
}

void wgroup_finish(struct wgroup *g)
{
    ASSERT(g->pending > 0);
    if (--g->pending == 0)
        waitq_wake_all(&g->waiters);
}

fiber_fn void wgroup_wait(struct wgroup *g)
{
    while (g->pending > 0)
        waitq_wait(&g->waiters);
}
