/* SPDX-License-Identifier: Apache-2.0 */
/* See drive.h. */
#include "drive.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "memory.h"

#define FILLER_VID 9000u

void run_note(struct run *run, const char *format, ...)
{
    va_list ap;
    int n;

    if (run->error[0] != '\0')
        return;
    n = snprintf(run->error, sizeof(run->error), "life %u: ", run->lives);
    va_start(ap, format);
    vsnprintf(run->error + n, sizeof(run->error) - (size_t)n, format, ap);
    va_end(ap);
}

void run_init(struct run *run, const struct scenario *sc, struct points *points,
              struct ledger *ledger)
{
    memset(run, 0, sizeof(*run));
    run->sc = sc;
    run->points = points;
    run->ledger = ledger;
    scenario_build(sc, run->scripts);
    for (unsigned i = 0; i < sc->actor_count; i++) {
        struct actor *a = &run->actors[i];
        ASSERT(run->scripts[i].count <= STEPS_MAX);
        a->run = run;
        a->id = i;
        a->script = &run->scripts[i];
        a->outcomes = ledger->outcomes[i];
        model_init(&a->model, i);
    }
}

void run_done(struct run *run)
{
    for (unsigned i = 0; i < run->sc->actor_count; i++)
        model_done(&run->actors[i].model);
    scenario_free(run->scripts);
}

/* --- verification (V1, V2, V3) --- */

static void finding(void *arg, const char *text)
{
    run_note(arg, "check: %s", text);
}

static fiber_fn void check_disk(struct run *run)
{
    struct store_check_report report;
    int r = store_check(run->rt, run->path, true, finding, run, &report);

    if (r < 0)
        run_note(run, "check: %s", err_text(r));
}

/* Brings the model to what was answered; *ret_next is the first step after it. */
static void model_rebuild(struct actor *a)
{
    unsigned last = 0;

    model_done(&a->model);
    model_init(&a->model, a->id);
    for (unsigned i = 0; i < a->script->count; i++) {
        if (a->outcomes[i] == OUTCOME_DONE)
            last = i;
    }
    for (unsigned i = 0; i < a->script->count; i++) {
        /* Steps of a burst come in order, so one before an answered one is there too. */
        if (a->outcomes[i] == OUTCOME_STARTED && i < last)
            a->outcomes[i] = OUTCOME_DONE;
        if (a->outcomes[i] == OUTCOME_DONE)
            model_apply(&a->model, &a->script->steps[i], i);
    }
}

static fiber_fn void verify_actor(struct run *run, struct actor *a)
{
    const char *why;
    char first_why[200];

    model_rebuild(a);
    why = model_differs(&a->model, run->store);
    snprintf(first_why, sizeof(first_why), "%s", why != NULL ? why : "");
    for (unsigned i = 0; why != NULL && i < a->script->count; i++) {
        if (a->outcomes[i] != OUTCOME_STARTED)
            continue;
        model_apply(&a->model, &a->script->steps[i], i);
        a->outcomes[i] = OUTCOME_DONE;
        why = model_differs(&a->model, run->store);
    }
    if (why != NULL)
        run_note(run, "%s", first_why);
    a->next = 0;
    for (unsigned i = 0; i < a->script->count; i++) {
        if (a->outcomes[i] == OUTCOME_STARTED)
            a->outcomes[i] = OUTCOME_NONE;
        if (a->outcomes[i] != OUTCOME_NONE)
            a->next = i + 1;
    }
}

static fiber_fn void verify(struct run *run)
{
    uint64_t count = run->ledger->fillers;
    struct store_usage usage;

    if (store_is_inexact(run->store))
        run_note(run, "taken for damaged");
    for (unsigned i = 0; i < run->sc->actor_count; i++) {
        verify_actor(run, &run->actors[i]);
        count += model_count(&run->actors[i].model);
    }
    store_usage(run->store, &usage);
    if (usage.object_count != count)
        run_note(run, "%llu objects, should be %llu", (unsigned long long)usage.object_count,
                 (unsigned long long)count);
}

