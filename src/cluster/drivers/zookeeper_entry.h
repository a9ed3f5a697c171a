/* SPDX-License-Identifier: Apache-2.0 */
/* The bytes that the zookeeper driver keeps in nodes (FORMAT.md). Private to drivers/zookeeper*.c,
 * tests and fuzzers. */
#pragma once
#include "base/codec.h"
#include "cluster/driver.h"

#define ZK_REMOVED_MAX    8u
#define ZK_BODY_BYTES_MAX (32u << 20)
/* A body that is longer lies in parts of that size: the server refuses requests of 1 MiB. */
#define ZK_PART_BYTES     (512u << 10)
#define ZK_PART_COUNT_MAX (ZK_BODY_BYTES_MAX / ZK_PART_BYTES)

/* One commit, but for its changes. */
struct zk_header {
    uint64_t revision;
    uint64_t session; /* of the writer; 0: it has none yet */
    uint64_t nonce;   /* random: by it a writer knows its own commit again */
    unsigned removed_count;
    uint64_t removed[ZK_REMOVED_MAX]; /* earlier commits that went with this one */
    unsigned part_count;              /* 0: the body is inline */
    uint32_t body_length, body_crc;
};

struct zk_change {
    char key[CS_KEY_SIZE];
    const uint8_t *value; /* borrowed from the body; NULL: deleted */
    size_t length;
    uint64_t owner; /* session of an ephemeral key, else 0 */
};

/* The head: number of the last commit. 0, -EBADMSG, -EPROTO. */
void zk_head_encode(struct enc *e, uint64_t revision);
int zk_head_decode(const void *p, size_t length, uint64_t *ret_revision);

/* An entry of the log; `body` is left out when there are parts. Fills in body_length and body_crc.
 */
void zk_entry_encode(struct enc *e, struct zk_header *h, const struct enc *body);
/* *ret_body points into p when the body is inline, else it is NULL. */
int zk_entry_decode(const void *p, size_t length, struct zk_header *ret, const uint8_t **ret_body);
/* Whether these are the bytes that the header speaks of: 0 or -EBADMSG. */
int zk_body_check(const struct zk_header *h, const void *p, size_t length);

/* A body is a u32 count, then changes: reserve the count with zk_body_begin(). */
void zk_body_begin(struct enc *e, uint32_t count);
void zk_body_put(struct enc *e, const char *key, uint64_t owner, const void *value, size_t length);
void zk_body_delete(struct enc *e, const char *key);
/* Changes of a checked body: *ret is owned (free()); values point into p. -EBADMSG, -ENOMEM. */
int zk_body_decode(const void *p, size_t length, struct zk_change **ret, unsigned *ret_count);
