/* SPDX-License-Identifier: Apache-2.0 */
/* Codec of the peer protocol: bodies off the data path. */
#include "base/bytes.h"
#include "base/err.h"
#include "wire/peer.h"

static void enc_oid(struct enc *e, const struct oid *o)
{
    uint8_t bytes[OID_BYTES];
    oid_put(bytes, o);
    enc_bytes(e, bytes, sizeof(bytes));
}

static struct oid dec_oid(struct dec *d)
{
    const uint8_t *p = dec_bytes(d, OID_BYTES);
    return p ? oid_get(p) : (struct oid){0};
}

static void enc_uuid(struct enc *e, const struct uuid *u)
{
    enc_bytes(e, u->bytes, sizeof(u->bytes));
}

static struct uuid dec_uuid(struct dec *d)
{
    struct uuid u = {0};
    const uint8_t *p = dec_bytes(d, sizeof(u.bytes));
    if (p)
        __builtin_memcpy(u.bytes, p, sizeof(u.bytes));
    return u;
}

/* A byte with a bound of its own. */
static uint8_t dec_small(struct dec *d, uint8_t max)
{
    uint8_t v = dec_u8(d);
    if (v > max && !d->error)
        d->error = -EBADMSG;
    return d->error ? 0 : v;
}

void peer_hello_encode(const struct peer_hello *h, struct enc *e)
{
    enc_uuid(e, &h->cluster);
    enc_uuid(e, &h->node);
    enc_uuid(e, &h->target);
    enc_u64(e, h->session.value);
    enc_u16(e, h->version_min);
    enc_u16(e, h->version_max);
}

int peer_hello_decode(const void *p, size_t length, struct peer_hello *ret)
{
    struct dec d;
    dec_init(&d, p, length);
    struct peer_hello h = {0};
    h.cluster = dec_uuid(&d);
    h.node = dec_uuid(&d);
    h.target = dec_uuid(&d);
    h.session.value = dec_u64(&d);
    h.version_min = dec_u16(&d);
    h.version_max = dec_u16(&d);
    int r = dec_finish(&d);
    if (r == 0)
        *ret = h;
    return r;
}

void peer_hello_reply_encode(const struct peer_hello_reply *h, struct enc *e)
{
    enc_u64(e, h->session.value);
    enc_u16(e, h->version);
    enc_str(e, h->text);
}

int peer_hello_reply_decode(const void *p, size_t length, struct peer_hello_reply *ret)
{
    struct dec d;
    dec_init(&d, p, length);
    struct peer_hello_reply h = {0};
    h.session.value = dec_u64(&d);
    h.version = dec_u16(&d);
    dec_str(&d, h.text, sizeof(h.text));
    int r = dec_finish(&d);
    if (r == 0)
        *ret = h;
    return r;
}

void peer_run_encode(const struct peer_run *r, struct enc *e)
{
    enc_u32(e, r->offset);
    enc_u32(e, r->length);
    enc_u8(e, r->mapped);
}

void peer_run_decode(struct dec *d, struct peer_run *ret)
{
    ret->offset = dec_u32(d);
    ret->length = dec_u32(d);
    ret->mapped = dec_small(d, 1);
}

void peer_entry_encode(const struct peer_entry *en, struct enc *e)
{
    enc_oid(e, &en->oid);
    enc_u64(e, en->version.value);
    enc_u8(e, (uint8_t)(en->tombstone | en->empty << 1));
    enc_u64(e, en->meta_version);
    enc_u32(e, en->end);
    enc_blob(e, en->meta, en->meta_length);
}

void peer_entry_decode(struct dec *d, struct peer_entry *ret)
{
    ret->oid = dec_oid(d);
    ret->version.value = dec_u64(d);
    uint8_t bits = dec_small(d, 3);
    ret->tombstone = bits & 1;
    ret->empty = bits >> 1 & 1;
    ret->meta_version = dec_u64(d);
    ret->end = dec_u32(d);
    ret->meta = dec_blob(d, &ret->meta_length);
    if (ret->meta_length > PEER_META_BYTES_MAX && !d->error)
        d->error = -EBADMSG;
}

void peer_meta_encode(const struct peer_meta *m, struct enc *e)
{
    enc_oid(e, &m->oid);
    enc_u64(e, m->epoch);
    enc_u64(e, m->meta_version);
    enc_u8(e, m->remove);
    enc_u64(e, m->next.value);
    enc_blob(e, m->meta, m->meta_length);
}

