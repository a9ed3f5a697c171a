/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The places where a fault may strike, and the processes that find out what then happens.
 *
 * One run of a scenario passes all its points. At each point a child process is forked in which the
 * fault strikes; it goes on alone, checks, and ends, while the parent goes on unharmed to the next
 * point. So each point costs what comes after it, and a crash or a hang is seen from outside. To
 * replay a point nothing is forked: the fault strikes in the one process.
 */
#pragma once
#include "base/check.h"

enum fault {
    FAULT_CUT,       /* power cut at a write or flush */
    FAULT_CUT_TWICE, /* and again at each write and flush of the opening after it */
    FAULT_WRITE_ONCE,
    FAULT_WRITE_FROM,
    FAULT_READ_ONCE,
    FAULT_READ_FROM,
    FAULT_MEMORY_ONCE,
    FAULT_MEMORY_FROM,
    FAULT_KILL, /* on a real file; by kill.c */
    FAULT_COUNT,
};

extern const char *const fault_names[FAULT_COUNT];

#define POINT_DEPTH 2u

/* Names one point: the numbers of the operations struck, and a variant of the seed. */
struct point {
    unsigned numbers[POINT_DEPTH];
    unsigned variant;
};

struct points {
    enum fault fault;
    const char *scenario;
    uint64_t seed;
    unsigned step;     /* one of so many points is tried */
    unsigned variants; /* how often each */
    bool armed;        /* faults may strike now */
    bool replay;       /* only `at`, without forking */
    unsigned depth;    /* faults that have struck in this process */
    unsigned passed[POINT_DEPTH];
    struct point at;
    struct tally *tally; /* shared by all processes */
};

struct tally {
    unsigned points, failures;
};

/* A point is passed: true where the fault strikes, in a process of its own. */
bool points_strike(struct points *p);
/* The seed of what is random from now on in this process. */
uint64_t points_seed(const struct points *p);
/* True if the point is one of those that are tried. */
bool points_chosen(const struct points *p, unsigned number);
/* Forks; in the parent waits for the child and reports if it crashed or hung. True in the child. */
bool points_fork(struct points *p);
/* Prints what went wrong at the point and how to replay it. */
void points_report(const struct points *p, const char *what);
/* True if the fault strikes once and what failed works when tried again. */
bool fault_is_once(enum fault f);
