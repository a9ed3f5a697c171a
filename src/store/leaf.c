/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cache of leaves and meta blocks: loading, making them changeable; and what goes when the
 * cache is over its budget: onodes and index pages beyond a quarter of it each, leaves, then the
 * rest of them. Leaves are in the order of their last use, the others go round: what was used since
 * the last look stays.
 */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/store_internal.h"
#include "store/writes.h"

#define CACHE_BYTES_DEFAULT (16u << 20)
#define CACHE_BYTES_MIN     (4 * STORE_BLOCK) /* what is in use at the moment stays anyway */
#define TRIES               64u               /* those in use are soon not */

void leaf_cache_init(struct leaf_cache *c, uint64_t bytes)
{
    *c = (struct leaf_cache){0};
    list_init(&c->clean);
    list_init(&c->dirty);
    waitq_init(&c->loads);
    c->bytes_max = MAX(bytes != 0 ? bytes : CACHE_BYTES_DEFAULT, (uint64_t)CACHE_BYTES_MIN);
}

struct leaf_ref *leaf_ref_of(struct onode *o, unsigned index)
{
    if (index == LEAF_META)
        return o->meta != NULL ? &o->meta->ref : NULL;
    return index < o->leaf_count ? &o->refs[index] : NULL;
}

static struct leaf *leaf_new(struct store *s, struct onode *o, unsigned index)
{
    struct leaf *l = malloc(sizeof(*l));

    if (l == NULL)
        return NULL;
    *l = (struct leaf){.onode = o, .index = (uint8_t)index, .state = LEAF_LOADING};
    list_init(&l->link);
    l->data = page_get(&s->pages);
    if (l->data == NULL) {
        free(l);
        return NULL;
    }
    s->cache.count++;
    return l;
}

void leaf_free(struct store *s, struct leaf *l)
{
    if (l->state == LEAF_DIRTY)
        s->cache.dirty_count--;
    list_remove(&l->link);
    if (l->write != NULL)
        writes_take_data(l);
    else
        page_put(&s->pages, l->data);
    s->cache.count--;
    free(l);
}

void leaf_set_state(struct store *s, struct leaf *l, enum leaf_state state)
{
    struct leaf_cache *c = &s->cache;

    if (l->state == LEAF_DIRTY)
        c->dirty_count--;
    list_remove(&l->link);
    l->state = state;
    if (state == LEAF_DIRTY) {
        c->dirty_count++;
        list_push_back(&c->dirty, &l->link);
    } else if (state == LEAF_CLEAN) {
        list_push_back(&c->clean, &l->link);
    }
}

static bool leaf_evictable(const struct leaf *l)
{
    return l->onode->busy == NULL && l->write == NULL;
}

static void leaves_shrink(struct store *s)
{
    struct leaf *l, *tmp;
    unsigned tries = TRIES;

    list_for_each_safe (l, tmp, &s->cache.clean, link) {
        if (cache_bytes(s) <= s->cache.bytes_max || tries-- == 0)
            return;
        if (!leaf_evictable(l))
            continue;
        leaf_ref_of(l->onode, l->index)->mem = NULL;
        leaf_free(s, l);
    }
}

static bool is_being_written(const struct store *s, const struct index_page *p)
{
    return s->ckpt != NULL && p != NULL && p->epoch == s->index.epoch; /* I2 */
}

/* O5 */
static bool onode_evictable(const struct store *s, const struct onode *o)
{
    uint32_t page = o->slot / SLOTS_PER_PAGE;

    if (o->busy != NULL || onode_page_is_dirty(&s->index, page) ||
        (o->meta != NULL && o->meta->ref.mem != NULL) ||
        (o->indirect.block != 0 && is_being_written(s, onode_page_find(&s->index, page))))
        return false;
    for (unsigned i = 0; i < o->leaf_count; i++) {
        if (o->refs[i].mem != NULL)
            return false;
    }
    return true;
}

static void onodes_shrink(struct store *s, size_t bytes)
{
    struct onode_index *x = &s->index;

    for (unsigned i = 0; i < TRIES; i++) {
        struct onode *o;
        if (cache_bytes(s) <= s->cache.bytes_max || x->onode_bytes <= bytes)
            return;
        o = list_first(&x->onodes, struct onode, link);
        if (!o->touched && onode_evictable(s, o)) {
            onode_drop(x, o);
            continue;
        }
        o->touched = false;
        list_remove(&o->link);
        list_push_back(&x->onodes, &o->link);
    }
}

