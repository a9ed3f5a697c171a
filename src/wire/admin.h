/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The admin protocol that dog speaks with a sheep: bytes only (ADMIN.md has the messages).
 *
 * A client sends ADMIN_MAGIC, the server answers with its own; then frames in both directions. A
 * frame is a 12-byte header {u32 length, u32 kind, u32 crc}, little-endian, and `length` bytes of
 * payload; the crc is CRC32C over length, kind and payload. The last character of the magic is the
 * version.
 *
 * A1 A length is bounded before anything is allocated for it.
 * A2 JSON from outside nests at most ADMIN_JSON_DEPTH_MAX deep: parsers recurse, and run on small
 *    stacks.
 */
#pragma once
#include "base/check.h"

#define ADMIN_MAGIC          "KELPADM1"
#define ADMIN_MAGIC_SIZE     8
#define ADMIN_HEADER_SIZE    12
#define ADMIN_REQUEST_MAX    (64u << 10) /* JSON from a client */
#define ADMIN_ANSWER_MAX     (4u << 20)  /* JSON from a server */
#define ADMIN_DATA_MAX       (1u << 20)
#define ADMIN_JSON_DEPTH_MAX 16

enum admin_kind {
    ADMIN_JSON = 1,
    ADMIN_DATA = 2,  /* bytes of a volume; none: the end of the data */
    ADMIN_ZEROS = 3, /* payload is a u64: so many zero bytes */
};

struct admin_header {
    uint32_t length; /* of the payload, bytes */
    enum admin_kind kind;
    uint32_t crc;
};

enum admin_side { ADMIN_FROM_CLIENT, ADMIN_FROM_SERVER };

/* Writes the header of a frame with that payload. */
void admin_header_put(uint8_t out[ADMIN_HEADER_SIZE], enum admin_kind kind, const void *payload,
                      uint32_t length);
/* Reads a header sent by `side`. 0; -EBADMSG: unknown kind or a length that does not fit it;
 * -EFBIG: longer than that side may send (A1). *ret is set only on success. */
int admin_header_get(const uint8_t in[ADMIN_HEADER_SIZE], enum admin_side side,
                     struct admin_header *ret);
/* 0, or -EBADMSG when the payload is not what the header's crc covers. */
int admin_payload_check(const struct admin_header *h, const void *payload);

enum admin_magic { ADMIN_MAGIC_OURS, ADMIN_MAGIC_OTHER_VERSION, ADMIN_MAGIC_FOREIGN };
enum admin_magic admin_magic_parse(const uint8_t in[ADMIN_MAGIC_SIZE]);

/* A2: true when brackets nest at most ADMIN_JSON_DEPTH_MAX deep outside of strings. */
bool admin_json_depth_ok(const char *text, size_t length);

/* Errors travel by name ("ENOENT"), so that the numbers of a platform do not matter. */
/* "EIO" for one that is not in the closed list. */
const char *admin_errno_name(int negative_errno);
/* Negative errno; -EIO for an unknown name. */
int admin_errno_parse(const char *name);
