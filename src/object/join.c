/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which changes a joining node applies and which it notes, and when a group is complete; see
 * recovery.h for J1 to J5.
 */
#include <stdlib.h>
#include <string.h>
#include "object/recovery.h"

#define LOG_MODULE "object"
#include "base/log.h"

#define HELD_COUNT_MAX 128u              /* changes of one object that wait for its pull */
#define HELD_WAIT_NS   (600 * NS_PER_MS) /* then they are noted */

/* A change that waits for the pull of its object. */
struct held {
    struct list in_held;
    struct waitq wait;
};

/* --- the objects of one group --- */

static bool is_joining(const struct objects *o, uint32_t group)
{
    const struct map_group *g = group_map(o, group);
    for (unsigned i = 0; g && o->self >= 0 && i < g->joining_count; i++)
        if (g->joining[i] == o->self)
            return true;
    return false;
}

struct join_object *join_find(const struct join *j, const struct oid *oid)
{
    struct hnode *n = htable_first(&j->objects, oid_hash(oid));
    for (; n; n = htable_next_same(n)) {
        struct join_object *x = container_of(n, struct join_object, node);
        if (oid_equal(&x->oid, oid))
            return x;
    }
    return NULL;
}

/* J2 */
static bool is_clean(const struct join *j, const struct oid *oid)
{
    const struct join_object *x = join_find(j, oid);
    return x ? x->clean : j->listed;
}

static void object_free(struct join *j, struct join_object *x)
{
    ASSERT(list_empty(&x->held) && !x->busy);
    list_remove(&x->in_todo);
    htable_remove(&j->objects, &x->node);
    free(x);
}

/* A group with something to do is on the list of those that workers look at. */
static void activate(struct join *j)
{
    if (list_empty(&j->in_active))
        list_push_back(&j->o->joins.active, &j->in_active);
    pull_kick(j->o);
}

struct join_object *join_unclean(struct join *j, const struct oid *oid)
{
    struct join_object *x = join_find(j, oid);
    if (!x) {
        x = calloc(1, sizeof(*x));
        if (!x)
            return NULL;
        x->oid = *oid;
        list_init(&x->in_todo);
        list_init(&x->held);
        if (htable_insert(&j->objects, &x->node, oid_hash(oid)) < 0) {
            free(x);
            return NULL;
        }
        j->o->joins.objects_total++;
    }
    x->clean = false;
    if (!x->busy && list_empty(&x->in_todo)) {
        list_push_back(&j->todo, &x->in_todo);
        activate(j);
    }
    return x;
}

static void first_of_queue(struct join_object *x)
{
    if (!list_empty(&x->held))
        waitq_wake_all(&list_first(&x->held, struct held, in_held)->wait);
}

void join_wake_held(struct join_object *x)
{
    struct held *h;
    list_for_each (h, &x->held, in_held)
        waitq_wake_all(&h->wait);
}

/* Forgets a clean object that nobody waits for. */
static void settle(struct join *j, struct join_object *x)
{
    if (!x->clean || x->busy || !list_empty(&x->held))
        return;
    object_free(j, x);
    j->o->joins.objects_done++;
    join_check_complete(j);
}

void join_pulled(struct join *j, struct join_object *x, bool satisfied)
{
    x->busy = false;
    if (!satisfied) {
        list_push_back(&j->todo, &x->in_todo);
        return;
    }
    x->clean = true;
    x->holding = x->needs_gone = false;
    x->needs.value = x->meta_needs = 0;
    first_of_queue(x);
    settle(j, x);
}

void join_check_complete(struct join *j)
{
    if (j->dead || !j->listed || j->objects.count > 0)
        return;
    list_remove(&j->in_active);
    if (j->complete)
        return;
    j->complete = true; /* J3: before anything else is admitted */
    j->o->groups[j->group].joined_here = true;
    log_debug("group %u is complete at epoch %llu", j->group, (unsigned long long)j->epoch);
    tell_kick(j->o);
}

/* --- life --- */

void join_release(struct join *j)
{
    ASSERT(j->users > 0);
    if (--j->users == 0 && j->dead) {
        ASSERT(j->objects.count == 0);
        htable_done(&j->objects);
        free(j);
    }
}

