/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening and closing images: the lease of a working one, the `use` key of a frozen one.
 *
 * L1 Opening for writing is a compare-and-set of the record: owner, term + 1, clean = no.
 * L2 A volume left unclean is taken only after its owner's session has left the map everywhere. The
 * record names a map version that listed the session, so that a node with an older map does not
 * take it for gone. L3 Then the owner reconciles its objects above S, links, drops what is owed,
 * and completes what is pending, before it serves.
 */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "volume/forward.h"
#include "volume/instance.h"
#include "volume/sweep.h"

#define LOG_MODULE "volume"

#define MAP_WAIT_NS    (15 * NS_PER_S)
#define FENCE_WAIT_NS  (60 * NS_PER_S)
#define CLOSE_AGAIN_NS (5 * NS_PER_S)

/* --- edits under the lease --- */

bool lease_is_ours(const struct instance *in, const struct registry_edit *e)
{
    const struct record_lease *l = &e->record->lease;
    return e->exists && e->record->volume == in->owner.volume && !l->clean &&
           l->session.value == cluster_session(in->vs->cluster).value &&
           l->term.value == in->owner.term.value;
}

struct lease_call {
    struct instance *in;
    registry_fn *fn;
    void *arg;
    bool lost;
};

static int lease_edit_fn(void *arg, struct registry_edit *e)
{
    struct lease_call *c = arg;
    c->lost = !lease_is_ours(c->in, e);
    return c->lost ? -ECANCELED : c->fn(c->arg, e);
}

fiber_fn int lease_edit(struct instance *in, const char *other, registry_fn *fn, void *arg)
{
    struct lease_call call = {.in = in, .fn = fn, .arg = arg};
    int r = in->failed;
    if (!r)
        r = registry_edit(service_cs(in->vs), in->name, other, lease_edit_fn, &call);
    if (call.lost || r == -ECANCELED)
        instance_fail(in, -ECANCELED,
                      call.lost ? "another node owns it" : "the cluster store is lost");
    return r;
}

/* --- taking the lease --- */

struct take {
    struct instance *in;
    uint64_t volume; /* the line: its lease may look the same as that of the line before */
    struct record_lease seen, wanted;
    bool attempted;
    bool changed; /* the record is not as it was seen: look again */
};

static bool lease_equal(const struct record_lease *a, const struct record_lease *b)
{
    return a->session.value == b->session.value && a->term.value == b->term.value &&
           a->clean == b->clean;
}

static int edit_take(void *arg, struct registry_edit *e)
{
    struct take *t = arg;
    if (t->attempted && lease_equal(&e->record->lease, &t->wanted))
        return REGISTRY_UNCHANGED;
    t->changed =
        !e->exists || e->record->volume != t->volume || !lease_equal(&e->record->lease, &t->seen);
    if (t->changed)
        return -ECANCELED;
    t->attempted = true;
    e->record->lease = t->wanted;
    return 0;
}

/* L2. 0 when the owner that the record names is no more (or is this session). */
static fiber_fn int wait_until_free(struct volumes *vs, const struct record *r,
                                    struct volume_error *ret_error)
{
    const struct record_lease *l = &r->lease;
    uint64_t now = clock_now(vs->rt);
    /* Also after a clean close: by an older map this node might take its own old copies for in
     * sync. */
    int e = cluster_wait_applied(vs->cluster, l->map_version, now + MAP_WAIT_NS);
    if (e)
        return volume_error_of(ret_error, e, "wait for the cluster map to open", r->name);
    if (l->clean || l->session.value == 0 || l->session.value == cluster_session(vs->cluster).value)
        return 0;
    const struct map_node *n = map_node_by_session(cluster_map(vs->cluster), l->session);
    if (n) {
        volume_error_set(ret_error, 0,
                         "volume %s is open on node %s; do it there, or close it first", r->name,
                         n->name);
        if (ret_error) {
            memcpy(ret_error->redirect, n->admin, sizeof(ret_error->redirect));
            ret_error->owner = n->session;
        }
        return -EBUSY;
    }
    log_info("volume %s was left open by a node that is gone; taking it over", r->name);
    e = cluster_wait_fenced(vs->cluster, l->session, now + FENCE_WAIT_NS);
    if (e == -ETIMEDOUT)
        return volume_error_set(ret_error, -EBUSY,
                                "volume %s was left open by a node that is gone, and not all nodes "
                                "know it yet; try again, and see `dog node list`",
                                r->name);
    return e ? volume_error_of(ret_error, e, "take over", r->name) : 0;
}

