/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks and records of a store: superblock, log block, slots, log records. */
#include <string.h>
#include "base/check.h"
#include "store/layout.h"
#include "store/record.h"
#include "tests/fuzz/fuzz.h"

static void fuzz_records(const uint8_t *data, size_t size)
{
    struct dec d;
    struct record record;
    dec_init(&d, data, size);
    while (dec_left(&d) > 0 && record_take(&d, &record) == 0) {
        if (record.type != RECORD_CHANGE)
            continue;
        uint64_t blocks = 0;
        for (unsigned i = 0; i < record.run_count; i++)
            blocks += record_run_get(&record, i).count;
        ASSERT(blocks == record.block_count);
        for (unsigned i = 0; i < record.punch_count; i++)
            (void)record_punch_get(&record, i);
    }
}

/* Blocks are decoded at their full size: what the input does not give is zeros. */
static void fuzz_blocks(uint8_t which, const uint8_t *data, size_t size)
{
    uint8_t block[STORE_BLOCK] = {0};
    struct super super;
    struct log_header header;
    struct slot slot;
    struct slot_leaf leaf;
    memcpy(block, data, MIN(size, sizeof(block)));
    switch (which % 4) {
    case 0:
        if (super_decode(block, &super) == 0)
            ASSERT(super.block_count > 0 && super.log_count > 0);
        break;
    case 1:
        if (log_block_decode(0, block, &header) == 0)
            ASSERT(header.length <= LOG_PAYLOAD);
        break;
    case 2:
        if (slot_decode(block, &slot) == 0)
            ASSERT(slot.meta_length <= 4096 &&
                   (slot.leaf_count <= SLOT_LEAVES || (slot.flags & SLOT_INDIRECT)));
        break;
    case 3:
        (void)slot_leaf_decode(block, &leaf);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    if (data[0] & 1)
        fuzz_records(data + 1, size - 1);
    else
        fuzz_blocks(data[0] >> 1, data + 1, size - 1);
    return 0;
}
