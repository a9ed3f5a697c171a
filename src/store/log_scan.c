/* SPDX-License-Identifier: Apache-2.0 */
/* See log_scan.h. */
#include "store/log_scan.h"
#include <stdlib.h>
#include "base/err.h"
#include "rt/rt.h"

#define WINDOW 256u /* blocks read at once */

int log_scan_init(struct log_scan *sc, struct disk *disk, const struct super *super, uint64_t salt)
{
    *sc = (struct log_scan){
        .disk = disk,
        .super = super,
        .salt = salt,
        .window = aligned_alloc(STORE_BLOCK, (size_t)WINDOW * STORE_BLOCK),
        .sequence = super->log_sequence,
        .limit = super->log_sequence + super->log_count,
        .prev_crc = super->log_prev_crc,
        .boot = super->boot,
        .commit = super->commit,
    };
    return sc->window != NULL ? 0 : -ENOMEM;
}

void log_scan_done(struct log_scan *sc)
{
    free(sc->window);
    sc->window = NULL;
}

fiber_fn int log_scan_block(struct log_scan *sc, uint64_t sequence, const uint8_t **ret)
{
    const struct super *sb = sc->super;

    if (sequence < sc->window_first || sequence >= sc->window_first + sc->window_count) {
        uint32_t at = (uint32_t)(sequence % sb->log_count);
        uint32_t n = MIN(WINDOW, sb->log_count - at);
        int r = disk_read(sc->disk, (uint64_t)(sb->log_first + at) * STORE_BLOCK, sc->window,
                          (size_t)n * STORE_BLOCK);
        if (r < 0)
            return r;
        sc->window_first = sequence;
        sc->window_count = n;
    }
    *ret = sc->window + (size_t)(sequence - sc->window_first) * STORE_BLOCK;
    return 0;
}

fiber_fn int log_scan_next(struct log_scan *sc, struct log_commit *f)
{
    uint64_t sequence = sc->sequence;
    uint32_t prev_crc = sc->prev_crc, boot = sc->boot;

    f->payload.length = 0;
    f->valid = false;
    if (sc->commit_limit != 0 && sc->commit + 1 >= sc->commit_limit)
        return 0;
    for (uint32_t index = 0; sequence < sc->limit; index++, sequence++) {
        struct log_header h;
        const uint8_t *data;
        int r = log_scan_block(sc, sequence, &data);
        if (r < 0)
            return r;
        if (log_block_decode(sc->salt, data, &h) < 0 || h.sequence != sequence ||
            h.prev_crc != prev_crc || h.boot < boot || h.commit != sc->commit + 1 ||
            h.index != index || !(h.flags & LOG_BEGIN) != (index > 0))
            return 0;
        enc_bytes(&f->payload, data + LOG_HEADER_SIZE, h.length);
        if (f->payload.error)
            return -ENOMEM;
        prev_crc = h.crc;
        boot = h.boot;
        if (h.flags & LOG_END) {
            f->first = sc->sequence;
            f->prev_crc = sc->prev_crc;
            f->boot = sc->boot;
            f->number = h.commit;
            f->valid = true;
            sc->sequence = sequence + 1;
            sc->prev_crc = prev_crc;
            sc->boot = boot;
            sc->commit = h.commit;
            return 0;
        }
    }
    return 0;
}
