/* SPDX-License-Identifier: Apache-2.0 */
/* A store on a simulated disk, and short forms of the calls, for tests that go step by step. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "sim/sim.h"
#include "store/store.h"

struct fixture {
    struct sim *sim;
    struct rt *rt;
    struct store *s;
    void (*body)(struct fixture *f);
    uint64_t cache_bytes, zero_ahead_bytes, scrub_rate;
    unsigned discard_batch_ms;
    char findings[8][256];
    unsigned finding_count;
    bool ran;
};

/* Makes a disk of `size` bytes, formats it with the smallest log, and runs body on a fiber. Nothing
 * is open yet. */
void fixture_run(uint64_t size, enum disk_durability durability, void (*body)(struct fixture *f));
fiber_fn void fixture_open(struct fixture *f);
fiber_fn void fixture_close(struct fixture *f);
/* Number of findings of store_check(); their texts are in f->findings. */
fiber_fn unsigned fixture_check(struct fixture *f);

struct oid fixture_oid(uint64_t vid, uint32_t index);
static inline struct version ver(uint64_t term, uint64_t sequence)
{
    return version_make((struct term){term}, sequence);
}
/* Writes `length` bytes of value `fill` at offset. */
fiber_fn int fixture_write(struct fixture *f, struct oid oid, struct version prev,
                           struct version next, uint32_t offset, uint32_t length, uint8_t fill);
fiber_fn int fixture_change(struct fixture *f, enum store_change_kind kind, struct oid oid,
                            struct version prev, struct version next);
fiber_fn int fixture_clone(struct fixture *f, struct oid source, struct oid oid,
                           struct version next);
/* The value of all bytes in the range, or -1 if they are not all the same, or an error. */
fiber_fn int fixture_read(struct fixture *f, struct oid oid, uint64_t offset, size_t length);
