/* SPDX-License-Identifier: Apache-2.0 */
/* Promise: what depends on time. The server and its clients run in the simulator, so hours are
 * free. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/bytes.h"
#include "base/err.h"
#include "base/log.h"
#include "fake_volume.h"
#include "front/nbd/admission.h"
#include "front/nbd/nbd.h"
#include "sim/sim.h"
#include "wire/nbd.h"

#define ADDRESS "tcp:server:10809"
#define MIB     (1u << 20)
#define HOUR_NS (3600 * NS_PER_S)

/* cmocka's own assertions jump, which a fiber must not. */
#define CHECK(condition) ASSERT(condition)

struct world {
    struct sim *sim;
    struct rt *server_rt, *client_rt;
    struct volumes *volumes;
    struct nbd_server *server;
    unsigned finished; /* scenario fibers that came to their end */
};

static void start_main(void *arg)
{
    struct world *w = arg;
    struct listener *l;
    CHECK(net_listen(w->server_rt, ADDRESS, &l) == 0);
    struct nbd_options o = {.listeners = &l, .listener_count = 1};
    CHECK(nbd_start(w->server_rt, w->volumes, &o, &w->server) == 0);
}

static int set_up(void **state)
{
    struct world *w = calloc(1, sizeof(*w));
    w->sim = sim_new(4711);
    w->server_rt = sim_node_new(w->sim, NULL);
    w->client_rt = sim_node_new(w->sim, NULL);
    w->volumes = fake_volumes_new(w->server_rt);
    assert_int_equal(fake_volumes_add(w->volumes, "disk", "", 64 * MIB), 0);
    assert_int_equal(fiber_spawn(w->server_rt, "start", start_main, w), 0);
    *state = w;
    return 0;
}

static void stop_main(void *arg)
{
    struct world *w = arg;
    nbd_stop(w->server);
    w->server = NULL;
}

static int tear_down(void **state)
{
    struct world *w = *state;
    if (w->server)
        sim_do(w->sim, w->server_rt, stop_main, w);
    assert_null(w->server);
    assert_int_equal(fake_volumes_open_count(w->volumes), 0);
    fake_volumes_free(w->volumes);
    sim_free(w->sim);
    free(w);
    return 0;
}

/* Runs `count` scenario fibers on the client's node, and checks that each came to its end. */
static void play(struct world *w, fiber_main *const *fns, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        assert_int_equal(fiber_spawn(w->client_rt, "scenario", fns[i], w), 0);
    sim_run(w->sim, 100 * HOUR_NS);
    assert_int_equal(w->finished, count);
}

/* --- a small client --- */

static fiber_fn struct conn *client_connect(struct world *w)
{
    struct conn *c;
    uint8_t greeting[NBD_GREETING_SIZE];
    CHECK(fiber_sleep(w->client_rt, NS_PER_MS) == 0); /* the server listens by then */
    CHECK(net_connect(w->client_rt, ADDRESS, UINT64_MAX, &c) == 0);
    CHECK(conn_read(c, greeting, sizeof(greeting)) == 0);
    return c;
}

static fiber_fn void send_bytes(struct conn *c, const void *p, size_t length)
{
    struct iovec iov = {.iov_base = (void *)p, .iov_len = length};
    CHECK(conn_write(c, &iov, 1) == 0);
}

static fiber_fn struct conn *client_open(struct world *w)
{
    static const uint8_t flags[4] = {0, 0, 0, 3}, data[] = "\0\0\0\4disk\0\0";
    struct conn *c = client_connect(w);
    uint8_t option[NBD_OPTION_SIZE], bytes[NBD_OPTION_REPLY_SIZE], skipped[512];
    struct nbd_option_reply reply = {0};
    nbd_option_put(option, &(struct nbd_option){.code = NBD_OPT_GO, .length = sizeof(data) - 1});
    send_bytes(c, flags, sizeof(flags));
    send_bytes(c, option, sizeof(option));
    send_bytes(c, data, sizeof(data) - 1);
    while (reply.code != NBD_REP_ACK) {
        CHECK(conn_read(c, bytes, sizeof(bytes)) == 0);
        CHECK(nbd_option_reply_get(bytes, &reply) == 0);
        CHECK(reply.length <= sizeof(skipped) && conn_read(c, skipped, reply.length) == 0);
    }
    return c;
}

static fiber_fn void ask(struct conn *c, enum nbd_command command, uint32_t length)
{
    uint8_t bytes[NBD_REQUEST_SIZE];
    nbd_request_put(bytes, &(struct nbd_request){.command = (uint16_t)command, .length = length});
    send_bytes(c, bytes, sizeof(bytes));
}

