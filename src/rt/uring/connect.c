/* SPDX-License-Identifier: Apache-2.0 */
/* Connecting: look the name up, then a connect that a timer cancels at the deadline. */
#include <unistd.h>
#include "base/err.h"
#include "rt/uring/loop.h"

struct lookup {
    const char *address;
    struct net_target target;
    int result;
};

static void lookup_blocking(void *arg)
{
    struct lookup *l = arg;
    l->result = address_parse(l->address, ADDRESS_LOOKUP, &l->target);
}

/* Names are looked up by a helper thread; it cannot be interrupted, so a deadline may be overrun.
 */
static fiber_fn int look_up(struct uring *u, const char *address, struct net_target *ret)
{
    int r = address_parse(address, ADDRESS_NO_LOOKUP, ret);
    if (r != -EAGAIN)
        return r;
    if (!u->resolver) {
        r = uring_worker_start(&u->rt, "resolver", &u->resolver);
        if (r < 0)
            return r;
    }
    struct lookup l = {.address = address};
    worker_call(u->resolver, lookup_blocking, &l);
    if (l.result == 0)
        *ret = l.target;
    return l.result;
}

struct connecting {
    struct uring_wait wait;
    struct uring_cancel cancel;
    struct timer timer;
    struct uring *u;
    int fd;
    const struct net_target *target;
    bool timed_out, cancel_finished;
};

static void connect_prepare(struct uring_op *op, struct io_uring_sqe *sqe)
{
    struct connecting *c = container_of(op, struct connecting, wait.op);
    io_uring_prep_connect(sqe, c->fd, (const struct sockaddr *)&c->target->address,
                          c->target->length);
}

static void cancel_complete(struct uring_op *op, int result)
{
    struct connecting *c = container_of(op, struct connecting, cancel.op);
    c->cancel_finished = true;
    if (c->wait.finished)
        fiber_wake(c->wait.fiber);
}

static void deadline_passed(struct timer *t)
{
    struct connecting *c = container_of(t, struct connecting, timer);
    if (c->wait.finished)
        return;
    c->timed_out = true;
    c->cancel.op.complete = cancel_complete;
    c->cancel.target = &c->wait.op;
    uring_cancel(c->u, &c->cancel);
}

static fiber_fn int connect_fd(struct uring *u, int fd, const struct net_target *target,
                               uint64_t deadline_ns)
{
    struct connecting c = {.u = u, .fd = fd, .target = target};
    timer_init(&c.timer, &u->rt, deadline_passed);
    if (deadline_ns != UINT64_MAX)
        timer_arm(&c.timer, deadline_ns);
    int r = uring_wait(u, &c.wait, connect_prepare);
    timer_cancel(&c.timer);
    while (c.timed_out && !c.cancel_finished)
        fiber_suspend(); /* both operations live on this stack */
    return r < 0 && c.timed_out ? -ETIMEDOUT : r;
}

fiber_fn int uring_connect(struct rt *rt, const char *address, uint64_t deadline_ns,
                           struct conn **ret)
{
    struct uring *u = uring_of(rt);
    struct net_target target;
    int r = look_up(u, address, &target);
    if (r < 0)
        return r;
    if (deadline_ns <= clock_now(rt))
        return -ETIMEDOUT;
    int fd = socket(target.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    r = connect_fd(u, fd, &target, deadline_ns);
    if (r == -ENOENT)
        r = -ECONNREFUSED; /* a unix path where nobody listens */
    if (r < 0)
        goto fail_close;
    char peer[NET_ADDRESS_SIZE];
    address_format(&target, peer);
    struct conn *c = uring_conn_new(u, fd, peer);
    if (!c) {
        r = -ENOMEM;
        goto fail_close;
    }
    *ret = c;
    return 0;

fail_close:
    close(fd);
    return r;
}
