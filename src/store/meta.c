/* SPDX-License-Identifier: Apache-2.0 */
/* Changes and reads of objects' meta, atomic batches of them, tombstones. */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/admit.h"

/* All leaves of an object that is to be removed; damaged ones are given up. */
static fiber_fn int load_for_removal(struct store *s, struct onode *o)
{
    for (unsigned i = 0; i < o->leaf_count; i++) {
        int r = leaf_load_range(s, o, i, i);
        if (r == -EUCLEAN)
            r = leaf_replace_damaged(s, o, i);
        if (r < 0)
            return r;
    }
    return 0;
}

enum verdict { VERDICT_GO, VERDICT_DONE };

static int judge(const struct busy *b, const struct store_meta_change *m)
{
    if (m->remove)
        return b->state == ONODE_LIVE ? VERDICT_GO : VERDICT_DONE;
    if (b->state != ONODE_LIVE)
        return -ENOENT;
    if (m->force)
        return VERDICT_GO;
    if (m->meta_version < b->meta_version)
        return -ESTALE;
    return m->meta_version == b->meta_version ? VERDICT_DONE : VERDICT_GO;
}

static void record_one(struct store *s, struct onode *o, const struct store_meta_change *m)
{
    struct busy *b = o->busy;
    struct enc *e = &s->gathering->payload;

    if (m->remove) {
        record_remove(e, &m->oid, m->next);
        b->state = m->next.value != 0 ? ONODE_TOMBSTONE : ONODE_ABSENT;
        b->version = m->next;
        b->meta_version = 0;
    } else {
        record_meta(e, &m->oid, m->meta_version, m->meta, (uint16_t)m->length);
        b->meta_version = m->meta_version;
    }
    b->last_commit = s->gathering->number;
    s->stats.changes++;
}

/* What the change may cost until it is on disk as a whole; added to *d. */
static void demand_meta(struct store *s, struct onode *o, const struct store_meta_change *m,
                        struct demand *d)
{
    bool new_block = !m->remove && m->length > SLOT_META_INLINE;

    demand_add(s, d, new_block,
               m->remove && s->share.shared_blocks > 0
                   ? demand_share_pages(s, o, 0, OBJECT_BLOCKS_MAX)
                   : 0);
    if (new_block && o->e->meta_length <= SLOT_META_INLINE)
        d->kind = DEMAND_RECORD;
}

struct batch {
    const struct store_meta_change *changes;
    struct onode **held;
    unsigned count, held_count;
};

static int batch_hold(struct store *s, struct batch *b, size_t *ret_bytes)
{
    *ret_bytes = 0;
    for (unsigned i = 0; i < b->count; i++) {
        const struct store_meta_change *m = &b->changes[i];
        if (!m->remove && m->length > STORE_META_SIZE_MAX)
            return -EINVAL;
        b->held[i] = onode_hold(&s->index, &m->oid);
        if (b->held[i] == NULL)
            return -ENOMEM;
        b->held_count++;
        *ret_bytes += m->remove ? RECORD_REMOVE_SIZE : RECORD_META_OVERHEAD + m->length;
    }
    return 0;
}

/* Lets everybody who prepares a change of one of the objects finish, and loads what is needed.
 * *ret_clear: nobody was in the way, and nothing has happened since. */
static fiber_fn int batch_settle(struct store *s, struct batch *b, bool *ret_clear)
{
    *ret_clear = true;
    for (unsigned i = 0; i < b->count; i++) {
        struct onode *o = b->held[i];
        if (!fmutex_trylock(&o->busy->prepare)) {
            *ret_clear = false;
            fmutex_lock(&o->busy->prepare);
        }
        fmutex_unlock(&o->busy->prepare);
        if (!onode_is_ready(o)) {
            int r = onode_load(s, o);
            *ret_clear = false;
            if (r < 0)
                return r;
        }
        for (unsigned k = 0; b->changes[i].remove && k < o->leaf_count; k++) {
            const struct leaf_ref *ref = &o->refs[k];
            if (ref->mem != NULL ? ref->mem->state == LEAF_LOADING : ref->ptr.block != 0) {
                int r = load_for_removal(s, o);
                *ret_clear = false;
                if (r < 0)
                    return r;
            }
        }
    }
    return 0;
}

static fiber_fn int batch_record(struct store *s, struct batch *b, size_t bytes)
{
    struct demand d = {0};
    uint64_t number = 0;
    bool clear = false, any = false;
    int r = 0;

    while ((r == 0 && !clear) || r == -EAGAIN) {
        d = (struct demand){.kind = DEMAND_FREES};
        r = commit_room(s, bytes);
        if (r == 0)
            r = batch_settle(s, b, &clear);
        if (r != 0 || !clear)
            continue;
        for (unsigned i = 0; i < b->count; i++)
            demand_meta(s, b->held[i], &b->changes[i], &d);
        r = admit_demand(s, &d);
    }
    /* No suspension since commit_room() if all was clear. */
    for (unsigned i = 0; r >= 0 && i < b->count; i++) {
        r = judge(b->held[i]->busy, &b->changes[i]);
        any = any || r == VERDICT_GO;
        number = MAX(number, b->held[i]->busy->last_commit);
    }
    if (r < 0)
        return r;
    if (!any)
        return commit_wait_number(s, number);
    for (unsigned i = 0; i < b->count; i++) {
        if (judge(b->held[i]->busy, &b->changes[i]) == VERDICT_GO)
            record_one(s, b->held[i], &b->changes[i]);
    }
    admit_note(s, &d);
    commit_kick(s);
    return commit_wait_mine(s);
}

