/* SPDX-License-Identifier: Apache-2.0 */
/* Opening, arrays, and the comparison of bitmap and share counts with what was claimed. */
#define LOG_MODULE "store"
#include "store/walk.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/err.h"
#include "base/log.h"
#include "store/store_internal.h"
#include "store/walk_internal.h"

#define WRONG_LISTED 50u /* of the blocks whose bit or count is wrong; the rest is only counted */

void walk_finding(struct walk *w, const char *format, ...)
{
    char text[320];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    w->finding_count++;
    if (w->report != NULL)
        w->report(w->arg, text);
}

void walk_say(struct walk *w, const char *format, ...)
{
    char text[320];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (w->say != NULL)
        w->say(w->arg, text);
}

static unsigned long long offset_of(uint32_t block)
{
    return (unsigned long long)block * STORE_BLOCK;
}

static const char *array_name(unsigned type)
{
    return type == PAGE_INDEX    ? "object index"
           : type == PAGE_BITMAP ? "free-space bitmap"
                                 : "share count";
}

fiber_fn int walk_read(struct walk *w, struct block_ptr ptr, unsigned type, uint32_t position,
                       uint8_t *out)
{
    int r;

    if (!walk_covers(w, ptr.block))
        return -EUCLEAN;
    r = disk_read(w->disk, offset_of(ptr.block), out, STORE_BLOCK);
    if (r < 0)
        return r;
    return layout_crc(w->salt, type, position, out) == ptr.crc ? 0 : -EUCLEAN;
}

bool walk_claim_structure(struct walk *w, uint32_t block)
{
    uint16_t *n;

    if (!walk_covers(w, block))
        return false;
    n = &w->owners[block - w->super.data_first];
    if (*n != 0)
        return false;
    *n = WALK_STRUCTURE;
    return true;
}

/* --- opening --- */

static fiber_fn int open_super(struct walk *w)
{
    int r = super_read(w->disk, &w->super, &w->super_slot, &w->super_bad);

    if (r == 0 && w->super.size > w->disk->size)
        r = -EUCLEAN;
    if (r == 0)
        w->salt = layout_salt(&w->super.store);
    return r;
}

fiber_fn int walk_open(struct rt *rt, const char *path, unsigned flags, struct walk *w)
{
    int r;

    htable_init(&w->seen);
    r = disk_open(rt, path, flags | DISK_OPEN_EXCLUSIVE, 0, &w->disk);
    if (r == 0)
        r = open_super(w);
    if (r < 0)
        return r;
    w->owners = calloc(walk_block_count(w), sizeof(*w->owners));
    w->marked = calloc(walk_block_count(w) / 64 + 1, sizeof(*w->marked));
    w->page = aligned_alloc(STORE_BLOCK, STORE_BLOCK);
    w->leaf = aligned_alloc(STORE_BLOCK, STORE_BLOCK);
    return w->owners && w->marked && w->page && w->leaf ? 0 : -ENOMEM;
}

void walk_close(struct walk *w)
{
    for (unsigned t = 0; t < TREE_COUNT; t++) {
        for (unsigned l = 0; l < TREE_LEVELS; l++) {
            free(w->trees[t].levels[l].ptrs);
            free(w->trees[t].levels[l].states);
        }
    }
    walk_seen_free(w);
    free(w->owners);
    free(w->marked);
    free(w->page);
    free(w->leaf);
    if (w->disk != NULL)
        disk_close(w->disk);
    *w = (struct walk){0};
}

/* --- arrays --- */

static int tree_size(struct walk_tree *t, uint32_t pages)
{
    for (uint32_t count = pages; count > 0; count = (count + TREE_FANOUT - 1) / TREE_FANOUT) {
        struct walk_level *l = &t->levels[t->height++];
        l->count = count;
        l->ptrs = calloc(count, sizeof(*l->ptrs));
        l->states = calloc(count, 1);
        if (l->ptrs == NULL || l->states == NULL)
            return -ENOMEM;
        if (count == 1)
            break;
    }
    return 0;
}

