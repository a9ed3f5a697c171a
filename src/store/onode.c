/* SPDX-License-Identifier: Apache-2.0 */
/* The index of objects in memory: onodes, lists, digests. Knows nothing of commits or I/O. */
#include "store/onode.h"
#include <stdlib.h>
#include "base/err.h"

void onode_index_init(struct onode_index *x, struct page_pool *pool)
{
    *x = (struct onode_index){.pool = pool, .place_free = ENTRY_NONE};
    entry_table_init(&x->entries);
    htable_init(&x->by_vid);
    tree_init(&x->tree, PAGE_INDEX);
    list_init(&x->onodes);
    list_init(&x->pages);
    list_init(&x->busy_free);
    waitq_init(&x->loads);
}

void onode_index_done(struct onode_index *x)
{
    struct hnode *n, *next;

    while (!list_empty(&x->onodes)) {
        struct onode *o = list_first(&x->onodes, struct onode, link);
        free(o->busy);
        o->busy = NULL;
        onode_drop(x, o);
    }
    while (!list_empty(&x->pages))
        onode_page_drop(x, list_first(&x->pages, struct index_page, link));
    for (n = htable_iter(&x->by_vid, NULL); n != NULL; n = next) {
        next = htable_iter(&x->by_vid, n);
        free(container_of(n, struct vid_list, node));
    }
    while (!list_empty(&x->busy_free)) {
        struct busy *b = list_first(&x->busy_free, struct busy, link);
        list_remove(&b->link);
        free(b);
    }
    entry_table_done(&x->entries);
    htable_done(&x->by_vid);
    tree_done(&x->tree);
    u32vec_done(&x->late);
    free(x->places);
    free(x->images);
}

struct entry *onode_entry(const struct onode_index *x, const struct oid *oid)
{
    uint32_t n = entry_find(&x->entries, oid);

    return n != ENTRY_NONE ? entry_at(&x->entries, n) : NULL;
}

struct onode *onode_of(const struct onode_index *x, const struct entry *e)
{
    struct onode *o;

    if (e->body == ENTRY_NONE)
        return NULL;
    o = x->places[e->body].o;
    o->touched = true;
    return o;
}

struct onode *onode_find(const struct onode_index *x, const struct oid *oid)
{
    uint32_t n = entry_find(&x->entries, oid);

    return n != ENTRY_NONE ? onode_at(x, n) : NULL;
}

struct onode *onode_at(const struct onode_index *x, uint32_t slot)
{
    const struct entry *e = entry_at(&x->entries, slot);
    struct onode *o = e != NULL && e->body != ENTRY_NONE ? x->places[e->body].o : NULL;

    return o != NULL && o->loaded ? o : NULL;
}

/* --- onodes in memory --- */

static int places_grow(struct onode_index *x)
{
    uint32_t count = x->place_count * 2 + 64;
    union onode_place *places = realloc(x->places, count * sizeof(*places));

    if (places == NULL)
        return -ENOMEM;
    for (uint32_t i = x->place_count; i < count; i++)
        places[i].next_free = i + 1 < count ? i + 1 : ENTRY_NONE;
    x->place_free = x->place_count;
    x->places = places;
    x->place_count = count;
    return 0;
}

static struct onode *onode_new(struct onode_index *x, uint32_t slot)
{
    struct entry *e = entry_at(&x->entries, slot);
    struct onode *o;

    if (x->place_free == ENTRY_NONE && places_grow(x) < 0)
        return NULL;
    o = calloc(1, sizeof(*o));
    if (o == NULL)
        return NULL;
    o->e = e;
    o->slot = slot;
    o->loaded = e->state != ONODE_LIVE;
    e->body = x->place_free;
    x->place_free = x->places[e->body].next_free;
    x->places[e->body].o = o;
    list_push_back(&x->onodes, &o->link);
    x->onode_bytes += sizeof(*o);
    return o;
}

