/* SPDX-License-Identifier: Apache-2.0 */
/* Codec of log records. */
#include "store/record.h"
#include "base/err.h"

#define PUNCH_SIZE 4u
#define RUN_SIZE   8u

static void put_oid(struct enc *e, const struct oid *oid)
{
    uint8_t b[OID_BYTES];

    oid_put(b, oid);
    enc_bytes(e, b, sizeof(b));
}

void record_change_begin(struct enc *e, const struct record_change_head *h)
{
    uint8_t b[32];

    b[0] = RECORD_CHANGE;
    b[1] = (uint8_t)h->flags;
    put_le16(b + 2, (uint16_t)h->punch_count);
    put_le32(b + 4, h->run_count);
    oid_put(b + 8, &h->oid);
    put_le64(b + 24, h->next.value);
    enc_bytes(e, b, sizeof(b));
    if (h->flags & RECORD_HAS_SOURCE)
        put_oid(e, &h->source);
}

void record_punch(struct enc *e, uint32_t start, uint32_t count)
{
    uint8_t b[PUNCH_SIZE];

    ASSERT(start + count <= OBJECT_BLOCKS_MAX);
    put_le16(b, (uint16_t)start);
    put_le16(b + 2, (uint16_t)count);
    enc_bytes(e, b, sizeof(b));
}

void record_run(struct enc *e, const struct record_run *run)
{
    uint8_t b[RUN_SIZE];

    ASSERT(run->start + run->count <= OBJECT_BLOCKS_MAX);
    put_le16(b, (uint16_t)run->start);
    put_le16(b + 2, (uint16_t)run->count);
    put_le32(b + 4, run->block);
    enc_bytes(e, b, sizeof(b));
}

void record_crc(struct enc *e, uint32_t crc)
{
    enc_u32(e, crc);
}

void record_remove(struct enc *e, const struct oid *oid, struct version next)
{
    enc_u8(e, RECORD_REMOVE);
    put_oid(e, oid);
    enc_u64(e, next.value);
}

void record_meta(struct enc *e, const struct oid *oid, uint64_t meta_version, const void *meta,
                 uint16_t length)
{
    enc_u8(e, RECORD_META);
    put_oid(e, oid);
    enc_u64(e, meta_version);
    enc_u16(e, length);
    enc_bytes(e, meta, length);
}

void record_settle(struct enc *e, struct vid vid, struct version stable)
{
    enc_u8(e, RECORD_SETTLE);
    enc_u64(e, vid.value);
    enc_u64(e, stable.value);
}

size_t record_change_size(unsigned punch_count, unsigned run_count, uint32_t block_count)
{
    return 32 + OID_BYTES + (size_t)punch_count * PUNCH_SIZE + (size_t)run_count * RUN_SIZE +
           (size_t)block_count * 4;
}

static struct oid get_oid(struct dec *d)
{
    const uint8_t *p = dec_bytes(d, OID_BYTES);

    return p != NULL ? oid_get(p) : (struct oid){0};
}

struct record_run record_run_get(const struct record *rec, unsigned i)
{
    const uint8_t *p = rec->runs + (size_t)i * RUN_SIZE;

    return (struct record_run){get_le16(p), get_le16(p + 2), get_le32(p + 4)};
}

struct record_run record_punch_get(const struct record *rec, unsigned i)
{
    const uint8_t *p = rec->punches + (size_t)i * PUNCH_SIZE;

    return (struct record_run){get_le16(p), get_le16(p + 2), 0};
}

static bool range_valid(struct record_run run)
{
    return run.count > 0 && run.start + run.count <= OBJECT_BLOCKS_MAX;
}

static int change_decode(struct dec *d, struct record *rec)
{
    uint8_t flags = dec_u8(d);

    rec->has_source = (flags & RECORD_HAS_SOURCE) != 0;
    rec->replace = (flags & RECORD_REPLACE) != 0;
    rec->punch_count = dec_u16(d);
    rec->run_count = dec_u32(d);
    rec->oid = get_oid(d);
    rec->next.value = dec_u64(d);
    if (rec->has_source)
        rec->source = get_oid(d);
    if (rec->run_count > OBJECT_BLOCKS_MAX)
        return -EUCLEAN;
    rec->punches = dec_bytes(d, (size_t)rec->punch_count * PUNCH_SIZE);
    rec->runs = dec_bytes(d, (size_t)rec->run_count * RUN_SIZE);
    if (d->error)
        return -EUCLEAN;
    for (unsigned i = 0; i < rec->punch_count; i++) {
        if (!range_valid(record_punch_get(rec, i)))
            return -EUCLEAN;
    }
    for (unsigned i = 0; i < rec->run_count; i++) {
        struct record_run run = record_run_get(rec, i);
        if (!range_valid(run))
            return -EUCLEAN;
        rec->block_count += run.count;
    }
    rec->crcs = dec_bytes(d, (size_t)rec->block_count * 4);
    return 0;
}

int record_take(struct dec *d, struct record *ret)
{
    struct record rec = {0};
    int r = 0;

    rec.type = dec_u8(d);
    switch (rec.type) {
    case RECORD_CHANGE:
        r = change_decode(d, &rec);
        break;
    case RECORD_REMOVE:
        rec.oid = get_oid(d);
        rec.next.value = dec_u64(d);
        break;
    case RECORD_META:
        rec.oid = get_oid(d);
        rec.meta_version = dec_u64(d);
        rec.meta_length = dec_u16(d);
        rec.meta = dec_bytes(d, rec.meta_length);
        if (rec.meta_length > STORE_META_SIZE_MAX)
            r = -EUCLEAN;
        break;
    case RECORD_SETTLE:
        rec.vid.value = dec_u64(d);
        rec.next.value = dec_u64(d);
        break;
    default:
        r = -EUCLEAN;
    }
    if (r == 0 && d->error)
        r = -EUCLEAN;
    if (r == 0)
        *ret = rec;
    return r;
}
