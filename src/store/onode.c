/* SPDX-License-Identifier: Apache-2.0 */
/* The index of objects in memory: lists, slots, digests. Knows nothing of commits or I/O. */
#include "store/onode.h"
#include <stdlib.h>
#include "base/err.h"

#define SLOT_NONE   UINT32_MAX
#define GROUP_COUNT 65536u

int onode_index_init(struct onode_index *x)
{
    *x = (struct onode_index){0};
    htable_init(&x->by_oid);
    htable_init(&x->by_vid);
    tree_init(&x->tree, PAGE_INDEX);
    list_init(&x->busy_free);
    x->groups = calloc(GROUP_COUNT, sizeof(*x->groups)); /* touched only where used */
    return x->groups != NULL ? 0 : -ENOMEM;
}

static void onode_free(struct onode *o)
{
    free(o->refs);
    free(o->meta);
    free(o->busy);
    free(o);
}

void onode_index_done(struct onode_index *x)
{
    struct hnode *n, *next;

    for (n = htable_iter(&x->by_oid, NULL); n != NULL; n = next) {
        next = htable_iter(&x->by_oid, n);
        onode_free(container_of(n, struct onode, node));
    }
    for (n = htable_iter(&x->by_vid, NULL); n != NULL; n = next) {
        next = htable_iter(&x->by_vid, n);
        free(container_of(n, struct vid_list, node));
    }
    while (!list_empty(&x->busy_free)) {
        struct busy *b = list_first(&x->busy_free, struct busy, link);
        list_remove(&b->link);
        free(b);
    }
    htable_done(&x->by_oid);
    htable_done(&x->by_vid);
    tree_done(&x->tree);
    free(x->groups);
    free(x->slots);
}

struct onode *onode_find(const struct onode_index *x, const struct oid *oid)
{
    struct hnode *n;

    for (n = htable_first(&x->by_oid, oid_hash(oid)); n != NULL; n = htable_next_same(n)) {
        struct onode *o = container_of(n, struct onode, node);
        if (oid_equal(&o->oid, oid))
            return o;
    }
    return NULL;
}

static struct onode *onode_new(struct onode_index *x, const struct oid *oid)
{
    struct onode *o = calloc(1, sizeof(*o));

    if (o == NULL)
        return NULL;
    o->oid = *oid;
    o->slot = SLOT_NONE;
    list_init(&o->vid_link);
    list_init(&o->group_link);
    if (htable_insert(&x->by_oid, &o->node, oid_hash(oid)) < 0) {
        free(o);
        return NULL;
    }
    return o;
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
        o->busy->state = o->state;
        o->busy->version = o->version;
        o->busy->meta_version = o->meta_version;
    }
    o->busy->users++;
    return o;
}

struct onode *onode_hold(struct onode_index *x, const struct oid *oid)
{
    struct onode *o = onode_find(x, oid);
    bool fresh = o == NULL;

    if (fresh)
        o = onode_new(x, oid);
    if (o == NULL)
        return NULL;
    if (onode_hold_found(x, o) != NULL)
        return o;
    if (fresh) {
        htable_remove(&x->by_oid, &o->node);
        onode_free(o);
    }
    return NULL;
}

void onode_release(struct onode_index *x, struct onode *o)
{
    ASSERT(o->busy != NULL && o->busy->users > 0);
    if (--o->busy->users > 0)
        return;
    list_push_front(&x->busy_free, &o->busy->link);
    o->busy = NULL;
    if (o->state == ONODE_ABSENT) {
        for (unsigned i = 0; i < o->leaf_count; i++)
            ASSERT(o->refs[i].mem == NULL);
        htable_remove(&x->by_oid, &o->node);
        onode_free(o);
    }
}

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
    l->vid = vid;
    l->ordered = true;
    l->count = 0;
    list_init(&l->onodes);
    if (htable_insert(&x->by_vid, &l->node, hash_u64(vid.value)) < 0) {
        free(l);
        return NULL;
    }
    return l;
}

/* A lowest free slot, so that the array stays dense. */
static int slot_take(struct onode_index *x, struct onode *o)
{
    uint32_t i = x->slot_hint;
    int r;

    while (i < x->slot_count && x->slots[i] != NULL)
        i++;
    if (i == x->slot_count) {
        uint32_t count = MAX(x->slot_count * 2, SLOTS_PER_PAGE);
        struct onode **slots = realloc(x->slots, count * sizeof(*slots));
        if (slots == NULL)
            return -ENOMEM;
        memset(slots + x->slot_count, 0, (count - x->slot_count) * sizeof(*slots));
        x->slots = slots;
        x->slot_count = count;
    }
    if (i / SLOTS_PER_PAGE >= tree_page_count(&x->tree)) {
        r = tree_resize(&x->tree, i / SLOTS_PER_PAGE + 1);
        if (r < 0)
            return r;
    }
    x->slots[i] = o;
    x->slot_hint = i + 1;
    x->slots_used++;
    o->slot = i;
    return 0;
}

