/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target: everything the NBD decoder takes from a client. The first byte chooses the decoder;
 * the rest is its input. What a decoder accepts must lie inside the input.
 */
#include <string.h>
#include "tests/fuzz/fuzz.h"
#include "wire/nbd.h"

static void check_inside(struct nbd_string s, const uint8_t *data, size_t size)
{
    const uint8_t *p = (const uint8_t *)s.bytes;
    ASSERT(s.length <= NBD_STRING_SIZE_MAX);
    ASSERT(p >= data && p <= data + size && s.length <= (size_t)(data + size - p));
}

static void fuzz_meta_request(const uint8_t *data, size_t size)
{
    struct nbd_meta_request m;
    if (nbd_meta_request_get(data, size, &m) < 0)
        return;
    check_inside(m.name, data, size);
    while (m.query_count > 0)
        check_inside(nbd_meta_request_next(&m), data, size);
}

/* Fixed-size messages: what is accepted must encode to the same bytes. */
static void fuzz_fixed(const uint8_t *data, size_t size)
{
    struct nbd_option o;
    uint8_t back[NBD_REQUEST_SIZE];
    static_assert(NBD_REQUEST_SIZE >= NBD_OPTION_SIZE, "back holds either");
    if (size >= NBD_OPTION_SIZE && nbd_option_get(data, &o) == 0) {
        nbd_option_put(back, &o);
        ASSERT(memcmp(back, data, NBD_OPTION_SIZE) == 0);
    }
    struct nbd_request r;
    if (size >= NBD_REQUEST_SIZE && nbd_request_get(data, &r) == 0) {
        nbd_request_put(back, &r);
        ASSERT(memcmp(back, data, NBD_REQUEST_SIZE) == 0);
    }
    unsigned flags;
    if (size >= NBD_CLIENT_FLAGS_SIZE && nbd_client_flags_get(data, &flags) == 0)
        ASSERT((flags & ~3u) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const uint8_t *input = data + 1;
    struct nbd_info_request q;
    switch (data[0] % 3) {
    case 0:
        if (nbd_info_request_get(input, size - 1, &q) == 0)
            check_inside(q.name, input, size - 1);
        break;
    case 1:
        fuzz_meta_request(input, size - 1);
        break;
    default:
        fuzz_fixed(input, size - 1);
        break;
    }
    return 0;
}