/* I1, I2 */
static bool page_evictable(const struct store *s, const struct index_page *p)
{
    return p->pins == 0 && !p->loading && !onode_page_is_dirty(&s->index, p->number) &&
           !is_being_written(s, p);
}

static void pages_shrink(struct store *s, size_t bytes)
{
    struct onode_index *x = &s->index;

    for (unsigned i = 0; i < TRIES; i++) {
        struct index_page *p;
        if (cache_bytes(s) <= s->cache.bytes_max || x->page_count * STORE_BLOCK <= bytes)
            return;
        p = list_first(&x->pages, struct index_page, link);
        if (!p->touched && page_evictable(s, p)) {
            onode_page_drop(x, p);
            continue;
        }
        p->touched = false;
        list_remove(&p->link);
        list_push_back(&x->pages, &p->link);
    }
}

static void shares_shrink(struct store *s, size_t bytes)
{
    size_t others = cache_bytes(s) - (size_t)s->share.loaded * STORE_BLOCK;
    size_t room = s->cache.bytes_max - MIN(s->cache.bytes_max, others);

    share_shrink(&s->share, MAX(bytes, room) / STORE_BLOCK);
}

void leaf_cache_shrink(struct store *s)
{
    if (cache_bytes(s) <= s->cache.bytes_max)
        return;
    onodes_shrink(s, s->cache.bytes_max / 4);
    pages_shrink(s, s->cache.bytes_max / 4);
    shares_shrink(s, s->cache.bytes_max / 4);
    leaves_shrink(s);
    onodes_shrink(s, 0);
    pages_shrink(s, 0);
    shares_shrink(s, 0);
}

/* What freeing and sharing rely on: the blocks of a map exist and are in use, as many as its record
 * says. A right checksum is no proof of that: somebody may have written this store who is not us.
 */
static int leaf_verify(struct store *s, const struct leaf_ref *ref, const uint8_t *data)
{
    unsigned used = 0, end = 0;

    for (unsigned i = 0; i < LEAF_ENTRIES; i++) {
        uint32_t block = leaf_entry(data, i).block;
        if (block == 0)
            continue;
        if (!space_covers(&s->space, block) || space_is_free(&s->space, block)) {
            store_problem(s, ref->ptr.block, "an object's map has block %u, which is %s", block,
                          space_covers(&s->space, block) ? "free" : "not there");
            return -EUCLEAN;
        }
        used++;
        end = i + 1;
    }
    if (used == ref->used && end == ref->end)
        return 0;
    store_problem(s, ref->ptr.block,
                  "an object's map has %u blocks up to %u, its record says %u up to %u", used, end,
                  ref->used, ref->end);
    return -EUCLEAN;
}

/* Reads l; other fibers wait on cache.loads meanwhile. o is held. */
static fiber_fn int leaf_fill(struct store *s, struct onode *o, struct leaf *l)
{
    unsigned index = l->index;
    struct leaf_ref *ref = leaf_ref_of(o, index);
    struct block_want w = {.ptr = ref->ptr,
                           .type = index == LEAF_META ? PAGE_META : PAGE_LEAF,
                           .position = index == LEAF_META ? 0 : index};
    int r = block_read_one(s, &w, l->data);

    if (r == 0 && !l->orphan && index != LEAF_META)
        r = leaf_verify(s, leaf_ref_of(o, index), l->data);
    if (l->orphan) {
        leaf_free(s, l);
        r = 0; /* the caller looks again */
    } else if (r < 0) {
        ref = leaf_ref_of(o, index); /* the array may have moved */
        ref->mem = NULL;
        leaf_free(s, l);
    } else {
        leaf_set_state(s, l, LEAF_CLEAN);
    }
    waitq_wake_all(&s->cache.loads);
    return r;
}

