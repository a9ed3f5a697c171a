/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations that move a volume's data: read, write, discard.
 *
 * T1 A transfer takes all its memory before it begins, and has CHUNK_COUNT requests in progress.
 *    The memory is not of the budget of guests' requests, which a client that stands still could
 *    use up; so there are few transfers at once.
 * T2 Chunks are sent in the order of the volume; written ones do not overlap: their order is free.
 * T3 After a failed write the client may still be sending: the answer goes out at once and the
 *    connection ends.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/bytes.h"
#include "base/err.h"
#include "front/admin/admin_internal.h"

#define CHUNK_COUNT        4u
#define CHUNK_SIZE         ADMIN_DATA_MAX
#define TRANSFER_COUNT_MAX 8u
#define MAP_WINDOW         (256ULL << 20) /* holes are looked up for so much at a time */

enum chunk_state { CHUNK_FREE, CHUNK_RUNNING, CHUNK_DONE };
enum transfer_direction { TRANSFER_READ, TRANSFER_WRITE };

struct chunk {
    struct transfer *transfer;
    enum chunk_state state;
    uint64_t offset;
    uint32_t length;
    int result;
    uint8_t *buffer;
};

struct transfer {
    struct admin_call *call;
    struct volume *volume;
    enum transfer_direction direction;
    uint8_t *memory; /* CHUNK_COUNT * CHUNK_SIZE */
    struct chunk chunks[CHUNK_COUNT];
    unsigned head, tail; /* running numbers: [head, tail) are in use */
    struct waitq changed;
    int error; /* of the first chunk that failed */
};

static fiber_fn void chunk_main(void *arg)
{
    struct chunk *c = arg;
    struct transfer *t = c->transfer;
    if (t->direction == TRANSFER_READ)
        c->result = volume_read(t->volume, c->offset, c->length, c->buffer);
    else
        c->result = volume_write(t->volume, c->offset, c->length, c->buffer);
    c->state = CHUNK_DONE;
    waitq_wake_all(&t->changed);
}

static void chunk_start(struct transfer *t, struct chunk *c, uint64_t offset, uint32_t length)
{
    ASSERT(c->state == CHUNK_FREE && length > 0 && length <= CHUNK_SIZE);
    c->state = CHUNK_RUNNING;
    c->offset = offset;
    c->length = length;
    t->tail++;
    int r = fiber_spawn(t->call->admin->rt, "admin chunk", chunk_main, c);
    if (r < 0) {
        c->state = CHUNK_DONE;
        c->result = r;
    }
}

/* Waits for the oldest chunk in use and frees its place; for reads, sends it first. */
static fiber_fn void chunk_retire(struct transfer *t)
{
    ASSERT(t->head != t->tail);
    struct chunk *c = &t->chunks[t->head % CHUNK_COUNT];
    while (c->state != CHUNK_DONE)
        waitq_wait(&t->changed);
    if (c->result == 0 && t->error == 0 && t->direction == TRANSFER_READ)
        c->result = admin_send(t->call->conn, ADMIN_DATA, c->buffer, c->length);
    if (c->result < 0 && t->error == 0) {
        t->error = c->result;
        if (c->result != -ECONNRESET)
            admin_fail(t->call, c->result, "%s at offset %" PRIu64 " of %s: %s",
                       t->direction == TRANSFER_READ ? "reading" : "writing", c->offset,
                       volume_name(t->volume), err_text(c->result));
    }
    c->state = CHUNK_FREE;
    t->head++;
}

/* A free place, after waiting for one. */
static fiber_fn struct chunk *chunk_take(struct transfer *t)
{
    if (t->tail - t->head == CHUNK_COUNT)
        chunk_retire(t);
    return &t->chunks[t->tail % CHUNK_COUNT];
}

