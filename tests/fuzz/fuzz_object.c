/* SPDX-License-Identifier: Apache-2.0 */
/* Ledgers and index blocks. What decodes must encode and decode to the same again. */
#include <stdlib.h>
#include <string.h>
#include "base/check.h"
#include "object/index_block.h"
#include "object/ledger.h"
#include "tests/fuzz/fuzz.h"

static void fuzz_ledger(const uint8_t *data, size_t size)
{
    struct ledger l, again;
    struct enc first, second;
    if (ledger_decode(data, size, &l) < 0)
        return;
    enc_init(&first);
    enc_init(&second);
    ledger_encode(&l, &first);
    ASSERT(ledger_decode(first.data, first.length, &again) == 0);
    ledger_encode(&again, &second);
    ASSERT(first.length == second.length);
    ASSERT(first.length == 0 || memcmp(first.data, second.data, first.length) == 0);
    for (unsigned i = 0; i < l.count_count; i++)
        (void)ledger_get(&l, l.counts[i].generation);
    ledger_done(&l);
    ledger_done(&again);
    enc_done(&first);
    enc_done(&second);
}

static void fuzz_index(const uint8_t *data, size_t size)
{
    struct index_header h;
    struct index_entry e;
    struct oid oid = {.vid = 1, .level = 1, .kind = OBJECT_VOLUME};
    if (size < INDEX_HEADER_BYTES || index_header_decode(data, size, &h) < 0)
        return;
    ASSERT(h.level >= 1 && h.owed_count <= INDEX_OWED_COUNT_MAX && h.entries <= INDEX_ENTRIES_MAX);
    e = index_entry_get(data);
    oid.level = h.level;
    for (uint32_t i = 0; i < h.entries; i += 1 + h.entries / 7) {
        struct oid child;
        (void)index_child(&h, &oid, i, &e, &child);
    }
    if (size < index_tail_bytes(h.owed_count))
        return;
    struct index_owed *owed = calloc(h.owed_count + 1, sizeof(*owed));
    ASSERT(owed != NULL);
    if (index_owed_decode(data, size, &h, owed) == 0)
        for (uint32_t i = 0; i < h.owed_count; i++)
            (void)index_owed_target(&h, &oid, &owed[i]);
    free(owed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    if (data[0] & 1)
        fuzz_ledger(data + 1, size - 1);
    else
        fuzz_index(data + 1, size - 1);
    return 0;
}
