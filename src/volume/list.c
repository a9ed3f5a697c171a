/* SPDX-License-Identifier: Apache-2.0 */
/* What there is: lists of volumes and snapshots, usage, work left. From records alone, but for
 * usage. */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "volume/instance.h"

/* --- volume_list --- */

static void fill_image(struct volume_info *v, const struct record *r, const struct image *i,
                       const char *tag, const struct map *m)
{
    const struct map_pool *pool = map_pool(m, i->pool);
    *v = (struct volume_info){
        .volume = r->volume,
        .vid = i->vid,
        .parent_vid = i->parent,
        .snapshot_number = i->number,
        .size = i->size,
        .object_size = i->object_size,
        .copies = pool ? pool->copies : 0,
        .created_wall_ns = i->created_wall_ns,
        .root_copies = i->root_copies,
        .owner_node = -1,
        .clean = true,
        .working = tag == NULL,
    };
    strcpy(v->name, r->name);
    strcpy(v->tag, tag ? tag : "");
    if (pool)
        memcpy(v->pool, pool->name, sizeof(v->pool));
}

static void fill_owner(struct volume_info *v, const struct record *r, const struct map *m)
{
    const struct map_node *n = r->lease.clean ? NULL : map_node_by_session(m, r->lease.session);
    v->clean = r->lease.clean;
    v->owner_node = n ? n->number : -1;
}

static int compare_info(const void *a, const void *b)
{
    const struct volume_info *x = a, *y = b;
    int r = strcmp(x->name, y->name);
    if (r)
        return r;
    return x->snapshot_number < y->snapshot_number ? -1 : x->snapshot_number > y->snapshot_number;
}

static int compare_vid(const void *a, const void *b)
{
    const struct volume_info *x = *(struct volume_info *const *)a;
    const struct volume_info *y = *(struct volume_info *const *)b;
    return x->vid.value < y->vid.value ? -1 : x->vid.value > y->vid.value;
}

/* The parents of clones are images of other names. */
static int fill_parents(struct volume_info *list, size_t count)
{
    struct volume_info **by_vid = calloc(count + 1, sizeof(*by_vid));
    if (!by_vid)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++)
        by_vid[i] = &list[i];
    qsort(by_vid, count, sizeof(*by_vid), compare_vid);
    for (size_t i = 0; i < count; i++) {
        struct volume_info wanted = {.vid = list[i].parent_vid}, *key = &wanted;
        struct volume_info **found = bsearch(&key, by_vid, count, sizeof(*by_vid), compare_vid);
        if (!found || strcmp((*found)->name, list[i].name) == 0)
            continue;
        strcpy(list[i].parent_name, (*found)->name);
        strcpy(list[i].parent_tag, (*found)->tag);
    }
    free(by_vid);
    return 0;
}

static size_t count_images(const struct record *records, size_t count)
{
    size_t images = 0;
    for (size_t i = 0; i < count; i++)
        images += records[i].snapshot_count + (records[i].working.vid.value != 0);
    return images;
}

static struct volume_info *make_list(struct volumes *vs, const struct record *records, size_t count,
                                     size_t *ret_count)
{
    const struct map *m = cluster_map(vs->cluster);
    struct volume_info *list = calloc(count_images(records, count) + 1, sizeof(*list));
    size_t n = 0;
    for (size_t i = 0; list && i < count; i++) {
        const struct record *r = &records[i];
        for (unsigned s = 0; s < r->snapshot_count; s++)
            fill_image(&list[n++], r, &r->snapshots[s].image, r->snapshots[s].tag, m);
        if (r->working.vid.value) {
            fill_image(&list[n], r, &r->working, NULL, m);
            fill_owner(&list[n++], r, m);
        }
    }
    if (!list)
        return NULL;
    if (fill_parents(list, n)) {
        free(list);
        return NULL;
    }
    *ret_count = n;
    return list;
}

fiber_fn int volume_list(struct volumes *vs, const char *name_or_null, struct volume_info **ret,
                         size_t *ret_count)
{
    struct record *records;
    size_t count, n = 0, kept = 0;
    int r = registry_list(service_cs(vs), &records, &count, NULL);
    if (r)
        return r;
    struct volume_info *list = make_list(vs, records, count, &n);
    registry_list_free(records, count);
    if (!list)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        if (!name_or_null || strcmp(list[i].name, name_or_null) == 0)
            list[kept++] = list[i];
    }
    qsort(list, kept, sizeof(*list), compare_info);
    *ret = list;
    *ret_count = kept;
    return 0;
}

