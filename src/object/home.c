/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The home of objects: where reference messages are applied (refcount.md).
 *
 * D1 Operations on one object are one at a time: its lock is held from loading its ledger until
 *    all in-sync nodes have the new one. Locks of a batch are taken in ascending order of oid.
 * D2 Authority (session, term, epoch, floors) is judged in the same step, without suspension,
 *    that submits the change.
 * D3 A change that was submitted is completed on all in-sync nodes, or its group's epoch
 *    changes; then the new epoch's comparison (align.c) levels what was left half done before
 *    anything else is applied.
 * D4 An operation on an absent object is answered "done"; what another in-sync node still holds
 *    of it is the rest of a removal that was interrupted, and is removed.
 */
#include <stdlib.h>
#include <string.h>
#include "object/serve.h"

#define LOG_MODULE "object"
#include "base/log.h"

#define HOME_FIBER_COUNT_MAX 64u

/* --- locks (D1) --- */

struct oid_lock {
    struct hnode node;
    struct oid oid;
    unsigned users;
    struct fmutex mutex;
};

static struct oid_lock *lock_find(struct objects *o, const struct oid *oid)
{
    struct hnode *n = htable_first(&o->locks, oid_hash(oid));
    for (; n; n = htable_next_same(n)) {
        struct oid_lock *l = container_of(n, struct oid_lock, node);
        if (oid_equal(&l->oid, oid))
            return l;
    }
    return NULL;
}

static fiber_fn struct oid_lock *lock_take(struct objects *o, const struct oid *oid)
{
    struct oid_lock *l = lock_find(o, oid);
    if (!l) {
        l = calloc(1, sizeof(*l));
        if (!l)
            return NULL;
        l->oid = *oid;
        fmutex_init(&l->mutex);
        if (htable_insert(&o->locks, &l->node, oid_hash(oid)) < 0) {
            free(l);
            return NULL;
        }
    }
    l->users++;
    fmutex_lock(&l->mutex);
    return l;
}

static void lock_give(struct objects *o, struct oid_lock *l)
{
    fmutex_unlock(&l->mutex);
    if (--l->users > 0)
        return;
    htable_remove(&o->locks, &l->node);
    free(l);
}

/* --- applying a batch --- */

struct target {
    struct oid oid;
    uint64_t epoch;
    struct oid_lock *lock;
    struct ledger ledger;
    bool loaded, present, died;
    uint64_t meta_version;
    uint8_t *meta; /* as loaded; owned */
    size_t meta_length;
    struct enc encoded;
};

struct home {
    struct objects *o;
    const struct ref_batch *b;
    unsigned target_count;
    struct target *targets; /* ascending */
    struct peer_meta *metas;
    unsigned meta_count;
};

static int compare_target(const void *a, const void *b)
{
    return oid_compare(&((const struct target *)a)->oid, &((const struct target *)b)->oid);
}

/* -EAGAIN: not the home at the epochs that the sender named. */
static int check_epochs(const struct home *h)
{
    for (unsigned i = 0; i < h->b->count; i++) {
        uint32_t group = h->b->ops[i].target.group;
        const struct group *g = group_get(h->o, group);
        const struct map_group *m = group_map(h->o, group);
        if (!g || !m || g->closed || g->epoch != h->b->epochs[i] ||
            !group_is_primary(m, h->o->self) || !gate_serving(h->o))
            return -EAGAIN;
    }
    return 0;
}

static int collect_targets(struct home *h)
{
    h->targets = calloc(h->b->count, sizeof(h->targets[0]));
    h->metas = calloc(h->b->count, sizeof(h->metas[0]));
    if (!h->targets || !h->metas)
        return -ENOMEM;
    for (unsigned i = 0; i < h->b->count; i++) {
        h->targets[i].oid = h->b->ops[i].target;
        h->targets[i].epoch = h->b->epochs[i];
    }
    qsort(h->targets, h->b->count, sizeof(h->targets[0]), compare_target);
    for (unsigned i = 0; i < h->b->count; i++) {
        if (h->target_count > 0 &&
            oid_equal(&h->targets[h->target_count - 1].oid, &h->targets[i].oid))
            continue;
        h->targets[h->target_count++] = h->targets[i];
    }
    return 0;
}

static struct target *target_find(struct home *h, const struct oid *oid)
{
    const struct target key = {.oid = *oid};
    return bsearch(&key, h->targets, h->target_count, sizeof(h->targets[0]), compare_target);
}

static fiber_fn int load_one(struct home *h, struct target *t)
{
    struct objects *o = h->o;
    struct store_stat st;
    store_stat(o->store, &t->oid, &st);
    if (st.version.value == 0)
        return 0; /* D4 */
    uint8_t *meta = malloc(STORE_META_SIZE_MAX);
    if (!meta)
        return -ENOMEM;
    t->meta = meta;
    int r = store_meta_get(o->store, &t->oid, meta, &t->meta_length, &t->meta_version);
    if (r == -ENOENT)
        return 0;
    if (r == 0)
        r = ledger_decode(meta, t->meta_length, &t->ledger);
    if (r < 0) {
        char name[OID_TEXT_SIZE];
        log_error("the ledger of object %s cannot be read: %s", oid_format(&t->oid, name),
                  err_text(r));
        return r == -ENOMEM ? r : -EAGAIN;
    }
    t->loaded = t->present = true;
    return 0;
}

