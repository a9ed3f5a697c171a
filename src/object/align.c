/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The primary's comparison of ledgers at a new epoch of a group, before it serves reference
 * requests there.
 *
 * N1 Only meta is levelled: per object the highest meta version of all in-sync nodes wins.
 *    Content belongs to owners.
 * N2 An index block that is dying at one node and gone at another was finished: it is removed
 *    everywhere. Any other object that is missing somewhere is left alone: whoever asked for its
 *    removal was not answered and asks again, and an operation on an absent object removes what is
 *    left (home.c D4).
 * N3 `aligned_epoch` is set only when all of this holds at one map version from beginning to
 *    end.
 */
#include <stdlib.h>
#include <string.h>
#include "object/listing.h"

#define LOG_MODULE "object"
#include "base/log.h"

#define POLL_NS (100 * NS_PER_MS)

void align_init(struct objects *o)
{
    waitq_init(&o->align_waiters);
}

fiber_fn int align_wait(struct objects *o, uint32_t group, uint64_t epoch)
{
    for (;;) {
        const struct group *g = group_get(o, group);
        if (o->stopping)
            return -ECANCELED;
        if (!g || g->epoch != epoch)
            return -EAGAIN;
        if (g->aligned_epoch == epoch)
            return 0;
        waitq_wait(&o->align_waiters);
    }
}

/* --- one group that differs --- */

struct copy {
    struct oid oid;
    uint64_t meta_version;
    unsigned node; /* index into aligning.nodes */
    uint8_t *meta; /* owned */
    size_t meta_length;
};

struct group_copies {
    unsigned node;
    struct copy *copies;
    size_t count, capacity;
};

static int add_copy(void *arg, const struct peer_entry *e)
{
    struct group_copies *gc = arg;
    if (e->tombstone)
        return 0;
    if (gc->count == gc->capacity) {
        size_t capacity = MAX((size_t)64, gc->capacity * 2);
        struct copy *copies = realloc(gc->copies, capacity * sizeof(copies[0]));
        if (!copies)
            return -ENOMEM;
        gc->copies = copies;
        gc->capacity = capacity;
    }
    struct copy c = {.oid = e->oid, .meta_version = e->meta_version, .node = gc->node};
    if (e->meta_length > 0) {
        c.meta = malloc(e->meta_length);
        if (!c.meta)
            return -ENOMEM;
        memcpy(c.meta, e->meta, e->meta_length);
        c.meta_length = e->meta_length;
    }
    gc->copies[gc->count++] = c;
    return 0;
}

static int compare_copy(const void *a, const void *b)
{
    const struct copy *x = a, *y = b;
    int r = oid_compare(&x->oid, &y->oid);
    if (r == 0)
        r = x->meta_version > y->meta_version ? -1 : x->meta_version < y->meta_version;
    return r;
}

static bool is_dying(const struct copy *c)
{
    struct ledger l;
    if (c->meta_length == 0 || ledger_decode(c->meta, c->meta_length, &l) < 0)
        return false;
    bool dying = l.state == LEDGER_DYING;
    ledger_done(&l);
    return dying;
}

static fiber_fn int send_meta(struct objects *o, uint16_t node, const struct peer_meta *m)
{
    struct enc e;
    struct call c;
    enc_init(&e);
    enc_u16(&e, 1);
    peer_meta_encode(m, &e);
    int r = e.error;
    call_init(&c, PEER_META_APPLY, 0); /* without payload it cannot fail */
    c.flags = CALL_FAIL_FAST | CALL_BOUND;
    c.body = e.data;
    c.body_length = (uint32_t)e.length;
    if (r == 0)
        r = node_call(o, node, &c, NULL, "comparing ledgers");
    call_done(&c);
    enc_done(&e);
    return r;
}

/* Copies of one object, the highest meta version first; `count` of the group's `members`. */
static fiber_fn int level_object(struct objects *o, const uint16_t *members, unsigned member_count,
                                 const struct copy *copies, size_t count, uint64_t epoch)
{
    const struct copy *best = &copies[0];
    struct peer_meta m = {
        .oid = best->oid,
        .epoch = epoch,
        .meta_version = best->meta_version,
        .meta = best->meta,
        .meta_length = best->meta_length,
    };
    m.remove = count < member_count && best->oid.level > 0 && is_dying(best); /* N2 */
    int r = 0;
    for (size_t i = 0; i < count && r == 0; i++)
        if (m.remove || copies[i].meta_version < best->meta_version) /* N1 */
            r = send_meta(o, members[copies[i].node], &m);
    return r;
}

