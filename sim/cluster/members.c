/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What administrators do. See members.h.
 *
 * A1 A node is given up (its disk replaced) only while it is dead and the map lists it in sync
 *    nowhere: then all that was answered is elsewhere (C1). One at a time.
 */
#include "sim/cluster/members.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"

#define WISH_TRIES   100
#define WISH_STEP_NS (100 * NS_PER_MS)

static uint64_t dice(struct world *w, uint64_t below)
{
    return draw(&w->fault_random, below);
}

static struct node *some_up_node(struct world *w)
{
    unsigned start = (unsigned)dice(w, w->plan.nodes);
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        struct node *n = &w->nodes[(start + i) % w->plan.nodes];
        if (node_up(n))
            return n;
    }
    return NULL;
}

/* --- wishes --- */

struct pool_wish {
    uint8_t copies, min_copies;
};

static fiber_fn int call_wish(struct node *n, void *arg)
{
    return cluster_node_wish(n->cluster, arg);
}

static fiber_fn int call_pool_wish(struct node *n, void *arg)
{
    const struct pool_wish *p = arg;
    return cluster_pool_wish(n->cluster, "default", p->copies, p->min_copies);
}

/* Until some node has written it; what cannot be wished is not. */
static fiber_fn int insist(struct world *w, call_fn *fn, void *arg, const char *what)
{
    int r = -EOWNERDEAD;
    for (unsigned i = 0; i < WISH_TRIES; i++) {
        struct node *n = some_up_node(w);
        r = n ? call_node(n, fn, arg) : -EOWNERDEAD;
        if (r == 0 || r == -ENOENT || r == -EBUSY || r == -EALREADY || r == -EINVAL)
            break;
        fiber_sleep(w->rt, WISH_STEP_NS);
    }
    world_note(w, "wish %s: %s", what, r ? err_text(r) : "ok");
    return r;
}

static fiber_fn int wish(struct world *w, const char *name, enum cluster_wish_kind kind,
                         uint32_t weight)
{
    static const char *const words[] = {
        [CLUSTER_WISH_DRAIN] = "drain",   [CLUSTER_WISH_UNDRAIN] = "undrain",
        [CLUSTER_WISH_WEIGHT] = "weight", [CLUSTER_WISH_REMOVE] = "remove",
        [CLUSTER_WISH_LOST] = "lost",
    };
    struct cluster_wish cw = {.kind = kind, .node = name, .weight = weight};
    char what[64];
    snprintf(what, sizeof(what), "%s %s", words[kind], name);
    return insist(w, call_wish, &cw, what);
}

/* --- one at a time, on a fiber of its own --- */

struct task {
    struct world *w;
    enum fault_kind kind;
    struct node *n;
};

static fiber_fn void drain_for_a_while(struct task *t)
{
    struct world *w = t->w;
    uint64_t end = sim_now(w->sim) + dice(w, 4 * w->plan.length_ns);
    wish(w, t->n->name, CLUSTER_WISH_DRAIN, 0);
    while (!w->healing && sim_now(w->sim) < end)
        fiber_sleep(w->rt, WISH_STEP_NS);
    wish(w, t->n->name, CLUSTER_WISH_UNDRAIN, 0);
}

static fiber_fn void change_copies(struct world *w)
{
    struct pool_wish p = {.copies = (uint8_t)(1 + dice(w, w->plan.zones))};
    p.min_copies = (uint8_t)(1 + dice(w, MIN(p.copies, 2u)));
    insist(w, call_pool_wish, &p, "copies");
}

/* A1: 1 safe, 0 not yet (it still has a session), -1 it is the last one somewhere. */
static int is_safe_to_lose(struct world *w, const struct node *n)
{
    const struct node *other = some_up_node(w);
    const struct map *m = other ? cluster_map(other->cluster) : NULL;
    const struct map_node *mn = m ? map_node_by_uuid(m, &n->uuid) : NULL;
    if (!mn || mn->session.value)
        return 0;
    for (uint32_t i = 0; i < m->group_count; i++) {
        if (map_group_in_sync(&m->groups[i], mn->number))
            return -1;
    }
    return 1;
}

