/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The asking side of forwarding: handles whose volume another node owns.
 *
 * A handle is attached to the owner (`handle` is its number there), or it is looking for the
 * present owner (`resolving`), which may turn out to be this node: then v->in is set, for good, and
 * everything goes on there. Requests loop until one owner has answered them.
 *
 * FA1 `changes` has the requests that hold an id of the present attachment and are not answered, by
 *     id: the first one is the floor. A new attachment begins with none.
 * FA2 `held`: no request gets an id and none that has none is sent; those that have one go on.
 * FA3 One fiber at a time resolves, one at a time moves the volume here; the handle is not freed
 *     before they have ended.
 */
#include "volume/forward.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "volume/handle.h"

#define LOG_MODULE "volume"

#define PAUSE_MIN_NS   (5 * NS_PER_MS)
#define PAUSE_MAX_NS   (200 * NS_PER_MS)
#define OPEN_WAIT_NS   (20 * NS_PER_S) /* that opening tries to reach the owner */
#define MOVE_MIN_NS    (2 * NS_PER_S)  /* between two attempts to get the volume */
#define MOVE_MAX_NS    (60 * NS_PER_S)
#define SENT_COUNT_MAX 64u        /* requests of one handle under way … */
#define SENT_BYTES_MAX (4u << 20) /* … and their data: less than the owner has room for */
#define PIECE_WIDTH    4u
#define ZERO_PIECE     (64u << 20) /* one message keeps the owner busy for a moment only (FS3) */

static_assert(SENT_COUNT_MAX <= FORWARD_WINDOW, "ids are never farther apart than the window");

struct forward {
    struct list link; /* forward_service.forwards */
    struct volumes *vs;
    struct volume *v;
    char name[VOLUME_NAME_SIZE];
    struct session owner; /* that it is or was last attached to, or tries to */
    uint16_t node;
    uint64_t handle; /* 0: not attached */
    uint64_t wanted; /* handle of an attachment whose answer we do not have, 0 none */
    uint64_t size;
    uint32_t object_size;
    uint64_t last_id;
    struct list changes; /* struct op: FA1 */
    bool resolving, held, moving, closing;
    int failed;                      /* 0, or why there is no owner to be found any more */
    uint64_t move_ns, move_pause_ns; /* next attempt not before; pause after that */
    unsigned sent_count;
    size_t sent_bytes;
    struct waitq changed;
};

/* One request; on the stack of its fiber. */
struct op {
    enum peer_forward_kind kind;
    uint64_t offset, length;
    uint32_t flags;
    void *data;                   /* READ, WRITE */
    struct volume_run **ret_runs; /* MAP */
    size_t *ret_run_count;
    /* private */
    struct list link; /* forward.changes */
    uint64_t handle, id;
};

static struct forward *forward_new(struct volumes *vs, const char *name, struct volume *v)
{
    struct forward *f = calloc(1, sizeof(*f));
    if (!f)
        return NULL;
    f->vs = vs;
    f->v = v;
    strcpy(f->name, name);
    list_init(&f->changes);
    waitq_init(&f->changed);
    f->move_pause_ns = MOVE_MIN_NS;
    list_push_back(&vs->forward.forwards, &f->link);
    return f;
}

static void wake(struct forward *f)
{
    waitq_wake_all(&f->changed);
    waitq_wake_all(&f->vs->forward.changed);
}

static void forward_free(struct forward *f)
{
    ASSERT(list_empty(&f->changes) && !f->resolving && !f->held && !f->moving);
    list_remove(&f->link);
    waitq_wake_all(&f->vs->instances_changed);
    free(f);
}

uint64_t forward_size(const struct forward *f)
{
    return f->size;
}

uint32_t forward_object_size(const struct forward *f)
{
    return f->object_size;
}

const char *forward_name(const struct forward *f)
{
    return f->name;
}

static bool owner_is_listed(const struct forward *f)
{
    return map_node_by_session(cluster_map(f->vs->cluster), f->owner) != NULL;
}

/* --- one message --- */

