/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The map as values in the cluster store (FORMAT.md): one head and one value per MAP_SHARD_GROUPS
 * groups.
 *
 * MC1 A value that does not end in its CRC32C, or whose content could not have been encoded from a
 *     valid map, is -EBADMSG; one of an unknown format version is -EPROTO. Nothing of it is used.
 * MC2 One map has one encoding.
 */
#include "cluster/map.h"
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"
#include "cluster/driver.h"

#define HEAD_MAGIC    0x50414d4bu /* "KMAP" */
#define SHARD_MAGIC   0x4853504du /* "MPSH" */
#define HEAD_VERSION  2u
#define SHARD_VERSION 1u

#define NODE_OUT     1u
#define NODE_INEXACT 2u

/* The largest node record; strings carry a 4-byte length and no terminator. */
#define NODE_BYTES_MAX                                                                             \
    (2 + 16 + 8 + 1 + 4 + 14 + 2 * (4 + MAP_NAME_SIZE) + 3 * (4 + MAP_ADDRESS_SIZE))
#define POOL_BYTES_MAX  (2 + (4 + MAP_NAME_SIZE) + 2 + 12)
#define GROUP_BYTES_MAX (8 + 3 * (1 + 2 * MAP_GROUP_MEMBER_MAX))
static_assert(1024 + MAP_NODE_COUNT_MAX * NODE_BYTES_MAX + MAP_POOL_COUNT_MAX * POOL_BYTES_MAX <
                  CS_VALUE_MAX,
              "the largest head fits into one value");
static_assert(64 + MAP_SHARD_GROUPS * GROUP_BYTES_MAX < CS_VALUE_MAX,
              "the largest shard fits into one value");

static void enc_finish(struct enc *e, size_t start)
{
    if (!e->error)
        enc_u32(e, crc32c(0, e->data + start, e->length - start));
}

static void enc_node(struct enc *e, const struct map_node *n)
{
    enc_u16(e, n->number);
    enc_bytes(e, n->uuid.bytes, sizeof(n->uuid.bytes));
    enc_u64(e, n->session.value);
    enc_u8(e, (uint8_t)n->state);
    enc_u32(e, n->weight);
    enc_str(e, n->name);
    enc_str(e, n->zone);
    enc_str(e, n->address);
    enc_str(e, n->admin);
    enc_str(e, n->nbd);
    enc_u8(e, (uint8_t)((n->out ? NODE_OUT : 0) | (n->inexact ? NODE_INEXACT : 0)));
    enc_u8(e, (uint8_t)n->trouble);
    enc_u16(e, n->trouble_by);
    enc_u16(e, n->trouble_error);
    enc_u64(e, n->away_since);
}

void map_encode_head(const struct map *m, struct enc *e)
{
    size_t start = e->length;
    enc_u32(e, HEAD_MAGIC);
    enc_u16(e, HEAD_VERSION);
    enc_u64(e, m->version);
    enc_bytes(e, m->cluster.bytes, sizeof(m->cluster.bytes));
    enc_str(e, m->cluster_name);
    enc_u32(e, m->node_number_next);
    enc_u32(e, m->group_count);
    enc_u32(e, m->pool_count);
    for (uint32_t i = 0; i < m->pool_count; i++) {
        const struct map_pool *p = &m->pools[i];
        enc_u16(e, p->id);
        enc_str(e, p->name);
        enc_u8(e, p->copies);
        enc_u8(e, p->min_copies);
        enc_u32(e, p->group_base);
        enc_u32(e, p->group_count);
        enc_u32(e, p->object_size);
    }
    enc_u32(e, m->node_count);
    for (uint32_t i = 0; i < m->node_count; i++)
        enc_node(e, &m->nodes[i]);
    enc_finish(e, start);
}

static void enc_set(struct enc *e, const uint16_t *set, uint8_t count)
{
    enc_u8(e, count);
    for (unsigned i = 0; i < count; i++)
        enc_u16(e, set[i]);
}

