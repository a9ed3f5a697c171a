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
#include "store/store_internal.h"

#define WINDOW 256u /* blocks read at once */

struct scan {
    struct store *s;
    uint8_t *window;
    uint64_t window_first; /* sequence of the first block in it */
    uint32_t window_count;
    uint64_t sequence; /* of the next block */
    uint64_t limit;    /* the ring ends here */
    uint32_t prev_crc, boot;
    uint64_t commit; /* number of the last complete commit */
};

/* One complete commit. */
struct found {
    struct enc payload;
    uint64_t first;          /* sequence of its first block */
    uint32_t prev_crc, boot; /* before it */
    uint64_t number;
    bool valid;
};

static fiber_fn int block_at(struct scan *sc, uint64_t sequence, const uint8_t **ret)
{
    const struct super *sb = &sc->s->super;

    if (sequence < sc->window_first || sequence >= sc->window_first + sc->window_count) {
        uint32_t at = (uint32_t)(sequence % sb->log_count);
        uint32_t n = MIN(WINDOW, sb->log_count - at);
        int r = disk_read(sc->s->disk, block_offset(sb->log_first + at), sc->window,
                          (size_t)n * STORE_BLOCK);
        if (r < 0)
            return r;
        sc->window_first = sequence;
        sc->window_count = n;
    }
    *ret = sc->window + (size_t)(sequence - sc->window_first) * STORE_BLOCK;
    return 0;
}

/* Reads the next commit into f, whose valid says whether it is complete. */
static fiber_fn int next_commit(struct scan *sc, struct found *f)
{
    uint64_t sequence = sc->sequence;
    uint32_t prev_crc = sc->prev_crc, boot = sc->boot;

    f->payload.length = 0;
    f->valid = false;
    for (uint32_t index = 0; sequence < sc->limit; index++, sequence++) {
        struct log_header h;
        const uint8_t *data;
        int r = block_at(sc, sequence, &data);
        if (r < 0)
            return r;
        if (log_block_decode(sc->s->salt, data, &h) < 0 || h.sequence != sequence ||
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

/* Y3: is there a block of a later commit than the one that is missing? */
static fiber_fn int find_later(struct scan *sc, bool *ret)
{
    uint64_t end = MIN(sc->limit, sc->sequence + 2 * (uint64_t)sc->s->log.commit_blocks_max);

    *ret = false;
    for (uint64_t q = sc->sequence; q < end; q++) {
        struct log_header h;
        const uint8_t *data;
        int r = block_at(sc, q, &data);
        if (r < 0)
            return r;
        if (log_block_decode(sc->s->salt, data, &h) == 0 && h.sequence == q && h.boot >= sc->boot &&
            h.commit > sc->commit + 1) {
            store_problem(sc->s, sc->s->super.log_first + sc->sequence % sc->s->super.log_count,
                          "log block %llu is damaged, later ones are good; changes are lost",
                          (unsigned long long)sc->sequence);
            *ret = true;
            return 0;
        }
    }
    return 0;
}

static fiber_fn int apply_found(struct store *s, const struct found *f)
{
    struct dec d;
    int r = 0;

    dec_init(&d, f->payload.data, f->payload.length);
    while (r == 0 && dec_left(&d) > 0) {
        struct record rec;
        r = record_take(&d, &rec);
        if (r == 0)
            r = apply_prepare(s, &rec);
        if (r == 0)
            r = apply_record(s, &rec, APPLY_REPLAY);
    }
    if (r == 0)
        r = space_release(&s->space, &s->freed);
    if (r == -EUCLEAN)
        store_problem(s, s->super.log_first + f->first % s->super.log_count,
                      "commit %llu of the log does not fit the checkpoint",
                      (unsigned long long)f->number);
    s->committed = f->number;
    return r;
}

/* Y2: are all blocks that the commit wrote on disk as it says? */
static fiber_fn int data_is_there(struct store *s, const struct found *f, bool *ret)
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
static fiber_fn int check_not_outdated(struct scan *sc)
{
    struct log_header h;
    const uint8_t *data;
    int r = block_at(sc, sc->sequence, &data);

    if (r < 0 || log_block_decode(sc->s->salt, data, &h) < 0 || h.sequence <= sc->sequence)
        return r;
    store_problem(sc->s, 0,
                  "the superblock is older than the log (at block %llu, log at %llu): a newer "
                  "copy is lost",
                  (unsigned long long)sc->sequence, (unsigned long long)h.sequence);
    return -EUCLEAN;
}

static fiber_fn int replay_last(struct scan *sc, const struct found *held)
{
    struct store *s = sc->s;
    bool good = true;
    int r = check_not_outdated(sc);

    if (r == 0)
        r = find_later(sc, &s->inexact);
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

static fiber_fn int replay_all(struct scan *sc, struct found *a, struct found *b)
{
    struct found *held = a, *next = b;
    uint64_t applied = 0;
    int r = 0;

    for (;;) {
        struct found *spare = held;
        r = next_commit(sc, next);
        if (r < 0 || !next->valid)
            break;
        if (held->valid) {
            r = apply_found(sc->s, held);
            if (r < 0)
                break;
            applied++;
        }
        held = next;
        next = spare;
    }
    if (r == 0)
        r = replay_last(sc, held);
    if (r == 0 && applied > 0)
        log_info("%s: replayed %llu commits", sc->s->disk->name, (unsigned long long)applied);
    return r;
}

fiber_fn int replay_log(struct store *s)
{
    const struct super *sb = &s->super;
    struct scan sc = {
        .s = s,
        .window = aligned_alloc(STORE_BLOCK, (size_t)WINDOW * STORE_BLOCK),
        .sequence = sb->log_sequence,
        .limit = sb->log_sequence + sb->log_count,
        .prev_crc = sb->log_prev_crc,
        .boot = sb->boot,
        .commit = sb->commit,
    };
    struct found a = {.valid = false}, b = {.valid = false};
    int r = sc.window != NULL ? 0 : -ENOMEM;

    enc_init(&a.payload);
    enc_init(&b.payload);
    s->committed = sb->commit;
    if (r == 0)
        r = replay_all(&sc, &a, &b);
    if (r == 0) {
        s->log.tail = sb->log_sequence;
        s->log.sequence = sc.sequence;
        s->log.prev_crc = sc.prev_crc;
        s->log.boot = sc.boot + 1;
        log_note_applied(s);
    }
    enc_done(&a.payload);
    enc_done(&b.payload);
    free(sc.window);
    return r;
}
