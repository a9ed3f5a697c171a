/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests: pool, execution on a fiber, reply.
 *
 * R1 A request is answered exactly once, by request_send(), and freed when the kernel has its
 * reply. R2 After negotiation of structured replies every READ and BLOCK_STATUS is answered with
 * chunks; the others are always answered simply. R3 A reply is one iovec array: header, then
 * payload straight from the buffer that was read into.
 */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "front/nbd/nbd_internal.h"

#define EXTENT_COUNT_MAX  2048u /* per reply; the client asks again for the rest */
#define HOLE_CHECK_LENGTH 4096u

enum nbd_error nbd_error_from(int negative_errno)
{
    switch (negative_errno) {
    case 0:
        return NBD_OK;
    case -EINVAL:
        return NBD_EINVAL;
    case -EROFS:
    case -EPERM:
        return NBD_EPERM;
    case -ENOSPC:
    case -EFBIG:
        return NBD_ENOSPC;
    case -ENOMEM:
        return NBD_ENOMEM;
    case -ECANCELED:
        return NBD_ESHUTDOWN;
    default: /* -EIO, -EUCLEAN, and whatever else went wrong below */
        return NBD_EIO;
    }
}

/* --- pool --- */

struct request *nbd_request_new(struct connection *c, const struct nbd_request *wire)
{
    struct nbd_server *s = c->server;
    struct request *q;
    if (!list_empty(&s->idle_requests)) {
        q = list_first(&s->idle_requests, struct request, link);
        list_remove(&q->link);
    } else {
        q = malloc(sizeof(*q));
        if (!q)
            return NULL;
        list_init(&q->link);
    }
    q->connection = c;
    q->wire = *wire;
    q->buffer = NULL;
    q->payload = 0;
    q->admitted = false;
    q->extents = NULL;
    c->inflight_count++; /* S2 */
    return q;
}

void nbd_request_drop(struct request *q)
{
    struct connection *c = q->connection;
    struct nbd_server *s = c->server;
    buf_put(s->rt, q->buffer);
    free(q->extents);
    if (q->admitted)
        admission_leave(&s->admission, q->payload);
    list_push_front(&s->idle_requests, &q->link);
    c->inflight_count--;
    waitq_wake_all(&c->inflight_fell);
    if (c->draining && c->inflight_count == 0)
        conn_shutdown(c->conn);
}

void nbd_request_pool_free(struct nbd_server *s)
{
    struct request *q, *tmp;
    list_for_each_safe (q, tmp, &s->idle_requests, link)
        free(q);
    list_init(&s->idle_requests);
}

fiber_fn void nbd_request_admit(struct request *q, size_t size)
{
    struct connection *c = q->connection;
    struct nbd_server *s = c->server;
    ASSERT(!q->admitted && !q->buffer);
    if (!admission_try(&s->admission, size)) {
        server_watch_stalls(s);
        c->admitting = true;
        s->admitting_count++;
        admission_enter(&s->admission, size);
        s->admitting_count--;
        c->admitting = false;
    }
    q->admitted = true;
    q->payload = size;
    if (size > 0)
        q->buffer = buf_get(s->rt, size);
}

/* --- replies --- */

/* R1 */
static void sent(struct conn_out *o)
{
    struct request *q = container_of(o, struct request, out);
    struct connection *c = q->connection;
    c->sending_count--;
    c->progress++;
    nbd_request_drop(q);
}

/* `payload` (may be NULL) follows the header. */
static void request_send(struct request *q, size_t head_length, void *payload, size_t length)
{
    struct connection *c = q->connection;
    q->iov[0] = (struct iovec){.iov_base = q->head, .iov_len = head_length};
    q->iov[1] = (struct iovec){.iov_base = payload, .iov_len = length};
    q->out.iov = q->iov;
    q->out.iov_count = payload ? 2 : 1;
    q->out.done = sent;
    c->sending_count++;
    conn_submit(c->conn, &q->out);
}

void nbd_request_answer(struct request *q, enum nbd_error error)
{
    const struct connection *c = q->connection;
    bool chunked = c->structured_replies &&
                   (q->wire.command == NBD_CMD_READ || q->wire.command == NBD_CMD_BLOCK_STATUS);
    size_t length = NBD_SIMPLE_REPLY_SIZE;
    if (error != NBD_OK)
        c->server->stats.errors++;
    if (!chunked) /* R2 */
        nbd_simple_reply_put(q->head, q->wire.cookie, error);
    else if (error == NBD_OK)
        length = nbd_chunk_none_put(q->head, q->wire.cookie);
    else
        length = nbd_chunk_error_put(q->head, q->wire.cookie, error);
    request_send(q, length, NULL, 0);
}

/* Whole blocks of zeros are told as a hole: looking ends at the first byte of data, and costs less
 * than sending. */
