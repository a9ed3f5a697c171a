/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Allocation that fails on demand: the sweep program is linked with --wrap for malloc and its
 * relatives, so that every allocation made by the code under test comes by here.
 *
 * A1 Only allocations made on a fiber outside an exempt stretch are counted and may fail; the
 *    simulator and the sweep itself are exempt.
 */
#pragma once
#include "base/check.h"

/* The sweep's own memory: never fails, is not counted. free() as usual. */
void *memory_zalloc(size_t size);
void *memory_pages(size_t size); /* aligned to 4096 */

/* Between the two (they nest, and no suspension lies between) allocations are exempt. */
void memory_exempt_begin(void);
void memory_exempt_end(void);

/* Asked at each counted allocation while not NULL: true makes it fail. */
void memory_set_failing(bool (*fails)(void *arg), void *arg);
/* Counted allocations that were not freed yet. */
size_t memory_live(void);
