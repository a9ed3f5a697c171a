/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim: runs one seed in this process, or many seeds, each in a child of its own.
 *
 * P1 A seed is one process: what crashed nodes leave behind in memory goes with it. P2 The exit
 *    status tells wrong (1), stuck (2), crash (3) and usage (64) apart; a failing seed prints the
 *    command that replays it.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "base/log.h"
#include "sim/cluster/content.h"
#include "sim/cluster/faults.h"
#include "sim/cluster/verify.h"

#define WORK_NS       (60 * NS_PER_S)
#define GUESTS_NS     (400 * NS_PER_S)
#define WALL_SECONDS  60 /* of one seed, then it is stuck */
#define JOB_COUNT_MAX 64

struct options {
    uint64_t seed, count, seconds;
    unsigned jobs, nodes;
    bool verbose, many, keep_going;
    const char *name; /* of this program */
};

/* --- one seed --- */

/* A finding of the sanitizers is a crash, too. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "exitcode=3:detect_leaks=0";
}
const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void)
{
    return "halt_on_error=1:exitcode=3:print_stacktrace=1";
}

static void work_phase(struct world *w, struct work *k)
{
    uint64_t end = sim_now(w->sim) + WORK_NS;
    w->stage = "working";
    work_start(k, w);
    faults_start(w);
    while (k->left > 0 && sim_now(w->sim) < end)
        w->stats.steps += sim_run(w->sim, sim_now(w->sim) + 50 * NS_PER_MS);
    world_heal(w);
}

static void wait_for_guests(struct world *w)
{
    uint64_t end = sim_now(w->sim) + GUESTS_NS;
    w->stage = "healing";
    while (w->running > 0) {
        w->stats.steps += sim_run(w->sim, sim_now(w->sim) + 50 * NS_PER_MS);
        if (sim_now(w->sim) > end)
            world_stuck(w, "guests do not get their answers");
    }
}

static void on_cpu_limit(int signal)
{
    static const char text[] = "stuck: too much computing for one seed\n";
    (void)!write(STDERR_FILENO, text, sizeof(text) - 1);
    _exit(SIM_STUCK);
}

static void run_seed(const struct options *o, uint64_t seed, struct sim_stats *ret)
{
    struct world *w = calloc(1, sizeof(*w));
    struct work *k = calloc(1, sizeof(*k));
    ASSERT(w && k);
    signal(SIGXCPU, on_cpu_limit);
    signal(SIGALRM, on_cpu_limit);
    alarm(WALL_SECONDS);
    plan_draw(&w->plan, seed);
    if (o->nodes)
        plan_set_nodes(&w->plan, o->nodes);
    w->verbose = o->verbose;
    log_level = o->verbose ? LOG_DEBUG : LOG_ERROR;
    plan_print(&w->plan);
    world_start(w);
    work_phase(w, k);
    wait_for_guests(w);
    verify_all(k);
    w->stats.seeds = 1;
    w->stats.sim_ns = sim_now(w->sim);
    w->stats.overflows = content_overflows();
    *ret = w->stats;
    fprintf(stderr, "ok: %.3f s simulated, %" PRIu64 " operations, trace %016" PRIx64 "\n",
            (double)w->stats.sim_ns / 1e9, w->stats.operations, w->trace);
}

/* --- many seeds --- */

struct job {
    pid_t pid;
    uint64_t seed;
    FILE *output;
    struct sim_stats *stats; /* shared with the child */
};

static void stats_add(struct sim_stats *to, const struct sim_stats *from)
{
    uint64_t *t = (uint64_t *)to;
    const uint64_t *f = (const uint64_t *)from;
    static_assert(sizeof(*to) % sizeof(uint64_t) == 0, "only counters");
    for (size_t i = 0; i < sizeof(*to) / sizeof(uint64_t); i++)
        t[i] += f[i];
}

static void job_start(struct job *j, const struct options *o, uint64_t seed)
{
    memset(j->stats, 0, sizeof(*j->stats));
    j->seed = seed;
    j->output = tmpfile();
    ASSERT(j->output);
    j->pid = fork();
    ASSERT(j->pid >= 0);
    if (j->pid > 0)
        return;
    dup2(fileno(j->output), STDERR_FILENO);
    run_seed(o, seed, j->stats);
    _exit(SIM_OK);
}

static enum sim_exit exit_of(int status)
{
    if (!WIFEXITED(status))
        return SIM_CRASH;
    int code = WEXITSTATUS(status);
    return code == SIM_OK || code == SIM_WRONG || code == SIM_STUCK ? (enum sim_exit)code
                                                                    : SIM_CRASH;
}

static void print_failure(const struct options *o, struct job *j, enum sim_exit code)
{
    static const char *const words[] = {"", "WRONG", "STUCK", "CRASH"};
    char line[1000];
    rewind(j->output);
    printf("FAIL seed %" PRIu64 ": %s\n", j->seed, words[code]);
    for (unsigned i = 0; i < 60 && fgets(line, sizeof(line), j->output); i++)
        printf("    %s", line);
    printf("  replay: %s --seed %" PRIu64, o->name, j->seed);
    if (o->nodes)
        printf(" --nodes %u", o->nodes);
    printf(" --verbose\n");
    fflush(stdout);
}

