/* SPDX-License-Identifier: Apache-2.0 */
/* Records of volumes and of trash, and their codec. */
#include "volume/record.h"
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"
#include "object/index_block.h"

#define RECORD_MAGIC   0x4c564b4bu /* "KKVL" */
#define TRASH_MAGIC    0x52544b4bu /* "KKTR" */
#define RECORD_VERSION 1

void record_init(struct record *r)
{
    memset(r, 0, sizeof(*r));
    r->lease.clean = true;
}

void record_done(struct record *r)
{
    for (unsigned i = 0; i < r->snapshot_count; i++)
        free(r->snapshots[i].tag);
    for (unsigned i = 0; i < r->pin_count; i++)
        free(r->pins[i].name);
    free(r->snapshots);
    free(r->pins);
    record_init(r);
}

static void image_encode(const struct image *i, struct enc *e)
{
    enc_u64(e, i->vid.value);
    enc_u64(e, i->parent.value);
    enc_u64(e, i->family);
    enc_u32(e, i->group_base);
    enc_u32(e, i->group_count);
    enc_u16(e, i->pool);
    enc_u32(e, i->object_size);
    enc_u32(e, i->entries);
    enc_u64(e, i->size);
    enc_u64(e, i->created_wall_ns);
    enc_u64(e, i->root_copies);
    enc_u32(e, i->number);
}

static void image_decode(struct dec *d, struct image *i)
{
    i->vid.value = dec_u64(d);
    i->parent.value = dec_u64(d);
    i->family = dec_u64(d);
    i->group_base = dec_u32(d);
    i->group_count = dec_u32(d);
    i->pool = dec_u16(d);
    i->object_size = dec_u32(d);
    i->entries = dec_u32(d);
    i->size = dec_u64(d);
    i->created_wall_ns = dec_u64(d);
    i->root_copies = dec_u64(d);
    i->number = dec_u32(d);
}

/* What later arithmetic relies on. */
static bool image_plausible(const struct image *i)
{
    uint32_t o = i->object_size;
    if (i->vid.value == 0)
        return true;
    return o >= OBJECT_BLOCK && o <= 64u << 20 && (o & (o - 1)) == 0 && i->entries >= 2 &&
           i->entries <= INDEX_ENTRIES_MAX && i->group_count >= 1 &&
           (uint64_t)i->group_base + i->group_count <= 1u << 16 && i->size >= 1 &&
           i->size <= (uint64_t)i->entries * i->entries * o;
}

/* Magic and version in front … */
static void frame_begin(struct enc *e, uint32_t magic)
{
    enc_u32(e, magic);
    enc_u16(e, RECORD_VERSION);
}

/* … and the checksum of all of it behind. */
static void frame_end(struct enc *e, size_t start)
{
    if (!e->error)
        enc_u32(e, crc32c(0, e->data + start, e->length - start));
}

static int frame_open(const void *p, size_t length, uint32_t magic, struct dec *ret)
{
    if (length < 10 || get_le32(p) != magic ||
        get_le32((const uint8_t *)p + length - 4) != crc32c(0, p, length - 4))
        return -EBADMSG;
    dec_init(ret, p, length - 4);
    dec_u32(ret);
    return dec_u16(ret) == RECORD_VERSION ? 0 : -EPROTO;
}

