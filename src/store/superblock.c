/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two copies of the superblock, written in turn: one is always whole. A checkpoint becomes valid
 * with the write of a copy.
 */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/store_internal.h"

/* Writes one copy. */
static fiber_fn int write_copy(struct store *s, const struct super *sb, unsigned slot,
                               uint8_t *page)
{
    int r;

    super_encode(sb, page);
    r = disk_write(s->disk, block_offset(slot), page, STORE_BLOCK, s->fua ? DISK_IO_FUA : 0);
    return r == 0 && !s->fua ? store_flush_disk(s) : r;
}

fiber_fn int super_write(struct store *s, const struct super *next)
{
    uint8_t *page = page_get(&s->pages);
    struct super sb = *next;
    int r = 0;

    ASSERT(s->super_lock.owner != NULL);
    if (page == NULL)
        return -ENOMEM;
    for (unsigned i = 0; r == 0 && i < LAYOUT_SUPER_COPIES; i++) {
        unsigned slot = 1 - s->super_slot;
        sb.generation = s->super.generation + 1;
        r = write_copy(s, &sb, slot, page);
        if (r == 0) {
            s->super = sb;
            s->super_slot = slot;
        }
    }
    page_put(&s->pages, page);
    return r;
}

fiber_fn int super_write_copies(struct disk *d, struct super *next, unsigned slot, uint8_t *page)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < LAYOUT_SUPER_COPIES; i++) {
        slot = 1 - slot;
        next->generation++;
        super_encode(next, page);
        r = disk_write(d, block_offset(slot), page, STORE_BLOCK, 0);
        if (r == 0)
            r = disk_flush(d);
    }
    return r;
}

fiber_fn int super_read(struct disk *d, struct super *ret, unsigned *ret_slot, unsigned *ret_bad)
{
    uint8_t *page = aligned_alloc(STORE_BLOCK, STORE_BLOCK);
    int found = -EMEDIUMTYPE, r = 0;
    uint64_t generations[LAYOUT_SUPER_COPIES] = {0};
    bool any = false;

    if (page == NULL)
        return -ENOMEM;
    *ret_bad = 0;
    for (unsigned i = 0; i < LAYOUT_SUPER_COPIES; i++) {
        struct super sb;
        if (d->size < block_offset(i + 1))
            break;
        r = disk_read(d, block_offset(i), page, STORE_BLOCK);
        if (r < 0)
            break;
        r = super_decode(page, &sb);
        if (r == 0 || r == -EPROTO) {
            /* The newest decides, also when it is of another version: going back behind it would
             * take what it refers to for free. */
            if (!any || sb.generation > ret->generation) {
                *ret = sb;
                *ret_slot = i;
                found = r;
            }
            any = true;
            generations[i] = sb.generation;
        } else {
            *ret_bad |= 1u << i;
            if (found == -EMEDIUMTYPE)
                found = r;
        }
        r = 0;
    }
    free(page);
    /* Always written in turn: the older copy is one behind, or it is not what was written last. */
    if (any && *ret_bad == 0 && generations[1 - *ret_slot] != ret->generation - 1)
        *ret_bad = 1u << (1 - *ret_slot);
    return r < 0 ? r : found;
}

fiber_fn int store_set_cluster(struct store *s, const struct uuid *cluster)
{
    int r = store_check_writable(s);

    if (r < 0)
        return r;
    if (uuid_equal(&s->super.cluster, cluster))
        return 0;
    if (!uuid_is_null(&s->super.cluster)) {
        char have[UUID_TEXT_SIZE], want[UUID_TEXT_SIZE];
        uuid_format(&s->super.cluster, have);
        uuid_format(cluster, want);
        log_error("%s belongs to cluster %s and cannot join %s; format it anew if its content is "
                  "not needed",
                  s->disk->name, have, want);
        return -EMEDIUMTYPE;
    }
    fmutex_lock(&s->super_lock);
    if (uuid_is_null(&s->super.cluster)) {
        struct super next = s->super;
        next.cluster = *cluster;
        r = super_write(s, &next);
    } else {
        r = uuid_equal(&s->super.cluster, cluster) ? 0 : -EMEDIUMTYPE;
    }
    fmutex_unlock(&s->super_lock);
    if (r < 0 && r != -EMEDIUMTYPE)
        store_fail(s, r, "writing the superblock");
    return r;
}