enum outcome {
    DONE,  /* the owner's result */
    AGAIN, /* no answer, or no room: the same again, a little later */
    LOST,  /* it is not the owner, or gone */
    ENDED, /* this node stops */
};

/* One question and its answer. DONE: *ret_result and *ret are filled, and `runs` is at what follows
 * in the answer's body, which the caller frees. */
struct ask {
    struct peer_forward q;
    const void *payload; /* of WRITE */
    struct object_forward_answer answer;
    struct dec runs;
    struct peer_forward_reply reply;
    int result;
};

static enum outcome judge(const struct forward *f, struct ask *a)
{
    if (a->answer.body.length > 0) {
        dec_init(&a->runs, a->answer.body.data, a->answer.body.length);
        peer_forward_reply_decode(&a->runs, &a->reply);
        if (!a->runs.error)
            return DONE;
        log_warn("node %u answers with what cannot be understood for volume %s", f->node, f->name);
        return AGAIN;
    }
    switch (a->result) {
    case -ECANCELED:
        return rt_stopping(f->vs->rt) || f->vs->stopping ? ENDED : LOST;
    case -ESTALE:
        return LOST;
    default: /* -ECONNRESET, -EAGAIN, -ENOMEM … */
        return owner_is_listed(f) ? AGAIN : LOST;
    }
}

/* a->answer.body is the caller's to enc_done(). */
static fiber_fn enum outcome ask(struct forward *f, struct ask *a)
{
    struct enc body;
    enc_init(&body);
    enc_init(&a->answer.body);
    peer_forward_encode(&a->q, &body);
    const struct object_forward m = {
        .node = f->node,
        .body = body.data,
        .payload = a->payload,
        .body_length = (uint32_t)body.length,
        .payload_length = a->payload ? (uint32_t)a->q.length : 0,
    };
    a->result = body.error ? body.error : object_forward(f->vs->objects, &m, &a->answer);
    enc_done(&body);
    return judge(f, a);
}

/* A message without data, asked until there is an outcome. */
static fiber_fn enum outcome ask_until_done(struct forward *f, enum peer_forward_kind kind,
                                            uint64_t handle, int *ret_result)
{
    uint64_t pause = PAUSE_MIN_NS;
    for (;;) {
        struct ask a = {.q = {.kind = kind, .handle = handle}};
        enum outcome o = ask(f, &a);
        enc_done(&a.answer.body);
        *ret_result = a.result;
        if (o != AGAIN)
            return o;
        if (fiber_sleep(f->vs->rt, pause) < 0)
            return ENDED;
        pause = MIN(2 * pause, PAUSE_MAX_NS);
    }
}

/* --- finding the owner --- */

static void note_reply(struct forward *f, const struct peer_forward_reply *r)
{
    if (r->object_size == 0)
        return;
    f->size = r->size;
    f->object_size = r->object_size;
}

/* 0: attached. -EAGAIN: not now, look again. */
static fiber_fn int attach(struct forward *f, struct session owner)
{
    const struct map_node *n = map_node_by_session(cluster_map(f->vs->cluster), owner);
    if (!n)
        return -EAGAIN;
    if (f->wanted == 0 || f->owner.value != owner.value)
        f->wanted = ++f->vs->forward.last_handle;
    f->owner = owner;
    f->node = n->number;
    struct ask a = {.q = {.kind = PEER_FORWARD_ATTACH, .handle = f->wanted}};
    strcpy(a.q.name, f->name);
    enum outcome o = ask(f, &a);
    enc_done(&a.answer.body);
    if (o == ENDED)
        return -ECANCELED;
    if (o == LOST)
        f->wanted = 0; /* certainly not attached */
    if (o != DONE || a.result)
        return -EAGAIN;
    ASSERT(list_empty(&f->changes)); /* FA1 */
    f->handle = f->wanted;
    f->wanted = 0;
    f->last_id = 0;
    note_reply(f, &a.reply);
    log_info("volume %s is open on node %u: requests go there", f->name, f->node);
    return 0;
}

