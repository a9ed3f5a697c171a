/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes of the protocol between nodes; PEER.md tells what they mean. A frame is a header, a body,
 * and a payload (bulk data that goes straight between buffers and sockets).
 *
 * P1 Every length is bounded before anything is read for it; every count before anything is
 *    allocated.
 * P2 Header and body are covered by one CRC32C, the payload by another.
 * P3 Numbers in here are wire numbers: never change one.
 */
#pragma once
#include <sys/types.h>
#include "base/codec.h"
#include "base/ids.h"

#define PEER_PROTOCOL_VERSION 1u
#define PEER_HEADER_BYTES     64u
#define PEER_BODY_MAX         (1u << 20)
#define PEER_PAYLOAD_MAX      (64u << 20)
#define PEER_EXTENT_COUNT_MAX 16u
#define PEER_REF_COUNT_MAX    256u
#define PEER_META_COUNT_MAX   256u
#define PEER_META_BYTES_MAX   4096u
#define PEER_LIST_COUNT_MAX   4096u
#define PEER_NO_GROUP         UINT32_MAX
#define PEER_TEXT_SIZE        256

enum peer_type {
    PEER_HELLO = 1,
    PEER_PING = 2,
    PEER_CHANGE = 3,
    PEER_READ = 4,
    PEER_MAP = 5,
    PEER_STAT = 6,
    PEER_META_APPLY = 7,
    PEER_REFS = 8,
    PEER_LIST = 9,
    PEER_DIGESTS = 10,
    PEER_SETTLE = 11,
    PEER_INFO = 12,
    PEER_COMPARE = 13,
    PEER_FETCH = 14,
    PEER_UNDERWAY = 15,
    PEER_FORWARD = 16,
    PEER_TYPE_LAST = PEER_FORWARD,
};
enum peer_flags { PEER_REPLY = 1 };

struct peer_header {
    enum peer_type type;
    unsigned flags;
    uint64_t id;          /* chosen by the asking side, unique per connection; a reply repeats it */
    uint64_t epoch;       /* of `group`: the sender's; in a reply the replica's */
    uint64_t map_version; /* the sender acts on */
    uint32_t group;       /* PEER_NO_GROUP: none, or named in the body */
    int status;           /* reply: 0 or a negative errno of base/err.h */
    uint32_t body_length, payload_length;
    uint64_t free_bytes; /* reply: what data may still allocate on this node */
    uint32_t payload_crc;
};
/* Encodes h with the checksum over header and body. */
void peer_header_put(uint8_t out[PEER_HEADER_BYTES], const struct peer_header *h, const void *body);
/* -EBADMSG: magic, lengths or numbers out of bounds; -EPROTO: unknown protocol version. */
int peer_header_get(const uint8_t in[PEER_HEADER_BYTES], struct peer_header *ret);
/* -EBADMSG: header or body were damaged. */
int peer_header_check(const uint8_t in[PEER_HEADER_BYTES], const void *body, size_t length);

/* --- bodies. X_decode(): 0 or -EBADMSG; the whole body must be used up. --- */
struct peer_hello {
    struct uuid cluster, node, target; /* target: the node that is meant */
    struct session session;            /* of the sender */
    uint16_t version_min, version_max;
};
void peer_hello_encode(const struct peer_hello *h, struct enc *e);
int peer_hello_decode(const void *p, size_t length, struct peer_hello *ret);
/* Answer: the replica's session, and a text when it refused. */
struct peer_hello_reply {
    struct session session;
    uint16_t version;
    char text[PEER_TEXT_SIZE];
};
void peer_hello_reply_encode(const struct peer_hello_reply *h, struct enc *e);
int peer_hello_reply_decode(const void *p, size_t length, struct peer_hello_reply *ret);

/* Credentials of a volume's owner; all zero: none (repair). */
struct peer_owner {
    uint64_t volume;
    struct term term;
    struct version stable;
    struct vid vid;
};

enum peer_change_kind {
    PEER_CHANGE_WRITE = 0,
    PEER_CHANGE_CLONE = 1,
    PEER_CHANGE_PUNCH = 2,
    PEER_CHANGE_REMOVE = 3,
    PEER_CHANGE_INSTALL = 4,
    PEER_CHANGE_NOTE =
        5, /* to joining nodes: what all in-sync copies are since a comparison; next:
              the version (0: absent), prev: the same when it is a tombstone, else 0 */
};
struct peer_extent {
    uint32_t offset, length;
};
/* Payload: the data of all extents. Reply: version the object is at, when -ESTALE. */
struct peer_change {
    struct peer_owner owner;
    enum peer_change_kind kind;
    struct oid oid, source;
    struct version prev, next;
    unsigned extent_count;
    struct peer_extent extents[PEER_EXTENT_COUNT_MAX];
};
#define PEER_CHANGE_BYTES_MAX (88u + 8u * PEER_EXTENT_COUNT_MAX)
/* Returns the length. */
size_t peer_change_put(uint8_t out[PEER_CHANGE_BYTES_MAX], const struct peer_change *c);
int peer_change_get(const void *p, size_t length, struct peer_change *ret);

