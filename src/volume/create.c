/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making volumes: empty ones, and clones of snapshots.
 *
 * K1 The first transaction makes the record with what is pending; for a clone it also counts the
 * copy of the source's root and pins the source. Opening the volume does the rest, by whoever comes
 * first. K2 A name whose working image was deleted may be used again. Its line begins anew with a
 * volume id of its own: terms and S start over, and what the old line's ledger keys say can be
 * erased.
 */
#include <inttypes.h>
#include <string.h>
#include "base/err.h"
#include "volume/instance.h"

#define OBJECT_SIZE_MIN (64u << 10)
#define OBJECT_SIZE_MAX (64u << 20)

struct create_call {
    struct image image;
    struct record_pending pending;
    const char *tag; /* clone */
    bool source_missing, source_deleting;
};

/* Puts the new line into its record (K2). */
static int begin_line(struct record *r, bool exists, struct create_call *c)
{
    if (exists && r->working.vid.value != 0)
        return -EEXIST;
    r->volume = c->image.vid.value;
    r->working = c->image;
    r->working.number = ++r->number_next;
    r->lease = (struct record_lease){.clean = true};
    r->stable = (struct version){0};
    r->pending = c->pending;
    return 0;
}

static bool is_done(const struct record *r, bool exists, const struct create_call *c)
{
    return exists && r->working.vid.value == c->image.vid.value;
}

static int edit_create(void *arg, struct registry_edit *e)
{
    struct create_call *c = arg;
    if (is_done(e->record, e->exists, c))
        return REGISTRY_UNCHANGED;
    return begin_line(e->record, e->exists, c);
}

/* record: the source; other: the clone. */
static int edit_clone(void *arg, struct registry_edit *e)
{
    struct create_call *c = arg;
    if (is_done(e->other, e->other_exists, c))
        return REGISTRY_UNCHANGED;
    struct record_snapshot *s = e->exists ? record_snapshot_by_tag(e->record, c->tag) : NULL;
    c->source_missing = !s;
    c->source_deleting = s && s->state == SNAPSHOT_DELETING;
    if (c->source_missing || c->source_deleting)
        return -ENOENT;
    if (e->other_exists && e->other->working.vid.value != 0)
        return -EEXIST;
    struct vid vid = c->image.vid;
    uint64_t created = c->image.created_wall_ns;
    s->image.root_copies++; /* P2 */
    c->image = s->image;
    c->image.vid = vid;
    c->image.parent = s->image.vid;
    c->image.created_wall_ns = created;
    c->image.root_copies = 0;
    c->pending.source = s->image.vid;
    int r = record_pin_add(e->record, s->image.vid, vid, e->other->name); /* P1 */
    return r ? r : begin_line(e->other, e->other_exists, c);
}

static int check_name(const char *name, const char *what, struct volume_error *ret_error)
{
    const char *why;
    int r = name_check(name, &why);
    return r ? volume_error_set(ret_error, r, "the %s is not possible: %s", what, why) : 0;
}

static int exists_error(const char *name, struct volume_error *ret_error)
{
    return volume_error_set(ret_error, -EEXIST,
                            "there is a volume %s already; choose another name, or delete it first",
                            name);
}

