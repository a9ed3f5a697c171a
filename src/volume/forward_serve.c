/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The owner's side of forwarding: handles of other nodes (guests) and what they ask.
 *
 * FS1 A guest is a user of its instance, from its attachment until it detaches, its session leaves
 *     the map, the instance fails, or the volume is handed over. It goes when none of its requests
 *     is running any more.
 * FS2 A guest that is leaving takes nothing more: -ESTALE, not carried out.
 * FS3 What a dead node had asked runs to its end before anybody opens the volume anew: its client
 *     may come back by another way, ask the same again and go on, and must not find the old request
 *     done once more on top of that.
 */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "volume/forward.h"
#include "volume/handle.h"

#define LOG_MODULE "volume"

struct guest {
    struct list link; /* forward_service.guests */
    struct session session;
    uint16_t node;
    uint64_t handle;
    struct instance *in; /* a user of it */
    unsigned running;    /* requests */
    bool leaving;
    struct forward_window window;
};

static struct guest *guest_find(struct volumes *vs, struct session session, uint64_t handle)
{
    struct guest *g;
    list_for_each (g, &vs->forward.guests, link) {
        if (g->session.value == session.value && g->handle == handle)
            return g;
    }
    return NULL;
}

static bool has_guests(const struct volumes *vs, const struct instance *in)
{
    const struct guest *g;
    list_for_each (g, &vs->forward.guests, link) {
        if (!in || g->in == in)
            return true;
    }
    return false;
}

/* FS1 */
static fiber_fn void guest_go_if_quiet(struct guest *g)
{
    struct instance *in = g->in;
    struct volumes *vs = in->vs;
    if (!g->leaving || g->running > 0)
        return;
    list_remove(&g->link);
    free(g);
    ASSERT(in->remote_users > 0);
    in->remote_users--;
    waitq_wake_all(&vs->forward.changed);
    instance_release(in, true);
}

/* All guests for which fn is true leave; those with nothing running go now. */
static fiber_fn void leave_where(struct volumes *vs, bool (*fn)(const struct guest *g, void *arg),
                                 void *arg)
{
    for (;;) {
        struct guest *g, *found = NULL;
        list_for_each (g, &vs->forward.guests, link) {
            if (!g->leaving && fn(g, arg)) {
                found = g;
                break;
            }
        }
        if (!found)
            return;
        found->leaving = true;
        guest_go_if_quiet(found); /* may suspend: look anew */
    }
}

static bool is_of_instance(const struct guest *g, void *arg)
{
    return !arg || g->in == arg;
}

static bool is_unlisted(const struct guest *g, void *arg)
{
    return !map_node_by_session(arg, g->session);
}

fiber_fn void forward_evict(struct instance *in)
{
    leave_where(in->vs, is_of_instance, in);
}

bool forward_has_dead(const struct instance *in)
{
    struct volumes *vs = in->vs;
    const struct map *m = cluster_map(vs->cluster);
    const struct guest *g;
    list_for_each (g, &vs->forward.guests, link) {
        if (g->in == in && g->running > 0 && !map_node_by_session(m, g->session))
            return true;
    }
    return false;
}

/* --- coming and going --- */

static fiber_fn int attach(struct volumes *vs, const struct object_forward *m,
                           const struct peer_forward *q)
{
    struct guest *g = guest_find(vs, m->session, q->handle);
    if (g)
        return g->leaving ? -ESTALE : 0; /* the answer was lost */
    struct instance *in = instance_open_remote(vs, q->name);
    if (!in)
        return -ESTALE;
    g = guest_find(vs, m->session, q->handle) ? NULL : calloc(1, sizeof(*g));
    /* Its session may have left the map while we waited: nobody would tell us again. */
    if (!g || !map_node_by_session(cluster_map(vs->cluster), m->session)) {
        free(g);
        in->remote_users--;
        instance_release(in, true);
        return -EAGAIN;
    }
    *g = (struct guest){.session = m->session, .node = m->node, .handle = q->handle, .in = in};
    forward_window_init(&g->window);
    list_push_back(&vs->forward.guests, &g->link);
    log_info("node %u forwards requests of volume %s to us", g->node, in->name);
    return 0;
}

static fiber_fn void detach(struct guest *g)
{
    g->leaving = true;
    guest_go_if_quiet(g);
}

