/* SPDX-License-Identifier: Apache-2.0 */
/* What the connections of the server's side share with the requests on them. */
#pragma once
#include "object/object_internal.h"

/* One accepted connection. */
struct peer {
    struct list in_peers; /* objects.peers, in the order of acceptance */
    struct objects *o;
    struct conn *conn;
    struct session session; /* 0 until greeted */
    uint16_t number;
    bool
        fenced; /* the session has left the map, or a newer connection took over: drop what comes */
    unsigned inflight;         /* requests read and not yet answered */
    unsigned changes_inflight; /* of which admitted to the store */
    unsigned refs_inflight;
    struct waitq quiet; /* some request ended */
    /* The rest of a listing that is asked for page by page. */
    struct peer_list list_filter;
    struct store_entry *list_entries; /* owned; NULL: none kept */
    size_t list_count;
};

/* NULL: out of memory. */
struct request *request_new(struct objects *o, struct peer *p);
void request_free(struct request *rq);
/* Queues the answer; rq is freed when it has left. */
void request_reply(struct request *rq);
void request_pool_done(struct objects *o);
/* True for types whose work was admitted by a group's gate. */
bool request_is_gated(const struct request *rq);
/* Home work: waits in a queue of its own, so that no fiber is held while it does (home.c). */
void home_queue(struct request *rq);
