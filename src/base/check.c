/* SPDX-License-Identifier: Apache-2.0 */
/* What a failed assertion does: says where, and aborts. */
#include "base/check.h"
#include <stdio.h>
#include <stdlib.h>

void check_failed(const char *cond, const char *file, int line)
{
    fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, cond);
    fflush(stderr);
    abort();
}
