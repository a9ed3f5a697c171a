/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the object service, shared by the files of this folder only.
 *
 * O1 `map` is the map this node acts on: it is replaced only after the barrier (R3) of every
 *    group whose epoch it changes, and after the fence (R6) of every session it lacks.
 * O2 A group admits local work (gate_enter) of exactly its known epoch; `inflight` counts what
 *    is admitted.
 * O3 Every operation that may wait for others is an `op` on `ops`, so that cancelling and
 *    explaining find it.
 */
#pragma once
#include "base/err.h"
#include "base/hash.h"
#include "object/index_block.h"
#include "object/link.h"
#include "object/object.h"
#include "store/store.h"
#include "wire/peer.h"

static_assert(OBJECT_EXTENT_COUNT_MAX == PEER_EXTENT_COUNT_MAX, "a change fits a message");
static_assert(OBJECT_EXTENT_COUNT_MAX == STORE_EXTENT_COUNT_MAX, "a change fits the store");
static_assert(STORE_META_SIZE_MAX == PEER_META_BYTES_MAX, "meta fits a message");
static_assert(STORE_OBJECT_SIZE_MAX == PEER_PAYLOAD_MAX, "an object fits a message");

/* --- groups (gate.c) --- */
struct group {
    uint64_t epoch;      /* known here: its barrier is passed */
    uint64_t next_epoch; /* while closed: the one to come */
    bool closed; /* R3: between learning an epoch and having finished what the older one admitted */
    uint32_t inflight;      /* O2 */
    uint32_t local_pending; /* of `changes`: not yet given to the own store at this epoch */
    struct list changes; /* object_change() calls of this node that are not answered, in the order
                            of the calls */
    uint64_t
        aligned_epoch; /* primary: metas of the members were made equal at this epoch (align.c) */
    struct join *join; /* while this node joins it (recovery.h); owned */
    bool joined_here;  /* this process has completed a join of it */
    uint64_t floor_heard;      /* of the cascades that this group sends */
    uint64_t cascade_sequence; /* primary: of its stamps, within `epoch` */
};

/* Admits one piece of local work. 0; -EAGAIN: older epoch, or this node is no member; -EBUSY: must
 * wait for a map or for the barrier. gate_leave() ends it. */
int gate_enter(struct objects *o, uint32_t group, uint64_t epoch);
void gate_leave(struct objects *o, uint32_t group);
/* As gate_enter, but waits instead of -EBUSY. -ECANCELED when *abort becomes true or the service
 * stops. */
fiber_fn int gate_enter_wait(struct objects *o, uint32_t group, uint64_t epoch, const bool *abort);
/* Waits until this node acts on a map of at least that version: 0, -ECANCELED. */
fiber_fn int gate_wait_map(struct objects *o, uint64_t version, const bool *abort);
/* True when this node may serve now (R6). */
bool gate_serving(const struct objects *o);
/* Passes the barriers of `m` and makes it the map this node acts on (O1). */
fiber_fn int gate_adopt(struct objects *o, struct map *m);
/* NULL: no such group in the present map. */
struct group *group_get(struct objects *o, uint32_t group);
const struct map_group *group_map(const struct objects *o, uint32_t group);
/* The pool that a group belongs to; NULL: of none. */
const struct map_pool *group_pool(const struct objects *o, uint32_t group);
/* R4: the group has as many in-sync nodes as its pool wants for writing. */
bool group_may_write(const struct objects *o, uint32_t group);
static inline bool group_is_primary(const struct map_group *g, int self)
{
    return self >= 0 && g->in_sync_count > 0 && g->in_sync[0] == self;
}

/* --- waiting operations (objects.c) --- */
struct op {
    struct list in_ops;
    const struct object_owner *owner; /* NULL: nobody can cancel it but shutdown */
    struct waitq wait;
    unsigned ticks;           /* of the janitor, since it began */
    const char *what;         /* "writes" … for the text */
    const struct call *calls; /* array: those not answered name the nodes that it waits for */
    size_t call_size;         /* bytes from one call to the next in an array of larger structs */
    unsigned call_count;
    int short_group; /* R4: the group that has too few in-sync nodes, -1: none */
    bool bound;      /* to the map: a new one ends the wait, because it may have made it vain */
    uint64_t map_version; /* with `bound` */
};
void op_begin(struct objects *o, struct op *op, const struct object_owner *owner, const char *what);
void op_end(struct objects *o, struct op *op);
bool op_cancelled(const struct objects *o, const struct op *op);

