/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks on io_uring: O_DIRECT files and block devices.
 *
 * K1 Transfers that the kernel cuts short or interrupts are continued here; the caller sees all or
 * an error. K2 The caller's iov is never changed: after a short vectored transfer the rest goes
 * piece by piece. K3 disk_io.private_state holds struct uring_io.
 */
#define LOG_MODULE "disk"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/err.h"
#include "base/log.h"
#include "rt/uring/disk_open.h"
#include "rt/uring/loop.h"

enum io_mode {
    IO_WHOLE,  /* all of iov in one operation */
    IO_PIECES, /* K2 */
    IO_ZEROS,  /* DISK_ZERO by writing zeros */
};

struct uring_io {
    struct uring_op op;
    struct uring_disk *disk;
    uint64_t progress; /* bytes done */
    enum io_mode mode;
};
static_assert(sizeof(struct uring_io) <= sizeof(((struct disk_io *)0)->private_state), "K3");

static struct disk_io *io_of(struct uring_io *u)
{
    return container_of((uint64_t(*)[8])u, struct disk_io, private_state);
}

/* The buffer at `progress`, and how much of it is left. */
static struct iovec iov_piece(const struct disk_io *io, uint64_t progress)
{
    unsigned i = 0;
    while (progress >= io->iov[i].iov_len) {
        progress -= io->iov[i].iov_len;
        i++;
        ASSERT(i < io->iov_count);
    }
    return (struct iovec){(uint8_t *)io->iov[i].iov_base + progress, io->iov[i].iov_len - progress};
}

static bool is_registered(struct uring *u, const struct iovec *v)
{
    const uint8_t *start = v->iov_base, *hot = u->rt.buffers.hot;
    return u->buffers_registered && start >= hot && v->iov_len <= u->rt.buffers.hot_size &&
           (size_t)(start - hot) <= u->rt.buffers.hot_size - v->iov_len;
}

static void prepare_transfer(struct uring *u, struct uring_io *s, struct io_uring_sqe *sqe)
{
    struct disk_io *io = io_of(s);
    int fd = s->disk->fd;
    uint64_t offset = io->offset + s->progress;
    if (s->mode == IO_WHOLE && io->iov_count > 1) {
        if (io->op == DISK_READ)
            io_uring_prep_readv(sqe, fd, io->iov, io->iov_count, offset);
        else
            io_uring_prep_writev(sqe, fd, io->iov, io->iov_count, offset);
    } else {
        struct iovec v = iov_piece(io, s->progress);
        unsigned length = (unsigned)MIN(v.iov_len, (size_t)1 << 30); /* K1 does the rest */
        bool fixed = is_registered(u, &v);
        if (io->op == DISK_READ && fixed)
            io_uring_prep_read_fixed(sqe, fd, v.iov_base, length, offset, 0);
        else if (io->op == DISK_READ)
            io_uring_prep_read(sqe, fd, v.iov_base, length, offset);
        else if (fixed)
            io_uring_prep_write_fixed(sqe, fd, v.iov_base, length, offset, 0);
        else
            io_uring_prep_write(sqe, fd, v.iov_base, length, offset);
    }
    if (io->op == DISK_WRITE && (io->flags & DISK_IO_FUA))
        sqe->rw_flags = RWF_DSYNC;
}

static void prepare_space(struct uring *u, struct uring_io *s, struct io_uring_sqe *sqe)
{
    struct disk_io *io = io_of(s);
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    if (io->op == DISK_ZERO)
        mode = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
    if (s->mode == IO_ZEROS) {
        uint64_t length = MIN(io->length - s->progress, (uint64_t)URING_ZEROS_SIZE);
        io_uring_prep_write(sqe, s->disk->fd, u->zeros, (unsigned)length, io->offset + s->progress);
    } else {
        io_uring_prep_fallocate(sqe, s->disk->fd, mode, (off_t)io->offset, (off_t)io->length);
    }
}

