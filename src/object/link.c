/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Links: connecting, greeting, sending, matching answers. See link.h for K1 to K3.
 *
 * K4 link.calls holds exactly the calls in the states QUEUED, SENT and RECEIVING.
 * K5 Memory of a call is touched by a connection only while `sending` or RECEIVING.
 */
#include "object/link.h"
#include <stdlib.h>
#include <string.h>
#include "base/crc32c.h"
#include "object/object_internal.h"

#define LOG_MODULE "object"
#include "base/log.h"

#define BACKOFF_MIN_NS     (10 * NS_PER_MS)
#define BACKOFF_MAX_NS     NS_PER_S
#define CONNECT_TIMEOUT_NS (5 * NS_PER_S)
#define SESSION_WAIT_NS    (500 * NS_PER_MS)
#define DISCARD_SIZE       4096u

/* --- calls --- */

int call_init(struct call *c, enum peer_type type, unsigned payload_count)
{
    c->type = type;
    c->flags = 0;
    c->group = PEER_NO_GROUP;
    c->body = NULL;
    c->body_length = 0;
    c->payload = NULL;
    c->payload_count = payload_count;
    c->payload_length = 0;
    c->payload_crc = 0;
    c->reply_payload = NULL;
    c->reply_payload_size = 0;
    c->on_body = NULL;
    c->done = NULL;
    c->user = NULL;
    c->deadline_ns = 0;
    c->status = 0;
    c->reply_map_version = 0;
    c->reply_payload_length = 0;
    c->epoch_sent = 0;
    c->state = CALL_IDLE;
    c->sending = false;
    c->id = 0;
    c->link = NULL;
    list_init(&c->in_link);
    c->iov_heap = NULL;
    if (payload_count + 2 > CALL_IOV_INLINE) {
        c->iov_heap = malloc((payload_count + 2) * sizeof(c->iov_heap[0]));
        if (!c->iov_heap)
            return -ENOMEM;
    }
    return 0;
}

void call_done(struct call *c)
{
    ASSERT(!call_busy(c));
    free(c->iov_heap);
    c->iov_heap = NULL;
}

static void call_finish(struct call *c, int status)
{
    struct link *l = c->link;
    ASSERT(c->state != CALL_IDLE && c->state != CALL_ANSWERED);
    list_remove(&c->in_link);
    if (l->slots[c->id % LINK_SLOT_COUNT] == c)
        l->slots[c->id % LINK_SLOT_COUNT] = NULL;
    c->status = status;
    c->state = CALL_ANSWERED;
    waitq_wake_all(&l->cancel_wait);
    if (!c->sending && c->done) /* K3 */
        c->done(c);
}

static void call_sent(struct conn_out *out)
{
    struct call *c = container_of(out, struct call, out);
    c->sending = false;
    waitq_wake_all(&c->link->cancel_wait);
    if (c->state == CALL_ANSWERED && c->done)
        c->done(c);
}

static void call_send(struct link *l, struct call *c)
{
    struct objects *o = l->o;
    struct group *g = c->group == PEER_NO_GROUP ? NULL : group_get(o, c->group);
    ASSERT(!c->sending && c->state == CALL_QUEUED);
    c->epoch_sent = g ? g->epoch : 0;
    const struct peer_header h = {
        .type = c->type,
        .id = c->id,
        .epoch = c->epoch_sent,
        .map_version = o->map->version,
        .group = c->group,
        .body_length = c->body_length,
        .payload_length = c->payload_length,
        .payload_crc = c->payload_crc,
    };
    peer_header_put(c->header, &h, c->body);
    struct iovec *iov = c->iov_heap ? c->iov_heap : c->iov_inline;
    unsigned n = 0;
    iov[n++] = (struct iovec){c->header, sizeof(c->header)};
    if (c->body_length > 0)
        iov[n++] = (struct iovec){(void *)c->body, c->body_length};
    for (unsigned i = 0; i < c->payload_count; i++)
        iov[n++] = c->payload[i];
    c->out.iov = iov;
    c->out.iov_count = n;
    c->out.done = call_sent;
    c->sending = true;
    c->state = CALL_SENT;
    conn_submit(l->conn, &c->out);
}

