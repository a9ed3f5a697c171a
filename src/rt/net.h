/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seam: byte-stream connections. Addresses are text: "tcp:HOST:PORT" (HOST may be an IPv4 address,
 * a name, or [IPv6]; PORT 0 on listening picks a free one) and "unix:/path".
 */
#pragma once
#include <sys/types.h>
#include <sys/uio.h>
#include "rt/fiber.h"

#define NET_ADDRESS_SIZE 128

struct conn;
struct listener;

/* 0; -EADDRINUSE / -EACCES / -EINVAL … A stale unix socket file (nobody listens) is replaced. */
int net_listen(struct rt *rt, const char *address, struct listener **ret);
/* The address really bound, with the port chosen. Borrowed. */
const char *listener_address(const struct listener *l);
/* 0, or -ECANCELED after listener_close(). *ret is owned. */
fiber_fn int net_accept(struct listener *l, struct conn **ret);
/* Frees l once the fiber in net_accept() was woken; removes a unix socket file. */
void listener_close(struct listener *l);

/* deadline_ns on clock_now(). 0, -ECONNREFUSED, -ETIMEDOUT … */
fiber_fn int net_connect(struct rt *rt, const char *address, uint64_t deadline_ns,
                         struct conn **ret);

/* Reads exactly `length` bytes. 0; -ENOTCONN at a clean end before the first byte; -ECONNRESET when
 * the stream ends or breaks inside, or after conn_shutdown(). Small reads come from an internal
 * buffer; a large one goes into `buffer` directly. One reading fiber at a time. */
fiber_fn int conn_read(struct conn *c, void *buffer, size_t length);
/* Reads 1 to `size` bytes: their number, or an error as above. */
fiber_fn ssize_t conn_read_some(struct conn *c, void *buffer, size_t size);
/* Writes all of iov, in the order of the calls; any number of fibers may write at once, and what is
 * queued in one loop iteration leaves in one system call. Returns when the bytes were handed to the
 * kernel (the memory may be reused): 0 or -ECONNRESET. */
fiber_fn int conn_write(struct conn *c, const struct iovec *iov, unsigned iov_count);
/* Asynchronous form of conn_write(): o, iov and the memory stay untouched until done() ran (on the
 * loop, not on a fiber). Always completes, also after shutdown. */
struct conn_out {
    const struct iovec *iov;
    unsigned iov_count;
    int result;
    void (*done)(struct conn_out *o);
    struct list link; /* private */
    size_t sent;      /* private */
};
void conn_submit(struct conn *c, struct conn_out *o);
/* Breaks the stream: fibers inside conn_read()/conn_write() return -ECONNRESET. Idempotent. */
void conn_shutdown(struct conn *c);
/* Shuts down and frees; no fiber may be inside a call on c, queued conn_outs complete first. */
fiber_fn void conn_close(struct conn *c);
/* Where the peer is, for messages. Borrowed. */
const char *conn_peer(const struct conn *c);
