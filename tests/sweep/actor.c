/* SPDX-License-Identifier: Apache-2.0 */
/* One actor's steps. See drive.h. */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "drive.h"
#include "memory.h"

#define TRIES 3u

static struct version version_now(const struct actor *a, unsigned object)
{
    const struct model_object *o = &a->model.objects[object];

    return o->exists ? o->version : (struct version){0};
}

/* --- one step, once --- */

static fiber_fn int do_change(struct actor *a, const struct step *step, unsigned number,
                              struct version prev)
{
    static const enum store_change_kind kinds[] = {
        [STEP_WRITE] = STORE_WRITE,   [STEP_CLONE] = STORE_CLONE,     [STEP_PUNCH] = STORE_PUNCH,
        [STEP_REMOVE] = STORE_REMOVE, [STEP_INSTALL] = STORE_INSTALL,
    };
    bool has_data = step->kind != STEP_PUNCH && step->kind != STEP_REMOVE;
    size_t bytes = 0;
    uint8_t *data;
    int r;

    for (unsigned i = 0; i < step->extent_count; i++)
        bytes += step->extents[i].length;
    data = memory_pages(bytes + 1);
    bytes = 0;
    for (unsigned i = 0; has_data && i < step->extent_count; i++) {
        const struct store_extent *e = &step->extents[i];
        model_content(a->id, step, number, e->offset, e->length, data + bytes);
        bytes += e->length;
    }
    struct iovec iov = {data, bytes};
    struct store_change c = {.kind = kinds[step->kind],
                             .oid = model_oid(a->id, step->object),
                             .source = model_oid(a->id, step->source),
                             .prev = prev,
                             .next = model_version(number),
                             .extents = step->extents,
                             .extent_count = step->extent_count,
                             .iov = bytes > 0 ? &iov : NULL,
                             .iov_count = bytes > 0};
    r = store_apply(a->run->store, &c, NULL);
    free(data);
    return r;
}

static fiber_fn int do_meta(struct actor *a, const struct step *step, unsigned number)
{
    struct oid oid = model_oid(a->id, step->object);
    uint8_t meta[STORE_META_SIZE_MAX];

    model_meta(a->id, number + 1, step->length, meta);
    return store_meta_put(a->run->store, &oid, number + 1, meta, step->length);
}

static fiber_fn int do_batch(struct actor *a, const struct step *step, unsigned number)
{
    unsigned count = step->count + step->removals;
    struct store_meta_change *changes = memory_zalloc(count * sizeof(*changes));
    uint8_t meta[STORE_META_SIZE_MAX];
    int r;

    model_meta(a->id, number + 1, step->length, meta);
    for (unsigned i = 0; i < count; i++) {
        changes[i].oid = model_oid(a->id, step->object + i);
        changes[i].remove = i >= step->count;
        changes[i].next = model_version(number);
        changes[i].meta_version = number + 1;
        changes[i].meta = meta;
        changes[i].length = step->length;
    }
    r = store_meta_apply(a->run->store, changes, count);
    free(changes);
    return r;
}

static fiber_fn int do_read(struct actor *a, const struct step *step)
{
    struct oid oid = model_oid(a->id, step->object);
    const struct store_extent *e = &step->extents[0];
    uint8_t *buffer = memory_pages(e->length);
    struct version v = {0};
    int r = store_read(a->run->store, &oid, e->offset, e->length, buffer, &v);

    if (r == 0 && v.value != version_now(a, step->object).value)
        run_note(a->run, "read gives another version");
    else if (r == 0 && !model_equal(&a->model.objects[step->object], e->offset, e->length, buffer))
        run_note(a->run, "read gives wrong bytes");
    free(buffer);
    return r == -ENOENT && version_now(a, step->object).value == 0 ? 0 : r;
}

static fiber_fn int do_pin(struct actor *a, const struct step *step)
{
    struct oid oid = model_oid(a->id, step->object);
    int r = a->pin == NULL ? store_pin(a->run->store, &oid, &a->pin) : 0;

    if (r == 0)
        a->pinned = model_object_copy(&a->model.objects[step->object]);
    return r;
}

static fiber_fn int do_pin_read(struct actor *a)
{
    const size_t length = 64 * STORE_BLOCK;
    uint8_t *buffer;
    int r;

    if (a->pin == NULL)
        return 0;
    buffer = memory_pages(length);
    r = store_pin_read(a->pin, 0, length, buffer);
    if (r == 0 && !model_equal(&a->pinned, 0, length, buffer))
        run_note(a->run, "what is pinned has changed");
    free(buffer);
    return r;
}

static void unpin(struct actor *a)
{
    if (a->pin == NULL)
        return;
    store_unpin(a->pin);
    model_object_done(&a->pinned);
    a->pin = NULL;
}

static fiber_fn int do_step(struct actor *a, unsigned number, struct version prev)
{
    const struct step *step = &a->script->steps[number];

    switch (step->kind) {
    case STEP_META:
        return do_meta(a, step, number);
    case STEP_BATCH:
        return do_batch(a, step, number);
    case STEP_SETTLE:
        store_settle(a->run->store, (struct vid){model_oid(a->id, 0).vid}, model_version(number));
        return 0;
    case STEP_READ:
        return do_read(a, step);
    case STEP_PIN:
        return do_pin(a, step);
    case STEP_PIN_READ:
        return do_pin_read(a);
    case STEP_UNPIN:
        unpin(a);
        return 0;
    default:
        return do_change(a, step, number, prev);
    }
}

