/* SPDX-License-Identifier: Apache-2.0 */
/* What nodes send each other: the header and every body. */
#include <string.h>
#include "base/check.h"
#include "tests/fuzz/fuzz.h"
#include "wire/peer.h"

static void fuzz_header(const uint8_t *data, size_t size)
{
    struct peer_header h;
    if (size < PEER_HEADER_BYTES || peer_header_get(data, &h) < 0)
        return;
    ASSERT(h.body_length <= PEER_BODY_MAX && h.payload_length <= PEER_PAYLOAD_MAX);
    if (size - PEER_HEADER_BYTES >= h.body_length)
        (void)peer_header_check(data, data + PEER_HEADER_BYTES, h.body_length);
}

static void fuzz_change(const uint8_t *data, size_t size)
{
    struct peer_change c;
    uint8_t again[PEER_CHANGE_BYTES_MAX];
    if (peer_change_get(data, size, &c) < 0)
        return;
    ASSERT(c.extent_count <= PEER_EXTENT_COUNT_MAX);
    ASSERT(peer_change_put(again, &c) == size);
}

/* Elements that come in lists: decoded one after the other until the input ends. */
static void fuzz_elements(const uint8_t *data, size_t size)
{
    struct dec d;
    struct peer_run run;
    struct peer_entry entry;
    struct peer_meta meta;
    struct peer_refs_head head;
    struct peer_ref ref;
    dec_init(&d, data + 1, size - 1);
    while (d.error == 0 && dec_left(&d) > 0) {
        switch (data[0] % 5) {
        case 0:
            peer_run_decode(&d, &run);
            break;
        case 1:
            peer_entry_decode(&d, &entry);
            ASSERT(d.error != 0 || entry.meta_length <= PEER_META_BYTES_MAX);
            break;
        case 2:
            peer_meta_decode(&d, &meta);
            ASSERT(d.error != 0 || meta.meta_length <= PEER_META_BYTES_MAX);
            break;
        case 3:
            peer_refs_head_decode(&d, &head);
            ASSERT(d.error != 0 || (head.count >= 1 && head.count <= PEER_REF_COUNT_MAX));
            break;
        case 4:
            peer_ref_decode(&d, &ref);
            break;
        }
    }
}

static void fuzz_forward_reply(const uint8_t *data, size_t size)
{
    struct dec d;
    struct peer_forward_reply reply;
    dec_init(&d, data, size);
    peer_forward_reply_decode(&d, &reply);
    for (uint32_t i = 0; i < reply.run_count && !d.error; i++) {
        struct peer_forward_run run;
        peer_forward_run_decode(&d, &run);
        ASSERT(d.error != 0 || run.length > 0);
    }
    (void)dec_finish(&d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    uint8_t which = data[0];
    data++, size--;
    struct peer_hello hello;
    struct peer_hello_reply reply;
    struct peer_read read;
    struct peer_list list;
    struct peer_settle settle;
    struct peer_info info;
    struct peer_compare compare;
    struct peer_fetch fetch;
    struct peer_fetched fetched;
    struct peer_forward forward;
    switch (which % 14) {
    case 0:
        fuzz_header(data, size);
        break;
    case 1:
        (void)peer_hello_decode(data, size, &hello);
        break;
    case 2:
        if (peer_hello_reply_decode(data, size, &reply) == 0)
            ASSERT(strnlen(reply.text, sizeof(reply.text)) < sizeof(reply.text));
        break;
    case 3:
        fuzz_change(data, size);
        break;
    case 4:
        (void)peer_read_get(data, size, &read);
        break;
    case 5:
        (void)peer_list_decode(data, size, &list);
        break;
    case 6:
        (void)peer_settle_decode(data, size, &settle);
        break;
    case 7:
        (void)peer_info_decode(data, size, &info);
        break;
    case 8:
        fuzz_elements(data, size);
        break;
    case 9:
        (void)peer_compare_decode(data, size, &compare);
        break;
    case 10:
        if (peer_fetch_get(data, size, &fetch) == 0)
            ASSERT(fetch.limit <= PEER_PAYLOAD_MAX);
        break;
    case 11:
        if (peer_fetched_decode(data, size, &fetched) == 0)
            ASSERT(fetched.extent_count <= PEER_EXTENT_COUNT_MAX);
        break;
    case 12:
        if (peer_forward_decode(data, size, &forward) == 0) {
            ASSERT(forward.handle > 0);
            ASSERT(strnlen(forward.name, sizeof(forward.name)) < sizeof(forward.name));
            ASSERT(forward.kind != PEER_FORWARD_WRITE ||
                   (forward.length > 0 && forward.length <= PEER_FORWARD_DATA_MAX &&
                    forward.floor <= forward.id));
        }
        break;
    case 13:
        fuzz_forward_reply(data, size);
        break;
    }
    return 0;
}
