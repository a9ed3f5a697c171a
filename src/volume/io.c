/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest I/O on open volumes: handles, splitting into objects, zeroing and discarding.
 *
 * O1 The common request touches one object and costs no fiber and no memory.
 * O2 A change passes the gate as a whole: a snapshot has all of it or nothing.
 * O3 (C4) Nothing is answered while the session is not confirmed: what the index alone says (a hole
 *    reads as zeros, and stays one when discarded) may not be true any more. Once it is confirmed
 *    again, no other owner has been there.
 */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "volume/forward.h"
#include "volume/handle.h"

#define PART_WIDTH 8u         /* objects of one request at once */
#define ZERO_CHUNK (1u << 20) /* bytes of zeros written at once */
#define POLL_NS    (20 * NS_PER_MS)

fiber_fn int volume_open(struct volumes *vs, const char *name, const char *tag, unsigned flags,
                         struct volume **ret, struct volume_error *ret_error)
{
    if (name_check(name, NULL) || (tag && *tag && name_check(tag, NULL)))
        return volume_error_set(
            ret_error, -ENOENT,
            "there is no such volume: the name is not a valid one; `dog vdi list` "
            "shows what there is");
    struct volume *v = calloc(1, sizeof(*v));
    if (!v)
        return volume_error_of(ret_error, -ENOMEM, "open", name);
    struct volume_error error = {0};
    int r = instance_open(vs, name, tag, true, &v->in, &error);
    if (r == -EBUSY && error.owner.value && (flags & VOLUME_FORWARD))
        r = forward_open(vs, name, v, &error);
    if (r) {
        if (ret_error)
            *ret_error = error;
        free(v);
        return r;
    }
    v->read_only = (flags & VOLUME_READ_ONLY) || (v->in && v->in->frozen);
    *ret = v;
    return 0;
}

fiber_fn void volume_close(struct volume *v)
{
    if (v->forward)
        forward_close(v);
    else
        instance_release(v->in, true);
    free(v);
}

uint64_t volume_size(const struct volume *v)
{
    if (!v->in)
        return forward_size(v->forward);
    return v->in->image.size;
}

uint32_t volume_object_size(const struct volume *v)
{
    if (!v->in)
        return forward_object_size(v->forward);
    return v->in->image.object_size;
}

bool volume_is_read_only(const struct volume *v)
{
    return v->read_only;
}

bool volume_began_elsewhere(const struct volume *v)
{
    return v->forward != NULL;
}

const char *volume_name(const struct volume *v)
{
    if (!v->in)
        return forward_name(v->forward);
    return v->in->name;
}

/* --- splitting --- */

static int check_range(const struct instance *in, uint64_t offset, uint64_t length)
{
    uint64_t end;
    return add_u64(offset, length, &end) && end <= in->image.size ? 0 : -EINVAL;
}

/* The piece of [offset, offset + length) that lies in its first object. */
static struct piece first_piece(const struct instance *in, uint64_t offset, uint64_t length)
{
    uint32_t size = in->image.object_size;
    uint32_t within = (uint32_t)(offset & (size - 1));
    return (struct piece){
        .index = (uint32_t)(offset / size),
        .offset = within,
        .length = (uint32_t)MIN(length, size - within),
    };
}

struct request {
    struct instance *in;
    uint64_t offset, length;
    uint8_t *buffer;
    fiber_fn int (*fn)(struct instance *in, const struct piece *p, void *buffer);
};

static fiber_fn int run_part(void *arg, unsigned i)
{
    const struct request *q = arg;
    uint32_t size = q->in->image.object_size;
    uint64_t start = i == 0 ? q->offset : (q->offset / size + i) * size;
    struct piece p = first_piece(q->in, start, q->offset + q->length - start);
    return q->fn(q->in, &p, q->buffer ? q->buffer + (start - q->offset) : NULL);
}

static fiber_fn int run_request(struct request *q)
{
    if (q->length == 0)
        return 0;
    struct piece p = first_piece(q->in, q->offset, q->length);
    if (p.length == q->length) /* O1 */
        return q->fn(q->in, &p, q->buffer);
    uint64_t last = (q->offset + q->length - 1) / q->in->image.object_size;
    return parallel_run(q->in->vs->rt, (unsigned)(last - p.index + 1), PART_WIDTH, run_part, q);
}

static fiber_fn int write_piece(struct instance *in, const struct piece *p, void *buffer)
{
    return data_write(in, p, buffer);
}

static fiber_fn int punch_piece(struct instance *in, const struct piece *p, void *buffer)
{
    return data_punch(in, p);
}

/* O3: r, when the answer may leave. */
static fiber_fn int answer(const struct instance *in, int r)
{
    struct cluster *c = in->vs->cluster;
    while (r == 0 && !in->frozen && !cluster_serving(c)) {
        if (in->failed || cluster_cs(c)->lost)
            return in->failed ? in->failed : -ECANCELED;
        if (fiber_sleep(in->vs->rt, POLL_NS) < 0)
            return -ECANCELED;
    }
    return r;
}

/* --- reads and writes --- */

fiber_fn int volume_read(struct volume *v, uint64_t offset, uint32_t length, void *buffer)
{
    if (!v->in)
        return forward_read(v, offset, length, buffer);
    struct request q = {
        .in = v->in, .offset = offset, .length = length, .buffer = buffer, .fn = data_read};
    int r = check_range(v->in, offset, length);
    return r ? r : answer(v->in, run_request(&q));
}

/* What every change begins with; 0: the gate is entered. */
static fiber_fn int begin_change(struct volume *v, uint64_t offset, uint64_t length)
{
    if (v->read_only)
        return -EROFS;
    int r = volume_gate_enter(v->in);
    if (r)
        return r;
    r = check_range(v->in, offset, length); /* a resize may have gone before */
    if (r)
        volume_gate_leave(v->in);
    return r;
}

