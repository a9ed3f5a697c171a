/* SPDX-License-Identifier: Apache-2.0 */
/* Messages of volume/ between gateways (object_forward()), on a network that delays them, loses
 * answers and breaks connections. */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "fake_internal.h"

struct forwarded {
    struct list link; /* fake_world.forwards */
    struct objects *from, *to;
    struct session session;
    uint16_t node;
    uint8_t *body, *payload;
    uint32_t body_length, payload_length;
    struct object_forward_answer answer;
    int status;
    bool waits;  /* the asker's fiber has it */
    bool runs;   /* the server's fiber has it */
    bool begun;  /* by the handler */
    bool ended;  /* status and answer are there */
    bool broken; /* its connection is gone: it may not begin, and its answer has no way back */
    struct waitq changed;
};

static void forwarded_put(struct forwarded *f)
{
    if (f->waits || f->runs)
        return;
    list_remove(&f->link);
    enc_done(&f->answer.body);
    free(f->answer.payload);
    free(f->body);
    free(f->payload);
    free(f);
}

static void forwarded_fail(struct forwarded *f)
{
    f->broken = true;
    waitq_wake_all(&f->changed);
}

static fiber_fn void forwarded_main(void *arg)
{
    struct forwarded *f = arg;
    struct fake_world *w = f->to->w;
    fiber_sleep(f->to->rt, fake_draw(w) % (w->options.delay_ns_max + 1));
    if (!f->broken) {
        const struct object_forward m = {.node = f->node,
                                         .session = f->session,
                                         .body = f->body,
                                         .payload = f->payload_length ? f->payload : NULL,
                                         .body_length = f->body_length,
                                         .payload_length = f->payload_length};
        f->begun = true;
        w->stats.forwards++;
        f->status =
            f->to->forward_fn ? f->to->forward_fn(f->to->forward_arg, &m, &f->answer) : -ESTALE;
        fiber_sleep(f->to->rt, fake_draw(w) % (w->options.delay_ns_max + 1));
    }
    f->ended = true;
    f->runs = false;
    waitq_wake_all(&f->changed);
    forwarded_put(f);
}

static struct objects *service_of(const struct fake_world *w, uint16_t node)
{
    struct objects *o;
    list_for_each (o, &w->services, in_services) {
        if (cluster_self(o->cluster) == node)
            return o;
    }
    return NULL;
}

/* All that is under way between the two: what has not begun never will, no answer arrives. */
static void break_connection(struct fake_world *w, const struct objects *from,
                             const struct objects *to)
{
    struct forwarded *f;
    w->stats.breaks++;
    list_for_each (f, &w->forwards, link) {
        if (f->from == from && f->to == to)
            forwarded_fail(f);
    }
}

void objects_set_forward(struct objects *o, object_forward_fn *fn, void *arg)
{
    o->forward_fn = fn;
    o->forward_arg = arg;
}

bool object_forward_buffer(struct objects *o, struct object_forward_answer *ret, uint32_t size)
{
    if (fake_chance(o->w, o->w->options.full_forward_permille))
        return false;
    ret->payload = malloc(size);
    ret->payload_size = size;
    return true;
}

static fiber_fn int forwarded_wait(struct forwarded *f, struct object_forward_answer *ret)
{
    struct fake_world *w = f->from->w;
    bool lost = false;
    while (!f->broken && !lost) {
        if (f->ended && w->options.lose_answers > 0) {
            w->options.lose_answers--;
            fiber_sleep(f->from->rt, 200 * NS_PER_MS); /* until it is noticed */
            lost = true;
        } else if (f->ended) {
            break;
        } else if (waitq_wait_until(&f->changed, f->from->rt, sim_now(w->sim) + NS_PER_MS) < 0 &&
                   fake_chance(w, w->options.break_permille)) {
            break_connection(w, f->from, f->to);
        }
    }
    if (f->broken || lost)
        return -ECONNRESET;
    enc_bytes(&ret->body, f->answer.body.data, f->answer.body.length);
    ret->payload_length = f->answer.payload_length;
    ASSERT(ret->payload_length <= ret->payload_size);
    if (ret->payload_length)
        memcpy(ret->payload, f->answer.payload, ret->payload_length);
    return f->status;
}

fiber_fn int object_forward(struct objects *o, const struct object_forward *m,
                            struct object_forward_answer *ret)
{
    struct fake_world *w = o->w;
    struct objects *to = service_of(w, m->node);
    struct session session = cluster_session(o->cluster);
    ASSERT(to != o);
    if (!to || !map_node_by_session(cluster_map(to->cluster), session)) {
        fiber_sleep(o->rt, NS_PER_MS);
        return -ECONNRESET;
    }
    if (fake_chance(w, w->options.full_forward_permille))
        return -EAGAIN;
    struct forwarded *f = calloc(1, sizeof(*f));
    *f = (struct forwarded){.from = o,
                            .to = to,
                            .session = session,
                            .node = (uint16_t)cluster_self(o->cluster),
                            .body_length = m->body_length,
                            .payload_length = m->payload_length,
                            .waits = true,
                            .runs = true};
    f->body = malloc(m->body_length);
    memcpy(f->body, m->body, m->body_length);
    f->payload = malloc(m->payload_length + 1);
    if (m->payload_length)
        memcpy(f->payload, m->payload, m->payload_length);
    enc_init(&f->answer.body);
    waitq_init(&f->changed);
    list_push_back(&w->forwards, &f->link);
    if (fake_chance(w, w->options.break_permille))
        break_connection(w, o, to);
    ASSERT(fiber_spawn(to->rt, "forwarded", forwarded_main, f) == 0);
    int r = forwarded_wait(f, ret);
    f->waits = false;
    forwarded_put(f);
    return r;
}

/* --- life --- */

void fake_forwards_free(struct fake_world *w)
{
    struct forwarded *f, *fnext;
    list_for_each_safe (f, fnext, &w->forwards, link) {
        f->waits = f->runs = false;
        forwarded_put(f);
    }
}

fiber_fn void fake_objects_stop(struct objects *o)
{
    list_remove(&o->in_services);
    for (bool busy = true; busy;) {
        struct forwarded *f;
        busy = false;
        list_for_each (f, &o->w->forwards, link) {
            if (f->to == o && f->runs)
                busy = true;
            if (f->to == o)
                forwarded_fail(f);
        }
        if (busy)
            fiber_sleep(o->rt, NS_PER_MS);
    }
}

void fake_forwards_died(struct objects *o)
{
    struct forwarded *f, *fnext;
    list_for_each_safe (f, fnext, &o->w->forwards, link) {
        if (f->to == o) {
            forwarded_fail(f);
            f->runs = false;
        }
        if (f->from == o) {
            f->broken = true;
            f->waits = false;
            waitq_init(&f->changed); /* whose fiber is no more */
        }
        forwarded_put(f);
    }
    list_remove(&o->in_services);
}