/* --- handing over (FW4) --- */

static bool may_have_it(const struct guest *g)
{
    const struct instance *in = g->in;
    const struct volumes *vs = in->vs;
    struct forward_view view = {
        .own_users = in->users - in->remote_users,
        .operations = in->operations,
        .nodes = 1,
        .own_idle_ns = clock_now(vs->rt) - in->own_idle_since_ns,
        .sound = in->state == INSTANCE_OPEN && !in->failed && !vs->stopping,
    };
    const struct guest *other;
    list_for_each (other, &vs->forward.guests, link) {
        if (other->in == in && other->session.value != g->session.value)
            view.nodes = 2; /* or more */
    }
    return forward_offers(&view);
}

/* What a clean close would have to do, while requests go on. */
static fiber_fn int prepare(struct guest *g)
{
    struct instance *in = g->in;
    if (!may_have_it(g))
        return -EBUSY;
    fmutex_lock(&in->settle_lock);
    int r = in->failed ? in->failed : settle_pass(in);
    fmutex_unlock(&in->settle_lock);
    return r;
}

/* g is gone when it returns 0. */
static fiber_fn int hand_over(struct guest *g)
{
    if (!may_have_it(g))
        return -EBUSY;
    struct instance *in = instance_ref(g->in);
    struct volumes *vs = in->vs;
    log_info("volume %s is handed over to node %u, which uses it", in->name, g->node);
    leave_where(vs, is_of_instance, in);
    while (has_guests(vs, in))
        waitq_wait(&vs->forward.changed);
    if (in->state == INSTANCE_OPEN && instance_is_idle(in))
        instance_close(in);
    instance_unref(in);
    return 0;
}

/* --- requests --- */

struct asked {
    const struct object_forward *m;
    const struct peer_forward *q;
    struct object_forward_answer *ret;
    struct volume_run *runs; /* MAP; owned */
    size_t run_count;
};

static fiber_fn int carry_out(struct guest *g, struct asked *a)
{
    const struct peer_forward *q = a->q;
    struct volume v = {.in = g->in};
    int r;
    switch (q->kind) {
    case PEER_FORWARD_READ:
        if (!object_forward_buffer(g->in->vs->objects, a->ret, (uint32_t)q->length))
            return -EAGAIN;
        r = volume_read(&v, q->offset, (uint32_t)q->length, a->ret->payload);
        a->ret->payload_length = r ? 0 : (uint32_t)q->length;
        return r;
    case PEER_FORWARD_WRITE:
        return volume_write(&v, q->offset, (uint32_t)q->length, a->m->payload);
    case PEER_FORWARD_ZERO:
        return volume_zero(&v, q->offset, q->length, q->flags & VOLUME_ZERO_NO_HOLE);
    case PEER_FORWARD_DISCARD:
        return volume_discard(&v, q->offset, q->length);
    case PEER_FORWARD_FLUSH:
        return volume_flush(&v);
    case PEER_FORWARD_MAP:
        return volume_map(&v, q->offset, q->length, q->flags, &a->runs, &a->run_count);
    default:
        return -EINVAL;
    }
}

/* FW1. -ESTALE: not carried out, and never will be. */
static fiber_fn int change_once(struct guest *g, struct asked *a)
{
    struct volumes *vs = g->in->vs;
    for (;;) {
        int r = -ESTALE;
        switch (forward_window_begin(&g->window, a->q->id, a->q->floor, &r)) {
        case FORWARD_BEGIN:
            r = carry_out(g, a);
            forward_window_end(&g->window, a->q->id, r);
            waitq_wake_all(&vs->forward.changed);
            return r;
        case FORWARD_RUNNING:
            waitq_wait(&vs->forward.changed);
            continue;
        case FORWARD_ENDED:
        case FORWARD_REFUSED:
            return r;
        }
    }
}

static fiber_fn int run_request(struct guest *g, struct asked *a)
{
    switch (a->q->kind) {
    case PEER_FORWARD_PREPARE:
        return prepare(g);
    case PEER_FORWARD_WRITE:
    case PEER_FORWARD_ZERO:
    case PEER_FORWARD_DISCARD:
        return change_once(g, a);
    default:
        return carry_out(g, a);
    }
}

