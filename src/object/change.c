/* SPDX-License-Identifier: Apache-2.0 */
/*
 * object_change(): one change on all members of its group.
 *
 * W1 Answered when every member has it durable; an answer counts only for the epoch it was given
 *    in: after an epoch change everything unanswered is sent again, in order, to all members.
 * W4 Per object, changes travel in the order of the calls. Links keep the order to other nodes, and
 * a change is given to one only when no earlier change of its object has yet to be sent to that
 * node at the present epoch; for the own store, group.changes is the order, and a change waits for
 * an earlier one of its object that has not been given to the store at this epoch. R4 With fewer
 * in-sync nodes than the pool's min_copies a change is not sent: it waits for an epoch with enough
 * of them. A1 The first answer with a result ends it for its member; refusals for the epoch and a
 *    member's own trouble (full, failed, away) do not: they are tried again.
 */
#include <stdlib.h>
#include <string.h>
#include "base/crc32c.h"
#include "object/object_internal.h"

#define LOG_MODULE "object"
#include "base/log.h"

#define RETRY_NS (250 * NS_PER_MS)

struct member {
    struct call call;
    struct change *change;
    uint16_t node;
    bool is_set_up; /* its call is good */
    bool wanted;    /* in the group at the present epoch */
    bool answered;  /* at the present epoch */
    bool parked;    /* refused: to be sent again */
    int result;
};

struct change {
    struct op op;
    struct list in_group;
    struct objects *o;
    const struct object_change *c;
    uint32_t group;
    uint64_t epoch; /* that answers count for */
    unsigned unanswered, parked_count;
    unsigned member_count;
    bool is_short;   /* R4: nobody is wanted */
    bool incomplete; /* some member could not be set up: nothing is complete before it is */
    bool local_wanted, local_answered, local_submitted;
    int local_result;
    uint32_t payload_length, payload_crc;
    uint32_t body_length;
    uint8_t body[PEER_CHANGE_BYTES_MAX];
    struct member members[MAP_GROUP_MEMBER_MAX]; /* of all epochs that it has seen */
};

/* --- results --- */

/* A1 */
static bool is_result(int status)
{
    return status == 0 || status == -ESTALE || status == -ENOENT || status == -EUCLEAN ||
           status == -EINVAL;
}

/* Of the in-sync nodes: joining ones only say that they have it. */
static int combine(const struct change *ch)
{
    const struct map_group *g = group_map(ch->o, ch->group);
    static const int rank[] = {0, -ENOENT, -EUCLEAN, -EINVAL, -ESTALE};
    bool all_equal = true;
    int first = 1;
    unsigned worst = 0;
    for (unsigned i = 0; i <= ch->member_count; i++) {
        const struct member *m = i < ch->member_count ? &ch->members[i] : NULL;
        uint16_t node = m ? m->node : (uint16_t)ch->o->self;
        if ((m ? !m->wanted : !ch->local_wanted) || !map_group_in_sync(g, node))
            continue;
        int result = m ? m->result : ch->local_result;
        first = first == 1 ? result : first;
        all_equal = all_equal && result == first;
        for (unsigned k = worst; k < ARRAY_SIZE(rank); k++)
            if (rank[k] == result)
                worst = k;
    }
    /* Some have it and some found no source: the copies differ. */
    if (!all_equal && rank[worst] == -ENOENT)
        return -ESTALE;
    return rank[worst];
}

/* --- members --- */

/* Keeps group.local_pending: how many changes want the own store and have not been given to it. */
static void local_state(struct change *ch, bool wanted, bool submitted)
{
    struct group *g = group_get(ch->o, ch->group);
    bool before = ch->local_wanted && !ch->local_submitted, after = wanted && !submitted;
    ASSERT(!before || g->local_pending > 0);
    g->local_pending += (uint32_t)after - (uint32_t)before;
    ch->local_wanted = wanted;
    ch->local_submitted = submitted;
}

static void unpark(struct member *m)
{
    if (!m->parked)
        return;
    m->parked = false;
    m->change->parked_count--;
}

