/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A paged array on disk: pages, tables of pointers to pages, tables of pointers to tables, up to
 * one root that the superblock holds. Pointers are kept in memory, pages belong to the user.
 *
 * T1 A page that is all zero is not stored: its pointer is 0. So with tables.
 * T2 When a page changes, it and all tables above it are written to fresh blocks at the next
 *    checkpoint; until then the disk keeps the old ones.
 * T3 Above a dirty page or table everything is dirty.
 */
#pragma once
#include "store/layout.h"

struct tree_level {
    uint32_t count, capacity;
    struct block_ptr *ptrs;
    uint64_t *dirty; /* one bit each: the next dirty one is found fast among many thousands */
    uint32_t dirty_count;
};

struct tree {
    unsigned type;   /* enum page_type of the pages */
    unsigned height; /* levels in use; levels[height - 1] has one entry, the root */
    struct tree_level levels[TREE_LEVELS];
};

void tree_init(struct tree *t, enum page_type type);
void tree_done(struct tree *t);
/* Makes pages [0, page_count) addressable. 0 or -ENOMEM. */
int tree_resize(struct tree *t, uint32_t page_count);
/* Page has changed; it must be addressable. */
void tree_mark(struct tree *t, uint32_t page);
/* The same for entry i of a level, a table if it is not 0: it is to be written elsewhere. */
void tree_mark_level(struct tree *t, unsigned level, uint32_t i);
/* The entry is as on disk, or about to be; all dirty ones below it must be so first (T3). */
void tree_set_clean(struct tree *t, unsigned level, uint32_t i);
bool tree_is_dirty(const struct tree *t, unsigned level, uint32_t i);
/* First dirty entry of a level at or after `from`. False: none. */
bool tree_next_dirty(const struct tree *t, unsigned level, uint32_t from, uint32_t *ret);
/* Dirty entries of all levels. */
uint64_t tree_dirty_count(const struct tree *t);
static inline uint32_t tree_page_count(const struct tree *t)
{
    return t->levels[0].count;
}
/* Type that goes into the checksum of blocks of that level. */
static inline unsigned tree_block_type(const struct tree *t, unsigned level)
{
    return level == 0 ? t->type : (unsigned)PAGE_TABLE | t->type << 4 | level;
}
/* Content of table i of a level >= 1. */
void tree_table_encode(const struct tree *t, unsigned level, uint32_t i, uint8_t out[STORE_BLOCK]);
bool tree_table_is_empty(const struct tree *t, unsigned level, uint32_t i);
/* Takes the pointers of table i into the level below. -EUCLEAN: pointers past the end. */
int tree_table_decode(struct tree *t, unsigned level, uint32_t i, const uint8_t in[STORE_BLOCK]);
struct tree_root tree_root_get(const struct tree *t);
