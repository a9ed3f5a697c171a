/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server's side of the peer protocol: accepting, greeting, reading requests, answering.
 *
 * R6 Requests of a session that is not in the map are refused; a session that leaves the map is
 *    fenced before the map that lacks it is acted on.
 * W4 A new connection of a session is accepted only after the requests of its old one have
 *    finished. Requests are admitted by the reading fiber, in the order of the stream.
 * V1 A malformed frame closes its connection, with a line in the log; nothing else.
 */
#include "object/serve.h"
#include <stdio.h>
#include <stdlib.h>
#include "base/crc32c.h"

#define LOG_MODULE "object"
#include "base/log.h"

#define HELLO_TIMEOUT_NS  (10 * NS_PER_S)
#define HELLO_MAP_WAIT_NS (2 * NS_PER_S)
#define PEER_INFLIGHT_MAX 512u
#define PEER_REFS_MAX     256u
#define REQUEST_POOL_MAX  256u
#define RESERVE_BYTES_MAX (16u << 20)
#define DISCARD_SIZE      4096u

/* --- memory of requests --- */

struct request *request_new(struct objects *o, struct peer *p)
{
    struct request *rq;
    if (!list_empty(&o->request_pool)) {
        rq = list_first(&o->request_pool, struct request, in_pool);
        list_remove(&rq->in_pool);
        o->request_pool_count--;
    } else {
        rq = malloc(sizeof(*rq));
        if (!rq)
            return NULL;
    }
    list_init(&rq->in_pool);
    rq->o = o;
    rq->peer = p;
    rq->body = rq->body_inline;
    rq->body_heap = NULL;
    rq->payload = NULL;
    rq->payload_reserve = rq->payload_borrowed = rq->reply_payload_reserve = false;
    rq->reply_payload_size = 0;
    rq->payload_reserve = false;
    rq->reply_payload_reserve = false;
    rq->forwarded = false;
    rq->metas = NULL;
    rq->relations = NULL;
    rq->meta_count = 0;
    rq->reply_inline = 0;
    rq->reply_payload = NULL;
    rq->reply_payload_length = 0;
    rq->status = 0;
    enc_init(&rq->reply_body);
    return rq;
}

void request_free(struct request *rq)
{
    struct objects *o = rq->o;
    free(rq->body_heap);
    free(rq->metas);
    free(rq->relations);
    if (rq->forwarded)
        forward_free(rq);
    else if (!rq->payload_borrowed)
        payload_put(o, rq->payload, rq->header.payload_length, rq->payload_reserve);
    if (!rq->forwarded)
        payload_put(o, rq->reply_payload, rq->reply_payload_size, rq->reply_payload_reserve);
    enc_done(&rq->reply_body);
    if (o->request_pool_count >= REQUEST_POOL_MAX) {
        free(rq);
        return;
    }
    list_push_front(&o->request_pool, &rq->in_pool);
    o->request_pool_count++;
}

void request_pool_done(struct objects *o)
{
    struct request *rq, *tmp;
    list_for_each_safe (rq, tmp, &o->request_pool, in_pool)
        free(rq);
    list_init(&o->request_pool);
}

fiber_fn void *payload_get(struct objects *o, size_t size, bool *ret_reserve)
{
    ASSERT(size > 0);
    for (;;) {
        void *p = buf_try_get(o->rt, size);
        *ret_reserve = false;
        if (p)
            return p;
        if (o->reserve_used == 0 || o->reserve_used + size <= RESERVE_BYTES_MAX) {
            p = aligned_alloc(OBJECT_BLOCK, ALIGN_UP(size, (size_t)OBJECT_BLOCK));
            if (p) {
                o->reserve_used += size;
                *ret_reserve = true;
                return p;
            }
        }
        /* What the reserve holds waits for nothing but our own store or a socket: it comes back. */
        waitq_wait_until(&o->reserve_wait, o->rt, clock_now(o->rt) + 10 * NS_PER_MS);
    }
}

