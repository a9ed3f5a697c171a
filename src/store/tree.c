/* SPDX-License-Identifier: Apache-2.0 */
/* Pointers and states of a paged array; who reads and writes the blocks is load.c and checkpoint.c.
 */
#include "store/tree.h"
#include <stdlib.h>
#include "base/err.h"

void tree_init(struct tree *t, enum page_type type)
{
    *t = (struct tree){.type = type};
}

void tree_done(struct tree *t)
{
    for (unsigned l = 0; l < TREE_LEVELS; l++) {
        free(t->levels[l].ptrs);
        free(t->levels[l].dirty);
    }
    tree_init(t, t->type);
}

#define WORD_BITS 64u

/* As realloc(), with zeros behind the old elements. A large new array is left untouched, so that
 * only what is used of it takes memory. NULL: out of memory, the old one stays. */
static void *grow(void *old, size_t old_count, size_t count, size_t size)
{
    uint8_t *p;

    if (old == NULL)
        return calloc(count, size);
    p = realloc(old, count * size);
    if (p != NULL)
        memset(p + old_count * size, 0, (count - old_count) * size);
    return p;
}

static int level_reserve(struct tree_level *l, uint32_t count)
{
    uint32_t capacity = ALIGN_UP(MAX(count, l->capacity + l->capacity / 2 + 4), WORD_BITS);
    size_t words = capacity / WORD_BITS, old_words = l->capacity / WORD_BITS;
    struct block_ptr *ptrs;
    uint64_t *dirty;

    if (count <= l->capacity)
        return 0;
    ptrs = grow(l->ptrs, l->capacity, capacity, sizeof(*ptrs));
    if (ptrs == NULL)
        return -ENOMEM;
    l->ptrs = ptrs;
    dirty = grow(l->dirty, old_words, words, sizeof(*dirty));
    if (dirty == NULL)
        return -ENOMEM;
    l->dirty = dirty;
    l->capacity = capacity;
    return 0;
}

static uint32_t tables_for(uint32_t count)
{
    return (count + TREE_FANOUT - 1) / TREE_FANOUT;
}

static void level_mark(struct tree_level *level, uint32_t i)
{
    level->dirty[i / WORD_BITS] |= 1ull << (i % WORD_BITS);
    level->dirty_count++;
}

/* All levels or none: a level more without its table would lose what is in it. */
int tree_resize(struct tree *t, uint32_t page_count)
{
    uint32_t count = page_count;
    unsigned height = page_count > 0, old_height = t->height;

    ASSERT(page_count >= t->levels[0].count);
    for (; count > 1; count = tables_for(count))
        height++;
    ASSERT(height <= TREE_LEVELS);
    count = page_count;
    for (unsigned l = 0; l < height; l++, count = tables_for(count)) {
        int r = level_reserve(&t->levels[l], count);
        if (r < 0)
            return r;
    }
    count = page_count;
    for (unsigned l = 0; l < height; l++, count = tables_for(count))
        t->levels[l].count = count;
    t->height = height;
    /* What was the root needs tables above it, whether or not a new page is ever used. */
    for (unsigned l = MAX(old_height, 1u); old_height > 0 && l < height; l++)
        level_mark(&t->levels[l], 0);
    return 0;
}

static bool is_dirty(const struct tree_level *level, uint32_t i)
{
    return level->dirty[i / WORD_BITS] >> (i % WORD_BITS) & 1;
}

void tree_mark_level(struct tree *t, unsigned l, uint32_t i)
{
    for (; l < t->height; l++) {
        struct tree_level *level = &t->levels[l];
        ASSERT(i < level->count);
        if (is_dirty(level, i))
            return; /* T3 */
        level->dirty[i / WORD_BITS] |= 1ull << (i % WORD_BITS);
        level->dirty_count++;
        i /= TREE_FANOUT;
    }
}

void tree_mark(struct tree *t, uint32_t page)
{
    tree_mark_level(t, 0, page);
}

bool tree_is_dirty(const struct tree *t, unsigned l, uint32_t i)
{
    return is_dirty(&t->levels[l], i);
}

void tree_set_clean(struct tree *t, unsigned l, uint32_t i)
{
    struct tree_level *level = &t->levels[l];

    ASSERT(i < level->count && is_dirty(level, i));
    level->dirty[i / WORD_BITS] &= ~(1ull << (i % WORD_BITS));
    level->dirty_count--;
}

bool tree_next_dirty(const struct tree *t, unsigned l, uint32_t from, uint32_t *ret)
{
    const struct tree_level *level = &t->levels[l];
    uint32_t words = (level->count + WORD_BITS - 1) / WORD_BITS;

    if (level->dirty_count == 0 || from >= level->count)
        return false;
    for (uint32_t w = from / WORD_BITS; w < words; w++) {
        uint64_t bits = level->dirty[w];
        if (w == from / WORD_BITS)
            bits &= UINT64_MAX << (from % WORD_BITS);
        if (bits != 0) {
            *ret = w * WORD_BITS + (uint32_t)__builtin_ctzll(bits);
            return true;
        }
    }
    return false;
}

uint64_t tree_dirty_count(const struct tree *t)
{
    uint64_t n = 0;

    for (unsigned l = 0; l < t->height; l++)
        n += t->levels[l].dirty_count;
    return n;
}

static uint32_t children(const struct tree *t, unsigned level, uint32_t i)
{
    uint32_t below = t->levels[level - 1].count;

    ASSERT(level >= 1 && level < t->height && i * TREE_FANOUT < below);
    return MIN(below - i * TREE_FANOUT, TREE_FANOUT);
}

void tree_table_encode(const struct tree *t, unsigned level, uint32_t i, uint8_t out[STORE_BLOCK])
{
    const struct block_ptr *p = t->levels[level - 1].ptrs + (size_t)i * TREE_FANOUT;
    uint32_t n = children(t, level, i);

    memset(out, 0, STORE_BLOCK);
    for (uint32_t k = 0; k < n; k++)
        leaf_entry_set(out, k, p[k]);
}

bool tree_table_is_empty(const struct tree *t, unsigned level, uint32_t i)
{
    const struct block_ptr *p = t->levels[level - 1].ptrs + (size_t)i * TREE_FANOUT;
    uint32_t n = children(t, level, i);

    for (uint32_t k = 0; k < n; k++) {
        if (p[k].block != 0)
            return false;
    }
    return true;
}

int tree_table_decode(struct tree *t, unsigned level, uint32_t i, const uint8_t in[STORE_BLOCK])
{
    struct block_ptr *p = t->levels[level - 1].ptrs + (size_t)i * TREE_FANOUT;
    uint32_t n = children(t, level, i);

    for (uint32_t k = 0; k < TREE_FANOUT; k++) {
        struct block_ptr ptr = leaf_entry(in, k);
        if (k < n)
            p[k] = ptr;
        else if (ptr.block != 0)
            return -EUCLEAN;
    }
    return 0;
}

struct tree_root tree_root_get(const struct tree *t)
{
    struct tree_root root = {.page_count = tree_page_count(t)};

    if (t->height > 0)
        root.ptr = t->levels[t->height - 1].ptrs[0];
    return root;
}
