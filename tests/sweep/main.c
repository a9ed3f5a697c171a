/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sweep program. Without arguments it runs every fault over every scenario; see README.md.
 * Prints `ok FAULT SCENARIO: …` or `FAIL FAULT SCENARIO`.
 */
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "base/log.h"
#include "drive.h"
#include "kill.h"
#include "memory.h"
#include "sim/sim.h"

#define LATER_STEPS 3u /* of each actor, in the life after a fault */

/* Forked children abandon memory by design; V5 looks for leaks instead. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0:exitcode=99";
}
const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void)
{
    return "halt_on_error=1:exitcode=99";
}

/* Faults make the store log errors; they are shown only when a point is replayed. */
static bool verbose;
void __real_log_write(enum log_level level, const char *module, const char *format, ...);
void __wrap_log_write(enum log_level level, const char *module, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void __wrap_log_write(enum log_level level, const char *module, const char *format, ...)
{
    char text[512];
    va_list ap;

    if (!verbose)
        return;
    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    __real_log_write(level, module, "%s", text);
}

static bool allocation_fails(void *arg)
{
    struct run *run = arg;

    if (run->seam.failing)
        return true;
    if (!points_strike(run->points))
        return false;
    run->seam.failing = !fault_is_once(run->points->fault);
    return true;
}

static unsigned depth_max(const struct points *p)
{
    return p->fault == FAULT_CUT_TWICE ? 2 : 1;
}

/* One life; once more if it ended in a second cut. */
static void live(struct run *run, struct sim *sim, unsigned budget)
{
    unsigned depth;

    do {
        depth = run->points->depth;
        run->budget = budget;
        run->ended = false;
        seam_attach(&run->seam, run->rt);
        sim_do(sim, run->rt, run_live, run);
        if (!run->ended && run->points->depth == depth)
            run_note(run, "stands still");
        if (!run->ended && run->lives > 0)
            run->lives++;
    } while (!run->ended && run->points->depth != depth && run->lives > 0);
    run->lives++;
}

/* The whole run on a simulated disk, in which faults strike and children are forked. */
static void run_simulated(struct run *run)
{
    struct points *p = run->points;
    struct sim *sim = sim_new(p->seed);
    bool memory = p->fault == FAULT_MEMORY_ONCE || p->fault == FAULT_MEMORY_FROM;

    run->path = "disk";
    run->seam = (struct seam){.points = p, .sim = sim, .path = run->path};
    run->rt = sim_node_new(sim, NULL);
    ASSERT(sim_disk_new(sim, run->path, run->sc->disk_blocks * STORE_BLOCK, run->sc->durability) ==
           0);
    seam_attach(&run->seam, run->rt);
    sim_do(sim, run->rt, run_prepare, run);
    p->armed = true;
    if (memory)
        memory_set_failing(allocation_fails, run);
    live(run, sim, UINT_MAX);
    seam_heal(&run->seam);
    /* What was answered must also have been durable. */
    if (p->fault != FAULT_CUT && p->fault != FAULT_CUT_TWICE)
        sim_node_crash(sim, run->rt);
    p->armed = p->depth > 0 && p->depth < depth_max(p);
    live(run, sim, LATER_STEPS);
    seam_heal(&run->seam);
    live(run, sim, 0);
    sim_free(sim);
}

static void sweep_simulated(struct points *p, const struct scenario *sc)
{
    struct ledger *ledger = memory_zalloc(sizeof(*ledger));
    struct run *run = memory_zalloc(sizeof(*run));
    unsigned depth;

    run_init(run, sc, p, ledger);
    run_simulated(run);
    depth = p->depth;
    if (p->replay && depth != depth_max(p))
        run_note(run, "the point was not reached");
    if (run->error[0] != '\0')
        points_report(p, run->error);
    if (depth > 0 && !p->replay)
        _exit(run->error[0] != '\0');
    run_done(run);
    free(run);
    free(ledger);
}

/* --- the command line --- */

static uint64_t from_environment(const char *name, uint64_t standard)
{
    const char *s = getenv(name);

    return s != NULL && s[0] != '\0' ? strtoull(s, NULL, 10) : standard;
}

/* Which share of the points is tried: those that cost more, less often. */
static unsigned step_of(enum fault f)
{
    static const unsigned standard[FAULT_COUNT] = {
        [FAULT_CUT] = 5,          [FAULT_CUT_TWICE] = 6,    [FAULT_WRITE_ONCE] = 10,
        [FAULT_WRITE_FROM] = 14,  [FAULT_READ_ONCE] = 3,    [FAULT_READ_FROM] = 6,
        [FAULT_MEMORY_ONCE] = 14, [FAULT_MEMORY_FROM] = 20, [FAULT_KILL] = 50,
    };

    return (unsigned)from_environment("SWEEP_STEP", standard[f]);
}

static int sweep(enum fault f, const struct scenario *sc, uint64_t seed, const char *point,
                 struct tally *tally)
{
    struct points p = {.fault = f, .scenario = sc->name, .seed = seed, .tally = tally};
    time_t begun = time(NULL);

    *tally = (struct tally){0};
    p.step = MAX(step_of(f), 1u);
    p.variants = f == FAULT_CUT ? (unsigned)from_environment("SWEEP_VARIANTS", 1) : 1;
    p.replay = point != NULL;
    if (p.replay &&
        sscanf(point, "%u.%u.%u", &p.at.numbers[0], &p.at.variant, &p.at.numbers[1]) < 2) {
        fprintf(stderr, "sweep: a point is NUMBER.VARIANT or NUMBER.VARIANT.NUMBER\n");
        return 64;
    }
    verbose = p.replay;
    if (f == FAULT_KILL)
        sweep_killed(&p, sc);
    else
        sweep_simulated(&p, sc);
    if (tally->failures == 0)
        printf("ok %s %s: %u points in %lld s\n", fault_names[f], sc->name, tally->points,
               (long long)(time(NULL) - begun));
    else
        printf("FAIL %s %s: %u of %u points\n", fault_names[f], sc->name, tally->failures,
               tally->points);
    fflush(stdout);
    return tally->failures > 0;
}

int main(int argc, char **argv)
{
    uint64_t seed = from_environment("SWEEP_SEED", (uint64_t)time(NULL));
    struct tally *tally =
        mmap(NULL, sizeof(*tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int status = 0;
    bool any = false;

    ASSERT(tally != MAP_FAILED);
    log_level = LOG_INFO;
    printf("sweep: seed %llu\n", (unsigned long long)seed);
    for (unsigned f = 0; f < FAULT_COUNT; f++) {
        for (unsigned i = 0; i < scenario_count; i++) {
            if ((argc > 1 && strcmp(argv[1], fault_names[f]) != 0 && strcmp(argv[1], "all") != 0) ||
                (argc > 2 && strcmp(argv[2], scenarios[i].name) != 0))
                continue;
            any = true;
            status |= sweep((enum fault)f, &scenarios[i], seed, argc > 3 ? argv[3] : NULL, tally);
        }
    }
    if (!any)
        fprintf(stderr, "usage: sweep [FAULT|all [SCENARIO [POINT]]]\n");
    return any ? status : 64;
}
