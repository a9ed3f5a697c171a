/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver contract over `zookeeper`, on Debian's real server: one that is killed, stopped and
 * started again, an ensemble of three, many keys, and nodes that are not the store's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"
#include "base/log.h"
#include "cluster/drivers/zookeeper_entry.h"
#include "cluster/drivers/zookeeper_link.h"
#include "contract.h"
#include "mirror.h"
#include "rt/uring/uring.h"
#include "zk_scene.h"

/* --- the contract --- */

static fiber_fn int open_one(struct contract *k, struct cs **ret)
{
    return zk_open(k->rt, zk_stage.where, ret);
}

static fiber_fn void contract_scene(struct rt *rt)
{
    struct contract k = {.rt = rt, .open = open_one};
    contract_run(&k);
}

static void test_contract(void **state)
{
    zk_run_scene(10, contract_scene);
}

/* --- many keys --- */

#define RECORDS       10000u
#define RECORDS_A_TXN 50u

static int count_row(void *arg, const char *key, const void *value, size_t length,
                     uint64_t revision)
{
    ++*(unsigned *)arg;
    return 0;
}

static fiber_fn void put_records(struct cs *cs, const char *value)
{
    for (unsigned base = 0; base < RECORDS; base += RECORDS_A_TXN) {
        char keys[RECORDS_A_TXN][32];
        struct cs_op ops[RECORDS_A_TXN];
        for (unsigned i = 0; i < RECORDS_A_TXN; i++) {
            snprintf(keys[i], sizeof(keys[i]), "volume/%06u", base + i);
            ops[i] = (struct cs_op){.kind = CS_PUT,
                                    .key = keys[i],
                                    .revision = CS_REVISION_ANY,
                                    .value = value,
                                    .length = 200};
        }
        ASSERT(cs_txn(cs, ops, RECORDS_A_TXN, NULL) == 0);
    }
}

static fiber_fn void records_scene(struct rt *rt)
{
    static char value[200];
    struct cs *a, *b, *late;
    struct mirror m, late_mirror;
    unsigned count = 0;
    uint64_t last;
    ASSERT(zk_open(rt, zk_stage.where, &a) == 0 && zk_open(rt, zk_stage.where, &b) == 0);
    mirror_init(&m, rt, b, "volume/");
    memset(value, 'x', sizeof(value));
    put_records(a, value);
    memset(value, 'y', sizeof(value));
    put_records(a, value);
    struct cs_op op = {.kind = CS_DELETE, .key = "volume/000077", .revision = CS_REVISION_ANY};
    ASSERT(cs_txn(a, &op, 1, &last) == 0);
    ASSERT(zk_open(rt, zk_stage.where, &late) == 0);
    mirror_init(&late_mirror, rt, late, "volume/");
    ASSERT(cs_list(b, "volume/", count_row, &count) == 0 && count == RECORDS - 1);
    mirror_wait_revision(&m, last);
    ASSERT(m.count == 2 * RECORDS + 2); /* each change, the deletion, the end mark */
    while (late_mirror.end_at == 0)
        waitq_wait(&late_mirror.changed);
    ASSERT(late_mirror.end_at == RECORDS);
    mirror_check_order(&m);
    mirror_check_order(&late_mirror);
    cs_close(late);
    cs_close(b);
    cs_close(a);
    mirror_done(&m);
    mirror_done(&late_mirror);
}

static void test_records(void **state)
{
    zk_run_scene(10, records_scene);
}

/* --- servers that go and come --- */

struct counter {
    struct rt *rt;
    struct cs *cs;
    const char *key;
    unsigned count;
    uint64_t last; /* revision of the last one */
    bool stop;
    struct wgroup running;
};

/* Each step is conditional on the one before, so that one that happened twice or not at all shows.
 */
static fiber_fn void counter_main(void *arg)
{
    struct counter *c = arg;
    uint64_t revision = CS_REVISION_ABSENT;
    while (!c->stop) {
        uint8_t bytes[8];
        put_le64(bytes, ++c->count);
        struct cs_op op = {
            .kind = CS_PUT, .key = c->key, .revision = revision, .value = bytes, .length = 8};
        ASSERT(cs_txn(c->cs, &op, 1, &revision) == 0);
        fiber_sleep(c->rt, 4 * NS_PER_MS); /* so that nobody falls behind what is kept */
    }
    c->last = revision;
    wgroup_finish(&c->running);
}