void map_encode_shard(const struct map *m, uint32_t shard, struct enc *e)
{
    ASSERT(shard < map_shard_count(m));
    uint32_t first = shard * MAP_SHARD_GROUPS;
    uint32_t count = MIN(m->group_count - first, MAP_SHARD_GROUPS);
    size_t start = e->length;
    enc_u32(e, SHARD_MAGIC);
    enc_u16(e, SHARD_VERSION);
    enc_bytes(e, m->cluster.bytes, sizeof(m->cluster.bytes));
    enc_u32(e, shard);
    enc_u32(e, count);
    for (uint32_t i = first; i < first + count; i++) {
        const struct map_group *g = &m->groups[i];
        enc_u64(e, g->epoch.value);
        enc_set(e, g->in_sync, g->in_sync_count);
        enc_set(e, g->joining, g->joining_count);
        enc_set(e, g->last_full, g->last_full_count);
    }
    enc_finish(e, start);
}

/* Checks checksum, magic and version; *d then stands behind the version, which is returned, and
 * ends before the checksum. */
static int dec_open(const void *p, size_t length, uint32_t magic, int version_max, struct dec *d)
{
    if (length < 4 + 2 + 4)
        return -EBADMSG;
    if (crc32c(0, p, length - 4) != get_le32((const uint8_t *)p + length - 4))
        return -EBADMSG;
    dec_init(d, p, length - 4);
    if (dec_u32(d) != magic)
        return -EBADMSG;
    int version = dec_u16(d);
    return version >= 1 && version <= version_max ? version : -EPROTO;
}

static void dec_uuid(struct dec *d, struct uuid *ret)
{
    const uint8_t *p = dec_bytes(d, sizeof(ret->bytes));
    if (p)
        memcpy(ret->bytes, p, sizeof(ret->bytes));
}

/* What version 2 added. */
static bool dec_node_more(struct dec *d, struct map_node *n)
{
    uint8_t flags = dec_u8(d), trouble = dec_u8(d);
    n->out = flags & NODE_OUT;
    n->inexact = flags & NODE_INEXACT;
    n->trouble = (enum map_trouble)trouble;
    n->trouble_by = dec_u16(d);
    n->trouble_error = dec_u16(d);
    n->away_since = dec_u64(d);
    return flags <= (NODE_OUT | NODE_INEXACT) && trouble <= MAP_TROUBLE_ALONE;
}

static bool dec_node(struct dec *d, int version, struct map_node *n)
{
    n->number = dec_u16(d);
    dec_uuid(d, &n->uuid);
    n->session.value = dec_u64(d);
    uint8_t state = dec_u8(d);
    n->state = (enum map_node_state)state;
    n->weight = dec_u32(d);
    dec_str(d, n->name, sizeof(n->name));
    dec_str(d, n->zone, sizeof(n->zone));
    dec_str(d, n->address, sizeof(n->address));
    dec_str(d, n->admin, sizeof(n->admin));
    dec_str(d, n->nbd, sizeof(n->nbd));
    if (version >= 2 && !dec_node_more(d, n))
        return false;
    return !d->error && state <= MAP_NODE_LOST && !uuid_is_null(&n->uuid);
}

static bool dec_pools(struct dec *d, struct map *m)
{
    m->pool_count = dec_u32(d);
    if (d->error || m->pool_count > MAP_POOL_COUNT_MAX)
        return false;
    m->pools = calloc(m->pool_count ? m->pool_count : 1, sizeof(*m->pools));
    if (!m->pools) {
        d->error = -ENOMEM;
        return false;
    }
    for (uint32_t i = 0; i < m->pool_count; i++) {
        struct map_pool *p = &m->pools[i];
        p->id = dec_u16(d);
        dec_str(d, p->name, sizeof(p->name));
        p->copies = dec_u8(d);
        p->min_copies = dec_u8(d);
        p->group_base = dec_u32(d);
        p->group_count = dec_u32(d);
        p->object_size = dec_u32(d);
        if (d->error || p->copies == 0 || p->copies > MAP_GROUP_MEMBER_MAX || p->min_copies == 0 ||
            p->min_copies > p->copies || p->group_count == 0 || p->group_base > m->group_count ||
            p->group_count > m->group_count - p->group_base)
            return false;
    }
    return true;
}

