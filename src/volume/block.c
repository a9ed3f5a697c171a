/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Index blocks of an open image: loading, the cache, and the atomic write of changed entries
 * together with what is owed for them (V2).
 *
 * B1 The root is loaded while the image is open. A leaf comes and goes with the cache, but for what
 * it owes. B2 A leaf that the root gives to another vid is read with every generation one higher:
 * it would be a copy (V3).
 */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "volume/instance.h"

#define LOG_MODULE "volume"

void block_init(struct block *b, unsigned level, uint32_t index)
{
    *b = (struct block){.level = (uint8_t)level, .index = index};
    fmutex_init(&b->lock);
    list_init(&b->lru_link);
    list_init(&b->unlinked_link);
    list_init(&b->owed_link);
    list_init(&b->work);
    list_init(&b->work_link);
}

struct block *leaf_get(struct instance *in, uint32_t leaf_index)
{
    ASSERT(leaf_index < in->image.entries);
    struct block **slot = &in->leaves[leaf_index];
    if (!*slot) {
        *slot = malloc(sizeof(**slot));
        if (*slot)
            block_init(*slot, 1, leaf_index);
    }
    return *slot;
}

static size_t entries_size(const struct instance *in)
{
    return in->image.entries * sizeof(struct index_entry);
}

/* --- the cache --- */

static void cache_trim(struct volumes *vs)
{
    struct block *b, *next;
    list_for_each_safe (b, next, &vs->cached_blocks, lru_link) {
        if (vs->cache_bytes <= vs->cache_bytes_max)
            break;
        if (!b->lock.owner)
            block_forget_entries(vs, b);
    }
}

/* lru_link doubles as "counted in the cache". Every cached leaf is as big as its image's entries
 * say. */
struct cached_entries {
    size_t size;
    struct index_entry entries[];
};

static struct index_entry *entries_new(size_t size)
{
    struct cached_entries *c = malloc(sizeof(*c) + size);
    if (!c)
        return NULL;
    c->size = size;
    return c->entries;
}

static void entries_free(struct index_entry *entries)
{
    if (entries)
        free(container_of(entries, struct cached_entries, entries));
}

void block_forget_entries(struct volumes *vs, struct block *b)
{
    if (b->entries && !list_empty(&b->lru_link)) {
        vs->cache_bytes -= container_of(b->entries, struct cached_entries, entries)->size;
        list_remove(&b->lru_link);
    }
    entries_free(b->entries);
    b->entries = NULL;
}

static void block_set_entries(struct instance *in, struct block *b, struct index_entry *entries)
{
    struct volumes *vs = in->vs;
    block_forget_entries(vs, b);
    b->entries = entries;
    b->reload = false;
    if (b->level == 2)
        return; /* B1 */
    vs->cache_bytes += entries_size(in);
    list_push_back(&vs->cached_blocks, &b->lru_link);
    cache_trim(vs);
}

/* --- reading --- */

static int decode_owed(const uint8_t *tail, size_t length, const struct index_header *h,
                       struct index_owed **ret_owed, unsigned *ret_count)
{
    *ret_owed = NULL;
    *ret_count = 0;
    if (h->owed_count == 0)
        return 0;
    struct index_owed *owed = malloc(h->owed_count * sizeof(*owed));
    if (!owed)
        return -ENOMEM;
    int r = index_owed_decode(tail, length, h, owed);
    if (r) {
        free(owed);
        return r;
    }
    *ret_owed = owed;
    *ret_count = h->owed_count;
    return 0;
}

/* Reads a tail that did not fit into the first page. A change in between shows in the version. */
static fiber_fn int read_long_tail(struct volumes *vs, const struct oid *oid, uint32_t offset,
                                   uint32_t length, struct version expected, uint8_t **ret)
{
    uint8_t *tail = aligned_alloc(INDEX_PAGE, length);
    if (!tail)
        return -ENOMEM;
    struct version version;
    int r = object_read(vs->objects, oid, offset, length, tail, &version);
    if (!r && version.value != expected.value)
        r = -EAGAIN;
    if (r)
        free(tail);
    else
        *ret = tail;
    return r;
}

