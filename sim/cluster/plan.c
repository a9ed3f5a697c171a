/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a seed chooses, swarm style: each run has only some of the faults and of the operations, so
 * that none hides another, and odd small constants.
 */
#include <inttypes.h>
#include <stdio.h>
#include "base/hash.h"
#include "sim/cluster/work.h"
#include "sim/cluster/world.h"

const char *const fault_names[FAULT_KIND_COUNT] = {
    [FAULT_POWER_CUT] = "power-cut",
    [FAULT_KILL] = "kill",
    [FAULT_POWER_CUT_ALL] = "power-cut-all",
    [FAULT_RESTART] = "restart",
    [FAULT_SLOW_DISK] = "slow-disk",
    [FAULT_SLOW_NET] = "slow-net",
    [FAULT_PARTITION] = "partition",
    [FAULT_ONE_WAY] = "one-way",
    [FAULT_DROP_CONNS] = "drop-conns",
    [FAULT_STORE_OUTAGE] = "store-outage",
    [FAULT_STORE_CUT] = "store-cut",
    [FAULT_IO_ERROR] = "io-error",
    [FAULT_READ_ERROR] = "read-error",
    [FAULT_CUT_AT_IO] = "cut-at-io",
    [FAULT_ROT] = "rot",
    [FAULT_FULL_DISK] = "full-disk",
    [FAULT_LYING_DISK] = "lying-disk",
    [FAULT_DRAIN] = "drain",
    [FAULT_WEIGHT] = "weight",
    [FAULT_COPIES] = "copies",
    [FAULT_REPLACE] = "replace-disk",
    [FAULT_JOIN] = "join",
};

static uint64_t between(uint64_t *state, uint64_t min, uint64_t max)
{
    return min + draw(state, max - min + 1);
}

static void draw_shape(struct plan *p, uint64_t *state)
{
    static const unsigned nodes[] = {1, 2, 3, 3, 3, 3, 3, 4, 4, 5, 6, 7};
    p->nodes = nodes[draw(state, ARRAY_SIZE(nodes))];
    p->copies = draw(state, 4) ? MIN(p->nodes, 3u) : (unsigned)between(state, 1, MIN(p->nodes, 5u));
    p->zones = (unsigned)between(state, p->copies, p->nodes);
    p->min_copies = (unsigned)between(state, 1, MIN(p->copies, 2u));
    p->groups = (unsigned)between(state, 1, 17);
    p->entries = (unsigned)between(state, 3, 9);
    p->log_bytes = between(state, 256, 400) * 4096;
    p->disk_bytes = ALIGN_UP(p->log_bytes, 4096u) + between(state, 1600, 4000) * 4096;
}

static void draw_work(struct plan *p, uint64_t *state)
{
    static const unsigned weights[] = {0, 1, 1, 3, 10};
    p->volumes = (unsigned)between(state, 1, 4);
    p->clients = (unsigned)between(state, 1, 4);
    p->depth = (unsigned)between(state, 1, 6);
    uint64_t objects_max = MIN(p->entries * p->entries, 10u);
    p->capacity = 65536 * between(state, 1, objects_max);
    p->io_max = UNIT << draw(state, 9);
    p->operations = (unsigned)between(state, 60, 400);
    p->think_ns = NS_PER_MS << draw(state, 10);
    for (unsigned i = 0; i < ARRAY_SIZE(p->weights); i++)
        p->weights[i] = weights[draw(state, ARRAY_SIZE(weights))];
    p->weights[WORK_USE] = 20;
    p->delay_ns = NS_PER_US << draw(state, 20);
    p->publish_ns = NS_PER_US << draw(state, 22);
    p->linger_ns = NS_PER_MS << draw(state, 11);
}

static void draw_faults(struct plan *p, uint64_t *state)
{
    static const uint64_t periods_ms[] = {0, 100, 300, 1000, 3000};
    p->fault_period_ns = NS_PER_MS * periods_ms[draw(state, ARRAY_SIZE(periods_ms))];
    p->recovery = draw(state, 10) > 0;
    p->grace_ns = 1 + (NS_PER_MS << draw(state, 13));
    p->out_ns = NS_PER_MS << (8 + draw(state, 12));
    p->timeout_ns = NS_PER_MS * between(state, 500, 10000);
    p->down_ns_max = NS_PER_MS << draw(state, 15);
    p->length_ns = NS_PER_MS << draw(state, 14);
    p->silent_ns_max = draw(state, 3) ? 0 : NS_PER_MS << draw(state, 14);
    for (unsigned i = 0; i < FAULT_KIND_COUNT; i++)
        p->faults[i] = p->fault_period_ns > 0 && draw(state, 3) == 0;
}

/* A disk that loses what it had taken, or rots, is a copy that is lost: then no other fault may
 * take others. */