/* 0: attached or local. -EAGAIN, -EBUSY: look again. */
static fiber_fn int find_owner(struct forward *f, struct volume_error *ret_error)
{
    struct instance *in;
    int r = instance_open(f->vs, f->name, NULL, true, &in, ret_error);
    if (r == 0) {
        log_info("volume %s is served here now", f->name);
        f->v->in = in;
        return 0;
    }
    return r == -EBUSY && ret_error->owner.value ? attach(f, ret_error->owner) : r;
}

static fiber_fn void resolve(struct forward *f)
{
    uint64_t pause = PAUSE_MIN_NS;
    ASSERT(f->resolving && f->handle == 0 && !f->v->in);
    while (!f->closing) {
        struct volume_error error = {0};
        int r = find_owner(f, &error);
        if (r == 0)
            break;
        if (r == -ENOENT) {
            log_error("volume %s is gone while it was in use: %s", f->name, error.text);
            f->failed = -EIO;
            break;
        }
        if (fiber_sleep(f->vs->rt, pause) < 0)
            break;
        pause = MIN(2 * pause, PAUSE_MAX_NS);
    }
    f->resolving = false;
    wake(f);
}

static fiber_fn void resolve_main(void *arg)
{
    resolve(arg);
}

/* FW3: the attachment is over. */
static void lose(struct forward *f, uint64_t handle)
{
    if (f->handle != handle || f->v->in)
        return;
    ASSERT(!f->resolving);
    f->handle = 0;
    while (!list_empty(&f->changes)) {
        struct op *op = list_first(&f->changes, struct op, link);
        list_remove(&op->link);
    }
    /* Also when nothing is asked just now: the volume is open, so somebody has to own it. Without
     * memory the next request does it. */
    f->resolving = fiber_spawn(f->vs->rt, "volume-forward", resolve_main, f) == 0;
    wake(f);
}

void forward_look(struct volumes *vs)
{
    struct forward *f;
    list_for_each (f, &vs->forward.forwards, link) {
        if (f->handle && !f->held && !owner_is_listed(f))
            lose(f, f->handle);
    }
}

/* --- the volume moves here (FW4) --- */

static bool same_volume(const struct forward *a, const struct forward *b)
{
    return strcmp(a->name, b->name) == 0 && !a->v->in;
}

static bool somebody_moves(const struct forward *f)
{
    const struct forward *other;
    list_for_each (other, &f->vs->forward.forwards, link) {
        if (same_volume(other, f) && (other->moving || other->held))
            return true;
    }
    return false;
}

static void hold_all(struct forward *f, bool held)
{
    struct forward *other;
    list_for_each (other, &f->vs->forward.forwards, link) {
        if (strcmp(other->name, f->name) == 0) {
            other->held = held;
            wake(other);
        }
    }
    if (!held)
        forward_look(f->vs); /* what it passed over meanwhile */
}

static bool all_answered(const struct forward *f)
{
    const struct forward *other;
    list_for_each (other, &f->vs->forward.forwards, link) {
        if (same_volume(other, f) && !list_empty(&other->changes))
            return false;
    }
    return true;
}

static void lose_all(struct forward *f)
{
    struct forward *other;
    list_for_each (other, &f->vs->forward.forwards, link) {
        if (same_volume(other, f) && other->handle && other->owner.value == f->owner.value)
            lose(other, other->handle);
    }
}

static fiber_fn void move_here(struct forward *f)
{
    uint64_t handle = f->handle;
    int result;
    if (ask_until_done(f, PEER_FORWARD_PREPARE, handle, &result) != DONE || result)
        return;
    hold_all(f, true);
    while (!all_answered(f) && f->handle == handle && !f->closing && !rt_stopping(f->vs->rt))
        waitq_wait_until(&f->vs->forward.changed, f->vs->rt,
                         clock_now(f->vs->rt) + PAUSE_MAX_NS); /* rt_stop() wakes nobody */
    if (all_answered(f) && f->handle == handle && !f->closing) {
        enum outcome o = ask_until_done(f, PEER_FORWARD_RELEASE, handle, &result);
        if (o == LOST || (o == DONE && result == 0))
            lose_all(f);
    }
    hold_all(f, false);
}

