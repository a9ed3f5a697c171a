/* SPDX-License-Identifier: Apache-2.0 */
/* Assertions that stay on in release builds, and checked integer arithmetic. */
#pragma once
#include <assert.h> /* static_assert only */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Reports the failed condition and aborts. Only for our own bugs: nothing that a peer, a disk, a
 * guest or an administrator sends may reach it. */
_Noreturn void check_failed(const char *cond, const char *file, int line);

#define ASSERT(cond) ((cond) ? (void)0 : check_failed(#cond, __FILE__, __LINE__))

/* Each returns false, leaving *ret untouched, when the exact result does not fit. */
static inline bool add_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *ret = r;
    return true;
}

static inline bool mul_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *ret = r;
    return true;
}

#define ARRAY_SIZE(a)                   (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)                       ((a) < (b) ? (a) : (b))
#define MAX(a, b)                       ((a) > (b) ? (a) : (b))
#define ALIGN_DOWN(x, a)                ((x) & ~((__typeof__(x))(a)-1))
#define ALIGN_UP(x, a)                  ALIGN_DOWN((x) + (__typeof__(x))(a)-1, (a))
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
