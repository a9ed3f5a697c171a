/* SPDX-License-Identifier: Apache-2.0 */
/* Pages of the index: reading them back, onodes from their slots and slots from onodes (I1, I2). */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/store_internal.h"

/* --- pages in memory --- */

int onode_page_reserve(struct onode_index *x, uint32_t page_count)
{
    if (page_count > x->image_count) {
        uint32_t count = MAX(page_count, x->image_count + x->image_count / 4 + 8);
        struct index_page **images = realloc(x->images, count * sizeof(struct index_page *));
        if (images == NULL)
            return -ENOMEM;
        memset(images + x->image_count, 0, (count - x->image_count) * sizeof(struct index_page *));
        x->images = images;
        x->image_count = count;
    }
    return 0;
}

struct index_page *onode_page_find(const struct onode_index *x, uint32_t page)
{
    struct index_page *p = page < x->image_count ? x->images[page] : NULL;

    return p != NULL && !p->loading ? p : NULL;
}

static struct index_page *page_new(struct onode_index *x, uint32_t number)
{
    struct index_page *p = malloc(sizeof(*p));

    if (p == NULL)
        return NULL;
    *p = (struct index_page){.number = number, .data = page_get(x->pool), .epoch = x->epoch - 1};
    list_init(&p->link);
    if (p->data == NULL) {
        free(p);
        return NULL;
    }
    list_push_back(&x->pages, &p->link);
    x->images[number] = p;
    x->page_count++;
    return p;
}

void onode_page_drop(struct onode_index *x, struct index_page *p)
{
    x->images[p->number] = NULL;
    x->page_count--;
    list_remove(&p->link);
    page_put(x->pool, p->data);
    free(p);
}

/* --- slots --- */

static bool is_live(const struct entry *e)
{
    return e != NULL && e->state == ONODE_LIVE;
}

bool onode_page_is_empty(const struct onode_index *x, uint32_t page)
{
    for (uint32_t i = page * SLOTS_PER_PAGE; i < (page + 1) * SLOTS_PER_PAGE; i++) {
        const struct entry *e = entry_at(&x->entries, i);
        if (e != NULL && e->state != ONODE_ABSENT)
            return false;
    }
    return true;
}

/* True if all live objects of the page are loaded, or, with `none`, if it has no live one. */
static bool page_is_known(const struct onode_index *x, uint32_t page, bool none)
{
    for (uint32_t i = page * SLOTS_PER_PAGE; i < (page + 1) * SLOTS_PER_PAGE; i++) {
        if (is_live(entry_at(&x->entries, i)) && (none || onode_at(x, i) == NULL))
            return false;
    }
    return true;
}

static void slot_fill(const struct entry *e, const struct onode *o, struct slot *slot)
{
    *slot = (struct slot){.oid = e->oid,
                          .version = e->version,
                          .meta_version = e->meta_version,
                          .flags = SLOT_USED,
                          .meta_length = e->meta_length};
    if (e->state == ONODE_TOMBSTONE) {
        slot->flags |= SLOT_TOMBSTONE;
        return;
    }
    slot->leaf_count = o->leaf_count;
    if (o->damaged)
        slot->flags |= SLOT_DAMAGED;
    if (o->leaf_count > SLOT_LEAVES) {
        slot->flags |= SLOT_INDIRECT;
        slot->leaves[0].ptr = o->indirect;
    } else {
        for (unsigned i = 0; i < o->leaf_count; i++)
            slot->leaves[i] = (struct slot_leaf){o->refs[i].ptr, o->refs[i].used, o->refs[i].end};
    }
    if (e->meta_length > SLOT_META_INLINE) {
        slot->flags |= SLOT_META_BLOCK;
        slot->meta = o->meta->ref.ptr;
    } else if (e->meta_length > 0) {
        memcpy(slot->meta_inline, o->meta->data, SLOT_META_INLINE);
    }
}