/* Learns the floors of volumes whose keys are here. */
static fiber_fn void refresh_floors(struct home *h)
{
    for (unsigned i = 0; i < h->target_count; i++) {
        struct target *t = &h->targets[i];
        for (unsigned k = 0; t->loaded && k < t->ledger.key_count; k++) {
            const struct ledger_key *key = &t->ledger.keys[k];
            if (key->sender == REF_SENDER_VOLUME && key->stamp > floors_get(h->o, key->sender_id))
                floors_refresh(h->o, key->sender_id);
        }
    }
}

/* D2. Does not suspend. */
static int judge(const struct home *h)
{
    struct objects *o = h->o;
    const struct ref_sender *s = &h->b->sender;
    uint64_t floor = 0;
    if (h->b->fenced && *h->b->fenced)
        return -ESTALE;
    if (s->kind == REF_SENDER_VOLUME) {
        const struct peer_owner owner = {
            .volume = s->id, .term = {s->authority}, .stable = {s->floor}};
        if (floors_note(o, &owner) < 0)
            return -ESTALE;
        floor = floors_get(o, s->id);
    } else if (s->kind == REF_SENDER_GROUP) {
        struct group *g = group_get(o, (uint32_t)MIN(s->id, UINT32_MAX));
        if (!g)
            return -EINVAL;
        if (s->authority < g->epoch || (g->closed && s->authority < g->next_epoch))
            return -ESTALE;
        if (s->authority > g->epoch)
            return -EAGAIN;
        g->floor_heard = MAX(g->floor_heard, s->floor);
        floor = g->floor_heard;
    }
    for (unsigned i = 0; i < h->b->count; i++) {
        const struct ref_op *op = &h->b->ops[i];
        if (op->kind == REF_KILL ? op->target.level == 0 : s->kind == REF_SENDER_REGISTRY)
            return -EINVAL;
        if (s->kind != REF_SENDER_REGISTRY && op->stamp <= floor)
            return -ESTALE;
    }
    return 0;
}

/* Keys at or below the floors known here. */
static void erase_old_keys(struct objects *o, struct ledger *l)
{
    unsigned i = 0;
    while (i < l->key_count) {
        const struct ledger_key k = l->keys[i];
        uint64_t floor = 0;
        if (k.sender == REF_SENDER_VOLUME) {
            floor = floors_get(o, k.sender_id);
        } else if (k.sender == REF_SENDER_GROUP) {
            const struct group *g = group_get(o, (uint32_t)MIN(k.sender_id, UINT32_MAX));
            floor = g ? g->floor_heard : 0;
        }
        if (floor == 0 || ledger_erase_keys(l, k.sender, k.sender_id, floor) == 0)
            i++;
        else
            i = 0;
    }
}

/* All operations on all ledgers, in memory. */
static int compute(struct home *h)
{
    for (unsigned i = 0; i < h->target_count; i++)
        if (h->targets[i].loaded)
            erase_old_keys(h->o, &h->targets[i].ledger);
    for (unsigned i = 0; i < h->b->count; i++) {
        struct target *t = target_find(h, &h->b->ops[i].target);
        enum ledger_outcome outcome;
        if (!t->loaded)
            continue;
        int r =
            ledger_apply(&t->ledger, &h->b->ops[i], h->b->sender.kind, h->b->sender.id, &outcome);
        if (r < 0)
            return r == -EFBIG ? -EINVAL : r;
        t->died = t->died || outcome == LEDGER_DIED;
    }
    return 0;
}

/* What has to be written. -EAGAIN: a ledger is too large at the moment. */
static int plan(struct home *h)
{
    for (unsigned i = 0; i < h->target_count; i++) {
        struct target *t = &h->targets[i];
        struct peer_meta m = {.oid = t->oid, .epoch = t->epoch};
        if (!t->present || (t->died && t->oid.level == 0)) {
            m.remove = true; /* D4, or a data object that is dead */
            m.meta_version = t->meta_version;
        } else {
            ledger_encode(&t->ledger, &t->encoded);
            if (t->encoded.error)
                return -ENOMEM;
            if (t->encoded.length > STORE_META_SIZE_MAX) {
                char name[OID_TEXT_SIZE];
                log_warn(
                    "the ledger of object %s is full of unfinished keys; what would add one waits",
                    oid_format(&t->oid, name));
                return -EAGAIN;
            }
            if (t->encoded.length == t->meta_length &&
                (t->meta_length == 0 || memcmp(t->encoded.data, t->meta, t->meta_length) == 0))
                continue;
            m.meta_version = MAX(t->meta_version + 1, t->epoch << 24);
            m.meta = t->encoded.data;
            m.meta_length = t->encoded.length;
        }
        h->metas[h->meta_count++] = m;
    }
    return 0;
}

