/* SPDX-License-Identifier: Apache-2.0 */
/* Writing paged arrays anew: tables, share counts, the bitmap. */
#define LOG_MODULE "store"
#include <stdlib.h>
#include "base/err.h"
#include "base/log.h"
#include "store/mend_internal.h"

void mend_forget_tables(struct mend *m)
{
    for (unsigned which = 0; which < TREE_COUNT; which++) {
        const struct walk_tree *t = &m->w->trees[which];
        for (unsigned l = which == TREE_INDEX ? 1 : 0; l < t->height; l++) {
            for (uint32_t i = 0; i < t->levels[l].count; i++) {
                if (t->levels[l].states[i] == WALK_GOOD)
                    mend_release(m, t->levels[l].ptrs[i].block);
            }
        }
    }
}

/* Table i over the pointers at `below`. A table without pointers is not stored (T1). */
static fiber_fn int table_put(struct mend *m, unsigned type, uint32_t i,
                              const struct block_ptr *below, uint32_t below_count,
                              struct block_ptr *ret)
{
    bool any = false;

    memset(m->page, 0, STORE_BLOCK);
    for (uint32_t k = 0; k < TREE_FANOUT && (uint64_t)i * TREE_FANOUT + k < below_count; k++) {
        struct block_ptr p = below[(size_t)i * TREE_FANOUT + k];
        leaf_entry_set(m->page, k, p);
        any = any || p.block != 0;
    }
    return any ? mend_put(m, type, i, m->page, ret) : 0;
}

fiber_fn int mend_tables(struct mend *m, unsigned type, const struct block_ptr *pages,
                         uint32_t count, struct tree_root *ret)
{
    const struct block_ptr *below = pages;
    struct block_ptr *own = NULL;
    uint32_t below_count = count;
    int r = 0;

    for (unsigned level = 1; r == 0 && below_count > 1; level++) {
        uint32_t n = (below_count + TREE_FANOUT - 1) / TREE_FANOUT;
        struct block_ptr *ptrs = calloc(n, sizeof(*ptrs));
        if (ptrs == NULL)
            r = -ENOMEM;
        for (uint32_t i = 0; r == 0 && i < n; i++)
            r = table_put(m, (unsigned)PAGE_TABLE | type << 4 | level, i, below, below_count,
                          &ptrs[i]);
        free(own);
        own = ptrs;
        below = ptrs;
        below_count = n;
    }
    if (r == 0)
        *ret = (struct tree_root){.page_count = count,
                                  .ptr = count > 0 ? below[0] : (struct block_ptr){0}};
    free(own);
    return r;
}

/* --- share counts --- */

static bool share_page_fill(struct mend *m, uint32_t p)
{
    const struct walk *w = m->w;
    bool any = false;

    memset(m->page, 0, STORE_BLOCK);
    for (uint32_t k = 0; k < SHARE_PAGE_COUNTS; k++) {
        uint64_t i = (uint64_t)p * SHARE_PAGE_COUNTS + k;
        uint16_t users = i < walk_block_count(w) ? w->owners[i] : 0;
        if (users == WALK_STRUCTURE || users < 2)
            continue;
        put_le16(m->page + 2 * k, (uint16_t)(users - 1));
        any = true;
    }
    return any;
}

fiber_fn int mend_share(struct mend *m, struct tree_root *ret)
{
    uint32_t count = m->w->trees[TREE_SHARE].levels[0].count;
    struct block_ptr *ptrs = calloc(count, sizeof(*ptrs));
    int r = ptrs != NULL ? 0 : -ENOMEM;

    for (uint32_t p = 0; r == 0 && p < count; p++) {
        if (share_page_fill(m, p))
            r = mend_put(m, PAGE_SHARE, p, m->page, &ptrs[p]);
    }
    if (r == 0)
        r = mend_tables(m, PAGE_SHARE, ptrs, count, ret);
    free(ptrs);
    return r;
}

/* --- the bitmap: its own blocks are in it --- */

static bool bitmap_page_fill(struct mend *m, uint32_t p)
{
    const struct walk *w = m->w;
    bool any = false;

    memset(m->page, 0, STORE_BLOCK);
    for (uint32_t k = 0; k < BITMAP_PAGE_BITS; k++) {
        uint64_t i = (uint64_t)p * BITMAP_PAGE_BITS + k;
        if (i >= walk_block_count(w) || w->owners[i] == 0)
            continue;
        m->page[k / 8] |= (uint8_t)(1u << k % 8);
        any = true;
    }
    return any;
}

/* Blocks that the pages and their tables will take, when these pages are stored. */
static uint32_t blocks_needed(const uint8_t *stored, uint32_t count)
{
    uint32_t n = 0;
    uint64_t span = 1;

    for (uint32_t level_count = count;;
         level_count = (level_count + TREE_FANOUT - 1) / TREE_FANOUT) {
        for (uint32_t i = 0; i < level_count; i++) {
            bool any = false;
            for (uint64_t p = i * span; !any && p < (i + 1) * span && p < count; p++)
                any = stored[p];
            n += any;
        }
        if (level_count <= 1)
            return n;
        span *= TREE_FANOUT;
    }
}

/* Takes all blocks before any content is known to be final: each may be the first of its page. */
static int bitmap_reserve(struct mend *m, uint32_t count)
{
    uint8_t *stored = calloc(count, 1);
    struct u32vec taken = {0};
    uint32_t need;
    int r = stored != NULL ? 0 : -ENOMEM;

    for (uint32_t p = 0; r == 0 && p < count; p++)
        stored[p] = bitmap_page_fill(m, p);
    need = r == 0 ? blocks_needed(stored, count) : 0;
    while (r == 0 && taken.count < need) {
        uint32_t block, p;
        r = mend_alloc(m, &block);
        if (r < 0)
            break;
        r = u32vec_push(&taken, block);
        p = (block - m->w->super.data_first) / BITMAP_PAGE_BITS;
        if (!stored[p]) {
            stored[p] = 1;
            need = blocks_needed(stored, count);
        }
    }
    free(stored);
    u32vec_done(&m->reserved);
    m->reserved = taken;
    return r;
}

fiber_fn int mend_bitmap(struct mend *m, struct tree_root *ret)
{
    uint32_t count = m->w->trees[TREE_BITMAP].levels[0].count;
    struct block_ptr *ptrs = calloc(count, sizeof(*ptrs));
    int r = ptrs != NULL ? bitmap_reserve(m, count) : -ENOMEM;

    for (uint32_t p = 0; r == 0 && p < count; p++) {
        if (bitmap_page_fill(m, p))
            r = mend_put(m, PAGE_BITMAP, p, m->page, &ptrs[p]);
    }
    if (r == 0)
        r = mend_tables(m, PAGE_BITMAP, ptrs, count, ret);
    ASSERT(r < 0 || m->reserved.count == 0);
    free(ptrs);
    return r;
}
