/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The zookeeper driver's bytes: head, entries of the log, their bodies.
 *
 * ZE1 Nothing is used of a node whose checksum or content is wrong.
 */
#include "cluster/drivers/zookeeper_entry.h"
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"

#define HEAD_MAGIC  0x44485a4bu /* KZHD */
#define ENTRY_MAGIC 0x474c5a4bu /* KZLG */
#define VERSION     1

enum { CHANGE_DELETE, CHANGE_PUT };
#define CHANGE_BYTES_MIN 5u /* kind, length of a key */

static void enc_checksum(struct enc *e, size_t start)
{
    if (!e->error)
        enc_u32(e, crc32c(0, e->data + start, e->length - start));
}

static int dec_checked(struct dec *d, const void *p, size_t length, uint32_t magic)
{
    if (length < 4 || crc32c(0, p, length - 4) != get_le32((const uint8_t *)p + length - 4))
        return -EBADMSG;
    dec_init(d, p, length - 4);
    if (dec_u32(d) != magic)
        return -EBADMSG;
    return dec_u16(d) == VERSION ? 0 : -EPROTO;
}

void zk_head_encode(struct enc *e, uint64_t revision)
{
    size_t start = e->length;
    enc_u32(e, HEAD_MAGIC);
    enc_u16(e, VERSION);
    enc_u64(e, revision);
    enc_checksum(e, start);
}

int zk_head_decode(const void *p, size_t length, uint64_t *ret_revision)
{
    struct dec d;
    int r = dec_checked(&d, p, length, HEAD_MAGIC);
    if (r < 0)
        return r;
    uint64_t revision = dec_u64(&d);
    r = dec_finish(&d);
    if (r == 0)
        *ret_revision = revision;
    return r;
}

void zk_entry_encode(struct enc *e, struct zk_header *h, const struct enc *body)
{
    size_t start = e->length;
    ASSERT(h->removed_count <= ZK_REMOVED_MAX && h->part_count <= ZK_PART_COUNT_MAX);
    h->body_length = (uint32_t)body->length;
    h->body_crc = crc32c(0, body->data, body->length);
    enc_u32(e, ENTRY_MAGIC);
    enc_u16(e, VERSION);
    enc_u64(e, h->revision);
    enc_u64(e, h->session);
    enc_u64(e, h->nonce);
    enc_u8(e, (uint8_t)h->removed_count);
    for (unsigned i = 0; i < h->removed_count; i++)
        enc_u64(e, h->removed[i]);
    enc_u16(e, (uint16_t)h->part_count);
    enc_u32(e, h->body_length);
    enc_u32(e, h->body_crc);
    if (h->part_count == 0)
        enc_bytes(e, body->data, body->length);
    enc_checksum(e, start);
}

int zk_entry_decode(const void *p, size_t length, struct zk_header *ret, const uint8_t **ret_body)
{
    struct dec d;
    struct zk_header h = {0};
    const uint8_t *body = NULL;
    int r = dec_checked(&d, p, length, ENTRY_MAGIC);
    if (r < 0)
        return r;
    h.revision = dec_u64(&d);
    h.session = dec_u64(&d);
    h.nonce = dec_u64(&d);
    h.removed_count = dec_u8(&d);
    if (h.removed_count > ZK_REMOVED_MAX)
        return -EBADMSG;
    for (unsigned i = 0; i < h.removed_count; i++)
        h.removed[i] = dec_u64(&d);
    h.part_count = dec_u16(&d);
    h.body_length = dec_u32(&d);
    h.body_crc = dec_u32(&d);
    if (h.part_count > ZK_PART_COUNT_MAX || h.body_length > ZK_BODY_BYTES_MAX)
        return -EBADMSG;
    if (h.part_count == 0)
        body = dec_bytes(&d, h.body_length);
    r = dec_finish(&d);
    if (r == 0 && body)
        r = zk_body_check(&h, body, h.body_length);
    if (r == 0) {
        *ret = h;
        *ret_body = body;
    }
    return r;
}

int zk_body_check(const struct zk_header *h, const void *p, size_t length)
{
    return length == h->body_length && crc32c(0, p, length) == h->body_crc ? 0 : -EBADMSG;
}

void zk_body_begin(struct enc *e, uint32_t count)
{
    enc_u32(e, count);
}

void zk_body_put(struct enc *e, const char *key, uint64_t owner, const void *value, size_t length)
{
    enc_u8(e, CHANGE_PUT);
    enc_str(e, key);
    enc_u64(e, owner);
    enc_blob(e, value, length);
}

void zk_body_delete(struct enc *e, const char *key)
{
    enc_u8(e, CHANGE_DELETE);
    enc_str(e, key);
}

static void decode_change(struct dec *d, struct zk_change *c)
{
    uint8_t kind = dec_u8(d);
    dec_str(d, c->key, sizeof(c->key));
    if (kind == CHANGE_PUT) {
        c->owner = dec_u64(d);
        c->value = dec_blob(d, &c->length);
    } else if (kind != CHANGE_DELETE) {
        d->error = -EBADMSG;
    }
    if (c->key[0] == '\0')
        d->error = -EBADMSG;
}

int zk_body_decode(const void *p, size_t length, struct zk_change **ret, unsigned *ret_count)
{
    struct dec d;
    dec_init(&d, p, length);
    uint32_t count = dec_u32(&d);
    if (count > dec_left(&d) / CHANGE_BYTES_MIN)
        return -EBADMSG;
    struct zk_change *changes = calloc(count + 1, sizeof(*changes));
    if (!changes)
        return -ENOMEM;
    for (uint32_t i = 0; i < count && !d.error; i++)
        decode_change(&d, &changes[i]);
    int r = dec_finish(&d);
    if (r < 0) {
        free(changes);
        return r;
    }
    *ret = changes;
    *ret_count = count;
    return 0;
}
