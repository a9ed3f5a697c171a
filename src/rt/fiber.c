/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fibers: spawning, switching, waking. See fiber.h for F1 to F3.
 *
 * F4 Control passes loop -> fiber -> loop, never from fiber to fiber: a fiber that suspends jumps
 * to rt.loop_context. F5 fiber.link is on rt.ready exactly while READY, on rt.spawn_queue exactly
 * while QUEUED.
 */
#include <stdlib.h>
#include "base/err.h"
#include "rt/seam.h"
#include "rt/sanitize.h"

/* A long chain of fibers that wake each other must not keep I/O from being submitted. */
#define READY_ROUNDS_MAX 32

/* The two C entry points of Boost.Context; it has no C header. */
struct transfer {
    void *context;
    void *data;
};
extern struct transfer jump_fcontext(void *to, void *data);
extern void *make_fcontext(void *stack_top, size_t size, void (*fn)(struct transfer));

/* The only thread-local of the runtime: who runs now. */
static _Thread_local struct fiber *running;

struct fiber *fiber_current(void)
{
    return running;
}

const char *fiber_name(const struct fiber *f)
{
    return f->name;
}

static void make_ready(struct fiber *f)
{
    f->state = FIBER_READY;
    list_push_back(&f->rt->ready, &f->link);
    f->rt->ready_count++;
}

/* From the running fiber to the loop. */
static void switch_to_loop(struct fiber *f, void **fake_stack_save)
{
    struct rt *rt = f->rt;
    sanitize_switch_start(fake_stack_save, rt->loop_stack_bottom, rt->loop_stack_size);
    struct transfer t = jump_fcontext(rt->loop_context, NULL);
    /* Resumed. */
    sanitize_switch_finish(f->asan_fake_stack, &rt->loop_stack_bottom, &rt->loop_stack_size);
    rt->loop_context = t.context;
}

_Noreturn static void fiber_entry(struct transfer t)
{
    struct fiber *f = t.data;
    sanitize_switch_finish(NULL, &f->rt->loop_stack_bottom, &f->rt->loop_stack_size);
    f->rt->loop_context = t.context;
    f->fn(f->arg);
    f->state = FIBER_DONE;
    switch_to_loop(f, NULL);
    ASSERT(!"a finished fiber was resumed");
    abort();
}

/* Gives a stack to f and makes it ready. 0 or -ENOMEM. */
static int fiber_start(struct fiber *f)
{
    struct rt *rt = f->rt;
    f->stack = stack_get(&rt->stacks);
    if (!f->stack)
        return -ENOMEM;
    f->context =
        make_fcontext((uint8_t *)f->stack->bottom + f->stack->size, f->stack->size, fiber_entry);
    list_push_back(&rt->fibers, &f->all_link);
    rt->stats.fibers_live++;
    rt->stats.fibers_started++;
    make_ready(f);
    return 0;
}

/* F3: starts what waits in the queue, as far as there is room. */
static void start_queued(struct rt *rt)
{
    while (!list_empty(&rt->spawn_queue) && rt->stats.fibers_live < rt->fiber_count_max) {
        struct fiber *f = list_first(&rt->spawn_queue, struct fiber, link);
        list_remove(&f->link);
        if (fiber_start(f) < 0) {
            /* Some fiber lives (its end brings us here again), or one stack just became idle. */
            ASSERT(rt->stats.fibers_live > 0);
            list_push_front(&rt->spawn_queue, &f->link);
            return;
        }
        rt->stats.fibers_queued--;
    }
}

int fiber_spawn(struct rt *rt, const char *name, fiber_main *fn, void *arg)
{
    struct fiber *f = malloc(sizeof(*f));
    if (!f)
        return -ENOMEM;
    *f = (struct fiber){.rt = rt, .name = name, .fn = fn, .arg = arg, .state = FIBER_QUEUED};
    list_init(&f->link);
    list_init(&f->all_link);
    bool room = list_empty(&rt->spawn_queue) && rt->stats.fibers_live < rt->fiber_count_max;
    if (room && fiber_start(f) == 0)
        return 0;
    if (rt->stats.fibers_live == 0) {
        free(f);
        return -ENOMEM;
    }
    list_push_back(&rt->spawn_queue, &f->link);
    rt->stats.fibers_queued++;
    return 0;
}

static void fiber_release(struct fiber *f)
{
    struct rt *rt = f->rt;
    list_remove(&f->all_link);
    stack_put(&rt->stacks, f->stack);
    rt->stats.fibers_live--;
    free(f);
    start_queued(rt);
}

void rt_core_run_one(struct rt *rt)
{
    ASSERT(running == NULL && rt->ready_count > 0);
    struct fiber *f = list_first(&rt->ready, struct fiber, link);
    list_remove(&f->link);
    rt->ready_count--;
    f->state = FIBER_RUNNING;
    rt->stats.switches++;
    running = f;
    sanitize_switch_start(&rt->loop_fake_stack, f->stack->bottom, f->stack->size);
    struct transfer t = jump_fcontext(f->context, f);
    sanitize_switch_finish(rt->loop_fake_stack, NULL, NULL);
    running = NULL;
    f->context = t.context;
    if (f->state == FIBER_DONE)
        fiber_release(f);
}

unsigned rt_core_run_ready(struct rt *rt)
{
    unsigned switches = 0;
    for (unsigned round = 0; round < READY_ROUNDS_MAX && rt->ready_count > 0; round++) {
        for (unsigned n = rt->ready_count; n > 0 && rt->ready_count > 0; n--) {
            rt_core_run_one(rt);
            switches++;
            if (rt->submit_is_due)
                return switches;
        }
    }
    return switches;
}

void rt_core_abandon(struct rt *rt)
{
    ASSERT(running == NULL || running->rt != rt);
    struct fiber *f, *tmp;
    list_for_each_safe (f, tmp, &rt->fibers, all_link) {
        stack_put(&rt->stacks, f->stack);
        free(f);
    }
    list_for_each_safe (f, tmp, &rt->spawn_queue, link)
        free(f);
    list_init(&rt->fibers);
    list_init(&rt->ready);
    list_init(&rt->spawn_queue);
    waitq_init(&rt->sleepers);
    rt->ready_count = 0;
    rt->stats.fibers_live = 0;
    rt->stats.fibers_queued = 0;
    rt->timer_root = NULL;
}

fiber_fn void fiber_suspend(void)
{
    struct fiber *f = running;
    ASSERT(f && f->state == FIBER_RUNNING);
    f->state = FIBER_SUSPENDED;
    switch_to_loop(f, &f->asan_fake_stack);
}

void fiber_wake(struct fiber *f)
{
    ASSERT(f->state == FIBER_SUSPENDED && list_empty(&f->link));
    make_ready(f);
}

fiber_fn void fiber_yield(void)
{
    struct fiber *f = running;
    ASSERT(f && f->state == FIBER_RUNNING);
    make_ready(f);
    switch_to_loop(f, &f->asan_fake_stack);
}
