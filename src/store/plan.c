/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cuts the extents of a change into blocks. Data that lies aligned in memory is used in place; the
 * rest is copied once, into one aligned allocation.
 */
#include "store/plan.h"
#include "base/err.h"

/* Walks the caller's iov. */
struct cursor {
    const struct iovec *iov;
    unsigned count, index;
    size_t offset;
};

static void cursor_skip(struct cursor *c, size_t n)
{
    while (n > 0) {
        size_t left = c->iov[c->index].iov_len - c->offset, step = MIN(left, n);
        c->offset += step;
        n -= step;
        if (c->offset == c->iov[c->index].iov_len) {
            c->index++;
            c->offset = 0;
        }
    }
}

static void cursor_copy(struct cursor *c, uint8_t *out, size_t n)
{
    while (n > 0) {
        size_t left = c->iov[c->index].iov_len - c->offset, step = MIN(left, n);
        memcpy(out, (const uint8_t *)c->iov[c->index].iov_base + c->offset, step);
        out += step;
        n -= step;
        cursor_skip(c, step);
    }
}

/* Whole blocks that can be written from where they lie; *ret_data is where. */
static uint32_t cursor_aligned(struct cursor *c, uint8_t **ret_data)
{
    uint8_t *p;

    while (c->index < c->count && c->iov[c->index].iov_len == c->offset) {
        c->index++;
        c->offset = 0;
    }
    if (c->index == c->count)
        return 0;
    p = (uint8_t *)c->iov[c->index].iov_base + c->offset;
    if (((uintptr_t)p & (STORE_BLOCK - 1)) != 0)
        return 0;
    *ret_data = p;
    return (uint32_t)((c->iov[c->index].iov_len - c->offset) / STORE_BLOCK);
}

enum segment_kind { SEGMENT_WHOLE, SEGMENT_MERGE };

static struct plan_segment *segment_add(struct plan *p, uint32_t start, uint32_t count,
                                        uint8_t *data, enum segment_kind kind)
{
    struct plan_segment *g = p->segment_count > 0 ? &p->segments[p->segment_count - 1] : NULL;

    p->block_count += count;
    if (kind == SEGMENT_WHOLE && g != NULL && !g->merge && g->start + g->count == start &&
        g->data + (size_t)g->count * STORE_BLOCK == data) {
        g->count += count;
        return g;
    }
    if (p->segment_count == p->segment_capacity) {
        uint32_t capacity = p->segment_capacity * 4;
        struct plan_segment *old = p->segments == p->inline_segments ? NULL : p->segments;
        g = realloc(old, capacity * sizeof(*g));
        if (g == NULL)
            return NULL;
        if (old == NULL)
            memcpy(g, p->inline_segments, sizeof(p->inline_segments));
        p->segments = g;
        p->segment_capacity = capacity;
    }
    g = &p->segments[p->segment_count++];
    *g = (struct plan_segment){start, count, data, .merge = kind == SEGMENT_MERGE};
    return g;
}

static uint8_t *copy_take(struct plan *p)
{
    ASSERT(p->copies_used < p->copy_count);
    return p->copies + (size_t)p->copies_used++ * STORE_BLOCK;
}

/* Bytes [offset, offset + length) of one block; several extents may touch the same one. */
static int add_part(struct plan *p, uint32_t block, uint32_t offset, uint32_t length,
                    const struct cursor *c)
{
    struct plan_segment *g = p->segment_count > 0 ? &p->segments[p->segment_count - 1] : NULL;

    if (g == NULL || !g->merge || g->start != block) {
        g = segment_add(p, block, 1, copy_take(p), SEGMENT_MERGE);
        if (g == NULL)
            return -ENOMEM;
    }
    p->patches[p->patch_count++] = (struct plan_patch){
        .segment = p->segment_count - 1,
        .offset = offset,
        .length = length,
        .iov_index = c->index,
        .iov_offset = c->offset,
    };
    return 0;
}

static int add_whole(struct plan *p, uint32_t start, uint32_t count, struct cursor *c)
{
    while (count > 0) {
        uint8_t *data;
        uint32_t n = MIN(cursor_aligned(c, &data), count);
        if (n == 0) {
            n = 1;
            data = copy_take(p);
            cursor_copy(c, data, STORE_BLOCK);
        } else {
            cursor_skip(c, (size_t)n * STORE_BLOCK);
        }
        if (segment_add(p, start, n, data, SEGMENT_WHOLE) == NULL)
            return -ENOMEM;
        start += n;
        count -= n;
    }
    return 0;
}

static int add_extent(struct plan *p, const struct store_extent *e, struct cursor *c)
{
    bool punch = p->change->kind == STORE_PUNCH;
    uint32_t offset = e->offset, end = e->offset + e->length;

    while (offset < end) {
        uint32_t block = offset / STORE_BLOCK, within = offset % STORE_BLOCK, n;
        int r = 0;
        if (within != 0 || end - offset < STORE_BLOCK) {
            n = MIN(STORE_BLOCK - within, end - offset);
            r = add_part(p, block, within, n, c);
            if (!punch)
                cursor_skip(c, n);
        } else {
            uint32_t count = (end - offset) / STORE_BLOCK;
            n = count * STORE_BLOCK;
            if (punch)
                p->punches[p->punch_count++] = (struct record_run){block, count, 0};
            else
                r = add_whole(p, block, count, c);
        }
        if (r < 0)
            return r;
        offset += n;
    }
    return 0;
}

