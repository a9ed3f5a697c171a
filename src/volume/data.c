/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads and changes of one data object: where it is, who may touch it, and with which versions.
 *
 * D1 (V1) An object with a known version is own, whatever the index says. Else the entry tells: {W,
 * 0} is own, with a version of an older term; another vid is shared; none is a hole. D2 What
 * creates the object (or clones it) holds other changes of it until it is answered; later ones are
 *    sent at once, each naming the version before it.
 * D3 (W5) A read that overlaps an unanswered change waits for it.
 * D4 (V4) A punched object is removed only after its entry was made empty, naming the punch's
 * version, and only while no change came since. An answered change of an object that is not linked
 * makes it unlinked.
 */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "volume/instance.h"

#define LOG_MODULE "volume"

#define READ_ATTEMPT_MAX 16 /* an object may be replaced under a read that often */
#define REPAIR_MAX       3  /* times a change is sent again after its object was evened out */

/* A change of one object as the caller wants it. */
struct op {
    enum object_change_kind kind; /* OBJECT_WRITE or OBJECT_PUNCH */
    struct object_extent extent;
    const struct iovec *iov; /* OBJECT_WRITE */
    bool whole;              /* covers all that the image has of the object */
    unsigned repairs;        /* of the object when the change was sent last */
    struct flight *flight;   /* of the change when it was sent last */
};

uint32_t data_span(const struct instance *in, uint32_t index)
{
    uint64_t start = (uint64_t)index * in->image.object_size;
    if (start >= in->image.size)
        return 0;
    return (uint32_t)MIN(in->image.size - start, in->image.object_size);
}

/* D1 without suspending; false when the leaf has to be loaded. *ret_vid 0: hole. */
static bool try_locate(struct instance *in, uint32_t index, uint64_t *ret_vid)
{
    struct block *leaf = in->leaves[index / in->image.entries];
    struct active *a = in->actives.count ? active_find(in, index) : NULL;
    if (a && a->version.value) {
        *ret_vid = active_is_punched(a) ? 0 : in->image.vid.value;
        return true;
    }
    if (!a && leaf && leaf->sequences &&
        (leaf->sequences[index % in->image.entries] & SEQUENCE_MASK)) {
        *ret_vid = in->image.vid.value;
        return true;
    }
    struct index_entry e;
    if (!index_try_entry(in, index, &e))
        return false;
    *ret_vid = e.vid;
    return true;
}

fiber_fn int data_locate(struct instance *in, uint32_t index, bool *ret_exists, struct oid *ret_oid)
{
    uint64_t vid;
    while (!try_locate(in, index, &vid)) {
        struct index_entry e;
        int r = index_entry(in, index, &e);
        if (r)
            return r;
    }
    *ret_exists = vid != 0;
    *ret_oid = image_oid(&in->image, vid, 0, index);
    return 0;
}

/* D3. True when it had to wait (all may have changed). */
static fiber_fn bool wait_for_writers(struct instance *in, const struct piece *p)
{
    struct active *a = in->actives.count ? active_find(in, p->index) : NULL;
    if (!a || !active_overlaps(a, p->offset, p->length))
        return false;
    a->users++;
    waitq_wait(&a->waiters);
    active_put(a);
    return true;
}

fiber_fn int data_read(struct instance *in, const struct piece *p, void *buffer)
{
    for (unsigned attempt = 0; attempt < READ_ATTEMPT_MAX;) {
        if (in->failed)
            return in->failed;
        if (wait_for_writers(in, p))
            continue;
        uint64_t vid;
        if (!try_locate(in, p->index, &vid)) {
            struct index_entry e;
            int r = index_entry(in, p->index, &e);
            if (r)
                return r;
            continue;
        }
        if (vid == 0) {
            memset(buffer, 0, p->length);
            return 0;
        }
        struct oid oid = image_oid(&in->image, vid, 0, p->index);
        int r = object_read(in->vs->objects, &oid, p->offset, p->length, buffer, NULL);
        if (r != -ENOENT)
            return r;
        attempt++; /* removed while we read: it was replaced, look again */
    }
    log_error("object %u of volume %s is missing", p->index, in->name);
    return -EIO;
}

/* --- changes --- */

/* V6 before V4: what keeps S down is in its list before the flight ends. */
static void change_answered(struct active *a, const struct op *op, struct version version)
{
    if (a->punched && a->version.value != a->punched_version.value)
        active_clear_punched(a);
    if (op->kind == OBJECT_PUNCH && op->whole && a->version.value == version.value)
        active_set_punched(a, version);
    if (!active_is_linked(a))
        active_set_unlinked(a, version);
}

