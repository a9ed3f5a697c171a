/* SPDX-License-Identifier: Apache-2.0 */
/* Paged array of u16, in memory in part; written by the checkpoint. */
#include "store/share.h"
#include "base/err.h"

#define SHRINK_TRIES 64u

int share_init(struct share *sh, struct page_pool *pool, uint32_t first, uint32_t count)
{
    *sh = (struct share){.first = first, .pool = pool};
    list_init(&sh->used);
    tree_init(&sh->tree, PAGE_SHARE);
    sh->page_count = (uint32_t)(((uint64_t)count + SHARE_PAGE_COUNTS - 1) / SHARE_PAGE_COUNTS);
    sh->pages = calloc(sh->page_count, sizeof(*sh->pages)); /* touched only where used */
    if (!sh->pages || tree_resize(&sh->tree, sh->page_count) < 0) {
        share_done(sh);
        return -ENOMEM;
    }
    return 0;
}

static void page_free(struct share *sh, struct share_page *p)
{
    list_remove(&p->link);
    sh->pages[p->page] = NULL;
    sh->loaded--;
    if (p->data != NULL)
        page_put(sh->pool, p->data);
    free(p);
}

void share_done(struct share *sh)
{
    while (!list_empty(&sh->used))
        page_free(sh, list_first(&sh->used, struct share_page, link));
    free(sh->pages);
    sh->pages = NULL;
    tree_done(&sh->tree);
}

static struct share_page *page_new(struct share *sh, uint32_t page, bool readable)
{
    struct share_page *p = malloc(sizeof(*p));

    ASSERT(sh->pages[page] == NULL);
    if (p == NULL)
        return NULL;
    *p = (struct share_page){.page = page};
    if (readable) {
        p->data = page_get(sh->pool);
        if (p->data == NULL) {
            free(p);
            return NULL;
        }
    }
    list_push_back(&sh->used, &p->link);
    sh->pages[page] = p;
    sh->loaded++;
    return p;
}

static bool page_is_missing(const struct share *sh, uint32_t page)
{
    return sh->pages[page] == NULL && sh->tree.levels[0].ptrs[page].block != 0;
}

/* Page and place of a block's count; NULL: all zero. */
static struct share_page *find(const struct share *sh, uint32_t block, uint32_t *ret_i)
{
    uint32_t i = block - sh->first, page = i / SHARE_PAGE_COUNTS;

    ASSERT(!page_is_missing(sh, page)); /* X2 */
    *ret_i = i % SHARE_PAGE_COUNTS;
    return sh->pages[page];
}

bool share_is_loaded(const struct share *sh, uint32_t block)
{
    return sh->missing == 0 || !page_is_missing(sh, (block - sh->first) / SHARE_PAGE_COUNTS);
}

bool share_is_known(const struct share *sh, uint32_t block)
{
    uint32_t i;
    const struct share_page *p = find(sh, block, &i);

    return p == NULL || p->data != NULL;
}

uint16_t share_get(const struct share *sh, uint32_t block)
{
    uint32_t i;
    const struct share_page *p = find(sh, block, &i);

    if (p == NULL)
        return 0;
    return p->data != NULL ? get_le16(p->data + 2 * i) : UINT16_MAX;
}

int share_add(struct share *sh, uint32_t block)
{
    uint32_t i, count;
    struct share_page *p = find(sh, block, &i);

    if (p == NULL) {
        p = page_new(sh, (block - sh->first) / SHARE_PAGE_COUNTS, true);
        if (p == NULL)
            return -ENOMEM;
        memset(p->data, 0, STORE_BLOCK);
    }
    if (p->data == NULL)
        return 0; /* X3 */
    count = get_le16(p->data + 2 * i);
    ASSERT(count < SHARE_MAX);
    put_le16(p->data + 2 * i, (uint16_t)(count + 1));
    if (count == 0) {
        p->nonzero++;
        sh->shared_blocks++;
    }
    sh->extra_users++;
    tree_mark(&sh->tree, p->page);
    return 0;
}

bool share_drop(struct share *sh, uint32_t block)
{
    uint32_t i, count;
    struct share_page *p = find(sh, block, &i);

    if (p == NULL)
        return false;
    if (p->data == NULL)
        return true; /* X3 */
    count = get_le16(p->data + 2 * i);
    if (count == 0)
        return false;
    put_le16(p->data + 2 * i, (uint16_t)(count - 1));
    sh->extra_users--;
    tree_mark(&sh->tree, p->page);
    if (count == 1) {
        sh->shared_blocks--;
        p->nonzero--;
    }
    return true;
}

/* --- pages --- */

bool share_page_is_empty(const struct share *sh, uint32_t page)
{
    const struct share_page *p = sh->pages[page];

    ASSERT(p != NULL && p->data != NULL); /* X1: only readable ones become dirty */
    return p->nonzero == 0;
}

void share_page_get(const struct share *sh, uint32_t page, uint8_t out[STORE_BLOCK])
{
    memcpy(out, sh->pages[page]->data, STORE_BLOCK);
}

void share_page_taken(struct share *sh, uint32_t page)
{
    struct share_page *p = sh->pages[page];

    if (p->nonzero == 0)
        page_free(sh, p);
}

static uint32_t count_nonzero(const uint8_t *in, uint64_t *ret_sum)
{
    uint32_t n = 0;

    *ret_sum = 0;
    for (uint32_t k = 0; k < SHARE_PAGE_COUNTS; k++) {
        uint16_t count = get_le16(in + 2 * k);
        n += count != 0;
        *ret_sum += count;
    }
    return n;
}

int share_page_set(struct share *sh, uint32_t page, const uint8_t *in)
{
    struct share_page *p;
    uint64_t sum;

    ASSERT(page_is_missing(sh, page) && sh->missing > 0);
    p = page_new(sh, page, in != NULL);
    if (p == NULL)
        return -ENOMEM;
    sh->missing--;
    if (in == NULL) {
        sh->damaged++;
        return 0;
    }
    memcpy(p->data, in, STORE_BLOCK);
    p->nonzero = count_nonzero(in, &sum);
    return 0;
}

int share_page_count(struct share *sh, const uint8_t in[STORE_BLOCK])
{
    uint64_t sum;
    uint32_t n = count_nonzero(in, &sum);

    if (n == 0)
        return -EUCLEAN;
    sh->shared_blocks += n;
    sh->extra_users += sum;
    return 0;
}

void share_page_count_loaded(struct share *sh, uint32_t page)
{
    if (sh->pages[page]->data != NULL)
        (void)share_page_count(sh, sh->pages[page]->data);
}

void share_shrink(struct share *sh, size_t keep)
{
    for (unsigned tries = 0; tries < SHRINK_TRIES && sh->loaded > keep && sh->holds == 0; tries++) {
        struct share_page *p = list_first(&sh->used, struct share_page, link);
        uint32_t next;
        bool dirty = tree_next_dirty(&sh->tree, 0, p->page, &next) && next == p->page;
        if (dirty || p->data == NULL) {
            list_remove(&p->link);
            list_push_back(&sh->used, &p->link);
            continue;
        }
        if (sh->tree.levels[0].ptrs[p->page].block != 0)
            sh->missing++;
        page_free(sh, p);
    }
}