/* --- opening and closing (V4) --- */

static bool fault_fails_changes(const struct run *run)
{
    return run->points->fault == FAULT_WRITE_ONCE || run->points->fault == FAULT_WRITE_FROM;
}

static fiber_fn int open_store(struct run *run)
{
    struct store_open_options options = {
        .cache_bytes = 1,
        /* By the seed: checkpoints in one step, or in the smallest ones. */
        .checkpoint_items = (unsigned)((run->points->seed + (uint64_t)(run->sc - scenarios)) % 4),
        .zero_ahead_bytes = run->sc->ahead ? 1 << 20 : 0};
    unsigned depth = run->points->depth;
    int r = store_open(run->rt, run->path, &options, &run->store);

    if (run->points->depth != depth && r == 0 && run->seam.struck_change)
        run_note(run, "opened although a write or flush failed");
    if (r < 0 && run->points->depth == 0)
        run_note(run, "open: %s", err_text(r));
    else if (r < 0 && r != -EIO && r != -ENOMEM)
        run_note(run, "open: %s, which is not the fault", err_text(r));
    if (r < 0 && run->points->depth != depth && fault_is_once(run->points->fault)) {
        r = store_open(run->rt, run->path, &options, &run->store);
        if (r < 0)
            run_note(run, "open failed again: %s", err_text(r));
    }
    run->depth_at_open = run->points->depth;
    return r;
}

static fiber_fn int close_store(struct run *run)
{
    int failed = store_failed(run->store);
    int r = store_close(run->store);

    run->store = NULL;
    if (failed != 0 && r == 0)
        run_note(run, "close hides that the store had failed");
    if (run->points->depth == 0 && r < 0)
        run_note(run, "close: %s", err_text(r));
    if (run->points->depth != run->depth_at_open && fault_fails_changes(run) &&
        run->seam.struck_change && r == 0)
        run_note(run, "close does not tell of a failed write or flush");
    return r;
}

/* --- lives --- */

/* True if all actors stand before a reopening. */
static bool reopening_is_due(struct run *run)
{
    unsigned waiting = 0;

    for (unsigned i = 0; i < run->sc->actor_count; i++) {
        const struct actor *a = &run->actors[i];
        if (!a->stopped && a->next < a->script->count &&
            a->script->steps[a->next].kind == STEP_REOPEN)
            waiting++;
        else if (a->next < a->script->count)
            return false;
    }
    return waiting > 0;
}

static fiber_fn void run_actors(struct run *run)
{
    wgroup_init(&run->group);
    wgroup_add(&run->group, run->sc->actor_count);
    for (unsigned i = 0; i < run->sc->actor_count; i++) {
        memory_exempt_begin();
        ASSERT(fiber_spawn(run->rt, "actor", actor_main, &run->actors[i]) == 0);
        memory_exempt_end();
    }
    wgroup_wait(&run->group);
}

static fiber_fn void run_opened(struct run *run)
{
    run_actors(run);
    while (reopening_is_due(run)) {
        for (unsigned i = 0; i < run->sc->actor_count; i++) {
            struct actor *a = &run->actors[i];
            if (a->next < a->script->count)
                a->outcomes[a->next++] = OUTCOME_DONE;
        }
        if (close_store(run) < 0 || open_store(run) < 0)
            break;
        run_actors(run);
    }
    if (run->store != NULL)
        (void)close_store(run);
}

static void rest(void *arg)
{
    struct run *run = arg;

    fiber_yield();
    wgroup_finish(&run->group);
}

