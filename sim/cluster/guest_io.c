/* SPDX-License-Identifier: Apache-2.0 */
/*
 * I/O of guests on an open volume.
 *
 * I1 An operation belongs to the model from its sending to its end, also when its guest has lost
 *    patience and gone to another node: what a forgotten node answers late is judged, too (C4).
 */
#include "sim/cluster/guest_io.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"

#define OPEN_TRY_MAX 20

struct guest_session {
    struct work *k;
    struct volume_model *m;
    struct opened opened;
    unsigned running; /* I/O not ended */
    unsigned fibers;
    unsigned ops;  /* left */
    bool given_up; /* its node does not answer */
    struct waitq changed;
};

struct io {
    struct call call;
    struct guest_session *s;
    enum work_kind kind;
    struct piece piece;
    uint64_t id, value, process, begun_at;
    uint8_t *buffer;
    bool zero_no_hole;
    bool forgotten; /* frees itself */
    struct content_read read;
};

static uint64_t dice(struct guest_session *s, uint64_t below)
{
    return draw(&s->k->random, below);
}

/* --- one operation --- */

static fiber_fn int io_carry_out(struct node *n, void *arg)
{
    struct io *io = arg;
    struct volume *v = io->s->opened.volume;
    uint64_t offset = (uint64_t)io->piece.first * UNIT;
    uint32_t length = io->piece.count * UNIT;
    switch (io->kind) {
    case WORK_READ:
        return volume_read(v, offset, length, io->buffer);
    case WORK_WRITE:
        return volume_write(v, offset, length, io->buffer);
    case WORK_ZERO:
        return volume_zero(v, offset, length, io->zero_no_hole ? VOLUME_ZERO_NO_HOLE : 0);
    case WORK_DISCARD:
        return volume_discard(v, offset, length);
    default:
        return volume_flush(v);
    }
}

static void io_free(struct io *io)
{
    free(io->buffer);
    free(io);
}

static void judge(struct io *io, int r)
{
    struct work *k = io->s->k;
    struct content *c = &io->s->m->content;
    const char *wrong = NULL;
    if (io->kind == WORK_READ && r == 0)
        wrong = content_read_end(c, &io->read, io->buffer, &k->view);
    else if (io->kind == WORK_READ)
        content_read_drop(&io->read);
    else if (io->kind != WORK_FLUSH)
        wrong = content_end(c, io->piece, io->id,
                            r == 0         ? CONTENT_ANSWERED
                            : r == -ENOSPC ? CONTENT_REFUSED
                                           : CONTENT_UNANSWERED,
                            io->process, io->begun_at, &k->view);
    if (wrong)
        world_wrong(k->w, "%s on node %s, process %" PRIu64 ", begun at %.6f: %s", io->s->m->name,
                    io->s->opened.node->name, io->process, (double)io->begun_at / 1e9, wrong);
}

static bool may_fail_so(const struct plan *p, int r)
{
    if (r == -EUCLEAN)
        return p->faults[FAULT_ROT] || p->faults[FAULT_LYING_DISK];
    if (r == -EIO)
        return p->faults[FAULT_READ_ERROR] || p->faults[FAULT_IO_ERROR];
    return r == -EOWNERDEAD || r == -ECANCELED || r == -ENOSPC;
}

static void on_io_end(struct call *call)
{
    struct io *io = container_of(call, struct io, call);
    struct guest_session *s = io->s;
    struct world *w = s->k->w;
    int r = call->result;
    static const char *const names[] = {"read", "write", "zero", "discard", "flush"};
    world_note(w, "%s on node %s: %s %u+%u id %" PRIu64 ": %s", s->m->name, s->opened.node->name,
               names[io->kind - WORK_READ], io->piece.first, io->piece.count, io->id,
               r ? err_text(r) : "ok");
    if (r < 0 && !may_fail_so(&w->plan, r))
        world_wrong(w, "%s of %s on node %s: %s", names[io->kind - WORK_READ], s->m->name,
                    s->opened.node->name, err_text(r));
    w->stats.unanswered += r < 0 && r != -ENOSPC;
    w->stats.refused += r == -ENOSPC;
    judge(io, r);
    s->running--;
    waitq_wake_all(&s->changed);
    if (io->forgotten)
        io_free(io);
}

static bool choose_piece(struct guest_session *s, struct io *io)
{
    const struct plan *p = &s->k->w->plan;
    uint32_t units = (uint32_t)(s->m->content.size / UNIT);
    uint32_t count = 1 + (uint32_t)dice(s, p->io_max / UNIT), first = (uint32_t)dice(s, units);
    unsigned shape = (unsigned)dice(s, 6);
    if (shape == 2) { /* where others are */
        first = (uint32_t)dice(s, MIN(units, 16u));
    }
    if (shape == 0 || io->kind == WORK_DISCARD) {
        first = ALIGN_DOWN(first, 8u);
        count = ALIGN_UP(count, 8u);
    }
    if (shape == 1 || (io->kind == WORK_DISCARD && shape > 3)) { /* a whole object, or more */
        first = ALIGN_DOWN(first, 128u);
        count = 128 * (1 + (uint32_t)dice(s, 2));
    }
    count = MIN(count, units - first);
    if (io->kind == WORK_DISCARD && (count % 8 || first % 8) && first + count != units)
        return false;
    io->piece = (struct piece){first, count};
    return io->kind == WORK_READ || content_may_change(&s->m->content, io->piece);
}

