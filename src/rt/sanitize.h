/* SPDX-License-Identifier: Apache-2.0 */
/* What AddressSanitizer must be told about fiber stacks and pooled buffers; nothing without it. */
#pragma once
#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#define RT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RT_ASAN 1
#endif
#endif

#ifdef RT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

/* Before leaving a stack; fake_stack_save NULL when it is left for good. */
static inline void sanitize_switch_start(void **fake_stack_save, const void *bottom, size_t size)
{
    __sanitizer_start_switch_fiber(fake_stack_save, bottom, size);
}

/* First thing on the stack arrived at; tells where we came from. */
static inline void sanitize_switch_finish(void *fake_stack, const void **bottom_old,
                                          size_t *size_old)
{
    __sanitizer_finish_switch_fiber(fake_stack, bottom_old, size_old);
}

static inline void sanitize_poison(const void *p, size_t size)
{
    __asan_poison_memory_region(p, size);
}

static inline void sanitize_unpoison(const void *p, size_t size)
{
    __asan_unpoison_memory_region(p, size);
}
#else
static inline void sanitize_switch_start(void **fake_stack_save, const void *bottom, size_t size)
{
}

static inline void sanitize_switch_finish(void *fake_stack, const void **bottom_old,
                                          size_t *size_old)
{
}

static inline void sanitize_poison(const void *p, size_t size)
{
}

static inline void sanitize_unpoison(const void *p, size_t size)
{
}
#endif