void onode_drop(struct onode_index *x, struct onode *o)
{
    ASSERT(o->busy == NULL);
    for (unsigned i = 0; i < o->leaf_count; i++)
        ASSERT(o->refs[i].mem == NULL);
    onode_meta_drop(x, o);
    x->onode_bytes -= sizeof(*o) + o->ref_capacity * sizeof(*o->refs);
    list_remove(&o->link);
    x->places[o->e->body].next_free = x->place_free;
    x->place_free = o->e->body;
    o->e->body = ENTRY_NONE;
    free(o->refs);
    free(o);
}

static struct busy *busy_new(struct onode_index *x)
{
    struct busy *b;

    if (list_empty(&x->busy_free)) {
        b = malloc(sizeof(*b));
        if (b == NULL)
            return NULL;
        list_init(&b->link);
        fmutex_init(&b->prepare);
    } else {
        b = list_first(&x->busy_free, struct busy, link);
        list_remove(&b->link);
    }
    return b;
}

struct onode *onode_hold_found(struct onode_index *x, struct onode *o)
{
    if (o->busy == NULL) {
        o->busy = busy_new(x);
        if (o->busy == NULL)
            return NULL;
        o->busy->users = 0;
        o->busy->last_commit = 0;
        o->busy->page = NULL;
        o->busy->state = o->e->state;
        o->busy->version = o->e->version;
        o->busy->meta_version = o->e->meta_version;
    }
    o->busy->users++;
    o->touched = true;
    return o;
}

struct onode *onode_hold_slot(struct onode_index *x, uint32_t slot)
{
    const struct entry *e = entry_at(&x->entries, slot);
    struct onode *o = onode_of(x, e);

    if (o != NULL)
        return onode_hold_found(x, o);
    o = onode_new(x, slot);
    if (o != NULL && onode_hold_found(x, o) == NULL) {
        onode_drop(x, o);
        o = NULL;
    }
    return o;
}

/* Adds an absent entry, with room for its page. */
static int entry_make(struct onode_index *x, const struct oid *oid, uint32_t *ret)
{
    uint32_t page;
    int r = entry_insert(&x->entries, oid, ret);

    if (r < 0)
        return r;
    page = *ret / SLOTS_PER_PAGE;
    r = onode_page_reserve(x, page + 1);
    if (r == 0 && page >= tree_page_count(&x->tree)) {
        r = tree_resize(&x->tree, page + 1);
        if (r == 0)
            tree_mark(&x->tree, page); /* there may be a new root, over pages that are clean */
    }
    if (r < 0)
        entry_remove(&x->entries, *ret);
    return r;
}

struct onode *onode_hold(struct onode_index *x, const struct oid *oid)
{
    uint32_t slot = entry_find(&x->entries, oid);
    bool fresh = slot == ENTRY_NONE;
    struct onode *o;

    if (fresh && entry_make(x, oid, &slot) < 0)
        return NULL;
    o = onode_hold_slot(x, slot);
    if (o == NULL && fresh)
        entry_remove(&x->entries, slot);
    return o;
}

void onode_release(struct onode_index *x, struct onode *o)
{
    ASSERT(o->busy != NULL && o->busy->users > 0);
    if (--o->busy->users > 0)
        return;
    if (o->busy->page != NULL)
        o->busy->page->pins--;
    list_push_front(&x->busy_free, &o->busy->link);
    o->busy = NULL;
    if (o->e->state != ONODE_LIVE) { /* O3 */
        uint32_t slot = o->slot;
        bool absent = o->e->state == ONODE_ABSENT;
        onode_drop(x, o);
        if (absent)
            entry_remove(&x->entries, slot);
    }
}

