/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Simulated disks.
 *
 * D1 `bytes` is what reads see: all completed writes. `durable` is what a power cut leaves of it:
 * it lags behind by the records of `unflushed`, which are in the order of completion. D2 A flush
 * makes durable what had completed when the flush was submitted. D3 At a power cut each unflushed
 * and each unfinished write is dropped, kept, or torn by sectors of 512 bytes. At a kill only
 * unfinished ones are. D4 Discarded ranges read as zeros or as before, by the seed: nothing may
 * rely on either. D5 A sparse disk takes room for a block when an operation on it is submitted.
 * D6 A failed write may have reached the disk in part. A failed flush leaves some of the writes
 * before it behind for good: they are read back, but no later flush makes them durable, as with a
 * page cache that counts them as written.
 */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "sim/sim_internal.h"

#define SECTOR_SIZE 512u

struct fault_plan {
    enum sim_fault fault;
    uint64_t left; /* acts when this many operations have come: 1 is the next */
};

enum op_class { CLASS_READ, CLASS_WRITE, CLASS_COUNT };

struct sim_disk {
    struct list link; /* sim.disks */
    char *path;
    uint64_t size;
    enum disk_durability durability;
    uint8_t *bytes, *durable; /* D1 */
    struct list unflushed;    /* struct write_record */
    struct list forgotten;    /* struct write_record, D6: where `bytes` is newer than it should */
    uint64_t completed_count; /* of writes */
    bool locked;              /* DISK_OPEN_EXCLUSIVE */
    uint64_t op_counts[CLASS_COUNT];
    struct fault_plan plans[CLASS_COUNT];
    uint32_t discard_bytes; /* 0: a file */
    bool *backed;           /* D5, per block; NULL: not sparse */
    uint64_t room, hole_writes;
    unsigned slowness;
    bool honest; /* not D6 */
};

struct write_record {
    struct list link;
    uint64_t offset, length;
    uint64_t sequence; /* sim_disk.completed_count at its completion */
    bool must_stay;    /* written through (FUA) */
    uint8_t data[];
};

struct sim_opened {
    struct disk base; /* first */
    struct list link; /* sim_node.opened */
    struct sim_disk *disk;
    unsigned flags;
    struct list in_flight; /* struct sim_io */
};

struct sim_io {
    struct timer timer;
    struct list link; /* sim_opened.in_flight */
    struct sim_opened *opened;
    struct disk_io *io;
    uint64_t flushes_through; /* D2: highest sequence */
    int result;
};

static enum op_class class_of(enum disk_op op)
{
    return op == DISK_READ ? CLASS_READ : CLASS_WRITE;
}

static struct sim_disk *find_disk(struct sim *s, const char *path)
{
    struct sim_disk *d;
    list_for_each (d, &s->disks, link) {
        if (strcmp(d->path, path) == 0)
            return d;
    }
    return NULL;
}

/* --- writes and their fate --- */

/* The bytes that a write, zero or discard puts on the disk; NULL for a discard that does nothing
 * (D4). */
static struct write_record *record_of(struct sim *s, const struct disk_io *io)
{
    if (io->op == DISK_DISCARD && sim_random(s) % 2)
        return NULL;
    struct write_record *w = calloc(1, sizeof(*w) + io->length);
    ASSERT(w);
    w->offset = io->offset;
    w->length = io->length;
    w->must_stay = io->op == DISK_WRITE && (io->flags & DISK_IO_FUA);
    list_init(&w->link);
    uint64_t position = 0;
    for (unsigned i = 0; io->op == DISK_WRITE && i < io->iov_count; i++) {
        memcpy(w->data + position, io->iov[i].iov_base, io->iov[i].iov_len);
        position += io->iov[i].iov_len;
    }
    return w;
}

static void make_durable(struct sim_disk *d, struct write_record *w)
{
    memcpy(d->durable + w->offset, w->data, w->length);
    list_remove(&w->link);
    free(w);
}

/* D1, D2: in order, so that a later write to the same place wins. */
static void flush_through(struct sim_disk *d, uint64_t sequence)
{
    while (!list_empty(&d->unflushed)) {
        struct write_record *w = list_first(&d->unflushed, struct write_record, link);
        if (w->sequence > sequence && !w->must_stay)
            break;
        make_durable(d, w);
    }
}

static void complete_write(struct sim_disk *d, struct write_record *w)
{
    memcpy(d->bytes + w->offset, w->data, w->length);
    w->sequence = ++d->completed_count;
    list_push_back(&d->unflushed, &w->link);
    if (d->durability == DISK_WRITE_THROUGH)
        flush_through(d, w->sequence);
    else
        flush_through(d, 0); /* only those written through that nothing older stands before */
}

