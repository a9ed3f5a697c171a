/* SPDX-License-Identifier: Apache-2.0 */
/* Growable array of u32. */
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include "base/check.h"
#include "base/err.h"

struct u32vec {
    uint32_t *v; /* owned */
    size_t count, capacity;
};

/* Makes room for `more` pushes that then cannot fail. 0 or -ENOMEM. */
static inline int u32vec_reserve(struct u32vec *a, size_t more)
{
    size_t want = a->count + more;

    if (want <= a->capacity)
        return 0;
    want = MAX(want, a->capacity * 2 + 16);
    uint32_t *v = realloc(a->v, want * sizeof(*v));
    if (v == NULL)
        return -ENOMEM;
    a->v = v;
    a->capacity = want;
    return 0;
}

static inline int u32vec_push(struct u32vec *a, uint32_t x)
{
    if (a->count == a->capacity) {
        int r = u32vec_reserve(a, 1);
        if (r < 0)
            return r;
    }
    a->v[a->count++] = x;
    return 0;
}

static inline void u32vec_done(struct u32vec *a)
{
    free(a->v);
    *a = (struct u32vec){0};
}
