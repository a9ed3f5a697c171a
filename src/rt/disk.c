/* SPDX-License-Identifier: Apache-2.0 */
/* Checks of disk operations, and their straight-line forms. The seam does the rest. */
#include "rt/disk.h"
#include "base/err.h"
#include "rt/seam.h"

static bool is_aligned(uint64_t x)
{
    return (x & (DISK_BLOCK - 1)) == 0;
}

void disk_submit(struct disk *d, struct disk_io *io)
{
    if (io->op == DISK_READ || io->op == DISK_WRITE) {
        ASSERT(io->iov_count > 0 && io->iov_count <= 1024);
        io->length = 0;
        for (unsigned i = 0; i < io->iov_count; i++) {
            ASSERT(is_aligned((uintptr_t)io->iov[i].iov_base) && is_aligned(io->iov[i].iov_len));
            io->length += io->iov[i].iov_len;
        }
    }
    if (io->op != DISK_FLUSH) {
        ASSERT(is_aligned(io->offset) && is_aligned(io->length));
        ASSERT(io->length > 0 && io->length <= d->size && io->offset <= d->size - io->length);
    }
    io->result = 0;
    d->ops->submit(d, io);
}

struct waiting_io {
    struct disk_io io;
    struct fiber *fiber;
    bool finished;
};

static void waiting_io_done(struct disk_io *io)
{
    struct waiting_io *w = container_of(io, struct waiting_io, io);
    w->finished = true;
    fiber_wake(w->fiber);
}

static fiber_fn int submit_and_wait(struct disk *d, struct waiting_io *w)
{
    w->fiber = fiber_current();
    w->io.done = waiting_io_done;
    disk_submit(d, &w->io);
    while (!w->finished)
        fiber_suspend();
    return w->io.result;
}

fiber_fn int disk_read(struct disk *d, uint64_t offset, void *buffer, size_t length)
{
    struct iovec iov = {buffer, length};
    struct waiting_io w = {.io = {.op = DISK_READ, .offset = offset, .iov = &iov, .iov_count = 1}};
    return submit_and_wait(d, &w);
}

fiber_fn int disk_write(struct disk *d, uint64_t offset, const void *buffer, size_t length,
                        unsigned flags)
{
    struct iovec iov = {(void *)buffer, length};
    struct waiting_io w = {
        .io = {.op = DISK_WRITE, .flags = flags, .offset = offset, .iov = &iov, .iov_count = 1}};
    return submit_and_wait(d, &w);
}

fiber_fn int disk_flush(struct disk *d)
{
    struct waiting_io w = {.io = {.op = DISK_FLUSH}};
    return submit_and_wait(d, &w);
}

fiber_fn int disk_zero(struct disk *d, uint64_t offset, uint64_t length)
{
    struct waiting_io w = {.io = {.op = DISK_ZERO, .offset = offset, .length = length}};
    return submit_and_wait(d, &w);
}

fiber_fn int disk_discard(struct disk *d, uint64_t offset, uint64_t length)
{
    struct waiting_io w = {.io = {.op = DISK_DISCARD, .offset = offset, .length = length}};
    return submit_and_wait(d, &w);
}

int disk_open(struct rt *rt, const char *path, unsigned flags, uint64_t size, struct disk **ret)
{
    if ((flags & DISK_OPEN_CREATE) && (size == 0 || !is_aligned(size)))
        return -EINVAL;
    return rt->ops->disk_open(rt, path, flags, size, ret);
}

int disk_allocate(struct disk *d)
{
    return d->ops->allocate ? d->ops->allocate(d) : 0;
}

void disk_close(struct disk *d)
{
    if (d)
        d->ops->close(d);
}
