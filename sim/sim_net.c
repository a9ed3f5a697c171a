/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Simulated network: streams between nodes, in order, with random delays.
 *
 * W1 What one end submits in one go becomes one packet; packets of a stream arrive in order.
 * W2 At most WINDOW_SIZE bytes of a direction are on the way or unread; more waits in conn_out's
 * queue. W3 A stream ends with an END packet (close, shutdown) or a RESET packet (the node died)
 * behind the data. W4 A conn knows its peer until the peer is freed. Packets belong to the conn
 * they go to. W5 A packet that meets a blocked way stays in `coming` with no timer; when the way
 * opens, all packets there get new arrivals, in order.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "sim/sim_internal.h"

#define WINDOW_SIZE      (1u << 20)
#define LATENCY_MIN_NS   (20 * NS_PER_US)
#define LATENCY_MAX_NS   (200 * NS_PER_US)
#define HANDOVER_NS_MAX  (5 * NS_PER_US)
#define CONNECT_RETRY_NS (50 * NS_PER_MS)

enum packet_kind { PACKET_DATA, PACKET_END, PACKET_RESET };

struct sim_conn {
    struct conn base;      /* first */
    struct list link;      /* sim_node.conns, or sim_listener.pending */
    struct sim_conn *peer; /* W4 */
    bool broken;           /* shut down here, or reset by the other side */
    bool ended;            /* END arrived */
    bool reading;
    struct list coming;    /* struct packet on the way to us */
    uint64_t arrival_last; /* W1: of the packets on the way to us */
    struct list arrived;   /* struct packet, unread data */
    size_t window_used;    /* W2: of the direction to us */
    struct waitq readable;
    struct list outs; /* conn_out.link */
    struct timer handover;
    struct waitq drained;
};

struct packet {
    struct timer timer;
    struct list link; /* sim_conn.coming, then .arrived */
    struct sim_conn *to;
    struct sim_node *from;
    enum packet_kind kind;
    size_t size, position;
    uint8_t data[];
};

struct sim_listener {
    struct listener base; /* first */
    struct list link;     /* sim.listeners while open */
    struct list node_link;
    struct list pending; /* sim_conn.link: connected, not accepted */
    struct waitq acceptable;
    bool closed;
};

static struct sim_conn *conn_of(struct conn *base)
{
    return container_of(base, struct sim_conn, base);
}

static struct sim *sim_of(const struct sim_conn *c)
{
    return sim_node_of(c->base.rt)->sim;
}

/* --- ways --- */

/* A way that is not as usual. */
struct link_entry {
    struct list link; /* sim.links */
    struct sim_node *from, *to;
    struct sim_link options;
};

static struct link_entry *find_link(struct sim *s, const struct sim_node *from,
                                    const struct sim_node *to)
{
    struct link_entry *e;
    list_for_each (e, &s->links, link) {
        if (e->from == from && e->to == to)
            return e;
    }
    return NULL;
}

static bool way_is_blocked(struct sim *s, const struct sim_node *from, const struct sim_node *to)
{
    const struct link_entry *e = find_link(s, from, to);
    return e && e->options.blocked;
}

/* --- packets --- */

static void break_conn(struct sim_conn *c);

static void packet_fire(struct timer *t)
{
    struct packet *p = container_of(t, struct packet, timer);
    struct sim_conn *c = p->to;
    if (way_is_blocked(sim_of(c), p->from, sim_node_of(c->base.rt)))
        return; /* W5 */
    list_remove(&p->link);
    if (p->kind == PACKET_DATA && !c->broken) {
        list_push_back(&c->arrived, &p->link);
    } else {
        if (p->kind == PACKET_END)
            c->ended = true;
        if (p->kind == PACKET_RESET)
            break_conn(c);
        free(p);
    }
    waitq_wake_all(&c->readable);
}

static struct packet *packet_new(enum packet_kind kind, size_t size)
{
    struct packet *p = malloc(sizeof(*p) + size);
    ASSERT(p);
    *p = (struct packet){.kind = kind, .size = size};
    list_init(&p->link);
    return p;
}

static uint64_t draw_arrival(struct sim *s, const struct sim_node *from, const struct sim_node *to)
{
    const struct link_entry *e = find_link(s, from, to);
    uint64_t arrival = s->now + sim_random_between(s, LATENCY_MIN_NS, LATENCY_MAX_NS);
    if (e && e->options.extra_ns_max > 0)
        arrival += sim_random_between(s, 0, e->options.extra_ns_max);
    return arrival;
}