/* Fills the image of a new volume; its vid is still missing. */
static int plan(struct volumes *vs, const struct volume_create_options *o, struct image *ret,
                struct volume_error *ret_error)
{
    const struct map *m = cluster_map(vs->cluster);
    const char *pool_name = o->pool ? o->pool : "default";
    if (m->version == 0)
        return volume_error_set(ret_error, -EAGAIN,
                                "the cluster is not formatted yet; run `dog cluster format`");
    const struct map_pool *pool = map_pool_by_name(m, pool_name);
    if (!pool)
        return volume_error_set(ret_error, -ENOENT, "there is no pool %s", pool_name);
    uint32_t size = o->object_size ? o->object_size : pool->object_size;
    if (size < OBJECT_SIZE_MIN || size > OBJECT_SIZE_MAX || (size & (size - 1)))
        return volume_error_set(ret_error, -EINVAL,
                                "an object size of %u is not possible; it is a power of two from "
                                "64 KiB to 64 MiB",
                                size);
    uint64_t limit = (uint64_t)vs->entries * vs->entries * size;
    if (o->size == 0)
        return volume_error_set(ret_error, -EINVAL, "a volume needs a size above 0");
    if (o->size > limit)
        return volume_error_set(ret_error, -EFBIG,
                                "%" PRIu64 " bytes are too much: a volume with objects of %u bytes "
                                "holds at most %" PRIu64 " bytes",
                                o->size, size, limit);
    *ret = (struct image){
        .group_base = pool->group_base,
        .group_count = pool->group_count,
        .pool = pool->id,
        .object_size = size,
        .entries = vs->entries,
        .size = o->size,
        .created_wall_ns = clock_wall(vs->rt),
    };
    return 0;
}

/* A node that may not open the volume must not make it: who was refused tries again. */
static int check_member(struct volumes *vs, struct volume_error *ret_error)
{
    if (cluster_self(vs->cluster) >= 0)
        return 0;
    return volume_error_set(ret_error, -EAGAIN,
                            "this node is not part of the cluster map yet; if the cluster is new, "
                            "run `dog cluster format`");
}

/* K1: opens the new volume, which finishes it; it stays open for the grace period. */
static fiber_fn int finish(struct volumes *vs, const char *name, struct volume_error *ret_error)
{
    struct instance *in;
    int r = instance_open(vs, name, NULL, false, &in, ret_error);
    if (!r)
        instance_release(in, false);
    return r;
}

fiber_fn int volume_create(struct volumes *vs, const struct volume_create_options *o,
                           struct volume_error *ret_error)
{
    struct create_call call = {.pending.kind = PENDING_CREATE};
    int r = check_name(o->name, "name", ret_error);
    if (!r)
        r = plan(vs, o, &call.image, ret_error);
    if (!r)
        r = check_member(vs, ret_error);
    if (r)
        return r;
    r = cluster_new_vids(vs->cluster, 1, &call.image.vid);
    if (r)
        return volume_error_of(ret_error, r, "create", o->name);
    call.image.family = call.image.vid.value;
    r = registry_edit(service_cs(vs), o->name, NULL, edit_create, &call);
    if (r == -EEXIST)
        return exists_error(o->name, ret_error);
    return r ? volume_error_of(ret_error, r, "create", o->name) : finish(vs, o->name, ret_error);
}

fiber_fn int volume_clone(struct volumes *vs, const char *source, const char *tag, const char *name,
                          struct volume_error *ret_error)
{
    struct create_call call = {.pending.kind = PENDING_CLONE, .tag = tag};
    int r = check_name(name, "name of the clone", ret_error);
    if (!r)
        r = check_name(source, "name of the source", ret_error);
    if (!r)
        r = check_name(tag, "tag", ret_error);
    if (!r)
        r = check_member(vs, ret_error);
    if (r)
        return r;
    r = cluster_new_vids(vs->cluster, 1, &call.image.vid);
    if (r)
        return volume_error_of(ret_error, r, "clone", source);
    call.image.created_wall_ns = clock_wall(vs->rt);
    strcpy(call.pending.name, source);
    r = registry_edit(service_cs(vs), source, name, edit_clone, &call);
    if (r == -EEXIST)
        return exists_error(name, ret_error);
    if (r == -ENOENT && call.source_missing)
        return volume_error_set(ret_error, r,
                                "there is no snapshot %s of a volume %s; `dog vdi list` shows what "
                                "there is",
                                tag, source);
    if (r == -ENOENT && call.source_deleting)
        return volume_error_set(ret_error, -EBUSY, "snapshot %s of volume %s is being deleted", tag,
                                source);
    return r ? volume_error_of(ret_error, r, "clone", source) : finish(vs, name, ret_error);
}