static void io_prepare(struct uring_op *op, struct io_uring_sqe *sqe)
{
    struct uring_io *s = container_of(op, struct uring_io, op);
    struct disk_io *io = io_of(s);
    struct uring *u = uring_of(s->disk->base.rt);
    switch (io->op) {
    case DISK_READ:
    case DISK_WRITE:
        prepare_transfer(u, s, sqe);
        break;
    case DISK_FLUSH:
        io_uring_prep_fsync(sqe, s->disk->fd, IORING_FSYNC_DATASYNC);
        break;
    case DISK_ZERO:
    case DISK_DISCARD:
        prepare_space(u, s, sqe);
        break;
    }
    if (s->disk->slot >= 0) {
        sqe->fd = s->disk->slot;
        sqe->flags |= IOSQE_FIXED_FILE;
    }
}

/* Errors of devices have many names; above the seam there is one. */
static int map_error(int result)
{
    switch (result) {
    case -ENOSPC:
    case -ENOMEM:
    case -EPERM:
    case -EROFS:
        return result;
    case -EDQUOT:
        return -ENOSPC;
    default:
        return -EIO;
    }
}

static void io_finish(struct uring_io *s, int result)
{
    struct disk_io *io = io_of(s);
    ASSERT(s->disk->io_count > 0);
    s->disk->io_count--;
    io->result = result;
    io->done(io);
}

/* A failed operation; true when it goes on in another way. */
static bool try_otherwise(struct uring_io *s, int result)
{
    struct disk_io *io = io_of(s);
    if (result == -EINTR || result == -EAGAIN)
        return true;
    if (io->op == DISK_ZERO && s->mode == IO_WHOLE && result == -EOPNOTSUPP) {
        s->mode = IO_ZEROS;
        return true;
    }
    return false;
}

static void io_complete(struct uring_op *op, int result)
{
    struct uring_io *s = container_of(op, struct uring_io, op);
    struct disk_io *io = io_of(s);
    struct uring *u = uring_of(s->disk->base.rt);
    if (result < 0) {
        if (try_otherwise(s, result))
            uring_submit(u, op);
        else if (io->op == DISK_DISCARD && result == -EOPNOTSUPP)
            io_finish(s, 0); /* only a hint */
        else
            io_finish(s, map_error(result));
        return;
    }
    bool transfers = io->op == DISK_READ || io->op == DISK_WRITE || s->mode == IO_ZEROS;
    if (!transfers) {
        io_finish(s, 0);
        return;
    }
    s->progress += (uint64_t)result;
    if (s->progress == io->length) {
        io_finish(s, 0);
    } else if (result == 0) {
        io_finish(s, -EIO); /* somebody truncated the file */
    } else {
        if (s->mode == IO_WHOLE)
            s->mode = IO_PIECES;
        uring_submit(u, op);
    }
}

static int map_zeros(struct uring *u)
{
    if (u->zeros)
        return 0;
    /* Never written, so all of it is the kernel's one zero page. */
    void *p = mmap(NULL, URING_ZEROS_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return -ENOMEM;
    u->zeros = p;
    return 0;
}

void uring_disk_submit(struct disk *d, struct disk_io *io)
{
    struct uring_disk *disk = container_of(d, struct uring_disk, base);
    struct uring *u = uring_of(d->rt);
    struct uring_io *s = (struct uring_io *)io->private_state;
    *s = (struct uring_io){.op = {.prepare = io_prepare, .complete = io_complete}, .disk = disk};
    /* A file wants written extents, a device can zero by itself. */
    if (io->op == DISK_ZERO && d->kind == DISK_FILE)
        s->mode = IO_ZEROS;
    if (io->op == DISK_ZERO)
        ASSERT(map_zeros(u) == 0); /* address space only */
    disk->io_count++;
    if ((io->op == DISK_READ && ++u->reads_pending >= READS_PER_SUBMIT) ||
        (io->op == DISK_WRITE && io->length >= WRITE_TO_SUBMIT))
        d->rt->submit_is_due = true; /* U4 */
    uring_submit(u, &s->op);
}
