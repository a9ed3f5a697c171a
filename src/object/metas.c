/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Meta changes (ledgers, and removals by them) on all in-sync and joining nodes (W3).
 *
 * D3 What was submitted is completed on all in-sync nodes, however often it must be sent; only a
 *    change of one of the groups' epochs ends it half done, and then the new epoch's comparison
 *    (align.c) levels that before anything else is applied. So within an epoch this node's own
 *    ledgers are never ahead of the others' for good.
 */
#include <stdlib.h>
#include <string.h>
#include "object/object_internal.h"

#define POLL_NS (100 * NS_PER_MS)

struct copy_call {
    struct call call;
    struct enc body;
    uint16_t node;
    bool answered;
};

struct replication {
    struct objects *o;
    const struct peer_meta *metas;
    unsigned count;
    struct op op;
    unsigned call_count;
    struct copy_call *calls;
};

static bool epochs_hold(const struct replication *rp)
{
    for (unsigned i = 0; i < rp->count; i++) {
        const struct group *g = group_get(rp->o, rp->metas[i].oid.group);
        if (!g || g->epoch != rp->metas[i].epoch)
            return false;
    }
    return true;
}

static void copy_answered(struct call *c)
{
    struct replication *rp = c->user;
    waitq_wake_all(&rp->op.wait);
}

static bool goes_to(const struct objects *o, const struct peer_meta *m, uint16_t node)
{
    const struct map_group *g = group_map(o, m->oid.group);
    return g && map_group_has(g, node);
}

static void encode_for(struct replication *rp, struct copy_call *cc)
{
    unsigned n = 0;
    for (unsigned i = 0; i < rp->count; i++)
        n += goes_to(rp->o, &rp->metas[i], cc->node);
    enc_init(&cc->body);
    enc_u16(&cc->body, (uint16_t)n);
    for (unsigned i = 0; i < rp->count; i++)
        if (goes_to(rp->o, &rp->metas[i], cc->node))
            peer_meta_encode(&rp->metas[i], &cc->body);
}

/* One call for each other node that any of the metas goes to. -ENOMEM. */
static int make_calls(struct replication *rp)
{
    struct objects *o = rp->o;
    bool seen[MAP_NODE_COUNT_MAX] = {false};
    uint16_t nodes[MAP_NODE_COUNT_MAX];
    unsigned n = 0;
    for (unsigned i = 0; i < rp->count; i++) {
        const struct map_group *g = group_map(o, rp->metas[i].oid.group);
        for (unsigned k = 0; g && k < (unsigned)g->in_sync_count + g->joining_count; k++) {
            uint16_t node = k < g->in_sync_count ? g->in_sync[k] : g->joining[k - g->in_sync_count];
            if (node != o->self && node < MAP_NODE_COUNT_MAX && !seen[node]) {
                seen[node] = true;
                nodes[n++] = node;
            }
        }
    }
    rp->calls = calloc(n + 1, sizeof(rp->calls[0]));
    if (!rp->calls)
        return -ENOMEM;
    for (; rp->call_count < n; rp->call_count++) {
        struct copy_call *cc = &rp->calls[rp->call_count];
        cc->node = nodes[rp->call_count];
        call_init(&cc->call, PEER_META_APPLY, 0); /* without payload it cannot fail */
        encode_for(rp, cc);
        if (cc->body.error || cc->body.length > PEER_BODY_MAX || !node_get(o, cc->node)) {
            enc_done(&cc->body);
            return -ENOMEM;
        }
        cc->call.body = cc->body.data;
        cc->call.body_length = (uint32_t)cc->body.length;
        cc->call.done = copy_answered;
        cc->call.user = rp;
    }
    return 0;
}

static void submit_unanswered(struct replication *rp)
{
    for (unsigned i = 0; i < rp->call_count && !rp->o->stopping; i++) {
        struct copy_call *cc = &rp->calls[i];
        if (!cc->answered && !call_busy(&cc->call))
            link_submit(&node_get(rp->o, cc->node)->link, &cc->call);
    }
}

static bool all_answered(struct replication *rp)
{
    bool all = true;
    for (unsigned i = 0; i < rp->call_count; i++) {
        struct copy_call *cc = &rp->calls[i];
        if (!cc->answered && !call_busy(&cc->call) && cc->call.state == CALL_ANSWERED)
            cc->answered = cc->call.status == 0;
        all = all && cc->answered;
    }
    return all;
}

/* Own store, in the gates' order: entered before anything was sent. */
static fiber_fn int own_part(struct replication *rp)
{
    struct objects *o = rp->o;
    struct peer_meta *own = malloc(rp->count * sizeof(own[0]));
    unsigned n = 0;
    if (!own)
        return -ENOMEM;
    for (unsigned i = 0; i < rp->count; i++)
        if (goes_to(o, &rp->metas[i], (uint16_t)o->self))
            own[n++] = rp->metas[i];
    int r = n > 0 ? metas_apply_own(o, own, n) : 0;
    free(own);
    return r;
}

/* R4, too. */
static int enter_all(struct replication *rp)
{
    for (unsigned i = 0; i < rp->count; i++)
        if (!group_may_write(rp->o, rp->metas[i].oid.group))
            return -EAGAIN;
    for (unsigned i = 0; i < rp->count; i++) {
        if (gate_enter(rp->o, rp->metas[i].oid.group, rp->metas[i].epoch) < 0) {
            while (i > 0)
                gate_leave(rp->o, rp->metas[--i].oid.group);
            return -EAGAIN;
        }
    }
    return 0;
}

/* D3 */
static fiber_fn int complete_all(struct replication *rp)
{
    struct objects *o = rp->o;
    while (!all_answered(rp)) {
        if (!epochs_hold(rp))
            return -EAGAIN;
        if (op_cancelled(o, &rp->op))
            return -ECANCELED;
        if (waitq_wait_until(&rp->op.wait, o->rt, clock_now(o->rt) + POLL_NS) == -ETIMEDOUT)
            submit_unanswered(rp);
    }
    return epochs_hold(rp) ? 0 : -EAGAIN; /* W1: an answer counts for its epoch */
}

fiber_fn int metas_replicate(struct objects *o, const struct peer_meta *metas, unsigned count)
{
    struct replication rp = {.o = o, .metas = metas, .count = count};
    ASSERT(count > 0 && count <= PEER_META_COUNT_MAX);
    int r = make_calls(&rp);
    if (r == 0)
        r = enter_all(&rp);
    if (r == 0) {
        op_begin(o, &rp.op, NULL, "reclaim");
        rp.op.calls = &rp.calls[0].call;
        rp.op.call_size = sizeof(rp.calls[0]);
        rp.op.call_count = rp.call_count;
        submit_unanswered(&rp);
        int own = own_part(&rp);
        for (unsigned i = 0; i < count; i++)
            gate_leave(o, metas[i].oid.group);
        /* A store that fails has failed for good: the epoch will change. */
        while (own < 0 && epochs_hold(&rp) && !op_cancelled(o, &rp.op))
            waitq_wait_until(&rp.op.wait, o->rt, clock_now(o->rt) + POLL_NS);
        r = own < 0 ? -EAGAIN : complete_all(&rp);
        for (unsigned i = 0; i < rp.call_count; i++)
            if (call_busy(&rp.calls[i].call))
                link_cancel(&rp.calls[i].call);
        op_end(o, &rp.op);
    }
    for (unsigned i = 0; i < rp.call_count; i++) {
        call_done(&rp.calls[i].call);
        enc_done(&rp.calls[i].body);
    }
    free(rp.calls);
    return r;
}
