/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations in two steps: the record says what is pending, a root is written, the record says it
 * is done. Whoever opens the volume rolls it forward.
 *
 * P1 While a copy of a root is pending its source cannot be deleted: a snapshot's own record or a
 * pin says so. P2 Copies of a root are counted with the record that makes the copy pending, so
 * before the copy exists (N2). P3 Only an operation whose root was certainly never sent may be
 * taken back.
 */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "volume/instance.h"
#include "volume/sweep.h"

#define LOG_MODULE "volume"

/* --- the root --- */

/* A predecessor may have written it, on some replicas only: even them out, then look. */
static fiber_fn int look_for_root(struct instance *in, const struct image *image,
                                  struct version *ret_version)
{
    struct oid oid = image_oid(image, image->vid.value, 2, 0);
    struct object_found f = {0};
    int r = object_reconcile_one(in->vs->objects, &in->owner, &oid, &f);
    if (!r)
        *ret_version = f.tombstone ? (struct version){0} : f.version;
    return r;
}

static fiber_fn int write_root(struct instance *in, const struct image *image,
                               const struct index_entry *entries, struct version *ret_version)
{
    struct flight flight;
    struct version version = instance_next_version(in);
    flight_begin(in, NULL, &flight, version, 0, 0);
    int r = root_copy_write(in->vs, &in->owner, version, image, entries);
    flight_end(in, NULL, &flight);
    if (!r)
        *ret_version = version;
    return r;
}

static fiber_fn int ensure_root(struct instance *in, const struct image *image,
                                const struct index_entry *entries, enum pending_age age,
                                struct version *ret_version)
{
    int r = -ESTALE;
    for (unsigned i = 0; i < 4 && r == -ESTALE; i++) { /* W7 */
        struct version version = {0};
        r = age == PENDING_FRESH && i == 0 ? 0 : look_for_root(in, image, &version);
        if (!r && version.value) {
            *ret_version = version;
            return 0;
        }
        if (!r)
            r = write_root(in, image, entries, ret_version);
    }
    return r == -ESTALE ? -EIO : r;
}

/* Entries of the root of a frozen image; malloc'ed. */
static fiber_fn int read_frozen_root(struct volumes *vs, const struct image *source,
                                     struct index_entry **ret)
{
    struct index_entry *entries = calloc(source->entries, sizeof(*entries));
    if (!entries)
        return -ENOMEM;
    struct oid oid = image_oid(source, source->vid.value, 2, 0);
    int r = block_read(vs, source, &oid, entries, NULL, NULL, NULL);
    if (r) {
        char text[OID_TEXT_SIZE];
        log_error("the root %s of a snapshot cannot be read: %s", oid_format(&oid, text),
                  err_text(r));
        free(entries);
        return r == -ENOENT ? -EIO : r;
    }
    *ret = entries;
    return 0;
}

/* What the pending copy is made of: the open root, a snapshot's, or (create) nothing. */
static fiber_fn int source_entries(struct instance *in, const struct record *rec,
                                   struct index_entry **ret)
{
    struct record other;
    const struct record_pending *p = &rec->pending;
    bool elsewhere = p->kind == PENDING_CLONE && strcmp(p->name, rec->name) != 0;
    *ret = NULL;
    if (p->kind == PENDING_CREATE)
        return 0;
    if (p->kind == PENDING_SNAPSHOT) {
        ASSERT(in->root.entries && rec->working.vid.value == in->image.vid.value);
        size_t size = in->image.entries * sizeof(**ret);
        *ret = malloc(size);
        if (!*ret)
            return -ENOMEM;
        memcpy(*ret, in->root.entries, size);
        return 0;
    }
    int r = elsewhere ? registry_get(service_cs(in->vs), p->name, &other) : 0;
    if (r)
        return r;
    const struct record_snapshot *s = record_snapshot_by_vid(elsewhere ? &other : rec, p->source);
    if (s)
        r = read_frozen_root(in->vs, &s->image, ret);
    else
        r = -EIO; /* P1 was broken */
    if (elsewhere)
        record_done(&other);
    return r;
}

/* --- the record --- */

struct commit {
    struct vid vid; /* of the new root */
    struct image image;
};

