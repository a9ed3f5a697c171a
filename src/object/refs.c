/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sending reference messages to the homes of their targets, in batches per home.
 *
 * E1 A message counts as delivered only when its home answered 0: applied on all in-sync nodes
 *    at the epoch that the message named. Anything else is sent again; homes recognise the key.
 */
#include <stdlib.h>
#include "object/object_internal.h"

#define LOG_MODULE "object"
#include "base/log.h"

#define BATCH_COUNT_MAX 8u /* under way at once for one caller */
#define RETRY_NS        (50 * NS_PER_MS)

struct batch {
    struct call call;
    uint16_t home;
    unsigned count;
    unsigned index[PEER_REF_COUNT_MAX]; /* into sending.ops */
    struct enc body;
    bool self;
};

struct sending {
    struct objects *o;
    const struct ref_sender *sender;
    const struct ref_op *ops;
    unsigned count, left;
    bool *answered; /* per op */
    struct batch *batches;
    unsigned batch_count;
};

static int home_of(const struct objects *o, const struct ref_op *op, uint16_t *ret)
{
    const struct map_group *g = group_map(o, op->target.group);
    if (!g)
        return -EINVAL;
    if (g->in_sync_count == 0)
        return -EAGAIN;
    *ret = g->in_sync[0];
    return 0;
}

/* An open batch to that home, a new one, or NULL when all are in use. */
static struct batch *batch_for(struct sending *s, uint16_t home)
{
    for (unsigned i = 0; i < s->batch_count; i++)
        if (s->batches[i].home == home && s->batches[i].count < PEER_REF_COUNT_MAX)
            return &s->batches[i];
    if (s->batch_count == BATCH_COUNT_MAX)
        return NULL;
    struct batch *b = &s->batches[s->batch_count++];
    b->home = home;
    b->count = 0;
    b->self = home == s->o->self;
    return b;
}

static int fill(struct sending *s)
{
    s->batch_count = 0;
    for (unsigned i = 0; i < s->count; i++) {
        uint16_t home;
        if (s->answered[i])
            continue;
        int r = home_of(s->o, &s->ops[i], &home);
        if (r == -EINVAL)
            return r;
        struct batch *b = r == 0 ? batch_for(s, home) : NULL;
        if (b)
            b->index[b->count++] = i;
    }
    return 0;
}

static void encode(struct sending *s, struct batch *b)
{
    static const enum peer_sender senders[] = {
        [REF_SENDER_VOLUME] = PEER_SENDER_VOLUME,
        [REF_SENDER_GROUP] = PEER_SENDER_GROUP,
        [REF_SENDER_REGISTRY] = PEER_SENDER_REGISTRY,
    };
    const struct peer_refs_head head = {
        .sender = senders[s->sender->kind],
        .sender_id = s->sender->id,
        .authority = s->sender->authority,
        .floor = s->sender->floor,
        .count = (uint16_t)b->count,
    };
    enc_init(&b->body);
    peer_refs_head_encode(&head, &b->body);
    for (unsigned i = 0; i < b->count; i++) {
        const struct ref_op *op = &s->ops[b->index[i]];
        const struct peer_ref pr = {
            .kind = op->kind == REF_KILL ? PEER_REF_KILL : PEER_REF_DROP,
            .target = op->target,
            .epoch = group_get(s->o, op->target.group)->epoch,
            .holder_vid = op->holder_vid,
            .holder_level = op->holder_level,
            .copied = op->copied,
            .generation = op->generation,
            .copies = op->copies,
            .stamp = op->stamp,
        };
        peer_ref_encode(&pr, &b->body);
    }
}

/* The batch whose home is this node: no message. */
static fiber_fn int apply_here(struct sending *s, struct batch *b)
{
    struct ref_op *ops = malloc(b->count * sizeof(ops[0]));
    uint64_t *epochs = malloc(b->count * sizeof(epochs[0]));
    int r = ops && epochs ? 0 : -ENOMEM;
    for (unsigned i = 0; i < b->count && r == 0; i++) {
        ops[i] = s->ops[b->index[i]];
        epochs[i] = group_get(s->o, ops[i].target.group)->epoch;
    }
    const struct ref_batch rb = {
        .sender = *s->sender,
        .count = b->count,
        .ops = ops,
        .epochs = epochs,
    };
    if (r == 0)
        r = home_apply(s->o, &rb);
    free(ops);
    free(epochs);
    return r;
}

