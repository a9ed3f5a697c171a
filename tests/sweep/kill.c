/* SPDX-License-Identifier: Apache-2.0 */
/* See kill.h. No process that has a ring forks: rings do not outlive that. */
#include "kill.h"
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "drive.h"
#include "rt/uring/uring.h"

#define POINTS_MAX 20000u

static void on_ring(struct run *run, fiber_main *fn)
{
    struct rt *rt;

    ASSERT(rt_uring_new(NULL, &rt) == 0);
    run->rt = rt;
    run->seam.points = run->points;
    seam_attach(&run->seam, rt);
    ASSERT(fiber_spawn(rt, "sweep", fn, run) == 0);
    ASSERT(rt_uring_run(rt) == 0);
    rt_uring_free(rt);
}

/* In a process of its own: never comes back. */
static void run_until_killed(struct run *run)
{
    on_ring(run, run_prepare);
    run->points->armed = true;
    run->budget = UINT_MAX;
    on_ring(run, run_live);
    if (run->error[0] != '\0')
        points_report(run->points, run->error);
    _exit(run->error[0] != '\0');
}

static void verify_file(struct run *run)
{
    for (unsigned i = 0; i < 2; i++) {
        run->lives++;
        run->budget = i == 0 ? 3 : 0;
        on_ring(run, run_live);
    }
    if (run->error[0] != '\0')
        points_report(run->points, run->error);
    _exit(run->error[0] != '\0');
}

/* True if the process was killed: false if it came to its end before. */
static bool run_and_kill(struct run *run, struct points *p)
{
    int status;
    pid_t pid = fork();

    ASSERT(pid >= 0);
    if (pid == 0) {
        alarm(120);
        run_until_killed(run);
    }
    ASSERT(waitpid(pid, &status, 0) == pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) <= 1)
        return false;
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        points_report(p, "crashed or hung before it was killed");
    return true;
}

/* Returns whether there may be more points. */
static bool kill_at(struct points *p, const struct scenario *sc, const char *path, unsigned number)
{
    struct ledger *ledger =
        mmap(NULL, sizeof(*ledger), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct run *run = calloc(1, sizeof(*run));
    bool killed;

    ASSERT(ledger != MAP_FAILED && run != NULL);
    run_init(run, sc, p, ledger);
    run->path = path;
    p->at.numbers[0] = number;
    unlink(path);
    killed = run_and_kill(run, p);
    if (killed && points_fork(p)) {
        p->depth = 1;
        verify_file(run);
    }
    unlink(path);
    run_done(run);
    free(run);
    munmap(ledger, sizeof(*ledger));
    return killed;
}

void sweep_killed(struct points *p, const struct scenario *sc)
{
    const char *dir = getenv("SWEEP_DIR");
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%s/sweep-%d.store", dir != NULL ? dir : ".", (int)getpid());
    if (p->replay) {
        if (!kill_at(p, sc, path, p->at.numbers[0]))
            points_report(p, "the point was not reached");
        return;
    }
    for (unsigned n = 1; n < POINTS_MAX && p->tally->failures < 20; n++) {
        if (points_chosen(p, n) && !kill_at(p, sc, path, n))
            return;
    }
}
