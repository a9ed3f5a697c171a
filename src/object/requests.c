/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The work behind each request of the peer protocol, on this node's own store.
 *
 * Q1 Everything from the wire is checked in request_admit(), before the store sees it.
 * Q2 A request that touches groups is admitted by their gates (R3), all at once or none: nothing
 *    admitted waits for another gate.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/bytes.h"
#include "object/serve.h"

#define FREE_SAMPLE_USES 32u
#define W6_MARGIN_BYTES  (64u << 20)
#define LIST_BODY_BYTES  (PEER_BODY_MAX - 2 * PEER_META_BYTES_MAX)
#define FETCH_TRIES      4u
#define INFO_PATH        "/proc/self/statm"

uint64_t own_free_bytes(struct objects *o)
{
    if (o->free_uses++ % FREE_SAMPLE_USES == 0) {
        struct store_usage u;
        store_usage(o->store, &u);
        uint64_t margin = MIN((uint64_t)W6_MARGIN_BYTES, u.size_bytes / 100);
        o->free_bytes = u.free_bytes > margin ? u.free_bytes - margin : 0;
    }
    return o->free_bytes;
}

bool request_is_gated(const struct request *rq)
{
    switch (rq->header.type) {
    case PEER_CHANGE:
    case PEER_READ:
    case PEER_MAP:
    case PEER_STAT:
    case PEER_COMPARE:
    case PEER_FETCH:
        return true;
    case PEER_LIST:
        return rq->header.group != PEER_NO_GROUP;
    default:
        return false;
    }
}

/* --- admission --- */

bool change_is_valid(const struct peer_change *c, uint32_t payload_length)
{
    uint64_t sum = 0, end = 0;
    if (c->kind == PEER_CHANGE_NOTE)
        return c->extent_count == 0 && payload_length == 0 &&
               (c->prev.value == 0 || c->prev.value == c->next.value);
    for (unsigned i = 0; i < c->extent_count; i++) {
        const struct peer_extent *x = &c->extents[i];
        if (x->length == 0 || x->offset < end ||
            (uint64_t)x->offset + x->length > STORE_OBJECT_SIZE_MAX)
            return false;
        end = (uint64_t)x->offset + x->length;
        sum += x->length;
    }
    bool has_data = c->kind != PEER_CHANGE_PUNCH && c->kind != PEER_CHANGE_REMOVE;
    if (c->kind == PEER_CHANGE_REMOVE && c->extent_count > 0)
        return false;
    if (c->kind == PEER_CHANGE_CLONE &&
        (c->source.group != c->oid.group || oid_equal(&c->source, &c->oid)))
        return false;
    return c->next.value > 0 && c->next.value != UINT64_MAX &&
           payload_length == (has_data ? sum : 0);
}

static int decode_object_request(struct request *rq)
{
    const struct oid *oid = &rq->change.oid;
    if (rq->header.type == PEER_CHANGE) {
        if (peer_change_get(rq->body, rq->header.body_length, &rq->change) < 0 ||
            !change_is_valid(&rq->change, rq->header.payload_length))
            return -EBADMSG;
    } else {
        oid = &rq->read.oid;
        if (peer_read_get(rq->body, rq->header.body_length, &rq->read) < 0 ||
            rq->header.payload_length > 0 ||
            (uint64_t)rq->read.offset + rq->read.length > STORE_OBJECT_SIZE_MAX ||
            (rq->header.type != PEER_STAT && rq->read.length == 0))
            return -EBADMSG;
    }
    return oid->group == rq->header.group ? 0 : -EBADMSG;
}