/* W7, with the object to itself: evens its copies out and takes what they have. */
static fiber_fn int even_out(struct active *a)
{
    struct instance *in = a->in;
    struct oid oid = image_oid(&in->image, in->image.vid.value, 0, a->index);
    char text[OID_TEXT_SIZE];
    ASSERT(a->exclusive && list_empty(&a->flights));
    log_warn("object %s of volume %s: its copies differ, evening them out", oid_format(&oid, text),
             in->name);
    struct object_found found = {0};
    int r = object_reconcile_one(in->vs->objects, &in->owner, &oid, &found);
    if (r)
        return r;
    struct version now = found.tombstone ? (struct version){0} : found.version;
    a->repairs++;
    if (now.value != a->version.value)
        active_clear_punched(a);
    active_set_version(a, now);
    return 0;
}

/* Evens out, unless another fiber did since `repairs` was read. */
static fiber_fn int repair(struct active *a, unsigned repairs)
{
    int r = 0;
    active_lock(a);
    if (a->repairs == repairs && !a->in->failed)
        r = even_out(a);
    active_unlock(a);
    return r ? r : a->in->failed;
}

/* Sends one change and sees to its answer. `creates`: the caller has the object to itself. Returns
 * -EAGAIN when it should be decided and sent again. */
static fiber_fn int send_change(struct active *a, struct op *op, struct object_change *c,
                                bool creates)
{
    struct instance *in = a->in;
    struct version before = a->version;
    struct flight *flight = op->flight;
    c->oid = image_oid(&in->image, in->image.vid.value, 0, a->index);
    c->next = instance_next_version(in);
    op->repairs = a->repairs;
    flight_begin(in, a, flight, c->next, op->extent.offset, op->extent.length);
    if (!creates)
        active_set_version(a, c->next);
    int r = object_change(in->vs->objects, &in->owner, c);
    if (!r) {
        if (creates)
            active_set_version(a, c->next);
        change_answered(a, op, c->next);
        flight_end(in, a, flight);
        return 0;
    }
    if (r == -ENOSPC || r == -ENOMEM) { /* nothing was sent */
        if (!creates && a->version.value == c->next.value)
            active_set_version(a, before);
        flight_end(in, a, flight);
        return r;
    }
    active_set_unlinked(a, c->next); /* it may be there, with nothing that refers to it */
    /* V6: S stays below until the copies are equal again; only then does the flight end. */
    list_remove(&flight->link);
    waitq_wake_all(&a->waiters);
    if (r == -ECANCELED)
        instance_fail(in, r, "a write was cut off");
    return r == -ESTALE ? -EAGAIN : r;
}

/* D2: the first change of this object by this vid. The object was found to be shared or a hole in
 * this very step. */
static fiber_fn int create_object(struct active *a, struct op *op, uint64_t source_vid)
{
    ASSERT(!a->exclusive && list_empty(&a->flights));
    bool clone = source_vid != 0 && !(op->kind == OBJECT_WRITE && op->whole);
    struct object_change c = {
        .kind = clone ? OBJECT_CLONE : OBJECT_WRITE,
        .source = image_oid(&a->in->image, source_vid, 0, a->index),
        .prev = OBJECT_PREV_NONE,
    };
    struct op own = *op;
    if (op->kind == OBJECT_WRITE) {
        c.extents = &op->extent;
        c.extent_count = 1;
        c.iov = op->iov;
        c.iov_count = 1;
    } else { /* a clone with nothing changed; the punch follows as an ordinary change */
        own.whole = false;
        own.kind = OBJECT_WRITE;
    }
    a->exclusive = true;
    int r = send_change(a, &own, &c, true);
    active_unlock(a);
    op->repairs = own.repairs;
    if (r == -ENOENT)
        log_error("object %u of volume %s is missing", a->index, a->in->name);
    return r;
}

/* One attempt; -EAGAIN asks for another. */
static fiber_fn int try_change(struct active *a, struct op *op)
{
    struct instance *in = a->in;
    while (a->exclusive)
        waitq_wait(&a->waiters);
    if (in->failed)
        return in->failed;
    struct object_change c = {
        .kind = op->kind,
        .prev = a->version,
        .extents = &op->extent,
        .extent_count = 1,
        .iov = op->iov,
        .iov_count = op->kind == OBJECT_WRITE,
    };
    if (a->version.value == 0) {
        struct index_entry e;
        if (!index_try_entry(in, a->index, &e)) {
            int r = index_entry(in, a->index, &e);
            return r ? r : -EINPROGRESS;
        }
        if (e.vid == 0 && op->kind == OBJECT_PUNCH)
            return 0; /* a hole stays one */
        if (e.vid != in->image.vid.value) {
            int r = create_object(a, op, e.vid);
            return r == 0 && op->kind == OBJECT_PUNCH ? -EINPROGRESS : r;
        }
        c.prev = OBJECT_PREV_OLDER_TERM;
        active_set_linked(a, true);
    }
    return send_change(a, op, &c, false);
}

