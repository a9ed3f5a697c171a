/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The allocator. Small writes follow each other through words that are wholly free (256 KiB each),
 * so that the writes of one commit lie together; only when there is none left are gaps used. Free
 * words below the frontier come first.
 */
#include "store/space.h"
#include "base/err.h"

#define WORD_BITS      64u
#define WORDS_PER_PAGE (BITMAP_PAGE_BITS / WORD_BITS)
#define REGION_BLOCKS  1024u

static uint32_t word_count(const struct space *sp)
{
    return sp->page_count * WORDS_PER_PAGE;
}

/* Bits of word w that stand for existing blocks. */
static uint64_t word_valid(const struct space *sp, uint32_t w)
{
    uint64_t first = (uint64_t)w * WORD_BITS;

    if (first + WORD_BITS <= sp->count)
        return UINT64_MAX;
    return first >= sp->count ? 0 : (1ull << (sp->count - first)) - 1;
}

static size_t region_words(const struct space *sp)
{
    return ((uint64_t)sp->count / SPACE_REGION_BLOCKS + WORD_BITS) / WORD_BITS;
}

int space_init(struct space *sp, uint32_t first, uint32_t count)
{
    *sp = (struct space){.first = first, .count = count};
    list_init(&sp->waiting);
    list_init(&sp->readers);
    list_init(&sp->holds);
    sp->page_count = (uint32_t)(((uint64_t)count + BITMAP_PAGE_BITS - 1) / BITMAP_PAGE_BITS);
    sp->bits = calloc(word_count(sp), sizeof(*sp->bits));
    sp->page_free = calloc(sp->page_count, sizeof(*sp->page_free));
    sp->page_empty_words = calloc(sp->page_count, sizeof(*sp->page_empty_words));
    sp->page_used = calloc(sp->page_count, sizeof(*sp->page_used));
    sp->freed = calloc(region_words(sp), sizeof(*sp->freed));
    if (!sp->freed || !sp->bits || !sp->page_free || !sp->page_empty_words || !sp->page_used) {
        space_done(sp);
        return -ENOMEM;
    }
    for (uint32_t p = 0; p < sp->page_count; p++) {
        uint32_t left = count - p * BITMAP_PAGE_BITS;
        sp->page_free[p] = MIN(left, BITMAP_PAGE_BITS);
        sp->page_empty_words[p] = (uint16_t)(sp->page_free[p] / WORD_BITS);
        sp->empty_words += sp->page_empty_words[p];
    }
    for (uint32_t w = count / WORD_BITS; w < word_count(sp); w++)
        sp->bits[w] = ~word_valid(sp, w);
    sp->free_count = count;
    sp->frontier = sp->ready = count;
    sp->ready_words = sp->empty_words;
    return 0;
}

void space_done(struct space *sp)
{
    struct free_batch *b, *tmp;

    list_for_each_safe (b, tmp, &sp->waiting, link) {
        u32vec_done(&b->blocks);
        free(b);
    }
    list_init(&sp->waiting);
    free(sp->bits);
    free(sp->page_free);
    free(sp->page_empty_words);
    free(sp->page_used);
    free(sp->freed);
    sp->freed = NULL;
    sp->bits = NULL;
    sp->page_free = NULL;
    sp->page_empty_words = NULL;
    sp->page_used = NULL;
}

bool space_covers(const struct space *sp, uint32_t block)
{
    return block >= sp->first && block - sp->first < sp->count;
}

static bool index_free(const struct space *sp, uint32_t i)
{
    return !(sp->bits[i / WORD_BITS] >> (i % WORD_BITS) & 1);
}

bool space_is_free(const struct space *sp, uint32_t block)
{
    ASSERT(space_covers(sp, block));
    return index_free(sp, block - sp->first);
}

static void index_mark(struct space *sp, uint32_t i)
{
    uint64_t *w = &sp->bits[i / WORD_BITS];
    uint32_t p = i / BITMAP_PAGE_BITS;

    ASSERT(index_free(sp, i));
    if (*w == 0) {
        sp->page_empty_words[p]--;
        sp->empty_words--;
        sp->ready_words -= i < sp->frontier;
    }
    *w |= 1ull << (i % WORD_BITS);
    sp->page_free[p]--;
    sp->free_count--;
    sp->ready -= i < sp->frontier;
}