/* --- floors and terms of volumes (floors.c) --- */
struct floor_table {
    struct htable by_volume;
    fiber_fn int (*lookup)(void *arg, uint64_t volume, uint64_t *ret_floor);
    void *lookup_arg;
};
void floors_init(struct objects *o);
void floors_done(struct objects *o);
/* Learns from credentials. -ESTALE: a newer term of that volume is known. Does not suspend. */
int floors_note(struct objects *o, const struct peer_owner *owner);
/* Highest stable version known of a volume, 0 if unknown. UINT64_MAX: the volume is gone. */
uint64_t floors_get(const struct objects *o, uint64_t volume);
/* Asks the lookup for a volume of which nothing is known, or not lately. */
fiber_fn void floors_refresh(struct objects *o, uint64_t volume);

/* --- the server's side (serve.c, requests.c) --- */
struct peer;
/* Breaks connections of sessions that `m` lacks. True when nothing admitted of them is under way
 * any more; drain_wait is woken when that may have changed. */
bool serve_fence(struct objects *o, const struct map *m);
int serve_start(struct objects *o, struct listener *l);
fiber_fn void serve_stop(struct objects *o);

#define REQUEST_BODY_INLINE 320u
struct request {
    struct list in_pool;
    struct objects *o;
    struct peer *peer; /* NULL: asked by this very node */
    struct peer_header header;
    const uint8_t *body;
    uint8_t *body_heap; /* owned, when it did not fit */
    void *payload;      /* owned, 4096-aligned */
    bool payload_reserve, payload_borrowed;
    bool forwarded; /* FORWARD: payloads are malloc'ed and counted (forward.c) */
    union {
        struct peer_change change;
        struct peer_read read;
        struct peer_fetch fetch;
    };
    uint8_t *relations;      /* FETCH; owned */
    struct peer_meta *metas; /* META_APPLY; owned */
    unsigned meta_count;
    struct enc reply_body;
    uint8_t reply_version[PEER_VERSION_BYTES];
    uint32_t reply_inline; /* bytes of reply_version used as the body */
    void *reply_payload;   /* owned */
    bool reply_payload_reserve;
    uint32_t reply_payload_size, reply_payload_length;
    int status;
    struct conn_out out;
    struct iovec iov[3];
    uint8_t reply_header[PEER_HEADER_BYTES];
    uint8_t body_inline[REQUEST_BODY_INLINE];
};
/* Decodes and checks the body of rq and admits it, in the order of the stream (W4). 0: then
 * request_run() must follow; else the error to answer with, or -EBADMSG: the sender is broken. */
fiber_fn int request_admit(struct request *rq, const bool *abort);
/* What a replica accepts: ascending extents within an object, data of the right length, real
 * versions. */
bool change_is_valid(const struct peer_change *c, uint32_t payload_length);
/* Does the work of an admitted request and fills in status and reply. */
fiber_fn void request_run(struct request *rq);
/* Applies meta changes on this node's store alone, in one batch; the caller was admitted. */
fiber_fn int metas_apply_own(struct objects *o, const struct peer_meta *metas, unsigned count);
/* Bytes that data may still allocate here, less the margin of W6; cached for a few calls. */
uint64_t own_free_bytes(struct objects *o);
/* Payload buffers of the server: from the common budget, or, when front ends hold all of that, from
 * a small reserve of our own, because they may be waiting for us. */
fiber_fn void *payload_get(struct objects *o, size_t size, bool *ret_reserve);
void payload_put(struct objects *o, void *p, size_t size, bool reserve);

/* --- messages of volume/ (forward.c) --- */
/* F1 What they hold is counted by itself and bounded: they wait for other nodes, and may take no
 * memory from those that these wait for. */
#define FORWARD_COUNT_MAX 256u
#define FORWARD_BYTES_MAX (32u << 20)
struct forwards {
    object_forward_fn *fn; /* NULL: none */
    void *arg;
    unsigned count;
    size_t bytes;
};
/* Takes the room and the memory of one; false: there is none now, and rq->payload is NULL. */
bool forward_take(struct request *rq);
/* Gives it back, from request_free(). */
void forward_free(struct request *rq);
/* Serves and answers it, on a fiber of its own. */
fiber_fn void forward_main(void *arg);

/* --- asking one node (rpc.c) --- */
/* Asks node `number` (maybe this one) and waits. c was made by call_init() and filled; c->on_body
 * gets the answer. Returns the answer's status; -ECONNRESET only with CALL_FAIL_FAST; -EAGAIN also
 * when CALL_BOUND ends it; -ETIMEDOUT at c->deadline_ns; -ECANCELED. */
fiber_fn int node_call(struct objects *o, uint16_t number, struct call *c,
                       const struct object_owner *owner, const char *what);
/* Calls that can be made many at once: begin, then wait for all. done() is set by rpc. */
struct node_calls {
    struct op op;
    unsigned pending;
};
void node_calls_begin(struct objects *o, struct node_calls *n, const struct object_owner *owner,
                      const char *what);