static fiber_fn void move_main(void *arg)
{
    struct forward *f = arg;
    if (f->handle)
        move_here(f);
    f->moving = false;
    wake(f);
}

/* The owner says that we may have the volume. */
static void consider_offer(struct forward *f)
{
    uint64_t now = clock_now(f->vs->rt);
    if (f->closing || f->resolving || !f->handle || now < f->move_ns || somebody_moves(f))
        return;
    f->move_ns = now + f->move_pause_ns;
    f->move_pause_ns = MIN(2 * f->move_pause_ns, MOVE_MAX_NS);
    f->moving = fiber_spawn(f->vs->rt, "volume-move", move_main, f) == 0;
}

/* --- requests --- */

static bool is_change(const struct op *op)
{
    return op->kind == PEER_FORWARD_WRITE || op->kind == PEER_FORWARD_ZERO ||
           op->kind == PEER_FORWARD_DISCARD;
}

/* FA1 */
static uint64_t floor_of(const struct forward *f)
{
    return list_empty(&f->changes) ? f->last_id + 1 : list_first(&f->changes, struct op, link)->id;
}

static void give_id(struct forward *f, struct op *op)
{
    ASSERT(list_empty(&op->link));
    op->id = ++f->last_id;
    list_push_back(&f->changes, &op->link);
}

/* Waits until the request can be sent (0, with v->in NULL), or carried out here (0, v->in set). */
static fiber_fn int ready(struct forward *f, struct op *op)
{
    for (;;) {
        if (f->v->in)
            return 0;
        if (f->failed)
            return f->failed;
        bool begun = op->handle != 0 && op->handle == f->handle;
        bool full = is_change(op) && f->last_id + 1 - floor_of(f) >= FORWARD_WINDOW;
        if (f->resolving || (f->handle && !begun && (f->held || full))) { /* FA2 */
            waitq_wait(&f->changed);
            continue;
        }
        if (f->handle) {
            if (!begun && is_change(op))
                give_id(f, op);
            op->handle = f->handle;
            return 0;
        }
        if (rt_stopping(f->vs->rt))
            return -ECANCELED;
        f->resolving = true;
        resolve(f);
    }
}

static int take_runs(struct ask *a, struct op *op)
{
    size_t count = a->reply.run_count;
    struct volume_run *runs = calloc(MAX(count, 1), sizeof(*runs));
    uint64_t at = op->offset;
    if (!runs)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        struct peer_forward_run run;
        peer_forward_run_decode(&a->runs, &run);
        if (a->runs.error || run.length > op->offset + op->length - at) {
            free(runs);
            return -EIO;
        }
        runs[i] = (struct volume_run){.offset = at, .length = run.length, .mapped = run.mapped};
        at += run.length;
    }
    *op->ret_runs = runs;
    *op->ret_run_count = count;
    return 0;
}

/* What the owner said, as the result of the request. */
static int take_answer(struct forward *f, struct ask *a, struct op *op)
{
    note_reply(f, &a->reply);
    if (a->reply.offer)
        consider_offer(f);
    if (a->result)
        return a->result;
    if (op->kind == PEER_FORWARD_READ && a->answer.payload_length != op->length)
        return -EIO;
    return op->kind == PEER_FORWARD_MAP ? take_runs(a, op) : 0;
}

static fiber_fn enum outcome send(struct forward *f, struct op *op, int *ret)
{
    struct ask a = {
        .q = {.kind = op->kind,
              .handle = op->handle,
              .id = is_change(op) ? op->id : 0,
              .floor = is_change(op) ? floor_of(f) : 0,
              .offset = op->offset,
              .length = op->length,
              .flags = op->flags},
        .payload = op->kind == PEER_FORWARD_WRITE ? op->data : NULL,
    };
    if (op->kind == PEER_FORWARD_READ) {
        a.answer.payload = op->data;
        a.answer.payload_size = (uint32_t)op->length;
    }
    enum outcome o = ask(f, &a);
    *ret = o == DONE ? take_answer(f, &a, op) : o == ENDED ? -ECANCELED : 0;
    enc_done(&a.answer.body);
    return o;
}