/* `late_ns`: beyond what packets take. */
static void packet_send(struct packet *p, struct sim_node *from, struct sim_conn *to,
                        uint64_t late_ns)
{
    struct sim *s = sim_of(to);
    uint64_t arrival = draw_arrival(s, from, sim_node_of(to->base.rt)) + late_ns;
    to->arrival_last = MAX(arrival, to->arrival_last);
    p->to = to;
    p->from = from;
    to->window_used += p->size;
    list_push_back(&to->coming, &p->link);
    timer_init(&p->timer, &s->world, packet_fire);
    timer_arm(&p->timer, to->arrival_last);
}

static void send_again(struct sim_conn *c)
{
    struct packet *p;
    uint64_t last = 0;
    list_for_each (p, &c->coming, link) {
        last = MAX(last, draw_arrival(sim_of(c), p->from, sim_node_of(c->base.rt)));
        last = MAX(last, p->timer.deadline_ns);
        timer_cancel(&p->timer);
        timer_arm(&p->timer, last);
    }
    c->arrival_last = MAX(c->arrival_last, last);
}

static void resume_ways_to(struct sim_node *n)
{
    struct sim_conn *c;
    struct sim_listener *l;
    list_for_each (c, &n->conns, link)
        send_again(c);
    list_for_each (l, &n->listeners, node_link) {
        list_for_each (c, &l->pending, link)
            send_again(c);
    }
}

void sim_link_set(struct sim *s, struct rt *from, struct rt *to, struct sim_link link)
{
    struct sim_node *f = sim_node_of(from), *t = sim_node_of(to);
    struct link_entry *e = find_link(s, f, t);
    if (!e) {
        e = calloc(1, sizeof(*e));
        ASSERT(e);
        e->from = f;
        e->to = t;
        list_push_back(&s->links, &e->link);
    }
    e->options = link;
    if (!link.blocked)
        resume_ways_to(t);
}

void sim_links_free(struct sim *s)
{
    struct link_entry *e, *tmp;
    list_for_each_safe (e, tmp, &s->links, link)
        free(e);
    list_init(&s->links);
}

void sim_links_heal(struct sim *s)
{
    struct sim_node *n;
    sim_links_free(s);
    list_for_each (n, &s->nodes, link)
        resume_ways_to(n);
}

/* --- output --- */

static void handover_fire(struct timer *t);

static void schedule_handover(struct sim_conn *c)
{
    if (!timer_armed(&c->handover))
        sim_schedule(sim_of(c), &c->handover, handover_fire, 0, HANDOVER_NS_MAX);
}

static size_t out_size(const struct conn_out *o)
{
    size_t size = 0;
    for (unsigned i = 0; i < o->iov_count; i++)
        size += o->iov[i].iov_len;
    return size;
}

/* The next `size` bytes of o that were not sent. */
static struct packet *packet_of_out(struct conn_out *o, size_t size)
{
    struct packet *p = packet_new(PACKET_DATA, size);
    size_t skip = o->sent, filled = 0;
    for (unsigned i = 0; filled < size; i++) {
        const struct iovec *v = &o->iov[i];
        size_t skipped = MIN(skip, v->iov_len);
        size_t n = MIN(v->iov_len - skipped, size - filled);
        if (n > 0)
            memcpy(p->data + filled, (const uint8_t *)v->iov_base + skipped, n);
        skip -= skipped;
        filled += n;
    }
    o->sent += size;
    return p;
}

static void handover_fire(struct timer *t)
{
    struct sim_conn *c = container_of(t, struct sim_conn, handover);
    struct list finished = LIST_INIT(finished);
    while (!list_empty(&c->outs)) {
        struct conn_out *o = list_first(&c->outs, struct conn_out, link);
        if (!c->broken && !c->peer && !list_empty(&c->coming)) {
            o->result = 0; /* the node is dead and we do not know it yet */
        } else if (c->broken || !c->peer || c->peer->broken) {
            o->result = -ECONNRESET;
        } else {
            size_t left = out_size(o) - o->sent;
            size_t n = MIN(left, WINDOW_SIZE - c->peer->window_used);
            if (n > 0)
                packet_send(packet_of_out(o, n), sim_node_of(c->base.rt), c->peer, 0);
            if (n < left)
                break; /* W2: the reader schedules us again */
        }
        list_remove(&o->link);
        list_push_back(&finished, &o->link);
    }
    if (list_empty(&c->outs))
        waitq_wake_all(&c->drained);
    while (!list_empty(&finished)) {
        struct conn_out *o = list_first(&finished, struct conn_out, link);
        list_remove(&o->link);
        o->done(o);
    }
}

static void sim_conn_submit(struct conn *base, struct conn_out *o)
{
    struct sim_conn *c = conn_of(base);
    list_push_back(&c->outs, &o->link);
    schedule_handover(c);
}

/* --- input --- */

