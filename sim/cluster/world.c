/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes and calls of the simulated cluster. See world.h. */
#include "sim/cluster/world.h"
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/err.h"
#include "base/hash.h"

#define TICK_NS          (100 * NS_PER_MS)
#define STOP_PATIENCE_NS (8 * NS_PER_S)
#define STOP_TIMEOUT_NS  (12 * NS_PER_S)
#define STEP_NS          (50 * NS_PER_MS)

uint64_t draw(uint64_t *state, uint64_t below)
{
    *state += 0x9e3779b97f4a7c15ULL;
    return below ? hash_u64(*state) % below : 0;
}

/* --- words --- */

static void hash_in(struct world *w, const char *text)
{
    for (; *text; text++)
        w->trace = (w->trace ^ (uint8_t)*text) * 0x100000001b3ULL;
    w->trace = (w->trace ^ sim_now(w->sim)) * 0x100000001b3ULL;
}

void world_note(struct world *w, const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    hash_in(w, text);
    if (w->verbose)
        fprintf(stderr, "%10.6f %s\n", (double)sim_now(w->sim) / 1e9, text);
}

void world_wrong(struct world *w, const char *format, ...)
{
    char text[1000];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    fprintf(stderr, "wrong at %.6f s (%s): %s\n", (double)sim_now(w->sim) / 1e9, w->stage, text);
    _exit(SIM_WRONG);
}

void world_stuck(struct world *w, const char *what)
{
    fprintf(stderr, "stuck at %.6f s (%s): %s\n", (double)sim_now(w->sim) / 1e9, w->stage, what);
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        struct node *n = &w->nodes[i];
        char waiting[400] = "";
        if (n->state == NODE_UP && n->objects)
            object_waiting_text(n->objects, waiting, sizeof(waiting));
        fprintf(stderr, "  node %s: state %d, process %" PRIu64 ", %s %s\n", n->name, (int)n->state,
                n->process, list_empty(&n->calls) ? "" : "calls are open.", waiting);
    }
    _exit(SIM_STUCK);
}

/* --- processes --- */

uint64_t process_gone_at(void *world, uint64_t process)
{
    const struct world *w = world;
    return process == PROCESS_ANY ? UINT64_MAX : w->processes[process].gone_at_ns;
}

static void process_begin(struct node *n)
{
    struct world *w = n->w;
    ASSERT(w->process_count < PROCESS_COUNT_MAX);
    n->process = w->process_count++;
    w->processes[n->process] = (struct process){.gone_at_ns = UINT64_MAX};
}

/* --- starting --- */

static fiber_fn void bind_store(void *arg, struct map *m)
{
    struct node *n = arg;
    struct uuid store, cluster;
    store_ids(n->store, &store, &cluster);
    if (m->version > 0 && uuid_is_null(&cluster) && map_node_by_uuid(m, &store))
        (void)store_set_cluster(n->store, &m->cluster);
}

static fiber_fn int open_store(struct node *n)
{
    const struct store_open_options so = {
        .cache_bytes = 1u << 20, .no_zero_ahead = true, .checkpoint_items = 16};
    return store_open(n->rt, n->disk, &so, &n->store);
}

static fiber_fn int probe_store(void *arg)
{
    struct node *n = arg;
    return store_probe(n->store);
}

static fiber_fn int join_cluster(struct node *n)
{
    struct world *w = n->w;
    struct cluster_options o = {.name = n->name,
                                .zone = n->zone,
                                .address = listener_address(n->listener),
                                .admin = n->name,
                                .weight = 1024,
                                .probe = probe_store,
                                .probe_arg = n,
                                .inexact = store_is_inexact(n->store),
                                .recovery =
                                    w->plan.recovery ? CLUSTER_RECOVERY_ON : CLUSTER_RECOVERY_OFF,
                                .grace_ns = w->plan.grace_ns,
                                .out_ns = w->plan.out_ns};
    store_ids(n->store, &o.store_uuid, &o.store_cluster);
    int r = sim_cs_open(n->rt, w->cs, &o.cs);
    if (r < 0)
        return r;
    w->processes[n->process].session = o.cs->session;
    return cluster_start(n->rt, &o, &n->cluster);
}