static fiber_fn int run_here(struct volume *v, const struct op *op)
{
    switch (op->kind) {
    case PEER_FORWARD_READ:
        return volume_read(v, op->offset, (uint32_t)op->length, op->data);
    case PEER_FORWARD_WRITE:
        return volume_write(v, op->offset, (uint32_t)op->length, op->data);
    case PEER_FORWARD_ZERO:
        return volume_zero(v, op->offset, op->length, op->flags);
    case PEER_FORWARD_DISCARD:
        return volume_discard(v, op->offset, op->length);
    case PEER_FORWARD_FLUSH:
        return volume_flush(v);
    case PEER_FORWARD_MAP:
        return volume_map(v, op->offset, op->length, op->flags, op->ret_runs, op->ret_run_count);
    default:
        ASSERT(!"no such request");
        return -EINVAL;
    }
}

static fiber_fn void room_enter(struct forward *f, size_t bytes)
{
    while (f->sent_count >= SENT_COUNT_MAX ||
           (f->sent_bytes > 0 && f->sent_bytes + bytes > SENT_BYTES_MAX))
        waitq_wait(&f->changed);
    f->sent_count++;
    f->sent_bytes += bytes;
}

/* Sends until there is an answer: true, *ret. False: it is to be carried out here. */
static fiber_fn bool send_until_done(struct forward *f, struct op *op, int *ret)
{
    uint64_t pause = PAUSE_MIN_NS;
    for (;;) {
        *ret = ready(f, op);
        if (*ret || f->v->in)
            return *ret != 0;
        uint64_t handle = op->handle;
        enum outcome o = send(f, op, ret);
        if (o == DONE || o == ENDED)
            return true;
        if (o == LOST) {
            lose(f, handle);
            continue;
        }
        if (fiber_sleep(f->vs->rt, pause) < 0) {
            *ret = -ECANCELED;
            return true;
        }
        pause = MIN(2 * pause, PAUSE_MAX_NS);
    }
}

static fiber_fn int run(struct volume *v, struct op *op)
{
    struct forward *f = v->forward;
    size_t bytes = op->data ? op->length : 0;
    int r;
    list_init(&op->link);
    room_enter(f, bytes);
    bool done = send_until_done(f, op, &r);
    list_remove(&op->link);
    f->sent_count--;
    f->sent_bytes -= bytes;
    wake(f);
    return done ? r : run_here(v, op);
}

/* --- as the calls of volume.h --- */

struct pieces {
    struct volume *v;
    enum peer_forward_kind kind;
    uint32_t size, flags;
    uint64_t offset, length;
    uint8_t *data; /* NULL: none */
};

static fiber_fn int run_piece(void *arg, unsigned i)
{
    const struct pieces *p = arg;
    uint64_t at = (uint64_t)i * p->size;
    struct op op = {
        .kind = p->kind,
        .offset = p->offset + at,
        .length = MIN(p->length - at, p->size),
        .flags = p->flags,
        .data = p->data ? p->data + at : NULL,
    };
    return run(p->v, &op);
}

/* In messages of a bounded size. */
static fiber_fn int run_pieces(struct pieces *p)
{
    unsigned count = (unsigned)((p->length + p->size - 1) / p->size);
    if (count <= 1)
        return count ? run_piece(p, 0) : 0;
    return parallel_run(p->v->forward->vs->rt, count, PIECE_WIDTH, run_piece, p);
}

fiber_fn int forward_read(struct volume *v, uint64_t offset, uint32_t length, void *buffer)
{
    struct pieces p = {v, PEER_FORWARD_READ, PEER_FORWARD_DATA_MAX, 0, offset, length, buffer};
    return run_pieces(&p);
}

fiber_fn int forward_write(struct volume *v, uint64_t offset, uint32_t length, const void *buffer)
{
    struct pieces p = {v,      PEER_FORWARD_WRITE, PEER_FORWARD_DATA_MAX, 0, offset,
                       length, (void *)buffer};
    return run_pieces(&p);
}