/* --- what came of it --- */

/* V4: may the store answer so? */
static bool error_is_fit(const struct actor *a, const struct step *step, int r)
{
    enum fault f = a->run->points->fault;
    bool allocates =
        step->kind == STEP_WRITE || step->kind == STEP_CLONE || step->kind == STEP_INSTALL;

    if (r == -ENOSPC)
        return a->run->sc->fill && allocates;
    if (a->run->points->depth == 0)
        return false;
    if (f == FAULT_MEMORY_ONCE || f == FAULT_MEMORY_FROM)
        return r == -ENOMEM || r == -EIO;
    return r == -EIO;
}

/* Notes the outcome. True if the step was refused and may be tried again. */
static bool settle_step(struct actor *a, unsigned number, int r, bool failed_before)
{
    const struct step *step = &a->script->steps[number];
    struct store *s = a->run->store;

    if (r == 0) {
        a->outcomes[number] = OUTCOME_DONE;
        if (failed_before && step->kind != STEP_SETTLE && step->kind != STEP_UNPIN &&
            step->kind != STEP_PIN_READ)
            run_note(a->run, "actor %u step %u: answered after the store had failed", a->id,
                     number);
        return false;
    }
    if (!error_is_fit(a, step, r))
        run_note(a->run, "actor %u step %u: %s", a->id, number, err_text(r));
    if (store_failed(s) != 0) {
        a->stopped = true; /* in doubt */
        return false;
    }
    a->outcomes[number] = OUTCOME_REFUSED;
    return r != -ENOSPC;
}

static fiber_fn void run_alone(struct actor *a, unsigned number)
{
    const struct step *step = &a->script->steps[number];
    bool again = true;

    for (unsigned i = 0; again && i < TRIES; i++) {
        bool failed = store_failed(a->run->store) != 0;
        a->outcomes[number] = OUTCOME_STARTED;
        again = settle_step(a, number, do_step(a, number, version_now(a, step->object)), failed);
    }
    if (again && fault_is_once(a->run->points->fault))
        run_note(a->run, "actor %u step %u is refused for good", a->id, number);
    if (again) { /* it comes first in the next life */
        a->outcomes[number] = OUTCOME_NONE;
        a->stopped = true;
    }
    if (a->outcomes[number] == OUTCOME_DONE)
        model_apply(&a->model, step, number);
}

/* --- bursts --- */

struct burst {
    struct actor *a;
    unsigned number;
    struct version prev;
    bool failed_before;
    int r;
    struct wgroup *group;
};

static void burst_fiber(void *arg)
{
    struct burst *b = arg;

    b->failed_before = store_failed(b->a->run->store) != 0;
    b->r = do_step(b->a, b->number, b->prev);
    /* At once: a crash may come before all have been answered. */
    if (b->r == 0)
        b->a->outcomes[b->number] = OUTCOME_DONE;
    wgroup_finish(b->group);
}

/* Steps first to last of one object, each without waiting for the one before. */
static fiber_fn void run_burst(struct actor *a, unsigned first, unsigned last)
{
    struct burst *bursts = memory_zalloc((last - first + 1) * sizeof(*bursts));
    struct version prev = version_now(a, a->script->steps[first].object);
    bool broken = false;
    struct wgroup group;

    wgroup_init(&group);
    wgroup_add(&group, last - first + 1);
    for (unsigned i = first; i <= last; i++) {
        bursts[i - first] = (struct burst){.a = a, .number = i, .prev = prev, .group = &group};
        a->outcomes[i] = OUTCOME_STARTED;
        prev = model_version(i);
        memory_exempt_begin();
        ASSERT(fiber_spawn(a->run->rt, "burst", burst_fiber, &bursts[i - first]) == 0);
        memory_exempt_end();
    }
    wgroup_wait(&group);
    for (unsigned i = first; i <= last && !a->stopped; i++) {
        const struct burst *b = &bursts[i - first];
        if (broken && b->r == -ESTALE)
            a->outcomes[i] = OUTCOME_REFUSED; /* as the one before it is not there */
        else
            broken = settle_step(a, i, b->r, b->failed_before) || broken;
        if (a->outcomes[i] == OUTCOME_DONE)
            model_apply(&a->model, &a->script->steps[i], i);
        else if (a->outcomes[i] == OUTCOME_REFUSED)
            run_alone(a, i);
    }
    free(bursts);
}

void actor_main(void *arg)
{
    struct actor *a = arg;

    while (!a->stopped && a->next < a->script->count && a->budget > 0) {
        unsigned first = a->next, last = first;
        if (a->script->steps[first].kind == STEP_REOPEN)
            break;
        while (a->script->steps[last].burst)
            last++;
        a->next = last + 1;
        a->budget -= MIN(a->budget, last - first + 1);
        if (last == first)
            run_alone(a, first);
        else
            run_burst(a, first, last);
    }
    unpin(a);
    wgroup_finish(&a->run->group);
}
