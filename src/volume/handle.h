/* SPDX-License-Identifier: Apache-2.0 */
/* What volume_open() gives out: one user's view of an open image. Private to volume/. */
#pragma once
#include "volume/instance.h"

struct volume {
    struct instance *in;     /* a user of it; NULL while requests go to another node */
    struct forward *forward; /* owned; NULL: never did */
    bool read_only;
};

/* As volume_discard() and volume_zero(), inside the gate. */
fiber_fn int image_discard(struct instance *in, uint64_t offset, uint64_t length);
fiber_fn int image_zero(struct instance *in, uint64_t offset, uint64_t length);
