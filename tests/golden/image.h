/* SPDX-License-Identifier: Apache-2.0 */
/* Kept images of stores, and the text that says what is in them. */
#pragma once
#include <stdio.h>
#include "sample.h"

/* Bytes of the image in an xz file, unpacked; *ret is malloc'ed. Asserts that there is one. */
uint64_t image_load(const char *path, uint8_t **ret);
/* Packs `size` bytes into an xz file. */
void image_save(const char *path, const uint8_t *bytes, uint64_t size);
/* Puts an image on the sample's disk, durably. The disk must be as large. */
fiber_fn void image_to_disk(struct sample *p, const uint8_t *bytes, uint64_t size);
/* Writes one line for each object and tombstone, and one for each group's digest. Reads all
 * content. */
fiber_fn void image_describe(struct store *s, FILE *out);
