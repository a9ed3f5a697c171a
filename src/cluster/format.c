/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making a cluster, and the counter of vids.
 *
 * FO1 The cluster record and the first map are written in one transaction, once.
 * FO2 A vid is given out only after the counter beyond it was written.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"
#include "base/log.h"
#include "cluster/cluster_internal.h"
#include "cluster/map_write.h"

#define LOG_MODULE "cluster"

#define RECORD_MAGIC   0x534c434bu /* "KCLS" */
#define RECORD_VERSION 1
#define VID_FIRST      1
#define FIRST_MAP_NS   (30 * NS_PER_S)

static void record_encode(const struct map *m, uint64_t created_ns, struct enc *e)
{
    size_t start = e->length;
    enc_u32(e, RECORD_MAGIC);
    enc_u16(e, RECORD_VERSION);
    enc_bytes(e, m->cluster.bytes, sizeof(m->cluster.bytes));
    enc_str(e, m->cluster_name);
    enc_u64(e, created_ns);
    if (!e->error)
        enc_u32(e, crc32c(0, e->data + start, e->length - start));
}

static int record_decode(const void *p, size_t length, struct uuid *ret_cluster)
{
    struct dec d;
    char name[MAP_NAME_SIZE];
    if (length < 10 || crc32c(0, p, length - 4) != get_le32((const uint8_t *)p + length - 4))
        return -EBADMSG;
    dec_init(&d, p, length - 4);
    if (dec_u32(&d) != RECORD_MAGIC)
        return -EBADMSG;
    if (dec_u16(&d) != RECORD_VERSION)
        return -EPROTO;
    const uint8_t *uuid = dec_bytes(&d, sizeof(ret_cluster->bytes));
    dec_str(&d, name, sizeof(name));
    dec_u64(&d);
    int r = dec_finish(&d);
    if (r == 0)
        memcpy(ret_cluster->bytes, uuid, sizeof(ret_cluster->bytes));
    return r;
}

fiber_fn int cluster_record_get(struct cluster *c, struct uuid *ret_cluster)
{
    struct enc value;
    enc_init(&value);
    int r = cs_get(c->cs, KEY_CLUSTER, &value, NULL);
    if (r == 0) {
        r = record_decode(value.data, value.length, ret_cluster);
        if (r < 0)
            log_error("the cluster record in the cluster store cannot be read: %s", err_text(r));
    }
    enc_done(&value);
    return r;
}

/* Keeps only those that have a session: the others could hold nothing that is written now. */
static unsigned keep_live(struct map_member *members, unsigned count)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < count; i++) {
        if (members[i].node.session.value != 0)
            members[kept++] = members[i];
        else
            log_warn("node %s is registered but not running: it will not be part of the new "
                     "cluster until it is",
                     members[i].node.name);
    }
    return kept;
}

static fiber_fn int make_first_map(struct cluster *c, const struct map_format *f, struct map **ret)
{
    struct map_member *members;
    unsigned count;
    int r = member_list(c->cs, &members, &count);
    if (r < 0)
        return r;
    count = keep_live(members, count);
    r = map_first(f, members, count, ret);
    free(members);
    if (r == -ENOSPC)
        log_error(
            "%u copies need nodes in as many zones: start more nodes, or give them different zones",
            f->copies);
    else if (r == -EINVAL)
        log_error("a cluster with %u copies, %u of them at least, in %" PRIu32
                  " groups cannot be made: 1 to %u copies, at most %u groups",
                  f->copies, f->min_copies, f->group_count, MAP_GROUP_MEMBER_MAX,
                  MAP_GROUP_COUNT_MAX);
    return r;
}

static fiber_fn int write_first_map(struct cluster *c, const struct map *m)
{
    struct map_write *w;
    struct enc record;
    enc_init(&record);
    record_encode(m, clock_wall(c->rt), &record);
    int r = record.error ? record.error : map_write_new(NULL, m, &w);
    if (r == 0) {
        for (unsigned i = 0; i < w->count; i++)
            w->ops[i].revision = CS_REVISION_ABSENT;
        w->ops[w->count++] = (struct cs_op){.kind = CS_PUT,
                                            .key = KEY_CLUSTER,
                                            .revision = CS_REVISION_ABSENT,
                                            .value = record.data,
                                            .length = record.length};
        r = cs_txn(c->cs, w->ops, w->count, NULL);
        map_write_free(w);
    }
    enc_done(&record);
    return r == -ESTALE ? -EEXIST : r;
}

fiber_fn int cluster_format(struct cluster *c, const struct map_format *f)
{
    struct map_format format = *f;
    struct uuid existing;
    if (c->map->version > 0 || cluster_record_get(c, &existing) != -ENOENT) {
        log_error("the cluster was formatted before; to begin anew remove its cluster store and "
                  "its stores");
        return -EEXIST;
    }
    if (uuid_is_null(&format.cluster)) {
        put_le64(format.cluster.bytes, rt_random(c->rt));
        put_le64(format.cluster.bytes + 8, rt_random(c->rt));
        format.cluster.bytes[6] =
            (uint8_t)((format.cluster.bytes[6] & 0x0f) | 0x40); /* RFC 4122, random */
        format.cluster.bytes[8] = (uint8_t)((format.cluster.bytes[8] & 0x3f) | 0x80);
    }
    struct map *m;
    int r = make_first_map(c, &format, &m);
    if (r < 0)
        return r;
    r = write_first_map(c, m);
    if (r == 0)
        log_info("cluster made of %" PRIu32 " nodes with %u copies in %" PRIu32 " groups",
                 m->node_count, format.copies, m->group_count);
    map_unref(m);
    return r < 0 ? r : cluster_wait_map(c, 1, clock_now(c->rt) + FIRST_MAP_NS);
}

static fiber_fn int take_vids(struct cluster *c, uint32_t count, struct vid *ret)
{
    struct enc value;
    uint64_t revision = CS_REVISION_ABSENT, next = VID_FIRST, after;
    enc_init(&value);
    int r = cs_get(c->cs, KEY_VID, &value, &revision);
    if (r == 0 && value.length != 8)
        r = -EBADMSG;
    if (r == 0)
        next = get_le64(value.data);
    enc_done(&value);
    if (r < 0 && r != -ENOENT)
        return r;
    if (!add_u64(next, count, &after))
        return -EFBIG;
    uint8_t bytes[8];
    put_le64(bytes, after);
    struct cs_op op = {.kind = CS_PUT,
                       .key = KEY_VID,
                       .revision = revision,
                       .value = bytes,
                       .length = sizeof(bytes)};
    r = cs_txn(c->cs, &op, 1, NULL);
    if (r == 0)
        ret->value = next;
    return r;
}

fiber_fn int cluster_new_vids(struct cluster *c, uint32_t count, struct vid *ret)
{
    if (count == 0)
        return -EINVAL;
    int r;
    do {
        r = take_vids(c, count, ret);
    } while (r == -ESTALE && !c->stopping); /* another node was faster; one of us always gets on */
    return r;
}
