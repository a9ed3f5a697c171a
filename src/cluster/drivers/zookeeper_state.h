/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The copy of the whole store that each connection of the zookeeper driver keeps: what the log's
 * entries add up to, and which of them are still needed. Pure; private to drivers/zookeeper*.c and
 * tests.
 */
#pragma once
#include "base/list.h"
#include "cluster/drivers/zookeeper_entry.h"

struct zk_log; /* one entry of the log */

struct zk_key {
    uint64_t revision;     /* of the commit that changed it last */
    uint64_t owner;        /* session, 0: stays */
    struct zk_log *latest; /* the entry of that commit */
    unsigned mentions;     /* entries that speak of it */
    uint8_t *value;        /* owned; NULL: it is deleted, and older entries still speak of it */
    size_t length;
    char name[];
};

struct zk_state {
    struct zk_key **keys; /* by name */
    size_t key_count, key_capacity;
    struct list logs;  /* zk_log, ascending */
    struct list loose; /* zk_log that nothing needs, in the order in which they became so */
    size_t log_count;
    uint64_t revision, bytes; /* all that were applied, their length together */
};

/* Of an entry that may go: what its removal has to name. */
struct zk_loose {
    uint64_t revision, session, nonce;
    unsigned part_count;
};

void zk_state_init(struct zk_state *s);
void zk_state_done(struct zk_state *s);
/* `to` becomes what `from` is, which becomes empty. */
void zk_state_take(struct zk_state *to, struct zk_state *from);
/* Applies the next entry, h->revision > s->revision. 0, -ENOMEM: s is of no use any more. */
int zk_state_apply(struct zk_state *s, const struct zk_header *h, const struct zk_change *changes,
                   unsigned count);
/* An entry is gone without a commit that says so. Unknown ones are ignored. */
void zk_state_forget(struct zk_state *s, uint64_t revision);
/* The key if it exists (borrowed), else NULL. */
const struct zk_key *zk_state_get(const struct zk_state *s, const char *key);
/* Iterates keys that exist and start with prefix, in byte order: *position starts at 0. */
const struct zk_key *zk_state_next(const struct zk_state *s, const char *prefix, size_t *position);
/* Up to `max` entries that are needed by nobody, old enough that only who is far behind misses
 * them: `keep_count` commits or `keep_bytes` ago. Returns their number. */
unsigned zk_state_removable(const struct zk_state *s, uint64_t keep_count, uint64_t keep_bytes,
                            struct zk_loose *ret, unsigned max);
/* Whether an entry has parts of that writer and nonce. */
bool zk_state_has_parts(const struct zk_state *s, uint64_t session, uint64_t nonce);
/* Asserts the invariants of zookeeper_state.c. */
void zk_state_verify(const struct zk_state *s);
