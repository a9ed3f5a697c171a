/* SPDX-License-Identifier: Apache-2.0 */
/* NBD server: every volume and snapshot of the cluster as an export, "NAME" and "NAME@TAG". */
#pragma once
#include "rt/rt.h"
#include "volume/volume.h"

struct nbd_server;
struct nbd_options {
    struct listener **listeners; /* takes each; tcp and unix */
    unsigned listener_count;
    unsigned connection_count_max; /* 0: 256; further ones are closed with a log line */
    unsigned inflight_count_max;   /* requests in progress per connection, 0: 128; beyond it reading
                                      stops */
    size_t payload_bytes_max; /* of all requests in progress together, 0: 32 MiB; beyond it reading
                                 stops */
};
/* Starts accepting. `volumes` is borrowed. */
int nbd_start(struct rt *rt, struct volumes *volumes, const struct nbd_options *o,
              struct nbd_server **ret);
/* Stops accepting, breaks connections after their running requests were answered, frees. */
fiber_fn void nbd_stop(struct nbd_server *s);
struct nbd_stats {
    uint64_t connections, requests, bytes_read, bytes_written, errors;
};
void nbd_stats(const struct nbd_server *s, struct nbd_stats *ret);