void record_encode(const struct record *r, struct enc *e)
{
    size_t start = e->length;
    frame_begin(e, RECORD_MAGIC);
    enc_str(e, r->name);
    enc_u64(e, r->volume);
    image_encode(&r->working, e);
    enc_bytes(e, r->lease.node.bytes, sizeof(r->lease.node.bytes));
    enc_u64(e, r->lease.session.value);
    enc_u64(e, r->lease.term.value);
    enc_u64(e, r->lease.map_version);
    enc_u8(e, r->lease.clean);
    enc_u64(e, r->stable.value);
    enc_u32(e, r->number_next);
    enc_u8(e, r->pending.kind);
    if (r->pending.kind != PENDING_NONE) {
        image_encode(&r->pending.image, e);
        enc_u64(e, r->pending.source.value);
        enc_str(e, r->pending.name);
        enc_str(e, r->pending.tag);
    }
    enc_u32(e, r->snapshot_count);
    for (unsigned i = 0; i < r->snapshot_count; i++) {
        image_encode(&r->snapshots[i].image, e);
        enc_u8(e, r->snapshots[i].state);
        enc_str(e, r->snapshots[i].tag);
    }
    enc_u32(e, r->pin_count);
    for (unsigned i = 0; i < r->pin_count; i++) {
        enc_u64(e, r->pins[i].source.value);
        enc_u64(e, r->pins[i].target.value);
        enc_str(e, r->pins[i].name);
    }
    frame_end(e, start);
}

static void decode_pending(struct dec *d, struct record_pending *p)
{
    p->kind = dec_u8(d);
    if (p->kind == PENDING_NONE)
        return;
    if (p->kind >= PENDING_KIND_COUNT)
        d->error = -EBADMSG;
    image_decode(d, &p->image);
    p->source.value = dec_u64(d);
    dec_str(d, p->name, sizeof(p->name));
    dec_str(d, p->tag, sizeof(p->tag));
    bool has_image = p->kind == PENDING_SNAPSHOT || p->kind == PENDING_ROLLBACK;
    if (!image_plausible(&p->image) || (has_image && p->image.vid.value == 0))
        d->error = -EBADMSG;
}

static int decode_lists(struct dec *d, struct record *r)
{
    char text[VOLUME_NAME_SIZE];
    uint32_t count = dec_u32(d);
    for (uint32_t i = 0; i < count && !d->error; i++) {
        struct image image;
        image_decode(d, &image);
        unsigned state = dec_u8(d);
        dec_str(d, text, sizeof(text));
        if (d->error || image.vid.value == 0 || !image_plausible(&image) ||
            state >= SNAPSHOT_STATE_COUNT)
            return -EBADMSG;
        int e = record_snapshot_add(r, &image, text);
        if (e)
            return e;
        r->snapshots[i].state = state;
    }
    count = dec_u32(d);
    for (uint32_t i = 0; i < count && !d->error; i++) {
        struct vid source = {dec_u64(d)};
        struct vid target = {dec_u64(d)};
        dec_str(d, text, sizeof(text));
        if (d->error)
            return -EBADMSG;
        int e = record_pin_add(r, source, target, text);
        if (e)
            return e;
    }
    return 0;
}

int record_decode(const void *p, size_t length, struct record *ret)
{
    struct dec d;
    int e = frame_open(p, length, RECORD_MAGIC, &d);
    if (e)
        return e;
    struct record r;
    record_init(&r);
    dec_str(&d, r.name, sizeof(r.name));
    r.volume = dec_u64(&d);
    image_decode(&d, &r.working);
    const uint8_t *uuid = dec_bytes(&d, sizeof(r.lease.node.bytes));
    if (uuid)
        memcpy(r.lease.node.bytes, uuid, sizeof(r.lease.node.bytes));
    r.lease.session.value = dec_u64(&d);
    r.lease.term.value = dec_u64(&d);
    r.lease.map_version = dec_u64(&d);
    r.lease.clean = dec_u8(&d);
    r.stable.value = dec_u64(&d);
    r.number_next = dec_u32(&d);
    decode_pending(&d, &r.pending);
    e = decode_lists(&d, &r);
    if (!e)
        e = dec_finish(&d);
    if (!e && (!image_plausible(&r.working) || r.lease.term.value > RECORD_TERM_MAX))
        e = -EBADMSG;
    if (e) {
        record_done(&r);
        return e;
    }
    *ret = r;
    return 0;
}

