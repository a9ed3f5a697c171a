/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asking one node, or several at once, and waiting.
 *
 * C1 When a wait returns, no call of it is under way: the caller's memory is its own again.
 */
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "object/serve.h"

struct node_state *node_get(struct objects *o, uint16_t number)
{
    if (number >= MAP_NODE_COUNT_MAX)
        return NULL;
    if (o->nodes[number])
        return o->nodes[number];
    struct node_state *n = calloc(1, sizeof(*n));
    if (!n)
        return NULL;
    n->number = number;
    n->free_bytes = UINT64_MAX;
    link_init(&n->link, o, number);
    o->nodes[number] = n;
    return n;
}

/* Answers a call of this node to itself with the code that answers peers. */
static fiber_fn int self_call(struct objects *o, struct call *c, const bool *abort)
{
    struct request *rq = request_new(o, NULL);
    if (!rq)
        return -ENOMEM;
    const struct group *g = c->group == PEER_NO_GROUP ? NULL : group_get(o, c->group);
    ASSERT(c->payload_count <= 1);
    rq->header = (struct peer_header){
        .type = c->type,
        .epoch = g ? g->epoch : 0,
        .map_version = o->map->version,
        .group = c->group,
        .body_length = c->body_length,
        .payload_length = c->payload_length,
    };
    c->epoch_sent = rq->header.epoch;
    rq->body = c->body;
    rq->payload = c->payload_count ? c->payload[0].iov_base : NULL;
    rq->payload_borrowed = true;
    int r = request_admit(rq, abort);
    if (r == 0) {
        request_run(rq);
        r = rq->status;
        const uint8_t *body = rq->reply_inline ? rq->reply_version : rq->reply_body.data;
        size_t length = rq->reply_inline ? rq->reply_inline : rq->reply_body.length;
        if (rq->reply_body.error)
            r = rq->reply_body.error;
        else if (c->on_body && length > 0 && c->on_body(c, body, length) < 0)
            r = -EBADMSG;
        if (rq->reply_payload_length > 0) {
            ASSERT(rq->reply_payload_length <= c->reply_payload_size);
            memcpy(c->reply_payload, rq->reply_payload, rq->reply_payload_length);
        }
        c->reply_payload_length = rq->reply_payload_length;
    }
    c->reply_map_version = o->map->version;
    c->status = r;
    request_free(rq);
    return r;
}

static void one_of_many_done(struct call *c)
{
    struct node_calls *n = c->user;
    ASSERT(n->pending > 0);
    if (--n->pending == 0)
        waitq_wake_all(&n->op.wait);
}

void node_calls_begin(struct objects *o, struct node_calls *n, const struct object_owner *owner,
                      const char *what)
{
    n->pending = 0;
    op_begin(o, &n->op, owner, what);
}

void node_calls_bind(struct objects *o, struct node_calls *n)
{
    n->op.bound = true;
    n->op.map_version = o->map->version;
}

void node_calls_add(struct objects *o, struct node_calls *n, uint16_t number, struct call *c)
{
    struct node_state *node = node_get(o, number);
    ASSERT(number != o->self);
    c->user = n;
    c->done = one_of_many_done;
    if (!node || o->stopping) {
        c->status = node ? -ECANCELED : -ENOMEM;
        return;
    }
    n->pending++;
    link_submit(&node->link, c);
}

fiber_fn int node_calls_wait(struct objects *o, struct node_calls *n, struct call **calls,
                             unsigned count)
{
    int r = 0;
    while (n->pending > 0 && r == 0) {
        waitq_wait(&n->op.wait);
        if (n->pending > 0 && op_cancelled(o, &n->op))
            r = -ECANCELED;
        else if (n->pending > 0 && n->op.bound && n->op.map_version != o->map->version)
            r = -EAGAIN;
    }
    for (unsigned i = 0; i < count && r < 0; i++)
        if (call_busy(calls[i]))
            link_cancel(calls[i]);
    op_end(o, &n->op);
    return r;
}

static bool is_in_sync_anywhere(const struct objects *o, uint16_t node)
{
    for (uint32_t i = 0; i < o->map->group_count; i++)
        if (map_group_in_sync(&o->map->groups[i], node))
            return true;
    return false;
}

/* What a single call is bound to. */
static uint64_t binding(const struct objects *o, const struct call *c, uint16_t node)
{
    if (c->group != PEER_NO_GROUP)
        return c->group < o->group_count ? o->groups[c->group].epoch : 0;
    const struct map_node *n = map_node(o->map, node);
    return n && is_in_sync_anywhere(o, node) ? n->session.value : 0;
}

/* Waits for the answer to the only call of n. */
static fiber_fn int one_call_wait(struct objects *o, struct node_calls *n, struct call *c,
                                  uint16_t node)
{
    bool bound = c->flags & CALL_BOUND;
    uint64_t bound_to = bound ? binding(o, c, node) : 0;
    uint64_t deadline_ns = c->deadline_ns ? c->deadline_ns : UINT64_MAX;
    int r = 0;
    n->op.bound = bound;
    n->op.map_version = o->map->version;
    while (n->pending > 0 && r == 0) {
        int late = waitq_wait_until(&n->op.wait, o->rt, deadline_ns);
        if (n->pending == 0)
            break;
        if (op_cancelled(o, &n->op))
            r = -ECANCELED;
        else if (bound && binding(o, c, node) != bound_to)
            r = -EAGAIN;
        else if (late == -ETIMEDOUT)
            r = -ETIMEDOUT;
    }
    if (r < 0 && call_busy(c))
        link_cancel(c);
    op_end(o, &n->op);
    return r < 0 ? r : c->status;
}

fiber_fn int node_call(struct objects *o, uint16_t number, struct call *c,
                       const struct object_owner *owner, const char *what)
{
    if (number == o->self)
        return self_call(o, c, owner ? &owner->cancelled : NULL);
    struct node_calls n;
    node_calls_begin(o, &n, owner, what);
    n.op.calls = c;
    n.op.call_count = 1;
    node_calls_add(o, &n, number, c);
    return one_call_wait(o, &n, c, number);
}

static fiber_fn void ping_main(void *arg)
{
    struct node_state *n = arg;
    struct objects *o = n->link.o;
    struct call c;
    if (call_init(&c, PEER_PING, 0) == 0) {
        c.flags = CALL_FAIL_FAST;
        node_call(o, n->number, &c, NULL, "pings");
        call_done(&c);
    }
    n->ping_running = false;
    objects_fiber_end(o);
}

void node_ping(struct objects *o, struct node_state *n)
{
    if (!n->ping_running && !o->stopping)
        n->ping_running = objects_spawn(o, "object-ping", ping_main, n) == 0;
}
