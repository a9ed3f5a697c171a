/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The nemesis. One fiber draws when, what and to whom; what lasts is healed by a fiber of its own.
 *
 * F1 Only one node of a seed has rotten blocks, or a disk that loses what it had taken: a copy of
 *    each object stays good.
 */
#include "sim/cluster/faults.h"
#include <stdlib.h>
#include "base/hash.h"
#include "sim/cluster/content.h"
#include "sim/cluster/members.h"

#define MEMBER_BITS(w) ((1u << (w)->plan.nodes) - 1)

static uint64_t dice(struct world *w, uint64_t below)
{
    return draw(&w->fault_random, below);
}

static struct node *some_node(struct world *w)
{
    return &w->nodes[dice(w, w->plan.nodes)];
}

static uint64_t down_ns(struct world *w)
{
    return dice(w, 12) == 0 ? UINT64_MAX : dice(w, w->plan.down_ns_max);
}

/* --- what lasts --- */

struct lasting {
    struct world *w;
    enum fault_kind kind;
    unsigned members; /* bits */
};

static void set_ways(struct world *w, unsigned from, unsigned to, struct sim_link link)
{
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        for (unsigned k = 0; k < w->plan.nodes; k++) {
            if (i != k && (from & 1u << i) && (to & 1u << k))
                sim_link_set(w->sim, w->nodes[i].rt, w->nodes[k].rt, link);
        }
    }
}

static void lasting_set(struct world *w, const struct lasting *l, bool on)
{
    unsigned others = MEMBER_BITS(w) & ~l->members;
    struct sim_link blocked = {.blocked = on};
    struct sim_link slow = {.extra_ns_max = on ? w->plan.length_ns / 8 : 0};
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        struct node *n = &w->nodes[i];
        if (!(l->members & 1u << i))
            continue;
        if (l->kind == FAULT_SLOW_DISK)
            sim_disk_slow(w->sim, n->disk, on ? 1u << dice(w, 11) : 1);
        if (l->kind == FAULT_STORE_CUT)
            sim_cs_cut(w->cs, n->rt, on);
        if (l->kind == FAULT_FULL_DISK)
            sim_disk_sparse(w->sim, n->disk, on ? dice(w, 40) * 4096 : w->plan.disk_bytes);
    }
    if (l->kind == FAULT_SLOW_NET)
        set_ways(w, l->members, MEMBER_BITS(w), slow);
    if (l->kind == FAULT_PARTITION || l->kind == FAULT_ONE_WAY)
        set_ways(w, l->members, others, blocked);
    if (l->kind == FAULT_PARTITION)
        set_ways(w, others, l->members, blocked);
    if (l->kind == FAULT_STORE_OUTAGE)
        sim_cs_outage(w->cs, on);
}

static fiber_fn void lasting_main(void *arg)
{
    struct lasting *l = arg;
    struct world *w = l->w;
    uint64_t now = sim_now(w->sim), end = now + dice(w, w->plan.length_ns);
    lasting_set(w, l, true);
    while (!w->healing && sim_now(w->sim) < end) {
        fiber_sleep(w->rt, MIN(end - sim_now(w->sim), 100 * NS_PER_MS));
    }
    if (!w->healing) {
        world_note(w, "fault %s %x ends", fault_names[l->kind], l->members);
        lasting_set(w, l, false);
    }
    w->running--;
    free(l);
}

static void begin_lasting(struct world *w, enum fault_kind kind, unsigned members)
{
    struct lasting *l = malloc(sizeof(*l));
    ASSERT(l);
    *l = (struct lasting){.w = w, .kind = kind, .members = members};
    world_note(w, "fault %s %x", fault_names[kind], members);
    w->running++;
    ASSERT(fiber_spawn(w->rt, "lasting", lasting_main, l) == 0);
}

/* --- what happens at once --- */

static void drop_conns(struct world *w)
{
    unsigned a = (unsigned)dice(w, w->plan.nodes);
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        if (i != a && dice(w, 2))
            sim_conns_drop(w->sim, w->nodes[a].rt, w->nodes[i].rt);
    }
}

/* F1: a flush fails, and what it should have made durable goes at a later power cut. */
static void lie(struct world *w)
{
    struct node *n = &w->nodes[w->plan.seed % w->plan.nodes];
    world_note(w, "fault lying-disk: node %s", n->name);
    if (dice(w, 3) == 0)
        node_die(n, DEATH_POWER, dice(w, w->plan.down_ns_max));
    else
        sim_disk_fault(w->sim, n->disk, DISK_WRITE, SIM_FAULT_EIO_ONCE, 1 + dice(w, 30));
}