void peer_meta_decode(struct dec *d, struct peer_meta *ret)
{
    ret->oid = dec_oid(d);
    ret->epoch = dec_u64(d);
    ret->meta_version = dec_u64(d);
    ret->remove = dec_small(d, 1);
    ret->next.value = dec_u64(d);
    ret->meta = dec_blob(d, &ret->meta_length);
    if (ret->meta_length > PEER_META_BYTES_MAX && !d->error)
        d->error = -EBADMSG;
}

void peer_refs_head_encode(const struct peer_refs_head *h, struct enc *e)
{
    enc_u8(e, (uint8_t)h->sender);
    enc_u64(e, h->sender_id);
    enc_u64(e, h->authority);
    enc_u64(e, h->floor);
    enc_u16(e, h->count);
}

void peer_refs_head_decode(struct dec *d, struct peer_refs_head *ret)
{
    ret->sender = dec_small(d, PEER_SENDER_REGISTRY);
    ret->sender_id = dec_u64(d);
    ret->authority = dec_u64(d);
    ret->floor = dec_u64(d);
    ret->count = dec_u16(d);
    if ((ret->count == 0 || ret->count > PEER_REF_COUNT_MAX) && !d->error)
        d->error = -EBADMSG;
}

void peer_ref_encode(const struct peer_ref *r, struct enc *e)
{
    enc_u8(e, (uint8_t)r->kind);
    enc_oid(e, &r->target);
    enc_u64(e, r->epoch);
    enc_u64(e, r->holder_vid);
    enc_u8(e, r->holder_level);
    enc_u8(e, r->copied);
    enc_u32(e, r->generation);
    enc_u64(e, r->copies);
    enc_u64(e, r->stamp);
}

void peer_ref_decode(struct dec *d, struct peer_ref *ret)
{
    ret->kind = dec_small(d, PEER_REF_KILL);
    ret->target = dec_oid(d);
    ret->epoch = dec_u64(d);
    ret->holder_vid = dec_u64(d);
    ret->holder_level = dec_u8(d);
    ret->copied = dec_small(d, 1);
    ret->generation = dec_u32(d);
    ret->copies = dec_u64(d);
    ret->stamp = dec_u64(d);
}

void peer_list_encode(const struct peer_list *l, struct enc *e)
{
    enc_u8(e, (uint8_t)l->flags);
    enc_u64(e, l->vid.value);
    enc_u16(e, l->group);
    enc_u64(e, l->above.value);
    enc_oid(e, &l->after);
    enc_u32(e, l->limit);
}

int peer_list_decode(const void *p, size_t length, struct peer_list *ret)
{
    struct dec d;
    dec_init(&d, p, length);
    struct peer_list l = {0};
    l.flags = dec_small(&d, 7);
    l.vid.value = dec_u64(&d);
    l.group = dec_u16(&d);
    l.above.value = dec_u64(&d);
    l.after = dec_oid(&d);
    l.limit = dec_u32(&d);
    int r = dec_finish(&d);
    if (r == 0 && (l.limit == 0 || l.limit > PEER_LIST_COUNT_MAX))
        r = -EBADMSG;
    if (r == 0)
        *ret = l;
    return r;
}

void peer_settle_encode(const struct peer_settle *s, struct enc *e)
{
    enc_u64(e, s->vid.value);
    enc_u64(e, s->stable.value);
}

int peer_settle_decode(const void *p, size_t length, struct peer_settle *ret)
{
    struct dec d;
    dec_init(&d, p, length);
    struct peer_settle s = {0};
    s.vid.value = dec_u64(&d);
    s.stable.value = dec_u64(&d);
    int r = dec_finish(&d);
    if (r == 0)
        *ret = s;
    return r;
}

void peer_compare_encode(const struct peer_compare *c, struct enc *e)
{
    enc_u64(e, c->objects);
    enc_u64(e, c->tombstones);
}

int peer_compare_decode(const void *p, size_t length, struct peer_compare *ret)
{
    struct dec d;
    dec_init(&d, p, length);
    struct peer_compare c = {0};
    c.objects = dec_u64(&d);
    c.tombstones = dec_u64(&d);
    int r = dec_finish(&d);
    if (r == 0)
        *ret = c;
    return r;
}

void peer_fetch_put(uint8_t out[PEER_FETCH_BYTES], const struct peer_fetch *f)
{
    oid_put(out, &f->oid);
    put_le64(out + 16, f->have.value);
    put_le64(out + 24, f->need.value);
    put_le32(out + 32, f->limit);
    oid_put(out + 36, &f->base);
    put_le64(out + 52, f->base_version.value);
}

