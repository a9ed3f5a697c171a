/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stories of the object service, one per rule: R3 (barrier between epochs), R6 (sessions), W1
 * (answers count for their epoch, members that leave are not waited for), R4 (min_copies), W4 (a
 * new connection waits for the old one), W5 (a read moves on), and that no bytes from a peer harm
 * the daemon.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "object/serve.h"
#include "raw.h"

/* --- R6 --- */

static fiber_fn void scene_refused(struct trio *t)
{
    uint64_t version = trio_objects(t, 0)->map->version;
    struct peer_hello_reply reply;
    struct raw r;
    static const int expected[] = {-EMEDIUMTYPE, -ESTALE, -ESTALE, -EAGAIN, -EPROTO};
    static const char *const said[] = {"belongs to cluster", "is not in map", "is not in map",
                                       "not served here", "speaks peer protocol"};
    for (unsigned i = 0; i < ARRAY_SIZE(expected); i++) {
        struct peer_hello h = hello_as(t, 1, 0);
        if (i == 0)
            h.cluster.bytes[0] ^= 1;
        else if (i == 1)
            h.session.value += 1000;
        else if (i == 2)
            h.node = raw_node(t, 2)->uuid; /* another node's session */
        else if (i == 3)
            h.target = raw_node(t, 2)->uuid;
        else
            h.version_min = h.version_max = 9;
        raw_connect(t, &r, 0);
        CHECK(raw_hello(&r, &h, version, &reply) == expected[i]);
        CHECK(strstr(reply.text, said[i]));
        CHECK(raw_answer(&r) < 0); /* closed */
        conn_close(r.conn);
    }
    /* A request without a hello. */
    raw_connect(t, &r, 0);
    raw_send(&r, PEER_PING, 0, PEER_NO_GROUP, version, NULL, 0, NULL, 0);
    CHECK(raw_answer(&r) < 0);
    conn_close(r.conn);
    CHECK(fiber_sleep(t->rt, 100 * NS_PER_MS) == 0);
    /* A session that leaves the map: nothing of it is done any more. */
    raw_login(t, &r, 2, 0);
    raw_send(&r, PEER_PING, 0, PEER_NO_GROUP, version, NULL, 0, NULL, 0);
    CHECK(raw_answer(&r) == 0 && r.answer.status == 0);
    trio_stop_node(t, 2);
    CHECK(raw_answer(&r) < 0);
    conn_close(r.conn);
    trio_start_node(t, 2);
    trio_settle_map(t);
}

static void test_r6_refused(void **state)
{
    trio_run(scene_refused, 3, 5);
}

/* --- R3 --- */

struct version_wanted {
    struct objects *o;
    uint64_t version;
};

static bool cluster_knows(void *arg)
{
    const struct version_wanted *v = arg;
    return cluster_map(v->o->cluster)->version >= v->version;
}

static bool acts_on(void *arg)
{
    const struct version_wanted *v = arg;
    return v->o->map->version >= v->version;
}

static fiber_fn void scene_barrier(struct trio *t)
{
    struct objects *o = trio_objects(t, 0);
    uint64_t version = o->map->version, epoch = o->groups[3].epoch;
    struct oid oid = {.vid = 20, .index = 1, .group = 3};
    const struct peer_read pr = {.oid = oid};
    uint8_t body[PEER_READ_BYTES];
    struct raw r;
    peer_read_put(body, &pr);
    CHECK(gate_enter(o, 3, epoch) == 0); /* something is under way at the old epoch */
    trio_stop_node(t, 2);
    struct version_wanted v = {o, version + 1};
    trio_wait(t, cluster_knows, &v);
    CHECK(fiber_sleep(t->rt, NS_PER_S) == 0);
    CHECK(o->map->version == version); /* not acted on, so not acknowledged */
    CHECK(gate_enter(o, 3, epoch) ==
          -EAGAIN); /* old: refused, though the new one is not served yet */
    raw_login(t, &r, 1, 0);
    raw_send(&r, PEER_STAT, epoch, 3, version, body, sizeof(body), NULL, 0);
    CHECK(raw_answer(&r) == 0 && r.answer.status == -EAGAIN);
    /* The new epoch is answered only when the old work is finished. */
    uint64_t next_epoch = o->groups[3].next_epoch;
    CHECK(next_epoch > epoch && o->groups[3].closed);
    raw_send(&r, PEER_STAT, next_epoch, 3, next_epoch, body, sizeof(body), NULL, 0);
    CHECK(fiber_sleep(t->rt, NS_PER_S) == 0);
    CHECK(o->groups[3].inflight == 1 && o->groups[3].epoch == epoch);
    gate_leave(o, 3);
    CHECK(raw_answer(&r) == 0 && r.answer.status == 0 && r.answer.epoch >= next_epoch);
    trio_wait(t, acts_on, &v);
    conn_close(r.conn);
    trio_start_node(t, 2);
    trio_settle_map(t);
}

