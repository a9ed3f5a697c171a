/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Page-aligned I/O buffers under a budget: a buddy allocator over one mapped arena.
 *
 * B1 bytes_used is the sum of all buffers out, in whole pages. It exceeds bytes_max only while a
 * single buffer that is larger than the budget is out alone. B2 Waiters are served first come,
 * first served; nobody overtakes them. B3 Free blocks are powers of two, aligned to their size
 * within the arena; two free buddies are always joined. What a buffer does not need of its block is
 * given back at once. B4 When the arena is too fragmented (or the request too large) for a buffer
 * that the budget allows, it is mapped apart ("outlier"). B5 Pages are touched only by users; some
 * seconds after a burst the pages of free blocks go back to the system.
 */
#include <stdlib.h>
#include <sys/mman.h>
#include "base/err.h"
#include "rt/seam.h"
#include "rt/sanitize.h"

#define PAGE_SIZE     4096u
#define REQUEST_MAX   (64u << 20)
#define HOT_SIZE_MAX  (4u << 20)
#define TRIM_DELAY_NS (2 * NS_PER_S)
#define TRIM_PEAK_MIN (2u << 20)
#define TRIM_ORDER    4 /* blocks from 64 KiB are given back */

static_assert((PAGE_SIZE << (BUFFER_ORDER_COUNT - 1)) == REQUEST_MAX,
              "largest block, largest request");

struct outlier {
    struct list link;
    void *p;
    size_t size;
};

struct buffer_waiter {
    struct list link;
    struct fiber *fiber;
    size_t size;
    void *buffer;
};

static size_t block_pages(unsigned order)
{
    return (size_t)1 << order;
}

static void free_block(struct buffer_pool *p, size_t page, unsigned order)
{
    while (order + 1 < BUFFER_ORDER_COUNT) {
        size_t buddy = page ^ block_pages(order);
        if (buddy + block_pages(order) > p->page_count || !p->pages[buddy].is_free ||
            p->pages[buddy].order != order)
            break;
        list_remove(&p->pages[buddy].link);
        p->pages[buddy].is_free = 0;
        page = MIN(page, buddy);
        order++;
    }
    struct page_info *info = &p->pages[page];
    info->is_free = 1;
    info->order = (uint8_t)order;
    list_push_front(&p->free_lists[order], &info->link);
}

/* Frees any range of pages as the largest aligned blocks it consists of. */
static void free_range(struct buffer_pool *p, size_t page, size_t count)
{
    while (count > 0) {
        unsigned order = 0;
        while (order + 1 < BUFFER_ORDER_COUNT && (page & (block_pages(order + 1) - 1)) == 0 &&
               block_pages(order + 1) <= count)
            order++;
        free_block(p, page, order);
        page += block_pages(order);
        count -= block_pages(order);
    }
}

/* First page of `count` free pages, now taken; or SIZE_MAX. */
static size_t take_range(struct buffer_pool *p, size_t count)
{
    unsigned order = 0;
    while (block_pages(order) < count)
        order++;
    while (order < BUFFER_ORDER_COUNT && list_empty(&p->free_lists[order]))
        order++;
    if (order == BUFFER_ORDER_COUNT)
        return SIZE_MAX;
    struct page_info *info = list_first(&p->free_lists[order], struct page_info, link);
    list_remove(&info->link);
    info->is_free = 0;
    info->page_count = (uint32_t)count;
    size_t page = (size_t)(info - p->pages);
    free_range(p, page + count, block_pages(order) - count); /* B3 */
    return page;
}

static void *outlier_get(struct buffer_pool *p, size_t size)
{
    struct outlier *o = malloc(sizeof(*o));
    if (!o)
        return NULL;
    o->size = size;
    o->p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (o->p == MAP_FAILED) {
        free(o);
        return NULL;
    }
    list_push_back(&p->outliers, &o->link);
    return o->p;
}

/* Returns the size freed. */
static size_t outlier_put(struct buffer_pool *p, void *buffer)
{
    struct outlier *o;
    list_for_each (o, &p->outliers, link) {
        if (o->p == buffer) {
            size_t size = o->size;
            list_remove(&o->link);
            munmap(o->p, o->size);
            free(o);
            return size;
        }
    }
    ASSERT(!"buf_put of something that buf_get did not return");
    return 0;
}

static bool budget_allows(const struct buffer_pool *p, size_t size)
{
    return p->bytes_used == 0 || (size <= p->bytes_max && p->bytes_used <= p->bytes_max - size);
}

/* NULL only when the system has no memory. */
static void *allocate(struct buffer_pool *p, size_t size)
{
    size_t rounded = ALIGN_UP(size, (size_t)PAGE_SIZE);
    size_t page = take_range(p, rounded / PAGE_SIZE);
    uint8_t *buffer;
    if (page != SIZE_MAX) {
        buffer = p->arena + page * PAGE_SIZE;
        sanitize_unpoison(buffer, size);
    } else {
        buffer = outlier_get(p, rounded);
        if (!buffer)
            return NULL;
    }
    p->bytes_used += rounded;
    p->bytes_used_peak = MAX(p->bytes_used_peak, p->bytes_used);
    return buffer;
}

static void *try_allocate(struct buffer_pool *p, size_t size)
{
    if (!budget_allows(p, ALIGN_UP(size, (size_t)PAGE_SIZE)))
        return NULL;
    return allocate(p, size);
}

