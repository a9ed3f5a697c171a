/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_apply(): from a change to its record in the gathering commit.
 *
 * H1 Changes of one object are admitted in the order of the calls: busy.prepare is a fair lock,
 * taken before anything that may suspend. H2 Admission looks at the state as it will be after all
 * queued changes; a merge with old content waits until those are applied. H3 From the choice of
 * blocks to the record nothing suspends, so a checkpoint sees both or neither.
 */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/admit.h"
#include "store/plan.h"
#include "store/sharing.h"

#define LARGE_BLOCKS 16u /* 64 KiB: placed near the object */
/* A block with so many users is copied rather than shared; leaves room for clones under way. */
#define SHARE_LIMIT (SHARE_MAX - 8192u)

struct change {
    const struct store_change *c;
    struct onode *o, *source; /* held */
    struct plan plan;
    bool source_locked;
};

enum admission { ADMIT_GO, ADMIT_DONE_ALREADY };

/* The version rules of store_apply(). ADMIT_*, or -ESTALE. */
static int admit(const struct busy *b, const struct store_change *c)
{
    bool exists = b->state == ONODE_LIVE, ok;
    uint64_t current = b->version.value, next = c->next.value;

    if (c->kind == STORE_INSTALL) {
        ok = c->prev.value == 0 ? !exists : exists && current == c->prev.value;
        return ok ? ADMIT_GO : -ESTALE;
    }
    if (current != 0 && next <= current &&
        version_term(c->next).value == version_term(b->version).value)
        return ADMIT_DONE_ALREADY;
    if (c->kind == STORE_REMOVE && !exists)
        return ADMIT_DONE_ALREADY;
    if (c->prev.value == STORE_PREV_OLDER_TERM.value)
        ok = exists ? version_term(b->version).value < version_term(c->next).value : current < next;
    else if (c->prev.value == 0)
        ok = !exists && current < next;
    else
        ok = exists && current == c->prev.value && next > current;
    if (ok && c->kind == STORE_CLONE && exists)
        ok = false;
    return ok ? ADMIT_GO : -ESTALE;
}

/* --- making ready: may suspend --- */

static fiber_fn int load_all(struct store *s, struct onode *o, bool lossy)
{
    for (unsigned i = 0; i < o->leaf_count; i++) {
        int r = leaf_load_range(s, o, i, i);
        if (r == -EUCLEAN && lossy)
            r = leaf_replace_damaged(s, o, i);
        if (r < 0)
            return r;
    }
    return 0;
}

static fiber_fn int load_touched(struct store *s, struct change *ch)
{
    const struct plan *p = &ch->plan;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < p->segment_count; i++) {
        const struct plan_segment *g = &p->segments[i];
        r = leaf_load_range(s, ch->o, g->start / LEAF_ENTRIES,
                            (g->start + g->count - 1) / LEAF_ENTRIES);
    }
    for (uint32_t i = 0; r == 0 && i < p->punch_count; i++) {
        const struct record_run *run = &p->punches[i];
        r = leaf_load_range(s, ch->o, run->start / LEAF_ENTRIES,
                            (run->start + run->count - 1) / LEAF_ENTRIES);
    }
    return r;
}

static fiber_fn int load_leaves(struct store *s, struct change *ch)
{
    switch (ch->c->kind) {
    case STORE_REMOVE:
    case STORE_INSTALL:
        return load_all(s, ch->o, true);
    case STORE_CLONE:
        return load_all(s, ch->source, false);
    case STORE_WRITE:
    case STORE_PUNCH:
        break;
    }
    return load_touched(s, ch);
}