/* READ, MAP and STAT ask for a range of one object (STAT ignores the range). */
struct peer_read {
    struct oid oid;
    uint32_t offset, length;
};
#define PEER_READ_BYTES 24u
void peer_read_put(uint8_t out[PEER_READ_BYTES], const struct peer_read *r);
int peer_read_get(const void *p, size_t length, struct peer_read *ret);
/* Answer of READ: the version read; payload: the bytes. */
#define PEER_VERSION_BYTES 8u
/* Answer of MAP: ascending runs. */
struct peer_run {
    uint32_t offset, length;
    bool mapped;
};
void peer_run_encode(const struct peer_run *r, struct enc *e);
void peer_run_decode(struct dec *d, struct peer_run *ret);
/* Answer of STAT; also one element of a LIST. */
struct peer_entry {
    struct oid oid;
    struct version version; /* of the object or the tombstone; 0: neither */
    bool tombstone, empty;  /* empty: no block is mapped */
    uint64_t meta_version;
    uint32_t end;        /* bytes: end of the last mapped block */
    const uint8_t *meta; /* borrowed from what was decoded */
    size_t meta_length;
};
void peer_entry_encode(const struct peer_entry *en, struct enc *e);
void peer_entry_decode(struct dec *d, struct peer_entry *ret); /* errors latch in d */

/* META_APPLY: u16 count, then elements. One atomic batch. */
struct peer_meta {
    struct oid oid;
    uint64_t epoch; /* of the object's group */
    uint64_t meta_version;
    bool remove;
    struct version next; /* with remove: of the tombstone, 0 none */
    const uint8_t *meta;
    size_t meta_length;
};
void peer_meta_encode(const struct peer_meta *m, struct enc *e);
void peer_meta_decode(struct dec *d, struct peer_meta *ret);

/* REFS: head, then `count` operations. */
enum peer_sender { PEER_SENDER_VOLUME = 0, PEER_SENDER_GROUP = 1, PEER_SENDER_REGISTRY = 2 };
struct peer_refs_head {
    enum peer_sender sender;
    uint64_t sender_id; /* volume, or group of the dying block */
    uint64_t authority; /* term, or epoch of that group */
    uint64_t floor;     /* stable version, or floor of that group */
    uint16_t count;     /* 1 … PEER_REF_COUNT_MAX */
};
enum peer_ref_kind { PEER_REF_DROP = 0, PEER_REF_KILL = 1 };
struct peer_ref {
    enum peer_ref_kind kind;
    struct oid target;
    uint64_t epoch; /* of the target's group */
    uint64_t holder_vid;
    uint8_t holder_level, copied;
    uint32_t generation;
    uint64_t copies, stamp;
};
void peer_refs_head_encode(const struct peer_refs_head *h, struct enc *e);
void peer_refs_head_decode(struct dec *d, struct peer_refs_head *ret);
void peer_ref_encode(const struct peer_ref *r, struct enc *e);
void peer_ref_decode(struct dec *d, struct peer_ref *ret);

/* LIST: what the node stores, in oid order, beginning behind `after`. */
enum peer_list_flags {
    PEER_LIST_BY_VID = 1,
    PEER_LIST_BY_GROUP = 2,
    PEER_LIST_META = 4, /* with the encoded ledgers */
};
struct peer_list {
    unsigned flags;
    struct vid vid;
    uint16_t group;
    struct version above;
    struct oid after; /* all zero: from the beginning */
    uint32_t limit;
};
void peer_list_encode(const struct peer_list *l, struct enc *e);
int peer_list_decode(const void *p, size_t length, struct peer_list *ret);
/* Answer: u8 more, u16 count, elements. */

/* DIGESTS: u32 count, u16 groups[]. Answer: u32 count, u64 digests[]. */

struct peer_settle {
    struct vid vid;
    struct version stable;
};
void peer_settle_encode(const struct peer_settle *s, struct enc *e);
int peer_settle_decode(const void *p, size_t length, struct peer_settle *ret);

/* COMPARE: of the header's group. No body. */
struct peer_compare {
    uint64_t objects;    /* digest of (oid, version, meta version) */
    uint64_t tombstones; /* digest of (oid, version) */
};
void peer_compare_encode(const struct peer_compare *c, struct enc *e);
int peer_compare_decode(const void *p, size_t length, struct peer_compare *ret);