static void answer(const struct guest *g, const struct asked *a)
{
    const struct image *image = &g->in->image;
    const struct peer_forward_reply reply = {
        .offer = may_have_it(g),
        .size = image->size,
        .object_size = image->object_size,
        .run_count = (uint32_t)a->run_count,
    };
    peer_forward_reply_encode(&reply, &a->ret->body);
    for (size_t i = 0; i < a->run_count; i++) {
        const struct peer_forward_run run = {a->runs[i].length, a->runs[i].mapped};
        peer_forward_run_encode(&run, &a->ret->body);
    }
}

static fiber_fn int serve_request(struct guest *g, struct asked *a)
{
    g->running++;
    int r = run_request(g, a);
    /* What failed because the instance did is for the next owner, maybe this node again. */
    bool failed = r < 0 && g->in->failed;
    if (failed)
        g->leaving = true;
    if (failed || r == -ESTALE)
        r = -ESTALE;
    else if (r != -EAGAIN)
        answer(g, a);
    g->running--;
    free(a->runs);
    guest_go_if_quiet(g);
    return r;
}

/* Answers those that do not need a guest, or end it. */
static fiber_fn int serve_visit(struct volumes *vs, struct asked *a)
{
    static const struct peer_forward_reply gone; /* a body, as a sign of having been carried out */
    struct guest *g = guest_find(vs, a->m->session, a->q->handle);
    int r = 0;
    if (a->q->kind == PEER_FORWARD_ATTACH) {
        r = attach(vs, a->m, a->q);
        g = r ? NULL : guest_find(vs, a->m->session, a->q->handle);
        if (!g)
            return r ? r : -ESTALE;
        answer(g, a);
        return 0;
    }
    if (!g || g->leaving)
        return -ESTALE;
    if (a->q->kind == PEER_FORWARD_DETACH)
        detach(g);
    else
        r = hand_over(g);
    peer_forward_reply_encode(&gone, &a->ret->body);
    return r;
}

static fiber_fn int dispatch(struct volumes *vs, struct asked *a)
{
    switch (a->q->kind) {
    case PEER_FORWARD_ATTACH:
    case PEER_FORWARD_DETACH:
    case PEER_FORWARD_RELEASE:
        return serve_visit(vs, a);
    default:
        break;
    }
    struct guest *g = guest_find(vs, a->m->session, a->q->handle);
    return !g || g->leaving ? -ESTALE : serve_request(g, a); /* FS2 */
}

static fiber_fn int serve(void *arg, const struct object_forward *m,
                          struct object_forward_answer *ret)
{
    struct volumes *vs = arg;
    struct peer_forward q;
    if (peer_forward_decode(m->body, m->body_length, &q) < 0 ||
        m->payload_length != (q.kind == PEER_FORWARD_WRITE ? q.length : 0))
        return -EINVAL;
    if (vs->stopping)
        return -ESTALE;
    struct asked a = {.m = m, .q = &q, .ret = ret};
    vs->forward.serving++;
    int r = dispatch(vs, &a);
    vs->forward.serving--;
    waitq_wake_all(&vs->forward.changed);
    waitq_wake_all(&vs->instances_changed);
    return r;
}

/* --- life --- */

static fiber_fn void on_map(void *arg, struct map *m)
{
    struct volumes *vs = arg;
    if (vs->stopping)
        return;
    leave_where(vs, is_unlisted, m);
    forward_look(vs);
}

int forward_start(struct volumes *vs)
{
    list_init(&vs->forward.guests);
    list_init(&vs->forward.forwards);
    waitq_init(&vs->forward.changed);
    int r = cluster_on_map(vs->cluster, on_map, vs);
    if (!r)
        objects_set_forward(vs->objects, serve, vs);
    return r;
}

fiber_fn void forward_stop(struct volumes *vs, uint64_t deadline_ns)
{
    objects_set_forward(vs->objects, NULL, NULL);
    cluster_off_map(vs->cluster, on_map, vs);
    leave_where(vs, is_of_instance, NULL);
    while (has_guests(vs, NULL) || vs->forward.serving > 0) {
        if (waitq_wait_until(&vs->forward.changed, vs->rt, deadline_ns) == -ETIMEDOUT)
            return;
    }
}
