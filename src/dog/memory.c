/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of a short-lived command. */
#include "dog/memory.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "dog/exit.h"

static void *must(void *p)
{
    if (p)
        return p;
    fprintf(stderr, "dog: out of memory\n");
    exit(DOG_SYSTEM);
}

void *dog_alloc(size_t size)
{
    return must(calloc(1, size ? size : 1));
}

void *dog_realloc(void *p, size_t size)
{
    return must(realloc(p, size ? size : 1));
}

char *dog_strdup(const char *s)
{
    return must(strdup(s));
}

void dog_free(void *p)
{
    free(p);
}
