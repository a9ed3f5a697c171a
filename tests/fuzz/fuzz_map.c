/* SPDX-License-Identifier: Apache-2.0 */
/* Values of the cluster store: the map's head and shards, registrations, claims, reports, wishes;
 * and the nodes in which the zookeeper driver keeps them. What decodes must encode and decode to
 * the same again, and the lookups must hold on it. */
#include <stdlib.h>
#include <string.h>
#include "base/check.h"
#include "cluster/drivers/zookeeper_state.h"
#include "cluster/map.h"
#include "cluster/member.h"
#include "tests/fuzz/fuzz.h"

static void use_map(struct map *m)
{
    struct enc first, second;
    struct map *again;
    enc_init(&first);
    enc_init(&second);
    map_encode_head(m, &first);
    ASSERT(map_decode_head(first.data, first.length, &again) == 0);
    map_encode_head(again, &second);
    ASSERT(first.length == second.length && memcmp(first.data, second.data, first.length) == 0);
    for (uint32_t i = 0; i < m->node_count; i++)
        ASSERT(map_node(m, m->nodes[i].number) != NULL);
    for (uint32_t i = 0; i < m->pool_count; i++)
        ASSERT(map_pool(m, m->pools[i].id) != NULL);
    map_unref(again);
    enc_done(&first);
    enc_done(&second);
}

/* Two values in one input: u16 length of the head, the head, then a shard. */
static void fuzz_map(const uint8_t *data, size_t size)
{
    struct map *m;
    if (size < 2)
        return;
    size_t head = MIN((size_t)(data[0] | data[1] << 8), size - 2);
    if (map_decode_head(data + 2, head, &m) < 0)
        return;
    use_map(m);
    (void)map_decode_shard(m, 0, data + 2 + head, size - 2 - head);
    for (uint32_t i = 0; i < m->group_count; i++)
        for (unsigned j = 0; j < m->groups[i].in_sync_count; j++)
            (void)map_group_has(&m->groups[i], m->groups[i].in_sync[j]);
    map_unref(m);
}

static void use_body(const struct zk_change *changes, unsigned count, const uint8_t *p,
                     size_t length)
{
    struct enc again;
    enc_init(&again);
    zk_body_begin(&again, count);
    for (unsigned i = 0; i < count; i++) {
        const struct zk_change *c = &changes[i];
        if (c->value)
            zk_body_put(&again, c->key, c->owner, c->value, c->length);
        else
            zk_body_delete(&again, c->key);
    }
    ASSERT(again.length == length && memcmp(again.data, p, length) == 0);
    enc_done(&again);
}

/* A log: one byte of removal and the u16 length of an entry's body, the body, and so on. Bodies are
 * applied, entries that nothing needs are removed, and what the rest adds up to stays right. */
static void fuzz_log(const uint8_t *data, size_t size)
{
    struct zk_state s;
    zk_state_init(&s);
    while (size >= 3) {
        struct zk_header h = {.revision = s.revision + 1};
        struct zk_loose loose;
        struct zk_change *changes;
        unsigned count;
        size_t length = MIN((size_t)(data[1] | data[2] << 8), size - 3);
        if (data[0] & 1 && zk_state_removable(&s, data[0] >> 1, UINT64_MAX, &loose, 1) == 1) {
            h.removed[0] = loose.revision;
            h.removed_count = 1;
        }
        if (zk_body_decode(data + 3, length, &changes, &count) < 0)
            break;
        use_body(changes, count, data + 3, length);
        h.body_length = (uint32_t)length;
        ASSERT(zk_state_apply(&s, &h, changes, count) == 0);
        zk_state_verify(&s);
        free(changes);
        data += 3 + length;
        size -= 3 + length;
    }
    zk_state_done(&s);
}

static void fuzz_entry(const uint8_t *data, size_t size)
{
    struct zk_header h;
    const uint8_t *body;
    uint64_t revision;
    (void)zk_head_decode(data, size, &revision);
    if (zk_entry_decode(data, size, &h, &body) < 0)
        return;
    ASSERT(h.removed_count <= ZK_REMOVED_MAX && h.part_count <= ZK_PART_COUNT_MAX);
    ASSERT(!body || h.body_length == 0 || (body >= data && h.body_length <= size));
}

/* What decodes encodes to the same bytes. */
static void fuzz_report(const uint8_t *data, size_t size)
{
    struct map_report r;
    struct enc again;
    if (report_decode(data, size, &r) < 0)
        return;
    enc_init(&again);
    report_encode(&r.uuid, r.session, &r.said, &again);
    ASSERT(again.length == size && memcmp(again.data, data, size) == 0);
    enc_done(&again);
    report_done(&r);
}

static void fuzz_wish(const uint8_t *data, size_t size)
{
    struct map_node_wish node;
    struct map_pool_wish pool;
    struct enc again;
    enc_init(&again);
    if (wish_decode_node(data, size, &node) == 0) {
        wish_encode_node(&node, &again);
        ASSERT(again.length == size && memcmp(again.data, data, size) == 0);
    } else if (wish_decode_pool(data, size, &pool) == 0) {
        wish_encode_pool(&pool, &again);
        ASSERT(again.length == size && memcmp(again.data, data, size) == 0);
    }
    enc_done(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    uint8_t which = data[0];
    data++, size--;
    struct map_node node;
    struct claim claim;
    switch (which % 7) {
    case 0:
        fuzz_map(data, size);
        break;
    case 1:
        if (member_decode(data, size, &node) == 0) {
            ASSERT(strnlen(node.name, sizeof(node.name)) < sizeof(node.name));
            ASSERT(strnlen(node.zone, sizeof(node.zone)) < sizeof(node.zone));
        }
        break;
    case 2:
        (void)claim_decode(data, size, &claim);
        break;
    case 3:
        fuzz_log(data, size);
        break;
    case 4:
        fuzz_entry(data, size);
        break;
    case 5:
        fuzz_report(data, size);
        break;
    case 6:
        fuzz_wish(data, size);
        break;
    }
    return 0;
}
