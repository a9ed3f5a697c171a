/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Evening out the copies of a volume's own objects (replication.md L3, W7).
 *
 * Z1 All in-sync nodes are asked at one map version; if it changes meanwhile, everything is
 *    asked again. So no copy is judged by a member that had not passed the barrier of the epoch
 *    that the others were asked at.
 * Z2 The caller makes sure that nobody changes these objects meanwhile (it is the only owner,
 *    and holds its requests).
 */
#include <stdlib.h>
#include <string.h>
#include "object/choose.h"
#include "object/listing.h"

#define LOG_MODULE "object"
#include "base/log.h"

#define RETRY_NS     (50 * NS_PER_MS)
#define PARALLEL_MAX 8u

/* --- one object --- */

struct copies {
    unsigned count;
    uint16_t nodes[MAP_GROUP_MEMBER_MAX];
    struct peer_entry entries[MAP_GROUP_MEMBER_MAX];
    struct copy_state states[MAP_GROUP_MEMBER_MAX];
};

static fiber_fn int stat_all(struct objects *o, const struct oid *oid,
                             const struct object_owner *owner, struct copies *cs)
{
    const struct map_group *m = group_map(o, oid->group);
    if (!m)
        return -EINVAL;
    cs->count = m->in_sync_count;
    memcpy(cs->nodes, m->in_sync, cs->count * sizeof(cs->nodes[0]));
    for (unsigned i = 0; i < cs->count; i++) {
        int r = copy_stat(o, cs->nodes[i], oid, owner, &cs->entries[i]);
        if (r < 0)
            return r;
        cs->states[i] = (struct copy_state){cs->entries[i].version, cs->entries[i].tombstone};
    }
    return cs->count > 0 ? 0 : -EAGAIN;
}

/* Reads from the donors that have the winner until one can be read. */
static fiber_fn int install_from_any(struct objects *o, const struct oid *oid,
                                     const struct object_owner *owner, const struct copies *cs,
                                     const struct choice *c, unsigned to)
{
    const struct copy_state *s = &cs->states[to];
    struct version prev = s->tombstone ? (struct version){0} : s->version;
    int r = -EAGAIN;
    for (unsigned i = 0; i < cs->count; i++) {
        if (choose_action(c, &cs->states[i]) != COPY_KEEP)
            continue;
        r = copy_install(o, cs->nodes[to], cs->nodes[i], oid, prev, c->version, cs->entries[i].end,
                         owner);
        if (r == 0)
            return 0;
    }
    return r;
}

static fiber_fn int even_out_once(struct objects *o, const struct oid *oid,
                                  const struct object_owner *owner, struct object_found *ret)
{
    struct copies cs;
    uint64_t version = o->map->version;
    int r = stat_all(o, oid, owner, &cs);
    if (r < 0)
        return r;
    struct choice c;
    choose_copy(cs.states, cs.count, &c);
    for (unsigned i = 0; i < cs.count && r == 0; i++) {
        switch (choose_action(&c, &cs.states[i])) {
        case COPY_KEEP:
            break;
        case COPY_REMOVE:
            r = copy_remove(o, cs.nodes[i], oid, cs.states[i].version, c.version, owner);
            break;
        case COPY_INSTALL:
            r = install_from_any(o, oid, owner, &cs, &c, i);
            break;
        }
    }
    *ret = (struct object_found){
        .oid = *oid,
        .version = c.version,
        .tombstone = c.tombstone,
        .empty = c.version.value != 0 && !c.tombstone && cs.entries[c.donor].empty,
    };
    if (r == 0 && o->map->version != version) /* Z1 */
        return -EAGAIN;
    return r;
}

static bool may_go_on(const struct objects *o, const struct object_owner *owner)
{
    return !o->stopping && !owner->cancelled && !rt_stopping(o->rt);
}

/* Until it works, or the owner gives up. */
static fiber_fn int even_out(struct objects *o, const struct oid *oid,
                             const struct object_owner *owner, struct object_found *ret)
{
    bool told = false;
    for (;;) {
        int r = even_out_once(o, oid, owner, ret);
        if (r == 0 || r == -EINVAL)
            return r;
        if (!may_go_on(o, owner))
            return -ECANCELED;
        if (r != -EAGAIN && r != -ESTALE && !told) {
            char name[OID_TEXT_SIZE];
            log_warn("the copies of object %s cannot be made equal yet: %s", oid_format(oid, name),
                     err_text(r));
            told = true;
        }
        waitq_wait_until(&o->map_wait, o->rt, clock_now(o->rt) + RETRY_NS);
    }
}

fiber_fn int object_reconcile_one(struct objects *o, const struct object_owner *owner,
                                  const struct oid *oid, struct object_found *ret)
{
    return even_out(o, oid, owner, ret);
}

/* --- a whole vid --- */

/* What one node told of one object. */
struct told {
    struct oid oid;
    struct copy_state state;
    bool empty;
};

struct finding {
    struct objects *o;
    const struct object_owner *owner;
    struct told *told;
    size_t count, capacity;
    struct object_found *found; /* one per object, in oid order */
    bool *uneven;
    size_t found_count;
    /* the workers */
    size_t next;
    unsigned running;
    struct waitq idle;
    int error;
};

static int add_told(void *arg, const struct peer_entry *e)
{
    struct finding *f = arg;
    if (f->count == f->capacity) {
        size_t capacity = MAX((size_t)256, f->capacity * 2);
        struct told *told = realloc(f->told, capacity * sizeof(told[0]));
        if (!told)
            return -ENOMEM;
        f->told = told;
        f->capacity = capacity;
    }
    f->told[f->count++] =
        (struct told){.oid = e->oid, .state = {e->version, e->tombstone}, .empty = e->empty};
    return 0;
}

