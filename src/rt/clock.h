/* SPDX-License-Identifier: Apache-2.0 */
/* The only clocks that code above the seam may read. */
#pragma once
#include <stdint.h>

struct rt;
#define NS_PER_US 1000ULL
#define NS_PER_MS 1000000ULL
#define NS_PER_S  1000000000ULL

/* Nanoseconds of CLOCK_BOOTTIME: monotonic, counts suspended time. */
uint64_t clock_now(struct rt *rt);
/* Nanoseconds since 1970, for people only (creation times); may jump. */
uint64_t clock_wall(struct rt *rt);