static void node_lost(struct walk *w, struct walk_tree *t, unsigned level, uint32_t i,
                      const char *why)
{
    struct walk_level *l = &t->levels[level];

    l->states[i] = WALK_LOST;
    t->lost_count++;
    walk_finding(w, "offset %llu: %s of the %s, number %u: %s", offset_of(l->ptrs[i].block),
                 level == 0 ? "a page" : "a table", array_name(t->type), i, why);
}

/* Pointers past the end must be 0. */
static bool table_fits(const struct walk_tree *t, unsigned level, uint32_t i, const uint8_t *in)
{
    uint64_t first = (uint64_t)i * TREE_FANOUT;

    for (uint32_t k = 0; k < TREE_FANOUT; k++) {
        if (first + k >= t->levels[level - 1].count && leaf_entry(in, k).block != 0)
            return false;
    }
    return true;
}

/* Pointers of a table into the level below. */
static void table_take(struct walk_tree *t, unsigned level, uint32_t i, const uint8_t *in)
{
    struct walk_level *below = &t->levels[level - 1];
    uint64_t first = (uint64_t)i * TREE_FANOUT;

    for (uint32_t k = 0; k < TREE_FANOUT && first + k < below->count; k++)
        below->ptrs[first + k] = leaf_entry(in, k);
}

static fiber_fn int node_walk(struct walk *w, struct walk_tree *t, unsigned level, uint32_t i)
{
    struct walk_level *l = &t->levels[level];
    struct block_ptr ptr = l->ptrs[i];
    int r;

    if (ptr.block == 0)
        return 0;
    r = walk_read(w, ptr, walk_block_type(t, level), i, w->page);
    if (r == -EUCLEAN)
        node_lost(w, t, level, i,
                  walk_covers(w, ptr.block) ? "checksum error" : "outside the store");
    if (r < 0)
        return r == -EUCLEAN ? 0 : r;
    if (level > 0 && !table_fits(t, level, i, w->page)) {
        node_lost(w, t, level, i, "impossible content");
    } else if (!walk_claim_structure(w, ptr.block)) {
        node_lost(w, t, level, i, "the block has another owner too");
    } else {
        l->states[i] = WALK_GOOD;
        if (level > 0)
            table_take(t, level, i, w->page);
    }
    return 0;
}

static fiber_fn int tree_walk(struct walk *w, unsigned which, unsigned type, uint32_t pages_max)
{
    struct walk_tree *t = &w->trees[which];
    const struct tree_root *root = &w->super.trees[which];
    uint32_t pages = root->page_count;
    int r;

    t->type = type;
    if (pages > pages_max || (type != PAGE_INDEX && root->ptr.block != 0 && pages != pages_max)) {
        walk_finding(w, "offset 0: impossible size of the %s: %u pages", array_name(type), pages);
        t->lost_count++;
        pages = 0;
    }
    if (type != PAGE_INDEX)
        pages = pages_max;
    r = tree_size(t, pages);
    if (r < 0 || t->height == 0)
        return r;
    if (t->lost_count == 0)
        t->levels[t->height - 1].ptrs[0] = root->ptr;
    for (unsigned l = t->height; r == 0 && l > 0; l--) {
        for (uint32_t i = 0; r == 0 && i < t->levels[l - 1].count; i++)
            r = node_walk(w, t, l - 1, i);
    }
    return r;
}

/* --- bitmap and share counts against the claims --- */