static void choose_lossy(struct plan *p)
{
    static const enum fault_kind others[] = {
        FAULT_POWER_CUT, FAULT_KILL,      FAULT_POWER_CUT_ALL, FAULT_RESTART,
        FAULT_PARTITION, FAULT_ONE_WAY,   FAULT_STORE_CUT,     FAULT_STORE_OUTAGE,
        FAULT_IO_ERROR,  FAULT_CUT_AT_IO, FAULT_FULL_DISK,     FAULT_READ_ERROR,
        FAULT_DRAIN,     FAULT_WEIGHT,    FAULT_COPIES,        FAULT_REPLACE,
    };
    bool possible = p->fault_period_ns > 0 && p->copies > 1;
    p->faults[FAULT_ROT] = possible && p->seed % 12 == 1;
    p->faults[FAULT_LYING_DISK] = possible && p->recovery && p->seed % 12 == 2;
    bool lossy = p->faults[FAULT_ROT] || p->faults[FAULT_LYING_DISK];
    for (unsigned i = 0; lossy && i < ARRAY_SIZE(others); i++)
        p->faults[others[i]] = false;
}

/* Owners that lose their session while their requests are on a slow way, and others that want the
 * same volume at once (L2, R3, R6, W1): by chance that is too rare. */
static void choose_duel(struct plan *p, uint64_t *state)
{
    if (p->seed % 3 != 0 || p->nodes < 3)
        return;
    p->volumes = 1;
    p->clients = 3;
    p->depth = (unsigned)between(state, 3, 6);
    p->io_max = MIN(p->io_max, 8192u);
    p->operations = 400;
    p->think_ns = NS_PER_MS * between(state, 50, 500);
    p->recovery = true;
    p->timeout_ns = NS_PER_MS * between(state, 300, 900);
    p->fault_period_ns = NS_PER_MS * between(state, 100, 1000);
    p->length_ns = NS_PER_MS * between(state, 1000, 6000);
    p->faults[FAULT_STORE_CUT] = p->faults[FAULT_SLOW_NET] = true;
}

/* Faults of administrators need recovery. */
static void choose_members(struct plan *p, uint64_t *state)
{
    static const enum fault_kind kinds[] = {FAULT_DRAIN, FAULT_WEIGHT, FAULT_COPIES, FAULT_REPLACE,
                                            FAULT_JOIN};
    for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++)
        p->faults[kinds[i]] = p->faults[kinds[i]] && p->recovery;
    if (p->faults[FAULT_JOIN])
        p->spares = (unsigned)MIN(between(state, 1, 2), NODE_COUNT_MAX - p->nodes);
    p->nodes += p->spares;
}

void plan_draw(struct plan *p, uint64_t seed)
{
    uint64_t state = hash_u64(seed ^ 0x91a7);
    *p = (struct plan){.seed = seed};
    draw_shape(p, &state);
    draw_work(p, &state);
    draw_faults(p, &state);
    choose_duel(p, &state);
    choose_lossy(p);
    choose_members(p, &state);
    p->forward = hash_u64(seed ^ 0xf04a) % 2;
}

void plan_set_nodes(struct plan *p, unsigned nodes)
{
    p->nodes = nodes;
    p->spares = 0;
    p->copies = MIN(p->copies, nodes);
    p->zones = MAX(p->copies, MIN(p->zones, nodes));
    p->min_copies = MIN(p->min_copies, p->copies);
    p->faults[FAULT_ROT] = p->faults[FAULT_ROT] && p->copies > 1;
}

static uint64_t ms(uint64_t ns)
{
    return ns / NS_PER_MS;
}

void plan_print(const struct plan *p)
{
    fprintf(stderr,
            "seed %" PRIu64 ": %u nodes (%u of them later) in %u zones, %u copies (at least %u), "
            "%u groups, %u entries, "
            "disk %" PRIu64 " KiB, log %" PRIu64 " KiB\n",
            p->seed, p->nodes, p->spares, p->zones, p->copies, p->min_copies, p->groups, p->entries,
            p->disk_bytes >> 10, p->log_bytes >> 10);
    fprintf(stderr,
            "  %u guests with %u volumes of %" PRIu64 " KiB, depth %u, I/O to %" PRIu64
            " B, %u operations\n",
            p->clients, p->volumes, p->capacity >> 10, p->depth, p->io_max, p->operations);
    fprintf(stderr,
            "  recovery %s, session timeout %" PRIu64 " ms, grace %" PRIu64
            " ms, out after %" PRIu64 " ms\n",
            p->recovery ? "on" : "off", ms(p->timeout_ns), ms(p->grace_ns), ms(p->out_ns));
    if (p->forward)
        fprintf(stderr, "  volumes are used through several nodes at once\n");
    fprintf(stderr, "  faults every %" PRIu64 " ms for %" PRIu64 " ms, down %" PRIu64 " ms:",
            ms(p->fault_period_ns), ms(p->length_ns), ms(p->down_ns_max));
    for (unsigned i = 0; i < FAULT_KIND_COUNT; i++) {
        if (p->faults[i])
            fprintf(stderr, " %s", fault_names[i]);
    }
    fprintf(stderr, "\n");
}
