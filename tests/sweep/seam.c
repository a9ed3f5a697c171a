/* SPDX-License-Identifier: Apache-2.0 */
/* See seam.h. There is one seam at a time in a process. */
#include "seam.h"
#include <signal.h>
#include <unistd.h>
#include "memory.h"
#include "rt/seam.h"
#include "sim/sim.h"

#define SHADOWS 512u

/* What belongs to a disk_io under way, to see its completion. */
struct shadow {
    struct disk_io *io;
    void (*done)(struct disk_io *io);
};

static struct {
    struct seam *seam;
    struct rt_ops rt_ops, rt_original;
    struct disk_ops disk_ops;
    const struct disk_ops *disk_original;
    struct shadow shadows[SHADOWS];
} global;

static bool is_change(enum disk_op op)
{
    return op != DISK_READ;
}

/* --- faults --- */

static void kill_point(struct seam *s)
{
    struct points *p = s->points;

    if (p->armed && ++p->passed[0] == p->at.numbers[0])
        kill(getpid(), SIGKILL);
}

static void shadow_done(struct disk_io *io)
{
    for (unsigned i = 0; i < SHADOWS; i++) {
        if (global.shadows[i].io == io) {
            global.shadows[i].io = NULL;
            kill_point(global.seam);
            global.shadows[i].done(io);
            return;
        }
    }
    ASSERT(!"every operation has a shadow");
}

/* Submission and completion of every operation are points. */
static void submit_to_be_killed(struct seam *s, struct disk *d, struct disk_io *io)
{
    unsigned i = 0;

    kill_point(s);
    while (global.shadows[i].io != NULL) {
        i++;
        ASSERT(i < SHADOWS);
    }
    global.shadows[i] = (struct shadow){io, io->done};
    io->done = shadow_done;
    global.disk_original->submit(d, io);
}

static bool fails(struct seam *s, enum disk_op op)
{
    enum fault f = s->points->fault;
    bool fits = is_change(op) ? f == FAULT_WRITE_ONCE || f == FAULT_WRITE_FROM
                              : f == FAULT_READ_ONCE || f == FAULT_READ_FROM;

    if (!fits)
        return false;
    if (s->failing)
        return true;
    if (!points_strike(s->points))
        return false;
    s->failing = !fault_is_once(f);
    s->struck_change = op == DISK_WRITE || op == DISK_FLUSH;
    return true;
}

static void submit(struct disk *d, struct disk_io *io)
{
    struct seam *s = global.seam;
    enum fault f = s->points->fault;

    memory_exempt_begin();
    if (f == FAULT_KILL) {
        submit_to_be_killed(s, d, io);
    } else {
        if (fails(s, io->op))
            sim_disk_fault(s->sim, s->path, io->op, SIM_FAULT_EIO_ONCE, 1);
        global.disk_original->submit(d, io);
        if ((f == FAULT_CUT || f == FAULT_CUT_TWICE) && is_change(io->op) &&
            points_strike(s->points)) {
            sim_reseed(s->sim, points_seed(s->points));
            sim_node_crash(s->sim, s->rt);
        }
    }
    memory_exempt_end();
}

/* --- standing between --- */

static int open_between(struct rt *rt, const char *path, unsigned flags, uint64_t size,
                        struct disk **ret)
{
    int r;

    memory_exempt_begin();
    r = global.rt_original.disk_open(rt, path, flags, size, ret);
    memory_exempt_end();
    if (r < 0)
        return r;
    global.disk_original = (*ret)->ops;
    global.disk_ops = *(*ret)->ops;
    global.disk_ops.submit = submit;
    (*ret)->ops = &global.disk_ops;
    return 0;
}

void seam_attach(struct seam *s, struct rt *rt)
{
    global.seam = s;
    s->rt = rt;
    if (rt->ops == &global.rt_ops)
        return;
    global.rt_original = *rt->ops;
    global.rt_ops = *rt->ops;
    global.rt_ops.disk_open = open_between;
    rt->ops = &global.rt_ops;
}

void seam_heal(struct seam *s)
{
    s->failing = false;
    s->points->armed = false;
    memory_set_failing(NULL, NULL);
}