/* Maps what the object service may answer to what volume_write() may. */
static int guest_error(struct active *a, int r)
{
    if (r == 0 || r == -ENOSPC || r == -EUCLEAN || r == -ECANCELED || r == -ENOMEM)
        return r;
    log_error("object %u of volume %s cannot be changed: %s", a->index, a->in->name, err_text(r));
    return -EIO;
}

static fiber_fn int change_object(struct active *a, struct op *op)
{
    struct flight flight;
    list_init(&flight.link);
    list_init(&flight.inflight_link);
    op->flight = &flight;
    for (unsigned repaired = 0;;) {
        op->repairs = a->repairs;
        int r = try_change(a, op);
        if (r == -EINPROGRESS)
            continue;
        if (r == 0 || r == -ENOSPC || r == -ENOMEM)
            return r;
        int fixed = a->in->failed ? a->in->failed : repair(a, op->repairs);
        if (fixed && !a->in->failed)
            instance_fail(a->in, fixed, "the copies of an object cannot be made equal");
        flight_end(a->in, a, &flight);
        if (fixed)
            return guest_error(a, fixed);
        if (r != -EAGAIN || ++repaired >= REPAIR_MAX)
            return guest_error(a, r == -EAGAIN ? -EIO : r);
    }
}

fiber_fn int data_write(struct instance *in, const struct piece *p, const void *buffer)
{
    struct active *a = active_get(in, p->index);
    if (!a)
        return -ENOMEM;
    struct iovec iov = {.iov_base = (void *)buffer, .iov_len = p->length};
    struct op op = {
        .kind = OBJECT_WRITE,
        .extent = {.offset = p->offset, .length = p->length},
        .iov = &iov,
        .whole = p->offset == 0 && p->length >= data_span(in, p->index),
    };
    int r = change_object(a, &op);
    active_put(a);
    return r;
}

static fiber_fn int punch(struct instance *in, uint32_t index, uint32_t offset, uint32_t length,
                          bool whole)
{
    struct active *a = active_get(in, index);
    if (!a)
        return -ENOMEM;
    struct op op = {
        .kind = OBJECT_PUNCH, .extent = {.offset = offset, .length = length}, .whole = whole};
    int r = active_is_punched(a) && list_empty(&a->flights) ? 0 : change_object(a, &op);
    active_put(a);
    return r;
}

fiber_fn int data_punch(struct instance *in, const struct piece *p)
{
    uint32_t span = data_span(in, p->index), size = in->image.object_size;
    uint32_t start = ALIGN_UP(p->offset, OBJECT_BLOCK);
    uint32_t end = p->offset + p->length;
    end = end >= span ? size : ALIGN_DOWN(end, OBJECT_BLOCK);
    if (start >= end)
        return 0;
    if (start == 0 && end == size)
        return data_discard(in, p->index, 1);
    return punch(in, p->index, start, end - start, false);
}

/* --- V4: whole objects --- */

struct discard {
    struct instance *in;
    uint32_t own[DATA_DISCARD_MAX];
    unsigned own_count;
    struct active *shared[DATA_DISCARD_MAX];
    struct flight flights[DATA_DISCARD_MAX]; /* readers wait for them (D3) */
    unsigned shared_count;
};

static fiber_fn int punch_own(void *arg, unsigned i)
{
    struct discard *d = arg;
    return punch(d->in, d->own[i], 0, d->in->image.object_size, true);
}

/* Sorts the positions into holes (left out), own and shared ones. */
static fiber_fn int discard_classify(struct discard *d, uint32_t first, unsigned count)
{
    struct instance *in = d->in;
    for (uint32_t index = first; index < first + count; index++) {
        bool exists;
        struct oid oid;
        int r = data_locate(in, index, &exists, &oid);
        if (r)
            return r;
        struct active *a = active_find(in, index);
        if (!exists && !a)
            continue; /* (a punched one stays as it is, unless a write is under way) */
        if (exists && oid.vid != in->image.vid.value) {
            a = active_get(in, index);
            if (!a)
                return -ENOMEM;
            d->shared[d->shared_count++] = a;
        } else {
            d->own[d->own_count++] = index;
        }
    }
    return 0;
}

