/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A replay applies one record after the other, and each may need maps that are not in memory: one
 * by one that is a read each, and many seconds where commits were small and the cache large. So a
 * few fibers run through the next records and load; nothing is changed here.
 */
#include "store/warm.h"
#include "base/err.h"
#include "store/sharing.h"

#define FIBERS 32u

struct warming {
    struct store *s;
    const struct log_commit *commits;
    unsigned count, next; /* commits; which of them d is to read next */
    struct dec d;
    struct wgroup group;
};

static bool next_record(struct warming *w, struct record *ret)
{
    for (;;) {
        if (dec_left(&w->d) > 0 && record_take(&w->d, ret) == 0)
            return true;
        if (w->next == w->count)
            return false;
        const struct log_commit *c = &w->commits[w->next++];
        dec_init(&w->d, c->payload.data, c->payload.length);
    }
}

static fiber_fn void load_run(struct store *s, struct onode *o, const struct record_run *run)
{
    (void)leaf_load_range(s, o, run->start / LEAF_ENTRIES,
                          (run->start + run->count - 1) / LEAF_ENTRIES);
}

/* Its record and, if `whole`, all of its map. NULL: not to be had. Held. */
static fiber_fn struct onode *load_object(struct store *s, const struct oid *oid, bool whole)
{
    struct onode *o = onode_hold(&s->index, oid);

    if (o != NULL && onode_load(s, o) < 0) {
        onode_release(&s->index, o);
        return NULL;
    }
    if (o != NULL && whole)
        (void)leaf_load_range(s, o, 0, OBJECT_LEAVES_MAX - 1);
    return o;
}

static fiber_fn void load_record(struct store *s, const struct record *rec)
{
    struct onode *o, *source = NULL;

    if (rec->type == RECORD_SETTLE)
        return;
    o = load_object(s, &rec->oid, rec->type == RECORD_REMOVE || rec->replace);
    if (rec->has_source)
        source = load_object(s, &rec->source, true);
    if (o != NULL && rec->type == RECORD_CHANGE) {
        for (unsigned i = 0; i < rec->punch_count; i++) {
            struct record_run run = record_punch_get(rec, i);
            load_run(s, o, &run);
        }
        for (unsigned i = 0; i < rec->run_count; i++) {
            struct record_run run = record_run_get(rec, i);
            load_run(s, o, &run);
        }
    }
    (void)sharing_prepare_record(s, rec);
    if (source != NULL)
        onode_release(&s->index, source);
    if (o != NULL)
        onode_release(&s->index, o);
}

static fiber_fn void warm_fiber(void *arg)
{
    struct warming *w = arg;
    struct record rec;

    while (next_record(w, &rec))
        load_record(w->s, &rec);
    wgroup_finish(&w->group);
}

fiber_fn void warm_up(struct store *s, const struct log_commit *commits, unsigned count)
{
    struct warming w = {.s = s, .commits = commits, .count = count};

    dec_init(&w.d, NULL, 0);
    wgroup_init(&w.group);
    wgroup_add(&w.group, 1);
    for (unsigned i = 1; i < FIBERS && i < count; i++) {
        if (fiber_spawn(s->rt, "warm", warm_fiber, &w) == 0)
            wgroup_add(&w.group, 1);
    }
    warm_fiber(&w);
    wgroup_wait(&w.group);
}

size_t warm_bytes_max(const struct store *s)
{
    const size_t change_bytes = record_change_size(0, 1, 1); /* one that needs one leaf */

    return s->cache.bytes_max / STORE_BLOCK / 4 * change_bytes;
}
