/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The next sets of every group: who leaves in_sync, who joins, who enters (R1, R2, R5).
 *
 * S1 in_sync is never empty. Every node of it holds everything that was answered.
 * S2 A node enters in_sync only from joining, with a report of its present session for exactly the
 *    epoch that the group has in the present map (R2).
 * S3 A node without a session, or with a trouble (R1b), leaves in_sync unless no other node would
 *    be left there that is live and well: then all stay, until one of them is (R1).
 * S4 Moving never makes redundancy less: who is no target leaves only while more than `copies` live
 *    nodes are in sync, and every target that can be is in sync (R5).
 * S5 last_full is in_sync of the last epoch with at least min_copies of them.
 * S6 The epoch is the version exactly when the sets or a member's session changed (R6); and, where
 *    nodes are joining, when any session has left: what they have compared or taken down of its
 *    changes may never be answered, so they compare anew (W2).
 * S7 A node whose store may lack something leaves in_sync as long as any other one stays, dead or
 *    alive, and last_full likewise. If all of in_sync are such nodes, those that last_full still
 *    lists take their place.
 * S8 A node that was given up leaves; if it was the last one, all that last_full still lists take
 *    its place: they have everything, too. If those are given up as well, the node that an
 *    administrator named with the loss accepted takes it, and nobody else.
 */
#include "cluster/map_sets.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "cluster/map_targets.h"

#define SET_MAX (3 * MAP_GROUP_MEMBER_MAX)

struct set {
    uint16_t nodes[SET_MAX];
    unsigned count;
};

static void set_add(struct set *s, uint16_t node)
{
    ASSERT(s->count < SET_MAX);
    s->nodes[s->count++] = node;
}

static bool set_has(const struct set *s, uint16_t node)
{
    for (unsigned i = 0; i < s->count; i++) {
        if (s->nodes[i] == node)
            return true;
    }
    return false;
}

static struct set set_of(const uint16_t *nodes, unsigned count)
{
    struct set s = {.count = count};
    memcpy(s.nodes, nodes, count * sizeof(nodes[0]));
    return s;
}

/* What decides about a node's places. */
enum {
    F_LIVE = 1,    /* has a session */
    F_SPARED = 2,  /* has none, but may still come (grace) */
    F_CHANGED = 4, /* its session is another one than in the present map */
    F_INEXACT = 8, /* and began with a store that may lack something */
    F_LOST = 16,
    F_TROUBLE = 32,
    F_LISTED = 64, /* the next map has the node */
};

struct step {
    const struct map *now;
    struct map *m;
    const struct map_inputs *in;
    uint8_t *flags;          /* by node number */
    uint16_t *joined;        /* by group: bit i is set when now's joining[i] may enter (S2) */
    bool session_left;       /* of any node */
    const uint16_t *targets; /* of the present group */
    unsigned target_count;
};

static unsigned flags_of(const struct step *s, uint16_t node)
{
    ASSERT(node < s->m->node_number_next && s->flags[node] & F_LISTED);
    return s->flags[node];
}

static bool is_live(const struct step *s, uint16_t node)
{
    return flags_of(s, node) & F_LIVE;
}

/* May be in sync, and may become so. */
static bool is_well(const struct step *s, uint16_t node)
{
    return (flags_of(s, node) & (F_LIVE | F_TROUBLE)) == F_LIVE;
}

static bool is_target(const struct step *s, uint16_t node)
{
    for (unsigned i = 0; i < s->target_count; i++) {
        if (s->targets[i] == node)
            return true;
    }
    return false;
}

static void set_flags(struct step *s)
{
    for (uint32_t i = 0; i < s->m->node_count; i++) {
        const struct map_node *n = &s->m->nodes[i], *old = map_node(s->now, n->number);
        unsigned f = n->session.value ? F_LIVE : 0;
        for (unsigned k = 0; !f && k < s->in->spared_count; k++)
            f |= s->in->spared[k] == n->number ? F_SPARED : 0;
        if (old && old->session.value != n->session.value)
            f |= F_CHANGED;
        if ((f & F_LIVE) && (f & F_CHANGED) && n->inexact)
            f |= F_INEXACT;
        f |= n->state == MAP_NODE_LOST ? F_LOST : 0;
        f |= n->trouble != MAP_TROUBLE_NONE ? F_TROUBLE : 0;
        s->flags[n->number] = (uint8_t)(f | F_LISTED);
        s->session_left |= old && old->session.value && (f & F_CHANGED);
    }
}

/* S2: marks the groups that one report names. */
static void mark_joined(struct step *s, const struct map_node *n, const struct cluster_report *said)
{
    for (uint32_t i = 0; i < said->joined_count; i++) {
        const struct cluster_joined *j = &said->joined[i];
        if (j->group >= s->now->group_count || j->epoch != s->now->groups[j->group].epoch.value)
            continue;
        const struct map_group *g = &s->now->groups[j->group];
        for (unsigned k = 0; k < g->joining_count; k++) {
            if (g->joining[k] == n->number)
                s->joined[j->group] |= (uint16_t)(1u << k);
        }
    }
}

