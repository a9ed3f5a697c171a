/* SPDX-License-Identifier: Apache-2.0 */
/* What admin clients and servers send: frames, and the depth of their JSON. */
#include <string.h>
#include "base/check.h"
#include "tests/fuzz/fuzz.h"
#include "wire/admin.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct admin_header h;
    uint8_t again[ADMIN_HEADER_SIZE];
    (void)admin_json_depth_ok((const char *)data, size);
    if (size >= ADMIN_MAGIC_SIZE)
        (void)admin_magic_parse(data);
    if (size < 1 + ADMIN_HEADER_SIZE)
        return 0;
    enum admin_side side = data[0] & 1 ? ADMIN_FROM_SERVER : ADMIN_FROM_CLIENT;
    const uint8_t *payload = data + 1 + ADMIN_HEADER_SIZE;
    size_t left = size - 1 - ADMIN_HEADER_SIZE;
    if (admin_header_get(data + 1, side, &h) < 0)
        return 0;
    ASSERT(h.length <= MAX(ADMIN_ANSWER_MAX, ADMIN_DATA_MAX));
    if (h.length <= left && admin_payload_check(&h, payload) == 0) {
        admin_header_put(again, h.kind, payload, h.length);
        ASSERT(memcmp(again, data + 1, ADMIN_HEADER_SIZE) == 0);
    }
    return 0;
}