static struct member *member_find(struct change *ch, uint16_t node)
{
    for (unsigned i = 0; i < ch->member_count; i++)
        if (ch->members[i].node == node && ch->members[i].is_set_up)
            return &ch->members[i];
    return NULL;
}

/* W4: must the node still be sent an earlier change of this object, at this epoch? One whose answer
 * of an older epoch is awaited will be. */
static bool earlier_waits(const struct member *m)
{
    struct change *ch = m->change, *other;
    const struct group *g = group_get(ch->o, ch->group);
    list_for_each (other, &g->changes, in_group) {
        if (other == ch)
            break;
        if (!oid_equal(&other->c->oid, &ch->c->oid))
            continue;
        const struct member *before = member_find(other, m->node);
        if (!before || !before->wanted) {
            if (other->incomplete)
                return true;
            continue;
        }
        bool is_sent = call_busy(&before->call) &&
                       (before->call.state == CALL_QUEUED || before->call.epoch_sent == g->epoch);
        if (!before->answered && !is_sent)
            return true;
    }
    return false;
}

static bool member_try(struct member *m)
{
    struct objects *o = m->change->o;
    struct node_state *n = node_get(o, m->node);
    unpark(m);
    if (n && !o->stopping && !earlier_waits(m)) {
        link_submit(&n->link, &m->call);
        return true;
    }
    m->parked = true;
    m->change->parked_count++;
    return false;
}

/* And those behind it that waited for it. */
static void member_submit(struct member *m)
{
    struct change *ch = m->change, *other;
    struct group *g = group_get(ch->o, ch->group);
    bool behind = false;
    if (!member_try(m))
        return;
    list_for_each (other, &g->changes, in_group) {
        struct member *later = behind ? member_find(other, m->node) : NULL;
        behind = behind || other == ch;
        if (later && later->wanted && later->parked && !call_busy(&later->call) &&
            oid_equal(&other->c->oid, &ch->c->oid) && !member_try(later))
            break;
    }
}

static void member_done(struct call *c)
{
    struct member *m = container_of(c, struct member, call);
    struct change *ch = m->change;
    if (!m->wanted) {
        waitq_wake_all(&ch->op.wait);
        return;
    }
    if (c->epoch_sent != ch->epoch) { /* W1 */
        if (c->epoch_sent < ch->epoch) {
            member_submit(m);
            return;
        }
        ASSERT(!"an answer of an epoch that we do not know");
    }
    if (is_result(c->status)) {
        m->answered = true;
        m->result = c->status;
        if (--ch->unanswered == 0)
            waitq_wake_all(&ch->op.wait);
        return;
    }
    m->parked = true;
    ch->parked_count++;
    waitq_wake_all(&ch->op.wait);
}

static int member_init(struct change *ch, struct member *m, uint16_t node)
{
    m->change = ch;
    m->node = node;
    m->wanted = true;
    m->answered = m->parked = false;
    m->result = 0;
    struct call *c = &m->call;
    int r = call_init(c, PEER_CHANGE, ch->c->iov_count);
    c->group = ch->group;
    c->body = ch->body;
    c->body_length = ch->body_length;
    c->payload = ch->c->iov;
    c->payload_length = ch->payload_length;
    c->payload_crc = ch->payload_crc;
    c->done = member_done;
    return r;
}

static bool lists(const struct map_group *g, unsigned i, uint16_t *ret_node)
{
    if (i < g->in_sync_count) {
        *ret_node = g->in_sync[i];
        return true;
    }
    i -= g->in_sync_count;
    if (i < g->joining_count) {
        *ret_node = g->joining[i];
        return true;
    }
    return false;
}

static bool is_listed(const struct map_group *g, uint16_t node)
{
    uint16_t other;
    for (unsigned i = 0; lists(g, i, &other); i++)
        if (other == node)
            return true;
    return false;
}