static int compare_told(const void *a, const void *b)
{
    return oid_compare(&((const struct told *)a)->oid, &((const struct told *)b)->oid);
}

/* Nodes that hold anything. */
static unsigned members_of_all(const struct objects *o, uint16_t *ret)
{
    bool seen[MAP_NODE_COUNT_MAX] = {false};
    unsigned n = 0;
    for (uint32_t i = 0; i < o->map->group_count; i++) {
        const struct map_group *m = &o->map->groups[i];
        for (unsigned k = 0; k < m->in_sync_count; k++) {
            if (m->in_sync[k] < MAP_NODE_COUNT_MAX && !seen[m->in_sync[k]]) {
                seen[m->in_sync[k]] = true;
                ret[n++] = m->in_sync[k];
            }
        }
    }
    return n;
}

/* Z1. -EAGAIN: ask again. */
static fiber_fn int ask_all(struct finding *f, struct vid vid, struct version above)
{
    struct objects *o = f->o;
    uint16_t nodes[MAP_NODE_COUNT_MAX];
    unsigned n = members_of_all(o, nodes);
    uint64_t version = o->map->version;
    f->count = 0;
    for (unsigned i = 0; i < n; i++) {
        uint64_t lowest;
        const struct listing l = {
            .node = nodes[i],
            .flags = CALL_BOUND,
            .filter = {.flags = PEER_LIST_BY_VID, .vid = vid, .above = above},
            .fn = add_told,
            .arg = f,
        };
        int r = listing_run(o, &l, f->owner, &lowest);
        if (r < 0)
            return r;
        if (lowest != version || o->map->version != version)
            return -EAGAIN;
    }
    return 0;
}

/* Groups what was told by object, and finds those whose copies differ. */
static int merge(struct finding *f)
{
    struct objects *o = f->o;
    if (f->count > 1)
        qsort(f->told, f->count, sizeof(f->told[0]), compare_told);
    f->found = calloc(f->count + 1, sizeof(f->found[0]));
    f->uneven = calloc(f->count + 1, sizeof(f->uneven[0]));
    if (!f->found || !f->uneven)
        return -ENOMEM;
    for (size_t i = 0; i < f->count;) {
        struct copy_state states[MAP_GROUP_MEMBER_MAX];
        unsigned n = 0;
        size_t end = i;
        while (end < f->count && oid_equal(&f->told[end].oid, &f->told[i].oid)) {
            if (n < MAP_GROUP_MEMBER_MAX)
                states[n++] = f->told[end].state;
            end++;
        }
        struct choice c;
        choose_copy(states, n, &c);
        const struct map_group *m = group_map(o, f->told[i].oid.group);
        bool uneven = !m || n < m->in_sync_count;
        for (unsigned k = 0; k < n; k++)
            uneven = uneven || choose_action(&c, &states[k]) != COPY_KEEP;
        f->uneven[f->found_count] = uneven;
        f->found[f->found_count++] = (struct object_found){
            .oid = f->told[i].oid,
            .version = c.version,
            .tombstone = c.tombstone,
            .empty = f->told[i + c.donor].empty && !c.tombstone,
        };
        i = end;
    }
    return 0;
}

static fiber_fn void even_out_some(struct finding *f)
{
    while (f->next < f->found_count && f->error == 0) {
        size_t i = f->next++;
        if (!f->uneven[i])
            continue;
        int r = even_out(f->o, &f->found[i].oid, f->owner, &f->found[i]);
        if (r < 0 && f->error == 0)
            f->error = r;
    }
}

static fiber_fn void worker_main(void *arg)
{
    struct finding *f = arg;
    struct objects *o = f->o;
    even_out_some(f);
    if (--f->running == 0)
        waitq_wake_all(&f->idle);
    objects_fiber_end(o);
}

static fiber_fn int even_out_all(struct finding *f)
{
    size_t uneven = 0;
    for (size_t i = 0; i < f->found_count; i++)
        uneven += f->uneven[i];
    for (unsigned i = 1; i < PARALLEL_MAX && i < uneven; i++)
        if (objects_spawn(f->o, "object-reconcile", worker_main, f) == 0)
            f->running++;
    even_out_some(f);
    while (f->running > 0)
        waitq_wait(&f->idle);
    return f->error;
}

static void finding_done(struct finding *f)
{
    free(f->told);
    free(f->found);
    free(f->uneven);
}

static fiber_fn int reconcile_once(struct finding *f, struct vid vid, struct version above)
{
    uint64_t version = f->o->map->version;
    int r = ask_all(f, vid, above);
    if (r == 0)
        r = merge(f);
    if (r == 0)
        r = even_out_all(f);
    if (r == 0 && f->o->map->version != version)
        r = -EAGAIN; /* Z1 */
    return r;
}

fiber_fn int object_reconcile(struct objects *o, const struct object_owner *owner, struct vid vid,
                              struct version above,
                              void (*fn)(void *arg, const struct object_found *f), void *arg)
{
    for (;;) {
        struct finding f = {.o = o, .owner = owner};
        waitq_init(&f.idle);
        int r = reconcile_once(&f, vid, above);
        for (size_t i = 0; i < f.found_count && r == 0; i++)
            fn(arg, &f.found[i]);
        finding_done(&f);
        if (r == 0)
            return 0;
        if (r == -ECANCELED || !may_go_on(o, owner))
            return -ECANCELED;
        if (r != -EAGAIN)
            log_warn("reconciling vid %llx: %s; tried again", (unsigned long long)vid.value,
                     err_text(r));
        waitq_wait_until(&o->map_wait, o->rt, clock_now(o->rt) + RETRY_NS);
    }
}
