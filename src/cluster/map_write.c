/* SPDX-License-Identifier: Apache-2.0 */
/* A map as the operations of the transaction that writes it: the head and the shards that changed.
 */
#include "cluster/map_write.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"

static bool shard_differs(const struct map *now, const struct map *next, uint32_t shard)
{
    if (!now || now->group_count != next->group_count)
        return true;
    uint32_t first = shard * MAP_SHARD_GROUPS;
    uint32_t count = MIN(next->group_count - first, MAP_SHARD_GROUPS);
    return memcmp(&now->groups[first], &next->groups[first], count * sizeof(next->groups[0])) != 0;
}

int map_write_new(const struct map *now, const struct map *next, struct map_write **ret)
{
    struct map_write *w = calloc(1, sizeof(*w));
    if (!w)
        return -ENOMEM;
    map_encode_head(next, &w->head);
    int r = w->head.error;
    w->ops[w->count++] = (struct cs_op){
        .kind = CS_PUT, .key = "map/head", .value = w->head.data, .length = w->head.length};
    for (uint32_t i = 0; i < map_shard_count(next); i++) {
        if (!shard_differs(now, next, i))
            continue;
        struct enc *e = &w->shards[i];
        map_encode_shard(next, i, e);
        snprintf(w->keys[i], sizeof(w->keys[i]), "map/shard/%" PRIu32, i);
        w->ops[w->count++] = (struct cs_op){.kind = CS_PUT,
                                            .key = w->keys[i],
                                            .value = e->data,
                                            .length = e->length,
                                            .revision = CS_REVISION_ANY};
        if (r == 0)
            r = e->error;
    }
    if (r < 0) {
        map_write_free(w);
        return r;
    }
    *ret = w;
    return 0;
}

void map_write_free(struct map_write *w)
{
    if (!w)
        return;
    enc_done(&w->head);
    for (unsigned i = 0; i < SHARD_COUNT_MAX; i++)
        enc_done(&w->shards[i]);
    free(w);
}
