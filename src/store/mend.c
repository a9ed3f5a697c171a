/* SPDX-License-Identifier: Apache-2.0 */
/* Collecting what changes, free blocks, the object index; the other arrays are in mend_arrays.c. */
#define LOG_MODULE "store"
#include "store/mend.h"
#include <stdlib.h>
#include "base/err.h"
#include "base/log.h"
#include "store/log_scan.h"
#include "store/mend_internal.h"
#include "store/record.h"
#include "store/store_internal.h"

static int collect(void *arg, const struct walk_object *o)
{
    struct mend *m = arg;

    if (!o->changed && !o->dropped)
        return 0;
    if (m->object_count == m->object_capacity) {
        size_t capacity = m->object_capacity * 2 + 16;
        struct walk_object *objects = realloc(m->objects, capacity * sizeof(*objects));
        if (objects == NULL)
            return -ENOMEM;
        m->objects = objects;
        m->object_capacity = capacity;
    }
    m->objects[m->object_count++] = *o;
    return 0;
}

int mend_init(struct mend *m, struct walk *w)
{
    *m = (struct mend){.w = w};
    w->on_object = collect;
    w->on_object_arg = m;
    m->busy = calloc(walk_block_count(w) / 64 + 1, sizeof(*m->busy));
    m->page = aligned_alloc(STORE_BLOCK, STORE_BLOCK);
    return m->busy != NULL && m->page != NULL ? 0 : -ENOMEM;
}

void mend_done(struct mend *m)
{
    free(m->objects);
    free(m->missing);
    free(m->busy);
    free(m->page);
    u32vec_done(&m->reserved);
}

/* --- free blocks --- */

static bool bit_get(const uint64_t *bits, uint32_t i)
{
    return bits[i / 64] >> i % 64 & 1;
}

/* A block that nothing refers to; best one that was free in the bitmap, too, so that what may be
 * somebody's data is left for a last resort. */
static int block_find(struct mend *m, uint32_t *ret)
{
    uint32_t count = walk_block_count(m->w);

    for (unsigned careless = 0; careless < 2; careless++) {
        for (uint32_t n = 0; n < count; n++) {
            uint32_t i = (m->cursor + n) % count;
            if (bit_get(m->busy, i) || (!careless && bit_get(m->w->marked, i)))
                continue;
            m->cursor = (i + 1) % count;
            *ret = m->w->super.data_first + i;
            return 0;
        }
    }
    return -ENOSPC;
}

int mend_alloc(struct mend *m, uint32_t *ret)
{
    int r;

    if (m->reserved.count > 0) {
        *ret = m->reserved.v[--m->reserved.count];
        return 0;
    }
    r = block_find(m, ret);
    if (r < 0)
        return r;
    m->busy[(*ret - m->w->super.data_first) / 64] |= 1ull << (*ret - m->w->super.data_first) % 64;
    m->w->owners[*ret - m->w->super.data_first] = WALK_STRUCTURE;
    return 0;
}

void mend_release(struct mend *m, uint32_t block)
{
    ASSERT(m->w->owners[block - m->w->super.data_first] == WALK_STRUCTURE);
    m->w->owners[block - m->w->super.data_first] = 0;
}

fiber_fn int mend_put(struct mend *m, unsigned type, uint32_t position, const uint8_t *data,
                      struct block_ptr *ret)
{
    int r = mend_alloc(m, &ret->block);

    if (r < 0)
        return r;
    ret->crc = layout_crc(m->w->salt, type, position, data);
    return disk_write(m->w->disk, (uint64_t)ret->block * STORE_BLOCK, data, STORE_BLOCK, 0);
}

/* --- the log --- */