static fiber_fn int do_meta_apply(struct store *s, const struct store_meta_change *changes,
                                  unsigned count)
{
    struct onode *few[8];
    struct batch b = {.changes = changes, .held = few, .count = count};
    size_t bytes;
    int r = store_check_writable(s);

    if (r < 0 || count == 0)
        return r;
    if (count > ARRAY_SIZE(few)) {
        b.held = calloc(count, sizeof(*b.held));
        if (b.held == NULL)
            return -ENOMEM;
    }
    r = batch_hold(s, &b, &bytes);
    if (r == 0)
        r = batch_record(s, &b, bytes);
    for (unsigned i = 0; i < b.held_count; i++)
        onode_release(&s->index, b.held[i]);
    if (b.held != few)
        free(b.held);
    return r;
}

fiber_fn int store_meta_apply(struct store *s, const struct store_meta_change *changes,
                              unsigned count)
{
    store_enter(s);
    return store_leave(s, do_meta_apply(s, changes, count));
}

static fiber_fn int do_meta_put(struct store *s, const struct oid *oid, uint64_t meta_version,
                                const void *meta, size_t length)
{
    struct store_meta_change m = {
        .oid = *oid, .meta_version = meta_version, .meta = meta, .length = length};
    struct demand d;
    struct onode *o;
    int r = store_check_writable(s);

    if (r < 0)
        return r;
    if (length > STORE_META_SIZE_MAX)
        return -EINVAL;
    o = onode_hold(&s->index, oid);
    if (o == NULL)
        return -ENOMEM;
    fmutex_lock(&o->busy->prepare);
    r = onode_is_ready(o) ? 0 : onode_load(s, o);
    while (r == 0 || r == -EAGAIN) {
        r = commit_room(s, RECORD_META_OVERHEAD + length);
        d = (struct demand){.kind = DEMAND_FREES};
        demand_meta(s, o, &m, &d);
        if (r == 0)
            r = admit_demand(s, &d);
        if (r != -EAGAIN)
            break;
    }
    if (r == 0)
        r = judge(o->busy, &m);
    if (r == VERDICT_GO) {
        record_one(s, o, &m);
        admit_note(s, &d);
        commit_kick(s);
    }
    fmutex_unlock(&o->busy->prepare);
    if (r == VERDICT_GO)
        r = commit_wait_mine(s);
    else if (r == VERDICT_DONE)
        r = commit_wait_number(s, o->busy->last_commit);
    onode_release(&s->index, o);
    return r;
}

fiber_fn int store_meta_put(struct store *s, const struct oid *oid, uint64_t meta_version,
                            const void *meta, size_t length)
{
    store_enter(s);
    return store_leave(s, do_meta_put(s, oid, meta_version, meta, length));
}

/* The meta of o into buffer. -EAGAIN: something had to be loaded, look at the object again. */
static fiber_fn int meta_copy(struct store *s, struct onode *o, void *buffer)
{
    struct leaf *l = NULL;
    bool suspended = false;
    int r;

    if (o->e->meta_length <= SLOT_META_INLINE) {
        memcpy(buffer, o->meta->data, o->e->meta_length);
        return 0;
    }
    r = leaf_load(s, o, LEAF_META, &l, &suspended);
    if (r < 0)
        return r;
    if (suspended)
        return -EAGAIN;
    memcpy(buffer, l->data, o->e->meta_length);
    return 0;
}

static fiber_fn int do_meta_get(struct store *s, const struct oid *oid, void *buffer,
                                size_t *ret_length, uint64_t *ret_meta_version)
{
    struct onode_reader reader = {NULL, false};
    int r;

    do {
        const struct entry *e = onode_entry(&s->index, oid);
        struct onode *o;
        if (s->failed)
            r = -EIO;
        else if (e == NULL || e->state != ONODE_LIVE)
            r = -ENOENT;
        else if (e->meta_length > 0)
            r = onode_get(s, oid, &reader, &o);
        else
            r = 0;
        if (r == 0 && e->meta_length > 0)
            r = meta_copy(s, o, buffer);
        if (r == 0) {
            *ret_length = e->meta_length;
            *ret_meta_version = e->meta_version;
        }
        reader.again = r == -EAGAIN;
    } while (reader.again);
    onode_reader_end(s, &reader);
    return r;
}

fiber_fn int store_meta_get(struct store *s, const struct oid *oid, void *buffer,
                            size_t *ret_length, uint64_t *ret_meta_version)
{
    store_enter(s);
    return store_leave(s, do_meta_get(s, oid, buffer, ret_length, ret_meta_version));
}

static int settle_note(struct store *s, struct vid vid, struct version stable)
{
    for (size_t i = 0; i < s->settle_count; i++) {
        if (s->settles[i].vid.value == vid.value) {
            s->settles[i].stable.value = MAX(s->settles[i].stable.value, stable.value);
            return 0;
        }
    }
    if (s->settle_count == s->settle_capacity) {
        size_t capacity = s->settle_capacity * 2 + 16;
        struct settle *settles = realloc(s->settles, capacity * sizeof(*settles));
        if (settles == NULL)
            return -ENOMEM;
        s->settles = settles;
        s->settle_capacity = capacity;
    }
    s->settles[s->settle_count++] = (struct settle){vid, stable};
    return 0;
}

void store_settle(struct store *s, struct vid vid, struct version stable)
{
    /* Out of memory: the tombstones stay until the next time. */
    if (store_check_writable(s) < 0 || onode_vid_list(&s->index, vid) == NULL ||
        settle_note(s, vid, stable) < 0)
        return;
    (void)apply_settle(s, vid, stable);
}