/* J1. What workers have at the moment they free themselves. */
static void join_end(struct join *j)
{
    struct hnode *n = htable_iter(&j->objects, NULL);
    while (n) {
        struct hnode *next = htable_iter(&j->objects, n);
        struct join_object *x = container_of(n, struct join_object, node);
        ASSERT(list_empty(&x->held)); /* they were admitted, and the barrier has passed */
        j->o->joins.objects_total -= !x->clean && j->o->joins.objects_total > 0;
        if (!x->busy)
            object_free(j, x);
        n = next;
    }
    list_remove(&j->in_active);
    j->o->groups[j->group].join = NULL;
    j->dead = true;
    j->users++;
    join_release(j);
}

void join_object_orphaned(struct join *j, struct join_object *x)
{
    ASSERT(j->dead);
    x->busy = false;
    object_free(j, x);
}

static struct join *join_begin(struct objects *o, uint32_t group)
{
    struct join *j = calloc(1, sizeof(*j));
    if (!j)
        return NULL;
    j->o = o;
    j->group = group;
    j->epoch = o->groups[group].epoch;
    list_init(&j->in_active);
    list_init(&j->todo);
    htable_init(&j->objects);
    o->groups[group].join = j;
    o->groups[group].joined_here = false;
    return j;
}

/* Also when there was no memory for it before. */
static struct join *join_get(struct objects *o, uint32_t group)
{
    struct join *j = join_of(o, group);
    if (!j) {
        j = join_begin(o, group);
        if (j)
            activate(j);
    }
    return j;
}

static bool has_work(const struct join *j)
{
    return !j->listed || j->objects.count > 0;
}

void join_adopt(struct objects *o)
{
    unsigned joining = 0;
    for (uint32_t i = 0; i < o->group_count; i++) {
        struct join *j = join_of(o, i);
        bool joins = is_joining(o, i);
        if (j && (!joins || j->epoch != o->groups[i].epoch))
            join_end(j);
        if (joins && !join_of(o, i))
            join_begin(o, i);
        joining += joins;
        const struct map_group *m = group_map(o, i);
        if (m && o->self >= 0 && m->in_sync_count == 1 && m->in_sync[0] == o->self)
            o->groups[i].joined_here = true; /* there is nobody to compare with */
        if (join_of(o, i))
            list_remove(&join_of(o, i)->in_active);
    }
    o->joins.group_count = joining;
    if (joining > 0 && !o->joins.begun_ns) {
        o->joins.begun_ns = clock_now(o->rt);
        o->joins.objects_total = o->joins.objects_done = o->joins.bytes_done = 0;
        o->joins.bytes_per_s = o->joins.objects_per_ks = o->joins.sampled_ns = 0;
    }
    if (joining == 0)
        o->joins.begun_ns = 0;
    /* Most needed first. */
    for (unsigned need = 0; joining > 0 && need <= MAP_GROUP_MEMBER_MAX; need++)
        for (uint32_t i = 0; i < o->map->group_count; i++)
            if (join_of(o, i) && o->map->groups[i].in_sync_count == need && has_work(join_of(o, i)))
                list_push_back(&o->joins.active, &join_of(o, i)->in_active);
    pull_kick(o);
    tell_kick(o);
}

/* Nobody was compared with in groups that stayed in sync with others: they cannot tell. */
static bool all_compared(const struct objects *o)
{
    if (!gate_serving(o) || o->map->group_count == 0)
        return false;
    for (uint32_t i = 0; i < o->map->group_count; i++) {
        const struct map_group *g = &o->map->groups[i];
        if (map_group_has(g, (uint16_t)o->self) &&
            (!map_group_in_sync(g, (uint16_t)o->self) || !o->groups[i].joined_here))
            return false;
    }
    return true;
}

fiber_fn void join_mark_exact(struct objects *o)
{
    if (!store_is_inexact(o->store) || store_failed(o->store) || !all_compared(o))
        return;
    int r = store_mark_exact(o->store);
    if (r < 0)
        log_warn("the store cannot be marked exact yet: %s", err_text(r));
    else
        log_info("everything here has been compared with other nodes: the store is exact again");
}

void join_closing(struct objects *o)
{
    for (uint32_t i = 0; i < o->group_count; i++) {
        struct join *j = o->groups[i].closed ? join_of(o, i) : NULL;
        struct hnode *n = j ? htable_iter(&j->objects, NULL) : NULL;
        for (; n; n = htable_iter(&j->objects, n))
            join_wake_held(container_of(n, struct join_object, node));
    }
}

