/* SPDX-License-Identifier: Apache-2.0 */
/* See raw.h. */
#include "raw.h"
#include "base/crc32c.h"

const struct map_node *raw_node(struct trio *t, unsigned i)
{
    struct objects *o = trio_objects(t, i);
    return map_node(o->map, (uint16_t)o->self);
}

fiber_fn void raw_connect(struct trio *t, struct raw *r, unsigned to)
{
    *r = (struct raw){0};
    CHECK(net_connect(t->rt, raw_node(t, to)->address, clock_now(t->rt) + 5 * NS_PER_S, &r->conn) ==
          0);
}

fiber_fn void raw_send(struct raw *r, enum peer_type type, uint64_t epoch, uint32_t group,
                       uint64_t map_version, const void *body, size_t length, const void *payload,
                       size_t payload_length)
{
    uint8_t bytes[PEER_HEADER_BYTES];
    const struct peer_header h = {
        .type = type,
        .id = ++r->last_id,
        .epoch = epoch,
        .group = group,
        .map_version = map_version,
        .body_length = (uint32_t)length,
        .payload_length = (uint32_t)payload_length,
        .payload_crc = crc32c(0, payload, payload_length),
    };
    peer_header_put(bytes, &h, body);
    const struct iovec iov[] = {
        {bytes, sizeof(bytes)}, {(void *)body, length}, {(void *)payload, payload_length}};
    (void)conn_write(r->conn, iov, payload_length ? 3 : length ? 2 : 1);
}

/* Reads an answer; a negative errno when the connection is closed instead. */
fiber_fn int raw_answer(struct raw *r)
{
    uint8_t bytes[PEER_HEADER_BYTES];
    int e = conn_read(r->conn, bytes, sizeof(bytes));
    if (e < 0)
        return e;
    CHECK(peer_header_get(bytes, &r->answer) == 0 && r->answer.flags == PEER_REPLY);
    CHECK(r->answer.body_length <= sizeof(r->body) && r->answer.payload_length == 0);
    return conn_read(r->conn, r->body, r->answer.body_length);
}

/* Sends a HELLO as node `as` would, changed by the caller through h. */
fiber_fn int raw_hello(struct raw *r, const struct peer_hello *h, uint64_t map_version,
                       struct peer_hello_reply *ret)
{
    struct enc e;
    enc_init(&e);
    peer_hello_encode(h, &e);
    raw_send(r, PEER_HELLO, 0, PEER_NO_GROUP, map_version, e.data, e.length, NULL, 0);
    enc_done(&e);
    int n = raw_answer(r);
    if (n < 0)
        return n;
    CHECK(peer_hello_reply_decode(r->body, r->answer.body_length, ret) == 0);
    return r->answer.status;
}

struct peer_hello hello_as(struct trio *t, unsigned as, unsigned to)
{
    return (struct peer_hello){
        .cluster = trio_objects(t, to)->map->cluster,
        .node = raw_node(t, as)->uuid,
        .target = raw_node(t, to)->uuid,
        .session = raw_node(t, as)->session,
        .version_min = 1,
        .version_max = 1,
    };
}

fiber_fn void raw_login(struct trio *t, struct raw *r, unsigned as, unsigned to)
{
    struct peer_hello_reply reply;
    raw_connect(t, r, to);
    const struct peer_hello h = hello_as(t, as, to);
    CHECK(raw_hello(r, &h, trio_objects(t, to)->map->version, &reply) == 0);
    CHECK(reply.session.value == raw_node(t, to)->session.value);
}

/* Node i admits nothing of that group until its epoch changes: a disk that hangs looks like that.
 */
void raw_hang(struct trio *t, unsigned i, uint32_t group)
{
    struct group *g = group_get(trio_objects(t, i), group);
    g->closed = true;
    g->next_epoch = g->epoch;
}

uint64_t raw_version_at(struct trio *t, unsigned i, struct oid oid)
{
    struct store_stat st;
    store_stat(t->nodes[i].store, &oid, &st);
    return st.version.value;
}
