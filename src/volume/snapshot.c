/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Snapshots, rollbacks and resizes of an open volume.
 *
 * H1 A snapshot is first pending in the record, then guest changes are held, what is left is
 * settled, the new root is written, and the record names it. Most is settled before the hold, so
 * that guests pause for milliseconds. H2 A tag names one snapshot: the same request again finds it
 * and is done.
 */
#include <string.h>
#include "base/err.h"
#include "volume/handle.h"

/* --- the pending edits --- */

struct begin_call {
    struct instance *in;
    const char *tag;
    struct vid vid;
    uint64_t now_wall_ns;
    bool exists;
};

static bool is_begun(const struct record *r, const struct begin_call *c)
{
    return r->pending.kind != PENDING_NONE && r->pending.image.vid.value == c->vid.value;
}

static int edit_snapshot(void *arg, struct registry_edit *e)
{
    struct begin_call *c = arg;
    struct record *r = e->record;
    if (is_begun(r, c))
        return REGISTRY_UNCHANGED;
    if (r->pending.kind != PENDING_NONE)
        return -EIO; /* an opener finishes what is pending, so there is none */
    c->exists = record_snapshot_by_tag(r, c->tag) != NULL;
    if (c->exists)
        return REGISTRY_UNCHANGED; /* H2 */
    if (r->snapshot_count >= RECORD_SNAPSHOT_MAX)
        return -EFBIG;
    r->pending.kind = PENDING_SNAPSHOT;
    r->pending.image = r->working;
    r->pending.image.vid = c->vid;
    r->pending.image.parent = r->working.vid;
    r->pending.image.root_copies = 0;
    r->pending.image.created_wall_ns = c->now_wall_ns;
    r->pending.image.number = ++r->number_next;
    strcpy(r->pending.tag, c->tag);
    r->working.root_copies++;
    return 0;
}

static int edit_rollback(void *arg, struct registry_edit *e)
{
    struct begin_call *c = arg;
    struct record *r = e->record;
    if (is_begun(r, c))
        return REGISTRY_UNCHANGED;
    if (r->pending.kind != PENDING_NONE)
        return -EIO; /* an opener finishes what is pending, so there is none */
    struct record_snapshot *s = record_snapshot_by_tag(r, c->tag);
    if (!s)
        return -ENOENT;
    if (s->state == SNAPSHOT_DELETING)
        return -EBUSY;
    r->pending.kind = PENDING_ROLLBACK;
    r->pending.source = s->image.vid;
    r->pending.image = s->image;
    r->pending.image.vid = c->vid;
    r->pending.image.parent = s->image.vid;
    r->pending.image.root_copies = 0;
    r->pending.image.created_wall_ns = r->working.created_wall_ns;
    r->pending.image.number = r->working.number;
    s->image.root_copies++;
    return 0;
}

/* --- snapshot --- */

/* With settle_lock. */
static fiber_fn int take_snapshot(struct instance *in, struct begin_call *call,
                                  uint64_t *ret_pause_ns)
{
    struct volumes *vs = in->vs;
    struct vid frozen = in->image.vid;
    int r = in->failed ? in->failed : settle_pass(in);
    if (!r)
        r = lease_edit(in, NULL, edit_snapshot, call);
    if (r || call->exists)
        return r;
    settle_pass(in); /* what came since; an error shows again below */
    uint64_t start = clock_now(vs->rt);
    gate_hold(in);
    r = settle_all(in);
    struct version removed = in->removed;
    r = r ? pending_abort(in, r) : pending_finish(in, PENDING_FRESH);
    gate_release(in);
    *ret_pause_ns = clock_now(vs->rt) - start;
    if (!r && removed.value) /* all that was ever sent for W is answered */
        object_settle(vs->objects, frozen, removed);
    return r;
}

