/* SPDX-License-Identifier: Apache-2.0 */
/* Values of the cluster store: the map's head and shards, registrations, claims. What decodes must
 * encode and decode to the same again, and the lookups must hold on it. */
#include <string.h>
#include "base/check.h"
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    uint8_t which = data[0];
    data++, size--;
    struct map_node node;
    struct claim claim;
    switch (which % 3) {
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
    }
    return 0;
}
