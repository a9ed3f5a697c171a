/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log records: what a commit changes. The very same bytes drive the running store and replay, so
 * that both reach the same state (S1).
 */
#pragma once
#include "base/codec.h"
#include "store/layout.h"

enum record_type {
    RECORD_CHANGE = 1, /* write, clone, punch: [source,] punched ranges, new blocks */
    RECORD_REMOVE = 2,
    RECORD_META = 3,
    RECORD_SETTLE = 4,
};

/* Blocks [start, start + count) of the object, at `block` and following on disk (0 for punched). */
struct record_run {
    uint32_t start, count, block;
};

struct record {
    enum record_type type;
    bool has_source;
    bool replace; /* drop all blocks the object had first */
    struct oid oid, source;
    struct version next; /* of the object; RECORD_SETTLE: stable version */
    unsigned punch_count, run_count;
    const uint8_t *punches, *runs, *crcs; /* borrowed from the input */
    uint32_t block_count;                 /* sum over the runs */
    struct vid vid;                       /* RECORD_SETTLE */
    uint64_t meta_version;                /* RECORD_META */
    const uint8_t *meta;
    uint16_t meta_length;
};

/* Header of a change; then come `punch_count` punches, `run_count` runs and the CRCs of all blocks.
 */
enum { RECORD_HAS_SOURCE = 1, RECORD_REPLACE = 2 };
struct record_change_head {
    unsigned flags;
    struct oid oid, source;
    struct version next;
    unsigned punch_count, run_count;
};
void record_change_begin(struct enc *e, const struct record_change_head *h);
void record_punch(struct enc *e, uint32_t start, uint32_t count);
void record_run(struct enc *e, const struct record_run *run);
void record_crc(struct enc *e, uint32_t crc);
void record_remove(struct enc *e, const struct oid *oid, struct version next);
void record_meta(struct enc *e, const struct oid *oid, uint64_t meta_version, const void *meta,
                 uint16_t length);
void record_settle(struct enc *e, struct vid vid, struct version stable);

/* Upper bound of the bytes of a change. */
size_t record_change_size(unsigned punch_count, unsigned run_count, uint32_t block_count);
#define RECORD_META_OVERHEAD 32u
#define RECORD_REMOVE_SIZE   25u
#define RECORD_SETTLE_SIZE   17u

/* Takes the next record off d. 0 or -EUCLEAN (ranges are checked against the object's limits, block
 * numbers are not). */
int record_take(struct dec *d, struct record *ret);
struct record_run record_run_get(const struct record *rec, unsigned i);
struct record_run record_punch_get(const struct record *rec, unsigned i);
