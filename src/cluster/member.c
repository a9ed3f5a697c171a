/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What nodes say about themselves in the cluster store.
 *
 * MB1 Values end in their CRC32C; what does not decode is as good as absent.
 */
#include "cluster/member.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"
#include "base/log.h"

#define LOG_MODULE "cluster"

#define MEMBER_VERSION 1
#define CLAIM_VERSION  2
#define CLAIM_INEXACT  1u

void member_key(char out[CS_KEY_SIZE], const char *kind, const struct uuid *u)
{
    char text[UUID_TEXT_SIZE];
    uuid_format(u, text);
    snprintf(out, CS_KEY_SIZE, "%s/%s", kind, text);
}

int member_key_parse(const char *key, struct uuid *ret)
{
    const char *slash = strchr(key, '/');
    return slash && uuid_parse(slash + 1, ret) == 0 ? 0 : -EBADMSG;
}

static void enc_checksum(struct enc *e, size_t start)
{
    if (!e->error)
        enc_u32(e, crc32c(0, e->data + start, e->length - start));
}

/* The value's version, 1 to version_max, or an error. */
static int dec_checked(struct dec *d, const void *p, size_t length, int version_max)
{
    if (length < 6 || crc32c(0, p, length - 4) != get_le32((const uint8_t *)p + length - 4))
        return -EBADMSG;
    dec_init(d, p, length - 4);
    int version = dec_u16(d);
    return version >= 1 && version <= version_max ? version : -EPROTO;
}

void member_encode(const struct map_node *n, struct enc *e)
{
    size_t start = e->length;
    enc_u16(e, MEMBER_VERSION);
    enc_bytes(e, n->uuid.bytes, sizeof(n->uuid.bytes));
    enc_u32(e, n->weight);
    enc_str(e, n->name);
    enc_str(e, n->zone);
    enc_str(e, n->address);
    enc_str(e, n->admin);
    enc_str(e, n->nbd);
    enc_checksum(e, start);
}

static void dec_uuid(struct dec *d, struct uuid *ret)
{
    const uint8_t *p = dec_bytes(d, sizeof(ret->bytes));
    if (p)
        memcpy(ret->bytes, p, sizeof(ret->bytes));
}

int member_decode(const void *p, size_t length, struct map_node *ret)
{
    struct dec d;
    struct map_node n = {0};
    int r = dec_checked(&d, p, length, MEMBER_VERSION);
    if (r < 0)
        return r;
    dec_uuid(&d, &n.uuid);
    n.weight = dec_u32(&d);
    dec_str(&d, n.name, sizeof(n.name));
    dec_str(&d, n.zone, sizeof(n.zone));
    dec_str(&d, n.address, sizeof(n.address));
    dec_str(&d, n.admin, sizeof(n.admin));
    dec_str(&d, n.nbd, sizeof(n.nbd));
    r = dec_finish(&d);
    if (r == 0)
        *ret = n;
    return r;
}

void claim_encode(const struct claim *claim, struct enc *e)
{
    size_t start = e->length;
    enc_u16(e, CLAIM_VERSION);
    enc_bytes(e, claim->uuid.bytes, sizeof(claim->uuid.bytes));
    enc_u64(e, claim->session.value);
    enc_u64(e, claim->version);
    enc_u8(e, claim->inexact ? CLAIM_INEXACT : 0);
    enc_checksum(e, start);
}

int claim_decode(const void *p, size_t length, struct claim *ret)
{
    struct dec d;
    struct claim claim = {0};
    int r = dec_checked(&d, p, length, CLAIM_VERSION);
    if (r < 0)
        return r;
    dec_uuid(&d, &claim.uuid);
    claim.session.value = dec_u64(&d);
    claim.version = dec_u64(&d);
    uint8_t flags = r >= 2 ? dec_u8(&d) : 0;
    claim.inexact = flags & CLAIM_INEXACT;
    r = flags & ~CLAIM_INEXACT ? -EBADMSG : dec_finish(&d);
    if (r == 0)
        *ret = claim;
    return r;
}

struct listing {
    struct map_member *members;
    unsigned count, capacity;
};

static int list_node(void *arg, const char *key, const void *value, size_t length,
                     uint64_t revision)
{
    struct listing *l = arg;
    struct uuid uuid;
    struct map_member member = {.revision = revision};
    int r = member_key_parse(key, &uuid);
    if (r == 0)
        r = member_decode(value, length, &member.node);
    if (r < 0 || !uuid_equal(&uuid, &member.node.uuid)) {
        log_warn("the cluster store's key %s cannot be understood (%s), it is left out", key,
                 err_text(r < 0 ? r : -EBADMSG));
        return 0;
    }
    if (l->count == l->capacity) {
        unsigned capacity = l->capacity ? l->capacity * 2 : 16;
        struct map_member *grown = realloc(l->members, capacity * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        l->members = grown;
        l->capacity = capacity;
    }
    l->members[l->count++] = member;
    return 0;
}

static int list_session(void *arg, const char *key, const void *value, size_t length,
                        uint64_t revision)
{
    struct listing *l = arg;
    struct claim claim;
    if (claim_decode(value, length, &claim) < 0) {
        log_warn("the cluster store's key %s cannot be understood, it is left out", key);
        return 0;
    }
    for (unsigned i = 0; i < l->count; i++) {
        if (!uuid_equal(&l->members[i].node.uuid, &claim.uuid))
            continue;
        l->members[i].node.session = claim.session;
        l->members[i].inexact = claim.inexact;
    }
    return 0;
}

fiber_fn int member_list(struct cs *cs, struct map_member **ret, unsigned *ret_count)
{
    struct listing l = {0};
    int r = cs_list(cs, "node/", list_node, &l);
    if (r == 0)
        r = cs_list(cs, "session/", list_session, &l);
    if (r < 0) {
        free(l.members);
        return r;
    }
    *ret = l.members;
    *ret_count = l.count;
    return 0;
}

bool member_name_valid(const char *s)
{
    size_t length = strlen(s);
    for (size_t i = 0; i < length; i++) {
        bool letter = (s[i] >= 'a' && s[i] <= 'z') || (s[i] >= 'A' && s[i] <= 'Z');
        bool digit = s[i] >= '0' && s[i] <= '9';
        if (!letter && !digit && !strchr("._-", s[i]))
            return false;
    }
    return length > 0 && length < MAP_NAME_SIZE;
}

bool member_address_valid(const char *s)
{
    size_t length = strlen(s);
    for (size_t i = 0; i < length; i++) {
        if (s[i] <= ' ' || s[i] > '~')
            return false;
    }
    return length < MAP_ADDRESS_SIZE;
}
