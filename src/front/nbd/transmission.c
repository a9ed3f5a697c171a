/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reading side of the transmission phase: takes requests off the connection, checks them, and
 * starts them.
 *
 * T1 Room and memory of a request are taken here, before it holds anything else and before the next
 *    header is read: exhaustion is back-pressure on this connection.
 * T2 The payload of a refused write is read and dropped, so that the stream stays in step; a
 * payload too long for that ends the connection.
 */
#define LOG_MODULE "nbd"
#include "base/err.h"
#include "front/nbd/nbd_internal.h"

#define REFUSED_PAYLOAD_SIZE_MAX (128u << 20)
#define RECEIVE_PIECE_SIZE       (1u << 20) /* for the watch over connections that stand still */

enum access { ACCESS_NONE, ACCESS_READ, ACCESS_WRITE };

/* What a command may carry; a flag that is not listed is refused. FUA is legal everywhere. */
static const struct command_rule {
    uint16_t flags;
    enum access access;
} rules[] = {
    [NBD_CMD_READ] = {NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF, ACCESS_READ},
    [NBD_CMD_WRITE] = {NBD_CMD_FLAG_FUA, ACCESS_WRITE},
    [NBD_CMD_FLUSH] = {NBD_CMD_FLAG_FUA, ACCESS_NONE},
    [NBD_CMD_TRIM] = {NBD_CMD_FLAG_FUA, ACCESS_WRITE},
    [NBD_CMD_CACHE] = {NBD_CMD_FLAG_FUA, ACCESS_READ},
    [NBD_CMD_WRITE_ZEROES] = {NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
                              ACCESS_WRITE},
    [NBD_CMD_BLOCK_STATUS] = {NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE, ACCESS_READ},
};

static bool has_payload(const struct nbd_request *w)
{
    return w->command == NBD_CMD_READ || w->command == NBD_CMD_WRITE;
}

/* Rules that hold for one command only. */
static enum nbd_error check_command(const struct connection *c, const struct nbd_request *w)
{
    if (has_payload(w) && w->length > NBD_PAYLOAD_SIZE_MAX)
        return NBD_EINVAL;
    switch (w->command) {
    case NBD_CMD_READ:
        return w->flags & NBD_CMD_FLAG_DF && !c->structured_replies ? NBD_EINVAL : NBD_OK;
    case NBD_CMD_WRITE_ZEROES: {
        /* Keeping the blocks allocated means writing them: that is not fast. */
        unsigned slow = NBD_CMD_FLAG_FAST_ZERO | NBD_CMD_FLAG_NO_HOLE;
        return (w->flags & slow) == slow ? NBD_ENOTSUP : NBD_OK;
    }
    case NBD_CMD_BLOCK_STATUS:
        return !c->block_status || w->length == 0 ? NBD_EINVAL : NBD_OK;
    default:
        return NBD_OK;
    }
}

static enum nbd_error check_request(const struct connection *c, const struct nbd_request *w)
{
    if (w->command >= ARRAY_SIZE(rules) || w->command == NBD_CMD_DISC)
        return NBD_EINVAL;
    const struct command_rule *rule = &rules[w->command];
    if (w->flags & ~rule->flags)
        return NBD_EINVAL;
    if (rule->access == ACCESS_WRITE && volume_is_read_only(c->volume))
        return NBD_EPERM;
    uint64_t end = 0;
    bool inside = add_u64(w->offset, w->length, &end) && end <= volume_size(c->volume);
    if (rule->access != ACCESS_NONE && !inside)
        return rule->access == ACCESS_WRITE ? NBD_ENOSPC : NBD_EINVAL;
    return check_command(c, w);
}

/* The answer to a valid request that asks for nothing. */
static bool is_trivial(const struct nbd_request *w)
{
    if (w->command == NBD_CMD_FLUSH)
        return false;
    return w->length == 0 || w->command == NBD_CMD_CACHE; /* there is no cache to fill */
}

static fiber_fn int receive_payload(struct connection *c, uint8_t *buffer, uint32_t length)
{
    int r = 0;
    c->receiving = true;
    for (uint32_t done = 0; done < length && r == 0;) {
        uint32_t n = MIN(length - done, RECEIVE_PIECE_SIZE);
        r = conn_read(c->conn, buffer + done, n);
        done += n;
        c->progress++;
    }
    c->receiving = false;
    return r;
}

/* T2 */
static fiber_fn int drop_payload(struct connection *c, uint32_t length)
{
    int r = 0;
    while (length > 0 && r == 0) {
        uint32_t n = MIN(length, NBD_SCRATCH_SIZE);
        r = conn_read(c->conn, c->server->scratch, n);
        length -= n;
    }
    return r;
}

/* A request that is not run. False ends the connection. */
static fiber_fn bool answer_at_once(struct connection *c, const struct nbd_request *w,
                                    enum nbd_error error)
{
    if (w->command == NBD_CMD_WRITE && w->length > REFUSED_PAYLOAD_SIZE_MAX) {
        connection_end(c, LOG_WARN, "it announced a write of absurd length");
        return false;
    }
    if (w->command == NBD_CMD_WRITE && drop_payload(c, w->length) < 0)
        return false;
    struct request *q = nbd_request_new(c, w);
    if (!q) {
        connection_end(c, LOG_ERROR, err_text(-ENOMEM));
        return false;
    }
    nbd_request_answer(q, error);
    return true;
}

/* Takes one request with its payload. False ends the connection. */
static fiber_fn bool take_request(struct connection *c, const struct nbd_request *w)
{
    c->server->stats.requests++;
    enum nbd_error error = check_request(c, w);
    if (error != NBD_OK || is_trivial(w))
        return answer_at_once(c, w, error);
    struct request *q = nbd_request_new(c, w);
    if (!q)
        return answer_at_once(c, w, NBD_ENOMEM);
    nbd_request_admit(q, has_payload(w) ? w->length : 0); /* T1 */
    if (w->command == NBD_CMD_WRITE && receive_payload(c, q->buffer, w->length) < 0) {
        nbd_request_drop(q);
        return false;
    }
    nbd_request_start(q);
    return true;
}

static void note_read_error(struct connection *c, int r)
{
    if (r == -ENOTCONN)
        connection_end(c, LOG_INFO, "the client went away without saying so");
    else
        connection_end(c, LOG_INFO, "the connection broke");
}

fiber_fn void transmission_run(struct connection *c)
{
    uint8_t header[NBD_REQUEST_SIZE];
    struct nbd_request w;
    while (!c->draining) {
        while (c->inflight_count >= c->server->inflight_count_max)
            waitq_wait(&c->inflight_fell);
        int r = conn_read(c->conn, header, sizeof(header));
        if (r < 0) {
            note_read_error(c, r);
            if (r != -ENOTCONN)
                conn_shutdown(c->conn);
            return;
        }
        if (nbd_request_get(header, &w) < 0) {
            connection_end(c, LOG_WARN, "it sent something that is no NBD request");
            break;
        }
        if (w.command == NBD_CMD_DISC) {
            connection_end(c, LOG_INFO, "closed by the client");
            return;
        }
        if (!c->draining && !take_request(c, &w)) {
            connection_end(c, LOG_INFO, "the connection broke inside a write");
            break;
        }
    }
    if (!c->draining)
        conn_shutdown(c->conn);
}