/* Room for one more member: new, or that of one that is not wanted any more. NULL: none now. */
static struct member *member_slot(struct change *ch, uint16_t node)
{
    struct member *m = NULL;
    for (unsigned i = 0; i < ch->member_count && !m; i++)
        if (!ch->members[i].wanted && !call_busy(&ch->members[i].call))
            m = &ch->members[i];
    if (m) {
        unpark(m);
        call_done(&m->call);
    } else if (ch->member_count < ARRAY_SIZE(ch->members)) {
        m = &ch->members[ch->member_count++];
    } else {
        return NULL;
    }
    int r = member_init(ch, m, node);
    m->wanted = m->is_set_up = r == 0;
    return r == 0 ? m : NULL;
}

/* Makes the present members the wanted ones, with nothing answered. */
static void members_set(struct change *ch)
{
    struct objects *o = ch->o;
    const struct map_group *g = group_map(o, ch->group);
    uint16_t node;
    ch->epoch = group_get(o, ch->group)->epoch;
    ch->unanswered = 0;
    ch->local_answered = ch->incomplete = false;
    ch->is_short = !group_may_write(o, ch->group);
    ch->op.short_group = ch->is_short ? (int)ch->group : -1;
    local_state(ch, !ch->is_short && o->self >= 0 && is_listed(g, (uint16_t)o->self), false);
    for (unsigned i = 0; i < ch->member_count; i++) {
        struct member *m = &ch->members[i];
        m->wanted = m->is_set_up && !ch->is_short && m->node != o->self && is_listed(g, m->node);
        m->answered = false;
    }
    for (unsigned i = 0; !ch->is_short && lists(g, i, &node); i++) {
        if (node == o->self)
            continue;
        struct member *m = member_find(ch, node);
        if (!m)
            m = member_slot(ch, node);
        ch->incomplete = ch->incomplete || !m;
        ch->unanswered += m != NULL;
    }
    ch->op.call_count = ch->member_count;
}

/* Sends to all that are not being asked already; an answer of an older epoch will cause its own
 * sending. */
static void members_submit(struct change *ch)
{
    for (unsigned i = 0; i < ch->member_count; i++) {
        struct member *m = &ch->members[i];
        if (m->wanted && !m->answered && !call_busy(&m->call))
            member_submit(m);
    }
}

void changes_on_epoch(struct objects *o, uint32_t group)
{
    struct group *g = group_get(o, group);
    struct change *ch;
    bool may_write = group_may_write(o, group);
    list_for_each (ch, &g->changes, in_group) {
        if (ch->epoch == g->epoch && ch->is_short == !may_write && !ch->incomplete)
            continue;
        members_set(ch);
        if (ch->incomplete)
            log_error("no memory to resend a change of group %u; it waits", group);
        members_submit(ch);
        waitq_wake_all(&ch->op.wait);
    }
}

bool change_is_underway(struct objects *o, const struct oid *oid)
{
    struct group *g = group_get(o, oid->group);
    struct change *ch;
    if (!g)
        return false;
    list_for_each (ch, &g->changes, in_group)
        if (oid_equal(&ch->c->oid, oid))
            return true;
    return false;
}

/* --- the own store --- */

/* W4: is there an earlier change of this object that the store has not seen at this epoch? */
static bool must_wait_for_earlier(struct change *ch, const struct group *g)
{
    if (g->local_pending <= 1) /* this one */
        return false;
    struct change *other;
    list_for_each (other, &g->changes, in_group) {
        if (other == ch)
            return false;
        if (!other->local_submitted && other->local_wanted &&
            oid_equal(&other->c->oid, &ch->c->oid))
            return true;
    }
    return false;
}

static void wake_later(struct change *ch, struct group *g)
{
    struct change *other = ch;
    list_for_each (other, &g->changes, in_group) {
        if (other != ch && !other->local_submitted && oid_equal(&other->c->oid, &ch->c->oid))
            waitq_wake_all(&other->op.wait);
    }
}