static bool reads_as_hole(const uint8_t *p, uint32_t length)
{
    static const uint8_t zeros[64];
    return length >= HOLE_CHECK_LENGTH && memcmp(p, zeros, sizeof(zeros)) == 0 &&
           memcmp(p, p + sizeof(zeros), length - sizeof(zeros)) == 0;
}

static void answer_read(struct request *q)
{
    const struct connection *c = q->connection;
    const struct nbd_request *w = &q->wire;
    size_t length;
    if (c->structured_replies && reads_as_hole(q->buffer, w->length)) {
        length = nbd_chunk_hole_put(q->head, w->cookie, w->offset, w->length);
        request_send(q, length, NULL, 0);
        return;
    }
    if (c->structured_replies) {
        length = nbd_chunk_data_put(q->head, w->cookie, w->offset, w->length);
    } else {
        nbd_simple_reply_put(q->head, w->cookie, NBD_OK);
        length = NBD_SIMPLE_REPLY_SIZE;
    }
    request_send(q, length, q->buffer, w->length);
}

/* Fills `extents` (room for `count`) from the runs, neighbours of one kind joined; their number. */
static uint32_t encode_extents(const struct volume_run *runs, size_t count, uint8_t *extents)
{
    uint32_t n = 0;
    for (size_t i = 0; i < count;) {
        bool mapped = runs[i].mapped;
        uint64_t length = 0;
        for (; i < count && runs[i].mapped == mapped; i++)
            length += runs[i].length;
        ASSERT(length > 0 && length <= UINT32_MAX); /* inside the request's length */
        nbd_extent_put(extents + (size_t)n * NBD_EXTENT_SIZE, (uint32_t)length,
                       mapped ? 0 : NBD_STATE_HOLE | NBD_STATE_ZERO);
        n++;
    }
    return n;
}

static fiber_fn void run_block_status(struct request *q)
{
    const struct nbd_request *w = &q->wire;
    struct volume_run *runs = NULL;
    size_t count = 0;
    unsigned runs_max = w->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : EXTENT_COUNT_MAX;
    int r = volume_map(q->connection->volume, w->offset, w->length, runs_max, &runs, &count);
    if (r == 0 && count > 0)
        q->extents = malloc(count * NBD_EXTENT_SIZE);
    if (r < 0 || !q->extents) {
        free(runs);
        nbd_request_answer(q, r < 0 ? nbd_error_from(r) : NBD_ENOMEM);
        return;
    }
    uint32_t n = encode_extents(runs, count, q->extents);
    free(runs);
    size_t length = nbd_chunk_status_put(q->head, w->cookie, NBD_CONTEXT_ID, n);
    request_send(q, length, q->extents, (size_t)n * NBD_EXTENT_SIZE);
}

/* --- execution --- */

static fiber_fn void run_read(struct request *q)
{
    const struct nbd_request *w = &q->wire;
    int r = volume_read(q->connection->volume, w->offset, w->length, q->buffer);
    if (r < 0) {
        nbd_request_answer(q, nbd_error_from(r));
        return;
    }
    q->connection->server->stats.bytes_read += w->length;
    answer_read(q);
}

static fiber_fn void run_write(struct request *q)
{
    const struct nbd_request *w = &q->wire;
    int r = volume_write(q->connection->volume, w->offset, w->length, q->buffer);
    if (r == 0)
        q->connection->server->stats.bytes_written += w->length;
    nbd_request_answer(q, nbd_error_from(r));
}

/* FUA needs nothing: what is answered is durable. */
static void request_main(void *arg)
{
    struct request *q = arg;
    const struct nbd_request *w = &q->wire;
    struct volume *v = q->connection->volume;
    switch (w->command) {
    case NBD_CMD_READ:
        run_read(q);
        return;
    case NBD_CMD_WRITE:
        run_write(q);
        return;
    case NBD_CMD_FLUSH:
        nbd_request_answer(q, nbd_error_from(volume_flush(v)));
        return;
    case NBD_CMD_TRIM:
        nbd_request_answer(q, nbd_error_from(volume_discard(v, w->offset, w->length)));
        return;
    case NBD_CMD_WRITE_ZEROES: {
        unsigned flags = w->flags & NBD_CMD_FLAG_NO_HOLE ? VOLUME_ZERO_NO_HOLE : 0;
        nbd_request_answer(q, nbd_error_from(volume_zero(v, w->offset, w->length, flags)));
        return;
    }
    case NBD_CMD_BLOCK_STATUS:
        run_block_status(q);
        return;
    default:
        ASSERT(!"the reader lets no other command through");
    }
}

void nbd_request_start(struct request *q)
{
    if (fiber_spawn(q->connection->server->rt, "nbd request", request_main, q) < 0)
        nbd_request_answer(q, NBD_ENOMEM);
}