fiber_fn int volume_write(struct volume *v, uint64_t offset, uint32_t length, const void *buffer)
{
    struct request q = {.in = v->in,
                        .offset = offset,
                        .length = length,
                        .buffer = (void *)buffer,
                        .fn = write_piece};
    if (!v->in)
        return v->read_only ? -EROFS : forward_write(v, offset, length, buffer);
    int r = begin_change(v, offset, length);
    if (r)
        return r;
    r = run_request(&q);
    volume_gate_leave(v->in);
    return answer(v->in, r);
}

fiber_fn int volume_flush(struct volume *v)
{
    struct instance *in = v->in;
    if (!in)
        return forward_flush(v);
    if (in->frozen)
        return 0;
    uint64_t seen = version_make(in->owner.term, in->sequence).value;
    while (!in->failed && !list_empty(&in->inflight) &&
           list_first(&in->inflight, struct flight, inflight_link)->version.value <= seen)
        waitq_wait(&in->answered);
    return answer(in, in->failed);
}

/* --- zeros --- */

static fiber_fn int write_zeros(struct instance *in, uint64_t offset, uint64_t length)
{
    if (length == 0)
        return 0;
    size_t chunk = (size_t)MIN(length, ZERO_CHUNK);
    void *zeros = aligned_alloc(OBJECT_BLOCK, ALIGN_UP(chunk, OBJECT_BLOCK));
    if (!zeros)
        return -ENOMEM;
    memset(zeros, 0, chunk);
    int r = 0;
    while (length > 0 && !r) {
        struct request q = {.in = in,
                            .offset = offset,
                            .length = MIN(length, chunk),
                            .buffer = zeros,
                            .fn = write_piece};
        r = run_request(&q);
        offset += q.length;
        length -= q.length;
    }
    free(zeros);
    return r;
}

/* Zeros for a part of a block; a hole stays one. */
static fiber_fn int zero_edge(struct instance *in, uint64_t offset, uint64_t length)
{
    bool exists;
    struct oid oid;
    if (length == 0)
        return 0;
    int r = data_locate(in, (uint32_t)(offset / in->image.object_size), &exists, &oid);
    bool busy = active_find(in, (uint32_t)(offset / in->image.object_size)) != NULL;
    if (r || (!exists && !busy))
        return r;
    return write_zeros(in, offset, length);
}

/* Whole objects [first, last): leaf by leaf, in batches. */
static fiber_fn int discard_objects(struct instance *in, uint64_t first, uint64_t last)
{
    int r = 0;
    while (first < last && !r) {
        uint64_t leaf_end = (first / in->image.entries + 1) * in->image.entries;
        uint64_t end = MIN(MIN(last, leaf_end), first + DATA_DISCARD_MAX);
        struct block *leaf = in->leaves[first / in->image.entries];
        if (!leaf && in->root.entries[first / in->image.entries].vid == 0)
            end = MIN(last, leaf_end); /* nothing was ever there */
        else
            r = data_discard(in, (uint32_t)first, (unsigned)(end - first));
        first = end;
    }
    return r;
}

fiber_fn int image_discard(struct instance *in, uint64_t offset, uint64_t length)
{
    if (length == 0)
        return 0;
    uint64_t size = in->image.object_size, end = offset + length;
    uint64_t first = ALIGN_UP(offset, size), last = ALIGN_DOWN(end, size);
    if (end == in->image.size)
        last = ALIGN_UP(end, size); /* the last object is whole */
    if (first >= last) {
        struct request q = {.in = in, .offset = offset, .length = length, .fn = punch_piece};
        return run_request(&q);
    }
    struct request head = {.in = in, .offset = offset, .length = first - offset, .fn = punch_piece};
    struct request tail = {
        .in = in, .offset = last, .length = end > last ? end - last : 0, .fn = punch_piece};
    int r = run_request(&head);
    if (!r)
        r = discard_objects(in, first / size, last / size);
    return r ? r : run_request(&tail);
}

fiber_fn int image_zero(struct instance *in, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length;
    uint64_t first = ALIGN_UP(offset, OBJECT_BLOCK), last = ALIGN_DOWN(end, OBJECT_BLOCK);
    if (end == in->image.size)
        last = end;
    if (first >= last) { /* at most two parts of blocks */
        uint64_t cut = first > offset && first < end ? first : end;
        int r = zero_edge(in, offset, cut - offset);
        return r ? r : zero_edge(in, cut, end - cut);
    }
    int r = zero_edge(in, offset, first - offset);
    if (!r)
        r = image_discard(in, first, last - first);
    return r ? r : zero_edge(in, last, end - last);
}

fiber_fn int volume_zero(struct volume *v, uint64_t offset, uint64_t length, unsigned flags)
{
    if (!v->in)
        return v->read_only ? -EROFS : forward_zero(v, offset, length, flags);
    int r = begin_change(v, offset, length);
    if (r)
        return r;
    if (flags & VOLUME_ZERO_NO_HOLE)
        r = write_zeros(v->in, offset, length);
    else
        r = image_zero(v->in, offset, length);
    volume_gate_leave(v->in);
    return answer(v->in, r);
}

fiber_fn int volume_discard(struct volume *v, uint64_t offset, uint64_t length)
{
    if (!v->in)
        return v->read_only ? -EROFS : forward_discard(v, offset, length);
    int r = begin_change(v, offset, length);
    if (r)
        return r;
    r = image_discard(v->in, offset, length);
    volume_gate_leave(v->in);
    return answer(v->in, r);
}