static fiber_fn int store_it(struct change *ch)
{
    const struct object_change *c = ch->c;
    struct store_extent extents[STORE_EXTENT_COUNT_MAX];
    for (unsigned i = 0; i < c->extent_count; i++)
        extents[i] = (struct store_extent){c->extents[i].offset, c->extents[i].length};
    static const enum store_change_kind kinds[] = {
        [OBJECT_WRITE] = STORE_WRITE,
        [OBJECT_CLONE] = STORE_CLONE,
        [OBJECT_PUNCH] = STORE_PUNCH,
        [OBJECT_REMOVE] = STORE_REMOVE,
    };
    const struct store_change change = {
        .kind = kinds[c->kind],
        .oid = c->oid,
        .source = c->source,
        .prev = c->prev,
        .next = c->next,
        .extents = extents,
        .extent_count = c->extent_count,
        .iov = c->iov_count ? c->iov : NULL,
        .iov_count = c->iov_count,
    };
    ch->o->foreground++;
    int r = replica_apply(ch->o, &change, (uint16_t)ch->o->self, NULL);
    ch->o->foreground--;
    return r;
}

/* Gives the change to the own store, if that may be now. False: wait and try again. */
static fiber_fn bool local_try(struct change *ch)
{
    struct objects *o = ch->o;
    struct group *g = group_get(o, ch->group);
    uint64_t epoch = ch->epoch;
    if (must_wait_for_earlier(ch, g) || gate_enter(o, ch->group, epoch) < 0)
        return false;
    local_state(ch, true, true);
    if (g->local_pending > 0)
        wake_later(ch, g);
    int r = store_it(ch);
    gate_leave(o, ch->group);
    if (ch->epoch != epoch)
        return false;
    if (is_result(r)) {
        ch->local_answered = true;
        ch->local_result = r;
        return true;
    }
    /* A1: own store full or failed. */
    local_state(ch, true, false);
    return false;
}

/* --- the call --- */

static uint64_t payload_bytes(const struct object_change *c)
{
    uint64_t sum = 0;
    if (c->kind == OBJECT_PUNCH || c->kind == OBJECT_REMOVE)
        return 0;
    for (unsigned i = 0; i < c->extent_count; i++)
        sum += c->extents[i].length;
    return sum;
}

static int encode(struct change *ch, const struct object_owner *owner)
{
    const struct object_change *c = ch->c;
    struct peer_change pc = {
        .owner = {owner->volume, owner->term, owner->stable, owner->vid},
        .oid = c->oid,
        .source = c->source,
        .prev = c->prev,
        .next = c->next,
        .extent_count = c->extent_count,
    };
    static const enum peer_change_kind kinds[] = {
        [OBJECT_WRITE] = PEER_CHANGE_WRITE,
        [OBJECT_CLONE] = PEER_CHANGE_CLONE,
        [OBJECT_PUNCH] = PEER_CHANGE_PUNCH,
        [OBJECT_REMOVE] = PEER_CHANGE_REMOVE,
    };
    pc.kind = kinds[c->kind];
    for (unsigned i = 0; i < c->extent_count; i++)
        pc.extents[i] = (struct peer_extent){c->extents[i].offset, c->extents[i].length};
    ch->body_length = (uint32_t)peer_change_put(ch->body, &pc);
    ch->payload_length = (uint32_t)payload_bytes(c);
    ch->payload_crc = 0;
    uint64_t sum = 0;
    for (unsigned i = 0; i < c->iov_count; i++) {
        ch->payload_crc = crc32c(ch->payload_crc, c->iov[i].iov_base, c->iov[i].iov_len);
        sum += c->iov[i].iov_len;
    }
    ASSERT(sum == ch->payload_length);
    if (!change_is_valid(&pc, ch->payload_length))
        return -EINVAL;
    return floors_note(ch->o, &pc.owner);
}

/* W6: true when some member has no room for that many more bytes. Asks it again, so that a full
 * cluster notices when it is not full any more. */
