/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The replicated object service of one node: serves its own store to peers, and carries out
 * write-all, read-any, reference messages and reconciliation for the volumes owned here
 * (replication.md, refcount.md).
 *
 * W1 A write is answered when every in-sync node has it durable; an answer counts only for its
 *    epoch.
 * W4 Per object, requests travel in the order of the calls; once sent, never abandoned by a
 *    living owner.
 * R3 A replica that learns a newer group epoch finishes or refuses what was admitted under the
 *    older one before it answers anything at the new one.
 * R6 Requests from a session that is not in the map are refused.
 */
#pragma once
#include "cluster/cluster.h"
#include "object/ledger.h"
#include "rt/rt.h"

struct store;
struct objects;

#define OBJECT_EXTENT_COUNT_MAX 16u
#define OBJECT_BLOCK            4096u

struct objects_options {
    struct listener *listener; /* takes: the peer address, already bound (its text is in the node's
                                  registration) */
    uint64_t recovery_bytes_per_s; /* that joining groups may take from other nodes, 0: 256 MiB */
    uint32_t entries_per_block;    /* of index blocks, 0: 4096; other values only in tests */
};
/* Accepts peers, registers for maps, resumes dying blocks. `store` and `cluster` are borrowed and
 * outlive it. */
fiber_fn int objects_start(struct rt *rt, struct store *store, struct cluster *cluster,
                           const struct objects_options *o, struct objects **ret);
/* Refuses new requests, finishes those running, frees. Volumes must be closed already. */
fiber_fn void objects_stop(struct objects *o);
/* How the service learns the floor of a volume that it knows nothing of (or nothing new):
 * *ret_floor is the volume's stable version, UINT64_MAX when the volume does not exist any more.
 * Set by volume/ at its start. May be called from many fibers; errors mean "unknown". NULL takes it
 * back. */
void objects_set_floor_lookup(struct objects *o,
                              fiber_fn int (*lookup)(void *arg, uint64_t volume,
                                                     uint64_t *ret_floor),
                              void *arg);
/* --- messages of volume/ between two nodes (FORWARD, L4): the bodies are its own --- */
#define OBJECT_FORWARD_PAYLOAD_MAX (1u << 20)
struct object_forward {
    uint16_t node;          /* received: who sends; sent: where to */
    struct session session; /* received: of the sender, which was in the map when it connected */
    const void *body, *payload; /* payload NULL: none */
    uint32_t body_length, payload_length;
};
struct object_forward_answer {
    struct enc body; /* owned; empty: it was not carried out */
    void *payload;   /* NULL: none. Serving: of object_forward_buffer(). Asking: the caller's */
    uint32_t payload_size, payload_length; /* room, and what of it is used */
};
/* What serves them: returns the answer's status. Runs on a fiber of its own for each message, many
 * at once, and may wait for other nodes: nothing else waits for it (R3, W4). Not called again once
 * NULL is set; running calls go on. Without one, messages are answered with -ESTALE. */
typedef fiber_fn int object_forward_fn(void *arg, const struct object_forward *m,
                                       struct object_forward_answer *ret);
void objects_set_forward(struct objects *o, object_forward_fn *fn, void *arg);
/* Sets ret->payload and payload_size, 4096-aligned, freed by the service. False: no room now. */
bool object_forward_buffer(struct objects *o, struct object_forward_answer *ret, uint32_t size);
/* Asks another node, once. Returns the answer's status; -ECONNRESET: the connection broke, or none
 * could be made, and the message may or may not have been served; -EAGAIN without a body: no room
 * there, it was not served; -ECANCELED: shutdown. ret->body is the caller's to enc_done(). */
fiber_fn int object_forward(struct objects *o, const struct object_forward *m,
                            struct object_forward_answer *ret);

/* The lease holder's credentials; each request carries a copy of its present values. */
struct object_owner {
    uint64_t volume; /* volume id */
    struct term term;
    struct version stable; /* S: floor of its stamps; settles tombstones of `vid` at the replicas */
    struct vid vid;        /* its working vid */
    bool cancelled;        /* set by the owner when it gives up: waiting calls return -ECANCELED */
};

enum object_change_kind { OBJECT_WRITE, OBJECT_CLONE, OBJECT_PUNCH, OBJECT_REMOVE };
struct object_extent {
    uint32_t offset, length; /* bytes within the object */
};
/* See struct store_change for the meaning of each field; versions likewise. */
#define OBJECT_PREV_NONE       ((struct version){0})
#define OBJECT_PREV_OLDER_TERM ((struct version){UINT64_MAX})
struct object_change {
    enum object_change_kind kind;
    struct oid oid, source;
    struct version prev, next;
    const struct object_extent *extents;
    unsigned extent_count;
    const struct iovec *iov; /* stays untouched until the call returns */
    unsigned iov_count;
};

