/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replay of the log behind the checkpoint.
 *
 * Y1 A commit was written only after the flush of the one before returned (G1). So all complete
 * commits but the last are known to be durable with their data, and are applied without looking at
 * the data, which may have been freed and reused since. Y2 The last complete commit is applied only
 * if all its data is there, else dropped as a whole: then it was never answered. Y3 An incomplete
 * commit is a torn tail if nothing of a later commit is there; otherwise it was durable once, and
 * the store is damaged: inexact.
 */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/log_scan.h"
#include "store/store_internal.h"
#include "store/warm.h"

#define GROUP 64u /* commits whose needs are loaded together */

/* Y3: is there a block of a later commit than the one that is missing? */
static fiber_fn int find_later(struct store *s, struct log_scan *sc, bool *ret)
{
    uint64_t end = MIN(sc->limit, sc->sequence + 2 * (uint64_t)s->log.commit_blocks_max);

    *ret = false;
    for (uint64_t q = sc->sequence; q < end; q++) {
        struct log_header h;
        const uint8_t *data;
        int r = log_scan_block(sc, q, &data);
        if (r < 0)
            return r;
        if (log_block_decode(s->salt, data, &h) == 0 && h.sequence == q && h.boot >= sc->boot &&
            h.commit > sc->commit + 1) {
            store_problem(s, s->super.log_first + sc->sequence % s->super.log_count,
                          "log block %llu is damaged, later ones are good; changes are lost",
                          (unsigned long long)sc->sequence);
            *ret = true;
            return 0;
        }
    }
    return 0;
}

static fiber_fn int apply_found(struct store *s, const struct log_commit *f)
{
    struct dec d;
    int r = 0;

    dec_init(&d, f->payload.data, f->payload.length);
    while (r == 0 && dec_left(&d) > 0) {
        struct apply_hold hold = {NULL, NULL};
        struct record rec;
        r = record_take(&d, &rec);
        if (r == 0)
            r = apply_prepare(s, &rec, &hold);
        if (r == 0)
            r = apply_record(s, &rec, APPLY_REPLAY);
        apply_release(s, &hold);
    }
    if (r == 0)
        r = space_release(&s->space, &s->freed);
    if (r == 0)
        r = store_check_twice(s);
    if (r == -EUCLEAN) {
        store_problem(s, s->super.log_first + f->first % s->super.log_count,
                      "commit %llu of the log does not fit the checkpoint",
                      (unsigned long long)f->number);
        s->unfit_commit = f->number;
    }
    s->committed = f->number;
    return r;
}

/* Y2: are all blocks that the commit wrote on disk as it says? */
static fiber_fn int data_is_there(struct store *s, const struct log_commit *f, bool *ret)
{
    uint8_t *buffer = page_get(&s->pages);
    struct dec d;
    int r = buffer != NULL ? 0 : -ENOMEM;

    *ret = true;
    dec_init(&d, f->payload.data, f->payload.length);
    while (r == 0 && *ret && dec_left(&d) > 0) {
        struct record rec;
        const uint8_t *crc;
        r = record_take(&d, &rec);
        crc = rec.crcs;
        for (unsigned i = 0; r == 0 && *ret && i < rec.run_count; i++) {
            struct record_run run = record_run_get(&rec, i);
            for (uint32_t k = 0; r == 0 && *ret && k < run.count; k++, crc += 4) {
                if (!space_covers(&s->space, run.block + k))
                    r = -EUCLEAN;
                else
                    r = disk_read(s->disk, block_offset(run.block + k), buffer, STORE_BLOCK);
                if (r == 0)
                    *ret = crc32c(0, buffer, STORE_BLOCK) == get_le32(crc);
            }
        }
    }
    if (buffer != NULL)
        page_put(&s->pages, buffer);
    return r;
}