static void mark_all_joined(struct step *s)
{
    for (unsigned i = 0; i < s->in->report_count; i++) {
        const struct map_report *r = &s->in->reports[i];
        const struct map_node *n = map_node_by_uuid(s->now, &r->uuid);
        if (n && n->session.value == r->session.value && is_well(s, n->number) &&
            !(flags_of(s, n->number) & F_CHANGED))
            mark_joined(s, n, &r->said);
    }
}

/* --- one group --- */

/* Those of `set` that have none of the flags. */
static struct set without(const struct step *s, const struct set *set, unsigned flags)
{
    struct set rest = {0};
    for (unsigned i = 0; i < set->count; i++) {
        if (!(flags_of(s, set->nodes[i]) & flags))
            set_add(&rest, set->nodes[i]);
    }
    return rest;
}

/* S8: the node that an administrator named for one of the lost nodes of `in_sync`. */
static struct set find_heir(const struct step *s, const struct set *in_sync)
{
    struct set heir = {0};
    for (unsigned i = 0; i < s->in->node_wish_count && heir.count == 0; i++) {
        const struct map_node_wish *w = &s->in->node_wishes[i];
        const struct map_node *lost = map_node_by_uuid(s->m, &w->uuid);
        const struct map_node *n = map_node_by_uuid(s->m, &w->heir);
        if (w->lost && w->accept_loss && lost && set_has(in_sync, lost->number) && n &&
            n->state != MAP_NODE_LOST)
            set_add(&heir, n->number);
    }
    return heir;
}

/* S3, S7, S8 */
static void leave(const struct step *s, const struct map_group *old, struct set *in_sync)
{
    struct set last_full = set_of(old->last_full, old->last_full_count);
    struct set rest = without(s, in_sync, F_LOST | F_INEXACT);
    if (rest.count == 0)
        rest = without(s, &last_full, F_LOST | F_INEXACT);
    if (rest.count == 0)
        rest = without(s, in_sync, F_LOST);
    if (rest.count == 0)
        rest = without(s, &last_full, F_LOST);
    if (rest.count == 0)
        rest = find_heir(s, in_sync);
    if (rest.count > 0)
        *in_sync = rest;
    struct set stay = {0};
    unsigned well = 0;
    for (unsigned i = 0; i < in_sync->count; i++) {
        well += is_well(s, in_sync->nodes[i]);
        if (is_well(s, in_sync->nodes[i]) || (flags_of(s, in_sync->nodes[i]) & F_SPARED))
            set_add(&stay, in_sync->nodes[i]);
    }
    if (well > 0)
        *in_sync = stay;
}

static bool any_live(const struct step *s, const struct set *set)
{
    for (unsigned i = 0; i < set->count; i++) {
        if (is_live(s, set->nodes[i]))
            return true;
    }
    return false;
}

/* S4 */
static void move_away(const struct step *s, unsigned copies, struct set *in_sync)
{
    for (unsigned i = 0; i < s->target_count; i++) {
        if (is_well(s, s->targets[i]) && !set_has(in_sync, s->targets[i]))
            return;
    }
    unsigned well = 0;
    for (unsigned i = 0; i < in_sync->count; i++)
        well += is_well(s, in_sync->nodes[i]);
    for (unsigned i = in_sync->count; i-- > 0 && well > copies;) {
        if (is_target(s, in_sync->nodes[i]) || !is_well(s, in_sync->nodes[i]))
            continue;
        memmove(&in_sync->nodes[i], &in_sync->nodes[i + 1],
                (in_sync->count - i - 1) * sizeof(in_sync->nodes[0]));
        in_sync->count--;
        well--;
    }
}

static struct set next_joining(const struct step *s, const struct set *before, unsigned copies,
                               const struct set *in_sync)
{
    struct set joining = {0};
    for (unsigned i = 0; i < before->count; i++) {
        uint16_t n = before->nodes[i];
        if (is_well(s, n) && !set_has(in_sync, n) && (is_target(s, n) || in_sync->count < copies))
            set_add(&joining, n);
    }
    if (!any_live(s, in_sync))
        return joining; /* nobody to learn from */
    for (unsigned i = 0; i < s->target_count && joining.count < MAP_GROUP_MEMBER_MAX; i++) {
        uint16_t n = s->targets[i];
        if (is_well(s, n) && !set_has(in_sync, n) && !set_has(&joining, n))
            set_add(&joining, n);
    }
    return joining;
}

/* Place in the order of in_sync: who is there first, then as the placement prefers them. */
static unsigned rank(const struct step *s, uint16_t node)
{
    unsigned r = is_live(s, node) ? 0 : 1u << 31;
    for (unsigned i = 0; i < s->target_count; i++) {
        if (s->targets[i] == node)
            return r + i;
    }
    return r + MAP_GROUP_MEMBER_MAX + node;
}