enum fate {
    FATE_DROPPED,
    FATE_KEPT,
    FATE_TORN,
    FATE_MIXED, /* each of the above, by chance */
    FATE_LATER, /* the first ones are dropped, the others kept: the order of writing is for nothing
                 */
};

/* Puts what survives of w over `target`, D3. */
static void apply_fate(struct sim *s, uint8_t *target, const struct write_record *w, enum fate fate)
{
    if (fate == FATE_MIXED)
        fate = (enum fate)(sim_random(s) % 3);
    if (fate == FATE_LATER || (w->must_stay && w->sequence > 0))
        fate = FATE_KEPT;
    for (uint64_t i = 0; i < w->length; i += SECTOR_SIZE) {
        if (fate == FATE_KEPT || (fate == FATE_TORN && sim_random(s) % 2))
            memcpy(target + w->offset + i, w->data + i, SECTOR_SIZE);
    }
}

static enum fate random_fate(struct sim *s)
{
    static const enum fate fates[] = {FATE_DROPPED, FATE_KEPT, FATE_MIXED, FATE_MIXED, FATE_LATER};
    return fates[sim_random(s) % ARRAY_SIZE(fates)];
}

/* What is read there is from now on what the medium holds. */
static void revert(struct sim_disk *d, struct list *records)
{
    struct write_record *w, *tmp;
    list_for_each_safe (w, tmp, records, link) {
        memcpy(d->bytes + w->offset, d->durable + w->offset, w->length);
        list_remove(&w->link);
        free(w);
    }
}

static void lose_unflushed(struct sim *s, struct sim_disk *d, enum fate fate)
{
    struct write_record *w;
    uint64_t count = 0, drop = 0;
    list_for_each (w, &d->unflushed, link)
        count++;
    if (fate == FATE_LATER)
        drop = sim_random_between(s, 0, count);
    list_for_each (w, &d->unflushed, link) {
        if (drop > 0 && !w->must_stay)
            drop--;
        else
            apply_fate(s, d->durable, w, fate);
    }
    revert(d, &d->unflushed);
    revert(d, &d->forgotten);
}

/* D6 */
static void forget_some(struct sim *s, struct sim_disk *d, uint64_t sequence)
{
    struct write_record *w, *tmp;
    list_for_each_safe (w, tmp, &d->unflushed, link) {
        if (w->sequence <= sequence && !w->must_stay && sim_random(s) % 2) {
            list_remove(&w->link);
            list_push_back(&d->forgotten, &w->link);
        }
    }
}

/* Makes what survives of w, which never completed, the write that happened. Takes w. */
static void land_partly(struct sim *s, struct sim_disk *d, struct write_record *w, enum fate fate)
{
    struct write_record *whole = calloc(1, sizeof(*w) + w->length);
    ASSERT(whole);
    *whole = (struct write_record){.offset = w->offset, .length = w->length};
    list_init(&whole->link);
    apply_fate(s, d->bytes, w, fate);
    memcpy(whole->data, d->bytes + w->offset, w->length);
    complete_write(d, whole);
    free(w);
}

/* What never completed; the survivors are in the cache at a kill, on the medium at a power cut. */
static void lose_in_flight(struct sim *s, struct sim_opened *o, enum fate fate,
                           enum sim_death death)
{
    struct sim_disk *d = o->disk;
    struct sim_io *x, *tmp;
    list_for_each_safe (x, tmp, &o->in_flight, link) {
        timer_cancel(&x->timer);
        bool writes = x->io->op != DISK_READ && x->io->op != DISK_FLUSH;
        struct write_record *w = writes && x->result == 0 ? record_of(s, x->io) : NULL;
        if (w) {
            land_partly(s, d, w, fate);
            if (death == SIM_POWER_CUT)
                flush_through(d, d->completed_count);
        }
        list_remove(&x->link);
        free(x);
    }
}

void sim_disks_die(struct sim_node *n, enum sim_death death)
{
    struct sim *s = n->sim;
    enum fate fate = random_fate(s);
    struct sim_opened *o, *tmp;
    list_for_each_safe (o, tmp, &n->opened, link) {
        if (death == SIM_POWER_CUT)
            lose_unflushed(s, o->disk, fate);
        lose_in_flight(s, o, fate, death);
        if (o->flags & DISK_OPEN_EXCLUSIVE)
            o->disk->locked = false;
        list_remove(&o->link);
        free(o->base.name);
        free(o);
    }
}

/* --- operations --- */

static void copy_out(const struct sim_disk *d, const struct disk_io *io)
{
    uint64_t offset = io->offset;
    for (unsigned i = 0; i < io->iov_count; i++) {
        memcpy(io->iov[i].iov_base, d->bytes + offset, io->iov[i].iov_len);
        offset += io->iov[i].iov_len;
    }
}

