/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening disks: kind, size, lock, and what the device below promises about durability.
 *
 * O1 I/O is direct. Only on tmpfs, which knows no direct I/O and forgets everything anyway, it is
 * not. O2 A created file's size and name are durable before disk_open() returns.
 */
#define LOG_MODULE "disk"
#include "rt/uring/disk_open.h"
#include <fcntl.h>
#include <libgen.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>
#include "base/err.h"
#include "base/log.h"
#include "rt/uring/loop.h"

/* First line of a sysfs attribute of the queue of device `dev`; false when there is none. */
static bool read_queue_attribute(dev_t dev, const char *name, char *out, int out_size)
{
    /* A partition has no queue of its own; its parent directory is the disk. */
    static const char *const places[] = {"queue", "../queue"};
    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        char path[128];
        snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s/%s", major(dev), minor(dev),
                 places[i], name);
        FILE *f = fopen(path, "re");
        if (!f)
            continue;
        bool ok = fgets(out, out_size, f) != NULL;
        fclose(f);
        if (ok) {
            out[strcspn(out, "\n")] = '\0';
            return true;
        }
    }
    return false;
}

static enum disk_durability find_durability(dev_t dev)
{
    char text[32];
    if (!read_queue_attribute(dev, "write_cache", text, sizeof(text)))
        return DISK_WRITE_BACK; /* unknown: the safe assumption */
    if (strcmp(text, "write through") == 0)
        return DISK_WRITE_THROUGH;
    if (read_queue_attribute(dev, "fua", text, sizeof(text)) && strcmp(text, "1") == 0)
        return DISK_FUA;
    return DISK_WRITE_BACK;
}

/* 0 when the device cannot discard, or that is not known. */
static uint32_t find_discard(dev_t dev)
{
    char text[32];
    unsigned long long unit;
    if (!read_queue_attribute(dev, "discard_max_bytes", text, sizeof(text)) ||
        strtoull(text, NULL, 10) == 0 ||
        !read_queue_attribute(dev, "discard_granularity", text, sizeof(text)))
        return 0;
    unit = strtoull(text, NULL, 10);
    return unit > 0 && unit <= 1u << 30 ? (uint32_t)ALIGN_UP(unit, (unsigned long long)DISK_BLOCK)
                                        : 0;
}

static int find_kind(const struct stat *st, enum disk_kind *ret)
{
    if (S_ISREG(st->st_mode))
        *ret = DISK_FILE;
    else if (S_ISBLK(st->st_mode))
        *ret = DISK_DEVICE;
    else
        return -EMEDIUMTYPE;
    return 0;
}

/* O1. Set after opening, because open() creates the file even where it then refuses O_DIRECT. */
static int set_direct(int fd, const char *path)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && fcntl(fd, F_SETFL, flags | O_DIRECT) == 0)
        return 0;
    int r = -errno;
    struct statfs fs;
    if (fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC) {
        log_warn("%s is on tmpfs: its content is lost with the machine's memory", path);
        return 0;
    }
    log_error("%s: the file system refuses direct I/O (%s); use another one, or a block device",
              path, err_text(r));
    return -EINVAL;
}

/* O2 */
static int sync_parent(const char *path)
{
    char *copy = strdup(path);
    if (!copy)
        return -ENOMEM;
    int r = 0;
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        r = -errno;
    if (fd >= 0)
        close(fd);
    free(copy);
    return r;
}

/* Space for all of a file; where the file system knows no such thing the file stays sparse. */
static int allocate(int fd, uint64_t size)
{
    return fallocate(fd, 0, 0, (off_t)size) < 0 && errno != EOPNOTSUPP ? -errno : 0;
}