static int edit_commit(void *arg, struct registry_edit *e)
{
    struct commit *c = arg;
    struct record *r = e->record;
    struct record_pending p = r->pending;
    if (p.kind == PENDING_NONE && r->working.vid.value == c->vid.value) {
        c->image = r->working;
        return REGISTRY_UNCHANGED; /* done by the attempt before */
    }
    int err = 0;
    if (p.kind == PENDING_CLONE && !e->other)
        return -EIO;
    switch (p.kind) {
    case PENDING_NONE:
    case PENDING_KIND_COUNT:
        return -EIO;
    case PENDING_CREATE:
        break;
    case PENDING_CLONE:
        record_pin_remove(e->other, r->working.vid);
        break;
    case PENDING_SNAPSHOT:
        p.image.size = r->working.size;
        struct image frozen = r->working;
        frozen.created_wall_ns = p.image.created_wall_ns;
        p.image.created_wall_ns = r->working.created_wall_ns;
        err = record_snapshot_add(r, &frozen, p.tag);
        r->working = p.image;
        break;
    case PENDING_ROLLBACK:
        e->trash[e->trash_count++] = trash_of(&r->working);
        r->working = p.image;
        break;
    }
    r->pending = (struct record_pending){0};
    c->image = r->working;
    return err;
}

/* P3. Undoes what the first edit did. */
static int edit_abort(void *arg, struct registry_edit *e)
{
    struct record *r = e->record;
    struct record *source = r->pending.kind == PENDING_CLONE ? e->other : r;
    if (!source)
        return -EIO;
    struct record_snapshot *s = record_snapshot_by_vid(source, r->pending.source);
    switch (r->pending.kind) {
    case PENDING_NONE:
    case PENDING_KIND_COUNT:
        return REGISTRY_UNCHANGED;
    case PENDING_CREATE:
        r->working = (struct image){0};
        r->lease.clean = true;
        break;
    case PENDING_SNAPSHOT:
        r->working.root_copies--;
        break;
    case PENDING_CLONE:
        record_pin_remove(source, r->working.vid);
        r->working = (struct image){0};
        r->lease.clean = true;
        if (s)
            s->image.root_copies--;
        break;
    case PENDING_ROLLBACK:
        if (s)
            s->image.root_copies--;
        break;
    }
    r->pending = (struct record_pending){0};
    return 0;
}

/* --- rolling forward --- */

/* The open image is another one now. */
static fiber_fn int serve_new_image(struct instance *in, enum record_pending_kind kind,
                                    const struct image *image, struct version root_version)
{
    if (kind == PENDING_SNAPSHOT) {
        index_become_copy(in, image, root_version);
        in->removed = (struct version){0};
        return 0;
    }
    if (kind != PENDING_ROLLBACK)
        return 0; /* not loaded yet */
    ASSERT(!settle_has_work(in) && list_empty(&in->inflight));
    index_done(in);
    int r = instance_set_image(in, image);
    if (r)
        return r;
    fmutex_lock(&in->root.lock);
    r = block_load(in, &in->root);
    fmutex_unlock(&in->root.lock);
    return r;
}

/* P3: as if it had never begun. Returns `why`, or what went wrong with that too. */
static fiber_fn int take_back(struct instance *in, const struct record *rec, int why)
{
    const char *other = rec->pending.kind == PENDING_CLONE ? rec->pending.name : NULL;
    int r = lease_edit(in, other, edit_abort, NULL);
    if (r && !in->failed)
        instance_fail(in, r, "a pending operation could not be taken back");
    return r ? r : why;
}

static fiber_fn int finish(struct instance *in, const struct record *rec, enum pending_age age)
{
    enum record_pending_kind kind = rec->pending.kind;
    const char *other = kind == PENDING_CLONE ? rec->pending.name : NULL;
    bool rootless = kind == PENDING_CREATE || kind == PENDING_CLONE;
    const struct image *image = rootless ? &rec->working : &rec->pending.image;
    struct index_entry *entries = NULL;
    struct version version;
    int r = source_entries(in, rec, &entries);
    bool unsent = r != 0;
    if (!r) {
        r = ensure_root(in, image, entries, age, &version);
        unsent = r == -ENOSPC || r == -ENOMEM;
    }
    free(entries);
    if (r && unsent)
        return age == PENDING_FRESH ? take_back(in, rec, r) : r;
    struct commit commit = {.vid = image->vid};
    if (!r)
        r = lease_edit(in, other, edit_commit, &commit);
    if (!r && kind == PENDING_ROLLBACK)
        sweep_trash_soon(in->vs); /* of the image before, also when another node had begun it */
    if (!r)
        r = serve_new_image(in, kind, &commit.image, version);
    if (r && !in->failed)
        instance_fail(in, r, "a pending operation could not be finished");
    return r;
}

fiber_fn int pending_finish(struct instance *in, enum pending_age age)
{
    struct record rec;
    int r = registry_get(service_cs(in->vs), in->name, &rec);
    if (r)
        return r;
    if (rec.pending.kind != PENDING_NONE)
        r = finish(in, &rec, age);
    record_done(&rec);
    return r;
}

fiber_fn int pending_abort(struct instance *in, int why)
{
    struct record rec;
    int r = in->failed ? in->failed : registry_get(service_cs(in->vs), in->name, &rec);
    if (r)
        return r;
    r = take_back(in, &rec, why);
    record_done(&rec);
    return r;
}
