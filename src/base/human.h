/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes, times and progress as people write and read them. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Parses "4096", "64K", "10G", "10GiB", "1.5T": bytes, with units of 1024 (K M G T P, either case,
 * with or without "iB" or "B"). 0 and *ret; -EINVAL: not a size; -EFBIG: does not fit into 64 bits.
 */
int human_size_parse(const char *s, uint64_t *ret);

#define HUMAN_SIZE 32
/* "0 B", "512 B", "4.0 KiB", "10 GiB": at most four digits. Returns out. */
const char *human_size(uint64_t bytes, char out[HUMAN_SIZE]);
/* "2026-11-22 22:46" in local time; "-" for 0. Returns out. */
const char *human_time(uint64_t wall_ns, char out[HUMAN_SIZE]);
/* "350 ms", "12 s", "3 min 5 s", "2 h 7 min", "4 d 3 h". Returns out. */
const char *human_duration(uint64_t ns, char out[HUMAN_SIZE]);

/* A line "what  [=====>    ]  42 %  1.2 GiB of 3.0 GiB  210 MiB/s  8 s left" that redraws itself.
 */
struct human_progress {
    const char *what; /* borrowed; NULL: show nothing (not a terminal, or asked to be quiet) */
    uint64_t begin_ns, shown_ns;
};
/* `what` NULL or standard error not a terminal: all calls do nothing. */
void human_progress_begin(struct human_progress *p, const char *what, uint64_t now_ns);
/* total 0: unknown, then only the amount and the rate are shown. Redraws at most ten times a
 * second. */
void human_progress_update(struct human_progress *p, uint64_t done, uint64_t total,
                           uint64_t now_ns);
/* Removes the line. */
void human_progress_end(struct human_progress *p);
/* The text of that line, for a width of `width` columns. Returns its length. */
size_t human_progress_format(const struct human_progress *p, uint64_t done, uint64_t total,
                             uint64_t now_ns, unsigned width, char *out, size_t size);
