/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ledger of one object: generational reference counts with idempotent keys. Pure functions of
 * values (refcount.md; Goldberg 1989); the meta of an object is an encoded ledger, and none means
 * {0: 1}.
 *
 * A dead ledger is all zero. L is sparse and may hold negative values for a while.
 */
#pragma once
#include "base/codec.h"
#include "base/ids.h"

enum ledger_state { LEDGER_LIVE, LEDGER_DYING };
enum ref_op_kind {
    REF_DROP, /* L[generation] -= 1; L[generation + 1] += copies; copies += copied */
    REF_KILL, /* a root dies, with the copies that its record counted; has no key */
};
enum ref_sender_kind {
    REF_SENDER_VOLUME,   /* id = volume id, stamp = owner's version (term, sequence) */
    REF_SENDER_GROUP,    /* id = group of the dying block, stamp = group epoch << 40 | sequence */
    REF_SENDER_REGISTRY, /* kill from the trash */
};

/* One reference message. */
struct ref_op {
    enum ref_op_kind kind;
    struct oid target;
    uint64_t holder_vid;  /* key: the block that gives the reference up … */
    uint8_t holder_level; /* … the position gives the rest */
    uint32_t generation;
    uint64_t copies; /* final copies of a dying holder, else 0 */
    uint8_t copied;  /* 1: the dropper took a copy of the target first */
    uint64_t stamp;  /* above the sender's floor */
};

struct ledger_count {
    uint32_t generation;
    int64_t count; /* not 0 */
};
struct ledger_key {
    uint64_t holder_vid;
    uint8_t holder_level;
    enum ref_sender_kind sender;
    uint64_t sender_id;
    uint64_t stamp;
};
struct ledger {
    enum ledger_state state;
    uint64_t copies;
    unsigned count_count, key_count;
    struct ledger_count *counts; /* ascending by generation; owned */
    struct ledger_key *keys;     /* owned */
};

/* {0: 1}, no copies, no keys, live. */
int ledger_init(struct ledger *l);
void ledger_done(struct ledger *l);
/* True for the state that needs no meta. */
bool ledger_is_default(const struct ledger *l);
/* -EBADMSG, -EPROTO. length 0 gives the default. */
int ledger_decode(const void *p, size_t length, struct ledger *ret);
void ledger_encode(const struct ledger *l, struct enc *e);

enum ledger_outcome { LEDGER_CHANGED, LEDGER_DUPLICATE, LEDGER_DIED };
/* Applies one operation. A known key is refreshed to the newest stamp (LEDGER_DUPLICATE; the meta
 * must still be written when the stamp moved). A dying ledger does not change any more. -ENOMEM;
 * -EFBIG: the numbers cannot be meant (a damaged message); the ledger is then to be thrown away.
 * Death sets LEDGER_DYING and forgets all keys. */
int ledger_apply(struct ledger *l, const struct ref_op *op, enum ref_sender_kind sender,
                 uint64_t sender_id, enum ledger_outcome *ret);
/* Erases keys of that sender with stamp <= floor; UINT64_MAX erases all. Returns how many. */
unsigned ledger_erase_keys(struct ledger *l, enum ref_sender_kind sender, uint64_t sender_id,
                           uint64_t floor);
/* Value of L[generation]. */
int64_t ledger_get(const struct ledger *l, uint32_t generation);