static void io_succeed(struct sim *s, struct sim_io *x)
{
    struct sim_disk *d = x->opened->disk;
    struct write_record *w;
    switch (x->io->op) {
    case DISK_READ:
        copy_out(d, x->io);
        break;
    case DISK_FLUSH:
        flush_through(d, x->flushes_through);
        break;
    default:
        w = record_of(s, x->io);
        if (w)
            complete_write(d, w);
        break;
    }
}

/* D6 */
static void io_fail(struct sim *s, struct sim_io *x)
{
    struct sim_disk *d = x->opened->disk;
    if (x->io->op == DISK_FLUSH && !d->honest)
        forget_some(s, d, x->flushes_through);
    else if (x->io->op == DISK_WRITE)
        land_partly(s, d, record_of(s, x->io), FATE_MIXED);
}

static void io_fire(struct timer *t)
{
    struct sim_io *x = container_of(t, struct sim_io, timer);
    struct sim *s = sim_node_of(x->opened->base.rt)->sim;
    struct disk_io *io = x->io;
    if (x->result == 0)
        io_succeed(s, x);
    else if (x->result == -EIO && !(x->opened->flags & DISK_OPEN_READ_ONLY))
        io_fail(s, x);
    io->result = x->result;
    list_remove(&x->link);
    free(x);
    io->done(io);
}

/* Counts the operation and carries out the plan; returns its result. */
static int meet_fault(struct sim_opened *o, enum disk_op op)
{
    struct fault_plan *plan = &o->disk->plans[class_of(op)];
    o->disk->op_counts[class_of(op)]++;
    if (plan->fault == SIM_FAULT_NONE)
        return 0;
    if (plan->left > 1) {
        plan->left--;
        return 0;
    }
    enum sim_fault fault = plan->fault;
    if (fault != SIM_FAULT_EIO_FROM)
        plan->fault = SIM_FAULT_NONE;
    if (fault == SIM_FAULT_CRASH || fault == SIM_FAULT_KILL) {
        sim_node_die(sim_node_of(o->base.rt), fault == SIM_FAULT_KILL ? SIM_KILLED : SIM_POWER_CUT);
        return 0;
    }
    return -EIO;
}

/* D5 */
static int take_room(struct sim_disk *d, const struct disk_io *io)
{
    uint64_t first = io->offset / DISK_BLOCK, end = first + io->length / DISK_BLOCK, need = 0;
    if (!d->backed || io->op == DISK_READ || io->op == DISK_FLUSH)
        return 0;
    for (uint64_t i = first; i < end; i++)
        need += d->backed[i] == (io->op == DISK_DISCARD);
    if (io->op != DISK_DISCARD && need * DISK_BLOCK > d->room)
        return -ENOSPC;
    d->room += io->op == DISK_DISCARD ? need * DISK_BLOCK : -(need * DISK_BLOCK);
    d->hole_writes += io->op == DISK_WRITE ? need : 0;
    for (uint64_t i = first; i < end; i++)
        d->backed[i] = io->op != DISK_DISCARD;
    return 0;
}

static void sim_disk_submit(struct disk *base, struct disk_io *io)
{
    static const uint64_t delays_us[][2] = {
        [DISK_READ] = {30, 150}, [DISK_WRITE] = {20, 200},   [DISK_FLUSH] = {50, 500},
        [DISK_ZERO] = {50, 300}, [DISK_DISCARD] = {50, 300},
    };
    struct sim_opened *o = container_of(base, struct sim_opened, base);
    struct sim_node *n = sim_node_of(base->rt);
    if (n->dying)
        return; /* came after the end */
    struct sim_io *x = calloc(1, sizeof(*x));
    ASSERT(x);
    x->opened = o;
    x->io = io;
    x->flushes_through = o->disk->completed_count;
    if ((o->flags & DISK_OPEN_READ_ONLY) && class_of(io->op) == CLASS_WRITE)
        x->result = -EIO;
    list_push_back(&o->in_flight, &x->link);
    uint64_t unit_ns = NS_PER_US * o->disk->slowness;
    sim_schedule(n->sim, &x->timer, io_fire, delays_us[io->op][0] * unit_ns,
                 delays_us[io->op][1] * unit_ns);
    int r = meet_fault(o, io->op);
    if (r == 0)
        r = take_room(o->disk, io);
    if (r < 0)
        x->result = r;
}

static void sim_disk_close(struct disk *base)
{
    struct sim_opened *o = container_of(base, struct sim_opened, base);
    ASSERT(list_empty(&o->in_flight));
    if (o->flags & DISK_OPEN_EXCLUSIVE)
        o->disk->locked = false;
    list_remove(&o->link);
    free(base->name);
    free(o);
}