static bool is_full(struct objects *o, const struct map_group *g, uint64_t bytes)
{
    bool full = false;
    uint64_t need = o->write_bytes_inflight + bytes;
    for (unsigned i = 0; i < g->in_sync_count; i++) {
        if (g->in_sync[i] == o->self) {
            if (own_free_bytes(o) < need) {
                o->free_uses = 0;
                full = own_free_bytes(o) < need || full;
            }
            continue;
        }
        struct node_state *n = node_get(o, g->in_sync[i]);
        if (!n || n->free_bytes >= need)
            continue;
        full = true;
        node_ping(o, n);
    }
    return full;
}

static bool complete(const struct change *ch)
{
    return !ch->is_short && !ch->incomplete && ch->unanswered == 0 &&
           (!ch->local_wanted || ch->local_answered) && ch->epoch == ch->o->groups[ch->group].epoch;
}

static fiber_fn int drive(struct change *ch)
{
    struct objects *o = ch->o;
    for (;;) {
        bool local_waits = false;
        if (ch->local_wanted && !ch->local_answered && !ch->local_submitted)
            local_waits = !local_try(ch);
        if (complete(ch))
            return 0;
        if (op_cancelled(o, &ch->op))
            return -ECANCELED;
        if (ch->parked_count == 0 && !local_waits && !ch->incomplete) {
            waitq_wait(&ch->op.wait);
            continue;
        }
        if (waitq_wait_until(&ch->op.wait, o->rt, clock_now(o->rt) + RETRY_NS) == -ETIMEDOUT) {
            if (ch->incomplete)
                members_set(ch);
            members_submit(ch);
        }
    }
}

/* C1 for a change: no call of it is under way afterwards. */
static fiber_fn void finish(struct change *ch)
{
    /* First off the list: cancelling suspends, and a new epoch would send it again. */
    struct group *g = group_get(ch->o, ch->group);
    local_state(ch, ch->local_wanted, true);
    list_remove(&ch->in_group);
    if (g->local_pending > 0)
        wake_later(ch, g);
    for (unsigned i = 0; i < ch->member_count; i++)
        ch->members[i].wanted = false;
    for (unsigned i = 0; i < ch->member_count; i++) {
        if (call_busy(&ch->members[i].call))
            link_cancel(&ch->members[i].call);
        call_done(&ch->members[i].call);
    }
}

fiber_fn int object_change(struct objects *o, const struct object_owner *owner,
                           const struct object_change *c)
{
    ASSERT(c->extent_count <= OBJECT_EXTENT_COUNT_MAX && c->next.value > 0);
    struct group *g = group_get(o, c->oid.group);
    uint64_t bytes = payload_bytes(c);
    if (!g || c->oid.group >= o->map->group_count)
        return -EINVAL;
    if (o->stopping || owner->cancelled)
        return -ECANCELED;
    /* Index blocks may use the margin: opening, discarding and deleting go on when all is full. */
    if (c->oid.level == 0 && (c->kind == OBJECT_WRITE || c->kind == OBJECT_CLONE) &&
        is_full(o, group_map(o, c->oid.group), bytes))
        return -ENOSPC;
    struct change ch;
    ch.o = o;
    ch.c = c;
    ch.group = c->oid.group;
    ch.member_count = ch.parked_count = 0;
    ch.local_wanted = ch.local_submitted = ch.local_answered = false;
    ch.local_result = 0;
    int r = encode(&ch, owner);
    if (r < 0)
        return r;
    op_begin(o, &ch.op, owner,
             c->kind == OBJECT_REMOVE || c->kind == OBJECT_PUNCH ? "discards" : "writes");
    list_push_back(&g->changes, &ch.in_group);
    o->write_bytes_inflight += bytes;
    ch.op.calls = &ch.members[0].call;
    ch.op.call_size = sizeof(ch.members[0]);
    members_set(&ch);
    members_submit(&ch);
    r = drive(&ch);
    if (r == 0)
        r = combine(&ch); /* finish() forgets who was wanted */
    finish(&ch);
    o->write_bytes_inflight -= bytes;
    op_end(o, &ch.op);
    return r;
}
