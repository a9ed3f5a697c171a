/* SPDX-License-Identifier: Apache-2.0 */
/* The event loop on io_uring: see loop.h for U1 to U3. */
#define LOG_MODULE "rt"
#include "rt/uring/loop.h"
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>
#include "base/err.h"
#include "base/log.h"
#include "rt/uring/uring.h"

#define SQ_SIZE 256u
#define CQ_SIZE 4096u /* U2 */

void uring_submit(struct uring *u, struct uring_op *op)
{
    list_push_back(&u->pending, &op->link);
    if (op->kind == URING_WORK)
        u->work_count++;
}

static void prepare_cancel(struct uring_op *op, struct io_uring_sqe *sqe)
{
    struct uring_cancel *c = container_of(op, struct uring_cancel, op);
    io_uring_prep_cancel(sqe, c->target, 0);
}

void uring_cancel(struct uring *u, struct uring_cancel *cancel)
{
    cancel->op.prepare = prepare_cancel;
    uring_submit(u, &cancel->op);
}

static void wait_complete(struct uring_op *op, int result)
{
    struct uring_wait *w = container_of(op, struct uring_wait, op);
    w->result = result;
    w->finished = true;
    fiber_wake(w->fiber);
}

fiber_fn int uring_wait(struct uring *u, struct uring_wait *w,
                        void (*prepare)(struct uring_op *op, struct io_uring_sqe *sqe))
{
    w->op = (struct uring_op){.prepare = prepare, .complete = wait_complete};
    w->fiber = fiber_current();
    w->finished = false;
    uring_submit(u, &w->op);
    while (!w->finished)
        fiber_suspend();
    return w->result;
}

/* U1, U2: makes SQEs of what is pending, as far as there is room. */
static int prepare_pending(struct uring *u)
{
    u->reads_pending = 0;
    u->rt.submit_is_due = false;
    while (!list_empty(&u->pending) && u->in_kernel_count < CQ_SIZE) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
        if (!sqe) {
            int r = io_uring_submit(&u->ring);
            if (r == -EINTR)
                continue;
            if (r == -EAGAIN || r == -EBUSY)
                return 0; /* completions first */
            if (r < 0)
                return r;
            continue;
        }
        struct uring_op *op = list_first(&u->pending, struct uring_op, link);
        list_remove(&op->link);
        op->prepare(op, sqe);
        io_uring_sqe_set_data(sqe, op);
        u->in_kernel_count++;
    }
    return 0;
}

static void reap(struct uring *u)
{
    struct io_uring_cqe *cqe;
    unsigned head, count = 0;
    io_uring_for_each_cqe(&u->ring, head, cqe)
    {
        struct uring_op *op = io_uring_cqe_get_data(cqe);
        count++;
        u->in_kernel_count--;
        if (op->kind == URING_WORK)
            u->work_count--;
        op->complete(op, cqe->res);
    }
    io_uring_cq_advance(&u->ring, count);
}

/* Submits, and waits for a completion or the next timer, unless there is something to do already.
 */
static int enter(struct uring *u)
{
    struct rt *rt = &u->rt;
    bool busy = rt->ready_count > 0 || !list_empty(&u->pending) || !list_empty(&u->dirty_conns);
    uint64_t deadline = rt_core_next_deadline(rt);
    uint64_t wait_ns = UINT64_MAX;
    if (!busy && deadline != UINT64_MAX) {
        uint64_t now = clock_now(rt);
        wait_ns = deadline > now ? deadline - now : 0;
    }
    int r;
    if (busy || wait_ns == 0) {
        r = io_uring_submit_and_get_events(&u->ring);
    } else if (wait_ns == UINT64_MAX) {
        r = io_uring_submit_and_wait(&u->ring, 1);
    } else {
        struct __kernel_timespec ts = {.tv_sec = (int64_t)(wait_ns / NS_PER_S),
                                       .tv_nsec = (long long)(wait_ns % NS_PER_S)};
        struct io_uring_cqe *cqe;
        r = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &ts, NULL);
    }
    if (r == -ETIME || r == -EINTR || r == -EAGAIN || r == -EBUSY)
        return 0;
    return r < 0 ? r : 0;
}

int rt_uring_run(struct rt *rt)
{
    struct uring *u = uring_of(rt);
    for (;;) {
        rt->stats.loop_iterations++;
        rt_core_run_ready(rt);
        uring_flush_conns(u);
        if (!rt_core_has_fibers(rt) && u->work_count == 0 && list_empty(&u->dirty_conns) &&
            !uring_has_posts(u))
            return 0;
        int r = prepare_pending(u);
        if (r == 0)
            r = enter(u);
        if (r < 0) {
            log_error("io_uring failed: %s", err_text(r));
            return r;
        }
        reap(u);
        if (rt->timer_root)
            rt_core_fire_timers(rt, clock_now(rt));
    }
}

/* --- clocks and randomness --- */