int sim_disk_open(struct rt *rt, const char *path, unsigned flags, uint64_t size, struct disk **ret)
{
    static const struct disk_ops ops = {.submit = sim_disk_submit, .close = sim_disk_close};
    struct sim_node *n = sim_node_of(rt);
    if (flags & DISK_OPEN_CREATE) {
        int r = sim_disk_new(n->sim, path, size, DISK_WRITE_BACK);
        if (r < 0)
            return r;
    }
    struct sim_disk *d = find_disk(n->sim, path);
    if (!d)
        return -ENOENT;
    if ((flags & DISK_OPEN_EXCLUSIVE) && d->locked)
        return -EBUSY;
    struct sim_opened *o = calloc(1, sizeof(*o));
    char *name = strdup(path);
    ASSERT(o && name);
    o->base = (struct disk){.ops = &ops,
                            .rt = rt,
                            .size = d->size,
                            .kind = d->discard_bytes > 0 ? DISK_DEVICE : DISK_FILE,
                            .discard_bytes = d->discard_bytes,
                            .sparse = d->backed != NULL,
                            .durability = d->durability,
                            .name = name};
    o->disk = d;
    o->flags = flags;
    list_init(&o->in_flight);
    list_push_back(&n->opened, &o->link);
    if (flags & DISK_OPEN_EXCLUSIVE)
        d->locked = true;
    *ret = &o->base;
    return 0;
}

/* --- the tests' view --- */

int sim_disk_new(struct sim *s, const char *path, uint64_t size, enum disk_durability durability)
{
    if (size == 0 || size % DISK_BLOCK)
        return -EINVAL;
    if (find_disk(s, path))
        return -EEXIST;
    struct sim_disk *d = calloc(1, sizeof(*d));
    ASSERT(d);
    d->path = strdup(path);
    d->bytes = calloc(1, size);
    d->durable = calloc(1, size);
    if (!d->path || !d->bytes || !d->durable) {
        free(d->path);
        free(d->bytes);
        free(d->durable);
        free(d);
        return -ENOMEM;
    }
    d->size = size;
    d->slowness = 1;
    d->durability = durability;
    list_init(&d->unflushed);
    list_init(&d->forgotten);
    list_push_back(&s->disks, &d->link);
    return 0;
}

void sim_disks_free(struct sim *s)
{
    struct sim_disk *d, *tmp;
    list_for_each_safe (d, tmp, &s->disks, link) {
        flush_through(d, UINT64_MAX);
        revert(d, &d->forgotten);
        free(d->path);
        free(d->bytes);
        free(d->durable);
        free(d->backed);
        free(d);
    }
}

void sim_disk_sparse(struct sim *s, const char *path, uint64_t room)
{
    struct sim_disk *d = find_disk(s, path);
    ASSERT(d);
    if (!d->backed)
        d->backed = calloc(d->size / DISK_BLOCK, sizeof(*d->backed));
    ASSERT(d->backed);
    d->room = room;
}

void sim_disk_device(struct sim *s, const char *path, uint32_t unit)
{
    struct sim_disk *d = find_disk(s, path);
    ASSERT(d && unit % DISK_BLOCK == 0);
    d->discard_bytes = unit;
}

uint64_t sim_disk_hole_writes(struct sim *s, const char *path)
{
    struct sim_disk *d = find_disk(s, path);
    ASSERT(d);
    return d->hole_writes;
}

uint8_t *sim_disk_bytes(struct sim *s, const char *path)
{
    struct sim_disk *d = find_disk(s, path);
    return d ? d->bytes : NULL;
}

void sim_disk_fault(struct sim *s, const char *path, enum disk_op op, enum sim_fault fault,
                    uint64_t nth)
{
    struct sim_disk *d = find_disk(s, path);
    ASSERT(d && (nth > 0 || fault == SIM_FAULT_NONE));
    d->plans[class_of(op)] = (struct fault_plan){.fault = fault, .left = nth};
}

void sim_disk_slow(struct sim *s, const char *path, unsigned factor)
{
    struct sim_disk *d = find_disk(s, path);
    ASSERT(d && factor > 0);
    d->slowness = factor;
}

void sim_disk_honest(struct sim *s, const char *path)
{
    struct sim_disk *d = find_disk(s, path);
    ASSERT(d);
    d->honest = true;
}

void sim_disk_flip(struct sim *s, const char *path, uint64_t offset, unsigned bit)
{
    struct sim_disk *d = find_disk(s, path);
    ASSERT(d && offset < d->size);
    d->bytes[offset] ^= (uint8_t)(1u << bit % 8);
    d->durable[offset] ^= (uint8_t)(1u << bit % 8);
}

uint64_t sim_disk_op_count(struct sim *s, const char *path, enum disk_op op)
{
    struct sim_disk *d = find_disk(s, path);
    ASSERT(d);
    return d->op_counts[class_of(op)];
}
