/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading of share counts.
 *
 * Where nothing is shared, or all that is in memory, share.missing is 0 and nothing here costs a
 * thing. Else the pages needed are found by walking the same leaves that the applying is going to
 * walk, again and again until none is missing: then no page can go before they are used (holds).
 */
#define LOG_MODULE "store"
#include "store/sharing.h"
#include "base/err.h"
#include "base/log.h"

#define WANTS_MAX 64u

/* Pages to load, each once. */
struct wants {
    struct store *s;
    uint32_t pages[WANTS_MAX];
    unsigned count;
};

/* --- loading --- */

/* False: somebody else was faster, or what was read is not the newest any more. */
static bool still_wanted(const struct store *s, const struct block_want *w)
{
    struct block_ptr p = s->share.tree.levels[0].ptrs[w->position];

    return s->share.pages[w->position] == NULL && p.block == w->ptr.block && p.crc == w->ptr.crc;
}

static int page_arrived(void *arg, const struct block_want *w, const uint8_t *data)
{
    struct store *s = arg;

    return still_wanted(s, w) ? share_page_set(&s->share, w->position, data) : 0;
}

/* One by one, so that only the bad ones are given up (X3). A page that cannot be read now may be
 * readable later, and would then lack the users that came meanwhile: that is an error, and it is
 * not given up. */
static fiber_fn int load_carefully(struct store *s, const struct block_want *wants, size_t count)
{
    uint8_t *buffer = page_get(&s->pages);
    int r = buffer != NULL ? 0 : -ENOMEM;

    for (size_t i = 0; r == 0 && i < count; i++) {
        const struct block_want *w = &wants[i];
        if (!still_wanted(s, w))
            continue;
        r = block_read_one(s, w, buffer);
        if (r == -ENOMEM || r == -EIO)
            break;
        if (r < 0 && still_wanted(s, w))
            log_warn(
                "%s: share count page %u, offset %llu, cannot be read (%s): the blocks that it "
                "counts are not freed until a repair",
                s->disk->name, w->position, (unsigned long long)w->ptr.block * STORE_BLOCK,
                err_text(r));
        r = page_arrived(s, w, r < 0 ? NULL : buffer);
    }
    if (buffer != NULL)
        page_put(&s->pages, buffer);
    return r;
}

static fiber_fn int load_wants(struct wants *w)
{
    struct block_want wants[WANTS_MAX];
    struct store *s = w->s;
    size_t n = w->count;
    int r;

    for (size_t i = 0; i < n; i++)
        wants[i] = (struct block_want){s->share.tree.levels[0].ptrs[w->pages[i]], PAGE_SHARE,
                                       w->pages[i], 0};
    w->count = 0;
    if (n == 0)
        return 0;
    r = blocks_read(s, wants, n, page_arrived, s);
    return r == -EUCLEAN || r == -EIO ? load_carefully(s, wants, n) : r;
}

/* --- what is needed --- */

static void want_block(struct wants *w, uint32_t block)
{
    uint32_t page = (block - w->s->share.first) / SHARE_PAGE_COUNTS;

    if (w->count == WANTS_MAX || !space_covers(&w->s->space, block) ||
        share_is_loaded(&w->s->share, block))
        return;
    for (unsigned i = 0; i < w->count; i++) {
        if (w->pages[i] == page)
            return;
    }
    w->pages[w->count++] = page;
}

/* What is mapped in blocks [start, end) of o. */
static void want_range(struct wants *w, const struct onode *o, uint32_t start, uint32_t end)
{
    end = MIN(end, o->leaf_count * LEAF_ENTRIES);
    for (uint32_t k = start; k < end; k++) {
        const struct leaf_ref *ref = &o->refs[k / LEAF_ENTRIES];
        struct block_ptr p;
        if (ref->used == 0 || ref->mem == NULL) {
            k |= LEAF_ENTRIES - 1;
            continue;
        }
        p = leaf_entry(ref->mem->data, k % LEAF_ENTRIES);
        if (p.block != 0)
            want_block(w, p.block);
    }
}

