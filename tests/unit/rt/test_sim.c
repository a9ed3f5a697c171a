/* SPDX-License-Identifier: Apache-2.0 */
/* Promise: the simulated seam is deterministic, and its disks and network fail as real ones may. */
#include "harness.h"
#include "base/hash.h"

#define DISK_SIZE (1u << 20)

/* --- determinism: two nodes that talk, write and sleep --- */

struct world {
    struct sim *sim;
    struct rt *server, *client;
    uint64_t trace;
    unsigned echoed;
};

static void trace_step(struct world *w, uint64_t what)
{
    w->trace = hash_u64(w->trace ^ hash_u64(sim_now(w->sim)) ^ what);
}

struct echo {
    struct world *w;
    struct conn *c;
};

static void echo_main(void *arg)
{
    struct echo *e = arg;
    uint32_t x;
    while (conn_read(e->c, &x, sizeof(x)) == 0) {
        trace_step(e->w, x);
        x++;
        if (conn_write(e->c, &(struct iovec){&x, sizeof(x)}, 1) < 0)
            break;
    }
    conn_close(e->c);
    free(e);
}

static void server_main(void *arg)
{
    struct world *w = arg;
    struct listener *l;
    struct conn *c;
    CHECK(net_listen(w->server, "tcp:server:7000", &l) == 0);
    for (int i = 0; i < 3; i++) {
        CHECK(net_accept(l, &c) == 0);
        struct echo *e = malloc(sizeof(*e));
        *e = (struct echo){w, c};
        CHECK(fiber_spawn(w->server, "echo", echo_main, e) == 0);
    }
    listener_close(l);
}

static void client_main(void *arg)
{
    struct world *w = arg;
    struct rt *rt = w->client;
    struct conn *c;
    struct disk *d;
    CHECK(fiber_sleep(rt, rt_random(rt) % NS_PER_MS) == 0);
    int r;
    while ((r = net_connect(rt, "tcp:server:7000", UINT64_MAX, &c)) == -ECONNREFUSED)
        CHECK(fiber_sleep(rt, NS_PER_MS) == 0);
    CHECK(r == 0 && disk_open(rt, "d", 0, 0, &d) == 0);
    void *p = buf_get(rt, 4096);
    for (uint32_t i = 0; i < 20; i++) {
        uint32_t x = i;
        CHECK(conn_write(c, &(struct iovec){&x, sizeof(x)}, 1) == 0);
        CHECK(conn_read(c, &x, sizeof(x)) == 0 && x == i + 1);
        memset(p, (int)i, 4096);
        CHECK(disk_write(d, i * 4096, p, 4096, 0) == 0);
        trace_step(w, 1000 + i);
    }
    buf_put(rt, p);
    disk_close(d);
    conn_close(c);
    w->echoed++;
}

static uint64_t run_world(uint64_t seed)
{
    struct world w = {.sim = sim_new(seed)};
    w.server = sim_node_new(w.sim, NULL);
    w.client = sim_node_new(w.sim, NULL);
    assert_int_equal(sim_disk_new(w.sim, "d", DISK_SIZE, DISK_WRITE_BACK), 0);
    assert_int_equal(fiber_spawn(w.server, "server", server_main, &w), 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(fiber_spawn(w.client, "client", client_main, &w), 0);
    uint64_t steps = sim_run(w.sim, UINT64_MAX);
    assert_int_equal(w.echoed, 3);
    trace_step(&w, steps);
    sim_free(w.sim);
    return w.trace;
}

static void test_deterministic(void **state)
{
    unsigned distinct = 0;
    for (uint64_t seed = 0; seed < 30; seed++) {
        uint64_t a = run_world(seed);
        assert_true(a == run_world(seed));
        distinct += a != run_world(seed + 1000);
    }
    assert_int_equal(distinct, 30);
}

/* --- disks --- */

struct disk_test {
    struct sim *sim;
    struct rt *rt;
    int result;
    unsigned flags;
    bool kill;
};

static void crash_main(void *arg)
{
    struct disk_test *t = arg;
    struct disk *d;
    CHECK(disk_open(t->rt, "d", DISK_OPEN_EXCLUSIVE, 0, &d) == 0);
    void *p = buf_get(t->rt, 8192);
    memset(p, 1, 8192);
    CHECK(disk_write(d, 0, p, 8192, 0) == 0);
    CHECK(disk_flush(d) == 0);
    memset(p, 2, 8192);
    CHECK(disk_write(d, 0, p, 8192, t->flags) == 0);
    if (t->kill)
        sim_node_kill(t->sim, t->rt);
    else
        sim_node_crash(t->sim, t->rt);
    CHECK(disk_flush(d) == 0);
    CHECK(!"a crashed node went on");
}

enum death { POWER_CUT, KILL };
enum outcome { OLD = 1, NEW = 2, TORN = 4 };

static unsigned outcome_of(const uint8_t *p)
{
    unsigned old = 0, new = 0;
    for (unsigned i = 0; i < 8192; i += 512) {
        for (unsigned j = 1; j < 512; j++)
            assert_int_equal(p[i + j], p[i]); /* sectors are whole */
        old += p[i] == 1;
        new += p[i] == 2;
    }
    assert_int_equal(old + new, 16);
    return new == 0 ? OLD : old == 0 ? NEW : TORN;
}

static unsigned crash_outcomes(enum disk_durability durability, unsigned flags, enum death death)
{
    unsigned outcomes = 0;
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct disk_test t = {.sim = sim_new(seed), .flags = flags, .kill = death == KILL};
        t.rt = sim_node_new(t.sim, NULL);
        assert_int_equal(sim_disk_new(t.sim, "d", DISK_SIZE, durability), 0);
        sim_do(t.sim, t.rt, crash_main, &t);
        outcomes |= outcome_of(sim_disk_bytes(t.sim, "d"));
        sim_free(t.sim);
    }
    return outcomes;
}

