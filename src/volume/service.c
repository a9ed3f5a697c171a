/* SPDX-License-Identifier: Apache-2.0 */
/* The volume service of one node: start, stop, and the words for errors. */
#include "volume/service.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/err.h"
#include "base/log.h"
#include "volume/instance.h"
#include "volume/sweep.h"

#define LOG_MODULE "volume"

#define CACHE_BYTES  (16u << 20)
#define GRACE_NS     (1 * NS_PER_S)
#define DELAY_NS     (1 * NS_PER_S)
#define PUBLISH_NS   (2 * NS_PER_S)
#define STOP_WAIT_NS (10 * NS_PER_S)

int volume_error_set(struct volume_error *ret, int r, const char *format, ...)
{
    if (!ret)
        return r;
    va_list args;
    va_start(args, format);
    vsnprintf(ret->text, sizeof(ret->text), format, args);
    va_end(args);
    ret->redirect[0] = '\0';
    ret->owner = (struct session){0};
    return r;
}

int volume_error_of(struct volume_error *ret, int r, const char *what, const char *name)
{
    switch (r) {
    case -ENOSPC:
        return volume_error_set(ret, r,
                                "could not %s %s: the cluster has no space left; delete something "
                                "or add nodes, see `dog node list`",
                                what, name);
    case -ECANCELED:
        return volume_error_set(ret, r, "could not %s %s: this node is shutting down or was fenced",
                                what, name);
    case -EFBIG:
        return volume_error_set(ret, r, "could not %s %s: it has too many snapshots; delete some",
                                what, name);
    case -EPROTO:
        return volume_error_set(
            ret, r,
            "could not %s %s: its record was written by a newer version of this "
            "software; upgrade this node",
            what, name);
    default:
        return volume_error_set(ret, r, "could not %s %s: %s", what, name, err_text(r));
    }
}

/* For the homes of ledgers: S of a volume, so that keys at or below it can go. */
static fiber_fn int look_up_floor(void *arg, uint64_t volume, uint64_t *ret_floor)
{
    struct volumes *vs = arg;
    struct record *records;
    size_t count;
    unsigned bad;
    int r = registry_list(service_cs(vs), &records, &count, &bad);
    if (r)
        return r;
    uint64_t floor = UINT64_MAX;
    for (size_t i = 0; i < count; i++) {
        if (records[i].volume == volume)
            floor = records[i].stable.value;
    }
    registry_list_free(records, count);
    if (floor == UINT64_MAX && bad)
        return -EIO; /* it may be one that cannot be read */
    *ret_floor = floor;
    return 0;
}

fiber_fn int volumes_start(struct rt *rt, struct cluster *cluster, struct objects *objects,
                           const struct volumes_options *o, struct volumes **ret)
{
    struct volumes *vs = calloc(1, sizeof(*vs));
    if (!vs)
        return -ENOMEM;
    vs->rt = rt;
    vs->cluster = cluster;
    vs->objects = objects;
    vs->entries = o && o->entries_per_block ? o->entries_per_block : VOLUME_ENTRIES_PER_BLOCK;
    vs->cache_bytes_max = o && o->index_cache_bytes ? o->index_cache_bytes : CACHE_BYTES;
    vs->grace_ns = GRACE_NS;
    vs->delay_ns = DELAY_NS;
    vs->publish_ns = PUBLISH_NS;
    list_init(&vs->cached_blocks);
    list_init(&vs->instances);
    waitq_init(&vs->instances_changed);
    if (vs->entries < 2 || vs->entries > INDEX_ENTRIES_MAX) {
        free(vs);
        return -EINVAL;
    }
    int r = sweep_start(vs);
    if (r) {
        free(vs);
        return r;
    }
    r = forward_start(vs);
    if (r) {
        sweep_stop(vs);
        free(vs);
        return r;
    }
    objects_set_floor_lookup(objects, look_up_floor, vs);
    *ret = vs;
    return 0;
}

/* Any image that can be closed now, or NULL. */
static struct instance *find_closable(struct volumes *vs)
{
    struct instance *in;
    list_for_each (in, &vs->instances, link) {
        if (in->state == INSTANCE_OPEN && in->users + in->operations == 0)
            return in;
    }
    return NULL;
}

fiber_fn void volumes_stop(struct volumes *vs)
{
    vs->stopping = true;
    uint64_t deadline = clock_now(vs->rt) + STOP_WAIT_NS;
    objects_set_floor_lookup(vs->objects, NULL, NULL);
    sweep_stop(vs);
    forward_stop(vs, deadline);
    while (!list_empty(&vs->instances) || !forward_is_quiet(&vs->forward)) {
        struct instance *in = find_closable(vs);
        if (in) {
            instance_close(in);
            continue;
        }
        if (waitq_wait_until(&vs->instances_changed, vs->rt, deadline) == -ETIMEDOUT) {
            log_warn("volumes are still in use at shutdown; they are put in order when they are "
                     "opened next");
            return; /* their users may still call: the memory stays */
        }
    }
    ASSERT(list_empty(&vs->cached_blocks) && vs->cache_bytes == 0);
    free(vs);
}
