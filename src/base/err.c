/* SPDX-License-Identifier: Apache-2.0 */
/* Texts of the closed list of errors. */
#include "base/err.h"
#include <limits.h>
#include <string.h>

const char *err_text(int negative_errno)
{
    switch (negative_errno) {
    case 0:
        return "success";
    case -EINVAL:
        return "invalid argument";
    case -ENOENT:
        return "does not exist";
    case -EEXIST:
        return "exists already";
    case -ENOSPC:
        return "no space left";
    case -ESTALE:
        return "stale version, epoch or session";
    case -EUCLEAN:
        return "stored data is damaged (checksum mismatch)";
    case -EIO:
        return "I/O error";
    case -ECONNRESET:
        return "connection lost";
    case -ETIMEDOUT:
        return "timed out";
    case -EAGAIN:
        return "not available now, try again";
    case -EBUSY:
        return "in use by someone else";
    case -EROFS:
        return "read-only";
    case -ECANCELED:
        return "shutting down";
    case -EBADMSG:
        return "malformed data";
    case -EPROTO:
        return "unknown version or feature";
    case -ENAMETOOLONG:
        return "name too long";
    case -EFBIG:
        return "too large";
    case -ENOMEM:
        return "out of memory";
    case -EPERM:
        return "not permitted";
    case -EMEDIUMTYPE:
        return "not the expected kind of file or device";
    default:
        break;
    }
    const char *text =
        negative_errno < 0 && negative_errno != INT_MIN ? strerrordesc_np(-negative_errno) : NULL;
    return text ? text : "unknown error";
}
