/* SPDX-License-Identifier: Apache-2.0 */
/* Pages of a LIST, one after the other; and the listings for check and administration. */
#include "object/listing.h"
#include <stdlib.h>
#include <string.h>

struct page {
    struct call call;
    uint8_t *bytes; /* the answer's body; owned */
    size_t length;
};

static int take_page(struct call *c, const uint8_t *body, size_t length)
{
    struct page *p = container_of(c, struct page, call);
    uint8_t *bytes = malloc(length);
    if (!bytes)
        return -ENOMEM;
    memcpy(bytes, body, length);
    free(p->bytes);
    p->bytes = bytes;
    p->length = length;
    return 0;
}

/* Gives a page's entries to fn. *ret_after, *ret_more: how to go on. */
static fiber_fn int report_page(const struct listing *l, const struct page *p,
                                struct oid *ret_after, bool *ret_more)
{
    struct dec d;
    dec_init(&d, p->bytes, p->length);
    bool more = dec_u8(&d);
    unsigned count = dec_u16(&d);
    int r = 0;
    for (unsigned i = 0; i < count && r == 0; i++) {
        struct peer_entry e;
        peer_entry_decode(&d, &e);
        if (d.error)
            return d.error;
        r = l->fn(l->arg, &e);
        *ret_after = e.oid;
    }
    *ret_more = more && count > 0;
    return r == 0 ? dec_finish(&d) : r;
}

fiber_fn int listing_run(struct objects *o, const struct listing *l,
                         const struct object_owner *owner, uint64_t *ret_map_version)
{
    struct peer_list filter = l->filter;
    filter.limit = PEER_LIST_COUNT_MAX;
    bool more = true;
    int r = 0;
    if (ret_map_version)
        *ret_map_version = 0;
    while (r == 0 && more) {
        struct page p = {.bytes = NULL};
        struct enc e;
        enc_init(&e);
        peer_list_encode(&filter, &e);
        r = call_init(&p.call, PEER_LIST, 0);
        if (r == 0)
            r = e.error;
        p.call.flags = l->flags;
        p.call.group = l->gated ? filter.group : PEER_NO_GROUP;
        p.call.body = e.data;
        p.call.body_length = (uint32_t)e.length;
        p.call.on_body = take_page;
        if (r == 0)
            r = node_call(o, l->node, &p.call, owner, "listings");
        if (r == 0 && ret_map_version)
            *ret_map_version = MAX(*ret_map_version, p.call.reply_map_version);
        if (r == 0)
            r = report_page(l, &p, &filter.after, &more);
        call_done(&p.call);
        free(p.bytes);
        enc_done(&e);
    }
    return r;
}

/* --- inventory --- */

struct inventory {
    fiber_fn int (*fn)(void *arg, const struct object_entry *e);
    void *arg;
};

static fiber_fn int give_entry(void *arg, const struct peer_entry *e)
{
    const struct inventory *inv = arg;
    const struct object_entry oe = {
        .oid = e->oid,
        .version = e->version,
        .meta_version = e->meta_version,
        .tombstone = e->tombstone,
        .meta = e->meta_length ? e->meta : NULL,
        .meta_length = e->meta_length,
    };
    return inv->fn(inv->arg, &oe);
}

/* -EAGAIN: the node has no live session. */
static int check_live(const struct objects *o, uint16_t node)
{
    const struct map_node *n = map_node(o->map, node);
    return n && n->session.value != 0 && o->self >= 0 ? 0 : -EAGAIN;
}

fiber_fn int object_inventory(struct objects *o, uint16_t node,
                              fiber_fn int (*fn)(void *arg, const struct object_entry *e),
                              void *arg)
{
    struct inventory inv = {fn, arg};
    const struct listing l = {
        .node = node,
        .flags = CALL_FAIL_FAST,
        .filter = {.flags = PEER_LIST_META},
        .fn = give_entry,
        .arg = &inv,
    };
    int r = check_live(o, node);
    if (r == 0)
        r = listing_run(o, &l, NULL, NULL);
    return r == -ECONNRESET ? -EAGAIN : r;
}

/* --- one node's figures --- */

struct info_call {
    struct call call;
    struct peer_info info;
};

static int take_info(struct call *c, const uint8_t *body, size_t length)
{
    return peer_info_decode(body, length, &container_of(c, struct info_call, call)->info);
}

fiber_fn int object_node_info(struct objects *o, uint16_t node, struct object_node_info *ret)
{
    struct info_call ic;
    int r = check_live(o, node);
    if (r == 0)
        r = call_init(&ic.call, PEER_INFO, 0);
    if (r < 0)
        return r;
    ic.call.flags = CALL_FAIL_FAST;
    ic.call.on_body = take_info;
    r = node_call(o, node, &ic.call, NULL, "status");
    call_done(&ic.call);
    if (r < 0)
        return r == -ECONNRESET ? -EAGAIN : r;
    const struct peer_info *i = &ic.info;
    *ret = (struct object_node_info){
        .size_bytes = i->size_bytes,
        .used_bytes = i->used_bytes,
        .free_bytes = i->free_bytes,
        .data_bytes = i->data_bytes,
        .shared_bytes = i->shared_bytes,
        .object_count = i->object_count,
        .tombstone_count = i->tombstone_count,
        .dying_count = i->dying_count,
        .ref_batches_pending = i->ref_batches_pending,
        .checksum_errors = i->checksum_errors,
        .rss_bytes = i->rss_bytes,
        .uptime_ns = i->uptime_ns,
        .inexact = i->inexact,
        .failed = i->failed,
        .record_bytes = i->record_bytes,
        .pending_bytes = i->pending_bytes,
        .unreachable_bytes = i->unreachable_bytes,
        .reserve_bytes = i->reserve_bytes,
        .log_bytes = i->log_bytes,
        .scrub_rate = i->scrub_rate,
        .scrub_passes = i->scrub_passes,
        .scrub_bytes = i->scrub_bytes,
        .scrub_objects = i->scrub_objects,
        .scrub_errors = i->scrub_errors,
        .scrub_mended = i->scrub_mended,
    };
    ret->recovery = (struct object_recovery){
        .groups_total = i->groups_total,
        .groups_done = i->groups_done,
        .objects_total = i->join_objects_total,
        .objects_done = i->join_objects_done,
        .bytes_done = i->join_bytes_done,
        .bytes_per_s = i->join_bytes_per_s,
        .eta_s = i->join_eta_s,
    };
    memcpy(ret->scrub_last, i->scrub_last, sizeof(ret->scrub_last));
    return 0;
}

/* --- settling --- */

fiber_fn void object_settle(struct objects *o, struct vid vid, struct version stable)
{
    uint16_t numbers[MAP_NODE_COUNT_MAX];
    unsigned count = 0;
    const struct peer_settle s = {vid, stable};
    struct enc e;
    store_settle(o->store, vid, stable);
    for (uint32_t i = 0; i < o->map->node_count && count < MAP_NODE_COUNT_MAX; i++)
        if (o->map->nodes[i].session.value != 0 && o->map->nodes[i].number != o->self)
            numbers[count++] = o->map->nodes[i].number;
    enc_init(&e);
    peer_settle_encode(&s, &e);
    for (unsigned i = 0; i < count && !e.error; i++) {
        struct call c;
        call_init(&c, PEER_SETTLE, 0); /* without payload it cannot fail */
        c.flags = CALL_FAIL_FAST;
        c.body = e.data;
        c.body_length = (uint32_t)e.length;
        node_call(o, numbers[i], &c, NULL, "settling");
        call_done(&c);
    }
    enc_done(&e);
}