/* Has the runtime make the stacks that it keeps, so that they are not taken for a leak. */
static fiber_fn void make_stacks(struct run *run)
{
    const unsigned count = 8 + SCENARIO_ACTORS * (1 + BURST_MAX);

    wgroup_init(&run->group);
    wgroup_add(&run->group, count);
    memory_exempt_begin();
    for (unsigned i = 0; i < count; i++)
        ASSERT(fiber_spawn(run->rt, "rest", rest, run) == 0);
    memory_exempt_end();
    wgroup_wait(&run->group);
}

/* V5. The fibers of the store end a moment after it. */
static fiber_fn void check_memory(struct run *run, size_t before)
{
    for (unsigned i = 0; i < 4; i++)
        fiber_yield();
    if (memory_live() != before)
        run_note(run, "%ld allocations are left over", (long)memory_live() - (long)before);
}

fiber_fn void run_live(void *arg)
{
    struct run *run = arg;
    bool first = run->lives == 0;
    size_t live;

    make_stacks(run);
    live = memory_live();
    for (unsigned i = 0; i < run->sc->actor_count; i++) {
        run->actors[i].budget = run->budget;
        run->actors[i].stopped = false;
        run->actors[i].pin = NULL; /* it went with the store */
    }
    run->store = NULL;
    if (!first) {
        bool armed = run->points->armed;
        run->points->armed = false;
        check_disk(run);
        run->points->armed = armed;
    }
    if (open_store(run) == 0) {
        if (!first) {
            run->points->armed = false;
            verify(run);
        }
        run_opened(run);
    }
    check_memory(run, live);
    run->ended = true;
}

/* --- before the faults --- */

static struct oid filler_oid(unsigned i)
{
    return (struct oid){.vid = FILLER_VID, .index = i};
}

static fiber_fn int put_filler(struct run *run, const uint8_t *data, uint32_t blocks)
{
    struct store_extent extent = {0, blocks * STORE_BLOCK};
    struct iovec iov = {(void *)data, extent.length};
    struct store_change c = {.kind = STORE_WRITE,
                             .oid = filler_oid(run->ledger->fillers),
                             .next = model_version(0),
                             .extents = &extent,
                             .extent_count = 1,
                             .iov = &iov,
                             .iov_count = 1};

    return store_apply(run->store, &c, NULL);
}

/* Fills the store up but for the room of the first filler. */
static fiber_fn int fill_up(struct run *run)
{
    uint8_t *data = memory_pages(32 * STORE_BLOCK);
    struct oid first = filler_oid(0);
    struct store_change c = {
        .kind = STORE_REMOVE, .oid = first, .prev = model_version(0), .next = model_version(1)};
    int r = 0;

    memset(data, 0x5a, 32 * STORE_BLOCK);
    for (uint32_t blocks = 32; blocks > 0; blocks /= 4) {
        while ((r = put_filler(run, data, blocks)) == 0)
            run->ledger->fillers++;
        if (r != -ENOSPC)
            break;
    }
    free(data);
    if (r == -ENOSPC)
        r = store_apply(run->store, &c, NULL);
    if (r == 0)
        run->ledger->fillers--; /* counted by the objects that are there */
    return r;
}

fiber_fn void run_prepare(void *arg)
{
    struct run *run = arg;
    struct store_format_options options = {.size = run->sc->disk_blocks * STORE_BLOCK,
                                           .log_bytes = 256 * STORE_BLOCK,
                                           .zero_bytes = run->sc->ahead ? 1 << 20 : 0,
                                           .store_uuid = {{1, 2, 3}}};
    int r = store_format(run->rt, run->path, &options, NULL, NULL);

    if (r == 0)
        r = store_open(run->rt, run->path, NULL, &run->store);
    if (r == 0 && run->sc->fill)
        r = fill_up(run);
    if (run->store != NULL) {
        int r_close = store_close(run->store);
        r = r < 0 ? r : r_close;
    }
    run->store = NULL;
    if (r < 0)
        run_note(run, "cannot be prepared: %s", err_text(r));
    run->ledger->prepared = r == 0;
}