static void wrong(struct walk *w, uint64_t *count, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void wrong(struct walk *w, uint64_t *count, const char *format, ...)
{
    char text[160];
    va_list args;

    if ((*count)++ >= WRONG_LISTED)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    walk_finding(w, "%s", text);
}

/* True if page p of the array is known: read into w->page, or zeros. */
static fiber_fn int page_known(struct walk *w, const struct walk_tree *t, uint32_t p, bool *ret)
{
    const struct walk_level *l = &t->levels[0];
    uint32_t above = p;

    *ret = l->states[p] != WALK_LOST;
    for (unsigned k = 1; *ret && l->ptrs[p].block == 0 && k < t->height; k++) {
        above /= TREE_FANOUT;
        *ret = t->levels[k].states[above] != WALK_LOST;
    }
    memset(w->page, 0, STORE_BLOCK);
    if (!*ret || l->ptrs[p].block == 0)
        return 0;
    return walk_read(w, l->ptrs[p], t->type, p, w->page);
}

static fiber_fn int compare_bitmap(struct walk *w)
{
    const struct walk_tree *t = &w->trees[TREE_BITMAP];
    uint32_t count = walk_block_count(w);

    for (uint32_t p = 0; p < t->levels[0].count; p++) {
        bool known;
        int r = page_known(w, t, p, &known);
        if (r < 0)
            return r;
        for (uint32_t k = 0; known && k < BITMAP_PAGE_BITS; k++) {
            uint64_t i = (uint64_t)p * BITMAP_PAGE_BITS + k;
            bool set = w->page[k / 8] >> k % 8 & 1, owned = i < count && w->owners[i] != 0;
            uint32_t block = (uint32_t)(w->super.data_first + i);
            if (set && i < count)
                w->marked[i / 64] |= 1ull << i % 64;
            if (set && i >= count)
                wrong(w, &w->bitmap_wrong, "the free-space bitmap has bits behind its end");
            else if (set && !owned)
                wrong(w, &w->bitmap_wrong, "offset %llu: block %u is allocated but has no owner",
                      offset_of(block), block);
            else if (!set && owned)
                wrong(w, &w->bitmap_wrong, "offset %llu: block %u is in use but free in the bitmap",
                      offset_of(block), block);
        }
    }
    if (w->bitmap_wrong > WRONG_LISTED)
        walk_finding(w, "%llu blocks are wrong in the free-space bitmap",
                     (unsigned long long)w->bitmap_wrong);
    return 0;
}

static fiber_fn int compare_share(struct walk *w)
{
    const struct walk_tree *t = &w->trees[TREE_SHARE];
    uint32_t count = walk_block_count(w);

    for (uint32_t p = 0; p < t->levels[0].count; p++) {
        bool known;
        int r = page_known(w, t, p, &known);
        if (r < 0)
            return r;
        for (uint32_t k = 0; known && k < SHARE_PAGE_COUNTS; k++) {
            uint64_t i = (uint64_t)p * SHARE_PAGE_COUNTS + k;
            uint32_t have = get_le16(w->page + 2 * k), block = (uint32_t)(w->super.data_first + i);
            uint32_t users = i < count && w->owners[i] != WALK_STRUCTURE ? w->owners[i] : 0;
            if (have != (users > 0 ? users - 1 : 0))
                wrong(w, &w->share_wrong,
                      "offset %llu: block %u has %u users, its share count says %u",
                      offset_of(block), block, users, have + 1);
        }
    }
    if (w->share_wrong > WRONG_LISTED)
        walk_finding(w, "%llu blocks have a wrong share count", (unsigned long long)w->share_wrong);
    return 0;
}

/* --- all of it --- */

static void look_at_super(struct walk *w)
{
    if (w->super_bad != 0)
        walk_finding(w,
                     "offset %u: a copy of the superblock is damaged or old; the other one is good",
                     w->super_bad & 1 ? 0 : STORE_BLOCK);
}

fiber_fn int walk_run(struct walk *w)
{
    uint32_t blocks = walk_block_count(w);
    int r;

    look_at_super(w);
    r = tree_walk(w, TREE_BITMAP, PAGE_BITMAP,
                  (uint32_t)(((uint64_t)blocks + BITMAP_PAGE_BITS - 1) / BITMAP_PAGE_BITS));
    if (r == 0)
        r = tree_walk(w, TREE_SHARE, PAGE_SHARE,
                      (uint32_t)(((uint64_t)blocks + SHARE_PAGE_COUNTS - 1) / SHARE_PAGE_COUNTS));
    if (r == 0)
        r = tree_walk(w, TREE_INDEX, PAGE_INDEX, blocks);
    if (r == 0)
        r = walk_objects(w);
    if (r == 0)
        r = compare_bitmap(w);
    if (r == 0)
        r = compare_share(w);
    return r;
}

bool walk_lost_objects(const struct walk *w)
{
    return w->trees[TREE_INDEX].lost_count > 0 || w->dropped_count > 0;
}

bool walk_is_damaged(const struct walk *w)
{
    for (unsigned t = 0; t < TREE_COUNT; t++) {
        if (w->trees[t].lost_count > 0)
            return true;
    }
    return w->damaged_count > 0 || w->bitmap_wrong > 0 || w->share_wrong > 0;
}
