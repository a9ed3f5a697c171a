/* SPDX-License-Identifier: Apache-2.0 */
/* Texts and bytes of identifiers. oid_group() is part of the on-disk and wire format: never change
 * it. */
#include "base/ids.h"
#include <stdio.h>
#include "base/bytes.h"
#include "base/err.h"

/* Text positions after which a dash stands: 8-4-4-4-12. */
static bool dash_before(size_t byte_index)
{
    return byte_index == 4 || byte_index == 6 || byte_index == 8 || byte_index == 10;
}

void uuid_format(const struct uuid *u, char out[UUID_TEXT_SIZE])
{
    static const char digits[] = "0123456789abcdef";
    char *p = out;
    for (size_t i = 0; i < sizeof(u->bytes); i++) {
        if (dash_before(i))
            *p++ = '-';
        *p++ = digits[u->bytes[i] >> 4];
        *p++ = digits[u->bytes[i] & 15];
    }
    *p = '\0';
    ASSERT(p == out + UUID_TEXT_SIZE - 1);
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int uuid_parse(const char *s, struct uuid *ret)
{
    struct uuid u;
    for (size_t i = 0; i < sizeof(u.bytes); i++) {
        if (dash_before(i) && *s++ != '-')
            return -EINVAL;
        int high = hex_value(s[0]);
        int low = high < 0 ? -1 : hex_value(s[1]);
        if (low < 0)
            return -EINVAL;
        u.bytes[i] = (uint8_t)(high << 4 | low);
        s += 2;
    }
    if (*s)
        return -EINVAL;
    *ret = u;
    return 0;
}

static int compare_u64(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

int oid_compare(const struct oid *a, const struct oid *b)
{
    int r = compare_u64(a->vid, b->vid);
    if (r == 0)
        r = compare_u64(a->level, b->level);
    if (r == 0)
        r = compare_u64(a->kind, b->kind);
    if (r == 0)
        r = compare_u64(a->index, b->index);
    return r;
}

void oid_put(uint8_t out[OID_BYTES], const struct oid *o)
{
    put_le64(out, o->vid);
    put_le32(out + 8, o->index);
    out[12] = o->kind;
    out[13] = o->level;
    put_le16(out + 14, o->group);
}

struct oid oid_get(const uint8_t in[OID_BYTES])
{
    return (struct oid){
        .vid = get_le64(in),
        .index = get_le32(in + 8),
        .kind = in[12],
        .level = in[13],
        .group = get_le16(in + 14),
    };
}

const char *oid_format(const struct oid *o, char out[OID_TEXT_SIZE])
{
    snprintf(out, OID_TEXT_SIZE, "%llx.%u.%u@%u%s", (unsigned long long)o->vid, o->level, o->index,
             o->group, o->kind == OBJECT_VMSTATE ? "v" : "");
    return out;
}

uint16_t oid_group(uint64_t family, unsigned level, uint32_t index, uint32_t group_base,
                   uint32_t group_count)
{
    ASSERT(group_count > 0 && (uint64_t)group_base + group_count <= 1U << 16);
    uint64_t h = hash_u64(hash_u64(family) + ((uint64_t)level << 32 | index));
    return (uint16_t)(group_base + h % group_count);
}
