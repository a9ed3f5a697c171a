/* SPDX-License-Identifier: Apache-2.0 */
/* An opened disk of the io_uring seam. Private to rt/uring. */
#pragma once
#include "rt/seam.h"

struct uring_disk {
    struct disk base;  /* first */
    int fd;            /* holds the lock of DISK_OPEN_EXCLUSIVE */
    int slot;          /* registered file, or -1 */
    unsigned io_count; /* submitted and not done */
};

void uring_disk_submit(struct disk *d, struct disk_io *io);
