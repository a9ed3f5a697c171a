/* SPDX-License-Identifier: Apache-2.0 */
/* Paged array of u16 in memory; loaded whole at open, written by the checkpoint. */
#include "store/share.h"
#include "base/err.h"

int share_init(struct share *sh, uint32_t first, uint32_t count)
{
    *sh = (struct share){.first = first};
    tree_init(&sh->tree, PAGE_SHARE);
    sh->page_count = (uint32_t)(((uint64_t)count + SHARE_PAGE_COUNTS - 1) / SHARE_PAGE_COUNTS);
    sh->pages = calloc(sh->page_count, sizeof(*sh->pages));
    sh->page_nonzero = calloc(sh->page_count, sizeof(*sh->page_nonzero));
    if (!sh->pages || !sh->page_nonzero || tree_resize(&sh->tree, sh->page_count) < 0) {
        share_done(sh);
        return -ENOMEM;
    }
    return 0;
}

void share_done(struct share *sh)
{
    for (uint32_t i = 0; sh->pages != NULL && i < sh->page_count; i++)
        free(sh->pages[i]);
    free(sh->pages);
    free(sh->page_nonzero);
    sh->pages = NULL;
    sh->page_nonzero = NULL;
    tree_done(&sh->tree);
}

uint16_t share_get(const struct share *sh, uint32_t block)
{
    uint32_t i = block - sh->first;
    const uint16_t *page = sh->pages[i / SHARE_PAGE_COUNTS];

    return page != NULL ? page[i % SHARE_PAGE_COUNTS] : 0;
}

int share_add(struct share *sh, uint32_t block)
{
    uint32_t i = block - sh->first, p = i / SHARE_PAGE_COUNTS;
    uint16_t *count;

    if (sh->pages[p] == NULL) {
        sh->pages[p] = calloc(SHARE_PAGE_COUNTS, sizeof(uint16_t));
        if (sh->pages[p] == NULL)
            return -ENOMEM;
    }
    count = &sh->pages[p][i % SHARE_PAGE_COUNTS];
    ASSERT(*count < SHARE_MAX);
    if (*count == 0) {
        sh->page_nonzero[p]++;
        sh->shared_blocks++;
    }
    (*count)++;
    sh->extra_users++;
    tree_mark(&sh->tree, p);
    return 0;
}

bool share_drop(struct share *sh, uint32_t block)
{
    uint32_t i = block - sh->first, p = i / SHARE_PAGE_COUNTS;
    uint16_t *count;

    if (sh->pages[p] == NULL)
        return false;
    count = &sh->pages[p][i % SHARE_PAGE_COUNTS];
    if (*count == 0)
        return false;
    (*count)--;
    sh->extra_users--;
    tree_mark(&sh->tree, p);
    if (*count == 0) {
        sh->shared_blocks--;
        if (--sh->page_nonzero[p] == 0) {
            free(sh->pages[p]);
            sh->pages[p] = NULL;
        }
    }
    return true;
}

void share_page_get(const struct share *sh, uint32_t page, uint8_t out[STORE_BLOCK])
{
    ASSERT(sh->pages[page] != NULL);
    for (uint32_t k = 0; k < SHARE_PAGE_COUNTS; k++)
        put_le16(out + 2 * k, sh->pages[page][k]);
}

int share_page_set(struct share *sh, uint32_t page, const uint8_t in[STORE_BLOCK])
{
    uint16_t *counts = calloc(SHARE_PAGE_COUNTS, sizeof(uint16_t));

    ASSERT(sh->pages[page] == NULL);
    if (counts == NULL)
        return -ENOMEM;
    for (uint32_t k = 0; k < SHARE_PAGE_COUNTS; k++) {
        counts[k] = get_le16(in + 2 * k);
        if (counts[k] == 0)
            continue;
        sh->page_nonzero[page]++;
        sh->shared_blocks++;
        sh->extra_users += counts[k];
    }
    if (sh->page_nonzero[page] == 0) {
        free(counts);
        return -EUCLEAN; /* T1 */
    }
    sh->pages[page] = counts;
    return 0;
}
