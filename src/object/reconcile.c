/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Evening out the copies of a volume's own objects (replication.md L3, W7).
 *
 * Z1 All in-sync nodes of a group are asked at one epoch of it; what was told of groups whose epoch
 *    changes meanwhile is asked again. So no copy is judged by a member that had not passed the
 *    barrier of the epoch that the others were asked at. What is found settled stays so: who
 *    enters in_sync later has everything that was settled before.
 * Z3 Joining nodes are not asked, but told what every object found is now (W2): what they have
 *    compared before the copies were equal, or have applied of the dead owner, is compared again.
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

/* Z3 */
static fiber_fn int tell_joining(struct objects *o, const struct oid *oid,
                                 const struct object_owner *owner, const struct choice *c)
{
    const struct map_group *m = group_map(o, oid->group);
    uint16_t nodes[MAP_GROUP_MEMBER_MAX];
    unsigned count = m ? m->joining_count : 0;
    int r = 0;
    for (unsigned i = 0; i < count; i++)
        nodes[i] = m->joining[i];
    for (unsigned i = 0; i < count && r == 0; i++)
        r = copy_note(o, nodes[i], oid, c->version, c->tombstone ? COPY_TOMBSTONE : COPY_OBJECT,
                      owner);
    return r;
}

static fiber_fn int even_out_once(struct objects *o, const struct oid *oid,
                                  const struct object_owner *owner, struct object_found *ret)
{
    struct copies cs;
    if (oid->group >= o->group_count)
        return -EINVAL;
    uint64_t epoch = o->groups[oid->group].epoch;
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
    if (r == 0)
        r = tell_joining(o, oid, owner, &c);
    if (r == 0 && o->groups[oid->group].epoch != epoch) /* Z1 */
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
    uint32_t group_count;
    uint64_t *epochs; /* of each group when this round began; 0: settled in an earlier round */
    struct told *told;
    size_t count, capacity;
    struct object_found *found; /* one per object */
    bool *uneven;
    size_t found_count;
    /* the workers */
    size_t next;
    unsigned running;
    struct waitq idle;
    int error;
    /* of all rounds */
    struct object_found *settled;
    size_t settled_count;
};