/* The wait ends with -EAGAIN when another map is acted on. */
void node_calls_bind(struct objects *o, struct node_calls *n);
/* Not for this node itself. */
void node_calls_add(struct objects *o, struct node_calls *n, uint16_t number, struct call *c);
/* 0 when all are answered; -ECANCELED or -EAGAIN (then none is under way any more). `calls` must be
 * all that were added. */
fiber_fn int node_calls_wait(struct objects *o, struct node_calls *n, struct call **calls,
                             unsigned count);
/* What this node knows of another. Never NULL for numbers of the map. */
struct node_state {
    uint16_t number;
    struct link link;
    uint64_t free_bytes; /* as last heard, UINT64_MAX: never */
    bool ping_running;
    /* tell.c */
    unsigned silent_looks;
    uint64_t complained_ns; /* 0: it is reachable, as far as known */
};
/* Asks it whether it is there, unless that is being asked. Does not suspend. */
void node_ping(struct objects *o, struct node_state *n);
struct node_state *node_get(struct objects *o,
                            uint16_t number); /* NULL: out of memory or impossible number */

/* --- changes and reads (change.c, read.c) --- */
/* After gate_adopt: sends again what is unanswered in groups whose epoch changed (W1). */
void changes_on_epoch(struct objects *o, uint32_t group);
/* A change of that object is not answered yet. */
bool change_is_underway(struct objects *o, const struct oid *oid);
struct store_change;
/* Asks one node for its copy's state. */
fiber_fn int copy_stat(struct objects *o, uint16_t node, const struct oid *oid,
                       const struct object_owner *owner, struct peer_entry *ret);
/* Brings node's copy (at `prev`) to version `next`: content read from `donor`, which must be at
 * that version. */
fiber_fn int copy_install(struct objects *o, uint16_t node, uint16_t donor, const struct oid *oid,
                          struct version prev, struct version next, uint32_t end,
                          const struct object_owner *owner);
fiber_fn int copy_remove(struct objects *o, uint16_t node, const struct oid *oid,
                         struct version prev, struct version next,
                         const struct object_owner *owner);
enum copy_kind { COPY_OBJECT, COPY_TOMBSTONE };
/* Tells a joining node what all in-sync copies are: see replica_note(). */
fiber_fn int copy_note(struct objects *o, uint16_t node, const struct oid *oid,
                       struct version version, enum copy_kind kind,
                       const struct object_owner *owner);
/* READ from one node; -ECONNRESET when it cannot be reached now, -ETIMEDOUT when it has not
 * answered within patience_ns (0: any time will do), -EAGAIN when the group's epoch changed. */
fiber_fn int copy_read(struct objects *o, uint16_t node, const struct oid *oid, uint32_t offset,
                       uint32_t length, void *buffer, uint64_t patience_ns,
                       struct version *ret_version);

/* Memory for installs (read.c): may suspend; NULL when out of memory. */
fiber_fn void *install_buffer_get(struct objects *o, uint32_t size);
void install_buffer_put(struct objects *o, void *p, uint32_t size);

/* --- joining (join.c, pull.c, tell.c; recovery.h) --- */
struct joins {
    struct list active; /* groups with something to do, most needed first */
    unsigned workers;
    struct waitq work;
    uint64_t rate;    /* bytes per second */
    uint64_t free_ns; /* no pull before: the bandwidth used */
    uint32_t group_count;
    uint64_t begun_ns, objects_total, objects_done, bytes_done;
    uint64_t sampled_bytes, sampled_ns, bytes_per_s, sampled_objects, objects_per_ks;
    /* tell.c */
    struct timer tell_soon, watch;
    unsigned reported_count;
    uint16_t unreachable[MAP_NODE_COUNT_MAX];
    unsigned unreachable_count;
    int failed;
};
void join_init(struct objects *o);
void join_done(struct objects *o);
/* Part of gate_adopt(): groups are closed; and: the new map counts. Do not suspend. */
void join_closing(struct objects *o);
void join_adopt(struct objects *o);
/* Applies one change that was admitted, or notes it where this node is joining (W2). `from`: the
 * node whose change it is. As store_apply(); -EAGAIN: ask again. */
fiber_fn int replica_apply(struct objects *o, const struct store_change *c, uint16_t from,
                           struct version *ret_current);
/* All in-sync copies of an object are at that version now (0: absent). 0: this joining node's is,
 * too, or will be before it is in sync. -EAGAIN: ask again; -EINVAL: it is not joining. */
int replica_note(struct objects *o, const struct oid *oid, struct version version,
                 enum copy_kind kind, uint16_t from);