void space_mark(struct space *sp, uint32_t block)
{
    ASSERT(space_covers(sp, block));
    index_mark(sp, block - sp->first);
}

void space_note_freed(struct space *sp, uint32_t index)
{
    uint32_t r = index / SPACE_REGION_BLOCKS;
    uint64_t *w = &sp->freed[r / WORD_BITS], bit = 1ull << (r % WORD_BITS);

    sp->freed_count += !(*w & bit);
    *w |= bit;
}

void space_forget_freed(struct space *sp, uint32_t region)
{
    uint64_t *w = &sp->freed[region / WORD_BITS], bit = 1ull << (region % WORD_BITS);

    sp->freed_count -= (*w & bit) != 0;
    *w &= ~bit;
}

bool space_next_freed(const struct space *sp, uint32_t *region)
{
    for (size_t w = *region / WORD_BITS; sp->freed_count > 0 && w < region_words(sp); w++) {
        uint64_t bits = sp->freed[w];
        if (w == *region / WORD_BITS)
            bits &= UINT64_MAX << (*region % WORD_BITS);
        if (bits != 0) {
            *region = (uint32_t)(w * WORD_BITS) + (uint32_t)__builtin_ctzll(bits);
            return true;
        }
    }
    return false;
}

static void index_clear(struct space *sp, uint32_t i)
{
    uint32_t p = i / BITMAP_PAGE_BITS;
    uint64_t *w = &sp->bits[i / WORD_BITS];

    if (index_free(sp, i)) {
        sp->twice = sp->first + i;
        return;
    }
    *w &= ~(1ull << (i % WORD_BITS));
    if (*w == 0) {
        sp->page_empty_words[p]++;
        sp->empty_words++;
        sp->ready_words += i < sp->frontier;
    }
    sp->page_free[p]++;
    sp->free_count++;
    sp->ready += i < sp->frontier;
}

void space_clear(struct space *sp, uint32_t block)
{
    ASSERT(space_covers(sp, block));
    index_clear(sp, block - sp->first);
    if (sp->notes_freed)
        space_note_freed(sp, block - sp->first);
}

uint32_t space_own(struct space *sp, uint32_t block)
{
    uint32_t p = (block - sp->first) / BITMAP_PAGE_BITS;

    ASSERT(space_covers(sp, block));
    sp->page_used[p]++;
    sp->used_count++;
    return p;
}

uint32_t space_disown(struct space *sp, uint32_t block)
{
    uint32_t p = (block - sp->first) / BITMAP_PAGE_BITS;

    ASSERT(space_covers(sp, block));
    if (sp->page_used[p] == 0) {
        sp->twice = block;
        return p;
    }
    sp->page_used[p]--;
    sp->used_count--;
    return p;
}

void space_set_frontier(struct space *sp, uint32_t to)
{
    sp->frontier = to >= sp->count ? sp->count : ALIGN_DOWN(to, WORD_BITS);
    sp->ready = sp->ready_words = 0;
    for (uint32_t w = 0; (uint64_t)w * WORD_BITS < sp->frontier;) {
        if (w % WORDS_PER_PAGE == 0 && w * WORD_BITS + BITMAP_PAGE_BITS <= sp->frontier) {
            sp->ready += sp->page_free[w / WORDS_PER_PAGE];
            sp->ready_words += sp->page_empty_words[w / WORDS_PER_PAGE];
            w += WORDS_PER_PAGE;
            continue;
        }
        sp->ready += WORD_BITS - (uint32_t)__builtin_popcountll(sp->bits[w]);
        sp->ready_words += sp->bits[w] == 0;
        w++;
    }
}

/* First word from w0 up to w1 in which (empty) nothing, or (else) not everything is taken. */
static bool find_word(const struct space *sp, uint32_t w0, uint32_t w1, bool empty, uint32_t *ret)
{
    uint32_t w = w0;

    if (empty && sp->empty_words == 0)
        return false;
    while (w < w1) {
        uint32_t p = w / WORDS_PER_PAGE;
        if (empty ? sp->page_empty_words[p] == 0 : sp->page_free[p] == 0) {
            w = (p + 1) * WORDS_PER_PAGE;
            continue;
        }
        if (empty ? sp->bits[w] == 0 : sp->bits[w] != UINT64_MAX) {
            *ret = w;
            return true;
        }
        w++;
    }
    return false;
}