static void test_r3_barrier(void **state)
{
    trio_run_sim(scene_barrier, 3, 5);
}

/* --- W1 --- */

struct pending_write {
    struct trio *t;
    struct object_owner owner;
    struct oid oid;
    int result; /* 1: not yet */
};

static fiber_fn void write_main(void *arg)
{
    struct pending_write *w = arg;
    w->result = trio_write(trio_objects(w->t, 0), &w->owner, w->oid, 0, V(1, 1), 0, 4096, 0x77);
}

static bool is_written(void *arg)
{
    const struct pending_write *w = arg;
    return w->result != 1;
}

static bool node_1_has_it(void *arg)
{
    struct pending_write *w = arg;
    struct store_stat st;
    store_stat(w->t->nodes[1].store, &w->oid, &st);
    return st.version.value != 0;
}

/* Node 1 has answered; then its copy is lost before the epoch changes. An answer of the old epoch
 * must not count. */
static fiber_fn void scene_epoch(struct trio *t)
{
    struct pending_write w = {
        .t = t, .owner = trio_owner(1, 20), .oid = trio_oid(t, 20, 0, 1), .result = 1};
    trio_stop_node(t, 2);
    CHECK(fiber_spawn(t->nodes[0].rt, "write", write_main, &w) == 0);
    trio_wait(t, node_1_has_it, &w);
    CHECK(fiber_sleep(t->rt, 100 * NS_PER_MS) == 0);
    const struct store_meta_change lost = {.oid = w.oid, .remove = true};
    CHECK(store_meta_apply(t->nodes[1].store, &lost, 1) == 0);
    CHECK(w.result == 1);
    trio_start_node(t, 2);
    trio_wait(t, is_written, &w);
    CHECK(w.result == 0);
    CHECK(node_1_has_it(&w));
    trio_check_equal(t);
}

static void test_w1_epoch(void **state)
{
    trio_run_sim(scene_epoch, 3, 5);
}

/* --- members that leave, R4, W5 --- */

/* In sync by bits of node indexes, in all groups. */
struct sets {
    struct trio *t;
    unsigned in_sync;
    uint8_t min_copies; /* 0: as before */
};

static void edit_sets(void *arg, struct map *m)
{
    const struct sets *s = arg;
    int nodes[TRIO_NODES + 1], n = 0;
    for (int i = 0; i < (int)TRIO_NODES; i++)
        if (s->in_sync >> i & 1)
            nodes[n++] = i;
    nodes[n] = -1;
    for (uint32_t g = 0; g < m->group_count; g++)
        trio_set_in_sync(s->t, m, g, nodes);
    if (s->min_copies)
        m->pools[0].min_copies = s->min_copies;
}

static fiber_fn void scene_member_leaves(struct trio *t)
{
    struct pending_write w = {
        .t = t, .owner = trio_owner(1, 20), .oid = trio_oid(t, 20, 0, 1), .result = 1};
    struct sets s = {.t = t, .in_sync = 1 | 2};
    raw_hang(t, 2, w.oid.group);
    CHECK(fiber_spawn(t->nodes[0].rt, "write", write_main, &w) == 0);
    CHECK(fiber_sleep(t->rt, 2 * NS_PER_S) == 0);
    CHECK(w.result == 1 && raw_version_at(t, 1, w.oid) == V(1, 1));
    t->deaf = 4;
    trio_change_map(t, edit_sets, &s);
    trio_wait(t, is_written, &w);
    CHECK(w.result == 0 && raw_version_at(t, 2, w.oid) == 0);
    t->deaf = 0;
    trio_change_map(t, edit_sets, &s);
    CHECK(trio_byte(trio_objects(t, 2), w.oid, 0) == 0x77); /* by another node */
}