static fiber_fn int start_services(struct node *n)
{
    const struct plan *p = &n->w->plan;
    const struct objects_options oo = {.listener = n->listener, .entries_per_block = p->entries};
    const struct volumes_options vo = {.entries_per_block = p->entries,
                                       .index_cache_bytes = p->entries * 16 * 6};
    int r = objects_start(n->rt, n->store, n->cluster, &oo, &n->objects);
    if (r == 0)
        r = volumes_start(n->rt, n->cluster, n->objects, &vo, &n->volumes);
    if (r < 0)
        return r;
    n->volumes->grace_ns = p->linger_ns;
    n->volumes->delay_ns = p->delay_ns;
    n->volumes->publish_ns = p->publish_ns;
    return 0;
}

static fiber_fn void start_main(void *arg)
{
    struct node *n = arg;
    const char *step = "store";
    int r = open_store(n);
    if (r == 0 && store_is_inexact(n->store) && !n->w->plan.faults[FAULT_LYING_DISK])
        world_wrong(n->w, "the store of node %s has lost something (S1)", n->name);
    if (r == 0) {
        step = "listen";
        r = net_listen(n->rt, "tcp:127.0.0.1:0", &n->listener);
    }
    if (r == 0) {
        step = "cluster";
        r = join_cluster(n);
    }
    if (r == 0)
        r = cluster_on_map(n->cluster, bind_store, n);
    if (r == 0) {
        step = "services";
        r = start_services(n);
    }
    world_note(n->w, "node %s: started: %s %s", n->name, r ? step : "", err_text(r));
    if (r == -EUCLEAN && strcmp(step, "store") == 0)
        world_wrong(n->w, "node %s finds its store damaged", n->name);
    if (r < 0) {
        node_die(n, DEATH_KILL, NS_PER_S);
        return;
    }
    n->state = NODE_UP;
}

void node_start(struct node *n)
{
    ASSERT(n->state == NODE_DOWN);
    n->state = NODE_STARTING;
    n->may_start = false;
    n->store = NULL;
    n->cluster = NULL;
    n->objects = NULL;
    n->volumes = NULL;
    process_begin(n);
    ASSERT(fiber_spawn(n->rt, "start", start_main, n) == 0);
}

/* --- ending --- */

static fiber_fn void stop_main(void *arg)
{
    struct node *n = arg;
    while (n->guest_count > 0) {
        if (fiber_sleep(n->rt, 10 * NS_PER_MS) < 0)
            break; /* the supervisor's patience is at its end */
    }
    while (!list_empty(&n->calls))
        waitq_wait(&n->idle);
    volumes_stop(n->volumes);
    objects_stop(n->objects);
    cluster_stop(n->cluster);
    n->cluster = NULL;
    n->w->processes[n->process].gone_at_ns = sim_now(n->w->sim);
    int r = store_close(n->store);
    world_note(n->w, "node %s: stopped: %s", n->name, err_text(r));
    node_die(n, DEATH_KILL, n->start_at_ns - sim_now(n->w->sim));
}

void node_stop(struct node *n)
{
    ASSERT(n->state == NODE_UP);
    n->state = NODE_STOPPING;
    n->stop_begun_ns = sim_now(n->w->sim);
    ASSERT(fiber_spawn(n->rt, "stop", stop_main, n) == 0);
}

static struct node *node_of_rt(struct world *w, const struct rt *rt)
{
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        if (w->nodes[i].rt == rt)
            return &w->nodes[i];
    }
    return NULL;
}

static void call_end(struct call *c, int result)
{
    list_remove(&c->link);
    waitq_wake_all(&c->node->idle);
    c->ended = true;
    c->result = result;
    waitq_wake_all(&c->waiters);
    if (c->on_end)
        c->on_end(c);
}

/* Of any node, also by a fault plan of its disk. */
static void on_death(void *arg, struct rt *rt)
{
    struct world *w = arg;
    struct node *n = node_of_rt(w, rt);
    if (!n)
        return;
    if (n->state != NODE_DOWN)
        world_note(w, "node %s: dead", n->name);
    n->state = NODE_DOWN;
    n->volumes = NULL;
    n->objects = NULL;
    n->cluster = NULL;
    n->store = NULL;
    n->guest_count = 0;
    waitq_init(&n->idle); /* its waiters are dead */
    while (!list_empty(&n->calls))
        call_end(list_first(&n->calls, struct call, link), -EOWNERDEAD);
    if (!n->may_start) {
        n->may_start = true;
        n->start_at_ns = sim_now(w->sim) + draw(&w->fault_random, 3 * NS_PER_S);
    }
}