static fiber_fn int read_once(struct volumes *vs, const struct image *image, const struct oid *oid,
                              struct index_entry *ret_entries, struct version *ret_version,
                              struct index_owed **ret_owed, unsigned *ret_owed_count)
{
    uint32_t tail_at = index_tail_offset(image->entries);
    uint8_t *bytes = aligned_alloc(INDEX_PAGE, tail_at + INDEX_PAGE);
    if (!bytes)
        return -ENOMEM;
    struct version version = {0};
    int r = object_read(vs->objects, oid, 0, tail_at + INDEX_PAGE, bytes, &version);
    struct index_header h;
    if (!r)
        r = index_header_decode(bytes + tail_at, INDEX_PAGE, &h);
    if (!r && (h.level != oid->level || h.entries != image->entries))
        r = -EBADMSG;
    uint8_t *long_tail = NULL;
    uint32_t tail_length = INDEX_PAGE;
    if (!r && ret_owed && index_tail_bytes(h.owed_count) > INDEX_PAGE) {
        tail_length = index_tail_bytes(h.owed_count);
        r = read_long_tail(vs, oid, tail_at, tail_length, version, &long_tail);
    }
    if (!r && ret_owed)
        r = decode_owed(long_tail ? long_tail : bytes + tail_at, tail_length, &h, ret_owed,
                        ret_owed_count);
    for (uint32_t i = 0; !r && i < image->entries; i++)
        ret_entries[i] = index_entry_get(bytes + i * INDEX_ENTRY_BYTES);
    if (!r && ret_version)
        *ret_version = version;
    free(long_tail);
    free(bytes);
    return r;
}

fiber_fn int block_read(struct volumes *vs, const struct image *image, const struct oid *oid,
                        struct index_entry *ret_entries, struct version *ret_version,
                        struct index_owed **ret_owed, unsigned *ret_owed_count)
{
    int r;
    do {
        r = read_once(vs, image, oid, ret_entries, ret_version, ret_owed, ret_owed_count);
    } while (r == -EAGAIN);
    char text[OID_TEXT_SIZE];
    if (r == -EBADMSG || r == -EPROTO)
        log_error("index block %s cannot be used: %s", oid_format(oid, text), err_text(r));
    return r;
}

/* Where a leaf's content is: its own object, the shared one that the root names (`generation` to
 * add), or none. */
static bool leaf_source(struct instance *in, struct block *b, struct oid *ret)
{
    const struct index_entry *e = &in->root.entries[b->index];
    if (!in->frozen && e->vid == in->image.vid.value)
        b->own = true;
    uint64_t vid = b->own ? in->image.vid.value : e->vid;
    *ret = image_oid(&in->image, vid, 1, b->index);
    return vid != 0;
}

static void block_set_owed(struct instance *in, struct block *b, struct index_owed *owed,
                           unsigned count, struct version since)
{
    free(b->owed);
    b->owed = owed;
    b->owed_count = count;
    if (count == 0) {
        list_remove(&b->owed_link);
        return;
    }
    if (!list_empty(&b->owed_link))
        return; /* keeps the older version */
    b->owed_since = since;
    struct list *at = in->blocks_owed.prev;
    while (at != &in->blocks_owed &&
           list_entry(at, struct block, owed_link)->owed_since.value > since.value)
        at = at->prev;
    list_insert_between(&b->owed_link, at, at->next);
    instance_work(in);
}

