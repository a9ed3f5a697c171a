/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the NBD server: server, connection, request. Private to front/nbd.
 *
 * S1 A connection has one reading fiber, which owns it from accept to free; requests run on fibers
 * of their own and only point to it. S2 connection.inflight_count counts the requests from their
 * header's receipt until their reply was handed to the kernel. The volume is closed and the
 * connection freed only at 0. S3 Everything a client sends is checked before it is used; what is
 * wrong ends its connection or is answered with an error, and never reaches an assert.
 */
#pragma once
#include "base/log.h"
#include "front/nbd/admission.h"
#include "front/nbd/nbd.h"
#include "wire/nbd.h"

#define NBD_HANDSHAKE_NS     (10 * NS_PER_S) /* that a client may take, without what we take */
#define NBD_EXPORT_NAME_SIZE (2 * VOLUME_NAME_SIZE) /* "NAME@TAG" with the terminator */
#define NBD_SCRATCH_SIZE     65536u
#define NBD_CONTEXT_ID       1u /* of base:allocation, the only metadata context */
#define NBD_CONTEXT_NAME     "base:allocation"

struct nbd_server {
    struct rt *rt;
    struct volumes *volumes;
    unsigned connection_count_max, inflight_count_max;
    struct list connections;
    unsigned connection_count;
    struct acceptor *acceptors; /* one per listener */
    unsigned acceptor_count;
    unsigned fiber_count; /* accepting and reading fibers that live */
    struct waitq fiber_ended;
    bool stopping;
    struct admission admission;
    struct list idle_requests; /* pool; grows to the largest number in use */
    unsigned admitting_count;  /* connections that wait for admission */
    struct timer stall_timer;  /* armed while somebody waits for admission */
    uint8_t *scratch;          /* where refused payload goes; never read */
    struct nbd_stats stats;
};

enum connection_phase { CONNECTION_HANDSHAKE, CONNECTION_TRANSMISSION };

struct connection {
    struct list link; /* nbd_server.connections */
    struct nbd_server *server;
    struct conn *conn;
    enum connection_phase phase;
    /* negotiated */
    char export_name[NBD_EXPORT_NAME_SIZE]; /* for messages; empty before */
    struct volume *volume;                  /* owned; NULL before the transmission phase */
    bool structured_replies, block_status;
    /* in progress */
    unsigned inflight_count; /* S2 */
    struct waitq inflight_fell;
    bool draining; /* takes no further requests; breaks when inflight_count falls to 0 */
    /* why it ends, for the one log line */
    const char *end_reason; /* literal; NULL while it lives */
    enum log_level end_level;
    /* who holds the others up (server.c) */
    unsigned sending_count; /* replies that the kernel has not taken yet */
    bool receiving;         /* payload of a write */
    bool admitting;         /* its reader waits for admission */
    uint64_t progress, progress_seen;
    unsigned stalled_count;
};

/* One request, from the reading fiber through its own fiber to the reply. */
struct request {
    struct list link; /* nbd_server.idle_requests */
    struct connection *connection;
    struct nbd_request wire;
    void *buffer;   /* of buf_get(): payload of a READ's reply or of a WRITE; or NULL */
    size_t payload; /* admitted bytes */
    bool admitted;
    void *extents; /* malloc'ed, of a BLOCK_STATUS reply; or NULL */
    uint8_t head[NBD_CHUNK_HEAD_SIZE_MAX];
    struct iovec iov[2];
    struct conn_out out;
};

/* --- server.c --- */
/* Arms the watch for connections that hold room and do not move, as somebody waits for room now. */
void server_watch_stalls(struct nbd_server *s);

/* --- connection.c --- */
/* Starts the fiber of a connection just accepted; takes conn, also on failure. */
fiber_fn void connection_start(struct nbd_server *s, struct conn *conn);
/* Records why the connection ends, unless a reason is recorded already. `reason` is a literal. */
void connection_end(struct connection *c, enum log_level level, const char *reason);
/* Stops taking requests; breaks the stream once what runs was answered. */
void connection_drain(struct connection *c);

/* --- handshake.c --- */
/* Negotiates until an export is chosen: true, and c is ready for transmission (volume, flags).
 * Otherwise false, and connection_end() has been called. */
fiber_fn bool handshake_run(struct connection *c);

/* --- transmission.c --- */
/* Takes requests until the client leaves or breaks the rules. Requests may still be running after
 * it. */
fiber_fn void transmission_run(struct connection *c);

/* --- request.c --- */
/* From the pool, counted in c->inflight_count; NULL when out of memory. */
struct request *nbd_request_new(struct connection *c, const struct nbd_request *wire);
/* Waits for admission and takes the buffer of `size` bytes (0: none). */
fiber_fn void nbd_request_admit(struct request *q, size_t size);
/* Runs q on a fiber of its own, which answers it. q must not be used afterwards. */
void nbd_request_start(struct request *q);
/* Answers without running: an error, or success without content (NBD_OK). q must not be used
 * afterwards. */
void nbd_request_answer(struct request *q, enum nbd_error error);
/* Frees q without an answer, for a connection that is broken. */
void nbd_request_drop(struct request *q);
void nbd_request_pool_free(struct nbd_server *s);
/* The one place where our errors become NBD's. */
enum nbd_error nbd_error_from(int negative_errno);

/* --- export.c --- */
/* A volume (empty tag) or snapshot by its parts. */
struct export_name {
    char name[VOLUME_NAME_SIZE], tag[VOLUME_NAME_SIZE];
};
/* 0, or -ENOENT when nothing can have that name. */
int export_name_parse(struct nbd_string text, struct export_name *ret);
void export_name_format(const struct export_name *n, char out[NBD_EXPORT_NAME_SIZE]);
#define EXPORT_DESCRIPTION_SIZE 640
struct export_info {
    uint64_t size;
    bool read_only;
    char description[EXPORT_DESCRIPTION_SIZE];
};
/* Looks it up without opening, so without taking the volume from its owner. 0, -ENOENT, or an error
 * of volume_list(). */
fiber_fn int export_find(struct volumes *vs, const struct export_name *n, struct export_info *ret);
void export_describe(const struct volume_info *i, char out[EXPORT_DESCRIPTION_SIZE]);
enum export_access { EXPORT_READ_WRITE, EXPORT_READ_ONLY };
/* enum nbd_transmission_flag. DF goes with structured replies only. */
unsigned export_flags(enum export_access access, const struct connection *c);