static fiber_fn int admit_object_request(struct request *rq, const bool *abort)
{
    struct objects *o = rq->o;
    int r = decode_object_request(rq);
    if (r == 0 && rq->header.group >= o->group_count)
        r = gate_wait_map(o, rq->header.map_version, abort);
    if (r == 0 && rq->header.group >= o->group_count)
        r = -EINVAL;
    if (r == 0 && rq->header.type == PEER_READ) {
        /* Before the gate (G1): memory may be held by what waits for the gate to open. */
        rq->reply_payload = payload_get(o, rq->read.length, &rq->reply_payload_reserve);
        rq->reply_payload_size = rq->read.length;
    }
    if (r == 0)
        r = gate_enter_wait(o, rq->header.group, rq->header.epoch, abort);
    if (r == 0 && rq->header.type == PEER_CHANGE) {
        r = floors_note(o, &rq->change.owner);
        if (r < 0)
            gate_leave(o, rq->header.group);
    }
    return r;
}

/* FETCH, COMPARE and LIST of a group: of a joining node, at its epoch. */
static fiber_fn int admit_joining(struct request *rq, const bool *abort)
{
    struct objects *o = rq->o;
    int r = 0;
    if (rq->header.payload_length > 0)
        return -EBADMSG;
    if (rq->header.type == PEER_FETCH) {
        r = peer_fetch_get(rq->body, rq->header.body_length, &rq->fetch);
        if (r < 0 || rq->fetch.oid.group != rq->header.group)
            return -EBADMSG;
    }
    r = gate_wait_map(o, rq->header.map_version, abort);
    if (r == 0 && rq->header.group >= o->group_count)
        r = -EINVAL;
    if (r == 0 && rq->header.type == PEER_FETCH && rq->fetch.limit > 0) {
        /* Before the gate (G1), as for reads. */
        rq->reply_payload = payload_get(o, rq->fetch.limit, &rq->reply_payload_reserve);
        rq->reply_payload_size = rq->fetch.limit;
    }
    return r == 0 ? gate_enter_wait(o, rq->header.group, rq->header.epoch, abort) : r;
}

/* The elements of a META_APPLY, decoded into rq->metas. -EBADMSG, -ENOMEM. */
static int decode_metas(struct request *rq)
{
    struct dec d;
    dec_init(&d, rq->body, rq->header.body_length);
    uint16_t count = dec_u16(&d);
    if (count == 0 || count > PEER_META_COUNT_MAX || rq->header.payload_length > 0)
        return -EBADMSG;
    rq->metas = calloc(count, sizeof(rq->metas[0]));
    if (!rq->metas)
        return -ENOMEM;
    rq->meta_count = count;
    for (unsigned i = 0; i < count; i++)
        peer_meta_decode(&d, &rq->metas[i]);
    return dec_finish(&d);
}

static void metas_leave(struct request *rq, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        gate_leave(rq->o, rq->metas[i].oid.group);
}

/* Q2. 0, or the error of the first gate that refuses. */
static int metas_enter(struct request *rq)
{
    for (unsigned i = 0; i < rq->meta_count; i++) {
        int r = gate_enter(rq->o, rq->metas[i].oid.group, rq->metas[i].epoch);
        if (r < 0) {
            metas_leave(rq, i);
            return r;
        }
    }
    return 0;
}

static fiber_fn int admit_metas(struct request *rq, const bool *abort)
{
    int r = decode_metas(rq);
    if (r == 0)
        r = gate_wait_map(rq->o, rq->header.map_version, abort);
    for (unsigned i = 0; i < rq->meta_count && r == 0; i++)
        if (rq->metas[i].oid.group >= rq->o->group_count)
            r = -EINVAL;
    if (r < 0)
        return r;
    while ((r = metas_enter(rq)) == -EBUSY && !(abort && *abort))
        /* Our map is new enough, so it is a barrier that ends, or the session's confirmation. */
        waitq_wait_until(&rq->o->map_wait, rq->o->rt, clock_now(rq->o->rt) + 20 * NS_PER_MS);
    return r == -EBUSY ? -ECANCELED : r;
}

