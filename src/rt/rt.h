/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The runtime of one node: scheduler, timers, buffers, helper threads. Production makes one with
 * rt_uring_new() (rt/uring/uring.h), tests with the simulator (sim/sim.h).
 */
#pragma once
#include "rt/clock.h"
#include "rt/disk.h"
#include "rt/fiber.h"
#include "rt/net.h"

struct rt_options {
    unsigned fiber_count_max; /* 0: 2048 */
    size_t fiber_stack_size;  /* bytes, 0: 64 KiB (256 KiB under a sanitizer) */
    size_t buffer_bytes_max;  /* budget of buf_get(), 0: 48 MiB */
};

/* --- one-shot timers --- */
struct timer {
    uint64_t deadline_ns; /* read only */
    void (*fire)(struct timer *t);
    struct rt *rt;
    /* private: node of an intrusive pairing heap, so that arming cannot fail */
    bool armed;
    uint64_t sequence;
    struct timer *child, *next, *prev;
};
void timer_init(struct timer *t, struct rt *rt, void (*fire)(struct timer *t));
/* Arms or re-arms. fire() runs on the loop, not on a fiber: it may wake and spawn, not suspend. */
void timer_arm(struct timer *t, uint64_t deadline_ns);
void timer_cancel(struct timer *t);
static inline bool timer_armed(const struct timer *t)
{
    return t->armed;
}

/* --- page-aligned I/O buffers ---
 * Payload of requests from outside (front ends, peers) is taken here, once per request and before
 * anything else is held, so that exhaustion is back-pressure and cannot deadlock. */
/* At least `size` bytes (1 to 64 MiB), 4096-aligned, content undefined. Suspends while the budget
 * is used up (a single request larger than the budget is served when nothing else is out). */
fiber_fn void *buf_get(struct rt *rt, size_t size);
/* As buf_get, but NULL instead of suspending. */
void *buf_try_get(struct rt *rt, size_t size);
/* NULL is allowed. */
void buf_put(struct rt *rt, void *p);

/* --- foreign blocking libraries --- */
/* A helper thread with a queue. In the simulator calls run in place. */
struct worker;
int worker_start(struct rt *rt, const char *name, struct worker **ret);
/* Runs fn(arg) on the helper thread and suspends until it has returned. Calls run in order. */
fiber_fn void worker_call(struct worker *w, void (*fn)(void *arg), void *arg);
/* Waits for queued calls, then joins the thread and frees. */
fiber_fn void worker_stop(struct worker *w);
/* Thread-safe: queues fn(arg) to run on the loop (not on a fiber). */
int rt_post(struct rt *rt, void (*fn)(void *arg), void *arg);
/* Calls fn(arg) on the loop whenever fd is readable, until removed. Level-triggered: fn must
 * consume. Only drivers use it (inotify, foreign event fds). Production only. Returned handle is
 * owned. */
struct fd_watch;
int fd_watch_add(struct rt *rt, int fd, void (*fn)(void *arg), void *arg, struct fd_watch **ret);
void fd_watch_remove(struct fd_watch *w);

/* --- life --- */
/* Asks for shutdown: rt_stopping() becomes true, sleepers return -ECANCELED, on_stop callbacks run.
 */
void rt_stop(struct rt *rt);
bool rt_stopping(const struct rt *rt);
/* Registers fn(arg) to run once, in order of registration, when rt_stop() is called (at once if it
 * was called already). It runs where rt_stop() was called: it may wake and spawn, not suspend. 0 or
 * -ENOMEM. */
int rt_on_stop(struct rt *rt, void (*fn)(void *arg), void *arg);
/* Cryptographic quality in production, seeded in the simulator. */
uint64_t rt_random(struct rt *rt);

/* Counters for dog and metrics; monotonic. */
struct rt_stats {
    uint64_t fibers_started, fibers_live, fibers_queued, switches;
    uint64_t buffer_bytes_used, buffer_waits;
    uint64_t loop_iterations;
};
void rt_stats(const struct rt *rt, struct rt_stats *ret);