/* 0: to be applied; 1: noted instead; -EAGAIN, -ENOMEM. */
int replica_meta(struct objects *o, const struct peer_meta *m);
/* This node's side of a COMPARE. */
struct peer_compare;
int compare_own(struct objects *o, uint32_t group, struct peer_compare *ret);
void tell_init(struct objects *o);
void tell_done(struct objects *o);
/* How far the own joining is. */
void tell_recovery(const struct objects *o, struct object_recovery *ret);
/* Marks the own store exact when every group has been compared since it was opened. */
fiber_fn void join_mark_exact(struct objects *o);

/* --- clean.c --- */
/* A new map: what has gone elsewhere may be removed here. */
void clean_kick(struct objects *o);
/* Removes a tombstone of the own store (join.c, clean.c). */
fiber_fn int tombstone_drop(struct store *s, const struct oid *oid, struct version version);

/* --- references (refs.c, home.c, reclaim.c, align.c) --- */
struct ref_sender {
    enum ref_sender_kind kind;
    uint64_t id, authority, floor;
};
/* Sends to the homes and waits for all answers. 0, -ESTALE, -ECANCELED. */
fiber_fn int refs_send(struct objects *o, const struct ref_sender *sender,
                       const struct object_owner *owner, const struct ref_op *ops, unsigned count,
                       const bool *abort);
/* One batch at its home. `epochs` are those of the targets' groups at the sender. 0; -EAGAIN: an
 * epoch differs; -ESTALE */
struct ref_batch {
    struct ref_sender sender;
    unsigned count;
    const struct ref_op *ops;
    const uint64_t *epochs;
    const bool *fenced; /* becomes true when the sender's session has left the map */
};
fiber_fn int home_apply(struct objects *o, const struct ref_batch *b);
/* Applies meta changes on all in-sync nodes of their groups, this one included; it returns when all
 * have them, in the epochs given. -EAGAIN: an epoch changed; -ECANCELED. The decision (home_apply)
 * and the submission are one step. */
fiber_fn int metas_replicate(struct objects *o, const struct peer_meta *metas, unsigned count);
/* An index block died: take it apart in the background. */
void reclaim_add(struct objects *o, const struct oid *block, uint64_t epoch);
void reclaim_init(struct objects *o);
void reclaim_stop(struct objects *o);
/* Finds dying blocks of those groups in the own store. */
fiber_fn int reclaim_scan(struct objects *o, const uint32_t *groups, uint32_t count);
/* Groups were aligned: go on with what waited for that. */
void reclaim_kick(struct objects *o);
void reclaim_done(struct objects *o);
uint64_t reclaim_count(const struct objects *o);
/* The floor that cascades of `group` may publish now. */
uint64_t reclaim_floor(const struct objects *o, uint32_t group);
void align_kick(struct objects *o);
void align_init(struct objects *o);
fiber_fn int align_wait(struct objects *o, uint32_t group, uint64_t epoch);

/* --- everything --- */
struct reclaim {
    struct list blocks; /* struct dying */
    unsigned count, running;
    bool stopping;
};
struct objects {
    struct rt *rt;
    struct store *store;
    struct cluster *cluster;
    uint32_t entries_per_block;
    uint64_t started_ns;
    bool stopping;

    struct map *map; /* O1; owned reference */
    int self;        /* own number in it, -1: not listed with the present session */
    struct group *groups;
    uint32_t group_count;
    struct waitq map_wait;   /* map adopted, gate opened, service stopping */
    struct waitq drain_wait; /* some inflight became 0, some peer went */
    struct node_state *nodes[MAP_NODE_COUNT_MAX];

    struct list ops;
    struct timer janitor;

    struct listener *listener;
    struct list peers;
    struct list request_pool;
    unsigned request_pool_count;
    size_t reserve_used; /* of payload_get() */
    struct waitq reserve_wait;
    size_t install_used; /* of copy_install() */
    struct waitq install_wait;
    uint64_t free_bytes; /* own_free_bytes() */
    unsigned free_uses;
    uint64_t write_bytes_inflight;
    unsigned foreground; /* changes and reads in the own store now */
    struct joins joins;

    unsigned repairs_running;
    struct floor_table floors;
    struct forwards forwards;
    struct htable locks; /* home: per object */
    struct list home_queue;
    unsigned home_running;
    uint64_t ref_batches_pending;
    struct reclaim reclaim;
    struct waitq align_waiters;
    bool align_running, align_again;
    bool clean_running, clean_again;

    struct wgroup fibers; /* all background fibers of the service */
};
/* Acts on a new map; returns when it does (M1). */
fiber_fn void objects_adopt(struct objects *o, struct map *m);
/* Spawns a fiber that is waited for by objects_stop(). */
int objects_spawn(struct objects *o, const char *name, fiber_main *fn, void *arg);
/* To be called at the end of such a fiber. */
void objects_fiber_end(struct objects *o);