int peer_fetch_get(const void *p, size_t length, struct peer_fetch *ret)
{
    const uint8_t *b = p;
    if (length != PEER_FETCH_BYTES || get_le32(b + 32) > PEER_PAYLOAD_MAX)
        return -EBADMSG;
    *ret = (struct peer_fetch){
        .oid = oid_get(b),
        .have = {get_le64(b + 16)},
        .need = {get_le64(b + 24)},
        .limit = get_le32(b + 32),
        .base = oid_get(b + 36),
        .base_version = {get_le64(b + 52)},
    };
    return 0;
}

void peer_fetched_encode(const struct peer_fetched *f, struct enc *e)
{
    ASSERT(f->extent_count <= PEER_EXTENT_COUNT_MAX);
    peer_entry_encode(&f->entry, e);
    enc_u8(e, (uint8_t)f->data);
    if (f->data == PEER_FETCHED_WHOLE) {
        enc_u8(e, (uint8_t)f->extent_count);
        for (unsigned i = 0; i < f->extent_count; i++) {
            enc_u32(e, f->extents[i].offset);
            enc_u32(e, f->extents[i].length);
        }
    } else if (f->data == PEER_FETCHED_CHANGED) {
        enc_blob(e, f->relations, f->block_count);
    }
}

/* Extents ascend and end within an object (P1). */
static void dec_extents(struct dec *d, struct peer_fetched *ret)
{
    uint64_t end = 0;
    ret->extent_count = dec_small(d, PEER_EXTENT_COUNT_MAX);
    for (unsigned i = 0; i < ret->extent_count && !d->error; i++) {
        struct peer_extent *x = &ret->extents[i];
        x->offset = dec_u32(d);
        x->length = dec_u32(d);
        uint64_t x_end = (uint64_t)x->offset + x->length;
        if ((x->length == 0 || x->offset < end || x_end > PEER_PAYLOAD_MAX) && !d->error)
            d->error = -EBADMSG;
        end = x_end;
    }
}

int peer_fetched_decode(const void *p, size_t length, struct peer_fetched *ret)
{
    struct dec d;
    dec_init(&d, p, length);
    *ret = (struct peer_fetched){.data = PEER_FETCHED_NONE};
    peer_entry_decode(&d, &ret->entry);
    ret->data = dec_small(&d, PEER_FETCHED_CHANGED);
    if (ret->data == PEER_FETCHED_WHOLE)
        dec_extents(&d, ret);
    else if (ret->data == PEER_FETCHED_CHANGED)
        ret->relations = dec_blob(&d, &ret->block_count);
    int r = dec_finish(&d);
    if (r == 0 && ret->block_count > PEER_FETCHED_BLOCKS_MAX)
        r = -EBADMSG;
    for (size_t i = 0; r == 0 && i < ret->block_count; i++)
        if (ret->relations[i] > PEER_HOLE)
            r = -EBADMSG;
    return r;
}

#define INFO_NUMBER_COUNT 23

void peer_info_encode(const struct peer_info *i, struct enc *e)
{
    const uint64_t numbers[INFO_NUMBER_COUNT] = {
        i->size_bytes,          i->used_bytes,      i->free_bytes,        i->data_bytes,
        i->shared_bytes,        i->object_count,    i->tombstone_count,   i->dying_count,
        i->ref_batches_pending, i->checksum_errors, i->rss_bytes,         i->uptime_ns,
        i->record_bytes,        i->pending_bytes,   i->unreachable_bytes, i->reserve_bytes,
        i->log_bytes,           i->scrub_rate,      i->scrub_passes,      i->scrub_bytes,
        i->scrub_objects,       i->scrub_errors,    i->scrub_mended,
    };
    for (size_t n = 0; n < INFO_NUMBER_COUNT; n++)
        enc_u64(e, numbers[n]);
    enc_u8(e, i->inexact);
    enc_svarint(e, i->failed);
    enc_str(e, i->scrub_last);
    const uint64_t joining[] = {
        i->groups_total,    i->groups_done,      i->join_objects_total, i->join_objects_done,
        i->join_bytes_done, i->join_bytes_per_s, i->join_eta_s,
    };
    enc_u8(e, ARRAY_SIZE(joining));
    for (size_t n = 0; n < ARRAY_SIZE(joining); n++)
        enc_u64(e, joining[n]);
}

/* Figures that came later: none from an older node, and more than are known here from a newer one.
 */
static void dec_joining(struct dec *d, struct peer_info *i)
{
    uint64_t *const joining[] = {
        &i->groups_total,    &i->groups_done,      &i->join_objects_total, &i->join_objects_done,
        &i->join_bytes_done, &i->join_bytes_per_s, &i->join_eta_s,
    };
    if (d->error || dec_left(d) == 0)
        return;
    size_t count = dec_u8(d);
    for (size_t n = 0; n < count && !d->error; n++) {
        uint64_t v = dec_u64(d);
        if (n < ARRAY_SIZE(joining))
            *joining[n] = v;
    }
}

