/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of a short-lived command: running out ends it with a message (exit 2), so that nobody has
 * to check. */
#pragma once
#include <stddef.h>

/* Zeroed. */
void *dog_alloc(size_t size);
void *dog_realloc(void *p, size_t size);
char *dog_strdup(const char *s);
void dog_free(void *p);