static struct call *call_find(struct link *l, uint64_t id)
{
    struct call *c = l->slots[id % LINK_SLOT_COUNT];
    if (c && c->id == id)
        return c;
    list_for_each (c, &l->calls, in_link) {
        if (c->id == id)
            return c;
    }
    return NULL;
}

/* --- the connection --- */

struct greeting {
    struct timer timer;
    struct conn *conn;
};

static void greeting_late(struct timer *t)
{
    conn_shutdown(container_of(t, struct greeting, timer)->conn);
}

static int body_reserve(struct link *l, size_t size)
{
    if (size <= l->body_size)
        return 0;
    uint8_t *body = realloc(l->body, size);
    if (!body)
        return -ENOMEM;
    l->body = body;
    l->body_size = size;
    return 0;
}

/* Reads header and body of the next answer. 0, -EBADMSG, -EPROTO, or as conn_read(). */
static fiber_fn int read_head(struct link *l, struct peer_header *h)
{
    uint8_t bytes[PEER_HEADER_BYTES];
    int r = conn_read(l->conn, bytes, sizeof(bytes));
    if (r == 0)
        r = peer_header_get(bytes, h);
    if (r == 0 && !(h->flags & PEER_REPLY))
        r = -EBADMSG;
    if (r == 0)
        r = body_reserve(l, h->body_length);
    if (r == 0)
        r = conn_read(l->conn, l->body, h->body_length);
    if (r == 0)
        r = peer_header_check(bytes, l->body, h->body_length);
    return r;
}

static fiber_fn int hello_exchange(struct link *l, const struct peer_hello *hello)
{
    struct enc e;
    enc_init(&e);
    peer_hello_encode(hello, &e);
    int r = e.error;
    if (r == 0) {
        uint8_t bytes[PEER_HEADER_BYTES];
        const struct peer_header h = {
            .type = PEER_HELLO,
            .map_version = l->o->map->version,
            .group = PEER_NO_GROUP,
            .body_length = (uint32_t)e.length,
        };
        peer_header_put(bytes, &h, e.data);
        const struct iovec iov[] = {{bytes, sizeof(bytes)}, {e.data, e.length}};
        r = conn_write(l->conn, iov, ARRAY_SIZE(iov));
    }
    enc_done(&e);
    struct peer_header h;
    struct peer_hello_reply reply;
    if (r == 0)
        r = read_head(l, &h);
    if (r == 0 && (h.type != PEER_HELLO || h.payload_length > 0))
        r = -EBADMSG;
    if (r == 0)
        r = peer_hello_reply_decode(l->body, h.body_length, &reply);
    if (r < 0)
        return r;
    if (h.status < 0) {
        if (!l->refused_logged)
            log_warn("node %u at %s refuses our connection: %s", l->number, conn_peer(l->conn),
                     reply.text);
        l->refused_logged = true;
        return h.status;
    }
    if (reply.version != PEER_PROTOCOL_VERSION)
        return -EPROTO;
    l->session = reply.session;
    return 0;
}

/* 0: up. Else the connection is gone again. */
static fiber_fn int link_connect(struct link *l, const struct map_node *n)
{
    struct objects *o = l->o;
    struct peer_hello hello = {
        .cluster = o->map->cluster,
        .target = n->uuid,
        .session = cluster_session(o->cluster),
        .version_min = PEER_PROTOCOL_VERSION,
        .version_max = PEER_PROTOCOL_VERSION,
    };
    const struct map_node *self = map_node(o->map, (uint16_t)o->self);
    ASSERT(self);
    hello.node = self->uuid;
    char address[MAP_ADDRESS_SIZE];
    memcpy(address, n->address, sizeof(address));
    uint64_t deadline_ns = clock_now(o->rt) + CONNECT_TIMEOUT_NS;
    int r = net_connect(o->rt, address, deadline_ns, &l->conn);
    if (r < 0)
        return r;
    struct greeting late = {.conn = l->conn};
    timer_init(&late.timer, o->rt, greeting_late);
    timer_arm(&late.timer, deadline_ns);
    r = hello_exchange(l, &hello);
    timer_cancel(&late.timer);
    if (r < 0) {
        conn_close(l->conn);
        l->conn = NULL;
    }
    return r;
}