static void test_w1_member_leaves(void **state)
{
    trio_run(scene_member_leaves, 3, 5);
}

static fiber_fn void scene_min_copies(struct trio *t)
{
    struct pending_write w = {
        .t = t, .owner = trio_owner(1, 20), .oid = trio_oid(t, 20, 0, 1), .result = 1};
    struct sets s = {.t = t, .in_sync = 1, .min_copies = 2};
    char text[400];
    raw_hang(t, 2, w.oid.group);
    CHECK(fiber_spawn(t->nodes[0].rt, "write", write_main, &w) == 0); /* in flight before */
    CHECK(fiber_sleep(t->rt, 100 * NS_PER_MS) == 0);
    trio_change_map(t, edit_sets, &s);
    struct pending_write later = w;
    later.oid.index = 77;
    CHECK(fiber_spawn(t->nodes[0].rt, "write", write_main, &later) == 0);
    CHECK(fiber_sleep(t->rt, 2 * NS_PER_S) == 0);
    CHECK(w.result == 1 && later.result == 1 && raw_version_at(t, 0, later.oid) == 0);
    object_waiting_text(trio_objects(t, 0), text, sizeof(text));
    CHECK(strstr(text, "writes wait: only 1 of the 2 copies that pool default needs"));
    CHECK(strstr(text, "missing: ") && strstr(text, "node b") && strstr(text, "node c"));
    CHECK(trio_byte(trio_objects(t, 1), w.oid, 1) == 0x77); /* reads need one */
    s.in_sync = 1 | 2;
    trio_change_map(t, edit_sets, &s);
    trio_wait(t, is_written, &w);
    trio_wait(t, is_written, &later);
    CHECK(w.result == 0 && later.result == 0);
    CHECK(raw_version_at(t, 0, later.oid) == V(1, 1) && raw_version_at(t, 1, later.oid) == V(1, 1));
    CHECK(raw_version_at(t, 1, w.oid) == V(1, 1) && raw_version_at(t, 2, w.oid) == 0);
    object_waiting_text(trio_objects(t, 0), text, sizeof(text));
    CHECK(text[0] == '\0');
}

static void test_r4_min_copies(void **state)
{
    trio_run(scene_min_copies, 3, 5);
}

static fiber_fn void scene_read_moves(struct trio *t)
{
    const struct object_owner w = trio_owner(1, 20);
    struct sets s = {.t = t, .in_sync = 2 | 4};
    struct oid oid = trio_oid(t, 20, 0, 1);
    CHECK(trio_write(trio_objects(t, 0), &w, oid, 0, V(1, 1), 0, 4096, 0x77) == 0);
    trio_change_map(t, edit_sets, &s);
    for (unsigned i = 1; i < TRIO_NODES; i++) {
        raw_hang(t, i, oid.group);
        uint64_t begun_ns = clock_now(t->rt);
        CHECK(trio_byte(trio_objects(t, 0), oid, 7) == 0x77);
        CHECK(clock_now(t->rt) - begun_ns < 2 * NS_PER_S);
        group_get(trio_objects(t, i), oid.group)->closed = false;
        waitq_wake_all(&trio_objects(t, i)->map_wait);
    }
}

static void test_w5_read_moves(void **state)
{
    trio_run_sim(scene_read_moves, 3, 5);
}

struct reconciling {
    struct trio *t;
    struct oid oid;
    bool one, done;
};

static void count_found(void *arg, const struct object_found *f)
{
}

static fiber_fn void reconcile_main(void *arg)
{
    struct reconciling *r = arg;
    struct object_owner owner = trio_owner(2, 20);
    struct object_found f;
    if (r->one)
        CHECK(object_reconcile_one(trio_objects(r->t, 0), &owner, &r->oid, &f) == 0 &&
              f.version.value == V(1, 1));
    else
        CHECK(object_reconcile(trio_objects(r->t, 0), &owner, owner.vid, (struct version){0},
                               count_found, NULL) == 0);
    r->done = true;
}