/* L1. -EAGAIN: the record changed meanwhile. */
static fiber_fn int take_lease(struct instance *in, const struct record *r,
                               struct volume_error *ret_error)
{
    struct volumes *vs = in->vs;
    struct map *m = cluster_map(vs->cluster);
    /* R6: with this very session. Others that have the same map would take the owner for gone. */
    const struct map_node *n = map_node_by_session(m, cluster_session(vs->cluster));
    if (!n)
        return volume_error_set(ret_error, -EAGAIN,
                                "this node is not part of the cluster map yet; if the cluster is "
                                "new, run `dog cluster format`");
    if (r->lease.term.value >= RECORD_TERM_MAX)
        return volume_error_set(
            ret_error, -EFBIG,
            "volume %s was opened %u times, which is all a volume can be; clone a "
            "snapshot of it and use the clone",
            r->name, (unsigned)RECORD_TERM_MAX);
    struct take t = {
        .in = in,
        .volume = r->volume,
        .seen = r->lease,
        .wanted = {.node = n->uuid,
                   .session = cluster_session(vs->cluster),
                   .term = {r->lease.term.value + 1},
                   .map_version = m->version},
    };
    int e = registry_edit(service_cs(vs), in->name, NULL, edit_take, &t);
    if (t.changed)
        return -EAGAIN;
    if (e)
        return volume_error_of(ret_error, e, "open", in->name);
    in->owner = (struct object_owner){
        .volume = r->volume, .term = t.wanted.term, .stable = r->stable, .vid = r->working.vid};
    in->published = r->stable;
    return 0;
}

/* --- L3 --- */

struct found_list {
    struct object_found *items;
    size_t count, capacity;
    int error;
};

static void found_one(void *arg, const struct object_found *f)
{
    struct found_list *l = arg;
    if (l->count == l->capacity) {
        size_t capacity = l->capacity ? 2 * l->capacity : 256;
        struct object_found *more = reallocarray(l->items, capacity, sizeof(*more));
        if (!more) {
            l->error = -ENOMEM;
            return;
        }
        l->items = more;
        l->capacity = capacity;
    }
    l->items[l->count++] = *f;
}

static fiber_fn int load_locked(struct instance *in, struct block *b)
{
    fmutex_lock(&b->lock);
    int r = block_load(in, b);
    fmutex_unlock(&b->lock);
    return r;
}

/* A leaf above S: maybe the root does not name it, maybe it owes. */
static fiber_fn int adopt_leaf(struct instance *in, const struct object_found *f)
{
    struct block *b = leaf_get(in, f->oid.index);
    if (!b)
        return -ENOMEM;
    b->own = true;
    b->version = f->version;
    block_set_unlinked(in, b, f->version);
    return load_locked(in, b);
}

static int adopt_data(struct instance *in, const struct object_found *f)
{
    struct active *a = active_get(in, f->oid.index);
    if (!a)
        return -ENOMEM;
    active_set_version(a, f->version); /* V1 */
    active_set_unlinked(a, f->version);
    if (f->empty)
        active_set_punched(a, f->version);
    active_put(a);
    return 0;
}

static fiber_fn int adopt(struct instance *in, const struct found_list *l)
{
    uint64_t positions = (uint64_t)in->image.entries * in->image.entries;
    int r = 0;
    for (size_t i = 0; i < l->count && !r; i++) {
        const struct object_found *f = &l->items[i];
        if (f->oid.level == 1 && !f->tombstone && f->oid.index < in->image.entries)
            r = adopt_leaf(in, f);
    }
    for (size_t i = 0; i < l->count && !r; i++) {
        const struct object_found *f = &l->items[i];
        if (f->oid.level == 0 && f->oid.kind == OBJECT_VOLUME && !f->tombstone &&
            f->oid.index < positions)
            r = adopt_data(in, f);
    }
    return r;
}