/* The simple reply to a READ of `length` bytes: 0, or the connection's error. */
static fiber_fn int take_answer(struct conn *c, uint32_t length)
{
    uint8_t header[NBD_SIMPLE_REPLY_SIZE];
    uint8_t *data = malloc(length);
    int r = conn_read(c, header, sizeof(header));
    if (r == 0 && length > 0)
        r = conn_read(c, data, length);
    free(data);
    return r;
}

/* --- the handshake's deadline --- */

static void silent_client(void *arg)
{
    struct world *w = arg;
    struct conn *c = client_connect(w);
    uint64_t started_ns = clock_now(w->client_rt);
    uint8_t byte;
    CHECK(conn_read(c, &byte, 1) < 0);
    uint64_t waited_ns = clock_now(w->client_rt) - started_ns;
    CHECK(waited_ns > 9 * NS_PER_S && waited_ns < 11 * NS_PER_S);
    conn_close(c);
    w->finished++;
}

/* Sends one byte of its option each second. */
static void trickling_client(void *arg)
{
    struct world *w = arg;
    static const uint8_t bytes[] = "\0\0\0\3IHAVEOPT\0\0\0\7\0\0\0\12\0\0\0\4disk\0\0";
    struct conn *c = client_connect(w);
    struct iovec iov = {.iov_len = 1};
    unsigned sent = 0;
    for (; sent < sizeof(bytes) - 1; sent++) {
        iov.iov_base = (void *)&bytes[sent];
        if (conn_write(c, &iov, 1) < 0)
            break;
        CHECK(fiber_sleep(w->client_rt, NS_PER_S) == 0);
    }
    CHECK(sent >= 9 && sent <= 12);
    conn_close(c);
    w->finished++;
}

static void test_handshake_deadline(void **state)
{
    static fiber_main *const fns[] = {silent_client, trickling_client};
    play(*state, fns, ARRAY_SIZE(fns));
}

static void idle_client(void *arg)
{
    struct world *w = arg;
    struct conn *c = client_open(w);
    CHECK(fiber_sleep(w->client_rt, 24 * HOUR_NS) == 0);
    ask(c, NBD_CMD_READ, 4096);
    CHECK(take_answer(c, 4096) == 0);
    conn_close(c);
    w->finished++;
}

static void test_open_client_may_idle(void **state)
{
    static fiber_main *const fns[] = {idle_client};
    play(*state, fns, ARRAY_SIZE(fns));
}

/* --- standing still --- */

#define PAUSED_READ_COUNT 64u /* of 1 MiB: twice what may be in progress */

/* Asks for much, takes nothing for an hour, then everything. */
static void paused_client(void *arg)
{
    struct world *w = arg;
    struct conn *c = client_open(w);
    for (unsigned i = 0; i < PAUSED_READ_COUNT; i++)
        ask(c, NBD_CMD_READ, MIB);
    CHECK(fiber_sleep(w->client_rt, HOUR_NS) == 0);
    for (unsigned i = 0; i < PAUSED_READ_COUNT; i++)
        CHECK(take_answer(c, MIB) == 0);
    conn_close(c);
    w->finished++;
}

static void test_paused_client_alone_is_left_alone(void **state)
{
    static fiber_main *const fns[] = {paused_client};
    play(*state, fns, ARRAY_SIZE(fns));
}

/* As paused_client(), but others come; it is cut. */
static void blocking_client(void *arg)
{
    struct world *w = arg;
    struct conn *c = client_open(w);
    for (unsigned i = 0; i < PAUSED_READ_COUNT; i++)
        ask(c, NBD_CMD_READ, MIB);
    CHECK(fiber_sleep(w->client_rt, HOUR_NS) == 0);
    unsigned answers = 0;
    while (answers < PAUSED_READ_COUNT && take_answer(c, MIB) == 0)
        answers++;
    CHECK(answers < PAUSED_READ_COUNT);
    conn_close(c);
    w->finished++;
}

/* Sends half of a write, and no more for an hour. */
static void half_writing_client(void *arg)
{
    struct world *w = arg;
    static const uint8_t half[1000];
    struct conn *c = client_open(w);
    ask(c, NBD_CMD_WRITE, 16 * MIB);
    send_bytes(c, half, sizeof(half));
    CHECK(fiber_sleep(w->client_rt, HOUR_NS) == 0);
    CHECK(take_answer(c, 0) < 0);
    conn_close(c);
    w->finished++;
}