/* FETCH: one object as it is at one version. */
struct peer_fetch {
    struct oid oid;
    struct version have; /* the asker's: no data when it is the same */
    struct version need; /* no data either when the object is older than that */
    uint32_t limit;      /* bytes that the asker has room for; -EFBIG when the object ends behind */
    /* An object that the asker has at that version (0: none), and would rather clone. */
    struct oid base;
    struct version base_version;
};
#define PEER_FETCH_BYTES 60u
void peer_fetch_put(uint8_t out[PEER_FETCH_BYTES], const struct peer_fetch *f);
int peer_fetch_get(const void *p, size_t length, struct peer_fetch *ret);
enum peer_fetched_data {
    PEER_FETCHED_NONE = 0,
    PEER_FETCHED_WHOLE = 1,   /* extents: all blocks that are not zeros */
    PEER_FETCHED_CHANGED = 2, /* relations to the base: all blocks that are not the same */
};
enum peer_relation { PEER_ALIKE = 0, PEER_OTHER = 1, PEER_HOLE = 2 }; /* OTHER: in the payload */
/* Answer: the entry with its meta (also with -EFBIG), u8 data; WHOLE: u8 count, extents {offset
 * u32, length u32}; CHANGED: blob with a byte per block of 4 KiB. The payload has the blocks, one
 * after the other. */
struct peer_fetched {
    struct peer_entry entry; /* meta: borrowed */
    enum peer_fetched_data data;
    unsigned extent_count;
    struct peer_extent extents[PEER_EXTENT_COUNT_MAX];
    const uint8_t *relations; /* borrowed */
    size_t block_count;
};
#define PEER_FETCHED_BLOCKS_MAX (PEER_PAYLOAD_MAX / 4096u)
void peer_fetched_encode(const struct peer_fetched *f, struct enc *e);
int peer_fetched_decode(const void *p, size_t length, struct peer_fetched *ret);

/* UNDERWAY: body: an oid. Answer: u8, 1 while the node has an unanswered change of that object. */

/* INFO: answer. */
struct peer_info {
    uint64_t size_bytes, used_bytes, free_bytes, data_bytes, shared_bytes, object_count,
        tombstone_count;
    uint64_t dying_count, ref_batches_pending, checksum_errors, rss_bytes, uptime_ns;
    uint64_t record_bytes, pending_bytes, unreachable_bytes, reserve_bytes, log_bytes;
    uint64_t scrub_rate, scrub_passes, scrub_bytes, scrub_objects, scrub_errors, scrub_mended;
    bool inexact;
    int failed;
    char scrub_last[160]; /* the last finding, "" none */
    /* Of joining; all 0 from a node that does not tell. */
    uint64_t groups_total, groups_done, join_objects_total, join_objects_done, join_bytes_done,
        join_bytes_per_s, join_eta_s;
};
void peer_info_encode(const struct peer_info *i, struct enc *e);
int peer_info_decode(const void *p, size_t length, struct peer_info *ret);

/* FORWARD: what a gateway asks of the one that owns a volume (L4). Payload: the data of WRITE; of
 * the answer to READ. */
enum peer_forward_kind {
    PEER_FORWARD_ATTACH = 1, /* `name` */
    PEER_FORWARD_DETACH = 2,
    PEER_FORWARD_PREPARE = 3, /* a hand-over is near: settle what can be */
    PEER_FORWARD_RELEASE = 4, /* hand over: close cleanly */
    PEER_FORWARD_READ = 5,
    PEER_FORWARD_WRITE = 6,
    PEER_FORWARD_ZERO = 7, /* flags: those of volume_zero() */
    PEER_FORWARD_DISCARD = 8,
    PEER_FORWARD_FLUSH = 9,
    PEER_FORWARD_MAP = 10, /* flags: runs wanted at most, 1 … PEER_FORWARD_RUNS_MAX */
    PEER_FORWARD_LAST = PEER_FORWARD_MAP,
};
#define PEER_FORWARD_NAME_SIZE 256
#define PEER_FORWARD_DATA_MAX  (1u << 20) /* bytes of one READ or WRITE */
#define PEER_FORWARD_RUNS_MAX  4096u
struct peer_forward {
    enum peer_forward_kind kind;
    uint64_t handle; /* of the asking side's open volume; unique in its session */
    uint64_t id;     /* of a change (WRITE, ZERO, DISCARD): 1, 2 … per handle; else 0 */
    uint64_t floor;  /* all changes with lower ids were answered */
    uint64_t offset, length;
    uint32_t flags;
    char name[PEER_FORWARD_NAME_SIZE]; /* ATTACH, else empty */
};
void peer_forward_encode(const struct peer_forward *f, struct enc *e);
int peer_forward_decode(const void *p, size_t length, struct peer_forward *ret);
/* Answer. Its status is the request's result; an answer without body says that the request was not
 * carried out: -ESTALE (not the owner, or such a handle is not attached), -EAGAIN (no room now). */
struct peer_forward_run {
    uint64_t length;
    bool mapped;
};
struct peer_forward_reply {
    bool offer; /* nobody else uses the volume here: the asking side may have it */
    uint64_t size;
    uint32_t object_size;
    uint32_t run_count;
};
/* Then `run_count` runs follow. */
void peer_forward_reply_encode(const struct peer_forward_reply *r, struct enc *e);
/* Errors latch in d. */
void peer_forward_reply_decode(struct dec *d, struct peer_forward_reply *ret);
void peer_forward_run_encode(const struct peer_forward_run *r, struct enc *e);
void peer_forward_run_decode(struct dec *d, struct peer_forward_run *ret);
