/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Taking dead index blocks apart (refcount.md: cascades).
 *
 * T1 A dying block drops each of its entries, with its final `copies`; only when all drops are
 *    answered is it removed. So whoever finds it dying may send everything again.
 * T2 Stamps are (group epoch, sequence). The floor that a group may publish is below the first
 *    stamp of every block that is not gone yet; as long as a block is there that was found dying at
 *    this epoch (its drops may carry stamps of an older one), nothing is published.
 * T3 A block stays on the list from its death, or from being found, until it is removed,
 *    whatever epochs pass.
 */
#include <stdlib.h>
#include <string.h>
#include "object/object_internal.h"

#define LOG_MODULE "object"
#include "base/log.h"

#define WORKER_COUNT_MAX 4u
#define CHUNK_ENTRIES    256u
#define RETRY_NS         (100 * NS_PER_MS)
#define SCAN_YIELD       64u

struct dying {
    struct list in_blocks;
    struct oid oid;
    uint64_t epoch; /* at which it was added */
    uint64_t first; /* T2: its first stamp at the earliest; 0: it was found */
    bool running;
};

void reclaim_init(struct objects *o)
{
    list_init(&o->reclaim.blocks);
}

uint64_t reclaim_count(const struct objects *o)
{
    return o->reclaim.count;
}

static uint64_t stamp_base(uint64_t epoch)
{
    return epoch << VERSION_SEQUENCE_BITS;
}

/* T2 */
uint64_t reclaim_floor(const struct objects *o, uint32_t group)
{
    const struct group *g = &o->groups[group];
    if (g->aligned_epoch != g->epoch)
        return 0;
    uint64_t floor = stamp_base(g->epoch) | g->cascade_sequence;
    const struct dying *d;
    list_for_each (d, &o->reclaim.blocks, in_blocks) {
        if (d->oid.group != group)
            continue;
        if (d->first == 0 || d->epoch != g->epoch)
            return 0;
        floor = MIN(floor, d->first - 1);
    }
    return floor;
}

static struct dying *find(struct objects *o, const struct oid *oid)
{
    struct dying *d;
    list_for_each (d, &o->reclaim.blocks, in_blocks) {
        if (oid_equal(&d->oid, oid))
            return d;
    }
    return NULL;
}

static void remove_block(struct objects *o, struct dying *d)
{
    list_remove(&d->in_blocks);
    o->reclaim.count--;
    free(d);
}

/* --- one block --- */

struct cascade {
    struct objects *o;
    struct oid oid;
    uint64_t epoch, copies;
    struct index_header header;
    uint8_t *entries; /* of one chunk; owned */
    struct ref_op ops[CHUNK_ENTRIES];
};

/* Its final copies. -ENOENT: gone; -ESTALE: it is not dying. */
static fiber_fn int read_ledger(struct cascade *cs)
{
    uint8_t meta[STORE_META_SIZE_MAX];
    size_t length;
    uint64_t meta_version;
    struct ledger l;
    int r = store_meta_get(cs->o->store, &cs->oid, meta, &length, &meta_version);
    if (r == 0)
        r = ledger_decode(meta, length, &l);
    if (r < 0)
        return r;
    r = l.state == LEDGER_DYING ? 0 : -ESTALE;
    cs->copies = l.copies;
    ledger_done(&l);
    return r;
}

static fiber_fn int read_header(struct cascade *cs)
{
    uint32_t n = cs->o->entries_per_block;
    uint8_t page[INDEX_PAGE];
    int r = object_read(cs->o, &cs->oid, index_tail_offset(n), sizeof(page), page, NULL);
    if (r == 0)
        r = index_header_decode(page, sizeof(page), &cs->header);
    if (r == 0 && (cs->header.entries != n || cs->header.level != cs->oid.level))
        r = -EBADMSG;
    if (r == 0 && cs->header.owed_count > 0) {
        char name[OID_TEXT_SIZE];
        log_warn("index block %s dies with %u references owed; they are left to its volume",
                 oid_format(&cs->oid, name), cs->header.owed_count);
    }
    return r;
}

static fiber_fn int send_chunk(struct cascade *cs, uint32_t from, uint32_t count)
{
    struct objects *o = cs->o;
    int r = object_read(o, &cs->oid, from * INDEX_ENTRY_BYTES, count * INDEX_ENTRY_BYTES,
                        cs->entries, NULL);
    if (r < 0)
        return r;
    struct group *g = group_get(o, cs->oid.group);
    if (!g || g->epoch != cs->epoch)
        return -ESTALE;
    unsigned n = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct index_entry e = index_entry_get(cs->entries + (size_t)i * INDEX_ENTRY_BYTES);
        if (index_entry_empty(&e))
            continue;
        struct ref_op *op = &cs->ops[n++];
        *op = (struct ref_op){
            .kind = REF_DROP,
            .holder_vid = cs->oid.vid,
            .holder_level = cs->oid.level,
            .generation = e.generation,
            .copies = cs->copies,
            .stamp = stamp_base(cs->epoch) | ++g->cascade_sequence,
        };
        r = index_child(&cs->header, &cs->oid, from + i, &e, &op->target);
        if (r < 0)
            return r;
    }
    const struct ref_sender sender = {
        .kind = REF_SENDER_GROUP,
        .id = cs->oid.group,
        .authority = cs->epoch,
        .floor = reclaim_floor(o, cs->oid.group),
    };
    return refs_send(o, &sender, NULL, cs->ops, n, &o->reclaim.stopping);
}