void payload_put(struct objects *o, void *p, size_t size, bool reserve)
{
    if (!p)
        return;
    if (!reserve) {
        buf_put(o->rt, p);
        return;
    }
    free(p);
    ASSERT(o->reserve_used >= size);
    o->reserve_used -= size;
    waitq_wake_all(&o->reserve_wait);
}

/* --- answering --- */

static void reply_sent(struct conn_out *out)
{
    request_free(container_of(out, struct request, out));
}

void request_reply(struct request *rq)
{
    struct objects *o = rq->o;
    const struct group *g =
        rq->header.group == PEER_NO_GROUP ? NULL : group_get(o, rq->header.group);
    const void *body = rq->reply_inline ? rq->reply_version : rq->reply_body.data;
    size_t body_length = rq->reply_inline ? rq->reply_inline : rq->reply_body.length;
    if (rq->reply_body.error || body_length > PEER_BODY_MAX) {
        rq->status = -ENOMEM;
        body_length = 0;
        rq->reply_payload_length = 0;
    }
    const struct peer_header h = {
        .type = rq->header.type,
        .flags = PEER_REPLY,
        .id = rq->header.id,
        .epoch = g ? g->epoch : 0,
        .map_version = o->map->version,
        .group = rq->header.group,
        .status = rq->status,
        .body_length = (uint32_t)body_length,
        .payload_length = rq->reply_payload_length,
        .payload_crc =
            rq->reply_payload_length ? crc32c(0, rq->reply_payload, rq->reply_payload_length) : 0,
        .free_bytes = own_free_bytes(o),
    };
    peer_header_put(rq->reply_header, &h, body);
    unsigned n = 0;
    rq->iov[n++] = (struct iovec){rq->reply_header, sizeof(rq->reply_header)};
    if (body_length > 0)
        rq->iov[n++] = (struct iovec){(void *)body, body_length};
    if (rq->reply_payload_length > 0)
        rq->iov[n++] = (struct iovec){rq->reply_payload, rq->reply_payload_length};
    rq->out = (struct conn_out){.iov = rq->iov, .iov_count = n, .done = reply_sent};
    struct peer *p = rq->peer;
    conn_submit(p->conn, &rq->out);
    ASSERT(p->inflight > 0);
    p->inflight--;
    waitq_wake_all(&p->quiet);
}

static fiber_fn void request_main(void *arg)
{
    struct request *rq = arg;
    struct peer *p = rq->peer;
    request_run(rq);
    ASSERT(p->changes_inflight > 0);
    p->changes_inflight--;
    if (p->fenced)
        waitq_wake_all(&p->o->drain_wait);
    request_reply(rq);
}

/* --- the hello --- */

struct hello_wait {
    struct timer timer;
    struct peer *p;
};

static void hello_late(struct timer *t)
{
    conn_shutdown(container_of(t, struct hello_wait, timer)->p->conn);
}

/* Waits for a newer map for a moment when the session is not in ours (R6). */
static fiber_fn const struct map_node *hello_find(struct objects *o, const struct peer_hello *h,
                                                  uint64_t map_version)
{
    uint64_t deadline_ns = clock_now(o->rt) + HELLO_MAP_WAIT_NS;
    for (;;) {
        const struct map_node *n = map_node_by_session(o->map, h->session);
        if (n || (o->map->version >= map_version && map_version > 0) || o->stopping)
            return n;
        if (waitq_wait_until(&o->map_wait, o->rt, deadline_ns) < 0)
            return NULL;
    }
}