fiber_fn int request_admit(struct request *rq, const bool *abort)
{
    switch (rq->header.type) {
    case PEER_CHANGE:
    case PEER_READ:
    case PEER_MAP:
    case PEER_STAT:
        return admit_object_request(rq, abort);
    case PEER_META_APPLY:
        return admit_metas(rq, abort);
    case PEER_FETCH:
    case PEER_COMPARE:
        return admit_joining(rq, abort);
    case PEER_LIST:
        if (request_is_gated(rq))
            return admit_joining(rq, abort);
        return rq->header.payload_length > 0 ? -EBADMSG
                                             : gate_wait_map(rq->o, rq->header.map_version, abort);
    case PEER_PING:
    case PEER_INFO:
        return rq->header.payload_length > 0 ? -EBADMSG : 0;
    default:
        if (rq->header.payload_length > 0)
            return -EBADMSG;
        return gate_wait_map(rq->o, rq->header.map_version, abort);
    }
}

/* --- the work --- */

static fiber_fn int run_change(struct request *rq)
{
    const struct peer_change *c = &rq->change;
    uint16_t from = rq->peer ? rq->peer->number : (uint16_t)rq->o->self;
    if (c->kind == PEER_CHANGE_NOTE)
        return replica_note(rq->o, &c->oid, c->next, c->prev.value ? COPY_TOMBSTONE : COPY_OBJECT,
                            from);
    struct store_extent extents[STORE_EXTENT_COUNT_MAX];
    for (unsigned i = 0; i < c->extent_count; i++)
        extents[i] = (struct store_extent){c->extents[i].offset, c->extents[i].length};
    static const enum store_change_kind kinds[] = {
        [PEER_CHANGE_WRITE] = STORE_WRITE,     [PEER_CHANGE_CLONE] = STORE_CLONE,
        [PEER_CHANGE_PUNCH] = STORE_PUNCH,     [PEER_CHANGE_REMOVE] = STORE_REMOVE,
        [PEER_CHANGE_INSTALL] = STORE_INSTALL,
    };
    const struct iovec iov = {rq->payload, rq->header.payload_length};
    const struct store_change change = {
        .kind = kinds[c->kind],
        .oid = c->oid,
        .source = c->source,
        .prev = c->prev,
        .next = c->next,
        .extents = extents,
        .extent_count = c->extent_count,
        .iov = rq->payload ? &iov : NULL,
        .iov_count = rq->payload ? 1 : 0,
    };
    struct version current = {0};
    int r = replica_apply(rq->o, &change, from, &current);
    if (r == -ESTALE) {
        put_le64(rq->reply_version, current.value);
        rq->reply_inline = PEER_VERSION_BYTES;
    }
    return r;
}

static fiber_fn int run_read(struct request *rq)
{
    struct objects *o = rq->o;
    uint32_t length = rq->read.length;
    struct version version = {0};
    int r =
        store_read(o->store, &rq->read.oid, rq->read.offset, length, rq->reply_payload, &version);
    if (r == 0)
        rq->reply_payload_length = length;
    put_le64(rq->reply_version, version.value);
    rq->reply_inline = PEER_VERSION_BYTES;
    return r;
}

static void add_run(void *arg, uint64_t offset, uint64_t length, bool mapped)
{
    const struct peer_run run = {(uint32_t)offset, (uint32_t)length, mapped};
    peer_run_encode(&run, arg);
}

static void fill_entry(struct objects *o, const struct oid *oid, struct peer_entry *ret)
{
    struct store_stat st;
    store_stat(o->store, oid, &st);
    bool present = st.version.value != 0;
    *ret = (struct peer_entry){
        .oid = *oid,
        .version = present ? st.version : st.tombstone,
        .tombstone = !present && st.tombstone.value != 0,
        .empty = present && st.block_count == 0,
        .meta_version = st.meta_version,
        .end = st.end,
    };
}

static int run_stat(struct request *rq)
{
    struct peer_entry en;
    fill_entry(rq->o, &rq->read.oid, &en);
    peer_entry_encode(&en, &rq->reply_body);
    return 0;
}