/* T1. 0 or -ENOENT: gone. */
static fiber_fn int take_apart(struct objects *o, const struct oid *oid)
{
    const struct map_group *m = group_map(o, oid->group);
    struct group *g = group_get(o, oid->group);
    if (!m || !group_is_primary(m, o->self) || g->aligned_epoch != g->epoch)
        return -EAGAIN;
    struct cascade *cs = malloc(sizeof(*cs));
    if (!cs)
        return -ENOMEM;
    *cs = (struct cascade){.o = o, .oid = *oid, .epoch = g->epoch};
    /* Not of payload_get(): it is held while other nodes are waited for. */
    cs->entries = aligned_alloc(INDEX_PAGE, CHUNK_ENTRIES * INDEX_ENTRY_BYTES);
    int r = cs->entries ? read_ledger(cs) : -ENOMEM;
    if (r == 0)
        r = read_header(cs);
    for (uint32_t from = 0; r == 0 && from < cs->header.entries; from += CHUNK_ENTRIES) {
        r = send_chunk(cs, from, MIN(CHUNK_ENTRIES, cs->header.entries - from));
        fiber_yield(); /* guests first */
    }
    if (r == 0) {
        const struct peer_meta gone = {.oid = *oid, .epoch = cs->epoch, .remove = true};
        r = metas_replicate(o, &gone, 1);
    }
    free(cs->entries);
    free(cs);
    return r;
}

/* --- workers --- */

/* The next block that can be worked on now; a group that is not aligned has to wait. */
static struct dying *next_block(struct objects *o)
{
    struct dying *d;
    list_for_each (d, &o->reclaim.blocks, in_blocks) {
        const struct group *g = group_get(o, d->oid.group);
        const struct map_group *m = group_map(o, d->oid.group);
        if (!d->running && g && g->aligned_epoch == g->epoch && m && group_is_primary(m, o->self))
            return d;
    }
    return NULL;
}

static fiber_fn void worker_main(void *arg)
{
    struct objects *o = arg;
    struct dying *d;
    while (!o->reclaim.stopping && !rt_stopping(o->rt) && (d = next_block(o))) {
        d->running = true;
        int r = take_apart(o, &d->oid);
        if (r == 0 || r == -ENOENT) {
            remove_block(o, d);
            continue;
        }
        if (r != -EAGAIN && r != -ESTALE && r != -ECANCELED) {
            char name[OID_TEXT_SIZE];
            log_error("index block %s is dead but cannot be taken apart (%s); tried again later",
                      oid_format(&d->oid, name), err_text(r));
        }
        waitq_wait_until(&o->map_wait, o->rt, clock_now(o->rt) + RETRY_NS);
        d->running = false;
        /* Others first. */
        list_remove(&d->in_blocks);
        list_push_back(&o->reclaim.blocks, &d->in_blocks);
    }
    o->reclaim.running--;
    objects_fiber_end(o);
}

static void start_worker(struct objects *o)
{
    if (o->reclaim.running < WORKER_COUNT_MAX && !o->reclaim.stopping && next_block(o) &&
        objects_spawn(o, "object-reclaim", worker_main, o) == 0)
        o->reclaim.running++;
}

static void add(struct objects *o, const struct oid *oid, uint64_t epoch, uint64_t first)
{
    struct dying *d = find(o, oid);
    if (d || o->stopping)
        return;
    d = calloc(1, sizeof(*d));
    if (!d)
        return; /* it is found again at the next epoch */
    *d = (struct dying){.oid = *oid, .epoch = epoch, .first = first};
    list_push_back(&o->reclaim.blocks, &d->in_blocks);
    o->reclaim.count++;
}

void reclaim_add(struct objects *o, const struct oid *block, uint64_t epoch)
{
    const struct group *g = group_get(o, block->group);
    bool same = g && g->epoch == epoch;
    add(o, block, epoch, same ? (stamp_base(epoch) | (g->cascade_sequence + 1)) : 0);
    start_worker(o);
}

/* --- finding --- */

static fiber_fn void scan_entry(struct objects *o, const struct store_entry *se)
{
    uint8_t meta[STORE_META_SIZE_MAX];
    size_t length;
    uint64_t meta_version;
    struct ledger l;
    if (se->tombstone || se->oid.level == 0 || se->meta_version == 0)
        return;
    if (store_meta_get(o->store, &se->oid, meta, &length, &meta_version) < 0 ||
        ledger_decode(meta, length, &l) < 0)
        return;
    if (l.state == LEDGER_DYING)
        add(o, &se->oid, 0, 0);
    ledger_done(&l);
}

fiber_fn int reclaim_scan(struct objects *o, const uint32_t *groups, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct store_filter filter = {.by_group = true, .group = (uint16_t)groups[i]};
        struct store_entry *entries;
        size_t n;
        int r = store_list(o->store, &filter, &entries, &n);
        if (r < 0)
            return r;
        for (size_t k = 0; k < n; k++)
            scan_entry(o, &entries[k]);
        free(entries);
        if (i % SCAN_YIELD == 0)
            fiber_yield();
    }
    return 0;
}

void reclaim_kick(struct objects *o)
{
    for (unsigned i = 0; i < WORKER_COUNT_MAX; i++)
        start_worker(o);
}

void reclaim_stop(struct objects *o)
{
    o->reclaim.stopping = true;
}

void reclaim_done(struct objects *o)
{
    while (!list_empty(&o->reclaim.blocks))
        remove_block(o, list_first(&o->reclaim.blocks, struct dying, in_blocks));
}
