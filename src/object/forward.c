/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages of volume/ between two nodes: carried here, understood there (L4).
 *
 * F1 They wait for other nodes (a forwarded write goes to all replicas), so nothing that another
 *    node may be waiting for waits for them: not the stream behind them, not a fence, not a newer
 *    connection of the same session; and their memory is counted by itself. What finds no room is
 *    not begun and answered -EAGAIN.
 * F2 (R6) An answer leaves only while this node may serve.
 */
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "object/serve.h"

#define SERVING_POLL_NS (20 * NS_PER_MS)

static_assert(OBJECT_FORWARD_PAYLOAD_MAX == PEER_FORWARD_DATA_MAX, "the data of one message");
static_assert(OBJECT_FORWARD_PAYLOAD_MAX <= FORWARD_BYTES_MAX, "one message has room");

void objects_set_forward(struct objects *o, object_forward_fn *fn, void *arg)
{
    o->forwards.fn = fn;
    o->forwards.arg = arg;
}

bool forward_take(struct request *rq)
{
    struct forwards *f = &rq->o->forwards;
    size_t length = rq->header.payload_length;
    if (f->count >= FORWARD_COUNT_MAX || length > OBJECT_FORWARD_PAYLOAD_MAX ||
        f->bytes + length > FORWARD_BYTES_MAX)
        return false;
    if (length > 0) {
        rq->payload = aligned_alloc(OBJECT_BLOCK, ALIGN_UP(length, (size_t)OBJECT_BLOCK));
        if (!rq->payload)
            return false;
    }
    f->count++;
    f->bytes += length;
    rq->reply_payload_size = 0;
    rq->forwarded = true;
    return true;
}

bool object_forward_buffer(struct objects *o, struct object_forward_answer *ret, uint32_t size)
{
    struct forwards *f = &o->forwards;
    ASSERT(!ret->payload && size > 0 && size <= OBJECT_FORWARD_PAYLOAD_MAX);
    if (f->bytes + size > FORWARD_BYTES_MAX)
        return false;
    ret->payload = aligned_alloc(OBJECT_BLOCK, ALIGN_UP(size, OBJECT_BLOCK));
    if (!ret->payload)
        return false;
    ret->payload_size = size;
    f->bytes += size;
    return true;
}

void forward_free(struct request *rq)
{
    struct forwards *f = &rq->o->forwards;
    ASSERT(f->count > 0 && f->bytes >= rq->header.payload_length + rq->reply_payload_size);
    free(rq->payload);
    free(rq->reply_payload);
    f->count--;
    f->bytes -= rq->header.payload_length + rq->reply_payload_size;
}

/* --- serving --- */

static fiber_fn void serve(struct request *rq)
{
    struct objects *o = rq->o;
    const struct object_forward m = {
        .node = rq->peer->number,
        .session = rq->peer->session,
        .body = rq->body,
        .body_length = rq->header.body_length,
        .payload = rq->payload,
        .payload_length = rq->header.payload_length,
    };
    struct object_forward_answer a = {0};
    enc_init(&a.body);
    rq->status = o->forwards.fn ? o->forwards.fn(o->forwards.arg, &m, &a) : -ESTALE;
    rq->reply_body = a.body;
    rq->reply_payload = a.payload;
    rq->reply_payload_size = a.payload_size;
    rq->reply_payload_length = a.payload_length;
    ASSERT(a.payload_length <= a.payload_size && (a.payload || a.payload_size == 0));
}

fiber_fn void forward_main(void *arg)
{
    struct request *rq = arg;
    struct objects *o = rq->o;
    serve(rq);
    while (!gate_serving(o) && !o->stopping && !rq->peer->fenced) /* F2 */
        waitq_wait_until(&o->map_wait, o->rt, clock_now(o->rt) + SERVING_POLL_NS);
    request_reply(rq);
}

/* --- asking --- */

struct forward_call {
    struct call call;
    struct object_forward_answer *ret;
};

static int take_body(struct call *c, const uint8_t *body, size_t length)
{
    struct forward_call *f = container_of(c, struct forward_call, call);
    enc_bytes(&f->ret->body, body, length);
    return 0;
}

fiber_fn int object_forward(struct objects *o, const struct object_forward *m,
                            struct object_forward_answer *ret)
{
    struct forward_call f = {.ret = ret};
    struct call *c = &f.call;
    const struct iovec payload = {(void *)m->payload, m->payload_length};
    ASSERT(m->node != o->self && m->payload_length <= OBJECT_FORWARD_PAYLOAD_MAX);
    int r = call_init(c, PEER_FORWARD, m->payload_length > 0 ? 1 : 0);
    if (r < 0)
        return r;
    c->flags = CALL_FAIL_FAST;
    c->body = m->body;
    c->body_length = m->body_length;
    if (m->payload_length > 0) {
        c->payload = &payload;
        c->payload_length = m->payload_length;
        c->payload_crc = crc32c(0, m->payload, m->payload_length);
    }
    c->reply_payload = ret->payload;
    c->reply_payload_size = ret->payload_size;
    c->on_body = take_body;
    r = node_call(o, m->node, c, NULL, "forwarded requests");
    ret->payload_length = c->reply_payload_length;
    if (r == -ECONNRESET) { /* maybe in the middle of the answer */
        enc_done(&ret->body);
        enc_init(&ret->body);
    }
    if (r == 0 && ret->body.error)
        r = ret->body.error;
    call_done(c);
    return r;
}
