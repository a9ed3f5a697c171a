/* SPDX-License-Identifier: Apache-2.0 */
/* Few and short writes at a time: what is queued at the disk delays the requests behind it. */
#include "store/writes.h"
#include <stdlib.h>
#include "base/err.h"
#include "store/store_internal.h"

#define RUN_BLOCKS   32u /* one write */
#define RUNS_AT_ONCE 4u  /* together 512 KiB: 1 ms of a disk that does 500 MB/s */

void writes_init(struct writes *w, struct page_pool *pages)
{
    *w = (struct writes){.pages = pages};
    htable_init(&w->by_block);
}

static void entry_drop_data(struct writes *w, struct write_entry *e)
{
    if (e->leaf != NULL)
        e->leaf->write = NULL;
    else
        page_put(w->pages, e->data);
    e->leaf = NULL;
}

static void forget_all(struct writes *w)
{
    for (size_t i = 0; i < w->count; i++) {
        struct write_entry *e = w->queue[i];
        entry_drop_data(w, e);
        htable_remove(&w->by_block, &e->node);
        free(e);
    }
    w->count = 0;
}

void writes_done(struct writes *w)
{
    forget_all(w);
    htable_done(&w->by_block);
    free(w->queue);
    w->queue = NULL;
    w->capacity = 0;
}

struct write_entry *writes_find(const struct writes *w, uint32_t block)
{
    struct hnode *n;

    if (w->count == 0)
        return NULL;
    for (n = htable_first(&w->by_block, hash_u64(block)); n != NULL; n = htable_next_same(n)) {
        struct write_entry *e = container_of(n, struct write_entry, node);
        if (e->block == block)
            return e;
    }
    return NULL;
}

static struct write_entry *entry_add(struct writes *w, uint32_t block)
{
    struct write_entry *e;

    if (w->count == w->capacity) {
        size_t capacity = w->capacity * 2 + 64;
        struct write_entry **queue = realloc(w->queue, capacity * sizeof(struct write_entry *));
        if (queue == NULL)
            return NULL;
        w->queue = queue;
        w->capacity = capacity;
    }
    e = malloc(sizeof(*e));
    if (e == NULL)
        return NULL;
    *e = (struct write_entry){.block = block};
    if (htable_insert(&w->by_block, &e->node, hash_u64(block)) < 0) {
        free(e);
        return NULL;
    }
    w->queue[w->count++] = e;
    return e;
}

int writes_add_page(struct writes *w, uint32_t block, uint8_t **ret)
{
    uint8_t *page = page_get(w->pages);
    struct write_entry *e;

    if (page == NULL)
        return -ENOMEM;
    ASSERT(writes_find(w, block) == NULL);
    e = entry_add(w, block);
    if (e == NULL) {
        page_put(w->pages, page);
        return -ENOMEM;
    }
    e->data = page;
    *ret = page;
    return 0;
}

int writes_put_leaf(struct writes *w, uint32_t block, struct leaf *l)
{
    struct write_entry *e = writes_find(w, block);

    ASSERT(l->write == NULL);
    if (e != NULL)
        entry_drop_data(w, e);
    else
        e = entry_add(w, block);
    if (e == NULL)
        return -ENOMEM;
    e->data = l->data;
    e->leaf = l;
    l->write = e;
    return 0;
}

void writes_take_data(struct leaf *l)
{
    ASSERT(l->write->leaf == l);
    l->write->leaf = NULL;
    l->write = NULL;
}

/* --- carrying out --- */

struct run_io {
    struct disk_io io;
    struct wgroup *group;
    struct iovec iov[RUN_BLOCKS];
};

static void run_done(struct disk_io *io)
{
    wgroup_finish(container_of(io, struct run_io, io)->group);
}

/* The queue is sorted: neighbours go as one write. Returns how many were taken. */
static size_t run_submit(struct writes *w, struct disk *disk, size_t at, struct run_io *rio)
{
    unsigned n = 0;

    while (at + n < w->count && n < RUN_BLOCKS &&
           w->queue[at + n]->block == w->queue[at]->block + n) {
        rio->iov[n] = (struct iovec){w->queue[at + n]->data, STORE_BLOCK};
        n++;
    }
    rio->io = (struct disk_io){.op = DISK_WRITE,
                               .offset = block_offset(w->queue[at]->block),
                               .iov = rio->iov,
                               .iov_count = n,
                               .done = run_done};
    wgroup_add(rio->group, 1);
    disk_submit(disk, &rio->io);
    return n;
}

static int compare_entries(const void *a, const void *b)
{
    const struct write_entry *const *x = a, *const *y = b;

    return (*x)->block < (*y)->block ? -1 : (*x)->block > (*y)->block;
}

static void sort(struct writes *w)
{
    bool sorted = true;

    for (size_t i = 1; sorted && i < w->count; i++)
        sorted = w->queue[i - 1]->block < w->queue[i]->block;
    if (!sorted)
        qsort(w->queue, w->count, sizeof(struct write_entry *), compare_entries);
}

fiber_fn int writes_carry_out(struct writes *w, struct disk *disk, uint64_t rest_ns_max)
{
    struct run_io *ios = malloc(RUNS_AT_ONCE * sizeof(*ios));
    size_t at = 0;
    int r = 0;

    if (ios == NULL)
        return -ENOMEM;
    sort(w);
    while (r == 0 && at < w->count) {
        uint64_t start = clock_now(disk->rt), rest;
        struct wgroup group;
        unsigned n = 0;
        wgroup_init(&group);
        while (n < RUNS_AT_ONCE && at < w->count) {
            ios[n].group = &group;
            at += run_submit(w, disk, at, &ios[n]);
            n++;
        }
        wgroup_wait(&group);
        for (unsigned i = 0; r == 0 && i < n; i++)
            r = ios[i].io.result;
        rest = MIN(clock_now(disk->rt) - start, rest_ns_max);
        if (r == 0 && rest > 0)
            (void)fiber_sleep(disk->rt, rest); /* shorter when the process is stopping */
    }
    free(ios);
    if (r == 0) {
        w->written += w->count;
        forget_all(w);
    }
    return r;
}