static void want_object(struct wants *w, const struct oid *oid)
{
    const struct onode *o = onode_find(&w->s->index, oid);

    if (o != NULL)
        want_range(w, o, 0, OBJECT_BLOCKS_MAX);
}

static void want_record(struct wants *w, const struct record *rec)
{
    const struct onode *o;

    if (rec->type == RECORD_REMOVE || (rec->type == RECORD_CHANGE && rec->replace))
        want_object(w, &rec->oid);
    if (rec->type != RECORD_CHANGE)
        return;
    if (rec->has_source)
        want_object(w, &rec->source);
    o = onode_find(&w->s->index, &rec->oid);
    for (unsigned i = 0; o != NULL && i < rec->punch_count; i++) {
        struct record_run run = record_punch_get(rec, i);
        want_range(w, o, run.start, run.start + run.count);
    }
    for (unsigned i = 0; i < rec->run_count; i++) {
        struct record_run run = record_run_get(rec, i);
        if (o != NULL)
            want_range(w, o, run.start, run.start + run.count);
        for (uint32_t k = 0; k < run.count; k++)
            want_block(w, run.block + k);
    }
}

static void want_commit(struct wants *w, const struct commit *c)
{
    struct dec d;

    dec_init(&d, c->payload.data, c->payload.length);
    while (dec_left(&d) > 0) {
        struct record rec;
        int r = record_take(&d, &rec);
        ASSERT(r == 0);
        want_record(w, &rec);
    }
}

static fiber_fn int prepare(struct store *s, const struct commit *c, const struct record *rec)
{
    struct wants w = {.s = s};
    int r = 0;

    if (s->share.missing == 0)
        return 0;
    s->share.holds++;
    do {
        if (c != NULL)
            want_commit(&w, c);
        else
            want_record(&w, rec);
        if (w.count == 0)
            break;
        r = load_wants(&w);
    } while (r == 0);
    s->share.holds--;
    return r;
}

fiber_fn int sharing_prepare(struct store *s, const struct commit *c)
{
    return prepare(s, c, NULL);
}

fiber_fn int sharing_prepare_record(struct store *s, const struct record *rec)
{
    return prepare(s, NULL, rec);
}

fiber_fn int sharing_load(struct store *s, uint32_t block)
{
    struct wants w = {.s = s};

    want_block(&w, block);
    return load_wants(&w);
}

/* --- open --- */

static int count_page(void *arg, const struct block_want *w, const uint8_t *data)
{
    struct store *s = arg;
    int r = share_page_count(&s->share, data);

    if (r < 0)
        store_problem(s, w->ptr.block, "share count page %u holds no counts", w->position);
    return r;
}

fiber_fn int sharing_count(struct store *s)
{
    const struct tree_level *level = &s->share.tree.levels[0];
    struct block_want wants[WANTS_MAX];
    size_t n = 0;
    int r = 0;

    for (uint32_t p = 0; r == 0 && p < level->count; p++) {
        if (level->ptrs[p].block != 0) {
            wants[n++] = (struct block_want){level->ptrs[p], PAGE_SHARE, p, 0};
            s->share.missing++;
            s->structure_blocks++;
        }
        if (n == 0 || (n < WANTS_MAX && p + 1 < level->count))
            continue;
        uint64_t users = s->share.extra_users, blocks = s->share.shared_blocks;
        r = blocks_read(s, wants, n, count_page, s);
        if (r == -EUCLEAN || r == -EIO) {
            s->share.extra_users = users;
            s->share.shared_blocks = blocks;
            r = load_carefully(s, wants, n);
            for (size_t i = 0; r == 0 && i < n; i++)
                share_page_count_loaded(&s->share, wants[i].position);
        }
        n = 0;
    }
    return r;
}