/* As find_word() in [low, high), from `at` on if that is inside; wraps. */
static bool find_word_in(const struct space *sp, uint32_t low, uint32_t high, uint32_t at,
                         bool empty, uint32_t *ret)
{
    if (at < low || at >= high)
        at = low;
    return find_word(sp, at, high, empty, ret) || find_word(sp, low, at, empty, ret);
}

/* One past the last word that begins below the frontier. */
static uint32_t frontier_word(const struct space *sp)
{
    return (uint32_t)(((uint64_t)sp->frontier + WORD_BITS - 1) / WORD_BITS);
}

/* Index of a free block at or after i, best at the start of an empty word; wraps (A3). */
static bool find_free(const struct space *sp, uint32_t i, uint32_t *ret)
{
    uint32_t at = i / WORD_BITS, f = frontier_word(sp), end = word_count(sp), w;

    if (i < sp->count && index_free(sp, i) &&
        (i < sp->frontier || (!sp->bounded && sp->ready_words == 0))) {
        *ret = i;
        return true;
    }
    if (!(sp->ready_words > 0 && find_word_in(sp, 0, f, at, true, &w)) &&
        !(!sp->bounded && find_word_in(sp, f, end, at, true, &w)) &&
        !(sp->ready > 0 && find_word_in(sp, 0, f, at, false, &w)) &&
        !(!sp->bounded && find_word_in(sp, f, end, at, false, &w)))
        return false;
    *ret = w * WORD_BITS + (uint32_t)__builtin_ctzll(~sp->bits[w]);
    return true;
}

static uint32_t take_at(struct space *sp, uint32_t cursor, uint32_t want, uint32_t *ret_index)
{
    uint32_t i, end, n = 0;

    if (sp->free_count == 0 || !find_free(sp, cursor < sp->count ? cursor : 0, &i))
        return 0;
    end = i < sp->frontier ? sp->frontier : sp->count;
    while (n < want && i + n < end && index_free(sp, i + n)) {
        index_mark(sp, i + n);
        n++;
    }
    *ret_index = i;
    return n;
}

uint32_t space_take(struct space *sp, uint32_t hint, uint32_t want, uint32_t *ret_start)
{
    uint32_t i, n;

    ASSERT(want > 0);
    n = take_at(sp, hint >= sp->first ? hint - sp->first : sp->large_cursor, want, &i);
    if (n > 0)
        *ret_start = sp->first + i;
    return n;
}

uint32_t space_take_small(struct space *sp, uint32_t want, uint32_t *ret_start)
{
    uint32_t i, n = take_at(sp, sp->small_cursor, want, &i);

    if (n > 0) {
        *ret_start = sp->first + i;
        sp->small_cursor = i + n;
    }
    return n;
}

uint32_t space_region(struct space *sp)
{
    uint32_t i = sp->large_cursor, f = frontier_word(sp), w;

    if ((sp->ready_words > 0 && find_word_in(sp, 0, f, i / WORD_BITS, true, &w)) ||
        find_word_in(sp, f, word_count(sp), i / WORD_BITS, true, &w))
        i = w * WORD_BITS;
    sp->large_cursor = i + REGION_BLOCKS < sp->count ? i + REGION_BLOCKS : 0;
    return sp->first + i;
}

/* Clears what no reader can be using any more. */
static bool release_ripe(struct space *sp)
{
    bool any = false;
    struct free_batch *b, *tmp;

    list_for_each_safe (b, tmp, &sp->waiting, link) {
        if (!list_empty(&sp->readers) &&
            list_first(&sp->readers, struct space_reader, link)->stamp <= b->stamp)
            break;
        for (size_t i = 0; i < b->blocks.count; i++)
            space_clear(sp, b->blocks.v[i]);
        sp->waiting_count -= b->blocks.count;
        list_remove(&b->link);
        u32vec_done(&b->blocks);
        free(b);
        any = true;
    }
    return any;
}

