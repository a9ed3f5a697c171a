/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Carries out a scenario on a store and judges what the store answers and holds.
 *
 * A run has lives: in each the store is opened, compared with what must be there, changed further
 * and closed. The first one meets the fault.
 *
 * V1 What was answered is there; what was refused is not; of what was under way a first part of
 *    each actor's steps is there (S1, S4). V2 check finds nothing before and after (S2, S3). V3 A
 *    tail cut off is never taken for damage. V4 An error is the injected one. After a failed write
 *    or flush nothing is answered any more, and closing returns the error. What failed once and
 *    left the store serving works when tried again. V5 Closing leaves no memory behind.
 */
#pragma once
#include "scenario.h"
#include "seam.h"

#define STEPS_MAX 96u
#define BURST_MAX 16u

/* All that a verification needs to know of the run. May lie in memory shared between processes. */
struct ledger {
    uint8_t outcomes[SCENARIO_ACTORS][STEPS_MAX]; /* enum outcome */
    unsigned fillers;
    bool prepared;
};

struct actor {
    struct run *run;
    unsigned id;
    const struct script *script;
    uint8_t *outcomes;
    struct model model; /* after the steps done */
    unsigned next, budget;
    bool stopped;
    struct store_pin *pin;
    struct model_object pinned;
};

struct run {
    const struct scenario *sc;
    struct script scripts[SCENARIO_ACTORS];
    struct points *points;
    struct seam seam;
    struct rt *rt;
    const char *path;
    struct ledger *ledger;
    struct actor actors[SCENARIO_ACTORS];
    struct store *store;
    struct wgroup group;
    unsigned lives;
    unsigned budget;        /* steps of each actor in this life */
    unsigned depth_at_open; /* faults that had struck when the store was opened */
    bool ended;             /* this life came to its end */
    char error[256];
};

void run_init(struct run *run, const struct scenario *sc, struct points *points,
              struct ledger *ledger);
void run_done(struct run *run);
void run_note(struct run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Fibers: formats and fills the store; lives one life, with check and verification before if it is
 * not the first one. Faults may strike while points.armed is set. */
fiber_fn void run_prepare(void *arg);
fiber_fn void run_live(void *arg);

/* actor.c: carries out steps until the budget is used up, a reopening, a failure, or the end. */
void actor_main(void *arg);