static void test_power_cut(void **state)
{
    assert_int_equal(crash_outcomes(DISK_WRITE_BACK, 0, POWER_CUT), OLD | NEW | TORN);
    assert_int_equal(crash_outcomes(DISK_FUA, 0, POWER_CUT), OLD | NEW | TORN);
    assert_int_equal(crash_outcomes(DISK_FUA, DISK_IO_FUA, POWER_CUT), NEW);
    assert_int_equal(crash_outcomes(DISK_WRITE_THROUGH, 0, POWER_CUT), NEW);
    assert_int_equal(crash_outcomes(DISK_WRITE_BACK, 0, KILL), NEW);
}

/* In flight at the end, by a fault plan: any outcome, also of a kill. */
static void in_flight_main(void *arg)
{
    struct disk_test *t = arg;
    struct disk *d;
    CHECK(disk_open(t->rt, "d", 0, 0, &d) == 0);
    void *p = buf_get(t->rt, 8192);
    memset(p, 1, 8192);
    CHECK(disk_write(d, 0, p, 8192, 0) == 0);
    CHECK(disk_flush(d) == 0);
    memset(p, 2, 8192);
    (void)disk_write(d, 0, p, 8192, DISK_IO_FUA);
    CHECK(!"a crashed node went on");
}

static void test_in_flight(void **state)
{
    unsigned outcomes = 0;
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct disk_test t = {.sim = sim_new(seed)};
        t.rt = sim_node_new(t.sim, NULL);
        assert_int_equal(sim_disk_new(t.sim, "d", DISK_SIZE, DISK_FUA), 0);
        sim_disk_fault(t.sim, "d", DISK_WRITE, SIM_FAULT_CRASH, 3);
        sim_do(t.sim, t.rt, in_flight_main, &t);
        assert_int_equal(sim_disk_op_count(t.sim, "d", DISK_FLUSH), 3);
        outcomes |= outcome_of(sim_disk_bytes(t.sim, "d"));
        sim_free(t.sim);
    }
    assert_int_equal(outcomes, OLD | NEW | TORN);
}

static void faults_main(void *arg)
{
    struct disk_test *t = arg;
    struct disk *d, *e;
    CHECK(disk_open(t->rt, "new", DISK_OPEN_CREATE | DISK_OPEN_EXCLUSIVE, DISK_SIZE, &d) == 0);
    CHECK(disk_open(t->rt, "new", DISK_OPEN_CREATE, DISK_SIZE, &e) == -EEXIST);
    CHECK(disk_open(t->rt, "new", DISK_OPEN_EXCLUSIVE, 0, &e) == -EBUSY);
    CHECK(disk_open(t->rt, "none", 0, 0, &e) == -ENOENT);
    uint8_t *p = buf_get(t->rt, 4096);
    memset(p, 7, 4096);
    sim_disk_fault(t->sim, "new", DISK_WRITE, SIM_FAULT_EIO_ONCE, 2);
    CHECK(disk_write(d, 0, p, 4096, 0) == 0);
    CHECK(disk_write(d, 4096, p, 4096, 0) == -EIO);
    CHECK(disk_write(d, 8192, p, 4096, 0) == 0);
    sim_disk_fault(t->sim, "new", DISK_READ, SIM_FAULT_EIO_FROM, 2);
    memset(p, 0, 4096);
    CHECK(disk_read(d, 0, p, 4096) == 0 && p[0] == 7 && p[4095] == 7);
    CHECK(disk_read(d, 0, p, 4096) == -EIO && disk_read(d, 0, p, 4096) == -EIO);
    sim_disk_fault(t->sim, "new", DISK_READ, SIM_FAULT_NONE, 0);
    CHECK(disk_read(d, 8192, p, 4096) == 0 && p[0] == 7);
    buf_put(t->rt, p);
    disk_close(d);
    t->result = 1;
}

