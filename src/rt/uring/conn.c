/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections on io_uring.
 *
 * C1 Output: conn_outs queue in order; at the end of a loop iteration all that is queued goes into
 * one sendmsg. At most one sendmsg is in the kernel; it covers the front of the queue. C2 A
 * conn_out completes when all its bytes were handed over, or when the stream is broken; only from
 *    uring_flush_conns() or from a completion, never inside conn_submit().
 * C3 Input: small reads go through a buffer of INPUT_SIZE that is allocated when first needed; what
 * is in it comes first. A long read goes to its destination directly. C4 `broken` is set once; then
 * shutdown(2) makes whatever is in the kernel complete.
 */
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/err.h"
#include "rt/uring/loop.h"

#define INPUT_SIZE      (64u << 10)
#define DIRECT_SIZE_MIN (32u << 10)
#define IOV_COUNT_MAX   1024 /* the kernel's UIO_MAXIOV */
#define LINGER_NS       (1 * NS_PER_S)

struct uring_conn {
    struct conn base; /* first */
    int fd;
    bool broken; /* C4 */

    uint8_t *input; /* C3 */
    size_t input_start, input_end;
    struct uring_wait receive;
    bool reading;
    void *receive_buffer;
    size_t receive_length;
    int receive_flags;

    struct list outs;       /* conn_out.link, C1 */
    struct list dirty_link; /* uring.dirty_conns, or itself */
    struct uring_op send;
    bool sending;
    struct msghdr message;
    struct iovec *iov; /* of message; grows */
    unsigned iov_capacity;
    struct waitq drained; /* outs is empty and nothing is being sent */
};

static struct uring_conn *conn_of(struct conn *base)
{
    return container_of(base, struct uring_conn, base);
}

static void mark_dirty(struct uring_conn *c)
{
    if (list_empty(&c->dirty_link))
        list_push_back(&uring_of(c->base.rt)->dirty_conns, &c->dirty_link);
}

static void break_stream(struct uring_conn *c)
{
    if (c->broken)
        return;
    c->broken = true;
    shutdown(c->fd, SHUT_RDWR);
    mark_dirty(c); /* C2: what is queued must complete */
}

/* --- input --- */

static void receive_prepare(struct uring_op *op, struct io_uring_sqe *sqe)
{
    struct uring_conn *c = container_of(op, struct uring_conn, receive.op);
    io_uring_prep_recv(sqe, c->fd, c->receive_buffer, c->receive_length, c->receive_flags);
}

/* Bytes received, 0 at the end of the stream, or an errno. */
static fiber_fn int receive(struct uring_conn *c, void *buffer, size_t length, int flags)
{
    c->receive_buffer = buffer;
    c->receive_length = MIN(length, (size_t)INT_MAX / 2);
    c->receive_flags = flags;
    return uring_wait(uring_of(c->base.rt), &c->receive, receive_prepare);
}

static size_t take_buffered(struct uring_conn *c, void *buffer, size_t size)
{
    size_t n = MIN(c->input_end - c->input_start, size);
    if (n > 0)
        memcpy(buffer, c->input + c->input_start, n);
    c->input_start += n;
    return n;
}

/* Fills the (empty) buffer once. */
static fiber_fn int fill_buffer(struct uring_conn *c)
{
    if (!c->input) {
        c->input = malloc(INPUT_SIZE);
        if (!c->input)
            return -ENOMEM;
    }
    ASSERT(c->input_start == c->input_end);
    int r = receive(c, c->input, INPUT_SIZE, 0);
    c->input_start = 0;
    c->input_end = r > 0 ? (size_t)r : 0;
    return r;
}

static ssize_t stream_ended(struct uring_conn *c, int r, size_t got)
{
    if (r == 0 && got == 0 && !c->broken)
        return -ENOTCONN;
    return r == -ENOMEM ? -ENOMEM : -ECONNRESET;
}

static fiber_fn ssize_t uring_conn_read(struct conn *base, void *buffer, size_t least, size_t size)
{
    struct uring_conn *c = conn_of(base);
    ASSERT(!c->reading);
    c->reading = true;
    size_t got = take_buffered(c, buffer, size);
    ssize_t result = 0;
    while (got < least && result == 0) {
        int r = -ECONNRESET;
        if (c->broken) {
            result = stream_ended(c, r, got);
        } else if (size - got >= DIRECT_SIZE_MIN) {
            int flags = least == size ? MSG_WAITALL : 0;
            r = receive(c, (uint8_t *)buffer + got, size - got, flags);
            got += r > 0 ? (size_t)r : 0;
        } else {
            r = fill_buffer(c);
            got += take_buffered(c, (uint8_t *)buffer + got, size - got);
        }
        if (r <= 0 && r != -EINTR && r != -EAGAIN)
            result = stream_ended(c, r, got);
    }
    c->reading = false;
    return result < 0 ? result : (ssize_t)got;
}

/* --- output --- */

static void finish_out(struct uring_conn *c, struct conn_out *o, int result)
{
    list_remove(&o->link);
    o->result = result;
    o->done(o);
}

/* Bytes of o that are not sent yet. */
static size_t out_left(const struct conn_out *o)
{
    size_t total = 0;
    for (unsigned i = 0; i < o->iov_count; i++)
        total += o->iov[i].iov_len;
    return total - o->sent;
}