/* Returns owned, to be ended by transfer_end(); NULL with the reason in *ret_error. */
static struct transfer *transfer_begin(struct admin_call *call, struct volume *v,
                                       enum transfer_direction direction, int *ret_error)
{
    struct admin *a = call->admin;
    if (a->transfer_count == TRANSFER_COUNT_MAX) {
        *ret_error = admin_fail(call, -EAGAIN,
                                "%u reads and writes by dog run here already: wait for "
                                "one to end, or ask another sheep",
                                TRANSFER_COUNT_MAX);
        return NULL;
    }
    struct transfer *t = malloc(sizeof(*t));
    uint8_t *memory = aligned_alloc(4096, (size_t)CHUNK_COUNT * CHUNK_SIZE);
    if (!t || !memory) {
        free(t);
        free(memory);
        *ret_error = -ENOMEM;
        return NULL;
    }
    *t = (struct transfer){.call = call, .volume = v, .direction = direction, .memory = memory};
    waitq_init(&t->changed);
    for (unsigned i = 0; i < CHUNK_COUNT; i++) {
        t->chunks[i].transfer = t;
        t->chunks[i].buffer = memory + (size_t)i * CHUNK_SIZE;
    }
    a->transfer_count++;
    return t;
}

/* Finishes what runs, frees; returns the first error. */
static fiber_fn int transfer_end(struct transfer *t)
{
    while (t->head != t->tail)
        chunk_retire(t);
    int r = t->error;
    t->call->admin->transfer_count--;
    free(t->memory);
    free(t);
    return r;
}

/* One run of the allocation map. */
static fiber_fn void read_run(struct transfer *t, const struct volume_run *run)
{
    if (!run->mapped) {
        while (t->head != t->tail)
            chunk_retire(t); /* T2 */
        uint8_t payload[8];
        put_le64(payload, run->length);
        if (t->error == 0)
            t->error = admin_send(t->call->conn, ADMIN_ZEROS, payload, sizeof(payload));
        return;
    }
    uint64_t end = run->offset + run->length;
    for (uint64_t offset = run->offset; offset < end && t->error == 0;) {
        uint32_t length = (uint32_t)MIN((uint64_t)CHUNK_SIZE, end - offset);
        struct chunk *c = chunk_take(t);
        if (t->error == 0)
            chunk_start(t, c, offset, length);
        offset += length;
    }
}

static fiber_fn int read_range(struct admin_call *call, struct volume *v, uint64_t offset,
                               uint64_t length)
{
    int r;
    struct transfer *t = transfer_begin(call, v, TRANSFER_READ, &r);
    if (!t)
        return r;
    uint64_t end = offset + length;
    while (offset < end && t->error == 0) {
        struct volume_run *runs;
        size_t count;
        uint64_t window = MIN(MAP_WINDOW, end - offset);
        r = volume_map(v, offset, window, 0, &runs, &count);
        if (r < 0) {
            t->error = admin_fail(call, r, "reading the map of %s at offset %" PRIu64 ": %s",
                                  volume_name(v), offset, err_text(r));
            break;
        }
        for (size_t i = 0; i < count && t->error == 0; i++)
            read_run(t, &runs[i]);
        free(runs);
        offset += window;
    }
    return transfer_end(t);
}

/* "offset" and "length" (absent: to the end) against the volume's size. */
static int range_of(struct admin_call *call, struct volume *v, uint64_t *ret_offset,
                    uint64_t *ret_length)
{
    uint64_t size = volume_size(v), offset = 0, length = UINT64_MAX;
    int r = admin_arg_u64(call, "offset", ADMIN_OPTIONAL, INT64_MAX, &offset);
    if (r == 0)
        r = admin_arg_u64(call, "length", ADMIN_OPTIONAL, INT64_MAX, &length);
    if (r < 0)
        return r;
    if (offset > size)
        return admin_fail(call, -EINVAL,
                          "offset %" PRIu64 " is beyond the end of %s (%" PRIu64 " bytes)", offset,
                          volume_name(v), size);
    if (length == UINT64_MAX)
        length = size - offset;
    if (length > size - offset)
        return admin_fail(call, -EINVAL,
                          "offset %" PRIu64 " and length %" PRIu64
                          " reach beyond the end of %s (%" PRIu64 " bytes)",
                          offset, length, volume_name(v), size);
    *ret_offset = offset;
    *ret_length = length;
    return 0;
}