static void print_summary(const struct options *o, const struct sim_stats *s, uint64_t failed,
                          double seconds)
{
    printf("sim: %" PRIu64 " seeds from %" PRIu64 ", %.1f simulated hours, %" PRIu64
           " operations checked (%" PRIu64 " reads, %" PRIu64 " writes, %" PRIu64
           " others on images; %" PRIu64 " unanswered, %" PRIu64 " refused, %" PRIu64
           " left for another node, %" PRIu64
           " volumes opened through a second one), %.1f seeds per second\n",
           s->seeds, o->seed, (double)s->sim_ns / 3600e9, s->operations, s->reads, s->writes,
           s->admin, s->unanswered, s->refused, s->moved, s->forwarding,
           (double)s->seeds / seconds);
    printf("sim: faults:");
    for (unsigned i = 0; i < FAULT_KIND_COUNT; i++)
        printf(" %s %" PRIu64, fault_names[i], s->faults[i]);
    printf("; doubts given up: %" PRIu64 "\n", s->overflows);
    printf("sim: %" PRIu64 " seeds passed, %" PRIu64 " failed\n", s->seeds, failed);
    fflush(stdout);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

struct run {
    const struct options *o;
    struct job jobs[JOB_COUNT_MAX];
    unsigned running;
    uint64_t next, end;
    double begun;
    uint64_t failed;
    enum sim_exit worst;
    struct sim_stats total;
};

static bool goes_on(const struct run *r)
{
    if (r->failed > 0 && !r->o->keep_going)
        return false;
    if (r->o->seconds)
        return now_s() - r->begun < (double)r->o->seconds;
    return r->next < r->end;
}

static void job_end(struct run *r, struct job *j, int status)
{
    enum sim_exit code = exit_of(status);
    r->running--;
    j->pid = 0;
    if (code == SIM_OK) {
        stats_add(&r->total, j->stats);
    } else {
        r->failed++;
        if (r->worst == SIM_OK || code == SIM_WRONG)
            r->worst = code;
        print_failure(r->o, j, code);
    }
    fclose(j->output);
}

static enum sim_exit run_many(const struct options *o)
{
    struct run *r = calloc(1, sizeof(*r));
    ASSERT(r);
    r->o = o;
    r->next = o->seed;
    r->end = o->seed + o->count;
    r->begun = now_s();
    for (unsigned i = 0; i < o->jobs; i++) {
        r->jobs[i].stats = mmap(NULL, sizeof(struct sim_stats), PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        ASSERT(r->jobs[i].stats != MAP_FAILED);
    }
    while (r->running > 0 || goes_on(r)) {
        for (unsigned i = 0; i < o->jobs && goes_on(r); i++) {
            if (r->jobs[i].pid == 0) {
                job_start(&r->jobs[i], o, r->next++);
                r->running++;
            }
        }
        int status;
        pid_t pid = waitpid(-1, &status, 0);
        ASSERT(pid > 0);
        for (unsigned i = 0; i < o->jobs; i++) {
            if (r->jobs[i].pid == pid)
                job_end(r, &r->jobs[i], status);
        }
    }
    print_summary(o, &r->total, r->failed, now_s() - r->begun);
    return r->worst;
}

/* --- options --- */

static _Noreturn void usage(void)
{
    fprintf(stderr,
            "usage: sim --seed N [--nodes K] [--verbose]      one seed\n"
            "       sim --from N --count M [--jobs J]         M seeds, each in a process\n"
            "       sim --from N --seconds S [--jobs J]       seeds until S seconds have passed\n"
            "           --keep-going: do not stop at the first failure\n"
            "exit status: 0 right, 1 wrong, 2 stuck, 3 crash, 64 usage\n");
    exit(SIM_USAGE);
}

static uint64_t number(const char *text)
{
    char *end;
    errno = 0;
    uint64_t n = strtoull(text, &end, 0);
    if (errno || *end || end == text)
        usage();
    return n;
}

static struct options parse(int argc, char **argv)
{
    enum { SEED = 1, FROM, COUNT, SECONDS, JOBS, NODES, VERBOSE, KEEP_GOING };
    static const struct option known[] = {
        {"seed", 1, NULL, SEED},
        {"from", 1, NULL, FROM},
        {"count", 1, NULL, COUNT},
        {"seconds", 1, NULL, SECONDS},
        {"jobs", 1, NULL, JOBS},
        {"nodes", 1, NULL, NODES},
        {"verbose", 0, NULL, VERBOSE},
        {"keep-going", 0, NULL, KEEP_GOING},
        {NULL, 0, NULL, 0},
    };
    struct options o = {.name = argv[0], .jobs = 1};
    bool seed_given = false;
    int c;
    while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (c) {
        case SEED:
        case FROM:
            o.seed = number(optarg);
            o.many = c == FROM;
            seed_given = true;
            break;
        case COUNT:
            o.count = number(optarg);
            break;
        case SECONDS:
            o.seconds = number(optarg);
            break;
        case JOBS:
            o.jobs = (unsigned)number(optarg);
            break;
        case NODES:
            o.nodes = (unsigned)number(optarg);
            break;
        case VERBOSE:
            o.verbose = true;
            break;
        case KEEP_GOING:
            o.keep_going = true;
            break;
        default:
            usage();
        }
    }
    bool sound = seed_given && optind == argc && o.jobs >= 1 && o.jobs <= JOB_COUNT_MAX &&
                 o.nodes <= NODE_COUNT_MAX && o.many == (o.count > 0 || o.seconds > 0);
    if (!sound)
        usage();
    return o;
}

int main(int argc, char **argv)
{
    struct options o = parse(argc, argv);
    if (o.many)
        return run_many(&o);
    int status;
    pid_t pid = fork(); /* so that a crash has an exit status, too */
    ASSERT(pid >= 0);
    if (pid == 0) {
        struct sim_stats stats;
        run_seed(&o, o.seed, &stats);
        _exit(SIM_OK);
    }
    ASSERT(waitpid(pid, &status, 0) == pid);
    return exit_of(status);
}
