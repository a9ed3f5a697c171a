/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes of the NBD protocol (fixed newstyle, structured replies), server side, and the few client
 * messages that tests send. Big-endian throughout. Only this pair knows the layout of a message.
 *
 * N1 Decoders read nothing beyond the length they were given, and yield only what was checked.
 * N2 Strings that are decoded point into the input and have no terminator.
 */
#pragma once
#include "base/codec.h"

/* --- limits of ours and of the protocol --- */
#define NBD_STRING_SIZE_MAX 4096u /* of any name or text, by the protocol */
#define NBD_PAYLOAD_SIZE_MAX                                                                       \
    (32u << 20) /* of one READ or WRITE; announced in NBD_INFO_BLOCK_SIZE */
#define NBD_BLOCK_SIZE_MIN  1u
#define NBD_BLOCK_SIZE_BEST 4096u

/* --- handshake --- */
enum nbd_client_flag { NBD_CLIENT_FIXED_NEWSTYLE = 1, NBD_CLIENT_NO_ZEROES = 2 };

enum nbd_option_code {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
    NBD_OPT_EXTENDED_HEADERS = 11,
};

#define NBD_REP_ERROR_BIT 0x80000000u
enum nbd_reply_code {
    NBD_REP_ACK = 1,
    NBD_REP_SERVER = 2,
    NBD_REP_INFO = 3,
    NBD_REP_META_CONTEXT = 4,
    NBD_REP_ERR_UNSUP = NBD_REP_ERROR_BIT | 1,
    NBD_REP_ERR_POLICY = NBD_REP_ERROR_BIT | 2,
    NBD_REP_ERR_INVALID = NBD_REP_ERROR_BIT | 3,
    NBD_REP_ERR_UNKNOWN = NBD_REP_ERROR_BIT | 6,
    NBD_REP_ERR_SHUTDOWN = NBD_REP_ERROR_BIT | 7,
    NBD_REP_ERR_TOO_BIG = NBD_REP_ERROR_BIT | 9,
};

enum nbd_info {
    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3,
};

enum nbd_transmission_flag {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_FLAG_SEND_FLUSH = 1 << 2,
    NBD_FLAG_SEND_FUA = 1 << 3,
    NBD_FLAG_SEND_TRIM = 1 << 5,
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_SEND_DF = 1 << 7,
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
    NBD_FLAG_SEND_CACHE = 1 << 10,
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
};

struct nbd_string {
    const char *bytes; /* borrowed, not terminated */
    size_t length;
};

/* The server's first bytes. */
#define NBD_GREETING_SIZE 18
void nbd_greeting_put(uint8_t out[NBD_GREETING_SIZE]);
/* The client's answer: its flags, or -EPROTO for a bit that we did not offer. */
#define NBD_CLIENT_FLAGS_SIZE 4
int nbd_client_flags_get(const uint8_t in[NBD_CLIENT_FLAGS_SIZE], unsigned *ret);

struct nbd_option {
    uint32_t code;   /* enum nbd_option_code, or anything */
    uint32_t length; /* of the data that follows */
};
#define NBD_OPTION_SIZE 16
/* -EBADMSG without the magic. */
int nbd_option_get(const uint8_t in[NBD_OPTION_SIZE], struct nbd_option *ret);
void nbd_option_put(uint8_t out[NBD_OPTION_SIZE], const struct nbd_option *o);

/* Data of NBD_OPT_INFO and NBD_OPT_GO. -EBADMSG. */
struct nbd_info_request {
    struct nbd_string name;
    bool wants_name, wants_description, wants_block_size;
};
int nbd_info_request_get(const void *data, size_t length, struct nbd_info_request *ret);

/* Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT, fully checked by _get(): the
 * queries are then taken one by one, nbd_meta_request_next() `query_count` times. -EBADMSG. */