static void io_prepare(struct guest_session *s, struct io *io)
{
    struct content *c = &s->m->content;
    size_t bytes = (size_t)io->piece.count * UNIT;
    io->id = ++s->k->next_id;
    io->begun_at = sim_now(s->k->w->sim);
    io->process = s->opened.carrier;
    if (io->kind == WORK_READ || io->kind == WORK_WRITE) {
        io->buffer = aligned_alloc(4096, ALIGN_UP(bytes, (size_t)4096));
        ASSERT(io->buffer);
        memset(io->buffer, 0xee, bytes);
    }
    if (io->kind == WORK_READ) {
        content_read_begin(c, &io->read, io->piece, io->process, io->begun_at);
        s->k->w->stats.units_read += io->piece.count;
        return;
    }
    if (io->kind == WORK_FLUSH)
        return;
    io->value = io->kind == WORK_WRITE ? io->id : 0;
    if (io->kind == WORK_WRITE)
        content_fill(io->buffer, io->piece.first, io->piece.count, io->value);
    content_begin(c, io->piece, io->id, io->value, io->process);
    if (s->m->taking)
        content_add(&s->m->taking->content, io->piece, io->value);
}

/* False: nothing could be sent. */
static fiber_fn void io_once(struct guest_session *s, enum work_kind kind)
{
    struct world *w = s->k->w;
    struct io *io = calloc(1, sizeof(*io));
    ASSERT(io);
    io->s = s;
    io->kind = kind;
    io->zero_no_hole = dice(s, 6) == 0;
    if (kind != WORK_FLUSH && !choose_piece(s, io)) {
        free(io);
        return;
    }
    io_prepare(s, io);
    io->call = (struct call){.fn = io_carry_out, .arg = io, .on_end = on_io_end};
    w->stats.operations++;
    w->stats.io++;
    w->stats.reads += kind == WORK_READ;
    w->stats.writes += kind == WORK_WRITE;
    s->running++;
    call_begin(&io->call, s->opened.node);
    uint64_t patience = (1 + dice(s, 30)) * w->plan.timeout_ns / 4;
    if (call_wait(w, &io->call, w->healing ? UINT64_MAX : sim_now(w->sim) + patience) < 0) {
        world_note(w, "%s on node %s: lost patience with id %" PRIu64, s->m->name,
                   s->opened.node->name, io->id);
        s->given_up = true;
        io->forgotten = true;
        w->stats.moved++;
        return;
    }
    s->given_up = s->given_up || (io->call.result < 0 && io->call.result != -ENOSPC);
    io_free(io);
}

/* --- a session --- */

static enum work_kind choose(struct guest_session *s)
{
    const struct plan *p = &s->k->w->plan;
    unsigned total = 2; /* for a read and a write, whatever the weights */
    for (unsigned i = WORK_SNAPSHOT; i < WORK_END; i++)
        total += p->weights[i];
    uint64_t pick = dice(s, total);
    for (unsigned i = WORK_SNAPSHOT; i < WORK_END; i++) {
        if (pick < p->weights[i])
            return (enum work_kind)i;
        pick -= p->weights[i];
    }
    return pick ? WORK_READ : WORK_WRITE;
}

static bool goes_on(const struct guest_session *s)
{
    return s->ops > 0 && !s->given_up && !s->k->w->healing && node_up(s->opened.node) &&
           s->opened.node->process == s->opened.process;
}

static fiber_fn void io_main(void *arg)
{
    struct guest_session *s = arg;
    while (goes_on(s)) {
        enum work_kind kind = choose(s);
        s->ops--;
        if (s->k->left > 0)
            s->k->left--;
        if (kind == WORK_SNAPSHOT) {
            if (dice(s, 4) == 0)
                work_snapshot(s->k, s->m, s->opened.node);
        } else {
            io_once(s, kind);
        }
        if (dice(s, 4) == 0)
            fiber_sleep(s->k->w->rt, dice(s, 4 * s->k->w->plan.think_ns));
    }
    s->fibers--;
    waitq_wake_all(&s->changed);
}

/* When the last operation has ended: also long after its guest has gone. */
static fiber_fn void end_main(void *arg)
{
    struct guest_session *s = arg;
    while (s->running > 0)
        waitq_wait(&s->changed);
    work_close(&s->opened);
    s->m->users--;
    s->k->w->running--;
    free(s);
}

static fiber_fn bool try_open(struct work *k, struct guest_session *s)
{
    for (unsigned i = 0; i < OPEN_TRY_MAX && !k->w->healing; i++) {
        int r = work_try_open(k, s->m->name, &s->opened);
        if (r == 0)
            return true;
        if (r == -ENOENT)
            world_wrong(k->w, "volume %s is missing", s->m->name);
        fiber_sleep(k->w->rt, dice(s, k->w->plan.timeout_ns / 4));
    }
    return false;
}

fiber_fn void guest_use(struct work *k, struct volume_model *m)
{
    struct guest_session *s = calloc(1, sizeof(*s));
    ASSERT(s);
    s->k = k;
    s->m = m;
    waitq_init(&s->changed);
    m->users++;
    if (!try_open(k, s)) {
        m->users--;
        free(s);
        return;
    }
    if (s->opened.size != m->content.size)
        world_wrong(k->w, "%s has %" PRIu64 " bytes, not %" PRIu64, m->name, s->opened.size,
                    m->content.size);
    s->ops = 1 + (unsigned)dice(s, 60);
    for (unsigned i = 0; i < k->w->plan.depth; i++) {
        s->fibers++;
        ASSERT(fiber_spawn(k->w->rt, "io", io_main, s) == 0);
    }
    while (s->fibers > 0)
        waitq_wait(&s->changed);
    k->w->running++;
    ASSERT(fiber_spawn(k->w->rt, "end", end_main, s) == 0);
}