fiber_fn int volume_snapshot(struct volumes *vs, const char *name, const char *tag,
                             uint64_t *ret_pause_ns, struct volume_error *ret_error)
{
    const char *why;
    uint64_t pause_ns = 0;
    struct instance *in;
    int r = name_check(tag, &why);
    if (r)
        return volume_error_set(ret_error, r, "the tag is not possible: %s", why);
    if (name_check(name, NULL))
        return volume_error_set(ret_error, -ENOENT, "there is no such volume");
    r = instance_open(vs, name, NULL, false, &in, ret_error);
    if (r)
        return r;
    struct begin_call call = {.in = in, .tag = tag, .now_wall_ns = clock_wall(vs->rt)};
    r = cluster_new_vids(vs->cluster, 1, &call.vid);
    if (!r) {
        fmutex_lock(&in->settle_lock);
        r = take_snapshot(in, &call, &pause_ns);
        fmutex_unlock(&in->settle_lock);
    }
    instance_release(in, false);
    if (r)
        return volume_error_of(ret_error, r, "snapshot", name);
    if (ret_pause_ns)
        *ret_pause_ns = pause_ns;
    return 0;
}

/* --- rollback --- */

static fiber_fn int roll_back(struct instance *in, struct begin_call *call)
{
    int r = in->failed ? in->failed : settle_all(in);
    if (!r)
        r = lease_edit(in, NULL, edit_rollback, call);
    return r ? r : pending_finish(in, PENDING_FRESH);
}

fiber_fn int volume_rollback(struct volumes *vs, const char *name, const char *tag,
                             struct volume_error *ret_error)
{
    struct instance *in;
    if (name_check(name, NULL) || name_check(tag, NULL))
        return volume_error_set(ret_error, -ENOENT, "there is no such snapshot");
    int r = instance_open_alone(vs, name, &in, ret_error);
    if (r)
        return r;
    struct begin_call call = {.in = in, .tag = tag, .now_wall_ns = clock_wall(vs->rt)};
    r = cluster_new_vids(vs->cluster, 1, &call.vid);
    if (!r) {
        fmutex_lock(&in->settle_lock);
        r = roll_back(in, &call);
        fmutex_unlock(&in->settle_lock);
    }
    instance_release(in, false);
    if (r == -ENOENT)
        return volume_error_set(ret_error, r,
                                "there is no snapshot %s of volume %s; `dog vdi list` shows what "
                                "there is",
                                tag, name);
    if (r == -EBUSY)
        return volume_error_set(ret_error, r, "snapshot %s of volume %s is being deleted", tag,
                                name);
    if (r)
        return volume_error_of(ret_error, r, "roll back", name);
    return 0;
}

/* --- resize --- */

static int edit_size(void *arg, struct registry_edit *e)
{
    const uint64_t *size = arg;
    if (e->record->working.size == *size)
        return REGISTRY_UNCHANGED;
    e->record->working.size = *size;
    return 0;
}

/* With settle_lock. Shrinking: what lies beyond the end is given back first, so that growing again
 * shows zeros. */
static fiber_fn int change_size(struct instance *in, uint64_t size)
{
    int r = in->failed;
    if (r)
        return r;
    gate_hold(in);
    if (size < in->image.size)
        r = image_zero(in, size, in->image.size - size);
    if (!r)
        r = lease_edit(in, NULL, edit_size, &size);
    if (!r)
        in->image.size = size;
    gate_release(in);
    return r;
}

fiber_fn int volume_resize(struct volumes *vs, const char *name, uint64_t size,
                           struct volume_error *ret_error)
{
    struct instance *in;
    if (name_check(name, NULL))
        return volume_error_set(ret_error, -ENOENT, "there is no such volume");
    if (size == 0)
        return volume_error_set(ret_error, -EINVAL, "a volume needs a size above 0");
    int r = instance_open(vs, name, NULL, false, &in, ret_error);
    if (r)
        return r;
    uint64_t limit = (uint64_t)in->image.entries * in->image.entries * in->image.object_size;
    if (size > limit) {
        r = volume_error_set(ret_error, -EFBIG, "volume %s can have at most %lu bytes", name,
                             (unsigned long)limit);
    } else {
        fmutex_lock(&in->settle_lock);
        r = change_size(in, size);
        fmutex_unlock(&in->settle_lock);
        if (r)
            volume_error_of(ret_error, r, "resize", name);
    }
    instance_release(in, false);
    return r;
}
