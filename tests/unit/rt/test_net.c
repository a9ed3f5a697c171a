/* SPDX-License-Identifier: Apache-2.0 */
/* Promise: net.h holds on real TCP and unix sockets, and in the simulator. */
#include "harness.h"
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define BIG_SIZE (3u << 20)

static char unix_address[64];

static uint64_t soon(struct rt *rt)
{
    return clock_now(rt) + 10 * NS_PER_S;
}

struct server {
    struct rt *rt;
    struct listener *listener;
    struct wgroup finished;
    unsigned accepted;
};

/* Echoes length-prefixed messages until the client ends the stream. */
static void echo_main(void *arg)
{
    struct conn *c = arg;
    uint32_t length;
    int r;
    while ((r = conn_read(c, &length, sizeof(length))) == 0) {
        uint8_t *data = malloc(length);
        CHECK(conn_read(c, data, length) == 0);
        struct iovec iov[] = {{&length, sizeof(length)}, {data, length}};
        CHECK(conn_write(c, iov, 2) == 0);
        free(data);
    }
    CHECK(r == -ENOTCONN);
    conn_close(c);
}

static void server_main(void *arg)
{
    struct server *s = arg;
    struct conn *c;
    int r;
    while ((r = net_accept(s->listener, &c)) == 0) {
        s->accepted++;
        CHECK(fiber_spawn(s->rt, "echo", echo_main, c) == 0);
    }
    CHECK(r == -ECANCELED);
    CHECK(net_accept(s->listener, &c) == -ECANCELED); /* also when asked late */
    wgroup_finish(&s->finished);
}

static void server_start(struct server *s, struct rt *rt, const char *address)
{
    *s = (struct server){.rt = rt};
    CHECK(net_listen(rt, address, &s->listener) == 0);
    wgroup_init(&s->finished);
    wgroup_add(&s->finished, 1);
    CHECK(fiber_spawn(rt, "server", server_main, s) == 0);
}

static void server_stop(struct server *s)
{
    listener_close(s->listener);
    wgroup_wait(&s->finished);
}

static void exchange(struct conn *c, uint32_t length, uint8_t fill)
{
    uint8_t *out = malloc(length), *in = malloc(length);
    for (uint32_t i = 0; i < length; i++)
        out[i] = (uint8_t)(fill + i * 7 + (i >> 12));
    struct iovec iov[] = {
        {&length, sizeof(length)}, {out, length / 3}, {out + length / 3, length - length / 3}};
    CHECK(conn_write(c, iov, 3) == 0);
    uint32_t got;
    CHECK(conn_read(c, &got, sizeof(got)) == 0 && got == length);
    CHECK(conn_read(c, in, length) == 0);
    CHECK(memcmp(in, out, length) == 0);
    free(out);
    free(in);
}

static void echo_over(struct rt *rt, const char *address)
{
    struct server s;
    server_start(&s, rt, address);
    struct conn *a, *b;
    CHECK(net_connect(rt, listener_address(s.listener), soon(rt), &a) == 0);
    CHECK(net_connect(rt, listener_address(s.listener), soon(rt), &b) == 0);
    exchange(a, 1, 1);
    exchange(b, 4096, 2);
    exchange(a, BIG_SIZE, 3);
    exchange(b, 70000, 4);
    conn_close(a);
    conn_close(b);
    CHECK(s.accepted == 2);
    server_stop(&s);
}

static void tcp_body(void *arg)
{
    echo_over(arg, "tcp:127.0.0.1:0");
    echo_over(arg, "tcp:localhost:0");
}

static void test_tcp(void **state)
{
    run_on_uring(NULL, tcp_body);
}

static void test_tcp_sim(void **state)
{
    run_on_sim(NULL, tcp_body);
}

static void unix_body(void *arg)
{
    struct stat st;
    echo_over(arg, unix_address);
    CHECK(stat(unix_address + 5, &st) < 0); /* removed at close */
}

static void test_unix(void **state)
{
    run_on_uring(NULL, unix_body);
}