/* Makes the image served: reconciled, nothing pending, root in memory. */
static fiber_fn int attach(struct instance *in, const struct record *rec)
{
    struct found_list found = {0};
    bool rootless = rec->pending.kind == PENDING_CREATE || rec->pending.kind == PENDING_CLONE;
    int r = instance_set_image(in, &rec->working);
    if (!r && !rec->lease.clean) {
        r = object_reconcile(in->vs->objects, &in->owner, in->image.vid, rec->stable, found_one,
                             &found);
        if (!r)
            r = found.error;
    }
    if (!r && rootless)
        r = pending_finish(in, rec->lease.clean ? PENDING_FRESH : PENDING_FOUND);
    if (!r)
        r = load_locked(in, &in->root);
    if (!r && !rootless)
        r = adopt(in, &found);
    free(found.items);
    if (r)
        return r;
    bool pending = rec->pending.kind != PENDING_NONE && !rootless;
    fmutex_lock(&in->settle_lock);
    r = settle_all(in);
    if (r == -ENOSPC && !pending)
        r = 0; /* a full cluster still serves: the background fiber tries again */
    if (!r && pending)
        r = pending_finish(in, rec->lease.clean ? PENDING_FRESH : PENDING_FOUND);
    fmutex_unlock(&in->settle_lock);
    return r ? r : settle_start(in);
}

static fiber_fn int open_working(struct instance *in, struct volume_error *ret_error)
{
    struct volumes *vs = in->vs;
    struct record rec;
    int r;
    for (;;) {
        r = registry_get(service_cs(vs), in->name, &rec);
        if (r == -ENOENT)
            return volume_error_set(ret_error, r,
                                    "there is no volume %s; `dog vdi list` shows what there is",
                                    in->name);
        if (r)
            return volume_error_of(ret_error, r, "open", in->name);
        if (rec.working.vid.value == 0)
            r = volume_error_set(ret_error, -ENOENT,
                                 "volume %s is deleted, only snapshots of it remain; clone one of "
                                 "them, see `dog vdi list`",
                                 in->name);
        if (!r)
            r = wait_until_free(vs, &rec, ret_error);
        if (!r)
            r = take_lease(in, &rec, ret_error);
        if (r != -EAGAIN || cluster_self(vs->cluster) < 0)
            break;
        record_done(&rec);
    }
    if (!r) {
        r = attach(in, &rec);
        if (r)
            volume_error_of(ret_error, r, "open", in->name);
    }
    record_done(&rec);
    return r;
}

/* --- snapshots --- */

struct use_call {
    const char *tag;
    struct image image;
    enum record_snapshot_state state;
};

static int edit_use(void *arg, struct registry_edit *e)
{
    struct use_call *c = arg;
    struct record_snapshot *s = e->exists ? record_snapshot_by_tag(e->record, c->tag) : NULL;
    if (!s)
        return -ENOENT;
    c->image = s->image;
    c->state = s->state;
    if (s->state == SNAPSHOT_DELETING)
        return -EBUSY;
    e->use = s->image.vid;
    return 0;
}

static fiber_fn int open_snapshot(struct instance *in, struct volume_error *ret_error)
{
    struct use_call call = {.tag = in->tag};
    int r = registry_edit(service_cs(in->vs), in->name, NULL, edit_use, &call);
    if (r == -ENOENT)
        return volume_error_set(ret_error, r,
                                "there is no snapshot %s of volume %s; `dog vdi list` shows what "
                                "there is",
                                in->tag, in->name);
    if (r == -EBUSY)
        return volume_error_set(ret_error, r, "snapshot %s of volume %s is being deleted", in->tag,
                                in->name);
    if (r)
        return volume_error_of(ret_error, r, "open a snapshot of", in->name);
    in->frozen = true;
    r = instance_set_image(in, &call.image);
    if (!r)
        r = load_locked(in, &in->root);
    if (r) {
        registry_release(service_cs(in->vs), call.image.vid);
        volume_error_of(ret_error, r, "open a snapshot of", in->name);
    }
    return r;
}