static bool is_reconciled(void *arg)
{
    const struct reconciling *r = arg;
    return r->done;
}

/* What waits for a node ends when the node does not count any more, though it lives. */
static fiber_fn void scene_reconcile_leaves(struct trio *t)
{
    const struct object_owner w = trio_owner(1, 20);
    struct reconciling r = {.t = t, .oid = trio_oid(t, 20, 0, 1)};
    struct reconciling one = {.t = t, .oid = r.oid, .one = true};
    struct sets s = {.t = t, .in_sync = 1 | 2};
    CHECK(trio_write(trio_objects(t, 0), &w, r.oid, 0, V(1, 1), 0, 4096, 0x77) == 0);
    raw_hang(t, 2, r.oid.group);
    CHECK(fiber_spawn(t->nodes[0].rt, "reconcile", reconcile_main, &one) == 0);
    CHECK(fiber_sleep(t->rt, NS_PER_S) == 0);
    CHECK(!one.done);
    t->deaf = 4;
    CHECK(fiber_spawn(t->nodes[0].rt, "reconcile", reconcile_main, &r) == 0);
    CHECK(fiber_sleep(t->rt, NS_PER_S) == 0);
    trio_change_map(t, edit_sets, &s);
    trio_wait(t, is_reconciled, &one);
    trio_wait(t, is_reconciled, &r);
}

static void test_l3_member_leaves(void **state)
{
    trio_run_sim(scene_reconcile_leaves, 3, 5);
}

/* --- W4 --- */

static struct peer *newest_peer(struct objects *o)
{
    CHECK(!list_empty(&o->peers));
    return list_entry(o->peers.prev, struct peer, in_peers);
}

struct second_login {
    struct trio *t;
    struct raw r;
    bool in;
};

static fiber_fn void second_main(void *arg)
{
    struct second_login *s = arg;
    raw_login(s->t, &s->r, 1, 0);
    s->in = true;
}

static bool is_in(void *arg)
{
    const struct second_login *s = arg;
    return s->in;
}

static fiber_fn void scene_new_connection(struct trio *t)
{
    struct objects *o = trio_objects(t, 0);
    struct second_login s = {.t = t};
    struct raw first;
    CHECK(fiber_sleep(t->rt, NS_PER_S) == 0); /* the real node 1 has nothing to ask any more */
    raw_login(t, &first, 1, 0);
    struct peer *p = newest_peer(o);
    CHECK(p->session.value == raw_node(t, 1)->session.value);
    p->inflight++; /* a request of the old connection is in the store */
    p->changes_inflight++;
    CHECK(fiber_spawn(t->rt, "second", second_main, &s) == 0);
    CHECK(fiber_sleep(t->rt, NS_PER_S) == 0);
    CHECK(!s.in && p->fenced);
    CHECK(raw_answer(&first) < 0); /* the old one is closed at once */
    p->changes_inflight--;
    p->inflight--;
    waitq_wake_all(&p->quiet);
    waitq_wake_all(&o->drain_wait);
    trio_wait(t, is_in, &s);
    conn_close(first.conn);
    conn_close(s.r.conn);
}

static void test_w4_new_connection(void **state)
{
    trio_run_sim(scene_new_connection, 3, 5);
}

/* --- W4 on the own store, across an epoch --- */

struct second_write {
    struct pending_write w;
    uint64_t version; /* map version that it waits for */
};

/* Comes with its change in the very moment in which the new map is acted on. */
static fiber_fn void second_write_main(void *arg)
{
    struct second_write *s = arg;
    struct objects *o = trio_objects(s->w.t, 0);
    while (o->map->version < s->version)
        fiber_yield();
    s->w.result = trio_write(o, &s->w.owner, s->w.oid, V(1, 1), V(1, 2), 0, 4096, 0x78);
}

