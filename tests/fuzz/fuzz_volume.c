/* SPDX-License-Identifier: Apache-2.0 */
/* Records of volumes and of trash. What decodes must encode and decode to the same again. */
#include <string.h>
#include "base/check.h"
#include "tests/fuzz/fuzz.h"
#include "volume/record.h"

static void fuzz_record(const uint8_t *data, size_t size)
{
    struct record r, again;
    struct enc first, second;
    if (record_decode(data, size, &r) < 0)
        return;
    enc_init(&first);
    enc_init(&second);
    record_encode(&r, &first);
    ASSERT(record_decode(first.data, first.length, &again) == 0);
    record_encode(&again, &second);
    ASSERT(first.length == second.length && memcmp(first.data, second.data, first.length) == 0);
    for (unsigned i = 0; i < r.snapshot_count; i++)
        ASSERT(record_snapshot_by_tag(&r, r.snapshots[i].tag) != NULL);
    record_done(&r);
    record_done(&again);
    enc_done(&first);
    enc_done(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct trash trash;
    if (size < 1)
        return 0;
    if (data[0] & 1)
        fuzz_record(data + 1, size - 1);
    else
        (void)trash_decode(data + 1, size - 1, &trash);
    return 0;
}