/* --- the table of open images --- */

/* Leaves nothing to do for the next owner; 0, or why that cannot be now. */
static fiber_fn int close_working(struct instance *in)
{
    settle_stop(in);
    fmutex_lock(&in->settle_lock);
    int r = settle_all(in);
    if (!r)
        r = settle_publish(in);
    fmutex_unlock(&in->settle_lock);
    return r ? r : in->failed;
}

static int edit_clean(void *arg, struct registry_edit *e)
{
    const uint64_t *map_version = arg; /* that the last changes were made under */
    e->record->lease.clean = true;
    e->record->lease.map_version = MAX(e->record->lease.map_version, *map_version);
    return 0;
}

/* Stays open, to be closed later; false when that cannot be. */
static bool reopen(struct instance *in, int why)
{
    struct volumes *vs = in->vs;
    if (in->failed || vs->stopping)
        return false;
    log_warn("volume %s cannot be closed now: %s; trying again", in->name, err_text(why));
    instance_set_state(in, INSTANCE_OPEN);
    timer_arm(&in->grace, clock_now(vs->rt) + CLOSE_AGAIN_NS);
    if (settle_start(in))
        instance_fail(in, -ENOMEM, "no memory for its background work");
    return true;
}

fiber_fn void instance_close(struct instance *in)
{
    ASSERT(in->state == INSTANCE_OPEN && instance_is_idle(in));
    timer_cancel(&in->grace);
    instance_set_state(in, INSTANCE_CLOSING);
    if (in->frozen) {
        registry_release(service_cs(in->vs), in->image.vid);
    } else {
        int r = close_working(in);
        if (r && reopen(in, r))
            return;
        ASSERT(in->failed || list_empty(&in->inflight));
        if (!r)
            lease_edit(in, NULL, edit_clean, &(uint64_t){cluster_map(in->vs->cluster)->version});
        else if (in->failed != -ENOENT)
            log_warn("volume %s is not closed cleanly; it is put in order when it is opened next",
                     in->name);
    }
    instance_set_state(in, INSTANCE_GONE);
    if (in->failed && in->failed != -ENOENT)
        sweep_soon(in->vs);
    instance_unref(in);
}

static fiber_fn void grace_over(void *arg)
{
    struct instance *in = arg;
    if (in->state == INSTANCE_OPEN && instance_is_idle(in))
        instance_close(in);
    instance_unref(in);
}

static void grace_fire(struct timer *t)
{
    struct instance *in = container_of(t, struct instance, grace);
    instance_ref(in);
    if (fiber_spawn(in->vs->rt, "volume-close", grace_over, in)) {
        instance_unref(in);
        timer_arm(t, clock_now(in->vs->rt) + NS_PER_S);
    }
}

fiber_fn void instance_release(struct instance *in, bool user)
{
    unsigned *count = user ? &in->users : &in->operations;
    ASSERT(*count > 0);
    --*count;
    if (in->users == in->remote_users)
        in->own_idle_since_ns = clock_now(in->vs->rt);
    if (!user && in->operations == 0)
        in->alone = false;
    waitq_wake_all(&in->vs->instances_changed);
    if (instance_is_idle(in) && in->state == INSTANCE_OPEN) {
        if (in->failed || in->vs->stopping || in->vs->grace_ns == 0)
            instance_close(in);
        else
            timer_arm(&in->grace, clock_now(in->vs->rt) + in->vs->grace_ns);
    }
    instance_unref(in);
}

