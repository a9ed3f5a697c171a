/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Share counts: for each block, how many users it has beyond the first. Pages exist only where a
 * count is not zero.
 */
#pragma once
#include "store/space.h"
#include "store/tree.h"

struct share {
    uint32_t first, page_count;
    uint16_t **pages;       /* owned; NULL: all zero */
    uint32_t *page_nonzero; /* counts that are not zero, per page */
    struct tree tree;
    uint64_t extra_users;   /* sum of all counts */
    uint64_t shared_blocks; /* counts that are not zero */
};

int share_init(struct share *sh, uint32_t first, uint32_t count);
void share_done(struct share *sh);
uint16_t share_get(const struct share *sh, uint32_t block);
/* The count must be below SHARE_MAX. 0 or -ENOMEM. */
int share_add(struct share *sh, uint32_t block);
/* Takes one user off a shared block: true; false if it is not shared. */
bool share_drop(struct share *sh, uint32_t block);
void share_page_get(const struct share *sh, uint32_t page, uint8_t out[STORE_BLOCK]);
int share_page_set(struct share *sh, uint32_t page, const uint8_t in[STORE_BLOCK]);