int space_release(struct space *sp, struct u32vec *v)
{
    struct free_batch *b;

    if (v->count == 0)
        return 0;
    if (list_empty(&sp->readers)) {
        ASSERT(list_empty(&sp->waiting));
        for (size_t i = 0; i < v->count; i++)
            space_clear(sp, v->v[i]);
        v->count = 0;
        return 0;
    }
    b = malloc(sizeof(*b));
    if (b == NULL)
        return -ENOMEM;
    b->stamp = sp->stamp++;
    b->blocks = *v;
    *v = (struct u32vec){0};
    list_push_back(&sp->waiting, &b->link);
    sp->waiting_count += b->blocks.count;
    return 0;
}

void space_reader_begin(struct space *sp, struct space_reader *r)
{
    r->stamp = sp->stamp;
    list_push_back(&sp->readers, &r->link);
}

bool space_reader_end(struct space *sp, struct space_reader *r)
{
    list_remove(&r->link);
    return !list_empty(&sp->waiting) && release_ripe(sp);
}

bool space_hold_begin(struct space *sp, struct space_hold *h, uint32_t from, uint32_t to,
                      uint32_t want)
{
    uint32_t w, i = from, n = 0;

    ASSERT(to <= sp->count && want > 0);
    while (i < to && !index_free(sp, i)) {
        if (i % WORD_BITS != 0) {
            i++;
            continue;
        }
        if (!find_word(sp, i / WORD_BITS, (to + WORD_BITS - 1) / WORD_BITS, false, &w))
            return false;
        i = w * WORD_BITS + (uint32_t)__builtin_ctzll(~sp->bits[w]);
    }
    if (i >= to)
        return false;
    while (n < want && i + n < to && index_free(sp, i + n)) {
        index_mark(sp, i + n);
        n++;
    }
    *h = (struct space_hold){.start = sp->first + i, .count = n};
    list_push_back(&sp->holds, &h->link);
    sp->held_count += n;
    return true;
}

void space_hold_end(struct space *sp, struct space_hold *h)
{
    for (uint32_t k = 0; k < h->count; k++)
        index_clear(sp, h->start - sp->first + k);
    sp->held_count -= h->count;
    list_remove(&h->link);
}

uint32_t space_ready_until(const struct space *sp, uint32_t want)
{
    uint32_t n = 0;

    for (uint32_t w = 0; w < word_count(sp); w++) {
        if (n >= want)
            return MIN(w * WORD_BITS, sp->count);
        n += WORD_BITS - (uint32_t)__builtin_popcountll(sp->bits[w]);
    }
    return sp->count;
}

void space_each_unowned(const struct space *sp, void (*fn)(void *arg, uint32_t block), void *arg)
{
    const struct free_batch *b;
    const struct space_hold *h;

    list_for_each (b, &sp->waiting, link) {
        for (size_t i = 0; i < b->blocks.count; i++)
            fn(arg, b->blocks.v[i]);
    }
    list_for_each (h, &sp->holds, link) {
        for (uint32_t k = 0; k < h->count; k++)
            fn(arg, h->start + k);
    }
}

void space_page_get(const struct space *sp, uint32_t page, uint8_t out[STORE_BLOCK])
{
    for (uint32_t k = 0; k < WORDS_PER_PAGE; k++) {
        uint32_t w = page * WORDS_PER_PAGE + k;
        put_le64(out + 8 * k, sp->bits[w] & word_valid(sp, w));
    }
}

int space_page_set(struct space *sp, uint32_t page, const uint8_t in[STORE_BLOCK])
{
    for (uint32_t k = 0; k < WORDS_PER_PAGE; k++) {
        uint32_t w = page * WORDS_PER_PAGE + k;
        uint64_t bits = get_le64(in + 8 * k), valid = word_valid(sp, w);
        uint32_t n = (uint32_t)__builtin_popcountll(bits);

        if (bits & ~valid)
            return -EUCLEAN;
        if (n == 0)
            continue;
        ASSERT(sp->bits[w] == ~valid);
        if (sp->bits[w] == 0) {
            sp->page_empty_words[page]--;
            sp->empty_words--;
            sp->ready_words -= w < frontier_word(sp);
        }
        sp->bits[w] |= bits;
        sp->page_free[page] -= n;
        sp->free_count -= n;
        sp->ready -= w < frontier_word(sp) ? n : 0;
        sp->page_used[page] += n;
        sp->used_count += n;
    }
    return 0;
}