static int check_extents(const struct store_change *c, uint64_t *ret_bytes)
{
    uint64_t end = 0, bytes = 0;

    if (c->extent_count > STORE_EXTENT_COUNT_MAX)
        return -EINVAL;
    for (unsigned i = 0; i < c->extent_count; i++) {
        const struct store_extent *e = &c->extents[i];
        if (e->length == 0 || e->offset < end ||
            (uint64_t)e->offset + e->length > STORE_OBJECT_SIZE_MAX)
            return -EINVAL;
        end = (uint64_t)e->offset + e->length;
        bytes += e->length;
    }
    *ret_bytes = bytes;
    return 0;
}

/* True when all data can be written from where it lies. */
static bool is_aligned(const struct store_change *c)
{
    for (unsigned i = 0; i < c->extent_count; i++) {
        if ((c->extents[i].offset | c->extents[i].length) & (STORE_BLOCK - 1))
            return false;
    }
    for (unsigned i = 0; i < c->iov_count; i++) {
        if (((uintptr_t)c->iov[i].iov_base | c->iov[i].iov_len) & (STORE_BLOCK - 1))
            return false;
    }
    return true;
}

int plan_init(struct plan *p, const struct store_change *c)
{
    struct cursor cursor = {.iov = c->iov, .count = c->iov_count};
    bool has_data = c->kind != STORE_PUNCH && c->kind != STORE_REMOVE;
    uint64_t bytes, given = 0;
    int r;

    p->change = c;
    p->segments = p->inline_segments;
    p->segment_capacity = PLAN_SEGMENTS_INLINE;
    p->segment_count = p->block_count = p->patch_count = p->punch_count = 0;
    p->copies = NULL;
    p->copy_count = p->copies_used = 0;
    if (c->next.value == 0 || c->kind > STORE_INSTALL)
        return -EINVAL;
    if (c->kind == STORE_REMOVE)
        return 0;
    r = check_extents(c, &bytes);
    if (r < 0)
        return r;
    for (unsigned i = 0; has_data && i < c->iov_count; i++)
        given += c->iov[i].iov_len;
    if (has_data && given != bytes)
        return -EINVAL;
    if (!is_aligned(c)) {
        p->copy_count = 2 * c->extent_count + (has_data ? (uint32_t)(bytes / STORE_BLOCK) : 0);
        p->copies = aligned_alloc(STORE_BLOCK, (size_t)p->copy_count * STORE_BLOCK);
        if (p->copies == NULL)
            return -ENOMEM;
    }
    for (unsigned i = 0; r == 0 && i < c->extent_count; i++)
        r = add_extent(p, &c->extents[i], &cursor);
    return r;
}

void plan_done(struct plan *p)
{
    if (p->segments != p->inline_segments)
        free(p->segments);
    free(p->copies);
}

void plan_merge(struct plan *p, uint32_t segment, const uint8_t *old)
{
    struct plan_segment *g = &p->segments[segment];
    const struct store_change *c = p->change;

    ASSERT(g->merge && g->count == 1);
    if (old == NULL)
        memset(g->data, 0, STORE_BLOCK);
    else if (old != g->data)
        memcpy(g->data, old, STORE_BLOCK);
    for (uint32_t i = 0; i < p->patch_count; i++) {
        const struct plan_patch *patch = &p->patches[i];
        struct cursor at = {c->iov, c->iov_count, patch->iov_index, patch->iov_offset};
        if (patch->segment != segment)
            continue;
        if (c->kind == STORE_PUNCH)
            memset(g->data + patch->offset, 0, patch->length);
        else
            cursor_copy(&at, g->data + patch->offset, patch->length);
    }
}

static bool is_zero(const uint8_t *block)
{
    return block[0] == 0 && memcmp(block, block + 1, STORE_BLOCK - 1) == 0;
}

int plan_drop_zeros(struct plan *p)
{
    struct plan_segment *old = p->segments;
    uint32_t count = p->segment_count;
    struct plan_segment first[PLAN_SEGMENTS_INLINE];
    int r = 0;

    ASSERT(p->change->kind == STORE_INSTALL);
    if (old == p->inline_segments) {
        memcpy(first, old, sizeof(first));
        old = first;
    }
    p->segments = p->inline_segments;
    p->segment_capacity = PLAN_SEGMENTS_INLINE;
    p->segment_count = p->block_count = p->patch_count = 0; /* merged already */
    for (uint32_t i = 0; r == 0 && i < count; i++) {
        for (uint32_t k = 0; r == 0 && k < old[i].count; k++) {
            uint8_t *data = old[i].data + (size_t)k * STORE_BLOCK;
            if (!is_zero(data) && segment_add(p, old[i].start + k, 1, data, SEGMENT_WHOLE) == NULL)
                r = -ENOMEM;
        }
    }
    if (old != first)
        free(old);
    return r;
}