static void stale_body(void *arg)
{
    struct rt *rt = arg;
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    strcpy(un.sun_path, unix_address + 5);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(fd, (struct sockaddr *)&un, sizeof(un)) == 0);
    close(fd); /* the file stays, as after a crash */

    struct listener *a, *b;
    CHECK(net_listen(rt, unix_address, &a) == 0);
    CHECK(net_listen(rt, unix_address, &b) == -EADDRINUSE);
    listener_close(a);

    FILE *f = fopen(unix_address + 5, "w");
    fclose(f);
    CHECK(net_listen(rt, unix_address, &b) == -EADDRINUSE); /* not ours to remove */
    unlink(unix_address + 5);
}

static void test_stale_unix_socket(void **state)
{
    run_on_uring(NULL, stale_body);
}

static void errors_body(void *arg)
{
    struct rt *rt = arg;
    struct listener *l, *m;
    struct conn *c;
    static const char *const bad[] = {"",
                                      "tcp",
                                      "tcp:",
                                      "tcp:host",
                                      "tcp::80",
                                      "tcp:127.0.0.1:",
                                      "tcp:127.0.0.1:65536",
                                      "tcp:127.0.0.1:8x",
                                      "udp:127.0.0.1:1",
                                      "tcp:::1:80",
                                      "tcp:[::1:80",
                                      "unix:"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        CHECK(net_listen(rt, bad[i], &l) == -EINVAL);
        CHECK(net_connect(rt, bad[i], soon(rt), &c) == -EINVAL);
    }
    char address[NET_ADDRESS_SIZE];
    CHECK(net_listen(rt, "tcp:127.0.0.1:0", &l) == 0);
    strcpy(address, listener_address(l));
    CHECK(net_listen(rt, address, &m) == -EADDRINUSE);
    listener_close(l);
    CHECK(net_connect(rt, address, soon(rt), &c) == -ECONNREFUSED);
    CHECK(net_connect(rt, "unix:/nonexistent/socket", soon(rt), &c) == -ECONNREFUSED);
    CHECK(net_connect(rt, address, clock_now(rt), &c) == -ETIMEDOUT);
}

static void test_errors(void **state)
{
    run_on_uring(NULL, errors_body);
}

/* A connect that nothing answers: the backlog of a listening socket that nobody accepts from is
 * full. */
static void timeout_body(void *arg)
{
    struct rt *rt = arg;
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    strcpy(un.sun_path, unix_address + 5);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(fd, (struct sockaddr *)&un, sizeof(un)) == 0 && listen(fd, 0) == 0);
    struct conn *conns[8];
    unsigned count = 0;
    int r;
    while ((r = net_connect(rt, unix_address, clock_now(rt) + 20 * NS_PER_MS, &conns[count])) == 0)
        CHECK(++count < ARRAY_SIZE(conns));
    CHECK(r == -ETIMEDOUT || r == -EAGAIN);
    for (unsigned i = 0; i < count; i++)
        conn_close(conns[i]);
    close(fd);
    unlink(un.sun_path);
}

static void test_connect_deadline(void **state)
{
    run_on_uring(NULL, timeout_body);
}

struct pair {
    struct conn *client, *server;
};

static void pair_open(struct rt *rt, struct pair *p)
{
    struct listener *l;
    CHECK(net_listen(rt, unix_address, &l) == 0);
    CHECK(net_connect(rt, unix_address, soon(rt), &p->client) == 0);
    CHECK(net_accept(l, &p->server) == 0);
    listener_close(l);
}

struct order_out {
    struct conn_out out;
    struct iovec iov[600];
    uint32_t *values;
    unsigned *done_count;
};

static void order_done(struct conn_out *o)
{
    struct order_out *x = container_of(o, struct order_out, out);
    CHECK(o->result == 0);
    ++*x->done_count;
}

