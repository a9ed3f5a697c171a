/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of struct rt: the scheduler that all seams share, and the tables of operations by
 * which a seam (rt/uring, sim) provides the world. For rt/, rt/uring and sim/ only.
 *
 * I1 Everything here belongs to the one thread that runs the loop, but for rt_ops.post.
 * I2 A seam's loop repeats: run ready fibers, hand out I/O, wait, complete I/O, fire timers.
 */
#pragma once
#include "rt/rt.h"

#define RT_FIBER_COUNT_MAX  2048
#define RT_BUFFER_BYTES_MAX (48u << 20)

/* --- what a seam provides --- */

struct rt_ops {
    uint64_t (*now)(struct rt *rt);
    uint64_t (*wall)(struct rt *rt);
    uint64_t (*random)(struct rt *rt);
    int (*disk_open)(struct rt *rt, const char *path, unsigned flags, uint64_t size,
                     struct disk **ret);
    int (*listen)(struct rt *rt, const char *address, struct listener **ret);
    fiber_fn int (*connect)(struct rt *rt, const char *address, uint64_t deadline_ns,
                            struct conn **ret);
    int (*worker_start)(struct rt *rt, const char *name, struct worker **ret);
    int (*post)(struct rt *rt, void (*fn)(void *arg), void *arg);
    int (*fd_watch_add)(struct rt *rt, int fd, void (*fn)(void *arg), void *arg,
                        struct fd_watch **ret);
    void (*fd_watch_remove)(struct fd_watch *w);
};

struct disk_ops {
    /* Arguments were checked; io->length and io->result (0) are filled in. */
    void (*submit)(struct disk *d, struct disk_io *io);
    int (*allocate)(struct disk *d); /* NULL: nothing to do */
    void (*close)(struct disk *d);
};

/* Seams embed these as the first member of their own structs. */
struct conn_ops {
    /* Between `least` and `size` bytes: their number; -ENOTCONN, -ECONNRESET as conn_read(). */
    fiber_fn ssize_t (*read)(struct conn *c, void *buffer, size_t least, size_t size);
    void (*submit)(struct conn *c, struct conn_out *o);
    void (*shutdown)(struct conn *c);
    fiber_fn void (*close)(struct conn *c);
};

struct conn {
    const struct conn_ops *ops;
    struct rt *rt;
    char peer[NET_ADDRESS_SIZE];
};

struct listener_ops {
    fiber_fn int (*accept)(struct listener *l, struct conn **ret);
    void (*close)(struct listener *l);
};

struct listener {
    const struct listener_ops *ops;
    struct rt *rt;
    char address[NET_ADDRESS_SIZE];
};

struct worker_ops {
    fiber_fn void (*call)(struct worker *w, void (*fn)(void *arg), void *arg);
    fiber_fn void (*stop)(struct worker *w);
};

struct worker {
    const struct worker_ops *ops;
    struct rt *rt;
};

struct fd_watch {
    struct rt *rt;
};

/* --- fibers --- */

enum fiber_state {
    FIBER_QUEUED,    /* has no stack yet (F3) */
    FIBER_READY,     /* on rt.ready */
    FIBER_RUNNING,   /* fiber_current() */
    FIBER_SUSPENDED, /* waits for fiber_wake(); link may be on a waitq */
    FIBER_DONE,
};

struct stack;

struct fiber {
    struct list link;     /* rt.spawn_queue, rt.ready, or a waitq */
    struct list all_link; /* rt.fibers */
    struct rt *rt;
    const char *name;
    fiber_main *fn;
    void *arg;
    void *context; /* where to jump to resume it */
    struct stack *stack;
    void *asan_fake_stack;
    enum fiber_state state;
};

/* --- stacks (stack.c) --- */

struct stack {
    struct list link; /* stack_pool.idle */
    void *mapping;    /* guard page first */
    void *bottom;
    size_t size;
};

/* Keeps stacks for reuse. S1 at most STACK_IDLE_COUNT_MAX idle ones stay mapped. */
struct stack_pool {
    struct list idle;
    unsigned idle_count;
    size_t stack_size;
};

void stack_pool_init(struct stack_pool *p, size_t stack_size);
void stack_pool_done(struct stack_pool *p);
/* NULL when out of memory. */
struct stack *stack_get(struct stack_pool *p);
void stack_put(struct stack_pool *p, struct stack *s);

/* --- buffers (buffer.c) --- */

struct page_info {
    struct list link;    /* free_lists[order], for the first page of a free block */
    uint32_t page_count; /* of a buffer in use, at its first page */
    uint8_t order;       /* of a free block, at its first page */
    uint8_t is_free;
};

#define BUFFER_ORDER_COUNT 15 /* 4 KiB << 14 = 64 MiB */

struct buffer_pool {
    struct rt *rt;
    uint8_t *arena;
    size_t page_count;
    struct page_info *pages;
    struct list free_lists[BUFFER_ORDER_COUNT];
    /* The part of the arena that is used first, worth registering with the kernel. */
    uint8_t *hot;
    size_t hot_size;
    size_t bytes_max, bytes_used;
    struct list outliers; /* buffers outside the arena */
    struct list waiters;  /* first come, first served */
    struct timer trim;
    size_t bytes_used_peak; /* since the last trim */
    bool keeps_memory;      /* no trimming; set by the simulator */
};

/* 0 or -ENOMEM. */
int buffer_pool_init(struct buffer_pool *p, struct rt *rt, size_t bytes_max);
void buffer_pool_done(struct buffer_pool *p);

/* --- the runtime --- */

struct rt {
    const struct rt_ops *ops;
    unsigned fiber_count_max;
    struct list fibers; /* all that have a stack */
    struct list ready;
    unsigned ready_count;
    bool submit_is_due; /* set by the seam: I/O should reach the kernel before more fibers run */
    struct list spawn_queue; /* F3 */
    void *loop_context;      /* while a fiber runs */
    const void *loop_stack_bottom;
    size_t loop_stack_size;
    void *loop_fake_stack;
    struct stack_pool stacks;
    struct timer *timer_root;
    uint64_t timer_sequence;
    struct buffer_pool buffers;
    struct waitq sleepers;
    struct list stop_callbacks;
    bool stopping;
    struct rt_stats stats;
};

/* options may be NULL. 0 or -ENOMEM. */
int rt_core_init(struct rt *rt, const struct rt_ops *ops, const struct rt_options *options);
/* No fiber may be left. */
void rt_core_done(struct rt *rt);
/* Runs ready fibers, also those they make ready, for a bounded number of rounds; so rt->ready may
 * not be empty afterwards. Returns the number of switches made. */
unsigned rt_core_run_ready(struct rt *rt);
/* Runs the first ready fiber only; there must be one. */
void rt_core_run_one(struct rt *rt);
/* Drops all fibers, timers and waiting without running anything: what they own is abandoned. */
void rt_core_abandon(struct rt *rt);
static inline bool rt_core_has_fibers(const struct rt *rt)
{
    return !list_empty(&rt->fibers) || !list_empty(&rt->spawn_queue);
}
/* UINT64_MAX when no timer is armed. */
uint64_t rt_core_next_deadline(const struct rt *rt);
/* Fires the first timer; there must be one. */
void rt_core_fire_one(struct rt *rt);
/* Fires all timers due at `now`. */
void rt_core_fire_timers(struct rt *rt, uint64_t now);