static fiber_fn int level_copies(struct objects *o, const uint16_t *members, unsigned member_count,
                                 struct group_copies *gc, uint64_t epoch)
{
    int r = 0;
    if (gc->count > 1)
        qsort(gc->copies, gc->count, sizeof(gc->copies[0]), compare_copy);
    for (size_t i = 0; i < gc->count && r == 0;) {
        size_t end = i + 1;
        while (end < gc->count && oid_equal(&gc->copies[i].oid, &gc->copies[end].oid))
            end++;
        r = level_object(o, members, member_count, &gc->copies[i], end - i, epoch);
        i = end;
    }
    return r;
}

static fiber_fn int level_group(struct objects *o, uint32_t group, uint64_t epoch)
{
    const struct map_group *m = group_map(o, group);
    uint16_t members[MAP_GROUP_MEMBER_MAX];
    unsigned count = m->in_sync_count;
    memcpy(members, m->in_sync, count * sizeof(members[0]));
    struct group_copies gc = {.copies = NULL};
    int r = 0;
    for (unsigned i = 0; i < count && r == 0; i++) {
        gc.node = i;
        const struct listing l = {
            .node = members[i],
            /* groups without that node must not wait for it */
            .flags = CALL_FAIL_FAST | CALL_BOUND,
            .filter = {.flags = PEER_LIST_BY_GROUP | PEER_LIST_META, .group = (uint16_t)group},
            .fn = add_copy,
            .arg = &gc,
        };
        r = listing_run(o, &l, NULL, NULL);
    }
    if (r == 0)
        r = level_copies(o, members, count, &gc, epoch);
    for (size_t i = 0; i < gc.count; i++)
        free(gc.copies[i].meta);
    free(gc.copies);
    return r;
}

/* --- all groups at one map version --- */

struct digest_call {
    struct call call;
    uint16_t node;
    uint64_t *digests; /* in the order of aligning.groups; owned by aligning */
    uint32_t count;
};

struct aligning {
    struct objects *o;
    uint64_t map_version;
    uint32_t *groups;
    uint32_t group_count;
    struct enc body;
    struct digest_call *calls;
    unsigned call_count;
};

static int take_digests(struct call *c, const uint8_t *body, size_t length)
{
    struct digest_call *dc = container_of(c, struct digest_call, call);
    struct dec d;
    dec_init(&d, body, length);
    uint32_t count = dec_u32(&d);
    if (count != dc->count)
        return -EBADMSG;
    for (uint32_t i = 0; i < count; i++)
        dc->digests[i] = dec_u64(&d);
    return dec_finish(&d);
}

/* Groups that wait for this node and whose members are all alive: another has to wait for them
 * anyway. */
static int find_groups(struct aligning *a)
{
    struct objects *o = a->o;
    a->groups = calloc(o->map->group_count + 1, sizeof(a->groups[0]));
    if (!a->groups)
        return -ENOMEM;
    for (uint32_t i = 0; i < o->map->group_count; i++) {
        const struct map_group *m = &o->map->groups[i];
        if (o->groups[i].aligned_epoch == o->groups[i].epoch || !group_is_primary(m, o->self))
            continue;
        bool all_live = true;
        for (unsigned k = 0; k < m->in_sync_count; k++) {
            const struct map_node *n = map_node(o->map, m->in_sync[k]);
            all_live = all_live && n && n->number < MAP_NODE_COUNT_MAX && n->session.value != 0;
        }
        if (all_live)
            a->groups[a->group_count++] = i;
    }
    return 0;
}

static int make_calls(struct aligning *a)
{
    struct objects *o = a->o;
    bool seen[MAP_NODE_COUNT_MAX] = {false};
    unsigned n = 0;
    for (uint32_t i = 0; i < a->group_count; i++) {
        const struct map_group *m = group_map(o, a->groups[i]);
        for (unsigned k = 0; k < m->in_sync_count; k++) {
            n += !seen[m->in_sync[k]] && m->in_sync[k] != o->self;
            seen[m->in_sync[k]] = true;
        }
    }
    enc_init(&a->body);
    enc_u32(&a->body, a->group_count);
    for (uint32_t i = 0; i < a->group_count; i++)
        enc_u16(&a->body, (uint16_t)a->groups[i]);
    a->calls = calloc(n + 1, sizeof(a->calls[0]));
    if (!a->calls || a->body.error)
        return -ENOMEM;
    for (unsigned node = 0; node < MAP_NODE_COUNT_MAX; node++) {
        if (!seen[node] || (int)node == o->self)
            continue;
        struct digest_call *dc = &a->calls[a->call_count++];
        call_init(&dc->call, PEER_DIGESTS, 0); /* without payload it cannot fail */
        dc->node = (uint16_t)node;
        dc->count = a->group_count;
        dc->digests = calloc(a->group_count + 1, sizeof(dc->digests[0]));
        dc->call.body = a->body.data;
        dc->call.body_length = (uint32_t)a->body.length;
        dc->call.on_body = take_digests;
        if (!dc->digests)
            return -ENOMEM;
    }
    return 0;
}