/* Brings a page's content up to date. Slots of objects that are not loaded are as they were. */
static void page_update(const struct onode_index *x, uint32_t page, uint8_t *data)
{
    for (uint32_t k = 0; k < SLOTS_PER_PAGE; k++) {
        uint32_t i = page * SLOTS_PER_PAGE + k;
        const struct entry *e = entry_at(&x->entries, i);
        const struct onode *o = onode_at(x, i);
        struct slot slot;
        if (e == NULL || e->state == ONODE_ABSENT) {
            memset(data + SLOT_SIZE * k, 0, SLOT_SIZE);
        } else if (e->state == ONODE_TOMBSTONE || o != NULL) {
            slot_fill(e, o, &slot);
            slot_encode(&slot, data + SLOT_SIZE * k);
        }
    }
}

bool onode_page_may_change(const struct onode_index *x, uint32_t page)
{
    return onode_page_find(x, page) != NULL || page_is_known(x, page, true);
}

void onode_page_encode(const struct onode_index *x, uint32_t page, uint8_t out[STORE_BLOCK])
{
    struct index_page *p = onode_page_find(x, page);

    ASSERT(p != NULL || page_is_known(x, page, true));
    page_update(x, page, p != NULL ? p->data : out);
    if (p == NULL)
        return;
    memcpy(out, p->data, STORE_BLOCK);
    p->epoch = x->epoch; /* I2 */
}

int onode_page_settled(struct onode_index *x, uint32_t page)
{
    if (onode_page_may_change(x, page)) {
        tree_mark(&x->tree, page);
        return 0;
    }
    if (x->late.count > 0 && x->late.v[x->late.count - 1] == page)
        return 0; /* most often */
    return u32vec_push(&x->late, page);
}

/* --- loading --- */

static fiber_fn int page_read(struct store *s, struct index_page *p)
{
    struct onode_index *x = &s->index;
    struct block_want w = {
        .ptr = x->tree.levels[0].ptrs[p->number], .type = PAGE_INDEX, .position = p->number};
    int r = block_read_one(s, &w, p->data);

    if (r < 0)
        entry_page_close(&x->entries, p->number); /* the next new object goes elsewhere */
    return r;
}

/* Brings a page into memory and pins it. */
static fiber_fn int page_pin(struct store *s, uint32_t number, struct index_page **ret)
{
    struct onode_index *x = &s->index;
    struct index_page *p;
    int r = 0;

    while ((p = x->images[number]) != NULL && p->loading)
        waitq_wait(&x->loads);
    if (p == NULL) {
        p = page_new(x, number);
        if (p == NULL)
            return -ENOMEM;
        memset(p->data, 0, STORE_BLOCK);
        if (page_is_known(x, number, false)) {
            page_update(x, number, p->data);
        } else {
            p->loading = true;
            r = page_read(s, p);
            p->loading = false;
            waitq_wake_all(&x->loads);
        }
        if (r < 0) {
            onode_page_drop(x, p);
            return r;
        }
    }
    p->pins++;
    p->touched = true;
    *ret = p;
    return 0;
}

static int bad_slot(struct store *s, const struct onode *o)
{
    char name[OID_TEXT_SIZE];

    store_problem(s, s->index.tree.levels[0].ptrs[o->slot / SLOTS_PER_PAGE].block,
                  "the record of object %s is not where it was", oid_format(&o->e->oid, name));
    return -EUCLEAN;
}

static int refs_fill(struct onode_index *x, struct onode *o, const struct slot *slot,
                     const uint8_t *indirect)
{
    int r = onode_grow(x, o, slot->leaf_count);

    for (unsigned i = 0; r == 0 && i < slot->leaf_count; i++) {
        struct slot_leaf leaf = slot->leaves[i % SLOT_LEAVES];
        if (indirect != NULL)
            r = slot_leaf_decode(indirect + SLOT_LEAF_SIZE * i, &leaf);
        o->refs[i].ptr = leaf.ptr;
        o->refs[i].used = leaf.used;
        o->refs[i].end = leaf.end;
    }
    return r;
}

