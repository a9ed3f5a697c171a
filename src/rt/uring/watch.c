/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Watches of foreign file descriptors: one poll at a time, armed again after each callback.
 *
 * V1 A removed watch makes no more calls; it is freed when its poll is out of the kernel.
 */
#include <poll.h>
#include <stdlib.h>
#include "base/err.h"
#include "rt/uring/loop.h"

struct uring_watch {
    struct fd_watch base; /* first */
    struct list link;     /* uring.watches */
    struct uring_op poll;
    struct uring_cancel cancel;
    int fd;
    void (*fn)(void *arg);
    void *arg;
    bool removed;
    unsigned op_count; /* poll and cancel that are pending or in the kernel */
};

static void watch_free(struct uring_watch *w)
{
    list_remove(&w->link);
    free(w);
}

static void poll_prepare(struct uring_op *op, struct io_uring_sqe *sqe)
{
    struct uring_watch *w = container_of(op, struct uring_watch, poll);
    io_uring_prep_poll_add(sqe, w->fd, POLLIN);
}

static void poll_arm(struct uring_watch *w)
{
    w->op_count++;
    uring_submit(uring_of(w->base.rt), &w->poll);
}

static void poll_complete(struct uring_op *op, int result)
{
    struct uring_watch *w = container_of(op, struct uring_watch, poll);
    /* Counted as still in the kernel during fn(), which may remove the watch. */
    if (!w->removed)
        w->fn(w->arg);
    w->op_count--;
    if (!w->removed)
        poll_arm(w);
    else if (w->op_count == 0)
        watch_free(w);
}

static void cancel_complete(struct uring_op *op, int result)
{
    struct uring_watch *w = container_of(op, struct uring_watch, cancel.op);
    if (--w->op_count == 0)
        watch_free(w);
}

int uring_fd_watch_add(struct rt *rt, int fd, void (*fn)(void *arg), void *arg,
                       struct fd_watch **ret)
{
    struct uring_watch *w = malloc(sizeof(*w));
    if (!w)
        return -ENOMEM;
    *w = (struct uring_watch){
        .base.rt = rt,
        .poll = {.prepare = poll_prepare, .complete = poll_complete, .kind = URING_BACKGROUND},
        .cancel.op = {.complete = cancel_complete, .kind = URING_BACKGROUND},
        .fd = fd,
        .fn = fn,
        .arg = arg,
    };
    w->cancel.target = &w->poll;
    list_push_back(&uring_of(rt)->watches, &w->link);
    poll_arm(w);
    *ret = &w->base;
    return 0;
}

void uring_fd_watch_remove(struct fd_watch *base)
{
    struct uring_watch *w = container_of(base, struct uring_watch, base);
    ASSERT(!w->removed);
    w->removed = true;
    w->op_count++;
    uring_cancel(uring_of(base->rt), &w->cancel);
}

void uring_free_watches(struct uring *u)
{
    struct uring_watch *w, *tmp;
    list_for_each_safe (w, tmp, &u->watches, link)
        watch_free(w);
}
