/* SPDX-License-Identifier: Apache-2.0 */
/* Identifiers: one-field structs, so that the compiler refuses a swap; the object id. */
#pragma once
#include "base/check.h"
#include "base/hash.h"

/* One image in time (a working volume or a snapshot). Never reused; 0 is none. */
struct vid {
    uint64_t value;
};

/* Version of the cluster map; of a group: the map version at which its sets or a member's session
 * last changed. 0 is none. */
struct epoch {
    uint64_t value;
};

/* One start of one node; never reused; 0 is none. */
struct session {
    uint64_t value;
};

/* A volume's change-of-owner counter, 24 bits (W3). */
struct term {
    uint64_t value;
};

/* Version of an object's content: term << 40 | sequence (W3). 0 is "no such object". */
struct version {
    uint64_t value;
};

#define VERSION_SEQUENCE_BITS 40
static inline struct version version_make(struct term t, uint64_t sequence)
{
    ASSERT(t.value < 1ULL << 24 && sequence < 1ULL << VERSION_SEQUENCE_BITS);
    return (struct version){t.value << VERSION_SEQUENCE_BITS | sequence};
}
static inline struct term version_term(struct version v)
{
    return (struct term){v.value >> VERSION_SEQUENCE_BITS};
}

struct uuid {
    uint8_t bytes[16];
};
#define UUID_TEXT_SIZE 37 /* with the terminator */
void uuid_format(const struct uuid *u, char out[UUID_TEXT_SIZE]);
/* 0 or -EINVAL. */
int uuid_parse(const char *s, struct uuid *ret);
static inline bool uuid_equal(const struct uuid *a, const struct uuid *b)
{
    return __builtin_memcmp(a->bytes, b->bytes, 16) == 0;
}
static inline bool uuid_is_null(const struct uuid *a)
{
    static const struct uuid null;
    return uuid_equal(a, &null);
}

enum object_kind {
    OBJECT_VOLUME = 0,  /* level 0: data; level >= 1: index block */
    OBJECT_VMSTATE = 1, /* saved machine state of old QEMUs (front/sheepdog) */
};

/* Names one replicated object, cluster-wide. 16 bytes on disk and wire: vid u64, index u32, kind
 * u8, level u8, group u16, in this order, little-endian. */
struct oid {
    uint64_t vid;   /* the image that wrote it */
    uint32_t index; /* position within its level */
    uint8_t kind;   /* enum object_kind */
    uint8_t level;  /* 0 data, 1 leaf index block, 2 root */
    uint16_t group; /* a function of (family, level, index); see oid_group() */
};
#define OID_BYTES 16
static_assert(sizeof(struct oid) == OID_BYTES, "no padding: compared and hashed as a whole");

static inline bool oid_equal(const struct oid *a, const struct oid *b)
{
    return __builtin_memcmp(a, b, sizeof(*a)) == 0;
}
static inline uint64_t oid_hash(const struct oid *o)
{
    return hash_u64(o->vid * 0x9e3779b97f4a7c15ULL +
                    ((uint64_t)o->index << 16 | o->level << 8 | o->kind));
}
/* The order of listings: vid, level, kind, index. Negative, 0, positive. */
int oid_compare(const struct oid *a, const struct oid *b);
void oid_put(uint8_t out[OID_BYTES], const struct oid *o);
struct oid oid_get(const uint8_t in[OID_BYTES]);
/* "vid.level.index@group", for logs. */
#define OID_TEXT_SIZE 64
const char *oid_format(const struct oid *o, char out[OID_TEXT_SIZE]);
/* Group of an object: group_base + hash(family, level, index) % group_count. A clone's and a
 * snapshot's objects have the family of what they came from, so they lie with it. */
uint16_t oid_group(uint64_t family, unsigned level, uint32_t index, uint32_t group_base,
                   uint32_t group_count);
