/* SPDX-License-Identifier: Apache-2.0 */
/* The simulator's loop, its nodes, and how they die. See sim_internal.h for M1 to M3. */
#include "sim/sim_internal.h"
#include <stdlib.h>
#include "base/err.h"
#include "base/hash.h"

#define START_NS      (1 * NS_PER_S)
#define WALL_START_NS (1800000000ULL * NS_PER_S) /* some day in 2027 */

/* LeakSanitizer asks this at exit. Fibers that a crash abandoned own memory that nobody frees; only
 * processes in which that happened go without leak detection. */
static bool memory_was_abandoned;
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
    return memory_was_abandoned;
}

uint64_t sim_random(struct sim *s)
{
    s->random_state += 0x9e3779b97f4a7c15ULL;
    return hash_u64(s->random_state);
}

uint64_t sim_random_between(struct sim *s, uint64_t min, uint64_t max)
{
    ASSERT(min <= max);
    return min + sim_random(s) % (max - min + 1);
}

void sim_schedule(struct sim *s, struct timer *t, void (*fire)(struct timer *t), uint64_t min_ns,
                  uint64_t max_ns)
{
    timer_init(t, &s->world, fire);
    timer_arm(t, s->now + sim_random_between(s, min_ns, max_ns));
}

/* --- operations of nodes --- */

static uint64_t node_now(struct rt *rt)
{
    return sim_node_of(rt)->sim->now;
}

static uint64_t node_wall(struct rt *rt)
{
    return WALL_START_NS + sim_node_of(rt)->sim->now;
}

static uint64_t node_random(struct rt *rt)
{
    return sim_random(sim_node_of(rt)->sim);
}

struct sim_worker {
    struct worker base; /* first */
    struct list link;   /* sim_node.workers */
};

static fiber_fn void worker_call_in_place(struct worker *w, void (*fn)(void *arg), void *arg)
{
    fn(arg);
    fiber_yield(); /* it may suspend, so let others run */
}

static fiber_fn void worker_stop_in_place(struct worker *base)
{
    struct sim_worker *w = container_of(base, struct sim_worker, base);
    list_remove(&w->link);
    free(w);
}

static int node_worker_start(struct rt *rt, const char *name, struct worker **ret)
{
    static const struct worker_ops ops = {.call = worker_call_in_place,
                                          .stop = worker_stop_in_place};
    struct sim_worker *w = malloc(sizeof(*w));
    if (!w)
        return -ENOMEM;
    w->base = (struct worker){.ops = &ops, .rt = rt};
    list_push_back(&sim_node_of(rt)->workers, &w->link);
    *ret = &w->base;
    return 0;
}

struct sim_post {
    struct timer timer;
    struct list link; /* sim_node.posts */
    void (*fn)(void *arg);
    void *arg;
};

static void post_fire(struct timer *t)
{
    struct sim_post *p = container_of(t, struct sim_post, timer);
    list_remove(&p->link);
    p->fn(p->arg);
    free(p);
}

static int node_post(struct rt *rt, void (*fn)(void *arg), void *arg)
{
    struct sim_node *n = sim_node_of(rt);
    struct sim_post *p = malloc(sizeof(*p));
    if (!p)
        return -ENOMEM;
    p->fn = fn;
    p->arg = arg;
    list_push_back(&n->posts, &p->link);
    sim_schedule(n->sim, &p->timer, post_fire, 0, 1000);
    return 0;
}

static int node_fd_watch_add(struct rt *rt, int fd, void (*fn)(void *arg), void *arg,
                             struct fd_watch **ret)
{
    return -ENOSYS;
}

static void node_fd_watch_remove(struct fd_watch *w)
{
    ASSERT(!"there are no watches in the simulator");
}

static const struct rt_ops sim_ops = {
    .now = node_now,
    .wall = node_wall,
    .random = node_random,
    .disk_open = sim_disk_open,
    .listen = sim_listen,
    .connect = sim_connect,
    .worker_start = node_worker_start,
    .post = node_post,
    .fd_watch_add = node_fd_watch_add,
    .fd_watch_remove = node_fd_watch_remove,
};

/* --- life and death --- */

struct sim *sim_new(uint64_t seed)
{
    struct sim *s = calloc(1, sizeof(*s));
    ASSERT(s);
    sim_reseed(s, seed);
    s->now = START_NS;
    s->port_next = 20000;
    list_init(&s->nodes);
    list_init(&s->disks);
    list_init(&s->listeners);
    list_init(&s->links);
    return s;
}

void sim_reseed(struct sim *s, uint64_t seed)
{
    s->random_state = hash_u64(seed + 1);
}

static void core_start(struct sim_node *n)
{
    int r = rt_core_init(&n->rt, &sim_ops, &n->options);
    ASSERT(r == 0);
    n->rt.buffers.keeps_memory = true; /* its timer would keep the simulation from becoming quiet */
}

struct rt *sim_node_new(struct sim *s, const struct rt_options *options)
{
    struct sim_node *n = calloc(1, sizeof(*n));
    ASSERT(n);
    n->sim = s;
    if (options)
        n->options = *options;
    list_init(&n->opened);
    list_init(&n->conns);
    list_init(&n->listeners);
    list_init(&n->posts);
    list_init(&n->workers);
    core_start(n);
    list_push_back(&s->nodes, &n->link);
    return &n->rt;
}