static fiber_fn void put_new_disk(struct node *n)
{
    struct world *w = n->w;
    n->generation++;
    snprintf(n->name, sizeof(n->name), "%c%u", 'a' + (int)n->index, n->generation);
    n->uuid.bytes[15] = (uint8_t)n->generation;
    sim_disk_fault(w->sim, n->disk, DISK_WRITE, SIM_FAULT_NONE, 1);
    sim_disk_fault(w->sim, n->disk, DISK_READ, SIM_FAULT_NONE, 1);
    world_format_store(n);
    world_note(w, "node %s: has a new disk", n->name);
}

static fiber_fn void replace(struct task *t)
{
    struct world *w = t->w;
    struct node *n = t->n;
    char old[sizeof(n->name)];
    int safe = 0;
    memcpy(old, n->name, sizeof(old));
    n->held = true;
    node_die(n, DEATH_POWER, UINT64_MAX);
    for (unsigned i = 0; i < WISH_TRIES && safe == 0; i++) {
        fiber_sleep(w->rt, WISH_STEP_NS);
        safe = is_safe_to_lose(w, n);
    }
    if (safe > 0 && wish(w, old, CLUSTER_WISH_LOST, 0) == 0) {
        wish(w, old, CLUSTER_WISH_REMOVE, 0);
        put_new_disk(n);
        w->stats.faults[FAULT_REPLACE]++;
    }
    n->held = false;
    n->may_start = true;
    n->start_at_ns = sim_now(w->sim);
}

static fiber_fn void task_main(void *arg)
{
    struct task t = *(struct task *)arg;
    free(arg);
    if (t.kind == FAULT_DRAIN)
        drain_for_a_while(&t);
    else if (t.kind == FAULT_WEIGHT)
        wish(t.w, t.n->name, CLUSTER_WISH_WEIGHT, (uint32_t)dice(t.w, 4) * 700);
    else if (t.kind == FAULT_COPIES)
        change_copies(t.w);
    else
        replace(&t);
    if (t.kind == FAULT_REPLACE)
        t.w->replacing = false;
    t.w->tasks--;
    t.w->running--;
}

static bool join_spare(struct world *w)
{
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        struct node *n = &w->nodes[i];
        if (!n->spare)
            continue;
        world_note(w, "fault join: node %s", n->name);
        n->spare = n->held = false;
        n->may_start = true;
        n->start_at_ns = sim_now(w->sim);
        return true;
    }
    return false;
}

bool members_strike(struct world *w, enum fault_kind kind)
{
    struct node *n = &w->nodes[dice(w, w->plan.nodes)];
    if (kind == FAULT_JOIN)
        return join_spare(w);
    if (n->held || (kind == FAULT_REPLACE && (w->replacing || n->state != NODE_UP)))
        return false;
    struct task *t = malloc(sizeof(*t));
    ASSERT(t);
    *t = (struct task){.w = w, .kind = kind, .n = n};
    world_note(w, "fault %s: node %s", fault_names[kind], n->name);
    w->replacing = w->replacing || kind == FAULT_REPLACE;
    w->running++;
    w->tasks++;
    ASSERT(fiber_spawn(w->rt, "administrator", task_main, t) == 0);
    return kind != FAULT_REPLACE; /* that counts when it is done */
}

fiber_fn void members_heal(struct world *w)
{
    struct pool_wish p = {(uint8_t)w->plan.copies, (uint8_t)w->plan.min_copies};
    while (w->tasks > 0)
        fiber_sleep(w->rt, WISH_STEP_NS);
    while (join_spare(w))
        continue;
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        while (w->nodes[i].held || !node_up(&w->nodes[i]))
            fiber_sleep(w->rt, WISH_STEP_NS);
    }
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        if (w->plan.faults[FAULT_DRAIN])
            wish(w, w->nodes[i].name, CLUSTER_WISH_UNDRAIN, 0);
        if (w->plan.faults[FAULT_WEIGHT])
            wish(w, w->nodes[i].name, CLUSTER_WISH_WEIGHT, CLUSTER_WEIGHT_REGISTERED);
    }
    if (w->plan.faults[FAULT_COPIES])
        insist(w, call_pool_wish, &p, "the first copies");
}
