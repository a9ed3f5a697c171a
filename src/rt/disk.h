/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seam: one disk (block device or file), opened for direct I/O.
 *
 * Offsets, lengths and buffer addresses are multiples of 4096. A completed write is durable only
 * after a flush that was submitted after its completion, unless durability says otherwise.
 */
#pragma once
#include <sys/uio.h>
#include "rt/fiber.h"

#define DISK_BLOCK 4096u

enum disk_durability {
    DISK_WRITE_BACK,    /* a flush is needed */
    DISK_FUA,           /* a flush, or DISK_IO_FUA on each write (then submitted in parallel) */
    DISK_WRITE_THROUGH, /* every completed write is durable (flush still needed for file metadata)
                         */
};

enum disk_kind { DISK_FILE, DISK_DEVICE };

struct disk {
    const struct disk_ops *ops; /* private to the seam */
    struct rt *rt;
    uint64_t size; /* bytes, multiple of 4096 */
    enum disk_kind kind;
    uint32_t discard_bytes; /* granularity of discards by a device; 0: it has none */
    bool sparse; /* a file with holes: writing to one may find its file system full (-ENOSPC) */
    enum disk_durability durability;
    char *name; /* path, for messages; owned by the disk */
};

enum disk_op { DISK_READ, DISK_WRITE, DISK_FLUSH, DISK_ZERO, DISK_DISCARD };
#define DISK_IO_FUA 1u

/* One asynchronous operation. Owned by the caller, who leaves it and iov alone until done() ran. */
struct disk_io {
    enum disk_op op;
    unsigned flags;
    uint64_t offset;
    uint64_t
        length; /* DISK_ZERO, DISK_DISCARD; READ and WRITE: sum of iov, filled by disk_submit */
    struct iovec *iov;  /* READ, WRITE */
    unsigned iov_count; /* at most 1024 */
    int result; /* set before done(): 0 or negative errno; short transfers are continued inside */
    void (*done)(
        struct disk_io *io); /* on the loop, not on a fiber: may wake and submit, not suspend */
    uint64_t private_state[8];
};

/* Queues io; submission is batched per loop iteration. Does not suspend. */
void disk_submit(struct disk *d, struct disk_io *io);

/* Straight-line forms: 0 or negative errno. */
fiber_fn int disk_read(struct disk *d, uint64_t offset, void *buffer, size_t length);
fiber_fn int disk_write(struct disk *d, uint64_t offset, const void *buffer, size_t length,
                        unsigned flags);
fiber_fn int disk_flush(struct disk *d);
/* Afterwards the range reads as zeros; of a file it is written, not only reserved. */
fiber_fn int disk_zero(struct disk *d, uint64_t offset, uint64_t length);
fiber_fn int disk_discard(struct disk *d, uint64_t offset, uint64_t length);

enum disk_open_flags {
    DISK_OPEN_READ_ONLY = 1,
    DISK_OPEN_CREATE = 2,    /* a file that must not exist yet, of `size` bytes: one hole */
    DISK_OPEN_EXCLUSIVE = 4, /* lock: a second opener gets -EBUSY */
    DISK_OPEN_ALLOCATE = 8 /* with DISK_OPEN_CREATE: as disk_allocate(); a failure leaves no file */
};
/* Opens by path. `size` only with DISK_OPEN_CREATE. -EMEDIUMTYPE if neither file nor block device.
 */
int disk_open(struct rt *rt, const char *path, unsigned flags, uint64_t size, struct disk **ret);
/* Gives the holes of a file space of its file system, durably; they stay unwritten. Blocks the
 * loop: for tools. 0 (also when there is nothing to do, or the file system knows no such thing:
 * d->sparse tells), or a negative errno, -ENOSPC before all. */
int disk_allocate(struct disk *d);
/* Nothing may be in flight. */
void disk_close(struct disk *d);
