/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NBD server of one node: listeners, the table of connections, orderly stop, and the watch over
 * connections that hold room others wait for.
 *
 * V1 The server is freed only when no fiber of it is left.
 * V2 A connection is cut for standing still only while others wait for the room that it holds: a
 *    guest that was paused for an hour is no fault.
 */
#define LOG_MODULE "nbd"
#include <stdlib.h>
#include "base/err.h"
#include "front/nbd/nbd_internal.h"

#define CONNECTION_COUNT_MAX 256u
#define INFLIGHT_COUNT_MAX   128u
/* Over all connections; leaves fibers and buffers to the peers' requests (admission.h). */
#define ADMITTED_COUNT_MAX 1024u
#define ADMITTED_BYTES_MAX (32u << 20)

#define ACCEPT_PAUSE_NS   (100 * NS_PER_MS)
#define STOP_PATIENCE_NS  (5 * NS_PER_S)
#define STALL_PERIOD_NS   (10 * NS_PER_S)
#define STALL_PERIODS_MAX 3u

struct acceptor {
    struct nbd_server *server;
    struct listener *listener; /* owned; NULL once closed */
};

static void accept_main(void *arg)
{
    struct acceptor *a = arg;
    struct nbd_server *s = a->server;
    while (!s->stopping) {
        struct conn *conn;
        int r = net_accept(a->listener, &conn);
        if (r == -ECANCELED)
            break;
        if (r < 0) {
            log_warn("cannot accept a connection: %s", err_text(r));
            (void)fiber_sleep(s->rt, ACCEPT_PAUSE_NS);
            continue;
        }
        if (s->stopping)
            conn_close(conn);
        else
            connection_start(s, conn);
    }
    s->fiber_count--;
    waitq_wake_all(&s->fiber_ended);
}

/* --- standing still --- */

static bool holds_others_up(const struct connection *c)
{
    bool others_wait = c->server->admitting_count > (c->admitting ? 1 : 0); /* V2 */
    return others_wait && (c->receiving || c->sending_count > 0) && c->progress == c->progress_seen;
}

static void stall_fire(struct timer *t)
{
    struct nbd_server *s = container_of(t, struct nbd_server, stall_timer);
    if (s->admitting_count == 0)
        return; /* armed again by the next one who waits */
    struct connection *c;
    list_for_each (c, &s->connections, link) {
        c->stalled_count = holds_others_up(c) ? c->stalled_count + 1 : 0;
        c->progress_seen = c->progress;
        if (c->stalled_count < STALL_PERIODS_MAX)
            continue;
        connection_end(c, LOG_WARN, "it neither sends nor takes data, and others wait for room");
        conn_shutdown(c->conn);
    }
    timer_arm(t, clock_now(s->rt) + STALL_PERIOD_NS);
}

void server_watch_stalls(struct nbd_server *s)
{
    if (timer_armed(&s->stall_timer))
        return;
    struct connection *c;
    list_for_each (c, &s->connections, link) {
        c->stalled_count = 0;
        c->progress_seen = c->progress;
    }
    timer_arm(&s->stall_timer, clock_now(s->rt) + STALL_PERIOD_NS);
}

/* --- life --- */

static struct nbd_server *server_new(struct rt *rt, struct volumes *volumes,
                                     const struct nbd_options *o)
{
    struct nbd_server *s = calloc(1, sizeof(*s));
    if (!s)
        return NULL;
    s->rt = rt;
    s->volumes = volumes;
    s->connection_count_max =
        o->connection_count_max ? o->connection_count_max : CONNECTION_COUNT_MAX;
    s->inflight_count_max = o->inflight_count_max ? o->inflight_count_max : INFLIGHT_COUNT_MAX;
    list_init(&s->connections);
    list_init(&s->idle_requests);
    waitq_init(&s->fiber_ended);
    timer_init(&s->stall_timer, rt, stall_fire);
    admission_init(&s->admission, o->payload_bytes_max ? o->payload_bytes_max : ADMITTED_BYTES_MAX,
                   ADMITTED_COUNT_MAX);
    s->acceptors = calloc(MAX(o->listener_count, 1u), sizeof(s->acceptors[0]));
    s->scratch = malloc(NBD_SCRATCH_SIZE);
    if (s->acceptors && s->scratch)
        return s;
    free(s->acceptors);
    free(s->scratch);
    free(s);
    return NULL;
}

static void server_free(struct nbd_server *s)
{
    ASSERT(s->fiber_count == 0 && s->connection_count == 0 && list_empty(&s->connections)); /* V1 */
    ASSERT(s->admission.count_used == 0 && s->admission.bytes_used == 0);
    timer_cancel(&s->stall_timer);
    nbd_request_pool_free(s);
    free(s->scratch);
    free(s->acceptors);
    free(s);
}

int nbd_start(struct rt *rt, struct volumes *volumes, const struct nbd_options *o,
              struct nbd_server **ret)
{
    struct nbd_server *s = server_new(rt, volumes, o);
    if (!s) {
        for (unsigned i = 0; i < o->listener_count; i++)
            listener_close(o->listeners[i]);
        return -ENOMEM;
    }
    for (unsigned i = 0; i < o->listener_count; i++) {
        struct acceptor *a = &s->acceptors[s->acceptor_count++];
        *a = (struct acceptor){.server = s, .listener = o->listeners[i]};
        if (fiber_spawn(rt, "nbd accept", accept_main, a) == 0) {
            s->fiber_count++;
            continue;
        }
        /* Nobody can connect there, but the rest serves. */
        log_error("cannot accept on %s: %s", listener_address(a->listener), err_text(-ENOMEM));
        listener_close(a->listener);
        a->listener = NULL;
    }
    *ret = s;
    return 0;
}

fiber_fn void nbd_stop(struct nbd_server *s)
{
    if (!s)
        return;
    s->stopping = true;
    for (unsigned i = 0; i < s->acceptor_count; i++) {
        listener_close(s->acceptors[i].listener);
        s->acceptors[i].listener = NULL;
    }
    struct connection *c;
    list_for_each (c, &s->connections, link)
        connection_drain(c);
    uint64_t deadline_ns = clock_now(s->rt) + STOP_PATIENCE_NS;
    while (s->fiber_count > 0) {
        if (waitq_wait_until(&s->fiber_ended, s->rt, deadline_ns) == 0)
            continue;
        list_for_each (c, &s->connections, link) /* clients that do not take their answers */
            conn_shutdown(c->conn);
        deadline_ns = UINT64_MAX;
    }
    server_free(s);
}

void nbd_stats(const struct nbd_server *s, struct nbd_stats *ret)
{
    *ret = s->stats;
}