static fiber_fn void scene_order(struct trio *t)
{
    struct objects *o = trio_objects(t, 0);
    struct pending_write w = {
        .t = t, .owner = trio_owner(1, 20), .oid = trio_oid(t, 20, 0, 1), .result = 1};
    struct version_wanted v = {o, o->map->version + 1};
    trio_stop_node(t, 2);
    trio_wait(t, acts_on, &v);
    CHECK(gate_enter(o, w.oid.group, o->groups[w.oid.group].epoch) == 0);
    trio_start_node(t, 2);
    v.version++;
    trio_wait(t, cluster_knows, &v);
    CHECK(fiber_sleep(t->rt, 100 * NS_PER_MS) == 0);
    CHECK(o->groups[w.oid.group].closed);
    /* The first change finds its group closed and waits for the new epoch … */
    CHECK(fiber_spawn(t->nodes[0].rt, "first", write_main, &w) == 0);
    CHECK(fiber_sleep(t->rt, 10 * NS_PER_MS) == 0);
    /* … at which the second one, of the same object, arrives before the first has run again. */
    struct second_write second = {.w = w, .version = v.version};
    CHECK(fiber_spawn(t->nodes[0].rt, "second", second_write_main, &second) == 0);
    fiber_yield();
    gate_leave(o, w.oid.group);
    trio_wait(t, is_written, &w);
    trio_wait(t, is_written, &second.w);
    CHECK(w.result == 0 && second.w.result == 0);
    CHECK(trio_byte(o, w.oid, 7) == 0x78);
    trio_settle_map(t);
    trio_check_equal(t);
}

static void test_w4_order(void **state)
{
    trio_run(scene_order, 3, 0);
}

/* --- garbage --- */

/* One damaged or impossible frame; the connection closes or answers an error, and the node goes on.
 */
static fiber_fn void send_garbage(struct trio *t, unsigned kind)
{
    struct objects *o = trio_objects(t, 0);
    uint8_t body[512];
    struct raw r;
    raw_login(t, &r, 1, 0);
    for (size_t i = 0; i < sizeof(body); i++)
        body[i] = (uint8_t)trio_random(t);
    size_t length = trio_random(t) % sizeof(body);
    uint32_t group = (uint32_t)(trio_random(t) % (2 * t->group_count));
    if (kind < 8) { /* noise instead of a frame */
        const struct iovec iov = {body, 64 + length % 400};
        (void)conn_write(r.conn, &iov, 1);
        conn_shutdown(r.conn);
    } else {
        enum peer_type type = PEER_PING + trio_random(t) % (PEER_TYPE_LAST - PEER_PING + 1);
        if (kind % 3 == 0) { /* plausible counts at the beginning */
            memset(body, 0, 16);
            body[kind % 2] = (uint8_t)(trio_random(t) % 4);
        }
        raw_send(&r, type, o->groups[0].epoch, group, o->map->version, body, length, body,
                 trio_random(t) % 2 ? 0 : 100);
        if (raw_answer(&r) == 0)
            CHECK(r.answer.status <= 0);
    }
    conn_close(r.conn);
}

static fiber_fn void scene_garbage(struct trio *t)
{
    const struct object_owner w = trio_owner(1, 20);
    CHECK(fiber_sleep(t->rt, NS_PER_S) == 0);
    for (unsigned i = 0; i < 200; i++)
        send_garbage(t, i);
    CHECK(trio_write(trio_objects(t, 0), &w, trio_oid(t, 20, 0, 1), 0, V(1, 1), 0, 4096, 1) == 0);
    CHECK(trio_byte(trio_objects(t, 1), trio_oid(t, 20, 0, 1), 5) == 1);
    trio_check_equal(t);
}

static void test_garbage(void **state)
{
    trio_run_sim(scene_garbage, 3, 20);
}

int main(void)
{
    log_level = getenv("VERBOSE") ? LOG_DEBUG : LOG_ERROR;
    if (getenv("ONLY"))
        cmocka_set_test_filter(getenv("ONLY"));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_r6_refused),       cmocka_unit_test(test_r3_barrier),
        cmocka_unit_test(test_w1_epoch),         cmocka_unit_test(test_w1_member_leaves),
        cmocka_unit_test(test_r4_min_copies),    cmocka_unit_test(test_w5_read_moves),
        cmocka_unit_test(test_l3_member_leaves), cmocka_unit_test(test_w4_new_connection),
        cmocka_unit_test(test_w4_order),         cmocka_unit_test(test_garbage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
