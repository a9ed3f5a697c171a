/* SPDX-License-Identifier: Apache-2.0 */
/* Reading everything in small steps, so that rot is found while there are other copies. */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/store_internal.h"

#define STEP_BYTES (512u << 10)

/* Reads one object through the ordinary path, which checks and reports. */
static fiber_fn int scrub_object(struct store *s, const struct oid *oid, uint8_t *buffer,
                                 uint64_t *bytes, uint64_t *errors)
{
    struct store_stat stat;
    uint64_t end;
    int r = 0;

    store_stat(s, oid, &stat);
    end = MAX(stat.end, STORE_BLOCK); /* one whose map is all lost says so, too */
    for (uint64_t at = 0; at < end; at += STEP_BYTES) {
        size_t n = (size_t)MIN((uint64_t)STEP_BYTES, end - at);
        r = store_read(s, oid, at, n, buffer, NULL);
        if (r == -EUCLEAN)
            (*errors)++;
        else if (r < 0)
            break;
        *bytes += n;
    }
    if (r == 0 && stat.meta_length > 0) {
        size_t length;
        uint64_t meta_version;
        if (store_meta_get(s, oid, buffer, &length, &meta_version) == -EUCLEAN)
            (*errors)++;
        *bytes += stat.meta_length;
    }
    return r == -ENOENT || r == -EUCLEAN ? 0 : r;
}

static fiber_fn int do_scrub_step(struct store *s, uint64_t bytes, uint64_t *ret_bytes,
                                  uint64_t *ret_errors)
{
    uint8_t *buffer = aligned_alloc(STORE_BLOCK, STEP_BYTES);
    uint32_t looked = 0;
    int r = 0;

    *ret_bytes = *ret_errors = 0;
    if (buffer == NULL)
        return -ENOMEM;
    while (r == 0 && *ret_bytes < bytes && looked++ < s->index.slot_count) {
        const struct onode *o;
        struct oid oid;
        if (s->scrub_slot >= s->index.slot_count)
            s->scrub_slot = 0;
        o = s->index.slots[s->scrub_slot++];
        if (o == NULL || o->state != ONODE_LIVE)
            continue;
        oid = o->oid;
        r = scrub_object(s, &oid, buffer, ret_bytes, ret_errors);
    }
    free(buffer);
    return r;
}

fiber_fn int store_scrub_step(struct store *s, uint64_t bytes, uint64_t *ret_bytes,
                              uint64_t *ret_errors)
{
    store_enter(s);
    return store_leave(s, do_scrub_step(s, bytes, ret_bytes, ret_errors));
}