static fiber_fn int open_named(struct admin_call *call, unsigned flags, struct volume **ret)
{
    const char *name = NULL, *tag = NULL;
    int r = admin_arg_string(call, "name", ADMIN_REQUIRED, &name);
    if (r == 0)
        r = admin_arg_string(call, "tag", ADMIN_OPTIONAL, &tag);
    return r < 0 ? r : volume_open(call->admin->volumes, name, tag, flags, ret, &call->error);
}

/* Tells the client that the operation is possible, before any data: so that it can follow a
 * redirect. */
static fiber_fn int send_ready(struct admin_call *call, uint64_t length, uint64_t size)
{
    return admin_send_json(call->conn, json_pack("{s:b, s:I, s:I}", "ready", 1, "length",
                                                 (json_int_t)length, "size", (json_int_t)size));
}

static fiber_fn int op_read(struct admin_call *call)
{
    struct volume *v;
    uint64_t offset, length;
    int r = open_named(call, VOLUME_READ_ONLY, &v);
    if (r < 0)
        return r;
    r = range_of(call, v, &offset, &length);
    if (r == 0)
        r = send_ready(call, length, volume_size(v));
    if (r == 0)
        r = read_range(call, v, offset, length);
    volume_close(v);
    return r;
}

/* One frame of the client's data: *ret_length bytes were taken; 0 at the end of the data. */
static fiber_fn int write_frame(struct transfer *t, uint64_t offset, uint64_t left,
                                uint64_t *ret_length)
{
    struct chunk *c = chunk_take(t);
    struct admin_header h;
    if (t->error < 0)
        return t->error;
    int r = admin_receive(t->call->conn, c->buffer, CHUNK_SIZE, &h);
    if (r == 0 && h.kind == ADMIN_JSON)
        r = -EBADMSG;
    if (r < 0)
        return r == -ENOTCONN ? -ECONNRESET : r;
    uint64_t length = h.kind == ADMIN_ZEROS ? get_le64(c->buffer) : h.length;
    if (length > left)
        return admin_fail(t->call, -EFBIG,
                          "there is more data than fits into %s (%" PRIu64 " bytes): what fits was "
                          "written; dog vdi resize makes it larger",
                          volume_name(t->volume), volume_size(t->volume));
    if (h.kind == ADMIN_ZEROS)
        r = volume_zero(t->volume, offset, length, 0);
    else if (length > 0)
        chunk_start(t, c, offset, h.length);
    *ret_length = length;
    return r;
}

static fiber_fn int write_range(struct admin_call *call, struct volume *v, uint64_t offset,
                                uint64_t length)
{
    int r;
    struct transfer *t = transfer_begin(call, v, TRANSFER_WRITE, &r);
    if (!t) {
        call->out_of_step = true;
        return r;
    }
    uint64_t done = 0, taken = 0;
    while ((r = write_frame(t, offset + done, length - done, &taken)) == 0 && taken > 0)
        done += taken;
    int r_end = transfer_end(t);
    if (r == 0)
        r = r_end;
    if (r < 0)
        call->out_of_step = true; /* T3 */
    else
        admin_set_u64(call->answer, "written", done);
    return r;
}

static fiber_fn int op_write(struct admin_call *call)
{
    struct volume *v;
    uint64_t offset, length;
    int r = open_named(call, 0, &v);
    if (r < 0)
        return r;
    r = range_of(call, v, &offset, &length);
    if (r == 0 && volume_is_read_only(v))
        r = admin_fail(call, -EROFS, "%s cannot be written: it is a snapshot", volume_name(v));
    if (r == 0)
        r = send_ready(call, length, volume_size(v));
    if (r == 0)
        r = write_range(call, v, offset, length);
    if (r == 0)
        r = volume_flush(v);
    volume_close(v);
    return r;
}

static fiber_fn int op_discard(struct admin_call *call)
{
    struct volume *v;
    uint64_t offset, length;
    int r = open_named(call, 0, &v);
    if (r < 0)
        return r;
    r = range_of(call, v, &offset, &length);
    if (r == 0)
        r = volume_discard(v, offset, length);
    volume_close(v);
    return r;
}

const struct admin_op admin_data_ops[] = {
    {"vdi.read", op_read},
    {"vdi.write", op_write},
    {"vdi.discard", op_discard},
    {NULL, NULL},
};