struct nbd_meta_request {
    struct nbd_string name;
    uint32_t query_count;
    const uint8_t *next; /* private */
};
int nbd_meta_request_get(const void *data, size_t length, struct nbd_meta_request *ret);
struct nbd_string nbd_meta_request_next(struct nbd_meta_request *m);

/* Replies to an option, appended to e; `text` is for people and may be NULL. Texts and names are
 * cut at NBD_STRING_SIZE_MAX. */
void nbd_reply_ack(struct enc *e, uint32_t option);
void nbd_reply_error(struct enc *e, uint32_t option, enum nbd_reply_code code, const char *text);
void nbd_reply_server(struct enc *e, const char *name, const char *description);
void nbd_reply_info_export(struct enc *e, uint32_t option, uint64_t size, unsigned flags);
void nbd_reply_info_text(struct enc *e, uint32_t option, enum nbd_info info, const char *text);
void nbd_reply_info_block_size(struct enc *e, uint32_t option);
void nbd_reply_meta_context(struct enc *e, uint32_t option, uint32_t id, const char *name);
/* The answer to NBD_OPT_EXPORT_NAME, which has no header. */
enum nbd_zeroes { NBD_ZEROES_SENT, NBD_ZEROES_LEFT_OUT };
void nbd_export_name_answer(struct enc *e, uint64_t size, unsigned flags, enum nbd_zeroes zeroes);

struct nbd_option_reply {
    uint32_t option, code, length;
};
#define NBD_OPTION_REPLY_SIZE 20
/* For clients. -EBADMSG without the magic. */
int nbd_option_reply_get(const uint8_t in[NBD_OPTION_REPLY_SIZE], struct nbd_option_reply *ret);

/* --- transmission --- */
enum nbd_command {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

enum nbd_command_flag {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
};

enum nbd_error {
    NBD_OK = 0,
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

struct nbd_request {
    uint16_t flags, command; /* as received: any value */
    uint64_t cookie, offset;
    uint32_t length;
};
#define NBD_REQUEST_SIZE 28
/* -EBADMSG without the magic. */
int nbd_request_get(const uint8_t in[NBD_REQUEST_SIZE], struct nbd_request *ret);
void nbd_request_put(uint8_t out[NBD_REQUEST_SIZE], const struct nbd_request *r);

#define NBD_SIMPLE_REPLY_SIZE 16
void nbd_simple_reply_put(uint8_t out[NBD_SIMPLE_REPLY_SIZE], uint64_t cookie,
                          enum nbd_error error);

/* Structured replies of one chunk each. Every function returns the number of header bytes written;
 * what follows them on the wire is said with each. */
#define NBD_CHUNK_HEAD_SIZE_MAX 32
/* Nothing follows: success without content. */
size_t nbd_chunk_none_put(uint8_t out[NBD_CHUNK_HEAD_SIZE_MAX], uint64_t cookie);
/* `length` bytes of data follow. */
size_t nbd_chunk_data_put(uint8_t out[NBD_CHUNK_HEAD_SIZE_MAX], uint64_t cookie, uint64_t offset,
                          uint32_t length);
/* Nothing follows. */
size_t nbd_chunk_hole_put(uint8_t out[NBD_CHUNK_HEAD_SIZE_MAX], uint64_t cookie, uint64_t offset,
                          uint32_t length);
/* Nothing follows. */
size_t nbd_chunk_error_put(uint8_t out[NBD_CHUNK_HEAD_SIZE_MAX], uint64_t cookie,
                           enum nbd_error error);
/* `count` extents of NBD_EXTENT_SIZE follow. */
size_t nbd_chunk_status_put(uint8_t out[NBD_CHUNK_HEAD_SIZE_MAX], uint64_t cookie,
                            uint32_t context_id, uint32_t count);
#define NBD_EXTENT_SIZE 8
enum nbd_extent_flag { NBD_STATE_HOLE = 1, NBD_STATE_ZERO = 2 };
void nbd_extent_put(uint8_t out[NBD_EXTENT_SIZE], uint32_t length, unsigned flags);
