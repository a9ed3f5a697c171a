/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a check knows of each object: where it is stored, who refers to it, what its ledger should
 * be. Pure memory; private to volume/.
 */
#pragma once
#include "object/ledger.h"
#include "volume/record.h"

struct check_replica {
    uint16_t node;
    bool tombstone;
    struct version version;
    uint64_t meta_version;
};

struct check_object {
    struct hnode node;
    struct oid oid;
    struct check_replica replicas[MAP_GROUP_MEMBER_MAX];
    uint8_t replica_count;
    bool reachable, walked;
    bool unlinked;        /* own object of a working image that no index names (V1) */
    struct ledger ledger; /* as stored, of the replica with the highest meta version */
    uint64_t ledger_version;
    bool ledger_bad;
    struct ledger_count *expected; /* exact counts, in no order */
    unsigned expected_count;
    const struct record *record; /* first that refers to it, with … */
    const char *tag;             /* NULL: the working image */
};

struct check_table {
    struct htable objects;
};

void check_table_init(struct check_table *t);
void check_table_done(struct check_table *t);
struct check_object *check_find(const struct check_table *t, const struct oid *oid);
/* Finds or makes; NULL when out of memory. */
struct check_object *check_get(struct check_table *t, const struct oid *oid);
/* Live copies (no tombstones). */
unsigned check_live_replicas(const struct check_object *o);
/* One more reference with generation g from a holder that was copied `copies` times. 0 or -ENOMEM.
 */
int check_add_reference(struct check_object *o, uint32_t g, uint64_t copies);
/* True when the stored ledger is exactly the expected one. */
bool check_ledger_is_exact(const struct check_object *o);
/* "{0: 1, 3: -2}" of a stored or expected ledger. */
void check_format_counts(const struct ledger_count *counts, unsigned count, char *out, size_t size);