/* Reads the block that a merge segment changes, into its buffer. *ret_hole: there is none. */
static fiber_fn int merge_read(struct store *s, struct onode *base, struct plan_segment *g,
                               bool *ret_hole)
{
    struct leaf_ref *ref = leaf_ref_of(base, g->start / LEAF_ENTRIES);
    struct block_ptr p = {0};
    struct space_reader reader;
    char name[OID_TEXT_SIZE];
    int r;

    if (ref != NULL && ref->used > 0)
        p = leaf_entry(ref->mem->data, g->start % LEAF_ENTRIES);
    *ret_hole = p.block == 0;
    if (p.block == 0)
        return 0;
    space_reader_begin(&s->space, &reader);
    r = disk_read(s->disk, block_offset(p.block), g->data, STORE_BLOCK);
    if (space_reader_end(&s->space, &reader))
        waitq_wake_all(&s->space_wait);
    if (r == 0 && crc32c(0, g->data, STORE_BLOCK) != p.crc) {
        s->stats.checksum_errors++;
        store_problem(s, p.block, "checksum error in object %s at byte %llu",
                      oid_format(&base->e->oid, name), (unsigned long long)g->start * STORE_BLOCK);
        r = -EUCLEAN;
    }
    return r;
}

static fiber_fn int merge_all(struct store *s, struct change *ch)
{
    struct onode *base = ch->source != NULL ? ch->source : ch->o;
    bool has_old = ch->c->kind != STORE_INSTALL;
    int r = 0;

    if (has_old)
        r = commit_wait_number(s, base->busy->last_commit); /* H2 */
    has_old = has_old && base->e->state == ONODE_LIVE;
    for (uint32_t i = 0; r == 0 && i < ch->plan.segment_count; i++) {
        struct plan_segment *g = &ch->plan.segments[i];
        bool hole = true;
        if (!g->merge)
            continue;
        if (has_old)
            r = merge_read(s, base, g, &hole);
        if (r < 0)
            return r;
        if (hole && ch->c->kind == STORE_PUNCH)
            g->skip = true;
        else
            plan_merge(&ch->plan, i, hole ? NULL : g->data);
    }
    return r;
}

static fiber_fn int prepare_source(struct store *s, struct change *ch)
{
    uint32_t slot = entry_find(&s->index.entries, &ch->c->source);
    struct onode *source;
    int r;

    if (slot == ENTRY_NONE || slot == ch->o->slot)
        return -ENOENT;
    source = onode_hold_slot(&s->index, slot);
    if (source == NULL)
        return -ENOMEM;
    ch->source = source;
    if (source->busy->state != ONODE_LIVE)
        return -ENOENT;
    /* No cycle of lockers: who holds a lock here makes an object that is not there yet, and
     * waits for one that is. */
    if (plan_has_merge(&ch->plan)) {
        fmutex_lock(&source->busy->prepare);
        ch->source_locked = true;
        if (source->busy->state != ONODE_LIVE)
            return -ENOENT;
    }
    r = onode_load(s, source);
    return r == 0 && source->damaged ? -EUCLEAN : r;
}

static fiber_fn int prepare(struct store *s, struct change *ch)
{
    int r = onode_is_ready(ch->o) ? 0 : onode_load(s, ch->o);

    if (r == 0 && ch->c->kind == STORE_CLONE)
        r = prepare_source(s, ch);
    if (r == 0)
        r = load_leaves(s, ch);
    if (r == 0 && ch->o->damaged && (ch->c->kind == STORE_WRITE || ch->c->kind == STORE_PUNCH))
        r = -EUCLEAN;
    if (r == 0 && plan_has_merge(&ch->plan))
        r = merge_all(s, ch);
    if (r == 0 && ch->c->kind == STORE_INSTALL)
        r = plan_drop_zeros(&ch->plan);
    return r;
}

/* --- space --- */

/* 1 if every block written replaces one that nobody shares: then space comes back. 0 if not.
 * -EAGAIN: something had to be loaded to tell. */
static fiber_fn int is_overwrite(struct store *s, const struct change *ch)
{
    if (ch->c->kind != STORE_WRITE)
        return 0;
    for (uint32_t i = 0; i < ch->plan.segment_count; i++) {
        const struct plan_segment *g = &ch->plan.segments[i];
        for (uint32_t b = g->start; b < g->start + g->count; b++) {
            const struct leaf_ref *ref = leaf_ref_of(ch->o, b / LEAF_ENTRIES);
            struct block_ptr p;
            if (ref == NULL || ref->used == 0 || ref->mem == NULL)
                return 0;
            p = leaf_entry(ref->mem->data, b % LEAF_ENTRIES);
            if (p.block != 0 && !share_is_loaded(&s->share, p.block)) {
                int r = sharing_load(s, p.block);
                return r < 0 ? r : -EAGAIN;
            }
            if (p.block == 0 || share_get(&s->share, p.block) > 0)
                return 0;
        }
    }
    return 1;
}

