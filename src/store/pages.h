/* SPDX-License-Identifier: Apache-2.0 */
/* Pool of 4096-aligned 4 KiB buffers, for cached leaves and blocks that must be merged. */
#pragma once
#include <stddef.h>

struct page_pool {
    void *free_pages; /* each begins with the pointer to the next */
    void *slabs;
    size_t used;
};

void page_pool_init(struct page_pool *p);
/* All pages go, whether returned or not. */
void page_pool_done(struct page_pool *p);
/* Content undefined. NULL: out of memory. */
void *page_get(struct page_pool *p);
void page_put(struct page_pool *p, void *page);