fiber_fn int block_load(struct instance *in, struct block *b)
{
    ASSERT(b->lock.owner == fiber_current());
    if (b->entries && !b->reload)
        return 0;
    struct index_entry *entries = entries_new(entries_size(in));
    if (!entries)
        return -ENOMEM;
    struct oid oid = image_oid(&in->image, in->image.vid.value, 2, 0);
    if (b->level == 2)
        b->own = !in->frozen;
    else if (!leaf_source(in, b, &oid)) {
        memset(entries, 0, entries_size(in));
        block_set_entries(in, b, entries);
        return 0;
    }
    struct version version = {0};
    struct index_owed *owed = NULL;
    unsigned owed_count = 0;
    int r = block_read(in->vs, &in->image, &oid, entries, &version, &owed, &owed_count);
    if (r) {
        char text[OID_TEXT_SIZE];
        if (r == -ENOENT)
            log_error("index block %s of volume %s is missing", oid_format(&oid, text), in->name);
        entries_free(entries);
        return r == -ENOENT ? -EIO : r;
    }
    if (b->own) {
        b->version = version;
        /* What a predecessor owes may be older than this write of the block, and its drops may have
         * been sent: their keys must stay until they are sent again (V6). */
        bool inherited = version_term(version).value != in->owner.term.value;
        struct version since = inherited ? (struct version){in->published.value + 1} : version;
        block_set_owed(in, b, owed, owed_count, since);
    } else {
        free(owed); /* of a frozen block: none */
        for (uint32_t i = 0; i < in->image.entries && !in->frozen; i++)
            entries[i].generation += entries[i].vid != 0; /* B2 */
    }
    block_set_entries(in, b, entries);
    return 0;
}

bool index_try_entry(struct instance *in, uint32_t index, struct index_entry *ret)
{
    uint32_t k = index / in->image.entries;
    struct block *leaf = in->leaves[k];
    if (leaf && leaf->entries) {
        list_remove(&leaf->lru_link);
        list_push_back(&in->vs->cached_blocks, &leaf->lru_link);
        *ret = leaf->entries[index % in->image.entries];
        return true;
    }
    if ((!leaf || !leaf->own) && in->root.entries[k].vid == 0) {
        *ret = (struct index_entry){0};
        return true;
    }
    return false;
}

fiber_fn int index_entry(struct instance *in, uint32_t index, struct index_entry *ret)
{
    while (!index_try_entry(in, index, ret)) {
        struct block *leaf = leaf_get(in, index / in->image.entries);
        if (!leaf)
            return -ENOMEM;
        fmutex_lock(&leaf->lock);
        int r = block_load(in, leaf);
        fmutex_unlock(&leaf->lock);
        if (r)
            return r;
    }
    return 0;
}

/* --- writing --- */

void block_set_unlinked(struct instance *in, struct block *b, struct version since)
{
    if (!list_empty(&b->unlinked_link))
        return;
    b->unlinked_since = since;
    struct list *at = in->leaves_unlinked.prev;
    while (at != &in->leaves_unlinked &&
           list_entry(at, struct block, unlinked_link)->unlinked_since.value > since.value)
        at = at->prev;
    list_insert_between(&b->unlinked_link, at, at->next);
    instance_work(in);
}

/* The bytes of one block write: changed entry pages and the tail. */
struct image_bytes {
    uint8_t *bytes; /* whole entries and tail */
    struct object_extent extents[OBJECT_EXTENT_COUNT_MAX];
    struct iovec iov[OBJECT_EXTENT_COUNT_MAX];
    unsigned count;
};

static void add_extent(struct image_bytes *w, uint32_t offset, uint32_t length)
{
    struct object_extent *last = w->count ? &w->extents[w->count - 1] : NULL;
    if (last && (last->offset + last->length == offset || w->count == OBJECT_EXTENT_COUNT_MAX)) {
        last->length = offset + length - last->offset; /* may write a few unchanged pages again */
        w->iov[w->count - 1].iov_len = last->length;
        return;
    }
    w->extents[w->count] = (struct object_extent){.offset = offset, .length = length};
    w->iov[w->count++] = (struct iovec){.iov_base = w->bytes + offset, .iov_len = length};
}

