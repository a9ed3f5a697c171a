/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What administrators want of nodes and pools: as values, and writing them.
 *
 * WI1 One key holds all wishes about one node; a new one changes what it is about and keeps the
 *     rest, by compare-and-set.
 * WI2 That a node is lost is never taken back.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"
#include "base/log.h"
#include "cluster/cluster_internal.h"

#define LOG_MODULE "cluster"

#define WISH_VERSION 1
#define TRIES_MAX    100

#define W_DRAIN       1u
#define W_REMOVE      2u
#define W_LOST        4u
#define W_ACCEPT_LOSS 8u
#define W_WEIGHT      16u
#define W_ALL         31u

static void enc_checksum(struct enc *e, size_t start)
{
    if (!e->error)
        enc_u32(e, crc32c(0, e->data + start, e->length - start));
}

static int dec_checked(struct dec *d, const void *p, size_t length)
{
    if (length < 6 || crc32c(0, p, length - 4) != get_le32((const uint8_t *)p + length - 4))
        return -EBADMSG;
    dec_init(d, p, length - 4);
    return dec_u16(d) == WISH_VERSION ? 0 : -EPROTO;
}

static void dec_uuid(struct dec *d, struct uuid *ret)
{
    const uint8_t *p = dec_bytes(d, sizeof(ret->bytes));
    if (p)
        memcpy(ret->bytes, p, sizeof(ret->bytes));
}

void wish_encode_node(const struct map_node_wish *w, struct enc *e)
{
    size_t start = e->length;
    unsigned flags = (w->drain ? W_DRAIN : 0) | (w->remove ? W_REMOVE : 0) |
                     (w->lost ? W_LOST : 0) | (w->accept_loss ? W_ACCEPT_LOSS : 0) |
                     (w->has_weight ? W_WEIGHT : 0);
    enc_u16(e, WISH_VERSION);
    enc_bytes(e, w->uuid.bytes, sizeof(w->uuid.bytes));
    enc_u8(e, (uint8_t)flags);
    enc_u32(e, w->weight);
    enc_bytes(e, w->heir.bytes, sizeof(w->heir.bytes));
    enc_checksum(e, start);
}

int wish_decode_node(const void *p, size_t length, struct map_node_wish *ret)
{
    struct dec d;
    struct map_node_wish w = {0};
    int r = dec_checked(&d, p, length);
    if (r < 0)
        return r;
    dec_uuid(&d, &w.uuid);
    unsigned flags = dec_u8(&d);
    w.drain = flags & W_DRAIN;
    w.remove = flags & W_REMOVE;
    w.lost = flags & W_LOST;
    w.accept_loss = flags & W_ACCEPT_LOSS;
    w.has_weight = flags & W_WEIGHT;
    w.weight = dec_u32(&d);
    dec_uuid(&d, &w.heir);
    r = flags & ~W_ALL ? -EBADMSG : dec_finish(&d);
    if (r == 0)
        *ret = w;
    return r;
}

void wish_encode_pool(const struct map_pool_wish *w, struct enc *e)
{
    size_t start = e->length;
    enc_u16(e, WISH_VERSION);
    enc_u16(e, w->id);
    enc_u8(e, w->copies);
    enc_u8(e, w->min_copies);
    enc_checksum(e, start);
}

int wish_decode_pool(const void *p, size_t length, struct map_pool_wish *ret)
{
    struct dec d;
    struct map_pool_wish w = {0};
    int r = dec_checked(&d, p, length);
    if (r < 0)
        return r;
    w.id = dec_u16(&d);
    w.copies = dec_u8(&d);
    w.min_copies = dec_u8(&d);
    r = dec_finish(&d);
    if (r == 0)
        *ret = w;
    return r;
}

/* --- the leader reads them --- */

struct wish_listing {
    struct map_node_wish *nodes;
    struct map_pool_wish *pools;
    unsigned node_count, pool_count;
};