static int create_file(const char *path, unsigned flags, uint64_t size, int *ret_fd)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    int r = 0;
    if (size > INT64_MAX)
        r = -EFBIG;
    else if (ftruncate(fd, (off_t)size) < 0)
        r = -errno;
    if (r == 0 && (flags & DISK_OPEN_ALLOCATE))
        r = allocate(fd, size);
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    if (r == 0)
        r = sync_parent(path);
    if (r < 0) {
        unlink(path);
        close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

static int open_existing(const char *path, unsigned flags, int *ret_fd)
{
    struct stat st;
    enum disk_kind kind;
    if (stat(path, &st) < 0)
        return -errno;
    int r = find_kind(&st, &kind); /* before opening, which has effects on some devices */
    if (r < 0)
        return r;
    int open_flags = O_CLOEXEC | (flags & DISK_OPEN_READ_ONLY ? O_RDONLY : O_RDWR);
    if (kind == DISK_DEVICE && (flags & DISK_OPEN_EXCLUSIVE))
        open_flags |= O_EXCL;
    int fd = open(path, open_flags);
    if (fd < 0)
        return -errno;
    *ret_fd = fd;
    return 0;
}

static int find_size(int fd, const struct stat *st, enum disk_kind kind, uint64_t *ret)
{
    uint64_t size = (uint64_t)st->st_size;
    if (kind == DISK_DEVICE && ioctl(fd, BLKGETSIZE64, &size) < 0)
        return -errno;
    *ret = ALIGN_DOWN(size, (uint64_t)DISK_BLOCK);
    return 0;
}

/* A hole anywhere makes it sparse. Preallocated blocks count as there: they are. */
static int find_sparse(struct uring_disk *d)
{
    struct stat st;
    if (fstat(d->fd, &st) < 0)
        return -errno;
    d->base.sparse = S_ISREG(st.st_mode) && (uint64_t)st.st_blocks * 512 < d->base.size;
    return 0;
}

static int uring_disk_allocate(struct disk *base)
{
    struct uring_disk *d = container_of(base, struct uring_disk, base);
    if (!base->sparse)
        return 0;
    int r = allocate(d->fd, base->size);
    if (r == 0 && fsync(d->fd) < 0)
        r = -errno;
    return r == 0 ? find_sparse(d) : r;
}

/* Fills everything but the slot from the open file. */
static int examine(struct uring_disk *d, const char *path, unsigned flags)
{
    struct stat st;
    if (fstat(d->fd, &st) < 0)
        return -errno;
    int r = find_kind(&st, &d->base.kind);
    if (r < 0)
        return r;
    if ((flags & DISK_OPEN_EXCLUSIVE) && flock(d->fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? -EBUSY : -errno;
    r = set_direct(d->fd, path);
    if (r < 0)
        return r;
    r = find_size(d->fd, &st, d->base.kind, &d->base.size);
    if (r == 0)
        r = find_sparse(d);
    if (r < 0)
        return r;
    if (d->base.kind == DISK_DEVICE)
        d->base.discard_bytes = find_discard(st.st_rdev);
    d->base.durability = find_durability(d->base.kind == DISK_DEVICE ? st.st_rdev : st.st_dev);
    return 0;
}

static void take_slot(struct uring *u, struct uring_disk *d)
{
    d->slot = -1;
    for (int i = 0; u->files_registered && i < DISK_SLOT_COUNT; i++) {
        if (u->disk_slot_used[i])
            continue;
        if (io_uring_register_files_update(&u->ring, (unsigned)i, &d->fd, 1) == 1) {
            u->disk_slot_used[i] = true;
            d->slot = i;
        }
        return;
    }
}

static void uring_disk_close(struct disk *base)
{
    struct uring_disk *d = container_of(base, struct uring_disk, base);
    struct uring *u = uring_of(base->rt);
    ASSERT(d->io_count == 0);
    if (d->slot >= 0) {
        int none = -1;
        io_uring_register_files_update(&u->ring, (unsigned)d->slot, &none, 1);
        u->disk_slot_used[d->slot] = false;
    }
    /* The ring may keep the file for a moment longer; the lock must go now. */
    flock(d->fd, LOCK_UN);
    close(d->fd);
    free(base->name);
    free(d);
}

static const struct disk_ops uring_disk_ops = {
    .submit = uring_disk_submit,
    .allocate = uring_disk_allocate,
    .close = uring_disk_close,
};

int uring_disk_open(struct rt *rt, const char *path, unsigned flags, uint64_t size,
                    struct disk **ret)
{
    struct uring_disk *d = calloc(1, sizeof(*d));
    if (!d)
        return -ENOMEM;
    d->base = (struct disk){.ops = &uring_disk_ops, .rt = rt, .name = strdup(path)};
    int r = -ENOMEM;
    if (!d->base.name)
        goto fail_free;
    r = flags & DISK_OPEN_CREATE ? create_file(path, flags, size, &d->fd)
                                 : open_existing(path, flags, &d->fd);
    if (r < 0)
        goto fail_name;
    r = examine(d, path, flags);
    if (r < 0)
        goto fail_close;
    take_slot(uring_of(rt), d);
    *ret = &d->base;
    return 0;

fail_close:
    close(d->fd);
    if (flags & DISK_OPEN_CREATE)
        unlink(path);
fail_name:
    free(d->base.name);
fail_free:
    free(d);
    return r;
}