static void test_faults(void **state)
{
    struct disk_test t = {.sim = sim_new(1)};
    t.rt = sim_node_new(t.sim, NULL);
    sim_do(t.sim, t.rt, faults_main, &t);
    assert_int_equal(t.result, 1);
    sim_free(t.sim);
}

/* A write or a flush fails, and the next flush does not; then the power goes. */
static void failure_main(void *arg)
{
    struct disk_test *t = arg;
    struct disk *d;
    CHECK(disk_open(t->rt, "d", 0, 0, &d) == 0);
    void *p = buf_get(t->rt, 8192);
    memset(p, 1, 8192);
    CHECK(disk_write(d, 0, p, 8192, 0) == 0);
    CHECK(disk_flush(d) == 0);
    memset(p, 2, 8192);
    sim_disk_fault(t->sim, "d", DISK_WRITE, SIM_FAULT_EIO_ONCE, t->flags);
    int r_write = disk_write(d, 0, p, 8192, 0), r_flush = disk_flush(d);
    CHECK((r_write == -EIO) == (t->flags == 1) && (r_flush == -EIO) == (t->flags == 2));
    if (r_write == 0)
        CHECK(disk_read(d, 0, p, 8192) == 0 && outcome_of(p) == NEW);
    CHECK(disk_flush(d) == 0);
    sim_node_crash(t->sim, t->rt);
    fiber_yield();
}

static void test_failures(void **state)
{
    for (unsigned nth = 1; nth <= 2; nth++) {
        unsigned outcomes = 0;
        for (uint64_t seed = 0; seed < 50; seed++) {
            struct disk_test t = {.sim = sim_new(seed), .flags = nth};
            t.rt = sim_node_new(t.sim, NULL);
            assert_int_equal(sim_disk_new(t.sim, "d", DISK_SIZE, DISK_WRITE_BACK), 0);
            sim_do(t.sim, t.rt, failure_main, &t);
            outcomes |= outcome_of(sim_disk_bytes(t.sim, "d"));
            sim_free(t.sim);
        }
        assert_int_equal(outcomes, nth == 1 ? OLD | NEW | TORN : OLD | NEW);
    }
}

/* --- a node that dies resets its streams --- */

static void patient_main(void *arg)
{
    struct world *w = arg;
    struct conn *c;
    CHECK(net_connect(w->client, "tcp:server:7000", UINT64_MAX, &c) == 0);
    uint32_t x = 1;
    CHECK(conn_write(c, &(struct iovec){&x, sizeof(x)}, 1) == 0);
    CHECK(conn_read(c, &x, sizeof(x)) == 0);
    sim_node_crash(w->sim, w->server);
    CHECK(conn_read(c, &x, sizeof(x)) == -ECONNRESET);
    CHECK(conn_write(c, &(struct iovec){&x, sizeof(x)}, 1) == -ECONNRESET);
    conn_close(c);
    CHECK(net_connect(w->client, "tcp:server:7000", UINT64_MAX, &c) == -ECONNREFUSED);
    w->echoed++;
}

static void test_crash_resets(void **state)
{
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct world w = {.sim = sim_new(seed)};
        w.server = sim_node_new(w.sim, NULL);
        w.client = sim_node_new(w.sim, NULL);
        assert_int_equal(fiber_spawn(w.server, "server", server_main, &w), 0);
        sim_run(w.sim, 0);
        sim_do(w.sim, w.client, patient_main, &w);
        assert_int_equal(w.echoed, 1);
        assert_int_equal(fiber_spawn(w.server, "again", server_main, &w), 0); /* a restart */
        sim_run(w.sim, UINT64_MAX);
        sim_free(w.sim);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deterministic), cmocka_unit_test(test_power_cut),
        cmocka_unit_test(test_in_flight),     cmocka_unit_test(test_faults),
        cmocka_unit_test(test_failures),      cmocka_unit_test(test_crash_resets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