static bool reserve_iov(struct uring_conn *c, unsigned count)
{
    if (count <= c->iov_capacity)
        return true;
    unsigned capacity = MIN(MAX(count, c->iov_capacity * 2), (unsigned)IOV_COUNT_MAX);
    struct iovec *iov = realloc(c->iov, capacity * sizeof(*iov));
    if (!iov)
        return false;
    c->iov = iov;
    c->iov_capacity = capacity;
    return true;
}

/* Appends what is left of o to the message, as far as it fits; false when it is full. */
static bool add_out(struct uring_conn *c, const struct conn_out *o, unsigned *count)
{
    size_t skip = o->sent;
    for (unsigned i = 0; i < o->iov_count; i++) {
        struct iovec v = o->iov[i];
        size_t skipped = MIN(skip, v.iov_len);
        skip -= skipped;
        v.iov_base = (uint8_t *)v.iov_base + skipped;
        v.iov_len -= skipped;
        if (v.iov_len == 0)
            continue;
        if (*count == IOV_COUNT_MAX || !reserve_iov(c, *count + 1))
            return false;
        c->iov[(*count)++] = v;
    }
    return true;
}

static void consume_sent(struct uring_conn *c, size_t n)
{
    while (!list_empty(&c->outs)) {
        struct conn_out *o = list_first(&c->outs, struct conn_out, link);
        size_t left = out_left(o);
        if (left > n) {
            o->sent += n;
            return;
        }
        n -= left;
        finish_out(c, o, 0);
    }
}

static void send_prepare(struct uring_op *op, struct io_uring_sqe *sqe)
{
    struct uring_conn *c = container_of(op, struct uring_conn, send);
    io_uring_prep_sendmsg(sqe, c->fd, &c->message, MSG_NOSIGNAL | MSG_WAITALL);
}

static void send_complete(struct uring_op *op, int result)
{
    struct uring_conn *c = container_of(op, struct uring_conn, send);
    c->sending = false;
    if (result >= 0)
        consume_sent(c, (size_t)result);
    else if (result != -EINTR && result != -EAGAIN)
        break_stream(c);
    mark_dirty(c); /* go on, fail the rest, or tell that it is drained */
}

static void start_send(struct uring_conn *c)
{
    unsigned count = 0;
    struct conn_out *o;
    list_for_each (o, &c->outs, link) {
        if (!add_out(c, o, &count))
            break;
    }
    if (count == 0) {
        consume_sent(c, 0); /* empty ones complete */
        if (!list_empty(&c->outs))
            break_stream(c); /* no memory for a single iovec */
        return;
    }
    c->message = (struct msghdr){.msg_iov = c->iov, .msg_iovlen = count};
    c->send = (struct uring_op){.prepare = send_prepare, .complete = send_complete};
    c->sending = true;
    uring_submit(uring_of(c->base.rt), &c->send);
}

static void flush_conn(struct uring_conn *c)
{
    if (c->sending)
        return; /* its completion marks us again */
    if (c->broken) {
        struct list failed = LIST_INIT(failed);
        list_splice_back(&failed, &c->outs);
        while (!list_empty(&failed))
            finish_out(c, list_first(&failed, struct conn_out, link), -ECONNRESET);
    } else if (!list_empty(&c->outs)) {
        start_send(c);
    }
    if (!c->sending && list_empty(&c->outs))
        waitq_wake_all(&c->drained);
}

void uring_flush_conns(struct uring *u)
{
    struct list dirty = LIST_INIT(dirty);
    list_splice_back(&dirty, &u->dirty_conns);
    while (!list_empty(&dirty)) {
        struct uring_conn *c = list_first(&dirty, struct uring_conn, dirty_link);
        list_remove(&c->dirty_link);
        flush_conn(c);
    }
}

static void uring_conn_submit(struct conn *base, struct conn_out *o)
{
    struct uring_conn *c = conn_of(base);
    list_push_back(&c->outs, &o->link);
    mark_dirty(c);
}

/* --- life --- */

static void uring_conn_shutdown(struct conn *base)
{
    break_stream(conn_of(base));
}

static fiber_fn void uring_conn_close(struct conn *base)
{
    struct uring_conn *c = conn_of(base);
    ASSERT(!c->reading);
    uint64_t deadline = clock_now(base->rt) + LINGER_NS;
    int r = 0;
    while (!c->broken && r == 0 && (c->sending || !list_empty(&c->outs)))
        r = waitq_wait_until(&c->drained, base->rt, deadline);
    break_stream(c);
    while (c->sending || !list_empty(&c->outs))
        waitq_wait(&c->drained);
    list_remove(&c->dirty_link);
    close(c->fd);
    free(c->input);
    free(c->iov);
    free(c);
}

struct conn *uring_conn_new(struct uring *u, int fd, const char *peer)
{
    static const struct conn_ops ops = {
        .read = uring_conn_read,
        .submit = uring_conn_submit,
        .shutdown = uring_conn_shutdown,
        .close = uring_conn_close,
    };
    struct uring_conn *c = calloc(1, sizeof(*c));
    if (!c)
        return NULL;
    c->base = (struct conn){.ops = &ops, .rt = &u->rt};
    snprintf(c->base.peer, sizeof(c->base.peer), "%s", peer);
    c->fd = fd;
    list_init(&c->outs);
    list_init(&c->dirty_link);
    waitq_init(&c->drained);
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* fails on unix sockets */
    return &c->base;
}
