/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a checkpoint into memory: bitmap, share counts, all object records. */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/sharing.h"
#include "store/store_internal.h"

struct wants {
    struct block_want *v;
    size_t count, capacity;
};

static int wants_add(struct wants *w, struct block_want want)
{
    if (w->count == w->capacity) {
        size_t capacity = w->capacity * 2 + 64;
        struct block_want *v = realloc(w->v, capacity * sizeof(*v));
        if (v == NULL)
            return -ENOMEM;
        w->v = v;
        w->capacity = capacity;
    }
    w->v[w->count++] = want;
    return 0;
}

struct loading {
    struct store *s;
    struct tree *t;
    unsigned level;
};

/* A structure block that the checkpoint owns. Each may be owned once, and must be marked in the
 * bitmap; the bitmap is not known yet while its own blocks are read. */
static int note_structure(struct store *s, const struct block_want *w)
{
    s->structure_blocks++;
    if ((w->type == PAGE_BITMAP) || (w->type & PAGE_TABLE))
        return 0;
    if (space_is_free(&s->space, w->ptr.block)) {
        store_problem(s, w->ptr.block, "a block in use is free in the bitmap");
        return -EUCLEAN;
    }
    return 0;
}

static int load_table(void *arg, const struct block_want *w, const uint8_t *data)
{
    struct loading *l = arg;
    int r = note_structure(l->s, w);

    return r == 0 ? tree_table_decode(l->t, l->level, w->position, data) : r;
}

static int collect(const struct tree *t, unsigned level, struct wants *out)
{
    const struct tree_level *l = &t->levels[level];

    for (uint32_t i = 0; i < l->count; i++) {
        struct block_want w = {l->ptrs[i], tree_block_type(t, level), i, 0};
        int r = l->ptrs[i].block != 0 ? wants_add(out, w) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

/* Reads tables from the root down, then hands all pages to fn (NULL: they are not read). */
static fiber_fn int load_tree(struct store *s, struct tree *t, const struct tree_root *root,
                              int (*fn)(void *arg, const struct block_want *w, const uint8_t *data),
                              void *arg)
{
    int r;

    if (root->page_count > s->super.block_count)
        return -EUCLEAN; /* more pages than blocks */
    if (t->type != PAGE_INDEX && root->page_count != tree_page_count(t) && root->page_count != 0)
        return -EUCLEAN; /* those have their size from the store's */
    r = tree_resize(t, MAX(root->page_count, tree_page_count(t)));
    if (r < 0 || t->height == 0)
        return r;
    t->levels[t->height - 1].ptrs[0] = root->ptr;
    for (unsigned l = t->height; r == 0 && l > 0; l--) {
        struct loading loading = {s, t, l - 1};
        struct wants wants = {0};
        r = collect(t, l - 1, &wants);
        if (r == 0 && l > 1)
            r = blocks_read(s, wants.v, wants.count, load_table, &loading);
        else if (r == 0 && fn != NULL)
            r = blocks_read(s, wants.v, wants.count, fn, arg);
        free(wants.v);
    }
    return r;
}

static int load_bitmap_page(void *arg, const struct block_want *w, const uint8_t *data)
{
    struct store *s = arg;

    s->structure_blocks++;
    return space_page_set(&s->space, w->position, data);
}

static int check_ptr(struct store *s, struct block_ptr ptr)
{
    struct block_want w = {ptr, PAGE_LEAF, 0, 0};

    if (ptr.block == 0)
        return 0;
    if (!space_covers(&s->space, ptr.block)) {
        store_problem(s, ptr.block, "an object's map lies outside the store");
        return -EUCLEAN;
    }
    return note_structure(s, &w);
}

/* Adds a leaf to the sums of its object's entry. */
static int add_leaf(struct store *s, struct entry *e, unsigned index, const struct slot_leaf *leaf)
{
    e->block_count = (uint16_t)(e->block_count + leaf->used);
    if (leaf->used > 0)
        e->end = (uint16_t)(index * LEAF_ENTRIES + leaf->end);
    return check_ptr(s, leaf->ptr);
}

struct index_loading {
    struct store *s;
    struct wants indirect; /* tag: number of the slot */
};

static int load_slot(struct index_loading *l, const struct slot *slot, uint32_t number)
{
    struct store *s = l->s;
    int r = onode_add(&s->index, slot, number);

    if (r == 0 && (slot->flags & SLOT_INDIRECT)) {
        struct block_want w = {slot->leaves[0].ptr, PAGE_INDIRECT, 0, number};
        r = wants_add(&l->indirect, w);
    }
    for (unsigned i = 0; r == 0 && !(slot->flags & SLOT_INDIRECT) && i < slot->leaf_count; i++)
        r = add_leaf(s, entry_at(&s->index.entries, number), i, &slot->leaves[i]);
    if (r == 0 && slot->meta_length > 0)
        r = check_ptr(s, slot->meta);
    return r;
}

static int load_index_page(void *arg, const struct block_want *w, const uint8_t *data)
{
    struct index_loading *l = arg;
    int r = note_structure(l->s, w);

    for (uint32_t k = 0; r == 0 && k < SLOTS_PER_PAGE; k++) {
        struct slot slot;
        r = slot_decode(data + SLOT_SIZE * k, &slot);
        if (r == 0 && slot.flags != 0)
            r = load_slot(l, &slot, w->position * SLOTS_PER_PAGE + k);
    }
    if (r == -EUCLEAN)
        store_problem(l->s, w->ptr.block, "impossible record in object index page %u", w->position);
    return r;
}

static int load_indirect_block(void *arg, const struct block_want *w, const uint8_t *data)
{
    struct store *s = arg;
    struct entry *e = entry_at(&s->index.entries, w->tag);
    int r = note_structure(s, w);

    for (unsigned i = 0; r == 0 && i < OBJECT_LEAVES_MAX; i++) { /* zeros behind the last one */
        struct slot_leaf leaf;
        r = slot_leaf_decode(data + SLOT_LEAF_SIZE * i, &leaf);
        if (r == 0)
            r = add_leaf(s, e, i, &leaf);
    }
    return r;
}

static fiber_fn int load_index(struct store *s)
{
    struct index_loading l = {.s = s};
    const struct tree_root *root = &s->super.trees[TREE_INDEX];
    int r = root->page_count <= s->super.block_count ? 0 : -EUCLEAN;

    if (r == 0)
        r = entry_table_reserve(&s->index.entries, root->page_count);
    if (r == 0)
        r = onode_page_reserve(&s->index, root->page_count);
    if (r == 0)
        r = load_tree(s, &s->index.tree, root, load_index_page, &l);
    if (r == 0)
        r = blocks_read(s, l.indirect.v, l.indirect.count, load_indirect_block, s);
    free(l.indirect.v);
    return r;
}

fiber_fn int load_checkpoint(struct store *s)
{
    const struct tree_root *roots = s->super.trees;
    int r = tree_resize(&s->bitmap, s->space.page_count);

    if (r == 0)
        r = load_tree(s, &s->bitmap, &roots[TREE_BITMAP], load_bitmap_page, s);
    /* The bitmap's bits count as owned in space; that is what they are (A2). */
    if (r == 0)
        r = load_tree(s, &s->share.tree, &roots[TREE_SHARE], NULL, NULL);
    if (r == 0)
        r = sharing_count(s);
    if (r == 0)
        r = load_index(s);
    if (r == -EUCLEAN && s->problem[0] == '\0')
        store_problem(s, s->super_slot, "the checkpoint is damaged");
    return r;
}
