/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deleting: an image moves to the trash in one transaction, reclaim runs behind (sweep.c).
 *
 * E1 A snapshot is first marked, which refuses new openers, then its `use` keys are looked for: an
 * opener's transaction checks the record's revision, so it is either seen or refused. E2 A working
 * image is deleted under its lease, settled: nothing of its owner can arrive later.
 */
#include <string.h>
#include "base/err.h"
#include "volume/instance.h"
#include "volume/sweep.h"

#define USE_WAIT_NS (2 * NS_PER_S) /* longer than an idle snapshot stays open elsewhere */
#define USE_LOOK_NS (100 * NS_PER_MS)

/* --- the working image --- */

static int edit_delete(void *arg, struct registry_edit *e)
{
    struct instance *in = arg;
    struct record *r = e->record;
    if (r->pending.kind != PENDING_NONE)
        return -EIO; /* an opener finishes what is pending, so there is none */
    e->trash[e->trash_count++] = trash_of(&r->working);
    r->working = (struct image){0};
    r->lease.clean = true;
    r->stable = instance_stable(in);
    return 0;
}

fiber_fn int volume_delete(struct volumes *vs, const char *name, struct volume_error *ret_error)
{
    struct instance *in;
    if (name_check(name, NULL))
        return volume_error_set(ret_error, -ENOENT, "there is no such volume");
    int r = instance_open_alone(vs, name, &in, ret_error);
    if (r)
        return r;
    fmutex_lock(&in->settle_lock);
    r = settle_all(in);
    if (!r) {
        r = lease_edit(in, NULL, edit_delete, in);
        if (!r) {
            instance_drop(in);
            sweep_trash_soon(vs);
        }
    }
    fmutex_unlock(&in->settle_lock);
    instance_release(in, false);
    return r ? volume_error_of(ret_error, r, "delete", name) : 0;
}

/* --- snapshots --- */

struct snapshot_call {
    const char *tag;
    enum record_snapshot_state state;
    struct image image;
    bool pinned;
};

static int edit_mark(void *arg, struct registry_edit *e)
{
    struct snapshot_call *c = arg;
    struct record_snapshot *s = e->exists ? record_snapshot_by_tag(e->record, c->tag) : NULL;
    if (!s)
        return -ENOENT;
    c->pinned = record_is_pinned(e->record, s->image.vid);
    if (c->pinned)
        return -EBUSY;
    c->image = s->image;
    if (s->state == c->state)
        return REGISTRY_UNCHANGED;
    s->state = c->state;
    return 0;
}

static int edit_remove(void *arg, struct registry_edit *e)
{
    struct snapshot_call *c = arg;
    struct record_snapshot *s = e->exists ? record_snapshot_by_vid(e->record, c->image.vid) : NULL;
    if (!s)
        return REGISTRY_UNCHANGED; /* done by the attempt before, or by somebody with the same wish
                                    */
    if (s->state != SNAPSHOT_DELETING)
        return -EBUSY;
    e->trash[e->trash_count++] = trash_of(&s->image);
    c->image = s->image;
    record_snapshot_remove(e->record, s);
    return 0;
}

/* E1. An idle one closes by itself soon. */
static fiber_fn int wait_until_unused(struct volumes *vs, struct vid vid)
{
    uint64_t deadline = clock_now(vs->rt) + USE_WAIT_NS;
    for (;;) {
        int r = registry_in_use(service_cs(vs), vid);
        if (r <= 0)
            return r;
        if (clock_now(vs->rt) >= deadline || fiber_sleep(vs->rt, USE_LOOK_NS))
            return -EBUSY;
    }
}

fiber_fn int volume_delete_snapshot(struct volumes *vs, const char *name, const char *tag,
                                    struct volume_error *ret_error)
{
    struct snapshot_call call = {.tag = tag, .state = SNAPSHOT_DELETING};
    if (name_check(name, NULL) || name_check(tag, NULL))
        return volume_error_set(ret_error, -ENOENT, "there is no such snapshot");
    int r = registry_edit(service_cs(vs), name, NULL, edit_mark, &call);
    if (r == -ENOENT)
        return volume_error_set(ret_error, r,
                                "there is no snapshot %s of volume %s; `dog vdi list` shows what "
                                "there is",
                                tag, name);
    if (r == -EBUSY && call.pinned)
        return volume_error_set(
            ret_error, r,
            "snapshot %s of volume %s is being copied by a clone or a rollback; "
            "try again in a moment",
            tag, name);
    if (r)
        return volume_error_of(ret_error, r, "delete a snapshot of", name);
    r = instance_close_idle(vs, name, tag);
    if (!r)
        r = wait_until_unused(vs, call.image.vid);
    if (!r)
        r = registry_edit(service_cs(vs), name, NULL, edit_remove, &call);
    if (r) {
        call.state = SNAPSHOT_LIVE;
        registry_edit(service_cs(vs), name, NULL, edit_mark, &call);
        if (r == -EBUSY)
            return volume_error_set(ret_error, r,
                                    "snapshot %s of volume %s is open; stop what uses it, then try "
                                    "again",
                                    tag, name);
        return volume_error_of(ret_error, r, "delete a snapshot of", name);
    }
    sweep_trash_soon(vs);
    return 0;
}