static fiber_fn int skip_payload(struct link *l, uint32_t length)
{
    uint8_t discard[DISCARD_SIZE];
    int r = 0;
    while (length > 0 && r == 0) {
        uint32_t n = MIN(length, DISCARD_SIZE);
        r = conn_read(l->conn, discard, n);
        length -= n;
    }
    return r;
}

static void note_answer(struct link *l, const struct peer_header *h)
{
    struct node_state *n = container_of(l, struct node_state, link);
    n->free_bytes = h->free_bytes;
    l->heard_ns = clock_now(l->o->rt);
}

/* Takes one answer in. A negative return breaks the connection. */
static fiber_fn int read_answer(struct link *l)
{
    struct peer_header h;
    int r = read_head(l, &h);
    if (r < 0)
        return r;
    note_answer(l, &h);
    struct call *c = call_find(l, h.id);
    if (!c || c->state != CALL_SENT)
        return c ? -EBADMSG : skip_payload(l, h.payload_length); /* cancelled meanwhile */
    if (h.type != c->type || h.payload_length > c->reply_payload_size)
        return -EBADMSG;
    if (c->on_body && h.body_length > 0)
        r = c->on_body(c, l->body, h.body_length);
    if (r < 0)
        return r;
    if (h.payload_length > 0) {
        c->state = CALL_RECEIVING;
        r = conn_read(l->conn, c->reply_payload, h.payload_length);
        if (r == 0 && crc32c(0, c->reply_payload, h.payload_length) != h.payload_crc)
            r = -EBADMSG;
        c->state = CALL_SENT;
        if (r < 0) {
            waitq_wake_all(&l->cancel_wait);
            return r;
        }
    }
    c->reply_map_version = h.map_version;
    c->reply_payload_length = h.payload_length;
    call_finish(c, h.status);
    return 0;
}

/* Calls that do not want to wait for another connection fail; the others queue up again. */
static void requeue(struct link *l)
{
    struct list failed = LIST_INIT(failed);
    struct call *c, *tmp;
    list_for_each_safe (c, tmp, &l->calls, in_link) {
        ASSERT(!c->sending && c->state != CALL_RECEIVING);
        c->state = CALL_QUEUED;
        if (c->flags & CALL_FAIL_FAST || l->stopping) {
            list_remove(&c->in_link);
            list_push_back(&failed, &c->in_link);
        }
    }
    while (!list_empty(&failed))
        call_finish(list_first(&failed, struct call, in_link),
                    l->stopping ? -ECANCELED : -ECONNRESET);
}

/* From up to down. */
static fiber_fn void link_serve(struct link *l)
{
    l->state = LINK_UP;
    l->heard_ns = clock_now(l->o->rt);
    l->backoff_ns = BACKOFF_MIN_NS;
    l->refused_logged = false;
    struct call *c;
    list_for_each (c, &l->calls, in_link)
        call_send(l, c);
    int r;
    do
        r = read_answer(l);
    while (r == 0);
    if (r == -EBADMSG || r == -EPROTO)
        log_warn(
            "node %u at %s sent a malformed answer (%s); the connection is closed and made anew",
            l->number, conn_peer(l->conn), err_text(r));
    /* New calls queue up from here on; closing completes all that is being sent. */
    l->state = LINK_DOWN;
    conn_close(l->conn);
    l->conn = NULL;
}

static bool session_is_listed(const struct link *l)
{
    const struct map_node *n = map_node(l->o->map, l->number);
    return n && n->session.value == l->session.value;
}

/* We may be faster than the map that lists the other side's new session; or this is a process that
 * has been replaced. 0, or the connection is gone again. */