static int note_missing(struct mend *m, const struct oid *oid)
{
    int r;

    if (!walk_lost_objects(m->w) || walk_has_object(m->w, oid))
        return 0;
    if (m->missing_count == m->missing_capacity) {
        size_t capacity = m->missing_capacity * 2 + 16;
        struct oid *missing = realloc(m->missing, capacity * sizeof(*missing));
        if (missing == NULL)
            return -ENOMEM;
        m->missing = missing;
        m->missing_capacity = capacity;
    }
    r = walk_add_object(m->w, oid);
    if (r == 0)
        m->missing[m->missing_count++] = *oid;
    return r;
}

static int note_record(struct mend *m, const struct record *rec)
{
    int r = 0;

    for (unsigned i = 0; i < rec->run_count; i++) {
        struct record_run run = record_run_get(rec, i);
        for (uint32_t k = 0; k < run.count; k++) {
            uint32_t b = run.block + k;
            if (walk_covers(m->w, b))
                m->busy[(b - m->w->super.data_first) / 64] |= 1ull
                                                              << (b - m->w->super.data_first) % 64;
        }
    }
    if (rec->type == RECORD_SETTLE)
        return 0;
    if (rec->has_source)
        r = note_missing(m, &rec->source);
    if (r == 0 && !(rec->type == RECORD_CHANGE && (rec->replace || rec->has_source)))
        r = note_missing(m, &rec->oid);
    return r;
}

/* What the log behind the checkpoint will need. */
static fiber_fn int note_log(struct mend *m)
{
    struct log_scan sc;
    struct log_commit c = {.valid = false};
    int r = log_scan_init(&sc, m->w->disk, &m->w->super, m->w->salt);

    enc_init(&c.payload);
    while (r == 0) {
        struct dec d;
        r = log_scan_next(&sc, &c);
        if (r < 0 || !c.valid)
            break;
        dec_init(&d, c.payload.data, c.payload.length);
        while (r == 0 && dec_left(&d) > 0) {
            struct record rec;
            if (record_take(&d, &rec) < 0)
                break;
            r = note_record(m, &rec);
        }
    }
    enc_done(&c.payload);
    log_scan_done(&sc);
    return r;
}

/* --- the object index --- */

/* The record of what is left of an object, with a new index of its map if it needs one. */
static fiber_fn int object_encode(struct mend *m, struct walk_object *o, uint8_t *out)
{
    unsigned count = o->slot.leaf_count;
    int r = 0;

    if (o->slot.flags & SLOT_INDIRECT) {
        uint8_t *page = aligned_alloc(STORE_BLOCK, STORE_BLOCK);
        if (page == NULL)
            return -ENOMEM;
        memset(page, 0, STORE_BLOCK);
        for (unsigned i = 0; i < count; i++)
            slot_leaf_encode(&o->leaves[i], page + SLOT_LEAF_SIZE * i);
        mend_release(m, o->slot.leaves[0].ptr.block);
        r = mend_put(m, PAGE_INDIRECT, 0, page, &o->slot.leaves[0].ptr);
        free(page);
    } else {
        memcpy(o->slot.leaves, o->leaves, sizeof(o->slot.leaves));
    }
    if (r == 0)
        slot_encode(&o->slot, out);
    return r;
}

static bool is_zero(const uint8_t *page)
{
    return page[0] == 0 && memcmp(page, page + 1, STORE_BLOCK - 1) == 0;
}

/* Writes index page p with its changed records (objects[first, end)) and, where it was lost, with
 * records for missing objects. */
static fiber_fn int index_page(struct mend *m, uint32_t p, size_t first, size_t end,
                               size_t *missing, struct block_ptr *ptr)
{
    bool lost = ptr->block == 0;
    int r = 0;

    memset(m->page, 0, STORE_BLOCK);
    if (!lost) {
        r = walk_read(m->w, *ptr, PAGE_INDEX, p, m->page);
        mend_release(m, ptr->block);
    }
    for (size_t i = first; r == 0 && i < end; i++) {
        struct walk_object *o = &m->objects[i];
        uint8_t *out = m->page + SLOT_SIZE * (o->slot_number % SLOTS_PER_PAGE);
        memset(out, 0, SLOT_SIZE);
        if (!o->dropped)
            r = object_encode(m, o, out);
    }
    for (unsigned k = 0; lost && k < SLOTS_PER_PAGE && *missing < m->missing_count; k++) {
        struct slot slot = {
            .oid = m->missing[(*missing)++], .version = {1}, .flags = SLOT_USED | SLOT_DAMAGED};
        slot_encode(&slot, m->page + SLOT_SIZE * k);
    }
    *ptr = (struct block_ptr){0};
    return r < 0 || is_zero(m->page) ? r : mend_put(m, PAGE_INDEX, p, m->page, ptr);
}