fiber_fn int metas_apply_own(struct objects *o, const struct peer_meta *metas, unsigned count)
{
    struct store_meta_change changes[PEER_META_COUNT_MAX];
    ASSERT(count <= PEER_META_COUNT_MAX);
    unsigned n = 0;
    for (unsigned i = 0; i < count; i++) {
        int verdict = replica_meta(o, &metas[i]);
        if (verdict < 0)
            return verdict;
        if (verdict > 0)
            continue;
        struct store_stat st;
        store_stat(o->store, &metas[i].oid, &st);
        /* What is absent here was removed by the same operation before: done. */
        if (st.version.value == 0 || (!metas[i].remove && st.meta_version >= metas[i].meta_version))
            continue;
        changes[n++] = (struct store_meta_change){
            .oid = metas[i].oid,
            .meta_version = metas[i].meta_version,
            .meta = metas[i].meta,
            .length = metas[i].meta_length,
            .remove = metas[i].remove,
            .next = metas[i].next,
        };
    }
    return n > 0 ? store_meta_apply(o->store, changes, n) : 0;
}

/* --- listings --- */

static int compare_entry(const void *a, const void *b)
{
    return oid_compare(&((const struct store_entry *)a)->oid,
                       &((const struct store_entry *)b)->oid);
}

static bool same_filter(const struct peer_list *a, const struct peer_list *b)
{
    return (a->flags | PEER_LIST_META) == (b->flags | PEER_LIST_META) &&
           a->vid.value == b->vid.value && a->group == b->group && a->above.value == b->above.value;
}

/* The entries that match: kept at the connection from page to page, or made now. */
static int list_entries(struct request *rq, const struct peer_list *l, struct store_entry **ret,
                        size_t *ret_count)
{
    struct peer *p = rq->peer;
    static const struct oid first;
    if (p && p->list_entries && !oid_equal(&l->after, &first) && same_filter(l, &p->list_filter)) {
        *ret = p->list_entries;
        *ret_count = p->list_count;
        p->list_entries = NULL;
        return 0;
    }
    const struct store_filter filter = {
        .by_vid = l->flags & PEER_LIST_BY_VID,
        .by_group = l->flags & PEER_LIST_BY_GROUP,
        .vid = l->vid,
        .group = l->group,
        .above = l->above,
    };
    return store_list(rq->o->store, &filter, ret, ret_count);
}

static void keep_entries(struct request *rq, const struct peer_list *l, struct store_entry *entries,
                         size_t count, bool more)
{
    struct peer *p = rq->peer;
    if (!p || !more) {
        free(entries);
        return;
    }
    free(p->list_entries);
    p->list_filter = *l;
    p->list_entries = entries;
    p->list_count = count;
}

static fiber_fn void list_one(struct request *rq, const struct peer_list *l,
                              const struct store_entry *se, struct enc *e)
{
    uint8_t meta[STORE_META_SIZE_MAX];
    struct peer_entry en = {
        .oid = se->oid,
        .version = se->version,
        .meta_version = se->meta_version,
        .tombstone = se->tombstone,
    };
    struct store_stat st;
    store_stat(rq->o->store, &se->oid, &st);
    en.empty = !se->tombstone && st.version.value != 0 && st.block_count == 0;
    en.end = st.end;
    if (l->flags & PEER_LIST_META && !se->tombstone && st.meta_length > 0) {
        uint64_t meta_version = 0;
        if (store_meta_get(rq->o->store, &se->oid, meta, &en.meta_length, &meta_version) == 0) {
            en.meta = meta;
            en.meta_version = meta_version;
        } else {
            en.meta_length = 0;
        }
    }
    peer_entry_encode(&en, e);
}