static uint32_t leaves_of(uint32_t start, uint32_t count)
{
    return (start + count - 1) / LEAF_ENTRIES - start / LEAF_ENTRIES + 1;
}

/* What the change may cost until it is on disk as a whole. */
static struct demand demand_of(struct store *s, const struct change *ch, uint32_t blocks)
{
    const struct plan *p = &ch->plan;
    struct demand d = {.kind = DEMAND_DATA, .blocks = blocks};
    uint32_t leaves = 0, share_pages = 0;

    for (uint32_t i = 0; i < p->segment_count; i++)
        leaves += leaves_of(p->segments[i].start, p->segments[i].count);
    for (uint32_t i = 0; i < p->punch_count; i++)
        leaves += MIN(leaves_of(p->punches[i].start, p->punches[i].count), OBJECT_LEAVES_MAX);
    if (ch->source != NULL) {
        leaves += ch->source->leaf_count;
        share_pages = demand_share_pages(s, ch->source, 0, OBJECT_BLOCKS_MAX);
    } else if (s->share.shared_blocks > 0) {
        share_pages = ch->c->kind == STORE_WRITE
                          ? blocks
                          : demand_share_pages(s, ch->o, 0, OBJECT_BLOCKS_MAX);
    }
    demand_add(s, &d, MIN(leaves, OBJECT_LEAVES_MAX), share_pages);
    if (ch->c->kind == STORE_REMOVE)
        d.kind = DEMAND_FREES;
    else if (ch->c->kind == STORE_PUNCH)
        d.kind = ch->o->busy->state != ONODE_LIVE ? DEMAND_RECORD
                 : blocks > 0                     ? DEMAND_OVERWRITE
                                                  : DEMAND_FREES;
    return d;
}

/* 0: there is room; -ENOSPC; -EAGAIN: waited for blocks to become free, look again. */
static fiber_fn int space_admit(struct store *s, const struct change *ch, uint32_t blocks)
{
    struct demand d = demand_of(s, ch, blocks);
    int r;

    if (d.kind == DEMAND_DATA && space_usable(&s->space) < d.blocks + d.footprint + admit_kept(s)) {
        r = is_overwrite(s, ch);
        if (r < 0)
            return r;
        if (r > 0)
            d.kind = DEMAND_OVERWRITE;
    }
    r = admit_demand(s, &d);
    if (r == 0)
        admit_note(s, &d);
    return r;
}

/* --- recording: does not suspend (H3) --- */

static int run_add(struct store *s, size_t *count, uint32_t start, uint32_t n, uint32_t block)
{
    struct record_run *last = *count > 0 ? &s->runs[*count - 1] : NULL;

    if (last != NULL && last->start + last->count == start && last->block + last->count == block) {
        last->count += n;
        return 0;
    }
    if (*count == s->run_capacity) {
        size_t capacity = s->run_capacity * 2 + 64;
        struct record_run *runs = realloc(s->runs, capacity * sizeof(*runs));
        if (runs == NULL)
            return -ENOMEM;
        s->runs = runs;
        s->run_capacity = capacity;
    }
    s->runs[(*count)++] = (struct record_run){start, n, block};
    return 0;
}

/* Where a large write to the object should begin: behind the block before it, else in fresh space.
 */
static uint32_t large_hint(struct store *s, const struct change *ch)
{
    uint32_t start = ch->plan.segments[0].start;

    if (start > 0) {
        const struct leaf_ref *ref = leaf_ref_of(ch->o, (start - 1) / LEAF_ENTRIES);
        if (ref != NULL && ref->used > 0 && ref->mem != NULL && ref->mem->state != LEAF_LOADING) {
            struct block_ptr p = leaf_entry(ref->mem->data, (start - 1) % LEAF_ENTRIES);
            if (p.block != 0)
                return p.block + 1;
        }
    }
    return space_region(&s->space);
}