static void counter_start(struct counter *c, struct rt *rt, struct cs *cs, const char *key)
{
    *c = (struct counter){.rt = rt, .cs = cs, .key = key};
    wgroup_init(&c->running);
    wgroup_add(&c->running, 1);
    ASSERT(fiber_spawn(rt, "counter", counter_main, c) == 0);
}

static fiber_fn void counter_stop(struct counter *c, const struct mirror *m)
{
    c->stop = true;
    wgroup_wait(&c->running);
    mirror_wait_revision((struct mirror *)m, c->last);
    unsigned told = 0;
    for (size_t i = 0; i < m->count; i++)
        told += strcmp(m->events[i].key, c->key) == 0;
    ASSERT(told == c->count);
}

/* Blocks for as long as the zk_stage.servers need, beside the loop. */
struct blocking {
    const struct zk_servers *servers;
    unsigned index;
};

static void call_wait(void *arg)
{
    struct blocking *b = arg;
    zk_server_wait(b->servers, b->index);
}

static fiber_fn void wait_server(struct worker *w, unsigned index)
{
    struct blocking b = {.servers = &zk_stage.servers, .index = index};
    worker_call(w, call_wait, &b);
}

/* The server is killed in the middle of commits and comes back, or stops for a while: no commit is
 * lost or made twice, none is missed by a watch, and no session ends. */
static fiber_fn void restart_scene(struct rt *rt)
{
    struct cs *a, *b;
    struct mirror m;
    struct counter x, y;
    struct worker *w;
    ASSERT(worker_start(rt, "wait", &w) == 0);
    ASSERT(zk_open(rt, zk_stage.where, &a) == 0 && zk_open(rt, zk_stage.where, &b) == 0);
    zk_put_ephemeral(a, "count/alive", "a");
    mirror_init(&m, rt, b, "count/");
    mirror_wait_key(&m, "count/alive");
    counter_start(&x, rt, a, "count/x");
    counter_start(&y, rt, b, "count/y");
    for (unsigned round = 0; round < 5; round++) {
        fiber_sleep(rt, (100 + rt_random(rt) % 300) * NS_PER_MS);
        if (round == 2) {
            zk_server_signal(&zk_stage.servers, 0, SIGSTOP);
            fiber_sleep(rt, 7 * NS_PER_S); /* of 10: the library gives the connection up */
            zk_server_signal(&zk_stage.servers, 0, SIGCONT);
        } else {
            zk_server_kill(&zk_stage.servers, 0);
            zk_server_run(&zk_stage.servers, 0);
        }
        unsigned count = x.count;
        wait_server(w, 0);
        while (x.count < count + 20)
            fiber_sleep(rt, NS_PER_MS);
    }
    counter_stop(&x, &m);
    counter_stop(&y, &m);
    mirror_check_order(&m);
    ASSERT(!a->lost && !b->lost && mirror_has(&m, "count/alive"));
    cs_close(a);
    cs_close(b);
    mirror_done(&m);
    worker_stop(w);
}

static void test_restart(void **state)
{
    zk_run_scene(10, restart_scene);
}

static bool confirmed(struct rt *rt, const struct cs *cs)
{
    return clock_now(rt) - cs->confirmed_ns < cs->timeout_ns / 3 * 2;
}

/* Three servers: the death of the leader is a pause, of the majority an outage that is waited out.
 */