static int add_node(struct wish_listing *l, const struct map_node_wish *w)
{
    struct map_node_wish *grown = realloc(l->nodes, (l->node_count + 1) * sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    l->nodes = grown;
    l->nodes[l->node_count++] = *w;
    return 0;
}

static int add_pool(struct wish_listing *l, const struct map_pool_wish *w)
{
    struct map_pool_wish *grown = realloc(l->pools, (l->pool_count + 1) * sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    l->pools = grown;
    l->pools[l->pool_count++] = *w;
    return 0;
}

static int list_wish(void *arg, const char *key, const void *value, size_t length,
                     uint64_t revision)
{
    struct wish_listing *l = arg;
    struct map_node_wish node;
    struct map_pool_wish pool;
    int r;
    if (strncmp(key, "wish/node/", 10) == 0) {
        r = wish_decode_node(value, length, &node);
        if (r == 0)
            return add_node(l, &node);
    } else {
        r = wish_decode_pool(value, length, &pool);
        if (r == 0)
            return add_pool(l, &pool);
    }
    log_warn("the cluster store's key %s cannot be understood (%s), it is left out", key,
             err_text(r));
    return 0;
}

fiber_fn int wish_list(struct cs *cs, struct map_node_wish **ret_nodes, unsigned *ret_node_count,
                       struct map_pool_wish **ret_pools, unsigned *ret_pool_count)
{
    struct wish_listing l = {0};
    int r = cs_list(cs, "wish/", list_wish, &l);
    if (r < 0) {
        free(l.nodes);
        free(l.pools);
        return r;
    }
    *ret_nodes = l.nodes;
    *ret_node_count = l.node_count;
    *ret_pools = l.pools;
    *ret_pool_count = l.pool_count;
    return 0;
}

/* --- any node writes them --- */

static fiber_fn int put(struct cluster *c, const char *key, uint64_t revision, struct enc *value)
{
    struct cs_op op = {.kind = CS_PUT,
                       .key = key,
                       .revision = revision,
                       .value = value->data,
                       .length = value->length};
    return value->error ? value->error : cs_txn(c->cs, &op, 1, NULL);
}

/* Adds `w` to what was wished before. */
static int change_wish(struct map_node_wish *wish, const struct cluster_wish *w,
                       const struct uuid *heir)
{
    if (wish->lost && w->kind != CLUSTER_WISH_LOST && w->kind != CLUSTER_WISH_REMOVE &&
        w->kind != CLUSTER_WISH_ACCEPT_LOSS)
        return -EALREADY; /* WI2 */
    switch (w->kind) {
    case CLUSTER_WISH_DRAIN:
        wish->drain = true;
        return 0;
    case CLUSTER_WISH_UNDRAIN:
        wish->drain = wish->remove = false;
        return 0;
    case CLUSTER_WISH_WEIGHT:
        wish->has_weight = w->weight != CLUSTER_WEIGHT_REGISTERED;
        wish->weight = wish->has_weight ? w->weight : 0;
        return 0;
    case CLUSTER_WISH_REMOVE:
        wish->remove = true;
        return 0;
    case CLUSTER_WISH_LOST:
        wish->lost = true;
        return 0;
    case CLUSTER_WISH_ACCEPT_LOSS:
        wish->lost = wish->accept_loss = true;
        wish->heir = *heir;
        return 0;
    }
    return -EINVAL;
}

static fiber_fn int wish_once(struct cluster *c, const struct uuid *node,
                              const struct cluster_wish *w, const struct uuid *heir)
{
    char key[CS_KEY_SIZE];
    struct enc value;
    uint64_t revision = CS_REVISION_ABSENT;
    struct map_node_wish wish = {0};
    member_key(key, "wish/node", node);
    enc_init(&value);
    int r = cs_get(c->cs, key, &value, &revision);
    if (r == 0)
        r = wish_decode_node(value.data, value.length, &wish);
    else if (r == -ENOENT)
        r = 0;
    wish.uuid = *node;
    if (r == 0)
        r = change_wish(&wish, w, heir);
    enc_done(&value);
    enc_init(&value);
    wish_encode_node(&wish, &value);
    if (r == 0)
        r = put(c, key, revision, &value);
    enc_done(&value);
    return r;
}

/* What the present map says against it. */
static int check_wish(struct cluster *c, const struct cluster_wish *w, struct uuid *ret_node,
                      struct uuid *ret_heir)
{
    const struct map_node *n = w->node ? map_node_by_name(c->map, w->node) : NULL;
    bool lost = w->kind == CLUSTER_WISH_LOST || w->kind == CLUSTER_WISH_ACCEPT_LOSS;
    if (!n)
        return -ENOENT;
    if (lost && n->session.value != 0)
        return -EBUSY;
    if (w->kind == CLUSTER_WISH_ACCEPT_LOSS) {
        const struct map_node *heir = w->heir ? map_node_by_name(c->map, w->heir) : NULL;
        if (!heir)
            return -ENOENT;
        if (heir == n || heir->state == MAP_NODE_LOST)
            return -EINVAL;
        *ret_heir = heir->uuid;
    }
    *ret_node = n->uuid;
    return 0;
}

fiber_fn int cluster_node_wish(struct cluster *c, const struct cluster_wish *w)
{
    struct uuid node = {0}, heir = {0};
    int r = check_wish(c, w, &node, &heir);
    for (unsigned i = 0; r == 0 && i < TRIES_MAX; i++) {
        r = wish_once(c, &node, w, &heir);
        if (r != -ESTALE)
            break;
        r = i + 1 < TRIES_MAX ? 0 : -ESTALE;
    }
    return r;
}

fiber_fn int cluster_pool_wish(struct cluster *c, const char *pool, uint8_t copies,
                               uint8_t min_copies)
{
    const struct map_pool *p = map_pool_by_name(c->map, pool);
    if (!p)
        return -ENOENT;
    if (copies == 0 || copies > MAP_GROUP_MEMBER_MAX || min_copies == 0 || min_copies > copies)
        return -EINVAL;
    struct map_pool_wish wish = {.id = p->id, .copies = copies, .min_copies = min_copies};
    char key[CS_KEY_SIZE];
    struct enc value;
    snprintf(key, sizeof(key), "wish/pool/%" PRIu16, wish.id);
    enc_init(&value);
    wish_encode_pool(&wish, &value);
    int r = put(c, key, CS_REVISION_ANY, &value);
    enc_done(&value);
    return r;
}