/* F1 */
static bool rot_block(struct world *w)
{
    struct node *n = &w->nodes[w->plan.seed % w->plan.nodes];
    uint8_t *bytes = sim_disk_bytes(w->sim, n->disk);
    uint64_t blocks = w->plan.disk_bytes / 4096, start = dice(w, blocks);
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t block = (start + i) % blocks;
        if (!content_is_block(bytes + block * 4096))
            continue;
        sim_disk_flip(w->sim, n->disk, block * 4096 + dice(w, 4096), (unsigned)dice(w, 8));
        world_note(w, "fault rot: node %s block %u", n->name, (unsigned)block);
        return true;
    }
    return false;
}

static void die(struct world *w, struct node *n, enum node_death death, uint64_t down)
{
    if (n->held)
        return;
    world_note(w, "fault %s: node %s", death == DEATH_POWER ? "power-cut" : "kill", n->name);
    node_die(n, death, down);
}

static void stop_some(struct world *w)
{
    struct node *n = some_node(w);
    if (n->state != NODE_UP)
        return;
    world_note(w, "fault restart: node %s", n->name);
    n->start_at_ns = sim_now(w->sim) + dice(w, w->plan.down_ns_max);
    node_stop(n);
}

static void plan_disk_fault(struct world *w, enum disk_op op, enum sim_fault fault)
{
    struct node *n = some_node(w);
    if (n->held)
        return; /* its disk is the administrator's */
    world_note(w, "fault at an I/O: node %s, %d %d", n->name, (int)op, (int)fault);
    sim_disk_fault(w->sim, n->disk, op, fault, 1 + dice(w, 30));
}

/* True when something was done. */
static bool strike(struct world *w, enum fault_kind kind)
{
    unsigned members = 1 + (unsigned)dice(w, MEMBER_BITS(w));
    switch (kind) {
    case FAULT_POWER_CUT:
    case FAULT_KILL:
        die(w, some_node(w), kind == FAULT_KILL ? DEATH_KILL : DEATH_POWER, down_ns(w));
        return true;
    case FAULT_POWER_CUT_ALL:
        for (unsigned i = 0; i < w->plan.nodes; i++)
            die(w, &w->nodes[i], DEATH_POWER, dice(w, w->plan.down_ns_max));
        return true;
    case FAULT_RESTART:
        stop_some(w);
        return true;
    case FAULT_DROP_CONNS:
        drop_conns(w);
        return true;
    case FAULT_IO_ERROR:
        plan_disk_fault(w, DISK_WRITE, SIM_FAULT_EIO_ONCE);
        return true;
    case FAULT_READ_ERROR:
        plan_disk_fault(w, DISK_READ, SIM_FAULT_EIO_ONCE);
        return true;
    case FAULT_CUT_AT_IO:
        plan_disk_fault(w, DISK_WRITE, SIM_FAULT_CRASH);
        return true;
    case FAULT_LYING_DISK:
        lie(w);
        return true;
    case FAULT_ROT:
        return rot_block(w);
    case FAULT_DRAIN:
    case FAULT_WEIGHT:
    case FAULT_COPIES:
    case FAULT_REPLACE:
    case FAULT_JOIN:
        return members_strike(w, kind);
    default:
        begin_lasting(w, kind, dice(w, 2) ? 1u << dice(w, w->plan.nodes) : members);
        return true;
    }
}

static fiber_fn void nemesis_main(void *arg)
{
    struct world *w = arg;
    enum fault_kind enabled[FAULT_KIND_COUNT];
    unsigned count = 0;
    for (unsigned i = 0; i < FAULT_KIND_COUNT; i++) {
        if (w->plan.faults[i])
            enabled[count++] = (enum fault_kind)i;
    }
    while (count > 0 && !w->healing) {
        fiber_sleep(w->rt, 1 + dice(w, 2 * w->plan.fault_period_ns));
        if (w->healing)
            break;
        enum fault_kind kind = enabled[dice(w, count)];
        w->stats.faults[kind] += strike(w, kind);
    }
    while (!w->healing)
        fiber_sleep(w->rt, 50 * NS_PER_MS);
    members_heal(w);
    w->running--;
}

void faults_start(struct world *w)
{
    sim_silent_death(w->sim, w->plan.silent_ns_max);
    w->running++;
    ASSERT(fiber_spawn(w->rt, "nemesis", nemesis_main, w) == 0);
}