/* Takes everything from the node. The disks first: their buffers lie on stacks. */
static void node_strip(struct sim_node *n, enum sim_death death)
{
    sim_disks_die(n, death);
    sim_net_die(n, death);
    struct sim_post *p, *p_tmp;
    list_for_each_safe (p, p_tmp, &n->posts, link) {
        timer_cancel(&p->timer);
        free(p);
    }
    list_init(&n->posts);
    struct sim_worker *w, *w_tmp;
    list_for_each_safe (w, w_tmp, &n->workers, link)
        free(w);
    list_init(&n->workers);
    if (rt_core_has_fibers(&n->rt))
        memory_was_abandoned = true;
    rt_core_abandon(&n->rt);
    rt_core_done(&n->rt);
}

static void node_restart(struct sim_node *n, enum sim_death death)
{
    node_strip(n, death);
    n->dying = SIM_ALIVE;
    n->life++;
    core_start(n);
    if (n->sim->on_death)
        n->sim->on_death(n->sim->on_death_arg, &n->rt);
}

void sim_on_death(struct sim *s, void (*fn)(void *arg, struct rt *node), void *arg)
{
    s->on_death = fn;
    s->on_death_arg = arg;
}

void sim_node_die(struct sim_node *n, enum sim_death death)
{
    struct fiber *f = fiber_current();
    n->dying = death;
    /* Callbacks of the node's own I/O may be on the loop's stack only when called by sim_run(),
     * which looks at `dying` as soon as they return. */
    if (!f && !n->sim->firing)
        node_restart(n, death);
}

void sim_node_crash(struct sim *s, struct rt *node)
{
    sim_node_die(sim_node_of(node), SIM_POWER_CUT);
}

void sim_node_kill(struct sim *s, struct rt *node)
{
    sim_node_die(sim_node_of(node), SIM_KILLED);
}

void sim_free(struct sim *s)
{
    struct sim_node *n, *tmp;
    list_for_each_safe (n, tmp, &s->nodes, link) {
        list_remove(&n->link);
        node_strip(n, SIM_KILLED);
        free(n);
    }
    sim_disks_free(s);
    sim_links_free(s);
    free(s);
}

/* --- the loop --- */

uint64_t sim_now(const struct sim *s)
{
    return s->now;
}

static void bury_the_dying(struct sim *s)
{
    struct sim_node *n;
    list_for_each (n, &s->nodes, link) {
        if (n->dying)
            node_restart(n, n->dying);
    }
}

/* Runs one fiber of some node; false when none is ready. */
static bool run_some_fiber(struct sim *s)
{
    struct sim_node *n, *chosen = NULL;
    unsigned ready_nodes = 0;
    list_for_each (n, &s->nodes, link)
        ready_nodes += n->rt.ready_count > 0;
    if (ready_nodes == 0)
        return false;
    uint64_t pick = ready_nodes > 1 ? sim_random(s) % ready_nodes : 0;
    list_for_each (n, &s->nodes, link) {
        if (n->rt.ready_count > 0 && pick-- == 0) {
            chosen = n;
            break;
        }
    }
    rt_core_run_one(&chosen->rt);
    bury_the_dying(s);
    return true;
}

/* The heap whose first timer is the next to fire (M1). */
static struct rt *next_heap(struct sim *s)
{
    struct rt *best = &s->world;
    struct sim_node *n;
    list_for_each (n, &s->nodes, link) {
        if (rt_core_next_deadline(&n->rt) < rt_core_next_deadline(best))
            best = &n->rt;
    }
    return best;
}

static void fire_next(struct sim *s, struct rt *heap)
{
    s->now = MAX(s->now, rt_core_next_deadline(heap));
    s->firing = true;
    rt_core_fire_one(heap);
    s->firing = false;
    bury_the_dying(s);
}

uint64_t sim_run(struct sim *s, uint64_t until_ns)
{
    ASSERT(!fiber_current());
    uint64_t steps = 0;
    for (;;) {
        while (run_some_fiber(s))
            steps++;
        struct rt *heap = next_heap(s);
        uint64_t deadline = rt_core_next_deadline(heap);
        if (deadline == UINT64_MAX || deadline > until_ns)
            break;
        fire_next(s, heap);
        steps++;
    }
    if (until_ns != UINT64_MAX)
        s->now = MAX(s->now, until_ns);
    return steps;
}

struct doing {
    fiber_main *fn;
    void *arg;
    bool finished;
    bool detached; /* sim_do() returned before */
};

static void doing_main(void *arg)
{
    struct doing *d = arg;
    d->fn(d->arg);
    d->finished = true;
    if (d->detached)
        free(d);
}

void sim_do(struct sim *s, struct rt *node, fiber_main *fn, void *arg)
{
    ASSERT(!fiber_current());
    struct sim_node *n = sim_node_of(node);
    uint64_t life = n->life;
    struct doing *d = malloc(sizeof(*d));
    ASSERT(d);
    *d = (struct doing){.fn = fn, .arg = arg};
    ASSERT(fiber_spawn(node, "sim_do", doing_main, d) == 0);
    for (;;) {
        while (run_some_fiber(s))
            continue;
        /* When fn has returned, I/O in flight is still waited for; timers that nobody's I/O waits
         * for (a periodic task) are not. */
        bool over = d->finished || n->life != life;
        if (rt_core_next_deadline(over ? &s->world : next_heap(s)) == UINT64_MAX)
            break;
        fire_next(s, next_heap(s));
    }
    d->detached = true;
    if (d->finished || n->life != life)
        free(d);
}