/* Still the map that all of this is about? (N3) */
static bool holds(const struct aligning *a)
{
    return !a->o->stopping && a->o->map->version == a->map_version;
}

static fiber_fn int ask(struct aligning *a)
{
    struct objects *o = a->o;
    struct node_calls wait;
    struct call **calls = calloc(a->call_count + 1, sizeof(calls[0]));
    if (!calls)
        return -ENOMEM;
    node_calls_begin(o, &wait, NULL, "comparing ledgers");
    wait.op.calls = &a->calls[0].call;
    wait.op.call_size = sizeof(a->calls[0]);
    wait.op.call_count = a->call_count;
    for (unsigned i = 0; i < a->call_count; i++) {
        calls[i] = &a->calls[i].call;
        node_calls_add(o, &wait, a->calls[i].node, calls[i]);
    }
    while (wait.pending > 0 && holds(a))
        waitq_wait_until(&wait.op.wait, o->rt, clock_now(o->rt) + POLL_NS);
    int r = wait.pending == 0 ? 0 : -EAGAIN;
    for (unsigned i = 0; i < a->call_count; i++)
        if (call_busy(calls[i]))
            link_cancel(calls[i]);
    op_end(o, &wait.op);
    for (unsigned i = 0; i < a->call_count && r == 0; i++)
        r = calls[i]->status;
    free(calls);
    return holds(a) ? r : -EAGAIN;
}

static const uint64_t *digests_of(const struct aligning *a, uint16_t node)
{
    for (unsigned i = 0; i < a->call_count; i++)
        if (a->calls[i].node == node)
            return a->calls[i].digests;
    return NULL;
}

static bool differs(const struct aligning *a, uint32_t i)
{
    struct objects *o = a->o;
    const struct map_group *m = group_map(o, a->groups[i]);
    uint64_t own = store_digest(o->store, (uint16_t)a->groups[i]);
    for (unsigned k = 0; k < m->in_sync_count; k++) {
        if (m->in_sync[k] == o->self)
            continue;
        const uint64_t *digests = digests_of(a, m->in_sync[k]);
        if (!digests || digests[i] != own)
            return true;
    }
    return false;
}

static fiber_fn int level_all(struct aligning *a)
{
    struct objects *o = a->o;
    int r = 0;
    for (uint32_t i = 0; i < a->group_count && r == 0; i++) {
        if (!differs(a, i))
            continue;
        log_debug("group %u: the members' digests differ; comparing ledgers", a->groups[i]);
        r = level_group(o, a->groups[i], group_get(o, a->groups[i])->epoch);
        if (!holds(a))
            r = -EAGAIN;
    }
    if (r == 0)
        r = reclaim_scan(o, a->groups, a->group_count);
    return holds(a) ? r : -EAGAIN;
}

/* 0: all that can be aligned now is. */
static fiber_fn int align_once(struct objects *o)
{
    struct aligning a = {.o = o, .map_version = o->map->version};
    enc_init(&a.body);
    int r = find_groups(&a);
    if (r == 0 && a.group_count > 0) {
        r = make_calls(&a);
        if (r == 0)
            r = ask(&a);
        if (r == 0)
            r = level_all(&a);
        for (uint32_t i = 0; i < a.group_count && r == 0; i++)
            o->groups[a.groups[i]].aligned_epoch = o->groups[a.groups[i]].epoch;
    }
    for (unsigned i = 0; i < a.call_count; i++) {
        call_done(&a.calls[i].call);
        free(a.calls[i].digests);
    }
    free(a.calls);
    free(a.groups);
    enc_done(&a.body);
    return r;
}

static fiber_fn void align_main(void *arg)
{
    struct objects *o = arg;
    do {
        o->align_again = false;
        int r = align_once(o);
        waitq_wake_all(&o->align_waiters);
        reclaim_kick(o);
        if (r < 0 && !o->stopping) {
            o->align_again = true;
            if (r != -EAGAIN && r != -ECONNRESET)
                log_warn("comparing ledgers failed (%s); tried again", err_text(r));
            waitq_wait_until(&o->map_wait, o->rt, clock_now(o->rt) + POLL_NS);
        }
    } while (o->align_again && !o->stopping);
    o->align_running = false;
    objects_fiber_end(o);
}

void align_kick(struct objects *o)
{
    o->align_again = true;
    waitq_wake_all(&o->align_waiters);
    if (!o->align_running && !o->stopping)
        o->align_running = objects_spawn(o, "object-align", align_main, o) == 0;
}