/* 0, or why not, in words. */
static fiber_fn int hello_judge(struct peer *p, const struct peer_hello *h, uint64_t map_version,
                                char text[PEER_TEXT_SIZE])
{
    struct objects *o = p->o;
    char a[UUID_TEXT_SIZE], b[UUID_TEXT_SIZE];
    if (h->version_min > PEER_PROTOCOL_VERSION || h->version_max < PEER_PROTOCOL_VERSION) {
        snprintf(text, PEER_TEXT_SIZE,
                 "this node speaks peer protocol version %u, the other side %u to %u",
                 PEER_PROTOCOL_VERSION, h->version_min, h->version_max);
        return -EPROTO;
    }
    const struct map_node *n = hello_find(o, h, map_version);
    if (!uuid_equal(&h->cluster, &o->map->cluster)) {
        uuid_format(&h->cluster, a);
        uuid_format(&o->map->cluster, b);
        snprintf(text, PEER_TEXT_SIZE, "it belongs to cluster %s, this node to %s", a, b);
        return -EMEDIUMTYPE;
    }
    if (!n || !uuid_equal(&n->uuid, &h->node)) {
        uuid_format(&h->node, a);
        snprintf(text, PEER_TEXT_SIZE, "node %s with session %llu is not in map version %llu", a,
                 (unsigned long long)h->session.value, (unsigned long long)o->map->version);
        return -ESTALE;
    }
    const struct map_node *self = o->self >= 0 ? map_node(o->map, (uint16_t)o->self) : NULL;
    if (!self || !uuid_equal(&self->uuid, &h->target)) {
        uuid_format(&h->target, a);
        snprintf(text, PEER_TEXT_SIZE, "node %s is not served here (now)", a);
        return -EAGAIN;
    }
    p->session = h->session;
    p->number = n->number;
    return 0;
}

static fiber_fn int hello_answer(struct peer *p, int status, const char *text)
{
    struct objects *o = p->o;
    struct peer_hello_reply reply = {
        .session = cluster_session(o->cluster),
        .version = PEER_PROTOCOL_VERSION,
    };
    snprintf(reply.text, sizeof(reply.text), "%s", text);
    struct enc e;
    enc_init(&e);
    peer_hello_reply_encode(&reply, &e);
    int r = e.error;
    if (r == 0) {
        uint8_t bytes[PEER_HEADER_BYTES];
        const struct peer_header h = {
            .type = PEER_HELLO,
            .flags = PEER_REPLY,
            .status = status,
            .group = PEER_NO_GROUP,
            .map_version = o->map->version,
            .body_length = (uint32_t)e.length,
            .free_bytes = own_free_bytes(o),
        };
        peer_header_put(bytes, &h, e.data);
        const struct iovec iov[] = {{bytes, sizeof(bytes)}, {e.data, e.length}};
        r = conn_write(p->conn, iov, ARRAY_SIZE(iov));
    }
    enc_done(&e);
    return r;
}

static struct peer *older_connection(struct peer *p)
{
    struct peer *other;
    list_for_each (other, &p->o->peers, in_peers) {
        if (other == p)
            return NULL;
        if (other->session.value == p->session.value &&
            (!other->fenced || other->changes_inflight > 0))
            return other;
    }
    return NULL;
}

/* W4: breaks older connections of the same session and waits until nothing admitted of them is
 * under way. */
static fiber_fn void supersede(struct peer *p)
{
    struct objects *o = p->o;
    struct peer *other;
    while ((other = older_connection(p))) {
        other->fenced = true;
        conn_shutdown(other->conn);
        waitq_wake_all(&o->map_wait); /* it may be waiting for admission */
        if (other->changes_inflight > 0)
            waitq_wait(&o->drain_wait);
    }
}

static fiber_fn int read_hello(struct peer *p, struct peer_hello *ret, uint64_t *ret_map_version)
{
    uint8_t bytes[PEER_HEADER_BYTES], body[256];
    struct peer_header h;
    int r = conn_read(p->conn, bytes, sizeof(bytes));
    if (r == 0)
        r = peer_header_get(bytes, &h);
    if (r == 0 && (h.type != PEER_HELLO || h.flags & PEER_REPLY || h.body_length > sizeof(body) ||
                   h.payload_length > 0))
        r = -EBADMSG;
    if (r == 0)
        r = conn_read(p->conn, body, h.body_length);
    if (r == 0)
        r = peer_header_check(bytes, body, h.body_length);
    if (r == 0)
        r = peer_hello_decode(body, h.body_length, ret);
    if (r == 0)
        *ret_map_version = h.map_version;
    return r;
}

