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
        free(t->levels[l].states);
    }
    tree_init(t, t->type);
}

static int level_resize(struct tree_level *l, uint32_t count)
{
    if (count > l->capacity) {
        uint32_t capacity = MAX(count, l->capacity + l->capacity / 2 + 4);
        struct block_ptr *ptrs = realloc(l->ptrs, capacity * sizeof(*ptrs));
        if (ptrs == NULL)
            return -ENOMEM;
        l->ptrs = ptrs;
        uint8_t *states = realloc(l->states, capacity);
        if (states == NULL)
            return -ENOMEM;
        l->states = states;
        memset(ptrs + l->capacity, 0, (capacity - l->capacity) * sizeof(*ptrs));
        memset(states + l->capacity, TREE_CLEAN, capacity - l->capacity);
        l->capacity = capacity;
    }
    l->count = count;
    return 0;
}

int tree_resize(struct tree *t, uint32_t page_count)
{
    uint32_t count = page_count;
    unsigned level = 0;

    ASSERT(page_count >= t->levels[0].count);
    while (count > 0) {
        int r;
        ASSERT(level < TREE_LEVELS);
        r = level_resize(&t->levels[level], count);
        if (r < 0)
            return r;
        level++;
        if (count == 1)
            break;
        count = (count + TREE_FANOUT - 1) / TREE_FANOUT;
    }
    t->height = level;
    return 0;
}

void tree_mark(struct tree *t, uint32_t page)
{
    for (unsigned l = 0; l < t->height; l++) {
        struct tree_level *level = &t->levels[l];
        ASSERT(page < level->count);
        if (level->states[page] != TREE_CLEAN)
            return; /* then all above are not clean either */
        level->states[page] = TREE_DIRTY;
        level->dirty_count++;
        page /= TREE_FANOUT;
    }
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