/* More queued at once than one sendmsg may carry, and more than the socket holds. */
static void order_body(void *arg)
{
    struct pair p;
    pair_open(arg, &p);
    enum { OUT_COUNT = 300, IOV_COUNT = 600 };
    struct order_out *outs = calloc(OUT_COUNT, sizeof(*outs));
    uint32_t *values = calloc(OUT_COUNT * IOV_COUNT, sizeof(*values));
    unsigned done_count = 0;
    for (unsigned i = 0; i < OUT_COUNT; i++) {
        for (unsigned j = 0; j < IOV_COUNT; j++) {
            values[i * IOV_COUNT + j] = i * IOV_COUNT + j;
            outs[i].iov[j] = (struct iovec){&values[i * IOV_COUNT + j], sizeof(values[0])};
        }
        outs[i].out = (struct conn_out){.iov = outs[i].iov, .done = order_done};
        outs[i].out.iov_count = i % 50 == 7 ? 0 : IOV_COUNT; /* empty ones complete as well */
        outs[i].done_count = &done_count;
        conn_submit(p.client, &outs[i].out);
    }
    CHECK(done_count == 0); /* never in place */
    for (unsigned i = 0; i < OUT_COUNT; i++) {
        for (unsigned j = 0; j < IOV_COUNT && i % 50 != 7; j++) {
            uint32_t got;
            CHECK(conn_read(p.server, &got, sizeof(got)) == 0 && got == i * IOV_COUNT + j);
        }
    }
    conn_close(p.client);
    CHECK(done_count == OUT_COUNT);
    uint8_t byte;
    CHECK(conn_read(p.server, &byte, 1) == -ENOTCONN);
    conn_close(p.server);
    free(outs);
    free(values);
}

static void test_output_order(void **state)
{
    run_on_uring(NULL, order_body);
}

static void test_output_order_sim(void **state)
{
    run_on_sim(NULL, order_body);
}

static void partial_body(void *arg)
{
    struct pair p;
    uint8_t bytes[100] = {1, 2, 3};
    pair_open(arg, &p);
    CHECK(conn_write(p.client, &(struct iovec){bytes, 3}, 1) == 0);
    CHECK(conn_read_some(p.server, bytes, sizeof(bytes)) == 3);
    CHECK(conn_write(p.client, &(struct iovec){bytes, 3}, 1) == 0);
    conn_close(p.client);
    CHECK(conn_read(p.server, bytes, 4) == -ECONNRESET); /* ends inside */
    conn_close(p.server);
}

static void test_end_inside(void **state)
{
    run_on_uring(NULL, partial_body);
}

static void test_end_inside_sim(void **state)
{
    run_on_sim(NULL, partial_body);
}

struct breaking {
    struct conn *c;
    struct wgroup group;
};

static void blocked_reader(void *arg)
{
    struct breaking *b = arg;
    uint8_t byte;
    CHECK(conn_read(b->c, &byte, 1) == -ECONNRESET);
    wgroup_finish(&b->group);
}

static void blocked_writer(void *arg)
{
    struct breaking *b = arg;
    uint8_t *data = calloc(1, BIG_SIZE);
    CHECK(conn_write(b->c, &(struct iovec){data, BIG_SIZE}, 1) == -ECONNRESET);
    CHECK(conn_write(b->c, &(struct iovec){data, 1}, 1) == -ECONNRESET);
    free(data);
    wgroup_finish(&b->group);
}

static void shutdown_body(void *arg)
{
    struct rt *rt = arg;
    struct pair p;
    pair_open(rt, &p);
    struct breaking b = {.c = p.client};
    wgroup_init(&b.group);
    wgroup_add(&b.group, 2);
    CHECK(fiber_spawn(rt, "reader", blocked_reader, &b) == 0);
    CHECK(fiber_spawn(rt, "writer", blocked_writer, &b) == 0);
    uint8_t byte;
    CHECK(conn_read(p.server, &byte, 1) == 0); /* so the writer is at work, and stuck */
    conn_shutdown(p.client);
    conn_shutdown(p.client);
    wgroup_wait(&b.group);
    conn_close(p.client);
    conn_close(p.server);
}

static void test_shutdown_wakes(void **state)
{
    run_on_uring(NULL, shutdown_body);
}

static void test_shutdown_wakes_sim(void **state)
{
    run_on_sim(NULL, shutdown_body);
}

int main(void)
{
    snprintf(unix_address, sizeof(unix_address), "unix:/tmp/rt-net-%d.sock", getpid());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tcp),
        cmocka_unit_test(test_tcp_sim),
        cmocka_unit_test(test_unix),
        cmocka_unit_test(test_stale_unix_socket),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_connect_deadline),
        cmocka_unit_test(test_output_order),
        cmocka_unit_test(test_output_order_sim),
        cmocka_unit_test(test_end_inside),
        cmocka_unit_test(test_end_inside_sim),
        cmocka_unit_test(test_shutdown_wakes),
        cmocka_unit_test(test_shutdown_wakes_sim),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
