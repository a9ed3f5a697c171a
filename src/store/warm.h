/* SPDX-License-Identifier: Apache-2.0 */
/* Brings what a replay is going to need into memory, many pieces at a time. */
#pragma once
#include "store/log_scan.h"
#include "store/store_internal.h"

/* For the records of a few commits. What cannot be read is left for the replay to meet. */
fiber_fn void warm_up(struct store *s, const struct log_commit *commits, unsigned count);
/* Bytes of records that may be warmed up together without pushing each other out of the cache. */
size_t warm_bytes_max(const struct store *s);