static fiber_fn void ensemble_scene(struct rt *rt)
{
    struct cs *a, *b;
    struct mirror m;
    struct counter x;
    struct worker *w;
    unsigned leader = 0;
    ASSERT(worker_start(rt, "wait", &w) == 0);
    ASSERT(zk_open(rt, zk_stage.where, &a) == 0 && zk_open(rt, zk_stage.where, &b) == 0);
    zk_put_ephemeral(a, "count/alive", "a");
    mirror_init(&m, rt, b, "count/");
    mirror_wait_key(&m, "count/alive");
    counter_start(&x, rt, a, "count/x");
    while (!zk_server_leads(&zk_stage.servers, leader))
        leader = (leader + 1) % zk_stage.servers.count;
    fiber_sleep(rt, 200 * NS_PER_MS);
    zk_server_kill(&zk_stage.servers, leader);
    unsigned count = x.count;
    while (x.count < count + 20)
        fiber_sleep(rt, NS_PER_MS);
    zk_server_run(&zk_stage.servers, leader);
    wait_server(w, leader);
    /* No majority: nobody is confirmed any more, nobody is lost, commits wait. */
    zk_server_kill(&zk_stage.servers, 0);
    zk_server_kill(&zk_stage.servers, 1);
    while (confirmed(rt, a) || confirmed(rt, b))
        fiber_sleep(rt, NS_PER_MS);
    count = x.count;
    fiber_sleep(rt, NS_PER_S);
    ASSERT(!a->lost && !b->lost && x.count == count);
    zk_server_run(&zk_stage.servers, 0);
    zk_server_run(&zk_stage.servers, 1);
    wait_server(w, 0);
    while (x.count < count + 20 || !confirmed(rt, a) || !confirmed(rt, b))
        fiber_sleep(rt, NS_PER_MS);
    counter_stop(&x, &m);
    mirror_check_order(&m);
    ASSERT(!a->lost && !b->lost && mirror_has(&m, "count/alive"));
    cs_close(a);
    cs_close(b);
    mirror_done(&m);
    worker_stop(w);
}

static void test_ensemble(void **state)
{
    zk_run_scene(10, ensemble_scene);
}

/* --- wrong places --- */

static fiber_fn int try_spec(struct rt *rt, const char *spec)
{
    struct cs *cs;
    int r = zk_open(rt, spec, &cs);
    if (r == 0)
        cs_close(cs);
    return r;
}

static void on_raw_event(void *arg, enum zk_event event)
{
}

/* A node as another program would make it, below this scene's path. */
static fiber_fn void make_foreign(struct zk_link *l, const char *name, const void *data,
                                  size_t length)
{
    char path[128];
    struct zk_call call;
    snprintf(path, sizeof(path), "/foreign%u%s", zk_stage.scene_count, name);
    zk_start_create(l, &call, path, data, length);
    ASSERT(zk_wait(&call) == ZOK);
    zk_call_done(&call);
}

static fiber_fn int try_foreign(struct rt *rt, const char *address, const char *name)
{
    char spec[256];
    snprintf(spec, sizeof(spec), "zookeeper:%s/foreign%u%s", address, zk_stage.scene_count, name);
    return try_spec(rt, spec);
}

static fiber_fn void wrong_scene(struct rt *rt)
{
    char address[128];
    struct zk_link *l;
    struct enc head;
    enum log_level level = log_level;
    log_level = LOG_ERROR;
    zk_servers_address(&zk_stage.servers, address, sizeof(address));
    ASSERT(try_spec(rt, "zookeeper:localhost:99999/x") == -EINVAL);
    ASSERT(try_spec(rt, "zookeeper:no-such-host.invalid/x") == -EINVAL);
    ASSERT(try_spec(rt, zk_stage.where) == 0 && try_spec(rt, zk_stage.where) == 0);
    struct zk_link_options o = {.servers = address, .timeout_ms = 10000, .on_event = on_raw_event};
    ASSERT(zk_link_open(rt, &o, &l) == 0);
    while (!zk_link_connected(l))
        fiber_sleep(rt, NS_PER_MS);
    make_foreign(l, "", "", 0);
    make_foreign(l, "/other", "", 0);
    make_foreign(l, "/other/log", "", 0);
    make_foreign(l, "/text", "", 0);
    make_foreign(l, "/text/head", "of a program", 12);
    make_foreign(l, "/newer", "", 0);
    enc_init(&head);
    zk_head_encode(&head, 1);
    put_le16(head.data + 4, get_le16(head.data + 4) + 1);
    put_le32(head.data + head.length - 4, crc32c(0, head.data, head.length - 4));
    make_foreign(l, "/newer/head", head.data, head.length);
    enc_done(&head);
    ASSERT(try_foreign(rt, address, "/other") == -EMEDIUMTYPE);
    ASSERT(try_foreign(rt, address, "/text") == -EBADMSG);
    ASSERT(try_foreign(rt, address, "/newer") == -EPROTO);
    ASSERT(try_foreign(rt, address, "/fresh") == 0);
    zk_link_close(l);
    log_level = level;
}

