/* SPDX-License-Identifier: Apache-2.0 */
/* See points.h. */
#include "points.h"
#include <stdio.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/hash.h"

#define CHILD_SECONDS 120

const char *const fault_names[FAULT_COUNT] = {
    [FAULT_CUT] = "power-cut",
    [FAULT_CUT_TWICE] = "power-cut-twice",
    [FAULT_WRITE_ONCE] = "write-error",
    [FAULT_WRITE_FROM] = "write-errors",
    [FAULT_READ_ONCE] = "read-error",
    [FAULT_READ_FROM] = "read-errors",
    [FAULT_MEMORY_ONCE] = "no-memory",
    [FAULT_MEMORY_FROM] = "no-memory-from",
    [FAULT_KILL] = "kill",
};

bool fault_is_once(enum fault f)
{
    return f == FAULT_WRITE_ONCE || f == FAULT_READ_ONCE || f == FAULT_MEMORY_ONCE;
}

bool points_chosen(const struct points *p, unsigned number)
{
    uint64_t h = hash_u64(p->seed + hash_bytes(p->scenario, strlen(p->scenario)) + p->fault);

    h = hash_u64(h + ((uint64_t)p->at.numbers[0] << 32) * p->depth + number);
    return h % p->step == 0;
}

uint64_t points_seed(const struct points *p)
{
    uint64_t h = hash_u64(p->seed);

    for (unsigned i = 0; i < p->depth; i++)
        h = hash_u64(h + p->at.numbers[i]);
    return hash_u64(h + p->at.variant);
}

void points_report(const struct points *p, const char *what)
{
    __atomic_add_fetch(&p->tally->failures, 1, __ATOMIC_RELAXED);
    printf("  %s %s: %s\n    replay: SWEEP_SEED=%llu build-asan/tests/sweep/sweep %s %s %u.%u",
           fault_names[p->fault], p->scenario, what, (unsigned long long)p->seed,
           fault_names[p->fault], p->scenario, p->at.numbers[0], p->at.variant);
    for (unsigned i = 1; i < p->depth; i++)
        printf(".%u", p->at.numbers[i]);
    printf("\n");
    fflush(stdout);
}

/* The child at p->at has ended with this status. */
static void judge(struct points *p, int status)
{
    char text[100];

    if (WIFEXITED(status) && WEXITSTATUS(status) <= 1)
        return; /* 1: it has reported by itself */
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        snprintf(text, sizeof(text), "hangs");
    else if (WIFSIGNALED(status))
        snprintf(text, sizeof(text), "crashed (%s)", strsignal(WTERMSIG(status)));
    else
        snprintf(text, sizeof(text), "crashed (exit status %d)", WEXITSTATUS(status));
    p->depth++;
    points_report(p, text);
    p->depth--;
}

bool points_fork(struct points *p)
{
    int status;
    pid_t pid;

    fflush(NULL);
    p->tally->points++;
    pid = fork();
    ASSERT(pid >= 0);
    if (pid == 0) {
        alarm(CHILD_SECONDS);
        return true;
    }
    ASSERT(waitpid(pid, &status, 0) == pid);
    judge(p, status);
    return false;
}

bool points_strike(struct points *p)
{
    unsigned number;
    bool strikes = false;

    if (!p->armed)
        return false;
    number = ++p->passed[p->depth];
    if (p->replay) {
        strikes = number == p->at.numbers[p->depth];
    } else if (points_chosen(p, number) && p->tally->failures < 20) {
        unsigned variants = p->depth == 0 ? p->variants : 1;
        p->at.numbers[p->depth] = number;
        for (unsigned v = 0; v < variants && !strikes; v++) {
            if (p->depth == 0)
                p->at.variant = v;
            strikes = points_fork(p);
        }
    }
    if (strikes) {
        p->depth++;
        p->armed = false;
    }
    return strikes;
}
