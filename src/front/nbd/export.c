/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exports: volumes and snapshots under their NBD names, "NAME" and "NAME@TAG".
 *
 * X1 Names of volumes and tags hold no '@' (volume.h), so the first one separates.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "front/nbd/nbd_internal.h"

/* Copies a part of an export name; -ENOENT when it is too long for a name or holds a NUL. */
static int copy_part(const char *p, size_t length, char out[VOLUME_NAME_SIZE])
{
    if (length >= VOLUME_NAME_SIZE || memchr(p, 0, length))
        return -ENOENT;
    memcpy(out, p, length);
    out[length] = '\0';
    return 0;
}

int export_name_parse(struct nbd_string text, struct export_name *ret)
{
    const char *at = memchr(text.bytes, '@', text.length);
    size_t name_length = at ? (size_t)(at - text.bytes) : text.length;
    struct export_name n = {0};
    int r = copy_part(text.bytes, name_length, n.name);
    if (r == 0 && at)
        r = copy_part(at + 1, text.length - name_length - 1, n.tag);
    if (r < 0)
        return r;
    if (n.name[0] == '\0' || (at && n.tag[0] == '\0') || strchr(n.tag, '@'))
        return -ENOENT;
    *ret = n;
    return 0;
}

void export_name_format(const struct export_name *n, char out[NBD_EXPORT_NAME_SIZE])
{
    int length = snprintf(out, NBD_EXPORT_NAME_SIZE, n->tag[0] ? "%s@%s" : "%s", n->name, n->tag);
    ASSERT(length > 0 && length < NBD_EXPORT_NAME_SIZE);
}

void export_describe(const struct volume_info *i, char out[EXPORT_DESCRIPTION_SIZE])
{
    char kind[32] = "volume";
    if (!i->working)
        snprintf(kind, sizeof(kind), "snapshot %u", i->snapshot_number);
    char origin[NBD_EXPORT_NAME_SIZE + 16] = "";
    if (i->working && i->parent_name[0] && strcmp(i->parent_name, i->name) != 0)
        snprintf(origin, sizeof(origin), " cloned from %s@%s", i->parent_name, i->parent_tag);
    snprintf(out, EXPORT_DESCRIPTION_SIZE, "%s%s, %u %s", kind, origin, i->copies,
             i->copies == 1 ? "copy" : "copies");
}

fiber_fn int export_find(struct volumes *vs, const struct export_name *n, struct export_info *ret)
{
    struct volume_info *infos = NULL;
    size_t count = 0;
    int r = volume_list(vs, n->name, &infos, &count);
    if (r < 0)
        return r;
    r = -ENOENT;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(infos[i].name, n->name) != 0 || strcmp(infos[i].tag, n->tag) != 0)
            continue;
        *ret = (struct export_info){.size = infos[i].size, .read_only = !infos[i].working};
        export_describe(&infos[i], ret->description);
        r = 0;
        break;
    }
    free(infos);
    return r;
}

unsigned export_flags(enum export_access access, const struct connection *c)
{
    /* What was answered is durable and visible on every connection: CAN_MULTI_CONN. */
    unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
                     NBD_FLAG_SEND_CACHE | NBD_FLAG_CAN_MULTI_CONN;
    if (access == EXPORT_READ_ONLY)
        flags |= NBD_FLAG_READ_ONLY;
    else
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    if (c->structured_replies)
        flags |= NBD_FLAG_SEND_DF;
    return flags;
}