void node_die(struct node *n, enum node_death death, uint64_t down_ns)
{
    struct world *w = n->w;
    n->may_start = true;
    n->start_at_ns = w->healing              ? sim_now(w->sim) + NS_PER_S
                     : down_ns == UINT64_MAX ? UINT64_MAX
                                             : sim_now(w->sim) + down_ns;
    if (death == DEATH_POWER)
        sim_node_crash(w->sim, n->rt);
    else
        sim_node_kill(w->sim, n->rt);
}

/* --- the supervisor --- */

static void watch_node(struct node *n)
{
    struct world *w = n->w;
    uint64_t now = sim_now(w->sim);
    if (n->state == NODE_DOWN && n->may_start && !n->held && !w->ending && now >= n->start_at_ns)
        node_start(n);
    if (n->state == NODE_UP && (store_failed(n->store) || cluster_cs(n->cluster)->lost)) {
        world_note(w, "node %s: leaves: %s", n->name,
                   store_failed(n->store) ? "its store has failed" : "its session is lost");
        node_die(n, DEATH_KILL, draw(&w->fault_random, 2 * NS_PER_S));
    }
    if (n->state == NODE_STOPPING && now > n->stop_begun_ns + STOP_TIMEOUT_NS) {
        world_note(w, "node %s: its orderly end takes too long", n->name);
        node_die(n, DEATH_KILL, draw(&w->fault_random, 2 * NS_PER_S));
    } else if (n->state == NODE_STOPPING && now > n->stop_begun_ns + STOP_PATIENCE_NS &&
               !rt_stopping(n->rt)) {
        rt_stop(n->rt);
    }
}

static void watch_sessions(struct world *w)
{
    for (uint64_t i = 0; i < w->process_count; i++) {
        struct process *p = &w->processes[i];
        if (p->gone_at_ns == UINT64_MAX && p->session.value && sim_cs_is_over(w->cs, p->session))
            p->gone_at_ns = sim_now(w->sim);
    }
}

static fiber_fn void supervise_main(void *arg)
{
    struct world *w = arg;
    while (!w->over) {
        watch_sessions(w);
        for (unsigned i = 0; i < w->plan.nodes; i++)
            watch_node(&w->nodes[i]);
        fiber_sleep(w->rt, TICK_NS);
    }
}

void world_heal(struct world *w)
{
    w->healing = true;
    sim_cs_outage(w->cs, false);
    sim_silent_death(w->sim, 0);
    sim_links_heal(w->sim);
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        struct node *n = &w->nodes[i];
        sim_cs_cut(w->cs, n->rt, false);
        sim_disk_slow(w->sim, n->disk, 1);
        sim_disk_fault(w->sim, n->disk, DISK_WRITE, SIM_FAULT_NONE, 1);
        sim_disk_fault(w->sim, n->disk, DISK_READ, SIM_FAULT_NONE, 1);
        if (w->plan.faults[FAULT_FULL_DISK])
            sim_disk_sparse(w->sim, n->disk, w->plan.disk_bytes);
        n->start_at_ns = MIN(n->start_at_ns, sim_now(w->sim) + NS_PER_S);
    }
    world_note(w, "healed");
}

/* --- calls --- */

static fiber_fn void call_main(void *arg)
{
    struct call *c = arg;
    int r = c->fn(c->node, c->arg);
    call_end(c, r);
}

void call_begin(struct call *c, struct node *n)
{
    c->node = n;
    c->ended = false;
    waitq_init(&c->waiters);
    list_init(&c->link);
    if (n->state != NODE_UP && !(c->is_closing && n->state == NODE_STOPPING)) {
        call_end(c, -EOWNERDEAD);
        return;
    }
    list_push_back(&n->calls, &c->link);
    ASSERT(fiber_spawn(n->rt, "call", call_main, c) == 0);
}

fiber_fn int call_wait(struct world *w, struct call *c, uint64_t deadline_ns)
{
    int r = 0;
    while (!c->ended && r == 0)
        r = waitq_wait_until(&c->waiters, w->rt, deadline_ns);
    return c->ended ? 0 : r;
}

fiber_fn int call_node(struct node *n, call_fn *fn, void *arg)
{
    struct call c = {.fn = fn, .arg = arg};
    call_begin(&c, n);
    ASSERT(call_wait(n->w, &c, UINT64_MAX) == 0);
    return c.result;
}

/* --- making the cluster --- */

void world_run(struct world *w, const bool *done, uint64_t limit_ns, const char *stage)
{
    uint64_t end = sim_now(w->sim) + limit_ns;
    w->stage = stage;
    while (!*done) {
        w->stats.steps += sim_run(w->sim, sim_now(w->sim) + STEP_NS);
        if (sim_now(w->sim) > end)
            world_stuck(w, "the time is over");
    }
}