/* The block write that makes the shared entries empty and owes what they referred to. Those that
 * became own since move to the other list. */
static fiber_fn int empty_entries(struct discard *d, struct block *leaf)
{
    struct instance *in = d->in;
    int r = block_load(in, leaf);
    if (r)
        return r;
    struct block_change changes[DATA_DISCARD_MAX];
    unsigned n = 0;
    struct index_owed *owed = malloc((leaf->owed_count + d->shared_count) * sizeof(*owed));
    if (!owed)
        return -ENOMEM;
    unsigned owed_count = leaf->owed_count;
    if (owed_count)
        memcpy(owed, leaf->owed, owed_count * sizeof(*owed));
    for (unsigned i = 0; i < d->shared_count; i++) {
        struct active *a = d->shared[i];
        uint32_t at = a->index % in->image.entries;
        struct index_entry e = leaf->entries[at];
        if (a->version.value != 0 || e.vid == in->image.vid.value) {
            d->own[d->own_count++] = a->index;
            continue;
        }
        if (e.vid == 0)
            continue;
        owed[owed_count++] =
            (struct index_owed){.vid = e.vid, .index = a->index, .generation = e.generation};
        changes[n++] = (struct block_change){.at = at};
    }
    r = n ? block_write(in, leaf, changes, n, owed, owed_count) : 0;
    free(owed);
    return r;
}

static fiber_fn int discard_shared(struct discard *d)
{
    struct instance *in = d->in;
    struct block *leaf = d->shared[0]->leaf;
    for (unsigned i = 0; i < d->shared_count; i++) { /* I1: ascending */
        active_lock(d->shared[i]);
        flight_begin(in, d->shared[i], &d->flights[i], (struct version){0}, 0,
                     in->image.object_size);
    }
    int r;
    fmutex_lock(&leaf->lock);
    do {
        d->own_count = 0;
        r = in->failed ? in->failed : empty_entries(d, leaf);
    } while (r == -EAGAIN);
    fmutex_unlock(&leaf->lock);
    for (unsigned i = 0; i < d->shared_count; i++) {
        flight_end(in, d->shared[i], &d->flights[i]);
        active_unlock(d->shared[i]);
        active_put(d->shared[i]);
    }
    d->shared_count = 0;
    return r;
}

fiber_fn int data_discard(struct instance *in, uint32_t first, unsigned count)
{
    ASSERT(count > 0 && count <= DATA_DISCARD_MAX);
    ASSERT(first / in->image.entries == (first + count - 1) / in->image.entries);
    struct discard *d = calloc(1, sizeof(*d));
    if (!d)
        return -ENOMEM;
    d->in = in;
    int r = discard_classify(d, first, count);
    if (!r && d->own_count)
        r = parallel_run(in->vs->rt, d->own_count, 16, punch_own, d);
    d->own_count = 0;
    if (!r && d->shared_count)
        r = discard_shared(d);
    for (unsigned i = 0; i < d->shared_count; i++)
        active_put(d->shared[i]);
    if (!r && d->own_count)
        r = parallel_run(in->vs->rt, d->own_count, 16, punch_own, d);
    free(d);
    return r;
}

static fiber_fn int send_remove(struct active *a)
{
    struct instance *in = a->in;
    struct flight flight;
    struct object_change c = {
        .kind = OBJECT_REMOVE,
        .oid = image_oid(&in->image, in->image.vid.value, 0, a->index),
        .prev = a->version,
        .next = instance_next_version(in),
    };
    flight_begin(in, a, &flight, c.next, 0, in->image.object_size);
    int r = object_change(in->vs->objects, &in->owner, &c);
    if (!r) {
        active_set_version(a, (struct version){0});
        active_clear_punched(a);
        active_clear_unlinked(a);
        in->removed = c.next;
    } else {
        active_set_unlinked(a, c.next); /* V6, until its copies are equal */
    }
    flight_end(in, a, &flight);
    return r;
}

fiber_fn int data_remove(struct active *a)
{
    struct instance *in = a->in;
    int r = 0;
    a->users++;
    active_lock(a);
    bool due = active_is_punched(a) && a->emptied_version.value == a->version.value; /* D4 */
    if (due && !in->failed) {
        r = send_remove(a);
        if (r == -ESTALE)
            r = even_out(a); /* a later pass tries again */
        if (r)
            instance_fail(in, r == -ECANCELED ? r : -EIO, "a discarded object cannot be removed");
    }
    active_unlock(a);
    active_put(a);
    return r;
}
