/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slabs of 64 pages, the first of which holds the link to the next slab; pages are handed out from
 * a list and go back to the system only with the pool.
 */
#include "store/pages.h"
#include <stdint.h>
#include <stdlib.h>
#include "base/check.h"

#define PAGE       4096u
#define SLAB_PAGES 64u

void page_pool_init(struct page_pool *p)
{
    *p = (struct page_pool){0};
}

void page_pool_done(struct page_pool *p)
{
    while (p->slabs != NULL) {
        void *next = *(void **)p->slabs;
        free(p->slabs);
        p->slabs = next;
    }
    page_pool_init(p);
}

static bool grow(struct page_pool *p)
{
    uint8_t *slab = aligned_alloc(PAGE, (size_t)SLAB_PAGES * PAGE);

    if (slab == NULL)
        return false;
    *(void **)slab = p->slabs;
    p->slabs = slab;
    for (unsigned i = SLAB_PAGES - 1; i >= 1; i--) {
        *(void **)(slab + (size_t)i * PAGE) = p->free_pages;
        p->free_pages = slab + (size_t)i * PAGE;
    }
    return true;
}

void *page_get(struct page_pool *p)
{
    void *page;

    if (p->free_pages == NULL && !grow(p))
        return NULL;
    page = p->free_pages;
    p->free_pages = *(void **)page;
    p->used++;
    return page;
}

void page_put(struct page_pool *p, void *page)
{
    ASSERT(p->used > 0);
    *(void **)page = p->free_pages;
    p->free_pages = page;
    p->used--;
}