static size_t take_arrived(struct sim_conn *c, uint8_t *buffer, size_t size)
{
    size_t got = 0;
    while (got < size && !list_empty(&c->arrived)) {
        struct packet *p = list_first(&c->arrived, struct packet, link);
        size_t n = MIN(size - got, p->size - p->position);
        memcpy(buffer + got, p->data + p->position, n);
        p->position += n;
        got += n;
        if (p->position == p->size) {
            c->window_used -= p->size;
            list_remove(&p->link);
            free(p);
        }
    }
    if (got > 0 && c->peer && !list_empty(&c->peer->outs))
        schedule_handover(c->peer);
    return got;
}

static fiber_fn ssize_t sim_conn_read(struct conn *base, void *buffer, size_t least, size_t size)
{
    struct sim_conn *c = conn_of(base);
    ASSERT(!c->reading);
    c->reading = true;
    size_t got = 0;
    ssize_t result = 0;
    while (result == 0) {
        got += take_arrived(c, (uint8_t *)buffer + got, size - got);
        if (got >= least)
            break;
        if (c->broken)
            result = -ECONNRESET;
        else if (c->ended)
            result = got == 0 ? -ENOTCONN : -ECONNRESET;
        else
            waitq_wait(&c->readable);
    }
    c->reading = false;
    return result < 0 ? result : (ssize_t)got;
}

/* --- life --- */

static void drop_packets(struct list *packets)
{
    struct packet *p, *tmp;
    list_for_each_safe (p, tmp, packets, link) {
        timer_cancel(&p->timer);
        free(p);
    }
    list_init(packets);
}

static void break_conn(struct sim_conn *c)
{
    if (c->broken)
        return;
    c->broken = true;
    drop_packets(&c->arrived);
    waitq_wake_all(&c->readable);
    schedule_handover(c); /* what is queued completes */
    if (c->peer && !list_empty(&c->peer->outs))
        schedule_handover(c->peer);
}

static void sim_conn_shutdown(struct conn *base)
{
    struct sim_conn *c = conn_of(base);
    if (c->broken)
        return;
    break_conn(c);
    if (c->peer)
        packet_send(packet_new(PACKET_END, 0), sim_node_of(c->base.rt), c->peer, 0); /* W3 */
}

static void conn_free(struct sim_conn *c)
{
    timer_cancel(&c->handover);
    drop_packets(&c->coming);
    drop_packets(&c->arrived);
    if (c->peer) {
        c->peer->peer = NULL;
        if (!list_empty(&c->peer->outs))
            schedule_handover(c->peer);
    }
    list_remove(&c->link);
    free(c);
}

static fiber_fn void sim_conn_close(struct conn *base)
{
    struct sim_conn *c = conn_of(base);
    ASSERT(!c->reading);
    uint64_t deadline = clock_now(base->rt) + NS_PER_S;
    int r = 0;
    while (!c->broken && r == 0 && !list_empty(&c->outs))
        r = waitq_wait_until(&c->drained, base->rt, deadline);
    sim_conn_shutdown(base);
    while (!list_empty(&c->outs))
        waitq_wait(&c->drained);
    conn_free(c);
}

static struct sim_conn *conn_new(struct rt *rt, const char *peer)
{
    static const struct conn_ops ops = {
        .read = sim_conn_read,
        .submit = sim_conn_submit,
        .shutdown = sim_conn_shutdown,
        .close = sim_conn_close,
    };
    struct sim_conn *c = calloc(1, sizeof(*c));
    ASSERT(c);
    c->base = (struct conn){.ops = &ops, .rt = rt};
    snprintf(c->base.peer, sizeof(c->base.peer), "%s", peer);
    list_init(&c->link);
    list_init(&c->coming);
    list_init(&c->arrived);
    list_init(&c->outs);
    waitq_init(&c->readable);
    waitq_init(&c->drained);
    timer_init(&c->handover, &sim_node_of(rt)->sim->world, handover_fire);
    return c;
}

/* --- listeners --- */

static struct sim_listener *find_listener(struct sim *s, const char *address)
{
    struct sim_listener *l;
    list_for_each (l, &s->listeners, link) {
        if (strcmp(l->base.address, address) == 0)
            return l;
    }
    return NULL;
}

static fiber_fn int sim_accept(struct listener *base, struct conn **ret)
{
    struct sim_listener *l = container_of(base, struct sim_listener, base);
    while (list_empty(&l->pending) && !l->closed)
        waitq_wait(&l->acceptable);
    if (l->closed)
        return -ECANCELED;
    struct sim_conn *c = list_first(&l->pending, struct sim_conn, link);
    list_remove(&c->link);
    list_push_back(&sim_node_of(base->rt)->conns, &c->link);
    *ret = &c->base;
    return 0;
}

static void abort_conn(struct sim_conn *c, uint64_t late_ns)
{
    if (c->peer)
        packet_send(packet_new(PACKET_RESET, 0), sim_node_of(c->base.rt), c->peer, late_ns);
    conn_free(c);
}