static uint64_t entry_digest(const struct onode *o)
{
    uint8_t b[OID_BYTES + 16];

    oid_put(b, &o->oid);
    put_le64(b + OID_BYTES, o->version.value);
    put_le64(b + OID_BYTES + 8, o->meta_version);
    return hash_bytes(b, sizeof(b));
}

static void count_entry(struct onode_index *x, const struct onode *o, int sign)
{
    if (o->state == ONODE_LIVE) {
        x->object_count += sign;
        x->groups[o->oid.group].digest += sign > 0 ? entry_digest(o) : -entry_digest(o);
    } else if (o->state == ONODE_TOMBSTONE) {
        x->tombstone_count += sign;
    }
}

static void lists_remove(struct onode_index *x, struct onode *o)
{
    struct vid_list *l = onode_vid_list(x, (struct vid){o->oid.vid});

    list_remove(&o->vid_link);
    list_remove(&o->group_link);
    if (--l->count == 0) {
        htable_remove(&x->by_vid, &l->node);
        free(l);
    }
}

/* To the end of its vid's list: what changed last is last. */
static void lists_touch(struct vid_list *l, struct onode *o)
{
    list_remove(&o->vid_link);
    if (!list_empty(&l->onodes)) {
        const struct onode *tail = list_entry(l->onodes.prev, struct onode, vid_link);
        if (tail->version.value > o->version.value)
            l->ordered = false;
    } else {
        l->ordered = true;
    }
    list_push_back(&l->onodes, &o->vid_link);
}

static int lists_add(struct onode_index *x, struct onode *o)
{
    struct vid_list *l = vid_list_get(x, (struct vid){o->oid.vid});
    struct group_head *g = &x->groups[o->oid.group];

    if (l == NULL)
        return -ENOMEM;
    if (g->onodes.next == NULL)
        list_init(&g->onodes);
    list_push_back(&g->onodes, &o->group_link);
    l->count++;
    return 0;
}

void onode_mark(struct onode_index *x, struct onode *o)
{
    ASSERT(o->slot != SLOT_NONE);
    tree_mark(&x->tree, o->slot / SLOTS_PER_PAGE);
}

int onode_set(struct onode_index *x, struct onode *o, enum onode_state state,
              struct version version)
{
    int r;

    if (state == ONODE_ABSENT) {
        if (o->state == ONODE_ABSENT)
            return 0;
        count_entry(x, o, -1);
        lists_remove(x, o);
        onode_mark(x, o);
        x->slots[o->slot] = NULL;
        x->slot_hint = MIN(x->slot_hint, o->slot);
        x->slots_used--;
        o->slot = SLOT_NONE;
        o->state = ONODE_ABSENT;
        o->version.value = 0;
        o->meta_version = 0;
        return 0;
    }
    if (o->state == ONODE_ABSENT) {
        r = slot_take(x, o);
        if (r == 0)
            r = lists_add(x, o);
        if (r < 0)
            return r;
    }
    count_entry(x, o, -1);
    o->state = state;
    o->version = version;
    if (state == ONODE_TOMBSTONE)
        o->meta_version = 0;
    count_entry(x, o, 1);
    lists_touch(onode_vid_list(x, (struct vid){o->oid.vid}), o);
    onode_mark(x, o);
    return 0;
}

void onode_set_meta_version(struct onode_index *x, struct onode *o, uint64_t meta_version)
{
    ASSERT(o->state == ONODE_LIVE);
    count_entry(x, o, -1);
    o->meta_version = meta_version;
    count_entry(x, o, 1);
    onode_mark(x, o);
}

int onode_grow(struct onode *o, unsigned count)
{
    struct leaf_ref *refs;

    ASSERT(count <= OBJECT_LEAVES_MAX);
    if (count <= o->leaf_count)
        return 0;
    refs = realloc(o->refs, count * sizeof(*refs));
    if (refs == NULL)
        return -ENOMEM;
    memset(refs + o->leaf_count, 0, (count - o->leaf_count) * sizeof(*refs));
    /* Leaves in memory point to their onode and index, not into this array. */
    o->refs = refs;
    o->leaf_count = (uint8_t)count;
    return 0;
}

uint32_t onode_block_count(const struct onode *o)
{
    uint32_t n = 0;

    for (unsigned i = 0; i < o->leaf_count; i++)
        n += o->refs[i].used;
    return n;
}

