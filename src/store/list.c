/* SPDX-License-Identifier: Apache-2.0 */
/* What the store tells about its objects and itself without touching the disk. */
#include "base/err.h"
#include "store/admit.h"

void store_stat(struct store *s, const struct oid *oid, struct store_stat *ret)
{
    const struct entry *e = onode_entry(&s->index, oid);

    *ret = (struct store_stat){0};
    if (e == NULL || e->state == ONODE_ABSENT)
        return;
    if (e->state == ONODE_TOMBSTONE) {
        ret->tombstone = e->version;
        return;
    }
    ret->version = e->version;
    ret->meta_version = e->meta_version;
    ret->meta_length = e->meta_length;
    ret->block_count = e->block_count;
    ret->end = (uint32_t)e->end * STORE_BLOCK;
}

struct listing {
    const struct store_filter *filter;
    struct store_entry *entries;
    size_t count, capacity;
};

static int listing_add(struct listing *l, const struct entry *e)
{
    const struct store_filter *f = l->filter;

    if (e->state == ONODE_ABSENT || e->version.value <= f->above.value)
        return 0;
    if ((f->by_vid && e->oid.vid != f->vid.value) || (f->by_group && e->oid.group != f->group))
        return 0;
    if (l->count == l->capacity) {
        size_t capacity = l->capacity * 2 + 64;
        struct store_entry *entries = realloc(l->entries, capacity * sizeof(*entries));
        if (entries == NULL)
            return -ENOMEM;
        l->entries = entries;
        l->capacity = capacity;
    }
    l->entries[l->count++] = (struct store_entry){
        .oid = e->oid,
        .version = e->version,
        .meta_version = e->meta_version,
        .tombstone = e->state == ONODE_TOMBSTONE,
    };
    return 0;
}

static int list_vid(struct store *s, struct listing *out)
{
    const struct vid_list *l = onode_vid_list(&s->index, out->filter->vid);
    uint32_t n = l != NULL ? l->last : ENTRY_NONE;
    int r = 0;

    while (r == 0 && n != ENTRY_NONE) {
        const struct entry *e = entry_at(&s->index.entries, n);
        if (l->ordered && e->version.value <= out->filter->above.value)
            break; /* all before it are older */
        r = listing_add(out, e);
        n = e->vid_prev;
    }
    return r;
}

static int list_group(struct store *s, struct listing *out)
{
    const struct entry_group *g = entry_group_find(&s->index.entries, out->filter->group);
    int r = 0;

    for (uint32_t b = 0; g != NULL && r == 0 && b < g->bucket_count; b++) {
        for (uint32_t n = g->buckets[b]; r == 0 && n != ENTRY_NONE;) {
            const struct entry *e = entry_at(&s->index.entries, n);
            r = listing_add(out, e);
            n = e->hash_next;
        }
    }
    return r;
}

static int list_all(struct store *s, struct listing *out)
{
    uint32_t count = entry_slot_count(&s->index.entries);
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < count; i++) {
        const struct entry *e = entry_at(&s->index.entries, i);
        r = e != NULL ? listing_add(out, e) : 0;
    }
    return r;
}

static int compare_entries(const void *a, const void *b)
{
    const struct store_entry *x = a, *y = b;

    return oid_compare(&x->oid, &y->oid);
}

int store_list(struct store *s, const struct store_filter *filter, struct store_entry **ret,
               size_t *ret_count)
{
    struct listing out = {.filter = filter};
    int r;

    if (filter->by_vid)
        r = list_vid(s, &out);
    else if (filter->by_group)
        r = list_group(s, &out);
    else
        r = list_all(s, &out);
    if (r < 0) {
        free(out.entries);
        return r;
    }
    if (out.count > 0)
        qsort(out.entries, out.count, sizeof(*out.entries), compare_entries);
    *ret = out.entries;
    *ret_count = out.count;
    return 0;
}

uint64_t store_digest(const struct store *s, uint16_t group)
{
    const struct entry_group *g = entry_group_find(&s->index.entries, group);

    return g != NULL ? g->digest : 0;
}

void store_usage(const struct store *s, struct store_usage *ret)
{
    const struct space *sp = &s->space;
    uint64_t structure = MIN(s->structure_blocks, (uint64_t)sp->used_count);
    uint64_t unreachable = ahead_unreachable(s), left = sp->free_count - unreachable;
    uint64_t kept = MIN(admit_kept(s), left);

    *ret = (struct store_usage){
        .size_bytes = (uint64_t)sp->count * STORE_BLOCK,
        .used_bytes = (uint64_t)sp->used_count * STORE_BLOCK,
        .data_bytes = (sp->used_count - structure) * STORE_BLOCK,
        .record_bytes = structure * STORE_BLOCK,
        .pending_bytes = (uint64_t)(sp->count - sp->used_count - sp->free_count) * STORE_BLOCK,
        .unreachable_bytes = unreachable * STORE_BLOCK,
        .reserve_bytes = kept * STORE_BLOCK,
        .free_bytes = (left - kept) * STORE_BLOCK,
        .shared_bytes = s->share.extra_users * STORE_BLOCK,
        .log_bytes = (uint64_t)s->super.log_count * STORE_BLOCK,
        .object_count = s->index.object_count,
        .tombstone_count = s->index.tombstone_count,
    };
}

void store_stats(const struct store *s, struct store_stats *ret)
{
    *ret = s->stats;
    ret->cached_bytes = cache_bytes(s);
}

void store_ids(const struct store *s, struct uuid *ret_store, struct uuid *ret_cluster)
{
    *ret_store = s->super.store;
    *ret_cluster = s->super.cluster;
}

bool store_is_inexact(const struct store *s)
{
    return s->inexact;
}

int store_failed(const struct store *s)
{
    return s->failed;
}