static fiber_fn int run_list(struct request *rq)
{
    struct peer_list l;
    struct store_entry *entries;
    size_t count;
    if (peer_list_decode(rq->body, rq->header.body_length, &l) < 0)
        return -EINVAL;
    int r = list_entries(rq, &l, &entries, &count);
    if (r < 0)
        return r;
    size_t low = 0, high = count;
    static const struct oid first;
    const struct store_entry after = {.oid = l.after};
    while (low < high && !oid_equal(&l.after, &first)) {
        size_t middle = low + (high - low) / 2;
        if (compare_entry(&entries[middle], &after) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    struct enc page;
    enc_init(&page);
    size_t i = low;
    while (i < count && i - low < l.limit && page.length < LIST_BODY_BYTES && !page.error)
        list_one(rq, &l, &entries[i++], &page);
    enc_u8(&rq->reply_body, i < count);
    enc_u16(&rq->reply_body, (uint16_t)(i - low));
    enc_bytes(&rq->reply_body, page.data, page.length);
    r = page.error;
    enc_done(&page);
    keep_entries(rq, &l, entries, count, i < count);
    return r;
}

static int run_digests(struct request *rq)
{
    struct dec d;
    dec_init(&d, rq->body, rq->header.body_length);
    uint32_t count = dec_u32(&d);
    if (count > 1u << 16)
        return -EINVAL;
    enc_u32(&rq->reply_body, count);
    for (uint32_t i = 0; i < count && !d.error; i++)
        enc_u64(&rq->reply_body, store_digest(rq->o->store, dec_u16(&d)));
    return dec_finish(&d) < 0 ? -EINVAL : 0;
}

/* --- for joining nodes --- */

static int run_compare(struct request *rq)
{
    struct peer_compare c;
    int r = compare_own(rq->o, rq->header.group, &c);
    if (r == 0)
        peer_compare_encode(&c, &rq->reply_body);
    return r;
}

static bool is_zero(const uint8_t *p)
{
    return p[0] == 0 && memcmp(p, p + 1, OBJECT_BLOCK - 1) == 0;
}

static bool add_block(struct peer_fetched *f, uint32_t offset)
{
    struct peer_extent *last = f->extent_count ? &f->extents[f->extent_count - 1] : NULL;
    if (last && last->offset + last->length == offset) {
        last->length += OBJECT_BLOCK;
        return true;
    }
    if (f->extent_count == PEER_EXTENT_COUNT_MAX)
        return false;
    f->extents[f->extent_count++] = (struct peer_extent){offset, OBJECT_BLOCK};
    return true;
}

/* Makes the payload the blocks that are not zeros; all of them when that is too many pieces. */
static void squeeze(struct request *rq, struct peer_fetched *f, uint32_t size)
{
    uint8_t *bytes = rq->reply_payload;
    bool fits = true;
    for (uint32_t at = 0; at < size && fits; at += OBJECT_BLOCK)
        if (!is_zero(bytes + at))
            fits = add_block(f, at);
    if (!fits) {
        f->extent_count = 1;
        f->extents[0] = (struct peer_extent){0, size};
    }
    uint32_t to = 0;
    for (unsigned i = 0; i < f->extent_count; i++) {
        memmove(bytes + to, bytes + f->extents[i].offset, f->extents[i].length);
        to += f->extents[i].length;
    }
    rq->reply_payload_length = to;
}

static_assert((int)STORE_ALIKE == PEER_ALIKE && (int)STORE_OTHER == PEER_OTHER &&
                  (int)STORE_HOLE == PEER_HOLE,
              "relations travel as they are");

/* Makes the payload the blocks that are not those of the base, if the base here is what the asker
 * has, and some are shared. Relations are about versions, so it does not matter that they are
 * looked at after the data. */
static fiber_fn bool relate(struct request *rq, struct peer_fetched *f, uint32_t size)
{
    const struct peer_fetch *pf = &rq->fetch;
    struct version version, base_version;
    struct store_stat base;
    bool any_shared = false;
    store_stat(rq->o->store, &pf->base, &base);
    /* To the end of both: what the base has behind the object's end is a hole in it. */
    uint32_t count = MAX(size, base.end) / OBJECT_BLOCK, to = 0;
    if (pf->base_version.value == 0 || base.version.value != pf->base_version.value ||
        pf->base.group != pf->oid.group || oid_equal(&pf->base, &pf->oid) || count == 0)
        return false;
    uint8_t *relations = malloc(count), *bytes = rq->reply_payload;
    int r = relations ? store_relate(rq->o->store, &pf->oid, &pf->base, relations, count, &version,
                                     &base_version)
                      : -ENOMEM;
    bool holds = r == 0 && version.value == f->entry.version.value &&
                 base_version.value == pf->base_version.value;
    for (uint32_t i = 0; holds && i < size / OBJECT_BLOCK; i++)
        any_shared |= relations[i] == STORE_ALIKE && !is_zero(bytes + (size_t)i * OBJECT_BLOCK);
    if (!any_shared) {
        free(relations);
        return false;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (relations[i] != STORE_OTHER)
            continue;
        memmove(bytes + to, bytes + (size_t)i * OBJECT_BLOCK, OBJECT_BLOCK);
        to += OBJECT_BLOCK;
    }
    rq->reply_payload_length = to;
    f->data = PEER_FETCHED_CHANGED;
    f->relations = rq->relations = relations;
    f->block_count = count;
    return true;
}

/* The data of an object that is at f->entry's version. -EAGAIN: it went on meanwhile. */
static fiber_fn int fetch_data(struct request *rq, struct peer_fetched *f)
{
    uint32_t size = f->entry.end;
    struct version version = f->entry.version;
    int r = 0;
    if (size > rq->fetch.limit)
        return -EFBIG;
    if (size > 0)
        r = store_read(rq->o->store, &rq->fetch.oid, 0, size, rq->reply_payload, &version);
    if (r == -ENOENT || (r == 0 && version.value != f->entry.version.value))
        return -EAGAIN;
    if (r == 0 && !relate(rq, f, size)) {
        f->data = PEER_FETCHED_WHOLE;
        squeeze(rq, f, size);
    }
    return r;
}

static fiber_fn int run_fetch(struct request *rq)
{
    struct objects *o = rq->o;
    struct peer_fetched f;
    uint8_t meta[STORE_META_SIZE_MAX];
    int r = -EAGAIN;
    for (unsigned i = 0; r == -EAGAIN && i < FETCH_TRIES; i++) {
        f = (struct peer_fetched){.data = PEER_FETCHED_NONE};
        free(rq->relations);
        rq->relations = NULL;
        fill_entry(o, &rq->fetch.oid, &f.entry);
        bool live = f.entry.version.value != 0 && !f.entry.tombstone;
        if (!live || f.entry.version.value == rq->fetch.have.value ||
            f.entry.version.value < rq->fetch.need.value)
            r = 0;
        else
            r = fetch_data(rq, &f);
        if ((r == 0 || r == -EFBIG) && live) {
            int m = store_meta_get(o->store, &rq->fetch.oid, meta, &f.entry.meta_length,
                                   &f.entry.meta_version);
            f.entry.meta = meta;
            /* Removed since, or its ledger cannot be read. */
            if (m < 0)
                r = m == -ENOENT ? -EAGAIN : m;
        }
    }
    if (r == 0 || r == -EFBIG)
        peer_fetched_encode(&f, &rq->reply_body);
    else
        rq->reply_payload_length = 0;
    return r;
}

static int run_underway(struct request *rq)
{
    struct oid oid;
    if (rq->header.body_length != OID_BYTES)
        return -EINVAL;
    oid = oid_get(rq->body);
    enc_u8(&rq->reply_body, change_is_underway(rq->o, &oid));
    return 0;
}

static int run_settle(struct request *rq)
{
    struct peer_settle s;
    if (peer_settle_decode(rq->body, rq->header.body_length, &s) < 0)
        return -EINVAL;
    store_settle(rq->o->store, s.vid, s.stable);
    return 0;
}

static uint64_t rss_bytes(void)
{
    unsigned long long size = 0, resident = 0;
    FILE *f = fopen(INFO_PATH, "re");
    if (!f)
        return 0;
    if (fscanf(f, "%llu %llu", &size, &resident) != 2)
        resident = 0;
    fclose(f);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static int run_info(struct request *rq)
{
    struct objects *o = rq->o;
    struct store_usage u;
    struct store_stats stats;
    struct store_scrub_info scrub;
    store_usage(o->store, &u);
    store_stats(o->store, &stats);
    store_scrub_info(o->store, &scrub);
    struct peer_info i = {
        .size_bytes = u.size_bytes,
        .used_bytes = u.used_bytes,
        .free_bytes = u.free_bytes,
        .data_bytes = u.data_bytes,
        .shared_bytes = u.shared_bytes,
        .object_count = u.object_count,
        .tombstone_count = u.tombstone_count,
        .dying_count = reclaim_count(o),
        .ref_batches_pending = o->ref_batches_pending,
        .checksum_errors = stats.checksum_errors,
        .rss_bytes = rss_bytes(),
        .uptime_ns = clock_now(o->rt) - o->started_ns,
        .inexact = store_is_inexact(o->store),
        .failed = store_failed(o->store),
        .record_bytes = u.record_bytes,
        .pending_bytes = u.pending_bytes,
        .unreachable_bytes = u.unreachable_bytes,
        .reserve_bytes = u.reserve_bytes,
        .log_bytes = u.log_bytes,
        .scrub_rate = scrub.rate,
        .scrub_passes = scrub.passes,
        .scrub_bytes = scrub.bytes,
        .scrub_objects = scrub.objects,
        .scrub_errors = scrub.errors,
        .scrub_mended = scrub.mended,
    };
    struct object_recovery joining;
    tell_recovery(o, &joining);
    i.groups_total = joining.groups_total;
    i.groups_done = joining.groups_done;
    i.join_objects_total = joining.objects_total;
    i.join_objects_done = joining.objects_done;
    i.join_bytes_done = joining.bytes_done;
    i.join_bytes_per_s = joining.bytes_per_s;
    i.join_eta_s = joining.eta_s;
    static_assert(sizeof(i.scrub_last) == sizeof(scrub.last), "as in the store");
    memcpy(i.scrub_last, scrub.last, sizeof(i.scrub_last));
    peer_info_encode(&i, &rq->reply_body);
    return 0;
}

static fiber_fn int run_map(struct request *rq)
{
    return store_map(rq->o->store, &rq->read.oid, rq->read.offset, rq->read.length, add_run,
                     &rq->reply_body);
}

static fiber_fn int run(struct request *rq)
{
    switch (rq->header.type) {
    case PEER_CHANGE:
        return run_change(rq);
    case PEER_READ:
        return run_read(rq);
    case PEER_MAP:
        return run_map(rq);
    case PEER_STAT:
        return run_stat(rq);
    case PEER_META_APPLY:
        return metas_apply_own(rq->o, rq->metas, rq->meta_count);
    case PEER_LIST:
        return run_list(rq);
    case PEER_DIGESTS:
        return run_digests(rq);
    case PEER_SETTLE:
        return run_settle(rq);
    case PEER_INFO:
        return run_info(rq);
    case PEER_PING:
        rq->o->free_uses = 0; /* a fresh figure */
        return 0;
    case PEER_COMPARE:
        return run_compare(rq);
    case PEER_FETCH:
        return run_fetch(rq);
    case PEER_UNDERWAY:
        return run_underway(rq);
    case PEER_HELLO:
    case PEER_REFS:
    case PEER_FORWARD:
        break;
    }
    return -EINVAL;
}

fiber_fn void request_run(struct request *rq)
{
    bool foreground = rq->header.type == PEER_CHANGE || rq->header.type == PEER_READ;
    rq->o->foreground += foreground;
    rq->status = run(rq);
    rq->o->foreground -= foreground;
    if (request_is_gated(rq))
        gate_leave(rq->o, rq->header.group);
    else if (rq->header.type == PEER_META_APPLY)
        metas_leave(rq, rq->meta_count);
    /* R6: confirmed also before answering. */
    while (!gate_serving(rq->o) && !rq->o->stopping && !(rq->peer && rq->peer->fenced))
        waitq_wait_until(&rq->o->map_wait, rq->o->rt, clock_now(rq->o->rt) + 20 * NS_PER_MS);
}