struct making {
    struct world *w;
    bool done;
};

fiber_fn void world_format_store(struct node *n)
{
    struct world *w = n->w;
    const struct store_format_options fo = {.store_uuid = n->uuid,
                                            .size = w->plan.disk_bytes,
                                            .log_bytes = w->plan.log_bytes,
                                            .overwrite = true,
                                            .sparse = w->plan.faults[FAULT_FULL_DISK],
                                            .zero_bytes = 4096};
    int r = store_format(w->rt, n->disk, &fo, NULL, NULL);
    if (r < 0)
        world_wrong(w, "a store cannot be formatted: %s", err_text(r));
}

static fiber_fn void format_store_main(void *arg)
{
    struct making *m = arg;
    for (unsigned i = 0; i < m->w->plan.nodes; i++)
        world_format_store(&m->w->nodes[i]);
    m->done = true;
}

static fiber_fn int format_cluster(struct node *n, void *arg)
{
    const struct plan *p = &n->w->plan;
    struct map_format f = {.copies = (uint8_t)p->copies,
                           .min_copies = (uint8_t)p->min_copies,
                           .group_count = p->groups,
                           .object_size = 65536,
                           .cluster_name = "sim"};
    memset(f.cluster.bytes, 0xcc, sizeof(f.cluster.bytes));
    return cluster_format(n->cluster, &f);
}

static bool all_serve(struct world *w)
{
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        struct node *n = &w->nodes[i];
        if (n->held)
            continue;
        if (n->state != NODE_UP || (w->formatted && !cluster_serving(n->cluster)))
            return false;
    }
    return true;
}

static fiber_fn void make_cluster_main(void *arg)
{
    struct making *m = arg;
    struct world *w = m->w;
    while (!all_serve(w))
        fiber_sleep(w->rt, NS_PER_MS);
    int r = call_node(&w->nodes[0], format_cluster, NULL);
    if (r < 0)
        world_wrong(w, "the cluster cannot be formatted: %s", err_text(r));
    w->formatted = true;
    while (!all_serve(w))
        fiber_sleep(w->rt, NS_PER_MS);
    m->done = true;
}

static void make_node(struct world *w, unsigned i)
{
    struct node *n = &w->nodes[i];
    *n = (struct node){.w = w, .index = i, .rt = sim_node_new(w->sim, NULL)};
    snprintf(n->name, sizeof(n->name), "%c", 'a' + (int)i);
    snprintf(n->zone, sizeof(n->zone), "z%u", i % w->plan.zones);
    snprintf(n->disk, sizeof(n->disk), "disk-%u", i);
    memset(n->uuid.bytes, 0x11 + (int)i, sizeof(n->uuid.bytes));
    list_init(&n->calls);
    waitq_init(&n->idle);
    n->held = n->spare = i >= w->plan.nodes - w->plan.spares;
    n->may_start = !n->held;
    ASSERT(sim_disk_new(w->sim, n->disk, w->plan.disk_bytes, DISK_WRITE_BACK) == 0);
    if (w->plan.faults[FAULT_FULL_DISK])
        sim_disk_sparse(w->sim, n->disk, w->plan.disk_bytes);
    if (!w->plan.faults[FAULT_LYING_DISK])
        sim_disk_honest(w->sim, n->disk);
}

void world_start(struct world *w)
{
    struct making m = {.w = w};
    w->stage = "making";
    w->sim = sim_new(w->plan.seed);
    w->cs = sim_cs_new(w->sim);
    w->rt = sim_node_new(w->sim, NULL);
    w->fault_random = hash_u64(w->plan.seed ^ 0xfa01);
    sim_on_death(w->sim, on_death, w);
    sim_cs_late_loss(w->cs, true);
    sim_cs_timeout(w->cs, w->plan.timeout_ns);
    for (unsigned i = 0; i < w->plan.nodes; i++)
        make_node(w, i);
    ASSERT(fiber_spawn(w->rt, "format", format_store_main, &m) == 0);
    world_run(w, &m.done, 60 * NS_PER_S, "formatting stores");
    ASSERT(fiber_spawn(w->rt, "supervise", supervise_main, w) == 0);
    m.done = false;
    ASSERT(fiber_spawn(w->rt, "make", make_cluster_main, &m) == 0);
    world_run(w, &m.done, 60 * NS_PER_S, "making the cluster");
}