int onode_grow(struct onode_index *x, struct onode *o, unsigned count)
{
    ASSERT(count <= OBJECT_LEAVES_MAX);
    if (count <= o->leaf_count)
        return 0;
    if (count > o->ref_capacity) {
        struct leaf_ref *refs = realloc(o->refs, count * sizeof(*refs));
        if (refs == NULL)
            return -ENOMEM;
        /* Leaves in memory point to their onode and index, not into this array. */
        o->refs = refs;
        x->onode_bytes += (count - o->ref_capacity) * sizeof(*refs);
        o->ref_capacity = (uint8_t)count;
    }
    memset(o->refs + o->leaf_count, 0, (count - o->leaf_count) * sizeof(*o->refs));
    o->leaf_count = (uint8_t)count;
    return 0;
}

int onode_meta_make(struct onode_index *x, struct onode *o)
{
    if (o->meta != NULL)
        return 0;
    o->meta = calloc(1, sizeof(*o->meta));
    if (o->meta == NULL)
        return -ENOMEM;
    x->onode_bytes += sizeof(*o->meta);
    return 0;
}

void onode_meta_drop(struct onode_index *x, struct onode *o)
{
    if (o->meta == NULL)
        return;
    x->onode_bytes -= sizeof(*o->meta);
    free(o->meta);
    o->meta = NULL;
}

void onode_sum(struct onode *o)
{
    uint32_t used = 0, end = 0;

    for (unsigned i = 0; i < o->leaf_count; i++) {
        used += o->refs[i].used;
        if (o->refs[i].used > 0)
            end = i * LEAF_ENTRIES + o->refs[i].end;
    }
    o->e->block_count = (uint16_t)used;
    o->e->end = (uint16_t)end;
}

/* --- lists and digests --- */

struct vid_list *onode_vid_list(const struct onode_index *x, struct vid vid)
{
    struct hnode *n;

    for (n = htable_first(&x->by_vid, hash_u64(vid.value)); n != NULL; n = htable_next_same(n)) {
        struct vid_list *l = container_of(n, struct vid_list, node);
        if (l->vid.value == vid.value)
            return l;
    }
    return NULL;
}

static struct vid_list *vid_list_get(struct onode_index *x, struct vid vid)
{
    struct vid_list *l = onode_vid_list(x, vid);

    if (l != NULL)
        return l;
    l = malloc(sizeof(*l));
    if (l == NULL)
        return NULL;
    *l = (struct vid_list){
        .vid = vid, .first = ENTRY_NONE, .last = ENTRY_NONE, .ordered = true, .count = 0};
    if (htable_insert(&x->by_vid, &l->node, hash_u64(vid.value)) < 0) {
        free(l);
        return NULL;
    }
    return l;
}

static void vid_unlink(struct onode_index *x, struct vid_list *l, struct entry *e)
{
    if (e->vid_prev != ENTRY_NONE)
        entry_at(&x->entries, e->vid_prev)->vid_next = e->vid_next;
    else
        l->first = e->vid_next;
    if (e->vid_next != ENTRY_NONE)
        entry_at(&x->entries, e->vid_next)->vid_prev = e->vid_prev;
    else
        l->last = e->vid_prev;
    if (--l->count == 0)
        l->ordered = true;
}

/* To the end of its vid's list: what changed last is last. */
static void vid_append(struct onode_index *x, struct vid_list *l, struct entry *e, uint32_t slot)
{
    e->vid_prev = l->last;
    e->vid_next = ENTRY_NONE;
    if (l->last != ENTRY_NONE) {
        struct entry *last = entry_at(&x->entries, l->last);
        if (last->version.value > e->version.value)
            l->ordered = false;
        last->vid_next = slot;
    } else {
        l->first = slot;
    }
    l->last = slot;
    l->count++;
}

static uint64_t entry_digest(const struct entry *e)
{
    uint8_t b[OID_BYTES + 16];

    oid_put(b, &e->oid);
    put_le64(b + OID_BYTES, e->version.value);
    put_le64(b + OID_BYTES + 8, e->meta_version);
    return hash_bytes(b, sizeof(b));
}

