/* SPDX-License-Identifier: Apache-2.0 */
/* What each block of a store is, found by walking its structures. */
#pragma once
#include "store/store.h"
#include "tests/golden/sample.h"

enum block_class {
    BLOCK_FREE,
    BLOCK_SUPER,
    BLOCK_LOG, /* in use: from the checkpoint's place to the end */
    BLOCK_INDEX,
    BLOCK_BITMAP,
    BLOCK_SHARE,
    BLOCK_TABLE, /* over any of them */
    BLOCK_INDIRECT,
    BLOCK_LEAF,
    BLOCK_META,
    BLOCK_DATA,
    BLOCK_SHARED, /* data with several users */
    BLOCK_CLASS_COUNT,
};
extern const char *const block_class_names[BLOCK_CLASS_COUNT];

/* Classifies all `count` blocks of the sample's disk as its checkpoint has them. */
fiber_fn void classify(struct sample *p, uint8_t *classes, uint32_t count);
