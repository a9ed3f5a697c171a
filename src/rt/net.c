/* SPDX-License-Identifier: Apache-2.0 */
/* Connections above the seam: exact reads and waiting writes. */
#include "rt/net.h"
#include "base/err.h"
#include "rt/seam.h"

int net_listen(struct rt *rt, const char *address, struct listener **ret)
{
    return rt->ops->listen(rt, address, ret);
}

const char *listener_address(const struct listener *l)
{
    return l->address;
}

fiber_fn int net_accept(struct listener *l, struct conn **ret)
{
    return l->ops->accept(l, ret);
}

void listener_close(struct listener *l)
{
    if (l)
        l->ops->close(l);
}

fiber_fn int net_connect(struct rt *rt, const char *address, uint64_t deadline_ns,
                         struct conn **ret)
{
    return rt->ops->connect(rt, address, deadline_ns, ret);
}

fiber_fn int conn_read(struct conn *c, void *buffer, size_t length)
{
    if (length == 0)
        return 0;
    ssize_t n = c->ops->read(c, buffer, length, length);
    ASSERT(n < 0 || (size_t)n == length);
    return n < 0 ? (int)n : 0;
}

fiber_fn ssize_t conn_read_some(struct conn *c, void *buffer, size_t size)
{
    ASSERT(size > 0);
    return c->ops->read(c, buffer, 1, size);
}

struct waiting_out {
    struct conn_out out;
    struct fiber *fiber;
    bool finished;
};

static void waiting_out_done(struct conn_out *o)
{
    struct waiting_out *w = container_of(o, struct waiting_out, out);
    w->finished = true;
    fiber_wake(w->fiber);
}

fiber_fn int conn_write(struct conn *c, const struct iovec *iov, unsigned iov_count)
{
    struct waiting_out w = {
        .out = {.iov = iov, .iov_count = iov_count, .done = waiting_out_done},
        .fiber = fiber_current(),
    };
    conn_submit(c, &w.out);
    while (!w.finished)
        fiber_suspend();
    return w.out.result;
}

void conn_submit(struct conn *c, struct conn_out *o)
{
    o->result = 0;
    o->sent = 0;
    list_init(&o->link);
    c->ops->submit(c, o);
}

void conn_shutdown(struct conn *c)
{
    c->ops->shutdown(c);
}

fiber_fn void conn_close(struct conn *c)
{
    if (c)
        c->ops->close(c);
}

const char *conn_peer(const struct conn *c)
{
    return c->peer;
}