static void count_entry(struct onode_index *x, const struct entry *e, int sign)
{
    if (e->state == ONODE_LIVE) {
        struct entry_group *g = entry_group_get(&x->entries, e->oid.group);
        x->object_count += sign;
        g->digest += sign > 0 ? entry_digest(e) : -entry_digest(e);
    } else if (e->state == ONODE_TOMBSTONE) {
        x->tombstone_count += sign;
    }
}

void onode_mark(struct onode_index *x, struct onode *o)
{
    uint32_t page = o->slot / SLOTS_PER_PAGE;

    ASSERT(onode_page_find(x, page) != NULL); /* I1 */
    tree_mark(&x->tree, page);
}

/* Out of lists and digests. */
static void entry_clear(struct onode_index *x, struct entry *e)
{
    struct vid_list *l = onode_vid_list(x, (struct vid){e->oid.vid});

    count_entry(x, e, -1);
    vid_unlink(x, l, e);
    if (l->count == 0) {
        htable_remove(&x->by_vid, &l->node);
        free(l);
    }
    e->state = ONODE_ABSENT;
    e->version.value = 0;
    e->meta_version = 0;
}

int onode_set(struct onode_index *x, struct onode *o, enum onode_state state,
              struct version version)
{
    struct entry *e = o->e;
    struct vid_list *l;

    ASSERT(o->loaded);
    if (state == ONODE_ABSENT) {
        if (e->state != ONODE_ABSENT) {
            onode_mark(x, o);
            entry_clear(x, e);
        }
        return 0;
    }
    l = vid_list_get(x, (struct vid){e->oid.vid});
    if (l == NULL)
        return -ENOMEM;
    if (e->state != ONODE_ABSENT) {
        count_entry(x, e, -1);
        vid_unlink(x, l, e);
    }
    e->state = (uint8_t)state;
    e->version = version;
    if (state == ONODE_TOMBSTONE)
        e->meta_version = 0;
    count_entry(x, e, 1);
    vid_append(x, l, e, o->slot);
    onode_mark(x, o);
    return 0;
}

void onode_set_meta_version(struct onode_index *x, struct onode *o, uint64_t meta_version)
{
    ASSERT(o->e->state == ONODE_LIVE);
    count_entry(x, o->e, -1);
    o->e->meta_version = meta_version;
    count_entry(x, o->e, 1);
    onode_mark(x, o);
}

int onode_settle(struct onode_index *x, uint32_t slot, struct version stable)
{
    struct entry *e = entry_at(&x->entries, slot);
    struct onode *o = onode_of(x, e);
    int r = onode_page_settled(x, slot / SLOTS_PER_PAGE);

    ASSERT(e->state == ONODE_TOMBSTONE);
    if (r < 0)
        return r;
    if (o != NULL && o->busy->state == ONODE_TOMBSTONE && o->busy->version.value <= stable.value) {
        o->busy->state = ONODE_ABSENT;
        o->busy->version.value = 0;
    }
    entry_clear(x, e);
    if (o == NULL)
        entry_remove(&x->entries, slot);
    return 0;
}

int onode_add(struct onode_index *x, const struct slot *slot, uint32_t number)
{
    struct vid_list *l;
    struct entry *e;
    int r;

    if (entry_find(&x->entries, &slot->oid) != ENTRY_NONE ||
        ((slot->flags & SLOT_TOMBSTONE) && slot->leaf_count + slot->meta_length > 0))
        return -EUCLEAN;
    l = vid_list_get(x, (struct vid){slot->oid.vid});
    if (l == NULL)
        return -ENOMEM;
    r = entry_insert_at(&x->entries, &slot->oid, number);
    if (r < 0)
        return r;
    e = entry_at(&x->entries, number);
    e->state = slot->flags & SLOT_TOMBSTONE ? ONODE_TOMBSTONE : ONODE_LIVE;
    e->version = slot->version;
    e->meta_version = slot->meta_version;
    e->meta_length = slot->meta_length;
    count_entry(x, e, 1);
    vid_append(x, l, e, number);
    return 0;
}