static fiber_fn int link_check_session(struct link *l)
{
    uint64_t deadline_ns = clock_now(l->o->rt) + SESSION_WAIT_NS;
    int r = 0;
    while (!session_is_listed(l) && r == 0 && !l->stopping)
        r = waitq_wait_until(&l->wake, l->o->rt, deadline_ns);
    if (session_is_listed(l) && !l->stopping)
        return 0;
    conn_close(l->conn);
    l->conn = NULL;
    return -ESTALE;
}

static fiber_fn void link_pause(struct link *l)
{
    waitq_wait_until(&l->wake, l->o->rt, clock_now(l->o->rt) + l->backoff_ns);
    l->backoff_ns = MIN(l->backoff_ns * 2, BACKOFF_MAX_NS);
}

static fiber_fn void link_main(void *arg)
{
    struct link *l = arg;
    struct objects *o = l->o;
    while (!l->stopping) {
        if (list_empty(&l->calls)) {
            waitq_wait(&l->wake);
            continue;
        }
        const struct map_node *n = o->self >= 0 ? map_node(o->map, l->number) : NULL;
        if (!n || n->session.value == 0) {
            requeue(l);
            if (!l->stopping && list_empty(&l->calls))
                continue;
            waitq_wait(&l->wake);
            continue;
        }
        l->state = LINK_CONNECTING;
        int r = link_connect(l, n);
        if (r == 0)
            r = link_check_session(l);
        if (r == 0) {
            link_serve(l);
            requeue(l);
            continue;
        }
        l->state = LINK_DOWN;
        requeue(l);
        if (!l->stopping)
            link_pause(l);
    }
    requeue(l);
    l->running = false;
    waitq_wake_all(&l->cancel_wait);
    objects_fiber_end(o);
}

/* --- for callers --- */

void link_init(struct link *l, struct objects *o, uint16_t number)
{
    *l = (struct link){.o = o, .number = number, .backoff_ns = BACKOFF_MIN_NS};
    list_init(&l->calls);
    waitq_init(&l->wake);
    waitq_init(&l->cancel_wait);
}

void link_submit(struct link *l, struct call *c)
{
    ASSERT(!call_busy(c));
    ASSERT(c->body_length <= PEER_BODY_MAX && c->payload_length <= PEER_PAYLOAD_MAX);
    c->link = l;
    c->id = ++l->last_id;
    c->state = CALL_QUEUED;
    if (list_empty(&l->calls))
        l->waiting_since_ns = clock_now(l->o->rt);
    list_push_back(&l->calls, &c->in_link);
    l->slots[c->id % LINK_SLOT_COUNT] = c;
    if (l->state == LINK_UP) {
        call_send(l, c);
        return;
    }
    if (!l->running && !l->stopping)
        l->running = objects_spawn(l->o, "peer-link", link_main, l) == 0;
    if (l->state == LINK_DOWN)
        waitq_wake_all(&l->wake);
}

fiber_fn void link_cancel(struct call *c)
{
    struct link *l = c->link;
    while (c->sending || c->state == CALL_RECEIVING) { /* K5 */
        link_drop(l);
        waitq_wait(&l->cancel_wait);
    }
    if (!call_busy(c))
        return;
    list_remove(&c->in_link);
    if (l->slots[c->id % LINK_SLOT_COUNT] == c)
        l->slots[c->id % LINK_SLOT_COUNT] = NULL;
    c->state = CALL_IDLE;
}

void link_drop(struct link *l)
{
    if (l->conn && l->state == LINK_UP)
        conn_shutdown(l->conn);
}

void link_kick(struct link *l)
{
    const struct map_node *n = map_node(l->o->map, l->number);
    if (l->state == LINK_UP && (!n || n->session.value != l->session.value))
        conn_shutdown(l->conn);
    l->backoff_ns = BACKOFF_MIN_NS;
    waitq_wake_all(&l->wake);
}

fiber_fn void link_stop(struct link *l)
{
    l->stopping = true;
    if (l->conn)
        conn_shutdown(l->conn);
    waitq_wake_all(&l->wake);
    while (l->running)
        waitq_wait(&l->cancel_wait);
    ASSERT(list_empty(&l->calls));
    free(l->body);
    l->body = NULL;
}