/* One round: everything that is not answered, as far as batches reach. 0, or -ECANCELED, -ENOMEM,
 * -ESTALE. */
static fiber_fn int send_round(struct sending *s, const struct object_owner *owner)
{
    struct objects *o = s->o;
    struct call *calls[BATCH_COUNT_MAX];
    unsigned call_count = 0;
    struct node_calls wait;
    int r = 0;
    node_calls_begin(o, &wait, owner, "reference messages");
    node_calls_bind(o, &wait); /* a home may have left */
    wait.op.calls = &s->batches[0].call;
    wait.op.call_size = sizeof(s->batches[0]);
    wait.op.call_count = s->batch_count;
    for (unsigned i = 0; i < s->batch_count; i++) {
        struct batch *b = &s->batches[i];
        call_init(&b->call, PEER_REFS, 0); /* without payload it cannot fail */
        b->call.status = -EAGAIN;
        if (b->self)
            continue;
        encode(s, b);
        if (b->body.error) {
            enc_done(&b->body);
            r = -ENOMEM;
            continue;
        }
        b->call.body = b->body.data;
        b->call.body_length = (uint32_t)b->body.length;
        calls[call_count++] = &b->call;
        node_calls_add(o, &wait, b->home, &b->call);
    }
    for (unsigned i = 0; i < s->batch_count; i++)
        if (s->batches[i].self)
            s->batches[i].call.status = apply_here(s, &s->batches[i]);
    int waited = node_calls_wait(o, &wait, calls, call_count);
    for (unsigned i = 0; i < s->batch_count; i++) {
        struct batch *b = &s->batches[i];
        if (!b->self)
            enc_done(&b->body);
        if (b->call.status == -ESTALE || b->call.status == -EINVAL)
            r = b->call.status;
        for (unsigned k = 0; k < b->count && b->call.status == 0; k++) {
            s->answered[b->index[k]] = true;
            s->left--;
        }
    }
    return waited < 0 ? waited : r;
}

/* A cascade ends when its group's epoch does. */
static bool is_overtaken(const struct sending *s)
{
    if (s->sender->kind != REF_SENDER_GROUP)
        return false;
    const struct group *g = group_get(s->o, (uint32_t)s->sender->id);
    return !g || g->epoch != s->sender->authority;
}

static fiber_fn int send_all(struct sending *s, const struct object_owner *owner, const bool *abort)
{
    struct objects *o = s->o;
    while (s->left > 0) {
        if (o->stopping || (owner && owner->cancelled) || (abort && *abort))
            return -ECANCELED;
        if (is_overtaken(s))
            return -ESTALE;
        unsigned before = s->left;
        int r = fill(s);
        if (r == 0)
            r = send_round(s, owner);
        if (r < 0 && r != -ENOMEM && r != -EAGAIN)
            return r;
        if (s->left == before) {
            if (rt_stopping(o->rt))
                return -ECANCELED;
            waitq_wait_until(&o->map_wait, o->rt, clock_now(o->rt) + RETRY_NS);
        }
    }
    return 0;
}

fiber_fn int refs_send(struct objects *o, const struct ref_sender *sender,
                       const struct object_owner *owner, const struct ref_op *ops, unsigned count,
                       const bool *abort)
{
    struct sending s = {.o = o, .sender = sender, .ops = ops, .count = count, .left = count};
    if (count == 0)
        return 0;
    s.answered = calloc(count, sizeof(s.answered[0]));
    s.batches = malloc(BATCH_COUNT_MAX * sizeof(s.batches[0]));
    int r = s.answered && s.batches ? 0 : -ENOMEM;
    if (r == 0)
        r = send_all(&s, owner, abort);
    free(s.answered);
    free(s.batches);
    return r;
}

fiber_fn int object_refs(struct objects *o, const struct object_owner *owner,
                         enum ref_sender_kind sender, const struct ref_op *ops, unsigned count)
{
    ASSERT(sender == REF_SENDER_REGISTRY || (sender == REF_SENDER_VOLUME && owner));
    const struct ref_sender s = {
        .kind = sender,
        .id = owner ? owner->volume : 0,
        .authority = owner ? owner->term.value : 0,
        .floor = owner ? owner->stable.value : 0,
    };
    return refs_send(o, &s, owner, ops, count, NULL);
}