/* Stays allocated until the node dies, for fibers that come back to it late. */
static void sim_listener_close(struct listener *base)
{
    struct sim_listener *l = container_of(base, struct sim_listener, base);
    ASSERT(!l->closed);
    l->closed = true;
    list_remove(&l->link);
    while (!list_empty(&l->pending))
        abort_conn(list_first(&l->pending, struct sim_conn, link), 0);
    waitq_wake_all(&l->acceptable);
}

static bool address_valid(const char *address)
{
    if (strlen(address) >= NET_ADDRESS_SIZE - 8)
        return false;
    if (strncmp(address, "unix:", 5) == 0)
        return address[5] != '\0';
    const char *colon = strrchr(address, ':');
    return strncmp(address, "tcp:", 4) == 0 && colon > address + 4 && colon[1] != '\0';
}

int sim_listen(struct rt *rt, const char *address, struct listener **ret)
{
    static const struct listener_ops ops = {.accept = sim_accept, .close = sim_listener_close};
    struct sim_node *n = sim_node_of(rt);
    if (!address_valid(address))
        return -EINVAL;
    if (find_listener(n->sim, address))
        return -EADDRINUSE;
    struct sim_listener *l = calloc(1, sizeof(*l));
    ASSERT(l);
    l->base = (struct listener){.ops = &ops, .rt = rt};
    size_t length = strlen(address);
    if (address[0] == 't' && strcmp(address + length - 2, ":0") == 0)
        snprintf(l->base.address, sizeof(l->base.address), "%.*s:%u", (int)length - 2, address,
                 n->sim->port_next++);
    else
        snprintf(l->base.address, sizeof(l->base.address), "%s", address);
    list_init(&l->pending);
    waitq_init(&l->acceptable);
    list_push_back(&n->sim->listeners, &l->link);
    list_push_back(&n->listeners, &l->node_link);
    *ret = &l->base;
    return 0;
}

static fiber_fn void delay_until(struct rt *rt, uint64_t when)
{
    struct waitq nobody;
    waitq_init(&nobody);
    while (waitq_wait_until(&nobody, rt, when) == 0)
        continue;
}

fiber_fn int sim_connect(struct rt *rt, const char *address, uint64_t deadline_ns,
                         struct conn **ret)
{
    struct sim_node *n = sim_node_of(rt);
    struct sim *s = n->sim;
    if (!address_valid(address))
        return -EINVAL;
    uint64_t ready = s->now + sim_random_between(s, LATENCY_MIN_NS, LATENCY_MAX_NS);
    delay_until(rt, MIN(ready, deadline_ns));
    if (deadline_ns < ready)
        return -ETIMEDOUT;
    struct sim_listener *l;
    while ((l = find_listener(s, address)) && (way_is_blocked(s, n, sim_node_of(l->base.rt)) ||
                                               way_is_blocked(s, sim_node_of(l->base.rt), n))) {
        if (s->now >= deadline_ns)
            return -ETIMEDOUT;
        delay_until(rt, MIN(s->now + CONNECT_RETRY_NS, deadline_ns));
    }
    if (!l)
        return -ECONNREFUSED;
    struct sim_conn *near = conn_new(rt, address);
    struct sim_conn *far = conn_new(l->base.rt, "tcp:sim:0");
    near->peer = far;
    far->peer = near;
    list_push_back(&n->conns, &near->link);
    list_push_back(&l->pending, &far->link);
    waitq_wake_one(&l->acceptable);
    *ret = &near->base;
    return 0;
}

void sim_conns_drop(struct sim *s, struct rt *a, struct rt *b)
{
    struct sim_conn *c;
    list_for_each (c, &sim_node_of(a)->conns, link) {
        if (!c->peer || c->broken || c->peer->base.rt != b)
            continue;
        struct sim_conn *peer = c->peer;
        packet_send(packet_new(PACKET_RESET, 0), sim_node_of(b), c, 0);
        packet_send(packet_new(PACKET_RESET, 0), sim_node_of(a), peer, 0);
    }
}

void sim_silent_death(struct sim *s, uint64_t max_ns)
{
    s->silent_ns_max = max_ns;
}

void sim_net_die(struct sim_node *n, enum sim_death death)
{
    struct sim *s = n->sim;
    uint64_t late_ns = 0;
    if (death == SIM_POWER_CUT && s->silent_ns_max > 0)
        late_ns = sim_random_between(s, 0, s->silent_ns_max);
    struct sim_listener *l, *tmp;
    list_for_each_safe (l, tmp, &n->listeners, node_link) {
        if (!l->closed) {
            waitq_init(&l->acceptable); /* its waiters are dead */
            sim_listener_close(&l->base);
        }
        free(l);
    }
    list_init(&n->listeners);
    while (!list_empty(&n->conns))
        abort_conn(list_first(&n->conns, struct sim_conn, link), late_ns);
}