fiber_fn int instance_close_idle(struct volumes *vs, const char *name, const char *tag)
{
    for (;;) {
        struct instance *in = instance_find(vs, name, tag);
        if (!in)
            return 0;
        if (in->users > 0)
            return -EBUSY;
        if (in->state == INSTANCE_OPEN && instance_is_idle(in))
            instance_close(in);
        else
            waitq_wait(&vs->instances_changed);
    }
}

fiber_fn int instance_open_alone(struct volumes *vs, const char *name, struct instance **ret,
                                 struct volume_error *ret_error)
{
    struct instance *in;
    int r = instance_open(vs, name, NULL, false, &in, ret_error);
    if (r)
        return r;
    if (in->users > 0 || in->alone) {
        instance_release(in, false);
        return volume_error_set(ret_error, -EBUSY,
                                "volume %s is open; stop what uses it (a virtual machine, an NBD "
                                "client), then try again",
                                name);
    }
    in->alone = true; /* nobody joins from here on, so the others become none */
    while (in->operations > 1)
        waitq_wait(&vs->instances_changed);
    *ret = in;
    return 0;
}

void instance_drop(struct instance *in)
{
    ASSERT(in->alone && list_empty(&in->inflight));
    in->failed = -ENOENT;
    in->owner.cancelled = true;
}

static fiber_fn void evict(struct instance *in)
{
    instance_ref(in);
    forward_evict(in);
    instance_unref(in);
}

/* An open instance to share, or NULL when there is none. */
static fiber_fn struct instance *find_open(struct volumes *vs, const char *name, const char *tag)
{
    for (;;) {
        struct instance *in = instance_find(vs, name, tag);
        if (in && in->failed && in->remote_users > 0) {
            evict(in);
            in = instance_find(vs, name, tag);
            if (in && in->failed && in->remote_users > 0)
                waitq_wait(&vs->forward.changed); /* requests of theirs are still running */
            continue;
        }
        if (in && in->remote_users > 0 && forward_has_dead(in)) {
            waitq_wait(&vs->forward.changed); /* FS3 */
            continue;
        }
        if (!in ||
            (in->state == INSTANCE_OPEN && !in->alone && !(in->failed && instance_is_idle(in))))
            return in;
        if (in->state == INSTANCE_OPEN && !in->alone)
            instance_close(in); /* failed, and its last user is gone: begin anew */
        else
            waitq_wait(&vs->instances_changed);
    }
}

static struct instance *use(struct instance *in, bool user)
{
    timer_cancel(&in->grace);
    timer_init(&in->grace, in->vs->rt, grace_fire);
    in->users += user;
    in->operations += !user;
    return instance_ref(in);
}

fiber_fn struct instance *instance_open_remote(struct volumes *vs, const char *name)
{
    for (bool tried = false;; tried = true) {
        struct instance *in = find_open(vs, name, NULL);
        if (!in || in->failed || vs->stopping)
            return NULL;
        if (tried || !instance_is_idle(in)) {
            in->remote_users++;
            return use(in, true);
        }
        instance_close(in);
    }
}

fiber_fn int instance_open(struct volumes *vs, const char *name, const char *tag, bool user,
                           struct instance **ret, struct volume_error *ret_error)
{
    if (tag && !*tag)
        tag = NULL;
    struct instance *in = find_open(vs, name, tag);
    if (vs->stopping)
        return volume_error_set(ret_error, -ECANCELED, "this node is shutting down");
    if (in && in->failed)
        return volume_error_set(ret_error, -EBUSY,
                                "volume %s has failed on this node and waits for its users to "
                                "close it; see the log",
                                name);
    if (!in) {
        in = instance_new(vs, name, tag);
        if (!in)
            return volume_error_of(ret_error, -ENOMEM, "open", name);
        int r = tag ? open_snapshot(in, ret_error) : open_working(in, ret_error);
        if (r) {
            bool leased = in->owner.term.value != 0;
            instance_set_state(in, INSTANCE_GONE);
            if (leased)
                sweep_soon(vs); /* nobody else may open it while this node lives */
            instance_unref(in);
            return r;
        }
        instance_set_state(in, INSTANCE_OPEN);
    }
    *ret = use(in, user);
    return 0;
}