static fiber_fn int greet(struct peer *p)
{
    struct hello_wait late = {.p = p};
    struct peer_hello hello;
    uint64_t map_version = 0;
    timer_init(&late.timer, p->o->rt, hello_late);
    timer_arm(&late.timer, clock_now(p->o->rt) + HELLO_TIMEOUT_NS);
    int r = read_hello(p, &hello, &map_version);
    timer_cancel(&late.timer);
    if (r < 0)
        return r;
    char text[PEER_TEXT_SIZE] = "";
    int status = hello_judge(p, &hello, map_version, text);
    if (status < 0)
        log_info("refused a connection from %s: %s", conn_peer(p->conn), text);
    else
        supersede(p);
    if (p->fenced)
        return -ECONNRESET;
    r = hello_answer(p, status, text);
    return r < 0 ? r : status < 0 ? -ECONNRESET : 0;
}

/* --- requests --- */

static fiber_fn int drop_payload(struct peer *p, uint32_t length)
{
    uint8_t discard[DISCARD_SIZE];
    int r = 0;
    while (length > 0 && r == 0) {
        uint32_t n = MIN(length, DISCARD_SIZE);
        r = conn_read(p->conn, discard, n);
        length -= n;
    }
    return r;
}

/* Reads one frame into a new request. */
static fiber_fn int read_request(struct peer *p, struct request **ret)
{
    struct objects *o = p->o;
    uint8_t bytes[PEER_HEADER_BYTES];
    struct peer_header h;
    int r = conn_read(p->conn, bytes, sizeof(bytes));
    if (r == 0)
        r = peer_header_get(bytes, &h);
    if (r == 0 && (h.type == PEER_HELLO || h.flags & PEER_REPLY))
        r = -EBADMSG;
    if (r < 0)
        return r;
    struct request *rq = request_new(o, p);
    if (!rq)
        return -ENOMEM;
    rq->header = h;
    uint8_t *body = rq->body_inline;
    if (h.body_length > sizeof(rq->body_inline)) {
        body = rq->body_heap = malloc(h.body_length);
        rq->body = body;
        r = body ? 0 : -ENOMEM;
    }
    if (r == 0)
        r = conn_read(p->conn, body, h.body_length);
    if (r == 0)
        r = peer_header_check(bytes, body, h.body_length);
    if (r == 0 && h.type == PEER_FORWARD && !forward_take(rq)) {
        r = drop_payload(p, h.payload_length);
    } else if (r == 0 && h.payload_length > 0) {
        if (!rq->forwarded)
            rq->payload = payload_get(o, h.payload_length, &rq->payload_reserve);
        r = conn_read(p->conn, rq->payload, h.payload_length);
        if (r == 0 && crc32c(0, rq->payload, h.payload_length) != h.payload_crc)
            r = -EBADMSG;
    }
    if (r < 0) {
        request_free(rq);
        return r == -ENOTCONN ? -ECONNRESET : r;
    }
    *ret = rq;
    return 0;
}

/* A message of volume/ may wait for other nodes, so it may not stop the stream, and neither fences
 * nor newer connections wait for it. One that was not begun when its session was fenced or had a
 * newer connection never begins. */
static int start_forward(struct peer *p, struct request *rq)
{
    p->inflight++;
    rq->status = rq->forwarded ? 0 : -EAGAIN;
    if (p->fenced) {
        p->inflight--;
        request_free(rq);
        return -ECANCELED;
    }
    if (rq->status == 0 && fiber_spawn(p->o->rt, "peer-forward", forward_main, rq) < 0)
        rq->status = -EAGAIN;
    if (rq->status < 0)
        request_reply(rq);
    return 0;
}

