/* SPDX-License-Identifier: Apache-2.0 */
/* A peer made by hand, which says what a real one would not; and looks into nodes. */
#pragma once
#include "object/serve.h"
#include "tests/unit/object/trio.h"

#define V(term, sequence) (((uint64_t)(term) << 40) | (sequence))

struct raw {
    struct conn *conn;
    uint64_t last_id;
    struct peer_header answer;
    uint8_t body[4096];
};

/* What the map says of node i. */
const struct map_node *raw_node(struct trio *t, unsigned i);
fiber_fn void raw_connect(struct trio *t, struct raw *r, unsigned to);
fiber_fn void raw_send(struct raw *r, enum peer_type type, uint64_t epoch, uint32_t group,
                       uint64_t map_version, const void *body, size_t length, const void *payload,
                       size_t payload_length);
/* Reads an answer without payload; a negative errno when the connection is closed instead. */
fiber_fn int raw_answer(struct raw *r);
/* Sends a HELLO and returns the answer's status. */
fiber_fn int raw_hello(struct raw *r, const struct peer_hello *h, uint64_t map_version,
                       struct peer_hello_reply *ret);
/* As node `as` would say it to node `to`. */
struct peer_hello hello_as(struct trio *t, unsigned as, unsigned to);
fiber_fn void raw_login(struct trio *t, struct raw *r, unsigned as, unsigned to);
/* Node i admits nothing of that group until its epoch changes: a disk that hangs looks like that.
 */
void raw_hang(struct trio *t, unsigned i, uint32_t group);
/* Version of node i's own copy, 0: absent. */
uint64_t raw_version_at(struct trio *t, unsigned i, struct oid oid);