/* Fills o from its slot; `indirect` is the block with the pointers to its leaves, if it has one. */
static int onode_fill(struct onode_index *x, struct onode *o, const struct slot *slot,
                      const uint8_t *indirect)
{
    int r = refs_fill(x, o, slot, indirect);

    if (r == 0 && slot->meta_length > 0)
        r = onode_meta_make(x, o);
    if (r < 0) {
        o->leaf_count = 0;
        return r;
    }
    if (indirect != NULL)
        o->indirect = slot->leaves[0].ptr;
    if (slot->meta_length > 0) {
        o->meta->ref.ptr = slot->meta;
        memcpy(o->meta->data, slot->meta_inline, SLOT_META_INLINE);
    }
    o->damaged = (slot->flags & SLOT_DAMAGED) != 0;
    o->loaded = true;
    return 0;
}

/* Reads what the slot says. The page is pinned; o cannot change before it is loaded. */
static fiber_fn int onode_read(struct store *s, struct onode *o, const struct index_page *p)
{
    uint8_t *indirect = NULL;
    struct slot slot;
    int r = slot_decode(p->data + o->slot % SLOTS_PER_PAGE * SLOT_SIZE, &slot);

    if (r < 0 || slot.flags == 0 || (slot.flags & SLOT_TOMBSTONE) ||
        !oid_equal(&slot.oid, &o->e->oid) || slot.version.value != o->e->version.value ||
        slot.meta_length != o->e->meta_length)
        return bad_slot(s, o);
    if (slot.flags & SLOT_INDIRECT) {
        struct block_want w = {.ptr = slot.leaves[0].ptr, .type = PAGE_INDIRECT};
        indirect = page_get(&s->pages);
        r = indirect != NULL ? block_read_one(s, &w, indirect) : -ENOMEM;
    }
    if (r == 0 && !o->loaded) { /* another fiber may have been faster */
        r = onode_fill(&s->index, o, &slot, indirect);
        s->stats.record_loads++;
    }
    if (indirect != NULL)
        page_put(&s->pages, indirect);
    return r;
}

fiber_fn int onode_load(struct store *s, struct onode *o)
{
    struct index_page *p;
    int r = 0;

    ASSERT(o->busy != NULL);
    if (o->busy->page == NULL) {
        leaf_cache_shrink(s);
        r = page_pin(s, o->slot / SLOTS_PER_PAGE, &p);
        if (r < 0)
            return r;
        if (o->busy->page == NULL)
            o->busy->page = p;
        else
            p->pins--;
    }
    return o->loaded ? 0 : onode_read(s, o, o->busy->page);
}

fiber_fn int onode_get(struct store *s, const struct oid *oid, struct onode_reader *reader,
                       struct onode **ret)
{
    struct onode_index *x = &s->index;
    uint32_t slot = entry_find(&x->entries, oid);
    const struct entry *e = slot != ENTRY_NONE ? entry_at(&x->entries, slot) : NULL;
    struct onode *o;
    int r;

    if (e == NULL || e->state != ONODE_LIVE)
        return -ENOENT;
    o = onode_of(x, e);
    if (reader->held == NULL && (o == NULL || !o->loaded || reader->again)) {
        reader->held = onode_hold_slot(x, slot);
        if (reader->held == NULL)
            return -ENOMEM;
        o = reader->held;
    }
    if (!o->loaded) {
        r = onode_load(s, o);
        return r == 0 ? -EAGAIN : r;
    }
    *ret = o;
    return 0;
}

void onode_reader_end(struct store *s, struct onode_reader *reader)
{
    if (reader->held != NULL)
        onode_release(&s->index, reader->held);
    reader->held = NULL;
}

fiber_fn int index_prepare(struct store *s)
{
    struct onode_index *x = &s->index;
    int r = 0;

    while (r == 0 && x->late.count > 0) {
        size_t i = x->late.count - 1; /* others may come behind it, none goes */
        uint32_t page = x->late.v[i];
        struct index_page *p;
        r = page_pin(s, page, &p);
        if (r < 0)
            break;
        tree_mark(&x->tree, page);
        p->pins--;
        x->late.v[i] = x->late.v[--x->late.count];
    }
    return r;
}