static int add_told(void *arg, const struct peer_entry *e)
{
    struct finding *f = arg;
    if (e->oid.group >= f->group_count || f->epochs[e->oid.group] == 0)
        return 0;
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

/* In-sync nodes of groups that are not settled. */
static unsigned members_of_all(const struct finding *f, uint16_t *ret)
{
    const struct objects *o = f->o;
    bool seen[MAP_NODE_COUNT_MAX] = {false};
    unsigned n = 0;
    for (uint32_t i = 0; i < f->group_count; i++) {
        const struct map_group *m = &o->map->groups[i];
        for (unsigned k = 0; f->epochs[i] != 0 && k < m->in_sync_count; k++) {
            if (m->in_sync[k] < MAP_NODE_COUNT_MAX && !seen[m->in_sync[k]]) {
                seen[m->in_sync[k]] = true;
                ret[n++] = m->in_sync[k];
            }
        }
    }
    return n;
}

/* Begins a round: what is asked now counts for the present epochs. */
static int begin_round(struct finding *f)
{
    struct objects *o = f->o;
    if (!f->epochs) {
        f->group_count = o->map->group_count;
        f->epochs = malloc((f->group_count + 1u) * sizeof(f->epochs[0]));
        if (!f->epochs)
            return -ENOMEM;
        for (uint32_t i = 0; i < f->group_count; i++)
            f->epochs[i] = 1;
    }
    for (uint32_t i = 0; i < f->group_count; i++)
        if (f->epochs[i] != 0)
            f->epochs[i] = o->groups[i].epoch;
    f->count = f->found_count = f->next = 0;
    free(f->found);
    free(f->uneven);
    f->found = NULL;
    f->uneven = NULL;
    return 0;
}

/* Z1 for that group, after a round of questions. */
static bool holds(const struct finding *f, uint32_t group)
{
    return f->epochs[group] != 0 && f->o->groups[group].epoch == f->epochs[group];
}

static fiber_fn int ask_all(struct finding *f, struct vid vid, struct version above)
{
    struct objects *o = f->o;
    uint16_t nodes[MAP_NODE_COUNT_MAX];
    unsigned n = members_of_all(f, nodes);
    uint64_t highest = 0;
    for (unsigned i = 0; i < n; i++) {
        uint64_t version;
        const struct listing l = {
            .node = nodes[i],
            .flags = CALL_BOUND,
            .filter = {.flags = PEER_LIST_BY_VID, .vid = vid, .above = above},
            .fn = add_told,
            .arg = f,
        };
        int r = listing_run(o, &l, f->owner, &version);
        if (r < 0)
            return r;
        highest = MAX(highest, version);
    }
    /* Only a map as new as the newest answer tells which epochs these were given in. */
    return gate_wait_map(o, highest, &f->owner->cancelled);
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
        size_t end = i, first = i;
        while (end < f->count && oid_equal(&f->told[end].oid, &f->told[i].oid)) {
            if (n < MAP_GROUP_MEMBER_MAX)
                states[n++] = f->told[end].state;
            end++;
        }
        i = end;
        if (!holds(f, f->told[first].oid.group))
            continue;
        struct choice c;
        choose_copy(states, n, &c);
        const struct map_group *m = group_map(o, f->told[first].oid.group);
        bool uneven = !m || n < m->in_sync_count || m->joining_count > 0; /* Z3 */
        for (unsigned k = 0; k < n; k++)
            uneven = uneven || choose_action(&c, &states[k]) != COPY_KEEP;
        f->uneven[f->found_count] = uneven;
        f->found[f->found_count++] = (struct object_found){
            .oid = f->told[first].oid,
            .version = c.version,
            .tombstone = c.tombstone,
            .empty = f->told[first + c.donor].empty && !c.tombstone,
        };
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

/* Keeps what this round has found; `done` are its groups. */
static int settle(struct finding *f, const bool *done, bool *ret_all)
{
    struct object_found *all =
        realloc(f->settled, (f->settled_count + f->found_count + 1) * sizeof(f->settled[0]));
    if (!all)
        return -ENOMEM;
    memcpy(all + f->settled_count, f->found, f->found_count * sizeof(all[0]));
    f->settled = all;
    f->settled_count += f->found_count;
    *ret_all = true;
    for (uint32_t i = 0; i < f->group_count; i++) {
        if (done[i])
            f->epochs[i] = 0;
        *ret_all = *ret_all && f->epochs[i] == 0;
    }
    return 0;
}

static void finding_done(struct finding *f)
{
    free(f->epochs);
    free(f->told);
    free(f->found);
    free(f->uneven);
    free(f->settled);
}

/* 0: everything is settled. -EAGAIN: groups are left. */
static fiber_fn int round_once(struct finding *f, struct vid vid, struct version above)
{
    bool all = false, *done = NULL;
    f->error = 0;
    int r = begin_round(f);
    if (r == 0)
        r = ask_all(f, vid, above);
    if (r == 0) {
        done = calloc(f->group_count + 1u, sizeof(done[0]));
        r = done ? merge(f) : -ENOMEM;
    }
    for (uint32_t i = 0; r == 0 && i < f->group_count; i++)
        done[i] = holds(f, i);
    if (r == 0)
        r = even_out_all(f);
    if (r == 0)
        r = settle(f, done, &all);
    free(done);
    return r == 0 && !all ? -EAGAIN : r;
}

static int compare_found(const void *a, const void *b)
{
    return oid_compare(&((const struct object_found *)a)->oid,
                       &((const struct object_found *)b)->oid);
}

fiber_fn int object_reconcile(struct objects *o, const struct object_owner *owner, struct vid vid,
                              struct version above,
                              void (*fn)(void *arg, const struct object_found *f), void *arg)
{
    struct finding f = {.o = o, .owner = owner};
    waitq_init(&f.idle);
    int r;
    while ((r = round_once(&f, vid, above)) < 0) {
        if (r == -ECANCELED || !may_go_on(o, owner)) {
            r = -ECANCELED;
            break;
        }
        if (r != -EAGAIN)
            log_warn("reconciling vid %llx: %s; tried again", (unsigned long long)vid.value,
                     err_text(r));
        waitq_wait_until(&o->map_wait, o->rt, clock_now(o->rt) + RETRY_NS);
    }
    if (r == 0 && f.settled_count > 1)
        qsort(f.settled, f.settled_count, sizeof(f.settled[0]), compare_found);
    for (size_t i = 0; i < f.settled_count && r == 0; i++)
        fn(arg, &f.settled[i]);
    finding_done(&f);
    return r;
}
