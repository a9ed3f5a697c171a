/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the simulated seam. Private to sim/sim*.c.
 *
 * M1 Everything that happens later is a timer: I/O and packets on sim.world, the nodes' own timers
 * on their rt. The earliest goes first; at equal times the world before the nodes, and within one
 * heap the order of arming. So a run is a function of the seed and the program. M2 All randomness
 * comes from sim.random_state. M3 Whatever a node owns hangs on a list of its struct sim_node, so
 * that a crash finds it.
 */
#pragma once
#include "rt/seam.h"
#include "sim/sim.h"

struct sim {
    struct rt world; /* only its timer heap is used */
    uint64_t random_state;
    uint64_t now;
    bool firing; /* a timer's callback is running */
    struct list nodes;
    struct list disks;
    struct list listeners; /* open ones of all nodes */
    struct list links;     /* struct link_entry */
    uint64_t silent_ns_max;
    void (*on_death)(void *arg, struct rt *node);
    void *on_death_arg;
    unsigned port_next;
};

enum sim_death { SIM_ALIVE, SIM_KILLED, SIM_POWER_CUT };

struct sim_node {
    struct rt rt; /* first */
    struct list link;
    struct sim *sim;
    struct rt_options options;
    enum sim_death dying;  /* carried out when the running fiber suspends */
    uint64_t life;         /* counts deaths */
    struct list opened;    /* struct sim_opened */
    struct list conns;     /* struct sim_conn */
    struct list listeners; /* struct sim_listener, open and closed */
    struct list posts;     /* struct sim_post */
    struct list workers;   /* struct sim_worker */
};

static inline struct sim_node *sim_node_of(struct rt *rt)
{
    return container_of(rt, struct sim_node, rt);
}

uint64_t sim_random(struct sim *s);
/* Uniform in [min, max]. */
uint64_t sim_random_between(struct sim *s, uint64_t min, uint64_t max);
/* Makes fire() happen after a random delay between min and max. */
void sim_schedule(struct sim *s, struct timer *t, void (*fire)(struct timer *t), uint64_t min_ns,
                  uint64_t max_ns);
/* The node dies as soon as nothing of it runs. */
void sim_node_die(struct sim_node *n, enum sim_death death);

/* sim_disk.c */
int sim_disk_open(struct rt *rt, const char *path, unsigned flags, uint64_t size,
                  struct disk **ret);
/* What is in flight and unflushed on the node's disks meets its fate; handles are freed. */
void sim_disks_die(struct sim_node *n, enum sim_death death);
void sim_disks_free(struct sim *s);

/* sim_net.c */
int sim_listen(struct rt *rt, const char *address, struct listener **ret);
fiber_fn int sim_connect(struct rt *rt, const char *address, uint64_t deadline_ns,
                         struct conn **ret);
void sim_net_die(struct sim_node *n, enum sim_death death);
void sim_links_free(struct sim *s);
