/* SPDX-License-Identifier: Apache-2.0 */
/* What a good store held, to compare a damaged one with: right content or a named error. */
#pragma once
#include "store/store.h"
#include "tests/golden/sample.h"

struct expect_object {
    struct store_entry entry;
    struct store_stat stat;
    uint32_t *blocks, *crcs; /* owned: the mapped ones, and what is in them */
    uint32_t count, capacity;
    uint32_t meta_crc;
};

struct expect {
    struct expect_object *objects; /* owned */
    size_t count;
};

/* Takes down all of an open, good store. */
fiber_fn void expect_take(struct expect *e, struct store *s);
void expect_done(struct expect *e);

struct expect_result {
    unsigned bad;      /* reads that said -EUCLEAN */
    unsigned missing;  /* objects that are not there */
    unsigned versions; /* objects of another version or meta version, or that should not be there */
    char wrong[256];   /* "" or what must never happen: wrong content, another error */
};
/* Reads everything. */
fiber_fn void expect_compare(const struct expect *e, struct store *s, struct expect_result *ret);
