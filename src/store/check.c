/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_check(): proves S2 from what is on disk. Opens the store read-only (checkpoint, log
 * replayed in memory), counts the owners of every block by walking everything, and compares with
 * bitmap and share counts. A store that cannot be opened is walked without opening it (walk.h).
 */
#define LOG_MODULE "store"
#include <stdarg.h>
#include <stdio.h>
#include "base/err.h"
#include "base/log.h"
#include "store/sharing.h"
#include "store/store_internal.h"
#include "store/walk.h"

#define READ_BLOCKS 256u

struct checking {
    struct store *s;
    uint16_t *owners; /* per block, saturating */
    uint8_t *buffer;  /* READ_BLOCKS blocks */
    bool read_data;
    void (*report)(void *arg, const char *finding);
    void *arg;
    struct store_check_report result;
};

static void finding(struct checking *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void finding(struct checking *c, const char *format, ...)
{
    char text[256];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    c->result.error_count++;
    if (c->report != NULL)
        c->report(c->arg, text);
}

/* Counts an owner. True when it is the first. */
static bool own(struct checking *c, uint32_t block, const char *what)
{
    uint16_t *n;

    if (!space_covers(&c->s->space, block)) {
        finding(c, "offset %llu: %s lies outside the store",
                (unsigned long long)block * STORE_BLOCK, what);
        return false;
    }
    n = &c->owners[block - c->s->space.first];
    if (*n < UINT16_MAX)
        (*n)++;
    return *n == 1;
}

static void own_structure(struct checking *c, uint32_t block, const char *what)
{
    c->result.structure_block_count += block != 0;
    if (block != 0 && !own(c, block, what))
        finding(c, "offset %llu: %s has a second owner", (unsigned long long)block * STORE_BLOCK,
                what);
}

static void own_tree(struct checking *c, const struct tree *t, const char *what)
{
    for (unsigned l = 0; l < t->height; l++) {
        for (uint32_t i = 0; i < t->levels[l].count; i++)
            own_structure(c, t->levels[l].ptrs[i].block, what);
    }
}

/* Reads `count` neighbouring blocks and compares each with its entry of the leaf. */
static fiber_fn void check_data_run(struct checking *c, const struct onode *o, const uint8_t *leaf,
                                    unsigned leaf_index, unsigned i, unsigned count)
{
    char name[OID_TEXT_SIZE];
    uint32_t block = leaf_entry(leaf, i).block;
    int r = disk_read(c->s->disk, block_offset(block), c->buffer, (size_t)count * STORE_BLOCK);

    c->result.checked_data_blocks += count;
    for (unsigned k = 0; k < count; k++) {
        if (r == 0 && crc32c(0, c->buffer + (size_t)k * STORE_BLOCK, STORE_BLOCK) ==
                          leaf_entry(leaf, i + k).crc)
            continue;
        finding(c, "offset %llu: %s, object %s at byte %llu",
                (unsigned long long)(block + k) * STORE_BLOCK,
                r < 0 ? "data cannot be read" : "data does not match its checksum",
                oid_format(&o->e->oid, name),
                ((unsigned long long)leaf_index * LEAF_ENTRIES + i + k) * STORE_BLOCK);
    }
}

static fiber_fn void check_leaf_content(struct checking *c, struct onode *o, unsigned index)
{
    const struct leaf_ref *ref = &o->refs[index];
    const uint8_t *leaf = ref->mem->data;
    unsigned used = 0, end = 0, run = 0, count = 0;
    char name[OID_TEXT_SIZE];

    for (unsigned i = 0; i <= LEAF_ENTRIES; i++) {
        struct block_ptr p = i < LEAF_ENTRIES ? leaf_entry(leaf, i) : (struct block_ptr){0};
        bool first = p.block != 0 && own(c, p.block, "data");
        if (count > 0 &&
            (!first || count == READ_BLOCKS || p.block != leaf_entry(leaf, run).block + count)) {
            check_data_run(c, o, leaf, index, run, count);
            count = 0;
        }
        if (p.block == 0)
            continue;
        used++;
        end = i + 1;
        if (first && c->read_data) {
            if (count == 0)
                run = i;
            count++;
        }
    }
    if (used != ref->used || end != ref->end)
        finding(c, "object %s: its record says %u blocks up to %u, its map %u %u has %u up to %u",
                oid_format(&o->e->oid, name), ref->used, ref->end, index, ref->ptr.block, used,
                end);
}

static fiber_fn void check_leaf(struct checking *c, struct onode *o, unsigned index)
{
    struct leaf_ref *ref = leaf_ref_of(o, index);
    struct leaf *l = NULL;
    char name[OID_TEXT_SIZE];
    bool suspended;
    int r;

    own_structure(c, ref->ptr.block, index == LEAF_META ? "meta" : "an object map");
    c->s->problem[0] = '\0';
    r = leaf_load(c->s, o, index, &l, &suspended); /* nobody else is there */
    if (r < 0)
        finding(c, "object %s: %s", oid_format(&o->e->oid, name),
                c->s->problem[0] != '\0' ? c->s->problem : err_text(r));
    else if (l == NULL && ref->used > 0)
        finding(c, "object %s: map %u is missing", oid_format(&o->e->oid, name), index);
    else if (l != NULL && index != LEAF_META)
        check_leaf_content(c, o, index);
}

static fiber_fn void check_object(struct checking *c, struct onode *o)
{
    char name[OID_TEXT_SIZE];
    int r;

    c->s->problem[0] = '\0';
    r = onode_load(c->s, o);
    if (r < 0) {
        finding(c, "object %s: %s", oid_format(&o->e->oid, name),
                c->s->problem[0] != '\0' ? c->s->problem : err_text(r));
        return;
    }
    for (unsigned k = 0; k < o->leaf_count; k++)
        check_leaf(c, o, k);
    if (o->e->meta_length > SLOT_META_INLINE)
        check_leaf(c, o, LEAF_META);
    own_structure(c, o->indirect.block, "an object map index");
    if (o->damaged)
        finding(c, "object %s: part of its map is lost", oid_format(&o->e->oid, name));
}

static fiber_fn int check_objects(struct checking *c)
{
    struct onode_index *x = &c->s->index;

    for (uint32_t i = 0; i < entry_slot_count(&x->entries); i++) {
        const struct entry *e = entry_at(&x->entries, i);
        struct onode *o;
        if (e == NULL || e->state != ONODE_LIVE)
            continue;
        o = onode_hold_slot(x, i);
        if (o == NULL)
            return -ENOMEM;
        check_object(c, o);
        onode_release(x, o);
        leaf_cache_shrink(c->s);
    }
    return 0;
}

/* The share counts of a page's worth of blocks. False: they cannot be read, which is reported. */
static fiber_fn bool load_counts(struct checking *c, uint32_t block)
{
    const struct tree_level *pages = &c->s->share.tree.levels[0];
    bool known;

    leaf_cache_shrink(c->s);
    known = sharing_load(c->s, block) == 0 && share_is_known(&c->s->share, block);
    if (!known)
        finding(c, "offset %llu: the share counts of %u blocks from offset %llu on cannot be read",
                (unsigned long long)block_offset(
                    pages->ptrs[(block - c->s->space.first) / SHARE_PAGE_COUNTS].block),
                SHARE_PAGE_COUNTS, (unsigned long long)block_offset(block));
    return known;
}

/* S2 */
static fiber_fn void check_owners(struct checking *c)
{
    struct space *sp = &c->s->space;
    bool counts_known = true;

    for (uint32_t i = 0; i < sp->count; i++) {
        uint32_t block = sp->first + i, owners = c->owners[i], extra;
        unsigned long long offset = (unsigned long long)block * STORE_BLOCK;
        if (i % SHARE_PAGE_COUNTS == 0)
            counts_known = load_counts(c, block);
        extra = counts_known ? share_get(&c->s->share, block) : owners - (owners > 0);
        if (space_is_free(sp, block) != (owners == 0))
            finding(c, "offset %llu: block %u is %s but has %u owners", offset, block,
                    owners == 0 ? "allocated" : "free", owners);
        else if (owners == 0 ? extra != 0 : owners < UINT16_MAX && extra != owners - 1)
            finding(c, "offset %llu: block %u has %u owners, its share count says %u", offset,
                    block, owners, extra + 1);
        c->result.block_count += owners > 0;
        c->result.free_block_count += owners == 0;
        c->result.shared_block_count += owners > 1;
        c->result.extra_user_count += owners > 1 ? owners - 1 : 0;
    }
}

static fiber_fn void check_super_copies(struct checking *c)
{
    struct super sb;
    unsigned slot, bad = 0;

    if (super_read(c->s->disk, &sb, &slot, &bad) < 0 || bad == 0)
        return;
    finding(c, "offset %u: a copy of the superblock is damaged or old; the other one is good",
            bad & 1 ? 0 : STORE_BLOCK);
}

static fiber_fn int check_opened(struct checking *c)
{
    struct store *s = c->s;
    int r;

    c->owners = calloc(s->space.count, sizeof(*c->owners));
    c->buffer = aligned_alloc(STORE_BLOCK, (size_t)READ_BLOCKS * STORE_BLOCK);
    if (c->owners == NULL || c->buffer == NULL)
        return -ENOMEM;
    if (s->inexact)
        finding(c, "the log is damaged: %s", s->problem);
    check_super_copies(c);
    own_tree(c, &s->index.tree, "a table of the object index");
    own_tree(c, &s->bitmap, "a bitmap page");
    own_tree(c, &s->share.tree, "a page of share counts");
    for (size_t i = 0; i < s->stale.count; i++)
        own_structure(c, s->stale.v[i], "a structure block of the last checkpoint");
    r = check_objects(c);
    if (r < 0)
        return r;
    check_owners(c);
    c->result.object_count = s->index.object_count;
    c->result.tombstone_count = s->index.tombstone_count;
    return 0;
}

static void walk_found(void *arg, const char *text)
{
    finding(arg, "%s", text);
}

/* The store cannot be opened: lists everything that is wrong with its structures, not only what
 * opening met first. */
static fiber_fn int check_closed(struct checking *c, struct rt *rt, const char *path,
                                 const char *problem)
{
    struct walk w = {.report = walk_found, .arg = c};
    int r = walk_open(rt, path, DISK_OPEN_READ_ONLY, &w);

    if (r == 0)
        r = walk_run(&w);
    if (r == 0 || r == -EUCLEAN) {
        if (w.finding_count == 0 || w.finding_count == (w.super_bad != 0))
            finding(c, "%s", problem[0] != '\0' ? problem : "the store cannot be opened");
        r = 0;
    }
    c->result.object_count = w.object_count;
    walk_close(&w);
    return r;
}

fiber_fn int store_check(struct rt *rt, const char *path, bool read_data,
                         void (*report)(void *arg, const char *finding), void *arg,
                         struct store_check_report *ret)
{
    const struct store_open_options options = {.read_only = true};
    struct checking c = {.read_data = read_data, .report = report, .arg = arg};
    char problem[256];
    int r = store_open_explain(rt, path, &options, &c.s, problem);

    if (r == -EUCLEAN) {
        r = check_closed(&c, rt, path, problem);
    } else if (r == 0) {
        r = check_opened(&c);
        free(c.owners);
        free(c.buffer);
        (void)store_close(c.s);
    }
    if (r == 0)
        *ret = c.result;
    return r;
}
