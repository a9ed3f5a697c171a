/* SPDX-License-Identifier: Apache-2.0 */
/* Fiber stacks: mapped with a guard page below, kept for reuse. */
#include <stdlib.h>
#include <sys/mman.h>
#include "rt/seam.h"
#include "rt/sanitize.h"

#define GUARD_SIZE           4096u
#define STACK_IDLE_COUNT_MAX 256

#ifdef RT_ASAN
#define STACK_SIZE_DEFAULT (256u << 10)
#else
#define STACK_SIZE_DEFAULT (64u << 10)
#endif

void stack_pool_init(struct stack_pool *p, size_t stack_size)
{
    list_init(&p->idle);
    p->idle_count = 0;
    p->stack_size = ALIGN_UP(stack_size ? stack_size : STACK_SIZE_DEFAULT, (size_t)GUARD_SIZE);
}

static void stack_free(struct stack *s)
{
    sanitize_unpoison(s->bottom, s->size);
    munmap(s->mapping, GUARD_SIZE + s->size);
    free(s);
}

void stack_pool_done(struct stack_pool *p)
{
    struct stack *s, *tmp;
    list_for_each_safe (s, tmp, &p->idle, link)
        stack_free(s);
    list_init(&p->idle);
    p->idle_count = 0;
}

static struct stack *stack_new(size_t size)
{
    struct stack *s = malloc(sizeof(*s));
    if (!s)
        return NULL;
    uint8_t *mapping = mmap(NULL, GUARD_SIZE + size, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED)
        goto fail_free;
    if (mprotect(mapping, GUARD_SIZE, PROT_NONE) < 0)
        goto fail_unmap;
    *s = (struct stack){.mapping = mapping, .bottom = mapping + GUARD_SIZE, .size = size};
    list_init(&s->link);
    return s;

fail_unmap:
    munmap(mapping, GUARD_SIZE + size);
fail_free:
    free(s);
    return NULL;
}

struct stack *stack_get(struct stack_pool *p)
{
    if (list_empty(&p->idle))
        return stack_new(p->stack_size);
    struct stack *s = list_first(&p->idle, struct stack, link);
    list_remove(&s->link);
    p->idle_count--;
    /* The frames of the fiber before were left, not returned from. */
    sanitize_unpoison(s->bottom, s->size);
    return s;
}

void stack_put(struct stack_pool *p, struct stack *s)
{
    if (p->idle_count >= STACK_IDLE_COUNT_MAX) {
        stack_free(s);
        return;
    }
    list_push_front(&p->idle, &s->link); /* the warmest is used next */
    p->idle_count++;
}
