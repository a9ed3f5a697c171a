/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way from this node to one other: one connection, over which calls are pipelined in the order
 * in which they were made.
 *
 * K1 Calls leave in the order of link_submit(), also after a reconnect (W4).
 * K2 A call that is not answered is sent again on every new connection until it is answered or
 *    cancelled; one with CALL_FAIL_FAST fails instead. K3 done() runs once, when the answer is
 *    there and the kernel has let go of the caller's memory.
 */
#pragma once
#include "rt/rt.h"
#include "wire/peer.h"

struct objects;
struct link;

enum call_state { CALL_IDLE, CALL_QUEUED, CALL_SENT, CALL_RECEIVING, CALL_ANSWERED };
enum call_flags {
    CALL_FAIL_FAST = 1, /* -ECONNRESET when the connection breaks or cannot be made */
    /* For node_call(): -EAGAIN when the epoch of its group changes; of a call without one, when the
     * node has another session or is in sync nowhere any more. */
    CALL_BOUND = 2,
};
#define CALL_IOV_INLINE 6u
#define LINK_SLOT_COUNT 256u

/* One question. The caller fills in the first part and keeps everything in place until done() or
 * link_cancel(). */
struct call {
    enum peer_type type;
    unsigned flags;
    uint32_t group; /* PEER_NO_GROUP, or the group whose epoch travels in the header */
    const void *body;
    uint32_t body_length;
    const struct iovec *payload;
    unsigned payload_count;
    uint32_t payload_length, payload_crc;
    void *reply_payload; /* where bulk data of the answer goes */
    uint32_t reply_payload_size;
    /* Decodes the answer's body (also of errors); a negative return breaks the connection as
     * malformed. Must not suspend. May be NULL. */
    int (*on_body)(struct call *c, const uint8_t *body, size_t length);
    void (*done)(struct call *c); /* on a fiber or on the loop: may wake and submit, not suspend */
    void *user;
    uint64_t deadline_ns; /* for node_call(), 0: none */

    /* The answer. */
    int status;
    uint64_t reply_map_version;
    uint32_t reply_payload_length;
    uint64_t epoch_sent; /* that this answer counts for */

    /* private */
    enum call_state state;
    bool sending; /* the kernel or the queue of the connection still has the memory */
    uint64_t id;
    struct link *link;
    struct list in_link;
    struct conn_out out;
    struct iovec iov_inline[CALL_IOV_INLINE];
    struct iovec *iov_heap;
    uint8_t header[PEER_HEADER_BYTES];
};
static inline bool call_busy(const struct call *c)
{
    return c->sending || (c->state != CALL_IDLE && c->state != CALL_ANSWERED);
}
/* Fresh call of that type; the payload's iov_count must be known. -ENOMEM. call_done() frees what
 * it holds. */
int call_init(struct call *c, enum peer_type type, unsigned payload_count);
void call_done(struct call *c);

enum link_state { LINK_DOWN, LINK_CONNECTING, LINK_UP };
struct link {
    struct objects *o;
    uint16_t number; /* of the other node */
    enum link_state state;
    struct conn *conn;
    struct session session;              /* of the other side, while connected */
    struct list calls;                   /* not answered, in order (K1) */
    struct call *slots[LINK_SLOT_COUNT]; /* by id; a hint: an older call may have the place */
    uint64_t last_id;
    uint64_t backoff_ns;
    uint64_t heard_ns;         /* the last answer */
    uint64_t waiting_since_ns; /* when `calls` was empty last */
    struct waitq wake;         /* of the link's fiber */
    struct waitq cancel_wait;  /* somebody waits in link_cancel() */
    bool running, stopping;
    uint8_t *body; /* of the answer being read; owned */
    size_t body_size;
    bool refused_logged;
};
void link_init(struct link *l, struct objects *o, uint16_t number);
/* Does not suspend and cannot fail; done() may not run before it returns. */
void link_submit(struct link *l, struct call *c);
/* The call is over when this returns: answered, or forgotten (it may have been done at the other
 * side). */
fiber_fn void link_cancel(struct call *c);
/* The map changed: look at sessions and addresses again. */
void link_kick(struct link *l);
/* Cancels nothing: the callers must be gone. Waits for the fiber. */
fiber_fn void link_stop(struct link *l);
/* Breaks the connection, as the network may at any time; calls are sent again. For tests and
 * cancelling. */
void link_drop(struct link *l);