static bool dec_nodes(struct dec *d, int version, struct map *m)
{
    m->node_count = dec_u32(d);
    if (d->error || m->node_count > MAP_NODE_COUNT_MAX)
        return false;
    m->nodes = calloc(m->node_count ? m->node_count : 1, sizeof(*m->nodes));
    if (!m->nodes) {
        d->error = -ENOMEM;
        return false;
    }
    for (uint32_t i = 0; i < m->node_count; i++) {
        if (!dec_node(d, version, &m->nodes[i]) || m->nodes[i].number >= m->node_number_next)
            return false;
        if (i > 0 && m->nodes[i].number <= m->nodes[i - 1].number)
            return false;
    }
    return true;
}

int map_decode_head(const void *p, size_t length, struct map **ret)
{
    struct dec d;
    int version = dec_open(p, length, HEAD_MAGIC, HEAD_VERSION, &d);
    if (version < 0)
        return version;
    struct map *m = map_new();
    if (!m)
        return -ENOMEM;
    m->version = dec_u64(&d);
    dec_uuid(&d, &m->cluster);
    dec_str(&d, m->cluster_name, sizeof(m->cluster_name));
    m->node_number_next = dec_u32(&d);
    m->group_count = dec_u32(&d);
    bool good = !d.error && m->version > 0 && m->node_number_next <= UINT16_MAX + 1u &&
                m->group_count > 0 && m->group_count <= MAP_GROUP_COUNT_MAX;
    good = good && dec_pools(&d, m) && dec_nodes(&d, version, m) && dec_finish(&d) == 0;
    int r = good ? 0 : d.error == -ENOMEM ? -ENOMEM : -EBADMSG;
    if (r == 0) {
        m->groups = calloc(m->group_count, sizeof(*m->groups));
        if (!m->groups)
            r = -ENOMEM;
    }
    if (r < 0) {
        map_unref(m);
        return r;
    }
    *ret = m;
    return 0;
}

/* False if the set is too long, names an unknown node, or one twice. */
static bool dec_set(struct dec *d, const struct map *m, uint16_t *set, uint8_t *ret_count)
{
    uint8_t count = dec_u8(d);
    if (count > MAP_GROUP_MEMBER_MAX)
        return false;
    for (unsigned i = 0; i < count; i++) {
        set[i] = dec_u16(d);
        if (d->error || !map_node(m, set[i]))
            return false;
        for (unsigned j = 0; j < i; j++) {
            if (set[j] == set[i])
                return false;
        }
    }
    *ret_count = count;
    return !d->error;
}

static bool dec_group(struct dec *d, const struct map *m, struct map_group *g)
{
    g->epoch.value = dec_u64(d);
    if (!dec_set(d, m, g->in_sync, &g->in_sync_count) ||
        !dec_set(d, m, g->joining, &g->joining_count) ||
        !dec_set(d, m, g->last_full, &g->last_full_count))
        return false;
    for (unsigned i = 0; i < g->joining_count; i++) {
        if (map_group_in_sync(g, g->joining[i]))
            return false;
    }
    return g->epoch.value > 0 && g->epoch.value <= m->version;
}

int map_decode_shard(struct map *m, uint32_t shard, const void *p, size_t length)
{
    struct dec d;
    int r = dec_open(p, length, SHARD_MAGIC, SHARD_VERSION, &d);
    if (r < 0)
        return r;
    struct uuid cluster = {0};
    dec_uuid(&d, &cluster);
    uint32_t number = dec_u32(&d), count = dec_u32(&d);
    if (d.error || !uuid_equal(&cluster, &m->cluster) || number != shard ||
        shard >= map_shard_count(m) ||
        count != MIN(m->group_count - shard * MAP_SHARD_GROUPS, MAP_SHARD_GROUPS))
        return -EBADMSG;
    for (uint32_t i = 0; i < count; i++) {
        struct map_group g = {0};
        if (!dec_group(&d, m, &g))
            return -EBADMSG;
        m->groups[shard * MAP_SHARD_GROUPS + i] = g;
    }
    return dec_finish(&d);
}
