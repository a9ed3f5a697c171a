/* SPDX-License-Identifier: Apache-2.0 */
/* volume_map(): which ranges of an open image use space. */
#include <stdlib.h>
#include "base/err.h"
#include "volume/forward.h"
#include "volume/handle.h"

/* The answer while it grows: runs are merged with their left neighbour. */
struct runs {
    struct volume_run *items;
    size_t count, capacity;
    unsigned count_max;
    uint64_t end;
    int error;
};

static bool is_full(const struct runs *m)
{
    return m->count_max && m->count > m->count_max;
}

static void add_run(struct runs *m, uint64_t length, bool mapped)
{
    struct volume_run *last = m->count ? &m->items[m->count - 1] : NULL;
    if (length == 0 || m->error || is_full(m))
        return;
    if (last && last->mapped == mapped) {
        last->length += length;
        m->end += length;
        return;
    }
    if (m->count == m->capacity) {
        size_t capacity = m->capacity ? 2 * m->capacity : 16;
        struct volume_run *more = reallocarray(m->items, capacity, sizeof(*more));
        if (!more) {
            m->error = -ENOMEM;
            return;
        }
        m->items = more;
        m->capacity = capacity;
    }
    m->items[m->count++] =
        (struct volume_run){.offset = m->end, .length = length, .mapped = mapped};
    m->end += length;
}

struct object_runs {
    struct runs *m;
    uint32_t at, end; /* within the object */
};

static void add_object_run(void *arg, uint32_t offset, uint32_t length, bool mapped)
{
    struct object_runs *o = arg;
    uint64_t stop = MIN((uint64_t)offset + length, o->end);
    if (stop <= o->at)
        return;
    if (offset > o->at) {
        add_run(o->m, offset - o->at, false);
        o->at = offset;
    }
    add_run(o->m, stop - o->at, mapped);
    o->at = (uint32_t)stop;
}

static fiber_fn int map_object(struct instance *in, uint32_t index, uint32_t offset,
                               uint32_t length, struct runs *m)
{
    for (unsigned attempt = 0; attempt < 8; attempt++) {
        bool exists;
        struct oid oid;
        int r = data_locate(in, index, &exists, &oid);
        if (r)
            return r;
        if (!exists)
            break;
        struct runs before = *m;
        struct volume_run last = m->count ? m->items[m->count - 1] : (struct volume_run){0};
        struct object_runs o = {.m = m, .at = offset, .end = offset + length};
        r = object_map(in->vs->objects, &oid, offset, length, add_object_run, &o);
        if (r == 0) {
            add_run(m, o.end - o.at, false);
            return m->error;
        }
        if (r != -ENOENT)
            return r;
        m->count = before.count; /* replaced under us: look again */
        m->end = before.end;
        if (m->count)
            m->items[m->count - 1] = last;
    }
    add_run(m, length, false);
    return m->error;
}

/* Objects from `index` that certainly are holes because no leaf was ever there. */
static uint64_t hole_objects(const struct instance *in, uint32_t index)
{
    uint32_t k = index / in->image.entries;
    if (in->leaves[k] || in->root.entries[k].vid != 0)
        return 0;
    return in->image.entries - index % in->image.entries;
}

fiber_fn int volume_map(struct volume *v, uint64_t offset, uint64_t length, unsigned runs_max,
                        struct volume_run **ret, size_t *ret_count)
{
    if (!v->in)
        return forward_map(v, offset, length, runs_max, ret, ret_count);
    struct instance *in = v->in;
    uint64_t end, size = in->image.object_size;
    struct runs m = {.count_max = runs_max, .end = offset};
    int r = add_u64(offset, length, &end) && end <= in->image.size ? 0 : -EINVAL;
    while (!r && m.end < end && !is_full(&m)) {
        uint32_t index = (uint32_t)(m.end / size), at = (uint32_t)(m.end % size);
        uint64_t holes = hole_objects(in, index);
        if (holes)
            add_run(&m, MIN(end - m.end, holes * size - at), false);
        else
            r = map_object(in, index, at, (uint32_t)MIN(end - m.end, size - at), &m);
        if (!r)
            r = m.error ? m.error : in->failed;
    }
    if (r) {
        free(m.items);
        return r;
    }
    *ret = m.items;
    *ret_count = is_full(&m) ? m.count_max : m.count;
    return 0;
}