/*
 * W1: one change on all in-sync replicas. Sends before it first suspends, so that calls made one
 * after the other on one object are sent in that order. Waits for missing nodes as long as it takes
 * (dog says why).
 *   0        durable on every in-sync node
 *   -ENOSPC  refused before anything was sent (W6; never for PUNCH, REMOVE)
 *   -ESTALE  some replica is not at `prev` (W7): object_reconcile_one(), then decide; or a newer
 *            term of the volume is known
 *   -ENOENT  CLONE: source is absent
 *   -EUCLEAN a replica found a bad block that it had to merge with
 *   -EINVAL  extents, data or versions that make no sense, or no such group
 *   -ECANCELED owner->cancelled or shutdown: the outcome is unknown
 */
fiber_fn int object_change(struct objects *o, const struct object_owner *owner,
                           const struct object_change *c);

/* W5: reads from one in-sync replica, the own disk if it has one; moves to another on a bad
 * checksum or a dead peer. An object that is absent gives -ENOENT and zeros. *ret_version may be
 * NULL. `buffer` is best 4096-aligned. -EUCLEAN when all copies are bad, -ECANCELED. */
fiber_fn int object_read(struct objects *o, const struct oid *oid, uint32_t offset, uint32_t length,
                         void *buffer, struct version *ret_version);
/* Mapped and hole runs, as store_map(). */
fiber_fn int object_map(struct objects *o, const struct oid *oid, uint32_t offset, uint32_t length,
                        void (*fn)(void *arg, uint32_t offset, uint32_t length, bool mapped),
                        void *arg);

/* Sends reference messages to the homes of their targets, in batches per group, and returns when
 * all are answered (applied on all in-sync nodes): 0. -ESTALE: refused (fenced: a newer term or
 * floor is known), -ECANCELED. `sender` is REF_SENDER_VOLUME with the owner, or REF_SENDER_REGISTRY
 * with owner NULL (kill). */
fiber_fn int object_refs(struct objects *o, const struct object_owner *owner,
                         enum ref_sender_kind sender, const struct ref_op *ops, unsigned count);

/* L3: what the owner finds of its vid. */
struct object_found {
    struct oid oid;
    struct version version;
    bool tombstone;
    bool empty; /* no block is mapped (a punch) */
};
/* Asks every in-sync node of every group, at one epoch each, for objects and tombstones of `vid`
 * newer than `above`, brings all in-sync copies of each to the highest version found, then reports
 * each to fn (which must not suspend) in oid order. 0, -ECANCELED. */
fiber_fn int object_reconcile(struct objects *o, const struct object_owner *owner, struct vid vid,
                              struct version above,
                              void (*fn)(void *arg, const struct object_found *f), void *arg);
/* The same for one object (W7). *ret is what all copies have now. */
fiber_fn int object_reconcile_one(struct objects *o, const struct object_owner *owner,
                                  const struct oid *oid, struct object_found *ret);
/* Tells all nodes that tombstones of `vid` with version <= `stable` may go. Best effort. */
fiber_fn void object_settle(struct objects *o, struct vid vid, struct version stable);

/* --- for check and administration --- */
struct object_entry {
    struct oid oid;
    struct version version;
    uint64_t meta_version;
    bool tombstone;
    const void *meta; /* encoded ledger; borrowed, NULL when none */
    size_t meta_length;
};
/* Everything that one node stores (all groups), sorted by oid, streamed in pages; fn may suspend.
 * Nonzero from fn stops. -EAGAIN: the node has no live session. */
fiber_fn int object_inventory(struct objects *o, uint16_t node,
                              fiber_fn int (*fn)(void *arg, const struct object_entry *e),
                              void *arg);
/* How far a node is with its groups: those it is a member of, those of them in sync. The rest is
 * about what it is pulling now, since it last had nothing to join. */
struct object_recovery {
    uint64_t groups_total, groups_done;
    uint64_t objects_total, objects_done; /* that differ, as far as compared */
    uint64_t bytes_done, bytes_per_s;
    uint64_t eta_s; /* estimated seconds left, 0: unknown, or nothing to do */
};
/* One node's space and counters. */
struct object_node_info {
    uint64_t size_bytes, used_bytes, free_bytes, data_bytes, shared_bytes, object_count,
        tombstone_count;
    uint64_t dying_count; /* index blocks being taken apart: the reclaim backlog */
    uint64_t ref_batches_pending;
    uint64_t checksum_errors;
    uint64_t rss_bytes, uptime_ns;
    uint64_t record_bytes, pending_bytes, unreachable_bytes, reserve_bytes, log_bytes;
    uint64_t scrub_rate, scrub_passes, scrub_bytes, scrub_objects, scrub_errors, scrub_mended;
    bool inexact;
    int failed;
    char scrub_last[160]; /* the last finding, "" none */
    struct object_recovery recovery;
};
fiber_fn int object_node_info(struct objects *o, uint16_t node, struct object_node_info *ret);
/* Free bytes of the fullest node, as last heard. */
uint64_t object_free_bytes(const struct objects *o);
/* Text about why calls wait now ("writes wait for node c (no live session) …"), empty if none do.
 */
void object_waiting_text(const struct objects *o, char *out, size_t size);
