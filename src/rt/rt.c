/* SPDX-License-Identifier: Apache-2.0 */
/* Life of the runtime, and the thin calls that go straight to the seam. */
#include <stdlib.h>
#include "base/err.h"
#include "rt/seam.h"

struct stop_callback {
    struct list link;
    void (*fn)(void *arg);
    void *arg;
};

int rt_core_init(struct rt *rt, const struct rt_ops *ops, const struct rt_options *options)
{
    static const struct rt_options defaults;
    if (!options)
        options = &defaults;
    *rt = (struct rt){.ops = ops};
    rt->fiber_count_max = options->fiber_count_max ? options->fiber_count_max : RT_FIBER_COUNT_MAX;
    list_init(&rt->fibers);
    list_init(&rt->ready);
    list_init(&rt->spawn_queue);
    list_init(&rt->stop_callbacks);
    waitq_init(&rt->sleepers);
    stack_pool_init(&rt->stacks, options->fiber_stack_size);
    return buffer_pool_init(&rt->buffers, rt, options->buffer_bytes_max);
}

void rt_core_done(struct rt *rt)
{
    ASSERT(!rt_core_has_fibers(rt));
    struct stop_callback *c, *tmp;
    list_for_each_safe (c, tmp, &rt->stop_callbacks, link)
        free(c);
    buffer_pool_done(&rt->buffers);
    stack_pool_done(&rt->stacks);
}

int rt_on_stop(struct rt *rt, void (*fn)(void *arg), void *arg)
{
    if (rt->stopping) {
        fn(arg);
        return 0;
    }
    struct stop_callback *c = malloc(sizeof(*c));
    if (!c)
        return -ENOMEM;
    *c = (struct stop_callback){.fn = fn, .arg = arg};
    list_push_back(&rt->stop_callbacks, &c->link);
    return 0;
}

void rt_stop(struct rt *rt)
{
    if (rt->stopping)
        return;
    rt->stopping = true;
    waitq_wake_all(&rt->sleepers);
    while (!list_empty(&rt->stop_callbacks)) {
        struct stop_callback *c = list_first(&rt->stop_callbacks, struct stop_callback, link);
        list_remove(&c->link);
        c->fn(c->arg);
        free(c);
    }
}

bool rt_stopping(const struct rt *rt)
{
    return rt->stopping;
}

void rt_stats(const struct rt *rt, struct rt_stats *ret)
{
    *ret = rt->stats;
    ret->buffer_bytes_used = rt->buffers.bytes_used;
}

uint64_t clock_now(struct rt *rt)
{
    return rt->ops->now(rt);
}

uint64_t clock_wall(struct rt *rt)
{
    return rt->ops->wall(rt);
}

uint64_t rt_random(struct rt *rt)
{
    return rt->ops->random(rt);
}

int worker_start(struct rt *rt, const char *name, struct worker **ret)
{
    return rt->ops->worker_start(rt, name, ret);
}

fiber_fn void worker_call(struct worker *w, void (*fn)(void *arg), void *arg)
{
    w->ops->call(w, fn, arg);
}

fiber_fn void worker_stop(struct worker *w)
{
    w->ops->stop(w);
}

int rt_post(struct rt *rt, void (*fn)(void *arg), void *arg)
{
    return rt->ops->post(rt, fn, arg);
}

int fd_watch_add(struct rt *rt, int fd, void (*fn)(void *arg), void *arg, struct fd_watch **ret)
{
    return rt->ops->fd_watch_add(rt, fd, fn, arg, ret);
}

void fd_watch_remove(struct fd_watch *w)
{
    w->rt->ops->fd_watch_remove(w);
}