void join_init(struct objects *o)
{
    list_init(&o->joins.active);
    waitq_init(&o->joins.work);
}

void join_done(struct objects *o)
{
    for (uint32_t i = 0; i < o->group_count; i++)
        if (join_of(o, i))
            join_end(join_of(o, i));
}

/* --- changes --- */

/* J5. Waits behind the pull of x; x may be gone afterwards. */
static fiber_fn void hold(struct join *j, struct join_object *x)
{
    struct objects *o = j->o;
    struct held h;
    uint64_t deadline_ns = clock_now(o->rt) + HELD_WAIT_NS;
    waitq_init(&h.wait);
    list_push_back(&x->held, &h.in_held);
    x->held_count++;
    while (!o->stopping && !o->groups[j->group].closed &&
           (x->holding || list_first(&x->held, struct held, in_held) != &h)) {
        if (waitq_wait_until(&h.wait, o->rt, deadline_ns) == -ETIMEDOUT)
            break;
    }
    list_remove(&h.in_held);
    x->held_count--;
    first_of_queue(x);
    settle(j, x);
}

static int note(struct join *j, const struct store_change *c, uint16_t from)
{
    struct join_object *x = join_unclean(j, &c->oid);
    if (!x)
        return -ENOMEM;
    x->needs.value = MAX(x->needs.value, c->next.value);
    x->from = from;
    x->notes++;
    if (!x->noted_ns)
        x->noted_ns = clock_now(j->o->rt);
    return j->complete ? -EAGAIN : 0; /* J3 */
}

static fiber_fn int apply_or_note(struct join *j, const struct store_change *c, uint16_t from,
                                  struct version *ret_current)
{
    bool clean = is_clean(j, &c->oid) && (c->kind != STORE_CLONE || is_clean(j, &c->source));
    if (clean) {
        int r = store_apply(j->o->store, c, ret_current);
        if (r == 0 || r == -EIO || r == -ENOMEM || r == -EINVAL)
            return r;
        if (r == -ENOSPC && j->complete)
            return r;
    }
    /* Not compared; or this copy cannot be what the in-sync nodes have, or has no room. */
    return note(j, c, from);
}

fiber_fn int replica_apply(struct objects *o, const struct store_change *c, uint16_t from,
                           struct version *ret_current)
{
    if (!is_joining(o, c->oid.group))
        return store_apply(o->store, c, ret_current);
    struct join *j = join_get(o, c->oid.group);
    if (!j)
        return -ENOMEM;
    struct join_object *x = join_find(j, &c->oid);
    if (x && (x->holding || !list_empty(&x->held)) && x->held_count < HELD_COUNT_MAX)
        hold(j, x);
    return apply_or_note(j, c, from, ret_current);
}

int replica_note(struct objects *o, const struct oid *oid, struct version version,
                 enum copy_kind kind, uint16_t from)
{
    struct store_stat st;
    if (!is_joining(o, oid->group))
        return -EINVAL;
    struct join *j = join_get(o, oid->group);
    if (!j)
        return -ENOMEM;
    store_stat(o->store, oid, &st);
    bool same = kind == COPY_TOMBSTONE
                    ? st.version.value == 0 && st.tombstone.value == version.value
                    : st.version.value == version.value;
    if (same && is_clean(j, oid))
        return 0;
    struct join_object *x = join_unclean(j, oid);
    if (!x)
        return -ENOMEM;
    x->needs = version; /* also when less was noted before: the owner has decided */
    x->needs_gone = false;
    x->from = from;
    x->notes++;
    x->noted_ns = clock_now(o->rt);
    return j->complete ? -EAGAIN : 0; /* J3 */
}

int replica_meta(struct objects *o, const struct peer_meta *m)
{
    if (!is_joining(o, m->oid.group))
        return 0;
    struct join *j = join_get(o, m->oid.group);
    if (!j)
        return -ENOMEM;
    if (is_clean(j, &m->oid))
        return 0;
    struct join_object *x = join_unclean(j, &m->oid);
    if (!x)
        return -ENOMEM;
    if (m->remove)
        x->needs_gone = true;
    else
        x->meta_needs = MAX(x->meta_needs, m->meta_version);
    x->notes++;
    return j->complete ? -EAGAIN : 1; /* J3 */
}
