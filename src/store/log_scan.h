/* SPDX-License-Identifier: Apache-2.0 */
/* Reading commits from the log, from where a checkpoint says. For replay and for repair. */
#pragma once
#include "base/codec.h"
#include "store/layout.h"

struct log_scan {
    struct disk *disk;
    const struct super *super;
    uint64_t salt;
    uint8_t *window;       /* owned */
    uint64_t window_first; /* sequence of the first block in it */
    uint32_t window_count;
    uint64_t sequence; /* of the next block */
    uint64_t limit;    /* the ring ends here */
    uint32_t prev_crc, boot;
    uint64_t commit;       /* number of the last complete commit */
    uint64_t commit_limit; /* not 0: this commit and what follows does not count */
};

/* One complete commit. */
struct log_commit {
    struct enc payload;
    uint64_t first;          /* sequence of its first block */
    uint32_t prev_crc, boot; /* before it */
    uint64_t number;
    bool valid;
};

/* Stands at the log's begin as `super` has it. 0 or -ENOMEM; log_scan_done() in any case. */
int log_scan_init(struct log_scan *sc, struct disk *disk, const struct super *super, uint64_t salt);
void log_scan_done(struct log_scan *sc);
/* The content of the ring where the block of that sequence belongs. Borrowed until the next call.
 */
fiber_fn int log_scan_block(struct log_scan *sc, uint64_t sequence, const uint8_t **ret);
/* Reads the next commit into f, whose payload is initialised, and whose valid says whether it is
 * complete. */
fiber_fn int log_scan_next(struct log_scan *sc, struct log_commit *f);
