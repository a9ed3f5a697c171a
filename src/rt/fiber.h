/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fibers: cooperative threads of one event loop, and what they wait on.
 *
 * F1 A fiber runs until it calls a function marked fiber_fn; between two such calls nothing else of
 *    the same rt runs. After one returns, shared state may have changed.
 * F2 Wake-ups are queued, never run in place: waking does not suspend.
 * F3 At most rt_options.fiber_count_max fibers have a stack; further spawns wait in a queue.
 */
#pragma once
#include "base/list.h"

/* Marks a function that may suspend the calling fiber; callable only on a fiber. */
#define fiber_fn

struct rt;
struct fiber;
typedef void fiber_main(void *arg);

/* Runs fn(arg) on a new fiber, in the order of spawning. `name` must be a string literal (it is
 * kept). Does not suspend. Returns 0, or -ENOMEM when not even the queue entry could be had. */
int fiber_spawn(struct rt *rt, const char *name, fiber_main *fn, void *arg);
/* NULL when not on a fiber. */
struct fiber *fiber_current(void);
const char *fiber_name(const struct fiber *f);
/* Lets every other ready fiber run once. */
fiber_fn void fiber_yield(void);
/* Suspends until `deadline_ns` on clock_now(). Returns 0, or -ECANCELED once rt_stop() was called.
 */
fiber_fn int fiber_sleep_until(struct rt *rt, uint64_t deadline_ns);
fiber_fn int fiber_sleep(struct rt *rt, uint64_t duration_ns);
/* The lowest primitive, for drivers: suspend the current fiber until fiber_wake(). */
fiber_fn void fiber_suspend(void);
/* f must be suspended by fiber_suspend() and not yet woken. */
void fiber_wake(struct fiber *f);

/* Queue of waiting fibers; always re-check the condition in a loop. */
struct waitq {
    struct list waiters;
};
void waitq_init(struct waitq *q);
fiber_fn void waitq_wait(struct waitq *q);
/* 0, or -ETIMEDOUT. deadline_ns on clock_now(); UINT64_MAX waits for ever. */
fiber_fn int waitq_wait_until(struct waitq *q, struct rt *rt, uint64_t deadline_ns);
void waitq_wake_one(struct waitq *q);
void waitq_wake_all(struct waitq *q);
static inline bool waitq_empty(const struct waitq *q)
{
    return list_empty(&q->waiters);
}

/* Mutex held across suspensions, fair (first come, first served), not recursive. */
struct fmutex {
    struct fiber *owner;
    struct waitq waiters;
};
void fmutex_init(struct fmutex *m);
fiber_fn void fmutex_lock(struct fmutex *m);
bool fmutex_trylock(struct fmutex *m);
void fmutex_unlock(struct fmutex *m);

/* Counts outstanding work; wait returns when it is 0. */
struct wgroup {
    unsigned pending;
    struct waitq waiters;
};
void wgroup_init(struct wgroup *g);
static inline void wgroup_add(struct wgroup *g, unsigned n)
{
    g->pending += n;
}
void wgroup_finish(struct wgroup *g);
fiber_fn void wgroup_wait(struct wgroup *g);

/* Bounded queue of pointers between fibers. */
struct chan;
/* Returns owned, or NULL when out of memory. */
struct chan *chan_new(unsigned capacity);
/* Nobody may be waiting on it. */
void chan_free(struct chan *c);
/* Suspends while full. 0, or -ECANCELED when closed. `item` must not be NULL. */
fiber_fn int chan_push(struct chan *c, void *item);
/* Suspends while empty. NULL when closed and drained. */
fiber_fn void *chan_pop(struct chan *c);
void chan_close(struct chan *c);
