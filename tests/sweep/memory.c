/* SPDX-License-Identifier: Apache-2.0 */
/* See memory.h. */
#include "memory.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/hash.h"
#include "rt/fiber.h"

/* Addresses of counted allocations, an open-addressing table; a tombstone is address 1. */
#define LIVE_SLOTS (1u << 16)

static struct {
    unsigned exempt;
    bool (*fails)(void *arg);
    void *arg;
    uintptr_t live[LIVE_SLOTS];
    size_t live_count, slots_used;
} memory;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
int __real_posix_memalign(void **ret, size_t alignment, size_t size);
void __real_free(void *p);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
int __wrap_posix_memalign(void **ret, size_t alignment, size_t size);
void __wrap_free(void *p);

/* --- who holds memory --- */

static size_t slot_of(uintptr_t p)
{
    return hash_u64(p) % LIVE_SLOTS;
}

static void *live_add(void *p)
{
    size_t i = slot_of((uintptr_t)p);

    if (p == NULL)
        return NULL;
    while (memory.live[i] > 1)
        i = (i + 1) % LIVE_SLOTS;
    if (memory.live[i] == 0)
        memory.slots_used++;
    memory.live[i] = (uintptr_t)p;
    memory.live_count++;
    if (memory.slots_used >= LIVE_SLOTS)
        abort();
    return p;
}

static void live_remove(const void *p)
{
    if (p == NULL)
        return;
    for (size_t i = slot_of((uintptr_t)p); memory.live[i] != 0; i = (i + 1) % LIVE_SLOTS) {
        if (memory.live[i] == (uintptr_t)p) {
            memory.live[i] = 1;
            memory.live_count--;
            return;
        }
    }
}

size_t memory_live(void)
{
    return memory.live_count;
}

/* --- failing --- */

void memory_exempt_begin(void)
{
    memory.exempt++;
}

void memory_exempt_end(void)
{
    ASSERT(memory.exempt > 0);
    memory.exempt--;
}

void memory_set_failing(bool (*fails)(void *arg), void *arg)
{
    memory.fails = fails;
    memory.arg = arg;
}

static bool counted(void)
{
    return memory.exempt == 0 && fiber_current() != NULL;
}

static bool fails_now(void)
{
    bool fails = false;

    if (memory.fails != NULL) {
        memory_exempt_begin(); /* it may fork */
        fails = memory.fails(memory.arg);
        memory_exempt_end();
    }
    if (fails)
        errno = ENOMEM;
    return fails;
}

void *__wrap_malloc(size_t size)
{
    if (!counted())
        return __real_malloc(size);
    return fails_now() ? NULL : live_add(__real_malloc(size));
}

void *__wrap_calloc(size_t count, size_t size)
{
    if (!counted())
        return __real_calloc(count, size);
    return fails_now() ? NULL : live_add(__real_calloc(count, size));
}

void *__wrap_realloc(void *p, size_t size)
{
    void *q;

    if (!counted()) {
        live_remove(p);
        return __real_realloc(p, size);
    }
    if (fails_now())
        return NULL;
    live_remove(p);
    q = live_add(__real_realloc(p, size));
    return q;
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    if (!counted())
        return __real_aligned_alloc(alignment, size);
    return fails_now() ? NULL : live_add(__real_aligned_alloc(alignment, size));
}

int __wrap_posix_memalign(void **ret, size_t alignment, size_t size)
{
    int r;

    if (!counted())
        return __real_posix_memalign(ret, alignment, size);
    if (fails_now())
        return ENOMEM;
    r = __real_posix_memalign(ret, alignment, size);
    if (r == 0)
        live_add(*ret);
    return r;
}

void __wrap_free(void *p)
{
    live_remove(p);
    __real_free(p);
}

void *memory_zalloc(size_t size)
{
    void *p = __real_calloc(1, size);

    ASSERT(p != NULL);
    return p;
}

void *memory_pages(size_t size)
{
    void *p = __real_aligned_alloc(4096, ALIGN_UP(size, (size_t)4096));

    ASSERT(p != NULL);
    return p;
}
