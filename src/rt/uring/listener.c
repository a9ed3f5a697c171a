/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Listening sockets.
 *
 * L1 A closed listener stays allocated until the runtime is freed, so that a fiber which comes back
 * to net_accept() late is told -ECANCELED instead of touching freed memory. L2 A unix socket file
 * is removed only if it is still the one that we made.
 */
#define LOG_MODULE "net"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "base/err.h"
#include "base/log.h"
#include "rt/uring/loop.h"

#define BACKLOG        512
#define RETRY_DELAY_NS (100 * NS_PER_MS)

struct uring_listener {
    struct listener base; /* first */
    struct list link;     /* uring.closed_listeners */
    int fd;
    bool closed;
    bool accepting;                                         /* a fiber is in net_accept() */
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* of a unix socket, else "" */
    dev_t path_dev;
    ino_t path_ino;
};

struct accepting {
    struct uring_wait wait;
    int fd;
};

static void accept_prepare(struct uring_op *op, struct io_uring_sqe *sqe)
{
    struct accepting *a = container_of(op, struct accepting, wait.op);
    io_uring_prep_accept(sqe, a->fd, NULL, NULL, SOCK_CLOEXEC);
}

/* -EINTR: try again; -EAGAIN: try again after a while. */
static int accept_result(struct uring_listener *l, int result)
{
    if (l->closed) {
        if (result >= 0)
            close(result);
        return -ECANCELED;
    }
    switch (result) {
    case -ECONNABORTED: /* this one is gone, the next may be good */
    case -EPROTO:
    case -EINTR:
        return -EINTR;
    default:
        break;
    }
    if (result >= 0)
        return result;
    log_warn("%s: cannot accept a connection: %s", l->base.address, err_text(result));
    return -EAGAIN; /* out of files or memory: after a while */
}

static fiber_fn int accept_fd(struct uring_listener *l)
{
    struct uring *u = uring_of(l->base.rt);
    while (!l->closed) {
        struct accepting a = {.fd = l->fd};
        l->accepting = true;
        int r = accept_result(l, uring_wait(u, &a.wait, accept_prepare));
        l->accepting = false;
        if (l->closed)
            close(l->fd); /* listener_close() left it to us */
        if (r >= 0 || r == -ECANCELED)
            return r;
        if (r == -EAGAIN && fiber_sleep(l->base.rt, RETRY_DELAY_NS) < 0)
            return -ECANCELED;
    }
    return -ECANCELED;
}

static fiber_fn int uring_accept(struct listener *base, struct conn **ret)
{
    struct uring_listener *l = container_of(base, struct uring_listener, base);
    ASSERT(!l->accepting);
    int fd = accept_fd(l);
    if (fd < 0)
        return fd;
    char peer[NET_ADDRESS_SIZE];
    struct net_target t = {.length = sizeof(t.address)};
    if (l->path[0] || getpeername(fd, (struct sockaddr *)&t.address, &t.length) < 0)
        memcpy(peer, base->address, sizeof(peer));
    else
        address_format(&t, peer);
    struct conn *c = uring_conn_new(uring_of(base->rt), fd, peer);
    if (!c) {
        close(fd);
        return -ENOMEM;
    }
    *ret = c;
    return 0;
}

/* L2 */
static void remove_path(struct uring_listener *l)
{
    struct stat st;
    if (l->path[0] && lstat(l->path, &st) == 0 && st.st_dev == l->path_dev &&
        st.st_ino == l->path_ino)
        unlink(l->path);
}

static void uring_listener_close(struct listener *base)
{
    struct uring_listener *l = container_of(base, struct uring_listener, base);
    ASSERT(!l->closed);
    l->closed = true;
    remove_path(l);
    if (l->accepting)
        shutdown(l->fd, SHUT_RDWR); /* accept returns with an error */
    else
        close(l->fd);
    list_push_back(&uring_of(base->rt)->closed_listeners, &l->link);
}

void uring_free_closed_listeners(struct uring *u)
{
    struct uring_listener *l, *tmp;
    list_for_each_safe (l, tmp, &u->closed_listeners, link)
        free(l);
}

/* A socket file that nobody listens on is left over from a crash. */
static bool is_stale(const char *path, const struct net_target *t)
{
    struct stat st;
    if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode))
        return false;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return false;
    int r = connect(fd, (const struct sockaddr *)&t->address, t->length);
    bool stale = r < 0 && errno == ECONNREFUSED;
    close(fd);
    return stale;
}

static int bind_socket(struct uring_listener *l, const struct net_target *t)
{
    const struct sockaddr *address = (const struct sockaddr *)&t->address;
    if (t->address.ss_family != AF_UNIX) {
        int on = 1;
        setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        return bind(l->fd, address, t->length) < 0 ? -errno : 0;
    }
    struct sockaddr_un un;
    memcpy(&un, &t->address, sizeof(un));
    int r = bind(l->fd, address, t->length) < 0 ? -errno : 0;
    if (r == -EADDRINUSE && is_stale(un.sun_path, t)) {
        unlink(un.sun_path);
        r = bind(l->fd, address, t->length) < 0 ? -errno : 0;
    }
    struct stat st;
    if (r == 0 && lstat(un.sun_path, &st) == 0) {
        memcpy(l->path, un.sun_path, sizeof(l->path));
        l->path_dev = st.st_dev;
        l->path_ino = st.st_ino;
    }
    return r;
}

static int open_socket(struct uring_listener *l, const struct net_target *t)
{
    l->fd = socket(t->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (l->fd < 0)
        return -errno;
    int r = bind_socket(l, t);
    if (r == 0 && listen(l->fd, BACKLOG) < 0)
        r = -errno;
    struct net_target bound = {.length = sizeof(bound.address)};
    if (r == 0 && getsockname(l->fd, (struct sockaddr *)&bound.address, &bound.length) < 0)
        r = -errno;
    if (r < 0) {
        remove_path(l);
        close(l->fd);
        return r;
    }
    address_format(&bound, l->base.address);
    return 0;
}

int uring_listen(struct rt *rt, const char *address, struct listener **ret)
{
    static const struct listener_ops ops = {.accept = uring_accept, .close = uring_listener_close};
    struct net_target t;
    int r = address_parse(address, ADDRESS_LOOKUP, &t); /* at start: may block */
    if (r < 0)
        return r == -ENOENT ? -EINVAL : r;
    struct uring_listener *l = calloc(1, sizeof(*l));
    if (!l)
        return -ENOMEM;
    l->base = (struct listener){.ops = &ops, .rt = rt};
    list_init(&l->link);
    r = open_socket(l, &t);
    if (r < 0) {
        free(l);
        return r;
    }
    *ret = &l->base;
    return 0;
}
