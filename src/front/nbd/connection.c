/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Life of one connection: handshake, transmission, the end of its requests, close.
 *
 * C1 Exactly one line is logged when a connection ends: by whose doing, and why.
 */
#define LOG_MODULE "nbd"
#include <stdlib.h>
#include "base/err.h"
#include "front/nbd/nbd_internal.h"

void connection_end(struct connection *c, enum log_level level, const char *reason)
{
    if (c->end_reason)
        return;
    c->end_level = level;
    c->end_reason = reason;
}

void connection_drain(struct connection *c)
{
    c->draining = true;
    connection_end(c, LOG_INFO, "this server stops");
    if (c->phase == CONNECTION_HANDSHAKE || c->inflight_count == 0)
        conn_shutdown(c->conn);
}

static void connection_main(void *arg)
{
    struct connection *c = arg;
    struct nbd_server *s = c->server;
    if (handshake_run(c)) {
        c->phase = CONNECTION_TRANSMISSION;
        log_info("%s: opened %s%s", conn_peer(c->conn), c->export_name,
                 volume_is_read_only(c->volume) ? " (read-only)" : "");
        if (!s->stopping)
            transmission_run(c);
        while (c->inflight_count > 0) /* S2 */
            waitq_wait(&c->inflight_fell);
    }
    connection_end(c, LOG_INFO, "this server stops");
    log_at(c->end_level, "%s: %s%sconnection ended: %s", conn_peer(c->conn), c->export_name,
           c->export_name[0] ? ": " : "", c->end_reason);
    if (c->volume)
        volume_close(c->volume);
    list_remove(&c->link); /* before the close suspends: nobody else may touch conn now */
    conn_close(c->conn);
    free(c);
    s->connection_count--;
    s->fiber_count--;
    waitq_wake_all(&s->fiber_ended);
}

fiber_fn void connection_start(struct nbd_server *s, struct conn *conn)
{
    struct connection *c = NULL;
    if (s->connection_count >= s->connection_count_max) {
        log_warn("%s: refused: %u connections are open already", conn_peer(conn),
                 s->connection_count);
        goto refuse;
    }
    c = malloc(sizeof(*c));
    if (!c)
        goto out_of_memory;
    *c = (struct connection){.server = s, .conn = conn};
    list_init(&c->link);
    waitq_init(&c->inflight_fell);
    if (fiber_spawn(s->rt, "nbd connection", connection_main, c) < 0)
        goto out_of_memory;
    list_push_back(&s->connections, &c->link);
    s->connection_count++;
    s->fiber_count++;
    s->stats.connections++;
    return;

out_of_memory:
    log_error("%s: refused: %s", conn_peer(conn), err_text(-ENOMEM));
    free(c);
refuse:
    conn_close(conn);
}