/* Encodes entries and tail; extents are the pages with content (whole) or with changes. */
static int encode_block(const struct image *image, unsigned level,
                        const struct index_entry *entries, const struct block_change *changes,
                        unsigned change_count, bool whole, const struct index_owed *owed,
                        unsigned owed_count, struct image_bytes *w)
{
    uint32_t tail_at = index_tail_offset(image->entries);
    w->bytes = aligned_alloc(INDEX_PAGE, tail_at + index_tail_bytes(owed_count));
    if (!w->bytes)
        return -ENOMEM;
    memset(w->bytes, 0, tail_at);
    for (uint32_t i = 0; entries && i < image->entries; i++)
        index_entry_put(w->bytes + i * INDEX_ENTRY_BYTES, &entries[i]);
    bool dirty[INDEX_ENTRIES_MAX * INDEX_ENTRY_BYTES / INDEX_PAGE] = {0};
    for (unsigned i = 0; i < change_count; i++) {
        ASSERT(changes[i].at < image->entries);
        index_entry_put(w->bytes + changes[i].at * INDEX_ENTRY_BYTES, &changes[i].entry);
        dirty[changes[i].at * INDEX_ENTRY_BYTES / INDEX_PAGE] = true;
    }
    struct index_header h = {.level = (uint8_t)level,
                             .family = image->family,
                             .group_base = image->group_base,
                             .group_count = image->group_count,
                             .entries = image->entries,
                             .owed_count = owed_count};
    index_tail_encode(&h, owed, w->bytes + tail_at);
    w->count = 0;
    for (uint32_t page = 0; page * INDEX_PAGE < tail_at; page++) {
        static const uint8_t zeros[INDEX_PAGE];
        bool content = memcmp(w->bytes + page * INDEX_PAGE, zeros, INDEX_PAGE) != 0;
        if (whole ? content : dirty[page])
            add_extent(w, page * INDEX_PAGE, INDEX_PAGE);
    }
    add_extent(w, tail_at, index_tail_bytes(owed_count));
    return 0;
}

/* What a refused or failed block write means: -EAGAIN after the copies were evened out. */
static fiber_fn int block_failed(struct instance *in, struct block *b, const struct oid *oid, int r)
{
    if (r == -ENOSPC || r == -ENOMEM)
        return r;
    if (in->failed)
        return in->failed;
    char text[OID_TEXT_SIZE];
    oid_format(oid, text);
    if (r == -ESTALE && b->repairs < 3) { /* W7 */
        log_warn("index block %s of volume %s: its copies differ, evening them out", text,
                 in->name);
        b->repairs++;
        struct object_found found;
        r = object_reconcile_one(in->vs->objects, &in->owner, oid, &found);
        if (!r) { /* what is on disk counts: read it again */
            bool exists = found.version.value != 0 && !found.tombstone;
            if (exists && !b->own && b->level == 1)
                block_set_unlinked(in, b, found.version); /* V3 */
            b->version = found.version;
            b->own = b->own || exists;
            b->reload = true;
            return -EAGAIN;
        }
    }
    if (r != -ECANCELED)
        log_error("index block %s of volume %s cannot be written: %s", text, in->name, err_text(r));
    instance_fail(in, r == -ECANCELED ? -ECANCELED : -EIO, "its index cannot be written");
    return in->failed;
}

/* I3: what was written is so now. */
static void block_written(struct instance *in, struct block *b, const struct block_change *changes,
                          unsigned change_count, struct index_owed *owed, unsigned owed_count,
                          struct version version)
{
    for (unsigned i = 0; i < change_count; i++)
        b->entries[changes[i].at] = changes[i].entry;
    if (!b->own && b->level == 1)
        block_set_unlinked(in, b, version); /* V3: the root does not name it yet */
    b->own = true;
    b->version = version;
    b->repairs = 0;
    block_set_owed(in, b, owed, owed_count, version);
}

fiber_fn int block_write(struct instance *in, struct block *b, const struct block_change *changes,
                         unsigned change_count, const struct index_owed *owed, unsigned owed_count)
{
    ASSERT(b->lock.owner == fiber_current() && b->entries && !b->reload && !in->frozen);
    ASSERT(!b->own || b->version.value != 0);
    struct index_owed *list = NULL;
    if (owed_count > 0) {
        list = malloc(owed_count * sizeof(*list));
        if (!list)
            return -ENOMEM;
        memcpy(list, owed, owed_count * sizeof(*list));
    }
    struct image_bytes w;
    int r = encode_block(&in->image, b->level, b->entries, changes, change_count, !b->own, list,
                         owed_count, &w);
    if (r)
        goto free_list;
    struct oid oid = image_oid(&in->image, in->image.vid.value, b->level, b->index);
    struct object_change change = {
        .kind = OBJECT_WRITE,
        .oid = oid,
        .prev = b->own ? b->version : OBJECT_PREV_NONE,
        .next = instance_next_version(in),
        .extents = w.extents,
        .extent_count = w.count,
        .iov = w.iov,
        .iov_count = w.count,
    };
    struct flight flight;
    flight_begin(in, NULL, &flight, change.next, 0, 0);
    r = object_change(in->vs->objects, &in->owner, &change);
    free(w.bytes);
    if (!r) {
        block_written(in, b, changes, change_count, list, owed_count, change.next);
        flight_end(in, NULL, &flight);
        return 0;
    }
    r = block_failed(in, b, &oid, r);
    flight_end(in, NULL, &flight); /* V6: S stays below until its copies are equal */
free_list:
    free(list);
    return r;
}

