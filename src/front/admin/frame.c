/* SPDX-License-Identifier: Apache-2.0 */
/* Frames of the admin protocol on a connection. */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "front/admin/admin_internal.h"

fiber_fn int admin_send(struct conn *c, enum admin_kind kind, const void *payload, uint32_t length)
{
    uint8_t header[ADMIN_HEADER_SIZE];
    admin_header_put(header, kind, payload, length);
    struct iovec iov[2] = {{.iov_base = header, .iov_len = sizeof(header)},
                           {.iov_base = (void *)payload, .iov_len = length}};
    return conn_write(c, iov, length > 0 ? 2 : 1);
}

fiber_fn int admin_send_json(struct conn *c, json_t *json)
{
    char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    if (!text)
        return -ENOMEM;
    size_t length = strlen(text);
    int r = length > ADMIN_ANSWER_MAX ? -EFBIG : admin_send(c, ADMIN_JSON, text, (uint32_t)length);
    free(text);
    return r;
}

fiber_fn int admin_receive(struct conn *c, void *buffer, size_t size, struct admin_header *ret)
{
    uint8_t bytes[ADMIN_HEADER_SIZE];
    struct admin_header h;
    int r = conn_read(c, bytes, sizeof(bytes));
    if (r == 0)
        r = admin_header_get(bytes, ADMIN_FROM_CLIENT, &h);
    if (r == 0 && h.length > size)
        r = -EFBIG;
    if (r == 0 && h.length > 0) {
        r = conn_read(c, buffer, h.length);
        if (r == -ENOTCONN)
            r = -ECONNRESET; /* the end came inside a frame */
    }
    if (r == 0)
        r = admin_payload_check(&h, buffer);
    if (r == 0)
        *ret = h;
    return r;
}