/* What another program does to a store that is in use ends its connections, not the process. */
static fiber_fn void vandal_scene(struct rt *rt)
{
    struct cs *a, *b;
    struct zk_link *l;
    struct zk_call call;
    char address[128], path[256];
    struct cs_op op = {.kind = CS_PUT, .key = "x", .revision = CS_REVISION_ANY};
    uint64_t revision;
    zk_servers_address(&zk_stage.servers, address, sizeof(address));
    struct zk_link_options o = {.servers = address, .timeout_ms = 10000, .on_event = on_raw_event};
    ASSERT(zk_link_open(rt, &o, &l) == 0);
    while (!zk_link_connected(l))
        fiber_sleep(rt, NS_PER_MS);
    ASSERT(zk_open(rt, zk_stage.where, &a) == 0 && zk_open(rt, zk_stage.where, &b) == 0);
    ASSERT(cs_txn(a, &op, 1, &revision) == 0);
    /* The session's node is deleted: that session is over. */
    snprintf(path, sizeof(path), "/test/%u/session/%020" PRIu64, zk_stage.scene_count,
             a->session.value);
    zk_start_delete(l, &call, path);
    ASSERT(zk_wait(&call) == ZOK);
    zk_call_done(&call);
    int r = cs_txn(a, &op, 1, NULL);
    ASSERT(r == -EIO && a->lost && cs_txn(b, &op, 1, &revision) == 0);
    /* Rubbish as the next entry and the head that goes with it. */
    struct enc head;
    enc_init(&head);
    zk_head_encode(&head, revision + 10);
    snprintf(path, sizeof(path), "/test/%u/log/%020" PRIu64, zk_stage.scene_count, revision + 2);
    zk_start_create(l, &call, path, "rubbish", 7);
    ASSERT(zk_wait(&call) == ZOK);
    zk_call_done(&call);
    snprintf(path, sizeof(path), "/test/%u/head", zk_stage.scene_count);
    zk_start_set(l, &call, path, head.data, head.length);
    ASSERT(zk_wait(&call) == ZOK);
    zk_call_done(&call);
    enc_done(&head);
    ASSERT(cs_txn(b, &op, 1, NULL) == -EIO && b->lost);
    cs_close(a);
    cs_close(b);
    ASSERT(try_spec(rt, zk_stage.where) == -EBADMSG);
    zk_link_close(l);
}

static void test_vandal(void **state)
{
    zk_run_scene(10, vandal_scene);
}

static void test_wrong_places(void **state)
{
    zk_run_scene(10, wrong_scene);
}

/* No server: opening waits, and gives up when the program is stopped. */
struct opener {
    struct rt *rt;
    char spec[64];
};

static void opener_main(void *arg)
{
    struct opener *o = arg;
    struct cs *cs;
    ASSERT(zk_open(o->rt, o->spec, &cs) == -ETIMEDOUT);
}

static void stopper_main(void *arg)
{
    struct opener *o = arg;
    fiber_sleep(o->rt, 300 * NS_PER_MS);
    rt_stop(o->rt);
}

static void test_no_server(void **state)
{
    struct opener o;
    struct sockaddr_in a = {.sin_family = AF_INET};
    socklen_t size = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); /* bound, nobody listens */
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT(fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
    ASSERT(getsockname(fd, (struct sockaddr *)&a, &size) == 0);
    snprintf(o.spec, sizeof(o.spec), "zookeeper:127.0.0.1:%u?timeout=1", ntohs(a.sin_port));
    ASSERT(rt_uring_new(NULL, &o.rt) == 0);
    ASSERT(fiber_spawn(o.rt, "opener", opener_main, &o) == 0);
    ASSERT(fiber_spawn(o.rt, "stopper", stopper_main, &o) == 0);
    ASSERT(rt_uring_run(o.rt) == 0);
    rt_uring_free(o.rt);
    close(fd);
}

int main(int argc, char **argv)
{
    if (argc == 2)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest with_one[] = {
        cmocka_unit_test(test_contract),  cmocka_unit_test(test_records),
        cmocka_unit_test(test_restart),   cmocka_unit_test(test_wrong_places),
        cmocka_unit_test(test_no_server), cmocka_unit_test(test_vandal),
    };
    const struct CMUnitTest with_three[] = {
        cmocka_unit_test(test_ensemble),
    };
    int failed = cmocka_run_group_tests(with_one, zk_stage_one, zk_stage_done);
    return failed + cmocka_run_group_tests(with_three, zk_stage_three, zk_stage_done);
}