fiber_fn int leaf_load(struct store *s, struct onode *o, unsigned index, struct leaf **ret,
                       bool *suspended)
{
    struct leaf_ref *ref = leaf_ref_of(o, index);
    struct leaf *l;
    int r = 0;

    if (ref == NULL || (ref->mem == NULL && ref->ptr.block == 0)) {
        *ret = NULL;
        return 0;
    }
    l = ref->mem;
    if (l != NULL && l->state != LEAF_LOADING) {
        if (l->state == LEAF_CLEAN)
            leaf_set_state(s, l, LEAF_CLEAN); /* most recently used */
        *ret = l;
        return 0;
    }
    if (onode_hold_found(&s->index, o) == NULL)
        return -ENOMEM;
    *suspended = true;
    if (l != NULL) {
        waitq_wait(&s->cache.loads); /* the caller looks again */
    } else {
        leaf_cache_shrink(s);
        l = leaf_new(s, o, index);
        if (l == NULL) {
            r = -ENOMEM;
        } else {
            ref->mem = l;
            r = leaf_fill(s, o, l);
        }
    }
    ref = leaf_ref_of(o, index);
    *ret = ref != NULL ? ref->mem : NULL;
    onode_release(&s->index, o);
    return r;
}

fiber_fn int leaf_load_range(struct store *s, struct onode *o, unsigned first, unsigned last)
{
    for (unsigned i = first; i <= last && i < o->leaf_count; i++) {
        struct leaf *l;
        bool suspended;
        do {
            int r;
            suspended = false;
            r = leaf_load(s, o, i, &l, &suspended);
            if (r < 0)
                return r;
        } while (suspended);
    }
    return 0;
}

struct leaf *leaf_change(struct store *s, struct onode *o, unsigned index)
{
    struct leaf_ref *ref = leaf_ref_of(o, index);
    struct leaf *l;

    ASSERT(ref != NULL);
    l = ref->mem;
    if (l == NULL) {
        ASSERT(ref->ptr.block == 0);
        l = leaf_new(s, o, index);
        if (l == NULL)
            return NULL;
        memset(l->data, 0, STORE_BLOCK);
        ref->mem = l;
    } else if (l->write != NULL) {
        uint8_t *copy = page_get(&s->pages);
        if (copy == NULL)
            return NULL;
        memcpy(copy, l->data, STORE_BLOCK);
        writes_take_data(l);
        l->data = copy;
    }
    ASSERT(index == LEAF_META || l->state != LEAF_LOADING || ref->ptr.block == 0);
    if (l->state != LEAF_DIRTY)
        leaf_set_state(s, l, LEAF_DIRTY);
    if (o->leaf_count > SLOT_LEAVES)
        o->indirect_dirty = true;
    return l;
}

int leaf_drop(struct store *s, struct onode *o, unsigned index)
{
    struct leaf_ref *ref = leaf_ref_of(o, index);

    if (ref == NULL)
        return 0;
    if (ref->ptr.block != 0) {
        int r = u32vec_push(&s->stale, ref->ptr.block);
        if (r < 0)
            return r;
    }
    if (ref->mem != NULL && ref->mem->state == LEAF_LOADING)
        ref->mem->orphan = true;
    else if (ref->mem != NULL)
        leaf_free(s, ref->mem);
    *ref = (struct leaf_ref){0};
    return 0;
}

int leaf_replace_damaged(struct store *s, struct onode *o, unsigned index)
{
    struct leaf_ref *ref = leaf_ref_of(o, index);
    char name[OID_TEXT_SIZE];
    int r;

    ASSERT(ref->mem == NULL);
    log_warn("%s: the map of object %s from %u MiB on is lost; its blocks stay allocated until a "
             "repair",
             s->disk->name, oid_format(&o->e->oid, name), index * 2);
    r = u32vec_push(&s->stale, ref->ptr.block);
    if (r < 0)
        return r;
    *ref = (struct leaf_ref){0};
    o->damaged = true;
    onode_sum(o);
    onode_mark(&s->index, o);
    return 0;
}

void leaf_cache_done(struct store *s)
{
    struct list *lists[] = {&s->cache.clean, &s->cache.dirty};

    for (unsigned i = 0; i < ARRAY_SIZE(lists); i++) {
        while (!list_empty(lists[i])) {
            struct leaf *l = list_first(lists[i], struct leaf, link);
            leaf_ref_of(l->onode, l->index)->mem = NULL;
            leaf_free(s, l);
        }
    }
    ASSERT(s->cache.count == 0);
}