fiber_fn int root_copy_write(struct volumes *vs, struct object_owner *owner, struct version version,
                             const struct image *image, const struct index_entry *entries)
{
    size_t size = image->entries * sizeof(*entries);
    struct index_entry *copy = calloc(1, size);
    if (!copy)
        return -ENOMEM;
    for (uint32_t i = 0; entries && i < image->entries; i++) {
        copy[i] = entries[i];
        copy[i].generation += copy[i].vid != 0;
    }
    struct image_bytes w;
    int r = encode_block(image, 2, copy, NULL, 0, true, NULL, 0, &w);
    free(copy);
    if (r)
        return r;
    struct object_change change = {
        .kind = OBJECT_WRITE,
        .oid = image_oid(image, image->vid.value, 2, 0),
        .prev = OBJECT_PREV_NONE,
        .next = version,
        .extents = w.extents,
        .extent_count = w.count,
        .iov = w.iov,
        .iov_count = w.count,
    };
    r = object_change(vs->objects, owner, &change);
    free(w.bytes);
    return r;
}

/* --- the whole index --- */

static void leaf_done(struct instance *in, struct block *b)
{
    ASSERT(!b->lock.owner);
    block_forget_entries(in->vs, b);
    list_remove(&b->unlinked_link);
    list_remove(&b->owed_link);
    free(b->owed);
    free(b->sequences);
    free(b);
}

void index_forget_sequences(struct instance *in)
{
    for (uint32_t k = 0; k < in->image.entries; k++) {
        uint64_t *s = in->leaves[k] ? in->leaves[k]->sequences : NULL;
        if (s)
            memset(s, 0, in->image.entries * sizeof(*s));
    }
}

void index_done(struct instance *in)
{
    for (uint32_t k = 0; in->leaves && k < in->image.entries; k++) {
        if (in->leaves[k])
            leaf_done(in, in->leaves[k]);
    }
    free(in->leaves);
    in->leaves = NULL;
    block_forget_entries(in->vs, &in->root);
    list_remove(&in->root.owed_link);
    free(in->root.owed);
    in->root.owed = NULL;
}

/* What W wrote is frozen now: its leaves are shared, so their entries are read as a copy (B2). A
 * leaf that was shared before is read like that already. */
static void leaf_become_copy(struct instance *in, struct block *b)
{
    for (uint32_t i = 0; b->own && b->entries && i < in->image.entries; i++)
        b->entries[i].generation += b->entries[i].vid != 0;
    b->own = false;
    b->version = (struct version){0};
    if (b->sequences)
        memset(b->sequences, 0, in->image.entries * sizeof(*b->sequences));
}

void index_become_copy(struct instance *in, const struct image *image, struct version root_version)
{
    ASSERT(!settle_has_work(in) && list_empty(&in->inflight));
    ASSERT(in->root.entries && in->root.owed_count == 0);
    for (uint32_t k = 0; k < in->image.entries; k++) {
        in->root.entries[k].generation += in->root.entries[k].vid != 0;
        if (in->leaves[k])
            leaf_become_copy(in, in->leaves[k]);
    }
    /* Readers may still hold objects that they waited for. */
    for (struct hnode *n = htable_iter(&in->actives, NULL); n; n = htable_iter(&in->actives, n))
        container_of(n, struct active, node)->version = (struct version){0};
    in->root.version = root_version;
    in->image = *image;
    in->owner.vid = image->vid;
}