int peer_info_decode(const void *p, size_t length, struct peer_info *ret)
{
    struct dec d;
    dec_init(&d, p, length);
    struct peer_info i = {0};
    uint64_t *const numbers[INFO_NUMBER_COUNT] = {
        &i.size_bytes,          &i.used_bytes,      &i.free_bytes,        &i.data_bytes,
        &i.shared_bytes,        &i.object_count,    &i.tombstone_count,   &i.dying_count,
        &i.ref_batches_pending, &i.checksum_errors, &i.rss_bytes,         &i.uptime_ns,
        &i.record_bytes,        &i.pending_bytes,   &i.unreachable_bytes, &i.reserve_bytes,
        &i.log_bytes,           &i.scrub_rate,      &i.scrub_passes,      &i.scrub_bytes,
        &i.scrub_objects,       &i.scrub_errors,    &i.scrub_mended,
    };
    for (size_t n = 0; n < INFO_NUMBER_COUNT; n++)
        *numbers[n] = dec_u64(&d);
    i.inexact = dec_small(&d, 1);
    int64_t failed = dec_svarint(&d);
    dec_str(&d, i.scrub_last, sizeof(i.scrub_last));
    dec_joining(&d, &i);
    int r = dec_finish(&d);
    if (r == 0 && (failed > 0 || failed < -4095))
        r = -EBADMSG;
    i.failed = (int)failed;
    if (r == 0)
        *ret = i;
    return r;
}

void peer_forward_encode(const struct peer_forward *f, struct enc *e)
{
    enc_u8(e, (uint8_t)f->kind);
    enc_u64(e, f->handle);
    enc_u64(e, f->id);
    enc_u64(e, f->floor);
    enc_u64(e, f->offset);
    enc_u64(e, f->length);
    enc_u32(e, f->flags);
    enc_str(e, f->name);
}

static bool forward_is_change(enum peer_forward_kind kind)
{
    return kind == PEER_FORWARD_WRITE || kind == PEER_FORWARD_ZERO || kind == PEER_FORWARD_DISCARD;
}

static bool forward_is_sound(const struct peer_forward *f)
{
    bool bulk = f->kind == PEER_FORWARD_READ || f->kind == PEER_FORWARD_WRITE;
    if (f->kind == 0 || f->handle == 0 || (f->name[0] != '\0') != (f->kind == PEER_FORWARD_ATTACH))
        return false;
    if (forward_is_change(f->kind) ? f->id == 0 || f->floor == 0 || f->floor > f->id : f->id != 0)
        return false;
    if (bulk && (f->length == 0 || f->length > PEER_FORWARD_DATA_MAX))
        return false;
    return f->kind != PEER_FORWARD_MAP || (f->flags > 0 && f->flags <= PEER_FORWARD_RUNS_MAX);
}

int peer_forward_decode(const void *p, size_t length, struct peer_forward *ret)
{
    struct dec d;
    dec_init(&d, p, length);
    struct peer_forward f = {0};
    f.kind = dec_small(&d, PEER_FORWARD_LAST);
    f.handle = dec_u64(&d);
    f.id = dec_u64(&d);
    f.floor = dec_u64(&d);
    f.offset = dec_u64(&d);
    f.length = dec_u64(&d);
    f.flags = dec_u32(&d);
    dec_str(&d, f.name, sizeof(f.name));
    int r = dec_finish(&d);
    if (r == 0 && !forward_is_sound(&f))
        r = -EBADMSG;
    if (r == 0)
        *ret = f;
    return r;
}

void peer_forward_reply_encode(const struct peer_forward_reply *r, struct enc *e)
{
    enc_u8(e, r->offer);
    enc_u64(e, r->size);
    enc_u32(e, r->object_size);
    enc_u32(e, r->run_count);
}

void peer_forward_reply_decode(struct dec *d, struct peer_forward_reply *ret)
{
    ret->offer = dec_small(d, 1);
    ret->size = dec_u64(d);
    ret->object_size = dec_u32(d);
    ret->run_count = dec_u32(d);
    if (ret->run_count > PEER_FORWARD_RUNS_MAX && !d->error)
        d->error = -EBADMSG;
}

void peer_forward_run_encode(const struct peer_forward_run *r, struct enc *e)
{
    enc_u64(e, r->length);
    enc_u8(e, r->mapped);
}

void peer_forward_run_decode(struct dec *d, struct peer_forward_run *ret)
{
    ret->length = dec_u64(d);
    ret->mapped = dec_small(d, 1);
    if (ret->length == 0 && !d->error)
        d->error = -EBADMSG;
}