static fiber_fn int prepare(struct home *h)
{
    struct objects *o = h->o;
    int r = check_epochs(h);
    for (unsigned i = 0; i < h->b->count && r == 0; i++)
        r = align_wait(o, h->b->ops[i].target.group, h->b->epochs[i]);
    if (r == 0)
        r = collect_targets(h);
    for (unsigned i = 0; i < h->target_count && r == 0; i++) {
        h->targets[i].lock = lock_take(o, &h->targets[i].oid);
        if (!h->targets[i].lock)
            r = -ENOMEM;
    }
    for (unsigned i = 0; i < h->target_count && r == 0; i++)
        r = load_one(h, &h->targets[i]);
    if (r == 0)
        refresh_floors(h);
    return r;
}

/* No suspension up to the submission inside metas_replicate() (D2). */
static fiber_fn int decide_and_submit(struct home *h)
{
    int r = check_epochs(h);
    if (r == 0)
        r = judge(h);
    if (r == 0)
        r = compute(h);
    if (r == 0)
        r = plan(h);
    if (r == 0 && h->meta_count > 0)
        r = metas_replicate(h->o, h->metas, h->meta_count);
    for (unsigned i = 0; i < h->target_count && r == 0; i++)
        if (h->targets[i].died && h->targets[i].oid.level > 0)
            reclaim_add(h->o, &h->targets[i].oid, h->targets[i].epoch);
    return r;
}

fiber_fn int home_apply(struct objects *o, const struct ref_batch *b)
{
    struct home h = {.o = o, .b = b};
    ASSERT(b->count > 0 && b->count <= PEER_REF_COUNT_MAX);
    o->ref_batches_pending++;
    int r = prepare(&h);
    if (r == 0)
        r = decide_and_submit(&h);
    for (unsigned i = 0; i < h.target_count; i++) {
        struct target *t = &h.targets[i];
        if (t->lock)
            lock_give(o, t->lock);
        ledger_done(&t->ledger);
        enc_done(&t->encoded);
        free(t->meta);
    }
    free(h.targets);
    free(h.metas);
    o->ref_batches_pending--;
    return r;
}

/* --- batches from peers --- */

static int decode_batch(struct request *rq, struct ref_batch *b, struct ref_op *ops,
                        uint64_t *epochs, struct dec *d)
{
    static const enum ref_sender_kind senders[] = {
        [PEER_SENDER_VOLUME] = REF_SENDER_VOLUME,
        [PEER_SENDER_GROUP] = REF_SENDER_GROUP,
        [PEER_SENDER_REGISTRY] = REF_SENDER_REGISTRY,
    };
    struct peer_refs_head head;
    peer_refs_head_decode(d, &head);
    if (d->error)
        return -EINVAL;
    *b = (struct ref_batch){
        .sender = {senders[head.sender], head.sender_id, head.authority, head.floor},
        .count = head.count,
        .ops = ops,
        .epochs = epochs,
        .fenced = &rq->peer->fenced,
    };
    for (unsigned i = 0; i < head.count; i++) {
        struct peer_ref pr;
        peer_ref_decode(d, &pr);
        epochs[i] = pr.epoch;
        ops[i] = (struct ref_op){
            .kind = pr.kind == PEER_REF_KILL ? REF_KILL : REF_DROP,
            .target = pr.target,
            .holder_vid = pr.holder_vid,
            .holder_level = pr.holder_level,
            .generation = pr.generation,
            .copies = pr.copies,
            .copied = pr.copied,
            .stamp = pr.stamp,
        };
    }
    return dec_finish(d) < 0 ? -EINVAL : 0;
}

static fiber_fn int run_batch(struct request *rq)
{
    struct ref_op *ops = malloc(PEER_REF_COUNT_MAX * sizeof(ops[0]));
    uint64_t *epochs = malloc(PEER_REF_COUNT_MAX * sizeof(epochs[0]));
    int r = ops && epochs ? 0 : -ENOMEM;
    struct ref_batch b;
    struct dec d;
    dec_init(&d, rq->body, rq->header.body_length);
    if (r == 0)
        r = decode_batch(rq, &b, ops, epochs, &d);
    if (r == 0)
        r = home_apply(rq->o, &b);
    free(ops);
    free(epochs);
    return r;
}

static fiber_fn void home_main(void *arg)
{
    struct objects *o = arg;
    while (!list_empty(&o->home_queue)) {
        struct request *rq = list_first(&o->home_queue, struct request, in_pool);
        list_remove(&rq->in_pool);
        rq->status = o->stopping ? -ECANCELED : run_batch(rq);
        rq->peer->refs_inflight--;
        request_reply(rq);
    }
    o->home_running--;
    objects_fiber_end(o);
}

void home_queue(struct request *rq)
{
    struct objects *o = rq->o;
    list_push_back(&o->home_queue, &rq->in_pool);
    if (o->home_running < HOME_FIBER_COUNT_MAX &&
        objects_spawn(o, "object-home", home_main, o) == 0)
        o->home_running++;
}