uint32_t onode_end(const struct onode *o)
{
    for (unsigned i = o->leaf_count; i > 0; i--) {
        if (o->refs[i - 1].used > 0)
            return (i - 1) * LEAF_ENTRIES + o->refs[i - 1].end;
    }
    return 0;
}

static int load_parts(struct onode *o, const struct slot *slot)
{
    int r = onode_grow(o, slot->leaf_count);

    if (r < 0)
        return r;
    if (slot->flags & SLOT_INDIRECT) {
        o->indirect = slot->leaves[0].ptr;
    } else {
        for (unsigned i = 0; i < slot->leaf_count; i++) {
            o->refs[i].ptr = slot->leaves[i].ptr;
            o->refs[i].used = slot->leaves[i].used;
            o->refs[i].end = slot->leaves[i].end;
        }
    }
    o->meta_length = slot->meta_length;
    if (slot->meta_length > 0) {
        o->meta = calloc(1, sizeof(*o->meta));
        if (o->meta == NULL)
            return -ENOMEM;
        o->meta->ref.ptr = slot->meta;
        memcpy(o->meta->data, slot->meta_inline, SLOT_META_INLINE);
    }
    return 0;
}

int onode_load(struct onode_index *x, const struct slot *slot, uint32_t slot_number,
               struct onode **ret)
{
    struct onode *o;
    int r;

    if (onode_find(x, &slot->oid) != NULL)
        return -EUCLEAN;
    if (slot_number >= x->slot_count) {
        uint32_t count = tree_page_count(&x->tree) * SLOTS_PER_PAGE;
        ASSERT(slot_number < count);
        struct onode **slots = realloc(x->slots, count * sizeof(*slots));
        if (slots == NULL)
            return -ENOMEM;
        memset(slots + x->slot_count, 0, (count - x->slot_count) * sizeof(*slots));
        x->slots = slots;
        x->slot_count = count;
    }
    o = onode_new(x, &slot->oid);
    if (o == NULL)
        return -ENOMEM;
    r = load_parts(o, slot);
    if (r == 0)
        r = lists_add(x, o);
    if (r < 0) {
        htable_remove(&x->by_oid, &o->node);
        onode_free(o);
        return r;
    }
    o->state = slot->flags & SLOT_TOMBSTONE ? ONODE_TOMBSTONE : ONODE_LIVE;
    o->damaged = (slot->flags & SLOT_DAMAGED) != 0;
    o->version = slot->version;
    o->meta_version = slot->meta_version;
    o->slot = slot_number;
    x->slots[slot_number] = o;
    x->slots_used++;
    count_entry(x, o, 1);
    lists_touch(onode_vid_list(x, (struct vid){o->oid.vid}), o);
    *ret = o;
    return 0;
}

bool onode_page_is_empty(const struct onode_index *x, uint32_t page)
{
    for (uint32_t i = page * SLOTS_PER_PAGE; i < (page + 1) * SLOTS_PER_PAGE; i++) {
        if (i < x->slot_count && x->slots[i] != NULL)
            return false;
    }
    return true;
}

static void slot_fill(const struct onode *o, struct slot *slot)
{
    *slot = (struct slot){.oid = o->oid,
                          .version = o->version,
                          .meta_version = o->meta_version,
                          .flags = SLOT_USED,
                          .meta_length = o->meta_length,
                          .leaf_count = o->leaf_count};
    if (o->state == ONODE_TOMBSTONE)
        slot->flags |= SLOT_TOMBSTONE;
    if (o->damaged)
        slot->flags |= SLOT_DAMAGED;
    if (o->leaf_count > SLOT_LEAVES) {
        slot->flags |= SLOT_INDIRECT;
        slot->leaves[0].ptr = o->indirect;
    } else {
        for (unsigned i = 0; i < o->leaf_count; i++)
            slot->leaves[i] = (struct slot_leaf){o->refs[i].ptr, o->refs[i].used, o->refs[i].end};
    }
    if (o->meta_length > SLOT_META_INLINE) {
        slot->flags |= SLOT_META_BLOCK;
        slot->meta = o->meta->ref.ptr;
    } else if (o->meta_length > 0) {
        memcpy(slot->meta_inline, o->meta->data, SLOT_META_INLINE);
    }
}

void onode_page_encode(const struct onode_index *x, uint32_t page, uint8_t out[STORE_BLOCK])
{
    memset(out, 0, STORE_BLOCK);
    for (uint32_t k = 0; k < SLOTS_PER_PAGE; k++) {
        uint32_t i = page * SLOTS_PER_PAGE + k;
        struct slot slot;
        if (i >= x->slot_count || x->slots[i] == NULL)
            continue;
        slot_fill(x->slots[i], &slot);
        slot_encode(&slot, out + SLOT_SIZE * k);
    }
}