fiber_fn int forward_flush(struct volume *v)
{
    struct op op = {.kind = PEER_FORWARD_FLUSH};
    return run(v, &op);
}

fiber_fn int forward_zero(struct volume *v, uint64_t offset, uint64_t length, unsigned flags)
{
    struct pieces p = {v, PEER_FORWARD_ZERO, ZERO_PIECE, flags, offset, length, NULL};
    return run_pieces(&p);
}

fiber_fn int forward_discard(struct volume *v, uint64_t offset, uint64_t length)
{
    struct pieces p = {v, PEER_FORWARD_DISCARD, ZERO_PIECE, 0, offset, length, NULL};
    return run_pieces(&p);
}

/* Without a limit the answer may take several messages; runs of one kind are joined. */
fiber_fn int forward_map(struct volume *v, uint64_t offset, uint64_t length, unsigned runs_max,
                         struct volume_run **ret, size_t *ret_count)
{
    struct volume_run *all = NULL;
    size_t count = 0;
    int r = 0;
    uint64_t at = offset, end;
    if (!add_u64(offset, length, &end))
        return -EINVAL;
    do {
        struct volume_run *runs = NULL;
        size_t n = 0;
        struct op op = {
            .kind = PEER_FORWARD_MAP,
            .offset = at,
            .length = end - at,
            .flags = MIN(runs_max ? runs_max : PEER_FORWARD_RUNS_MAX, PEER_FORWARD_RUNS_MAX),
            .ret_runs = &runs,
            .ret_run_count = &n,
        };
        r = run(v, &op);
        struct volume_run *more = r ? NULL : reallocarray(all, count + n + 1, sizeof(*more));
        if (!r && !more)
            r = -ENOMEM;
        if (!r) {
            all = more;
            for (size_t i = 0; i < n; i++) {
                if (count && all[count - 1].mapped == runs[i].mapped)
                    all[count - 1].length += runs[i].length;
                else
                    all[count++] = runs[i];
                at = runs[i].offset + runs[i].length;
            }
        }
        free(runs);
        if (n == 0)
            break;
    } while (!r && at < end && (runs_max == 0 || count < runs_max));
    if (r) {
        free(all);
        return r;
    }
    *ret = all;
    *ret_count = count;
    return 0;
}

/* --- opening and closing --- */

/* FW2: the owner's side must learn of it, or it keeps the volume open for us. */
static fiber_fn void detach(struct forward *f)
{
    uint64_t handle = f->handle ? f->handle : f->wanted;
    int result;
    if (handle)
        ask_until_done(f, PEER_FORWARD_DETACH, handle, &result);
    f->handle = f->wanted = 0;
}

fiber_fn void forward_close(struct volume *v)
{
    struct forward *f = v->forward;
    f->closing = true;
    wake(f);
    while (f->moving || f->resolving || f->held) /* FA3 */
        waitq_wait(&f->changed);
    if (v->in)
        instance_release(v->in, true);
    else
        detach(f);
    forward_free(f);
}

fiber_fn int forward_open(struct volumes *vs, const char *name, struct volume *v,
                          struct volume_error *ret_error)
{
    uint64_t deadline = clock_now(vs->rt) + OPEN_WAIT_NS, pause = PAUSE_MIN_NS;
    struct forward *f = forward_new(vs, name, v);
    if (!f)
        return volume_error_of(ret_error, -ENOMEM, "open", name);
    int r;
    f->resolving = true;
    for (;;) {
        r = find_owner(f, ret_error);
        if ((r != -EAGAIN && r != -EBUSY) || clock_now(vs->rt) >= deadline)
            break;
        if (fiber_sleep(vs->rt, pause) < 0)
            break;
        pause = MIN(2 * pause, PAUSE_MAX_NS);
    }
    f->resolving = false;
    wake(f);
    if (r == 0) {
        v->forward = f;
        return 0;
    }
    if (r == -EAGAIN)
        r = volume_error_set(ret_error, -EBUSY,
                             "volume %s is open on another node, which cannot be reached from "
                             "here now; see `dog node list`",
                             name);
    detach(f);
    forward_free(f);
    return r;
}