static fiber_fn int index_write(struct mend *m, struct tree_root *ret)
{
    const struct walk_tree *t = &m->w->trees[TREE_INDEX];
    uint32_t old = t->height > 0 ? t->levels[0].count : 0;
    uint32_t count = old + (uint32_t)((m->missing_count + SLOTS_PER_PAGE - 1) / SLOTS_PER_PAGE);
    struct block_ptr *ptrs = calloc((size_t)count + 1, sizeof(*ptrs));
    size_t at = 0, missing = 0;
    int r = ptrs != NULL ? 0 : -ENOMEM;

    for (uint32_t p = 0; r == 0 && p < count; p++) {
        size_t first = at;
        bool good = p < old && t->levels[0].states[p] == WALK_GOOD;
        if (good)
            ptrs[p] = t->levels[0].ptrs[p];
        while (at < m->object_count && m->objects[at].slot_number / SLOTS_PER_PAGE == p)
            at++;
        if (at > first || (!good && missing < m->missing_count))
            r = index_page(m, p, first, at, &missing, &ptrs[p]);
    }
    if (r == 0)
        r = mend_tables(m, PAGE_INDEX, ptrs, count, ret);
    free(ptrs);
    return r;
}

/* --- all of it --- */

static void tell(struct mend *m)
{
    struct walk *w = m->w;
    char name[OID_TEXT_SIZE];

    for (size_t i = 0; i < m->object_count; i++) {
        const struct walk_object *o = &m->objects[i];
        walk_say(w, "mended: object %s: %s", oid_format(&o->slot.oid, name),
                 o->dropped ? "its record is dropped"
                 : o->slot.flags & SLOT_DAMAGED
                     ? "the good part of its map is kept, it is not read until it is replaced"
                     : "its record is put right");
    }
    for (size_t i = 0; i < m->missing_count; i++)
        walk_say(w, "mended: object %s is only in the log: it is not read until it is replaced",
                 oid_format(&m->missing[i], name));
    if (w->trees[TREE_INDEX].lost_count > 0)
        walk_say(w, "mended: the object index is written without %u pages or tables",
                 w->trees[TREE_INDEX].lost_count);
    walk_say(w, "mended: free-space bitmap and share counts are computed anew from the objects");
    if (walk_lost_objects(w))
        walk_say(w,
                 "mended: the store is marked inexact: its node will compare all objects with the "
                 "other nodes");
}

fiber_fn int mend_write(struct mend *m)
{
    struct walk *w = m->w;
    struct super next = w->super;
    int r;

    for (uint32_t i = 0; i < walk_block_count(w); i++) {
        if (w->owners[i] != 0)
            m->busy[i / 64] |= 1ull << i % 64;
    }
    r = note_log(m);
    if (r < 0)
        return r;
    mend_forget_tables(m);
    r = index_write(m, &next.trees[TREE_INDEX]);
    if (r == 0)
        r = mend_share(m, &next.trees[TREE_SHARE]);
    if (r == 0)
        r = mend_bitmap(m, &next.trees[TREE_BITMAP]);
    if (r == 0)
        r = disk_flush(w->disk);
    if (r < 0)
        return r;
    if (walk_lost_objects(w))
        next.flags |= SUPER_INEXACT;
    r = super_write_copies(w->disk, &next, w->super_slot, w->page);
    if (r == 0)
        tell(m);
    return r;
}