static uint64_t read_clock(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static uint64_t uring_now(struct rt *rt)
{
    return read_clock(CLOCK_BOOTTIME);
}

static uint64_t uring_wall(struct rt *rt)
{
    return read_clock(CLOCK_REALTIME);
}

static uint64_t uring_random(struct rt *rt)
{
    struct uring *u = uring_of(rt);
    if (u->random_left == 0) {
        /* Up to 256 bytes getrandom() is neither interrupted nor short. */
        static_assert(sizeof(u->random_pool) <= 256, "see above");
        ssize_t n = getrandom(u->random_pool, sizeof(u->random_pool), 0);
        ASSERT(n == sizeof(u->random_pool));
        u->random_left = ARRAY_SIZE(u->random_pool);
    }
    uint64_t value = u->random_pool[--u->random_left];
    u->random_pool[u->random_left] = 0;
    return value;
}

/* --- signals --- */

static void signals_readable(void *arg)
{
    struct uring *u = arg;
    struct signalfd_siginfo info;
    while (read(u->signal_fd, &info, sizeof(info)) == sizeof(info))
        u->signal_fn(u->signal_arg, (int)info.ssi_signo);
}

int rt_uring_on_signal(struct rt *rt, void (*fn)(void *arg, int signal), void *arg)
{
    struct uring *u = uring_of(rt);
    ASSERT(u->signal_fd < 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    int r = fd_watch_add(rt, fd, signals_readable, u, &u->signal_watch);
    if (r < 0) {
        close(fd);
        return r;
    }
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    u->signal_fd = fd;
    u->signal_fn = fn;
    u->signal_arg = arg;
    return 0;
}

/* --- life --- */

static const struct rt_ops uring_ops = {
    .now = uring_now,
    .wall = uring_wall,
    .random = uring_random,
    .disk_open = uring_disk_open,
    .listen = uring_listen,
    .connect = uring_connect,
    .worker_start = uring_worker_start,
    .post = uring_post,
    .fd_watch_add = uring_fd_watch_add,
    .fd_watch_remove = uring_fd_watch_remove,
};

/* Newer kernels save interrupts and wake-ups when told that one thread does everything. */
static int ring_init(struct io_uring *ring)
{
    static const unsigned flag_choices[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, /* 6.1 */
        IORING_SETUP_COOP_TASKRUN,                               /* 5.19 */
        0,                                                       /* 5.15 */
    };
    int r = -EINVAL;
    for (size_t i = 0; i < ARRAY_SIZE(flag_choices) && r == -EINVAL; i++) {
        struct io_uring_params params = {.flags = flag_choices[i] | IORING_SETUP_CQSIZE,
                                         .cq_entries = CQ_SIZE};
        r = io_uring_queue_init_params(SQ_SIZE, ring, &params);
    }
    if (r == -EPERM)
        r = -ENOSYS; /* forbidden by sysctl or seccomp */
    return r;
}

/* What pays but is not needed; all of it may fail (RLIMIT_MEMLOCK). */
static void register_resources(struct uring *u)
{
    int fds[DISK_SLOT_COUNT];
    for (unsigned i = 0; i < DISK_SLOT_COUNT; i++)
        fds[i] = -1;
    u->files_registered = io_uring_register_files(&u->ring, fds, DISK_SLOT_COUNT) == 0;
    struct iovec hot = {u->rt.buffers.hot, u->rt.buffers.hot_size};
    u->buffers_registered = io_uring_register_buffers(&u->ring, &hot, 1) == 0;
}

int rt_uring_new(const struct rt_options *options, struct rt **ret)
{
    struct uring *u = calloc(1, sizeof(*u));
    if (!u)
        return -ENOMEM;
    list_init(&u->pending);
    list_init(&u->dirty_conns);
    list_init(&u->watches);
    list_init(&u->closed_listeners);
    u->signal_fd = -1;
    int r = rt_core_init(&u->rt, &uring_ops, options);
    if (r < 0)
        goto fail_free;
    r = ring_init(&u->ring);
    if (r < 0)
        goto fail_core;
    r = uring_post_init(u);
    if (r < 0)
        goto fail_ring;
    register_resources(u);
    *ret = &u->rt;
    return 0;

fail_ring:
    io_uring_queue_exit(&u->ring);
fail_core:
    rt_core_done(&u->rt);
fail_free:
    free(u);
    return r;
}

void rt_uring_free(struct rt *rt)
{
    if (!rt)
        return;
    struct uring *u = uring_of(rt);
    if (u->resolver)
        uring_worker_free(u->resolver);
    io_uring_queue_exit(&u->ring);
    uring_post_done(u);
    if (u->signal_fd >= 0)
        close(u->signal_fd);
    uring_free_watches(u);
    uring_free_closed_listeners(u);
    if (u->zeros)
        munmap(u->zeros, URING_ZEROS_SIZE);
    if (rt_core_has_fibers(rt))
        rt_core_abandon(rt); /* only after rt_uring_run() failed */
    rt_core_done(rt);
    free(u);
}