/* Admits and starts one request. -EBADMSG: the sender is broken; -ECANCELED: fenced. Takes rq. */
static fiber_fn int start_request(struct peer *p, struct request *rq)
{
    if (rq->header.type == PEER_FORWARD)
        return start_forward(p, rq);
    p->inflight++;
    if (rq->header.type == PEER_LIST)
        /* A listing comes after the changes that were sent before it: L3 relies on that. */
        while (p->changes_inflight > 0)
            waitq_wait(&p->quiet);
    int r = request_admit(rq, &p->fenced);
    if (r == -EBADMSG || r == -ECANCELED) {
        p->inflight--;
        request_free(rq);
        return r;
    }
    if (r < 0) {
        rq->status = r;
        request_reply(rq);
        return 0;
    }
    if (rq->header.type == PEER_REFS) {
        if (p->refs_inflight < PEER_REFS_MAX) {
            p->refs_inflight++;
            home_queue(rq);
        } else {
            /* They may wait for other nodes, so they may not stop the stream. */
            rq->status = -EAGAIN;
            request_reply(rq);
        }
        return 0;
    }
    p->changes_inflight++;
    if (fiber_spawn(p->o->rt, "peer-request", request_main, rq) < 0)
        request_main(rq);
    return 0;
}

static fiber_fn int serve_requests(struct peer *p)
{
    int r = 0;
    while (r == 0 && !p->fenced) {
        while (p->inflight >= PEER_INFLIGHT_MAX)
            waitq_wait(&p->quiet);
        struct request *rq;
        r = read_request(p, &rq);
        if (r == 0)
            r = start_request(p, rq);
    }
    return r;
}

static fiber_fn void peer_main(void *arg)
{
    struct peer *p = arg;
    struct objects *o = p->o;
    int r = greet(p);
    if (r == 0)
        r = serve_requests(p);
    if (r == -EBADMSG || r == -EPROTO)
        log_warn("%s sent a malformed request (%s); the connection is closed", conn_peer(p->conn),
                 err_text(r));
    conn_shutdown(p->conn);
    p->fenced = true;
    while (p->inflight > 0)
        waitq_wait(&p->quiet);
    conn_close(p->conn);
    list_remove(&p->in_peers);
    free(p->list_entries);
    free(p);
    waitq_wake_all(&o->drain_wait);
    objects_fiber_end(o);
}

static fiber_fn void accept_main(void *arg)
{
    struct objects *o = arg;
    struct conn *conn;
    while (net_accept(o->listener, &conn) == 0) {
        struct peer *p = calloc(1, sizeof(*p));
        if (p) {
            p->o = o;
            p->conn = conn;
            waitq_init(&p->quiet);
            list_push_back(&o->peers, &p->in_peers);
            if (objects_spawn(o, "peer-serve", peer_main, p) == 0)
                continue;
            list_remove(&p->in_peers);
            free(p);
        }
        log_error("no memory to serve %s; the connection is closed", conn_peer(conn));
        conn_close(conn);
    }
    o->listener = NULL;
    objects_fiber_end(o);
}

int serve_start(struct objects *o, struct listener *l)
{
    o->listener = l;
    return objects_spawn(o, "peer-accept", accept_main, o);
}

bool serve_fence(struct objects *o, const struct map *m)
{
    bool quiet = true;
    struct peer *p;
    list_for_each (p, &o->peers, in_peers) {
        if (p->session.value == 0 || map_node_by_session(m, p->session))
            continue;
        if (!p->fenced) {
            log_info("node %u's session %llu has left the map; its connection is closed", p->number,
                     (unsigned long long)p->session.value);
            p->fenced = true;
            conn_shutdown(p->conn);
            waitq_wake_all(&o->map_wait);
        }
        quiet = quiet && p->changes_inflight == 0;
    }
    return quiet;
}

fiber_fn void serve_stop(struct objects *o)
{
    if (o->listener)
        listener_close(o->listener);
    struct peer *p;
    list_for_each (p, &o->peers, in_peers) {
        p->fenced = true;
        conn_shutdown(p->conn);
    }
    waitq_wake_all(&o->map_wait);
}
