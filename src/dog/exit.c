/* SPDX-License-Identifier: Apache-2.0 */
/* Exit codes of dog. */
#include "dog/exit.h"
#include "base/err.h"

enum dog_exit dog_exit_for(int negative_errno)
{
    switch (negative_errno) {
    case 0:
        return DOG_OK;
    case -EEXIST:
        return DOG_EXISTS;
    case -ENOSPC:
        return DOG_FULL;
    case -ENOENT:
        return DOG_MISSING;
    case -ECONNRESET:
    case -ECONNREFUSED:
    case -ETIMEDOUT:
        return DOG_SYSTEM;
    default:
        return DOG_FAILURE;
    }
}
