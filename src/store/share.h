/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Share counts: for each block, how many users it has beyond the first. In pages, of which those in
 * use are in memory; sharing.c brings them there.
 *
 * X1 A page without a pointer on disk and without content in memory is all zero. One that is dirty
 *    is in memory.
 * X2 Counts are asked for and changed only in pages that are in memory or all zero.
 * X3 A page that cannot be read counts every block of it as shared for ever: its blocks are never
 *    freed by guess. It keeps its pointer, so that a repair finds it.
 */
#pragma once
#include "base/list.h"
#include "store/pages.h"
#include "store/space.h"
#include "store/tree.h"

struct share_page {
    struct list link; /* share.used */
    uint32_t page;
    uint32_t nonzero; /* counts that are not zero */
    uint8_t *data;    /* as on disk; NULL: cannot be read (X3) */
};

struct share {
    uint32_t first, page_count;
    struct share_page **pages; /* owned; NULL: not in memory, or all zero (X1) */
    struct list used;          /* those in memory, least recently loaded first */
    uint32_t loaded, missing;  /* pages in memory; pages that are on disk only */
    unsigned holds;            /* somebody has loaded pages and is about to use them: all stay */
    struct page_pool *pool;
    struct tree tree;
    uint64_t extra_users;   /* sum of all counts */
    uint64_t shared_blocks; /* counts that are not zero */
    uint32_t damaged;       /* pages of X3 */
};

int share_init(struct share *sh, struct page_pool *pool, uint32_t first, uint32_t count);
void share_done(struct share *sh);
/* False: the block's page has to be loaded first. */
bool share_is_loaded(const struct share *sh, uint32_t block);
/* False: the page cannot be read (X3). */
bool share_is_known(const struct share *sh, uint32_t block);
/* UINT16_MAX where it is not known. */
uint16_t share_get(const struct share *sh, uint32_t block);
/* The count must be below SHARE_MAX. 0 or -ENOMEM. */
int share_add(struct share *sh, uint32_t block);
/* Takes one user off a shared block: true; false if it is not shared. */
bool share_drop(struct share *sh, uint32_t block);

/* --- pages --- */
/* True when a dirty page holds no count (T1). */
bool share_page_is_empty(const struct share *sh, uint32_t page);
void share_page_get(const struct share *sh, uint32_t page, uint8_t out[STORE_BLOCK]);
/* A checkpoint has taken the page: an empty one is forgotten. */
void share_page_taken(struct share *sh, uint32_t page);
/* Puts a page that is on disk only into memory; NULL: it cannot be read. 0, -ENOMEM, -EUCLEAN. */
int share_page_set(struct share *sh, uint32_t page, const uint8_t *in);
/* Counts what a page holds into the totals, at open. -EUCLEAN: it holds nothing (T1). */
int share_page_count(struct share *sh, const uint8_t in[STORE_BLOCK]);
/* As share_page_count() for one that is in memory, and may be unreadable. */
void share_page_count_loaded(struct share *sh, uint32_t page);
/* Lets go of clean pages beyond `keep`, a few at a time. */
void share_shrink(struct share *sh, size_t keep);
