/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole cluster in the simulator: its nodes, who brings them up and down, and calls into them.
 *
 * N1 Everything that judges runs on the guests' own rt, which never dies; work in a node is a call:
 *    a fiber on the node's rt that ends with the node. N2 A node does what `sheep run` does: it
 *    leaves when its store has failed or its session is lost, and is started again. N3 All that is
 *    random comes from the seed: the plan, the guests and the faults from generators of their own.
 */
#pragma once
#include "sim/sim.h"
#include "sim/sim_cs.h"
#include "store/store.h"
#include "volume/service.h"
#include "volume/volume.h"

#define NODE_COUNT_MAX    7u
#define PROCESS_COUNT_MAX 4096u

enum fault_kind {
    FAULT_POWER_CUT,
    FAULT_KILL,
    FAULT_POWER_CUT_ALL,
    FAULT_RESTART,
    FAULT_SLOW_DISK,
    FAULT_SLOW_NET,
    FAULT_PARTITION,
    FAULT_ONE_WAY,
    FAULT_DROP_CONNS,
    FAULT_STORE_OUTAGE,
    FAULT_STORE_CUT,
    FAULT_IO_ERROR,
    FAULT_READ_ERROR,
    FAULT_CUT_AT_IO,
    FAULT_ROT,
    FAULT_FULL_DISK,
    FAULT_LYING_DISK,
    FAULT_DRAIN,
    FAULT_WEIGHT,
    FAULT_COPIES,
    FAULT_REPLACE,
    FAULT_JOIN,
    FAULT_KIND_COUNT,
};
extern const char *const fault_names[FAULT_KIND_COUNT];

/* What a seed has chosen. */
struct plan {
    uint64_t seed;
    unsigned spares; /* of the nodes: not there at the beginning */
    unsigned nodes, zones, copies, min_copies, groups, entries;
    unsigned volumes, clients, depth; /* depth: I/O at once of one guest */
    uint64_t disk_bytes, log_bytes, capacity, io_max;
    bool recovery; /* dead nodes leave their groups and join again */
    uint64_t grace_ns, out_ns;
    uint64_t think_ns;   /* up to that much between two operations of a guest */
    uint64_t timeout_ns; /* of sessions */
    uint64_t delay_ns, publish_ns, linger_ns; /* of volumes */
    uint64_t fault_period_ns;                 /* mean; 0: no faults */
    uint64_t down_ns_max, length_ns;
    uint64_t silent_ns_max;
    unsigned operations;  /* of all guests together */
    unsigned weights[16]; /* of the guests' operations, enum work_kind */
    bool faults[FAULT_KIND_COUNT];
    bool forward; /* guests use volumes also through nodes that do not own them (L4) */
};

/* Of changes that a handle forwards, or that did: they are carried out by the owner of that moment,
 * or by the next one. M3 says nothing about them. */
#define PROCESS_ANY UINT64_MAX

enum node_state { NODE_DOWN, NODE_STARTING, NODE_UP, NODE_STOPPING };

struct world;
struct node {
    struct world *w;
    unsigned index;
    struct rt *rt;
    char name[8], zone[16], disk[16];
    struct uuid uuid;
    unsigned generation; /* of its disk */
    bool held;           /* nobody starts it */
    bool spare;          /* has never been started */
    enum node_state state;
    uint64_t process; /* number of its present or last life */
    bool registered;  /* its cluster service has started */
    bool may_start;   /* the supervisor starts it at start_at_ns */
    uint64_t start_at_ns, stop_begun_ns;
    struct listener *listener;
    struct store *store;
    struct cluster *cluster;
    struct objects *objects;
    struct volumes *volumes;
    struct waitq idle;    /* some call has ended */
    struct list calls;    /* struct call */
    unsigned guest_count; /* sessions of guests */
};

struct process {
    struct session session;
    uint64_t gone_at_ns; /* its session's end; UINT64_MAX: not yet */
};

struct sim_stats {
    uint64_t seeds, sim_ns, steps, operations, io, reads, writes, admin, unanswered, units_read;
    uint64_t refused, overflows, moved, forwarding, snapshots;
    uint64_t faults[FAULT_KIND_COUNT];
};

struct world {
    struct plan plan;
    struct sim *sim;
    struct sim_cs *cs;
    struct rt *rt; /* the guests' */
    struct node nodes[NODE_COUNT_MAX];
    struct process processes[PROCESS_COUNT_MAX];
    uint64_t process_count;
    uint64_t trace; /* hash of everything that happened */
    uint64_t fault_random;
    bool verbose, formatted, healing, ending, over;
    bool replacing;   /* a node's disk */
    unsigned tasks;   /* of administrators */
    unsigned running; /* fibers of guests and faults */
    const char *stage;
    struct sim_stats stats;
};

void plan_draw(struct plan *p, uint64_t seed);
/* The same plan on that many nodes. */
void plan_set_nodes(struct plan *p, unsigned nodes);
void plan_print(const struct plan *p);

/* Makes the cluster and formats it: returns when every node is up. Not on a fiber. */
void world_start(struct world *w);
/* Runs until *done, or ends the program: stuck. */
void world_run(struct world *w, const bool *done, uint64_t limit_ns, const char *stage);

/* The end of the program, with the replay command. */
enum sim_exit { SIM_OK = 0, SIM_WRONG = 1, SIM_STUCK = 2, SIM_CRASH = 3, SIM_USAGE = 64 };
_Noreturn void world_wrong(struct world *w, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
_Noreturn void world_stuck(struct world *w, const char *what);
/* A line of the trace: hashed always, printed with --verbose. */
void world_note(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Uniform below `below`, from the generator *state. */
uint64_t draw(uint64_t *state, uint64_t below);

/* --- nodes --- */
void node_start(struct node *n);
/* Orderly; the supervisor kills it when that takes too long. */
void node_stop(struct node *n);
enum node_death { DEATH_KILL, DEATH_POWER };
/* Takes effect when the running fiber suspends. It is started again after `down_ns`, or when all
 * heals if that is UINT64_MAX. */
void node_die(struct node *n, enum node_death death, uint64_t down_ns);
static inline bool node_up(const struct node *n)
{
    return n->state == NODE_UP;
}
/* An empty store with the node's present uuid on its disk, which nobody has open. */
fiber_fn void world_format_store(struct node *n);
/* Everything that was broken is whole from now on; nodes that are down start soon. */
void world_heal(struct world *w);
uint64_t process_gone_at(void *world, uint64_t process);

/* --- calls --- */
typedef fiber_fn int call_fn(struct node *n, void *arg);
/* Runs fn on the node and waits. Its result, or -EOWNERDEAD: the node was not up, or died
 * meanwhile (fn may have done all, a part, or nothing of it). */
fiber_fn int call_node(struct node *n, call_fn *fn, void *arg);

/* A call that outlives who waits for it. */
struct call {
    struct list link; /* node.calls */
    struct node *node;
    call_fn *fn;
    void *arg;
    bool is_closing; /* a node that is being stopped takes it too */
    bool ended;
    int result; /* -EOWNERDEAD: died */
    void (*on_end)(struct call *c);
    struct waitq waiters;
};
/* fn, arg and on_end are set. on_end runs exactly once, also before this returns if the node is not
 * up. Does not suspend. */
void call_begin(struct call *c, struct node *n);
/* Until the call has ended: 0, or -ETIMEDOUT. */
fiber_fn int call_wait(struct world *w, struct call *c, uint64_t deadline_ns);
