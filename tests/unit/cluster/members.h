/* SPDX-License-Identifier: Apache-2.0 */
/* Members of made-up clusters for the tests of the map's pure functions. */
#pragma once
#include <stdio.h>
#include <string.h>
#include "cluster/map.h"

static inline struct map_member make_member(unsigned i, unsigned zone, uint32_t weight,
                                            uint64_t session)
{
    struct map_member m = {.node = {.weight = weight, .session = {session}}};
    snprintf(m.node.name, sizeof(m.node.name), "n%03u", i);
    snprintf(m.node.zone, sizeof(m.node.zone), "z%u", zone);
    snprintf(m.node.address, sizeof(m.node.address), "tcp:127.0.0.1:%u", 7000 + i);
    snprintf(m.node.admin, sizeof(m.node.admin), "tcp:127.0.0.1:%u", 8000 + i);
    memset(m.node.uuid.bytes, (int)(i % 251) + 1, sizeof(m.node.uuid.bytes));
    m.node.uuid.bytes[3] = (uint8_t)(i >> 8);
    m.node.uuid.bytes[7] = (uint8_t)i;
    return m;
}

static inline struct map_format make_format(uint8_t copies, uint32_t group_count)
{
    struct map_format f = {.copies = copies, .group_count = group_count, .cluster_name = "test"};
    memset(f.cluster.bytes, 0xc1, sizeof(f.cluster.bytes));
    return f;
}