static void sort_by_rank(const struct step *s, struct set *set)
{
    for (unsigned i = 1; i < set->count; i++) {
        uint16_t node = set->nodes[i];
        unsigned at = i;
        for (; at > 0 && rank(s, set->nodes[at - 1]) > rank(s, node); at--)
            set->nodes[at] = set->nodes[at - 1];
        set->nodes[at] = node;
    }
}

static bool same_members(const struct set *a, const uint16_t *nodes, unsigned count)
{
    if (a->count != count)
        return false;
    for (unsigned i = 0; i < count; i++) {
        if (!set_has(a, nodes[i]))
            return false;
    }
    return true;
}

static bool session_changed(const struct step *s, const struct map_group *g)
{
    if (s->session_left && g->joining_count > 0)
        return true;
    for (unsigned i = 0; i < g->in_sync_count; i++) {
        if (flags_of(s, g->in_sync[i]) & F_CHANGED)
            return true;
    }
    for (unsigned i = 0; i < g->joining_count; i++) {
        if (flags_of(s, g->joining[i]) & F_CHANGED)
            return true;
    }
    return false;
}

static uint8_t put_set(uint16_t to[MAP_GROUP_MEMBER_MAX], const struct set *from)
{
    ASSERT(from->count <= MAP_GROUP_MEMBER_MAX);
    memset(to, 0, MAP_GROUP_MEMBER_MAX * sizeof(to[0]));
    memcpy(to, from->nodes, from->count * sizeof(to[0]));
    return (uint8_t)from->count;
}

/* S5, S7, S8 */
static struct set next_last_full(const struct step *s, const struct map_group *old,
                                 unsigned min_copies, const struct set *in_sync)
{
    struct set last_full = set_of(old->last_full, old->last_full_count);
    last_full = without(s, &last_full, F_LOST | F_INEXACT);
    return in_sync->count >= min_copies || last_full.count == 0 ? *in_sync : last_full;
}

static bool next_group(const struct step *s, const struct map_pool *pool, uint32_t number)
{
    const struct map_group *old = &s->now->groups[number];
    struct set in_sync = set_of(old->in_sync, old->in_sync_count);
    struct set before = set_of(old->joining, old->joining_count);
    for (unsigned i = 0; i < before.count && in_sync.count < MAP_GROUP_MEMBER_MAX; i++) {
        if (s->joined[number] & 1u << i)
            set_add(&in_sync, before.nodes[i]);
    }
    leave(s, old, &in_sync);
    move_away(s, pool->copies, &in_sync);
    ASSERT(in_sync.count > 0 || old->in_sync_count == 0); /* S1 */
    struct set joining = next_joining(s, &before, pool->copies, &in_sync);
    struct set last_full = next_last_full(s, old, pool->min_copies, &in_sync);
    if (same_members(&in_sync, old->in_sync, old->in_sync_count) &&
        same_members(&joining, old->joining, old->joining_count) &&
        same_members(&last_full, old->last_full, old->last_full_count) && !session_changed(s, old))
        return false;
    struct map_group *g = &s->m->groups[number];
    sort_by_rank(s, &in_sync);
    g->in_sync_count = put_set(g->in_sync, &in_sync);
    g->joining_count = put_set(g->joining, &joining);
    sort_by_rank(s, &last_full);
    g->last_full_count = put_set(g->last_full, &last_full);
    g->epoch.value = s->m->version; /* S6 */
    return true;
}

/* --- all groups --- */

static bool next_pool(struct step *s, const struct map_pool *pool, const struct map_targets *t)
{
    bool changed = false;
    for (uint32_t i = pool->group_base; i < pool->group_base + pool->group_count; i++) {
        s->targets = t->nodes[i];
        s->target_count = t->counts[i];
        changed |= next_group(s, pool, i);
    }
    return changed;
}

int map_next_sets(const struct map *now, const struct map_inputs *in, struct map *m,
                  bool *ret_changed)
{
    struct step s = {.now = now, .m = m, .in = in};
    s.flags = calloc(m->node_number_next + 1, sizeof(*s.flags));
    s.joined = calloc(m->group_count + 1, sizeof(*s.joined));
    struct map_targets *own = in->targets ? NULL : map_targets_new();
    struct map_targets *targets = in->targets ? in->targets : own;
    bool changed = false;
    int r = s.flags && s.joined && targets ? map_targets_update(targets, m) : -ENOMEM;
    if (r == 0) {
        set_flags(&s);
        mark_all_joined(&s);
    }
    for (uint32_t i = 0; r == 0 && i < m->pool_count; i++)
        changed |= next_pool(&s, &m->pools[i], targets);
    map_targets_free(own);
    free(s.flags);
    free(s.joined);
    if (r == 0)
        *ret_changed = changed;
    return r;
}