/* Chooses blocks for all segments (there are enough), and queues their data. */
static int allocate(struct store *s, const struct change *ch, size_t *ret_runs)
{
    const struct plan *p = &ch->plan;
    bool large = p->block_count >= LARGE_BLOCKS;
    uint32_t hint = large ? large_hint(s, ch) : 0;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < p->segment_count; i++) {
        const struct plan_segment *g = &p->segments[i];
        uint32_t done = 0;
        while (r == 0 && !g->skip && done < g->count) {
            uint32_t block, n;
            if (large)
                n = space_take(&s->space, hint, g->count - done, &block);
            else
                n = space_take_small(&s->space, g->count - done, &block);
            ASSERT(n > 0);
            hint = block + n;
            r = run_add(s, ret_runs, g->start + done, n, block);
            if (r == 0)
                r = commit_data(s, block, n, g->data + (size_t)done * STORE_BLOCK);
            done += n;
        }
    }
    if (r == 0 && large)
        commit_data_early(s);
    return r;
}

static void encode(struct store *s, const struct change *ch, size_t run_count)
{
    struct enc *e = &s->gathering->payload;
    const struct plan *p = &ch->plan;
    struct record_change_head head = {
        .oid = ch->c->oid,
        .next = ch->c->next,
        .punch_count = p->punch_count,
        .run_count = (unsigned)run_count,
    };

    if (ch->c->kind == STORE_CLONE) {
        head.flags |= RECORD_HAS_SOURCE;
        head.source = ch->c->source;
    }
    if (ch->c->kind == STORE_INSTALL)
        head.flags |= RECORD_REPLACE;
    record_change_begin(e, &head);
    for (uint32_t i = 0; i < p->punch_count; i++)
        record_punch(e, p->punches[i].start, p->punches[i].count);
    for (size_t i = 0; i < run_count; i++)
        record_run(e, &s->runs[i]);
    for (uint32_t i = 0; i < p->segment_count; i++) {
        const struct plan_segment *g = &p->segments[i];
        for (uint32_t k = 0; !g->skip && k < g->count; k++) {
            const uint8_t *data = g->data + (size_t)k * STORE_BLOCK;
            if (k + 1 < g->count)
                crc32c_prefetch(data + STORE_BLOCK, STORE_BLOCK);
            record_crc(e, crc32c(0, data, STORE_BLOCK));
        }
    }
}

static uint32_t blocks_to_write(const struct plan *p)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < p->segment_count; i++)
        n += p->segments[i].skip ? 0 : p->segments[i].count;
    return n;
}

static fiber_fn int record(struct store *s, struct change *ch)
{
    uint32_t blocks = blocks_to_write(&ch->plan);
    struct busy *b = ch->o->busy;
    size_t run_count = 0;
    int r;

    do {
        r = commit_room(s, record_change_size(ch->plan.punch_count, blocks, blocks));
        if (r == 0)
            r = space_admit(s, ch, blocks);
    } while (r == -EAGAIN);
    if (r < 0)
        return r;
    if (ch->c->kind == STORE_REMOVE) {
        record_remove(&s->gathering->payload, &ch->c->oid, ch->c->next);
        b->state = ONODE_TOMBSTONE;
        b->meta_version = 0;
    } else {
        r = allocate(s, ch, &run_count);
        if (r < 0) {
            store_fail(s, r, "recording a change"); /* blocks are marked and lost */
            return -EIO;
        }
        encode(s, ch, run_count);
        if (b->state != ONODE_LIVE)
            b->meta_version = 0;
        b->state = ONODE_LIVE;
    }
    b->version = ch->c->next;
    b->last_commit = s->gathering->number;
    s->stats.changes++;
    commit_kick(s);
    return 0;
}

/* --- the call --- */

/* 1 if a block of the source has so many users that it must be copied, 0 if not; -EAGAIN as above.
 */
static fiber_fn int is_overshared(struct store *s, const struct onode *source)
{
    if (s->share.shared_blocks == 0)
        return 0;
    for (unsigned k = 0; k < source->leaf_count; k++) {
        const struct leaf_ref *ref = &source->refs[k];
        for (unsigned i = 0; i < ref->end; i++) {
            struct block_ptr p = leaf_entry(ref->mem->data, i);
            if (p.block != 0 && !share_is_loaded(&s->share, p.block)) {
                int r = sharing_load(s, p.block);
                return r < 0 ? r : -EAGAIN;
            }
            if (p.block != 0 && share_get(&s->share, p.block) >= SHARE_LIMIT)
                return 1;
        }
    }
    return 0;
}

