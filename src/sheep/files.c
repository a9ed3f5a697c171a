/* SPDX-License-Identifier: Apache-2.0 */
/* The small files that say where a running sheep is. */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/err.h"
#include "base/log.h"
#include "sheep/sheep.h"

#define LOG_MODULE "sheep"

static int write_new(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return -errno;
    size_t length = strlen(text);
    ssize_t n = write(fd, text, length);
    int r = n == (ssize_t)length ? 0 : n < 0 ? -errno : -ENOSPC;
    if (close(fd) < 0 && r == 0)
        r = -errno;
    return r;
}

int sheep_write_file(const char *path, const char *text)
{
    char temporary[PATH_MAX];
    int r = -ENAMETOOLONG;
    if (snprintf(temporary, sizeof(temporary), "%s.%ld", path, (long)getpid()) < PATH_MAX)
        r = write_new(temporary, text);
    if (r == 0 && rename(temporary, path) < 0)
        r = -errno;
    if (r < 0) {
        log_error("cannot write %s: %s", path, err_text(r));
        unlink(temporary);
    }
    return r;
}

int sheep_probe_lock(const char *path)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return 0;
    /* A device is claimed by O_EXCL, a file by its lock: as rt/uring/disk_open.c does. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | (S_ISBLK(st.st_mode) ? O_EXCL : O_NONBLOCK));
    if (fd < 0)
        return errno == EBUSY ? -EBUSY : 0;
    int r = flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK ? -EBUSY : 0;
    close(fd);
    return r;
}

void sheep_remove_file(const char *path)
{
    if (path && unlink(path) < 0 && errno != ENOENT)
        log_warn("cannot remove %s: %s", path, err_text(-errno));
}