/* --- volume_usage --- */

struct usage_walk {
    struct volumes *vs;
    struct image image;
    struct index_entry *root, *leaf;
    struct volume_usage usage;
};

static fiber_fn int count_leaf(struct usage_walk *w, uint32_t k)
{
    struct oid oid = image_oid(&w->image, w->root[k].vid, 1, k);
    int r = block_read(w->vs, &w->image, &oid, w->leaf, NULL, NULL, NULL);
    if (r)
        return r;
    w->usage.index_blocks += w->root[k].vid == w->image.vid.value;
    for (uint32_t i = 0; i < w->image.entries; i++) {
        if (w->leaf[i].vid == w->image.vid.value)
            w->usage.own_objects++;
        else if (w->leaf[i].vid)
            w->usage.shared_objects++;
    }
    return 0;
}

static fiber_fn int count_image(struct usage_walk *w)
{
    struct oid oid = image_oid(&w->image, w->image.vid.value, 2, 0);
    int r = block_read(w->vs, &w->image, &oid, w->root, NULL, NULL, NULL);
    w->usage.index_blocks = 1;
    for (uint32_t k = 0; !r && k < w->image.entries; k++) {
        if (w->root[k].vid)
            r = count_leaf(w, k);
    }
    return r;
}

/* An image that is open here is tidied up first, so that its index says all. */
static fiber_fn void settle_if_open(struct volumes *vs, const char *name)
{
    struct instance *in = instance_find(vs, name, NULL);
    if (!in || in->state != INSTANCE_OPEN)
        return;
    instance_ref(in);
    fmutex_lock(&in->settle_lock);
    if (in->state == INSTANCE_OPEN && !in->failed)
        settle_pass(in);
    fmutex_unlock(&in->settle_lock);
    instance_unref(in);
}

fiber_fn int volume_usage(struct volumes *vs, const char *name, const char *tag_or_null,
                          struct volume_usage *ret, struct volume_error *ret_error)
{
    struct record rec;
    struct usage_walk w = {.vs = vs};
    bool working = !tag_or_null || !*tag_or_null;
    if (name_check(name, NULL))
        return volume_error_set(ret_error, -ENOENT, "there is no such volume");
    if (working)
        settle_if_open(vs, name);
    int r = registry_get(service_cs(vs), name, &rec);
    if (r)
        return volume_error_of(ret_error, r, "look at", name);
    const struct record_snapshot *s = working ? NULL : record_snapshot_by_tag(&rec, tag_or_null);
    if (working)
        w.image = rec.working;
    else if (s)
        w.image = s->image;
    record_done(&rec);
    if (w.image.vid.value == 0)
        return volume_error_set(ret_error, -ENOENT, "volume %s has no such image", name);
    w.root = calloc(w.image.entries, sizeof(*w.root));
    w.leaf = calloc(w.image.entries, sizeof(*w.leaf));
    r = w.root && w.leaf ? count_image(&w) : -ENOMEM;
    free(w.root);
    free(w.leaf);
    if (r)
        return volume_error_of(ret_error, r == -ENOENT ? -EAGAIN : r, "look at", name);
    *ret = w.usage;
    return 0;
}

/* --- volume_backlog --- */

fiber_fn int volume_backlog(struct volumes *vs, struct volume_backlog *ret)
{
    struct record *records;
    struct trash *trash;
    size_t count;
    struct volume_backlog b = {0};
    int r = registry_list_trash(service_cs(vs), &trash, &count);
    if (r)
        return r;
    b.trash = count;
    free(trash);
    r = registry_list(service_cs(vs), &records, &count, NULL);
    if (r)
        return r;
    const struct map *m = cluster_map(vs->cluster);
    for (size_t i = 0; i < count; i++) {
        const struct record_lease *l = &records[i].lease;
        b.pending += records[i].pending.kind != PENDING_NONE;
        if (l->clean || records[i].working.vid.value == 0)
            continue;
        if (map_node_by_session(m, l->session))
            b.open++;
        else
            b.unclean++;
    }
    registry_list_free(records, count);
    *ret = b;
    return 0;
}