static fiber_fn int refuse_overshared(struct store *s, const struct onode *source)
{
    int r;

    s->share.holds++; /* what one round loads is there in the next one */
    do
        r = is_overshared(s, source);
    while (r == -EAGAIN);
    s->share.holds--;
    return r > 0 ? -EMLINK : r;
}

static fiber_fn int apply_locked(struct store *s, struct change *ch, struct version *ret_current)
{
    int r = admit(ch->o->busy, ch->c);

    if (r == -ESTALE && ret_current != NULL)
        *ret_current =
            ch->o->busy->state == ONODE_LIVE ? ch->o->busy->version : (struct version){0};
    if (r != ADMIT_GO)
        return r;
    r = prepare(s, ch);
    if (r == 0 && ch->source != NULL)
        r = refuse_overshared(s, ch->source);
    if (r == 0)
        r = record(s, ch);
    return r;
}

static fiber_fn int apply_once(struct store *s, const struct store_change *c,
                               struct version *ret_current)
{
    struct change ch;
    uint64_t number;
    int r = store_check_writable(s);

    if (r < 0)
        return r;
    ch.c = c;
    ch.o = ch.source = NULL;
    ch.source_locked = false;
    r = plan_init(&ch.plan, c);
    if (r == 0) {
        ch.o = onode_hold(&s->index, &c->oid);
        r = ch.o != NULL ? 0 : -ENOMEM;
    }
    if (r < 0) {
        plan_done(&ch.plan);
        return r;
    }
    fmutex_lock(&ch.o->busy->prepare);
    r = apply_locked(s, &ch, ret_current);
    number = ch.o->busy->last_commit;
    fmutex_unlock(&ch.o->busy->prepare);
    if (ch.source_locked)
        fmutex_unlock(&ch.source->busy->prepare);
    if (r == ADMIT_DONE_ALREADY)
        r = commit_wait_number(s, number);
    else if (r == 0)
        r = commit_wait_mine(s);
    if (ch.source != NULL)
        onode_release(&s->index, ch.source);
    onode_release(&s->index, ch.o);
    plan_done(&ch.plan);
    return r;
}

/* A clone whose blocks have too many users: writes a copy of the source, with the extents over it.
 */
static fiber_fn int clone_by_copy(struct store *s, const struct store_change *c,
                                  struct version *ret_current)
{
    struct store_stat stat;
    struct store_extent extent = {0};
    struct store_change copy = *c;
    struct iovec iov;
    uint8_t *buffer;
    size_t given = 0, size;
    int r;

    store_stat(s, &c->source, &stat);
    size = stat.end;
    for (unsigned i = 0; i < c->extent_count; i++)
        size = MAX(size, (size_t)c->extents[i].offset + c->extents[i].length);
    size = ALIGN_UP(size, STORE_BLOCK);
    buffer = aligned_alloc(STORE_BLOCK, size);
    if (buffer == NULL)
        return -ENOMEM;
    r = store_read(s, &c->source, 0, size, buffer, NULL);
    for (unsigned i = 0, v = 0; r == 0 && i < c->extent_count; i++) {
        for (uint32_t k = 0; k < c->extents[i].length; k++) { /* rare: a byte at a time will do */
            while (given == c->iov[v].iov_len) {
                v++;
                given = 0;
            }
            buffer[c->extents[i].offset + k] = ((const uint8_t *)c->iov[v].iov_base)[given++];
        }
    }
    extent.length = (uint32_t)size;
    iov = (struct iovec){buffer, size};
    copy.kind = STORE_WRITE;
    copy.extents = &extent;
    copy.extent_count = 1;
    copy.iov = &iov;
    copy.iov_count = 1;
    if (r == 0)
        r = apply_once(s, &copy, ret_current);
    free(buffer);
    return r;
}

fiber_fn int store_apply(struct store *s, const struct store_change *c, struct version *ret_current)
{
    int r;

    store_enter(s);
    r = apply_once(s, c, ret_current);
    if (r == -EMLINK)
        r = clone_by_copy(s, c, ret_current);
    return store_leave(s, r);
}
