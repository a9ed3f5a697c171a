/* SPDX-License-Identifier: Apache-2.0 */
/* Frames of the admin protocol. */
#include "wire/admin.h"
#include <string.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"

static_assert(sizeof(ADMIN_MAGIC) - 1 == ADMIN_MAGIC_SIZE, "the magic fills its field");

static uint32_t frame_crc(uint32_t length, uint32_t kind, const void *payload)
{
    uint8_t head[8];
    put_le32(head, length);
    put_le32(head + 4, kind);
    uint32_t crc = crc32c(0, head, sizeof(head));
    return length == 0 ? crc : crc32c(crc, payload, length);
}

void admin_header_put(uint8_t out[ADMIN_HEADER_SIZE], enum admin_kind kind, const void *payload,
                      uint32_t length)
{
    put_le32(out, length);
    put_le32(out + 4, (uint32_t)kind);
    put_le32(out + 8, frame_crc(length, (uint32_t)kind, payload));
}

int admin_header_get(const uint8_t in[ADMIN_HEADER_SIZE], enum admin_side side,
                     struct admin_header *ret)
{
    uint32_t length = get_le32(in), kind = get_le32(in + 4);
    switch (kind) {
    case ADMIN_JSON:
        if (length > (side == ADMIN_FROM_CLIENT ? ADMIN_REQUEST_MAX : ADMIN_ANSWER_MAX))
            return -EFBIG;
        if (length == 0)
            return -EBADMSG;
        break;
    case ADMIN_DATA:
        if (length > ADMIN_DATA_MAX)
            return -EFBIG;
        break;
    case ADMIN_ZEROS:
        if (length != 8)
            return -EBADMSG;
        break;
    default:
        return -EBADMSG;
    }
    *ret = (struct admin_header){
        .length = length, .kind = (enum admin_kind)kind, .crc = get_le32(in + 8)};
    return 0;
}

int admin_payload_check(const struct admin_header *h, const void *payload)
{
    return frame_crc(h->length, (uint32_t)h->kind, payload) == h->crc ? 0 : -EBADMSG;
}

enum admin_magic admin_magic_parse(const uint8_t in[ADMIN_MAGIC_SIZE])
{
    if (memcmp(in, ADMIN_MAGIC, ADMIN_MAGIC_SIZE) == 0)
        return ADMIN_MAGIC_OURS;
    if (memcmp(in, ADMIN_MAGIC, ADMIN_MAGIC_SIZE - 1) == 0)
        return ADMIN_MAGIC_OTHER_VERSION;
    return ADMIN_MAGIC_FOREIGN;
}

bool admin_json_depth_ok(const char *text, size_t length)
{
    unsigned depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > ADMIN_JSON_DEPTH_MAX)
                return false;
        } else if ((c == ']' || c == '}') && depth > 0) {
            depth--;
        }
    }
    return true;
}

static const struct {
    int negative_errno;
    const char *name;
} errno_names[] = {
    {-EINVAL, "EINVAL"},
    {-ENOENT, "ENOENT"},
    {-EEXIST, "EEXIST"},
    {-ENOSPC, "ENOSPC"},
    {-ESTALE, "ESTALE"},
    {-EUCLEAN, "EUCLEAN"},
    {-EIO, "EIO"},
    {-ECONNRESET, "ECONNRESET"},
    {-ETIMEDOUT, "ETIMEDOUT"},
    {-EAGAIN, "EAGAIN"},
    {-EBUSY, "EBUSY"},
    {-EROFS, "EROFS"},
    {-ECANCELED, "ECANCELED"},
    {-EBADMSG, "EBADMSG"},
    {-EPROTO, "EPROTO"},
    {-ENAMETOOLONG, "ENAMETOOLONG"},
    {-EFBIG, "EFBIG"},
    {-ENOMEM, "ENOMEM"},
    {-EPERM, "EPERM"},
    {-EMEDIUMTYPE, "EMEDIUMTYPE"},
    {-ECONNREFUSED, "ECONNREFUSED"},
};

const char *admin_errno_name(int negative_errno)
{
    for (size_t i = 0; i < ARRAY_SIZE(errno_names); i++) {
        if (errno_names[i].negative_errno == negative_errno)
            return errno_names[i].name;
    }
    return "EIO";
}

int admin_errno_parse(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(errno_names); i++) {
        if (strcmp(errno_names[i].name, name) == 0)
            return errno_names[i].negative_errno;
    }
    return -EIO;
}