static void give_back(uint8_t *start, uint8_t *end)
{
    if (start < end)
        madvise(start, (size_t)(end - start), MADV_DONTNEED);
}

/* B5, B6 */
static void trim_fire(struct timer *t)
{
    struct buffer_pool *p = container_of(t, struct buffer_pool, trim);
    uint8_t *hot_end = p->hot + p->hot_size;
    p->bytes_used_peak = p->bytes_used;
    for (unsigned order = TRIM_ORDER; order < BUFFER_ORDER_COUNT; order++) {
        struct page_info *info;
        list_for_each (info, &p->free_lists[order], link) {
            uint8_t *start = p->arena + (size_t)(info - p->pages) * PAGE_SIZE;
            uint8_t *end = start + block_pages(order) * PAGE_SIZE;
            give_back(start, MIN(end, p->hot));
            give_back(MAX(start, hot_end), end);
        }
    }
}

static void trim_later(struct buffer_pool *p)
{
    if (p->keeps_memory || timer_armed(&p->trim) || p->bytes_used_peak < TRIM_PEAK_MIN ||
        p->bytes_used > p->bytes_used_peak / 2)
        return;
    timer_arm(&p->trim, clock_now(p->rt) + TRIM_DELAY_NS);
}

fiber_fn void *buf_get(struct rt *rt, size_t size)
{
    ASSERT(size > 0 && size <= REQUEST_MAX);
    struct buffer_pool *p = &rt->buffers;
    void *buffer = buf_try_get(rt, size);
    if (buffer)
        return buffer;
    struct buffer_waiter w = {.fiber = fiber_current(), .size = size};
    ASSERT(w.fiber);
    /* With nothing out nobody would wake us. */
    ASSERT(p->bytes_used > 0 || !"out of memory");
    list_push_back(&p->waiters, &w.link);
    rt->stats.buffer_waits++;
    fiber_suspend();
    return w.buffer;
}

void *buf_try_get(struct rt *rt, size_t size)
{
    ASSERT(size > 0 && size <= REQUEST_MAX);
    if (!list_empty(&rt->buffers.waiters)) /* B2 */
        return NULL;
    return try_allocate(&rt->buffers, size);
}

void buf_put(struct rt *rt, void *buffer)
{
    if (!buffer)
        return;
    struct buffer_pool *p = &rt->buffers;
    size_t size;
    uint8_t *start = buffer;
    if (start >= p->arena && start < p->arena + p->page_count * PAGE_SIZE) {
        size_t page = (size_t)(start - p->arena) / PAGE_SIZE;
        size_t count = p->pages[page].page_count;
        ASSERT(count > 0);
        size = count * PAGE_SIZE;
        p->pages[page].page_count = 0;
        sanitize_poison(start, size);
        free_range(p, page, count);
    } else {
        size = outlier_put(p, buffer);
    }
    ASSERT(p->bytes_used >= size);
    p->bytes_used -= size;
    while (!list_empty(&p->waiters)) {
        struct buffer_waiter *w = list_first(&p->waiters, struct buffer_waiter, link);
        w->buffer = try_allocate(p, w->size);
        if (!w->buffer)
            break;
        list_remove(&w->link);
        fiber_wake(w->fiber);
    }
    trim_later(p);
}

int buffer_pool_init(struct buffer_pool *p, struct rt *rt, size_t bytes_max)
{
    *p = (struct buffer_pool){.rt = rt};
    p->bytes_max = ALIGN_UP(bytes_max ? bytes_max : RT_BUFFER_BYTES_MAX, (size_t)PAGE_SIZE);
    p->page_count = p->bytes_max / PAGE_SIZE;
    for (unsigned order = 0; order < BUFFER_ORDER_COUNT; order++)
        list_init(&p->free_lists[order]);
    list_init(&p->outliers);
    list_init(&p->waiters);
    timer_init(&p->trim, rt, trim_fire);
    p->pages = calloc(p->page_count, sizeof(p->pages[0]));
    if (!p->pages)
        return -ENOMEM;
    p->arena = mmap(NULL, p->bytes_max, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p->arena == MAP_FAILED) {
        free(p->pages);
        return -ENOMEM;
    }
    /* Small pages only: a huge page would be touched as a whole. */
    madvise(p->arena, p->bytes_max, MADV_NOHUGEPAGE);
    sanitize_poison(p->arena, p->bytes_max);
    free_range(p, 0, p->page_count);
    /* The smallest block is split first. */
    for (unsigned order = 0; order < BUFFER_ORDER_COUNT && !p->hot; order++) {
        if (list_empty(&p->free_lists[order]))
            continue;
        struct page_info *info = list_first(&p->free_lists[order], struct page_info, link);
        p->hot = p->arena + (size_t)(info - p->pages) * PAGE_SIZE;
        p->hot_size = MIN(block_pages(order) * PAGE_SIZE, (size_t)HOT_SIZE_MAX);
    }
    return 0;
}

void buffer_pool_done(struct buffer_pool *p)
{
    timer_cancel(&p->trim);
    struct outlier *o, *tmp;
    list_for_each_safe (o, tmp, &p->outliers, link) {
        munmap(o->p, o->size);
        free(o);
    }
    sanitize_unpoison(p->arena, p->page_count * PAGE_SIZE);
    munmap(p->arena, p->page_count * PAGE_SIZE);
    free(p->pages);
}