/* Is held up by the others, for a while only. */
static void innocent_client(void *arg)
{
    struct world *w = arg;
    CHECK(fiber_sleep(w->client_rt, 60 * NS_PER_S) == 0);
    struct conn *c = client_open(w);
    uint64_t started_ns = clock_now(w->client_rt);
    ask(c, NBD_CMD_READ, 31 * MIB);
    CHECK(take_answer(c, 31 * MIB) == 0);
    CHECK(clock_now(w->client_rt) - started_ns < 45 * NS_PER_S);
    conn_close(c);
    w->finished++;
}

static void test_blocking_reader_is_cut(void **state)
{
    static fiber_main *const fns[] = {blocking_client, innocent_client};
    play(*state, fns, ARRAY_SIZE(fns));
}

static void test_half_writer_is_cut(void **state)
{
    static fiber_main *const fns[] = {half_writing_client, innocent_client};
    play(*state, fns, ARRAY_SIZE(fns));
}

/* --- stop --- */

static void unreading_client(void *arg)
{
    struct world *w = arg;
    struct conn *c = client_open(w);
    for (unsigned i = 0; i < 8; i++)
        ask(c, NBD_CMD_READ, MIB);
    CHECK(fiber_sleep(w->client_rt, HOUR_NS) == 0);
    conn_close(c);
    w->finished++;
}

static void stopping_fiber(void *arg)
{
    struct world *w = arg;
    CHECK(fiber_sleep(w->server_rt, NS_PER_S) == 0);
    uint64_t started_ns = clock_now(w->server_rt);
    nbd_stop(w->server);
    w->server = NULL;
    uint64_t waited_ns = clock_now(w->server_rt) - started_ns;
    CHECK(waited_ns > 4 * NS_PER_S && waited_ns < 7 * NS_PER_S);
}

static void test_stop_waits_so_long_and_no_longer(void **state)
{
    static fiber_main *const fns[] = {unreading_client};
    struct world *w = *state;
    assert_int_equal(fiber_spawn(w->server_rt, "stopping", stopping_fiber, w), 0);
    play(w, fns, ARRAY_SIZE(fns));
    assert_null(w->server);
}

/* --- admission --- */

struct entrant {
    struct world *w;
    struct admission *a;
    size_t bytes;
    unsigned *order, *next, number;
};

static void entrant_main(void *arg)
{
    struct entrant *e = arg;
    admission_enter(e->a, e->bytes);
    e->order[(*e->next)++] = e->number;
}

static void test_admission_is_fair(void **state)
{
    struct world *w = *state;
    struct admission a;
    unsigned order[5], next = 0;
    static const size_t bytes[] = {90, 20, 300, 1, 0};
    struct entrant entrants[ARRAY_SIZE(bytes)];
    admission_init(&a, 100, 3);
    for (unsigned i = 0; i < ARRAY_SIZE(bytes); i++) {
        entrants[i] = (struct entrant){w, &a, bytes[i], order, &next, i};
        fiber_spawn(w->client_rt, "entrant", entrant_main, &entrants[i]);
    }
    sim_run(w->sim, HOUR_NS);
    assert_int_equal(next, 1); /* 90 of 100; nobody overtakes the 20 */
    assert_false(admission_try(&a, 1));
    admission_leave(&a, 90);
    sim_run(w->sim, 2 * HOUR_NS);
    assert_int_equal(next, 2); /* 300 goes in alone only */
    admission_leave(&a, 20);
    sim_run(w->sim, 3 * HOUR_NS);
    assert_int_equal(next, 3);
    admission_leave(&a, 300);
    sim_run(w->sim, 4 * HOUR_NS);
    assert_int_equal(next, 5);
    assert_int_equal(a.count_used, 2);
    assert_int_equal(a.bytes_used, 1);
    assert_true(admission_try(&a, 0));
    assert_false(admission_try(&a, 0)); /* three at most */
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(order[i], i);
}

int main(void)
{
    log_level = LOG_ERROR;
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_handshake_deadline),
        TEST(test_open_client_may_idle),
        TEST(test_paused_client_alone_is_left_alone),
        TEST(test_blocking_reader_is_cut),
        TEST(test_half_writer_is_cut),
        TEST(test_stop_waits_so_long_and_no_longer),
        TEST(test_admission_is_fair),
    };
    return cmocka_run_group_tests_name("nbd/time", tests, NULL, NULL);
}