struct record_snapshot *record_snapshot_by_tag(const struct record *r, const char *tag)
{
    for (unsigned i = 0; i < r->snapshot_count; i++) {
        if (strcmp(r->snapshots[i].tag, tag) == 0)
            return &r->snapshots[i];
    }
    return NULL;
}

struct record_snapshot *record_snapshot_by_vid(const struct record *r, struct vid vid)
{
    for (unsigned i = 0; i < r->snapshot_count; i++) {
        if (r->snapshots[i].image.vid.value == vid.value)
            return &r->snapshots[i];
    }
    return NULL;
}

int record_snapshot_add(struct record *r, const struct image *image, const char *tag)
{
    if (r->snapshot_count >= RECORD_SNAPSHOT_MAX)
        return -EFBIG;
    struct record_snapshot *more = reallocarray(r->snapshots, r->snapshot_count + 1, sizeof(*more));
    if (!more)
        return -ENOMEM;
    r->snapshots = more;
    char *copy = strdup(tag);
    if (!copy)
        return -ENOMEM;
    more[r->snapshot_count++] =
        (struct record_snapshot){.image = *image, .state = SNAPSHOT_LIVE, .tag = copy};
    return 0;
}

void record_snapshot_remove(struct record *r, struct record_snapshot *s)
{
    size_t at = (size_t)(s - r->snapshots);
    ASSERT(at < r->snapshot_count);
    free(s->tag);
    memmove(s, s + 1, (r->snapshot_count - at - 1) * sizeof(*s));
    r->snapshot_count--;
}

int record_pin_add(struct record *r, struct vid source, struct vid target, const char *name)
{
    struct record_pin *more = reallocarray(r->pins, r->pin_count + 1, sizeof(*more));
    if (!more)
        return -ENOMEM;
    r->pins = more;
    char *copy = strdup(name);
    if (!copy)
        return -ENOMEM;
    more[r->pin_count++] = (struct record_pin){.source = source, .target = target, .name = copy};
    return 0;
}

void record_pin_remove(struct record *r, struct vid target)
{
    for (unsigned i = 0; i < r->pin_count; i++) {
        if (r->pins[i].target.value != target.value)
            continue;
        free(r->pins[i].name);
        memmove(&r->pins[i], &r->pins[i + 1], (r->pin_count - i - 1) * sizeof(r->pins[i]));
        r->pin_count--;
        return;
    }
}

bool record_is_pinned(const struct record *r, struct vid vid)
{
    if (r->pending.kind == PENDING_ROLLBACK && r->pending.source.value == vid.value)
        return true;
    for (unsigned i = 0; i < r->pin_count; i++) {
        if (r->pins[i].source.value == vid.value)
            return true;
    }
    return false;
}

struct trash trash_of(const struct image *i)
{
    return (struct trash){
        .vid = i->vid,
        .family = i->family,
        .group_base = i->group_base,
        .group_count = i->group_count,
        .root_copies = i->root_copies,
    };
}

void trash_encode(const struct trash *t, struct enc *e)
{
    size_t start = e->length;
    frame_begin(e, TRASH_MAGIC);
    enc_u64(e, t->vid.value);
    enc_u64(e, t->family);
    enc_u32(e, t->group_base);
    enc_u32(e, t->group_count);
    enc_u64(e, t->root_copies);
    frame_end(e, start);
}

int trash_decode(const void *p, size_t length, struct trash *ret)
{
    struct dec d;
    int e = frame_open(p, length, TRASH_MAGIC, &d);
    if (e)
        return e;
    struct trash t;
    t.vid.value = dec_u64(&d);
    t.family = dec_u64(&d);
    t.group_base = dec_u32(&d);
    t.group_count = dec_u32(&d);
    t.root_copies = dec_u64(&d);
    e = dec_finish(&d);
    if (!e && (t.vid.value == 0 || t.group_count == 0 ||
               (uint64_t)t.group_base + t.group_count > 1u << 16))
        e = -EBADMSG;
    if (!e)
        *ret = t;
    return e;
}