/* Y4: has the log gone on beyond what this checkpoint covers? */
static fiber_fn int check_not_outdated(struct store *s, struct log_scan *sc)
{
    struct log_header h;
    const uint8_t *data;
    int r = log_scan_block(sc, sc->sequence, &data);

    if (r < 0 || log_block_decode(s->salt, data, &h) < 0 || h.sequence <= sc->sequence ||
        (h.sequence - sc->sequence) % s->super.log_count != 0) /* else it is only misplaced */
        return r;
    store_problem(s, 0,
                  "the superblock is older than the log (at block %llu, log at %llu): a newer "
                  "copy is lost",
                  (unsigned long long)sc->sequence, (unsigned long long)h.sequence);
    return -EUCLEAN;
}

static fiber_fn int replay_last(struct store *s, struct log_scan *sc, const struct log_commit *held)
{
    bool good = true;
    int r = check_not_outdated(s, sc);

    if (r == 0)
        r = find_later(s, sc, &s->inexact);
    s->inexact = s->inexact || s->commit_limit != 0;
    if (r < 0 || !held->valid)
        return r;
    if (!s->inexact)
        r = data_is_there(s, held, &good);
    if (r == 0 && good)
        return apply_found(s, held);
    if (r == 0) {
        log_info("%s: commit %llu was cut off by the crash and is dropped", s->disk->name,
                 (unsigned long long)held->number);
        sc->sequence = held->first;
        sc->prev_crc = held->prev_crc;
        sc->boot = MAX(sc->boot, held->boot);
    }
    return r;
}

/* Reads on until the group is full, or the log ends: then *ret_end. */
static fiber_fn int read_group(struct store *s, struct log_scan *sc, struct log_commit *group,
                               unsigned *count, bool *ret_end)
{
    size_t bytes = 0;

    *ret_end = false;
    while (*count < GROUP && (*count <= 1 || bytes < warm_bytes_max(s))) {
        struct log_commit *next = &group[*count];
        int r = log_scan_next(sc, next);
        if (r < 0)
            return r;
        *ret_end = !next->valid;
        if (*ret_end)
            break;
        bytes += next->payload.length;
        (*count)++;
    }
    return 0;
}

/* All commits but the last one as they are read (Y1), which is kept until it is known to be that.
 */
static fiber_fn int replay_all(struct store *s, struct log_scan *sc, struct log_commit *group)
{
    uint64_t applied = 0;
    unsigned count = 0;
    bool end = false;
    int r = 0;

    while (r == 0 && !end) {
        struct log_commit last;
        r = read_group(s, sc, group, &count, &end);
        if (r < 0 || count == 0)
            break;
        warm_up(s, group, count);
        for (unsigned i = 0; r == 0 && i + 1 < count; i++, applied++)
            r = apply_found(s, &group[i]);
        last = group[count - 1];
        group[count - 1] = group[0];
        group[0] = last;
        count = 1;
    }
    if (r == 0)
        r = replay_last(s, sc, &group[0]);
    if (r == 0 && applied > 0)
        log_info("%s: replayed %llu commits", s->disk->name, (unsigned long long)applied);
    return r;
}

fiber_fn int replay_log(struct store *s)
{
    const struct super *sb = &s->super;
    struct log_scan sc;
    struct log_commit group[GROUP] = {{.valid = false}};
    int r = log_scan_init(&sc, s->disk, sb, s->salt);

    sc.commit_limit = s->commit_limit;
    for (unsigned i = 0; i < GROUP; i++)
        enc_init(&group[i].payload);
    s->committed = sb->commit;
    if (r == 0)
        r = replay_all(s, &sc, group);
    if (r == 0) {
        s->log.tail = sb->log_sequence;
        s->log.sequence = sc.sequence;
        s->log.prev_crc = sc.prev_crc;
        s->log.boot = sc.boot + 1;
        log_note_applied(s);
    }
    for (unsigned i = 0; i < GROUP; i++)
        enc_done(&group[i].payload);
    log_scan_done(&sc);
    return r;
}
