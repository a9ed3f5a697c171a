/* SPDX-License-Identifier: Apache-2.0 */
/* The model's events and the rules that each step is checked against (map_world.h). */
#include "map_world.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/err.h"
#include "base/hash.h"
#include "cluster/map_internal.h"
#include "members.h"

static const char *const kind_names[] = {
    "die",  "return", "return-inexact", "report",   "fail", "drain",      "weight",     "out",
    "lost", "accept", "remove",         "complain", "cut",  "grace-over", "min_copies", "copies"};

static struct actor *actor_in(struct world *w, const struct map *m, uint16_t number)
{
    const struct map_node *n = map_node(m, number);
    assert_non_null(n);
    for (unsigned i = 0; i < w->actor_count; i++) {
        if (uuid_equal(&w->actors[i].member.node.uuid, &n->uuid))
            return &w->actors[i];
    }
    fail_msg("node %u is nobody", number);
    return NULL;
}

static struct actor *actor_of(struct world *w, uint16_t number)
{
    return actor_in(w, w->now, number);
}

static uint64_t live_session(const struct actor *a)
{
    return a->member.node.session.value;
}

#define check(w, condition)                                                                        \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail_msg("%s after:%s", #condition, (w)->log);                                         \
    } while (0)

/* --- what the leader is given --- */

struct bundle {
    struct map_member members[NODES_MAX];
    struct map_report reports[NODES_MAX];
    struct map_node_wish wishes[NODES_MAX];
    uint16_t spared[NODES_MAX], out[NODES_MAX], unreachable[NODES_MAX];
    struct map_inputs in;
};

static void make_bundle(struct world *w, struct bundle *b)
{
    *b = (struct bundle){.in = {.members = b->members,
                                .reports = b->reports,
                                .node_wishes = b->wishes,
                                .spared = b->spared,
                                .out = b->out,
                                .pool_wishes = &w->pool,
                                .pool_wish_count = 1,
                                .recovery = MAP_RECOVERY_ON}};
    for (unsigned i = 0; i < w->actor_count; i++) {
        struct actor *a = &w->actors[i];
        const struct map_node *n = map_node_by_uuid(w->now, &a->member.node.uuid);
        if (a->registered)
            b->members[b->in.member_count++] = a->member;
        b->wishes[b->in.node_wish_count++] = a->wish;
        if (n && live_session(a) == 0 && w->grace && !a->seen)
            b->spared[b->in.spared_count++] = n->number;
        if (n && a->out)
            b->out[b->in.out_count++] = n->number;
        if (live_session(a) == 0 || a->report_session == 0)
            continue;
        struct map_report *r = &b->reports[b->in.report_count++];
        *r = (struct map_report){.uuid = a->member.node.uuid,
                                 .session = {a->report_session},
                                 .said = {.joined = a->joined,
                                          .joined_count = a->joined_count,
                                          .failed = a->fails ? -EIO : 0}};
        const struct actor *other = &w->actors[(i + 1) % w->actor_count];
        const struct map_node *about = map_node_by_uuid(w->now, &other->member.node.uuid);
        if (a->complains && about) {
            b->unreachable[i] = about->number;
            r->said.unreachable = &b->unreachable[i];
            r->said.unreachable_count = 1;
        }
    }
}

/* --- the rules --- */

static bool set_has(const uint16_t *set, unsigned count, uint16_t node)
{
    for (unsigned i = 0; i < count; i++) {
        if (set[i] == node)
            return true;
    }
    return false;
}

static bool same_set(const uint16_t *a, unsigned a_count, const uint16_t *b, unsigned b_count)
{
    bool same = a_count == b_count;
    for (unsigned i = 0; i < a_count; i++)
        same &= set_has(b, b_count, a[i]);
    return same;
}

static bool node_well(const struct map_node *n)
{
    return n->session.value != 0 && n->trouble == MAP_TROUBLE_NONE;
}

static void check_nodes(struct world *w, const struct map *next)
{
    const struct map *now = w->now;
    check(w, next->version == now->version + 1);
    check(w, next->node_number_next >= now->node_number_next);
    for (uint32_t i = 0; i < next->node_count; i++) {
        const struct map_node *n = &next->nodes[i];
        const struct map_node *same_uuid = map_node_by_uuid(now, &n->uuid);
        check(w, i == 0 || n->number > next->nodes[i - 1].number);
        check(w, n->number < next->node_number_next);
        if (same_uuid)
            check(w, same_uuid->number == n->number);
        else
            check(w, n->number >= now->node_number_next); /* never used before */
        struct actor *a = NULL;
        for (unsigned k = 0; k < w->actor_count; k++) {
            if (uuid_equal(&w->actors[k].member.node.uuid, &n->uuid))
                a = &w->actors[k];
        }
        check(w, a);
        check(w, n->session.value == 0 || n->session.value == live_session(a));
        check(w, n->session.value != 0 || live_session(a) == 0 || n->state == MAP_NODE_LOST ||
                     !a->registered);
        check(w, !a->wish.lost || n->state == MAP_NODE_LOST);
        check(w, n->state != MAP_NODE_LOST || n->session.value == 0);
    }
}

static bool is_cut_off(const struct map_node *n)
{
    return n->trouble == MAP_TROUBLE_UNREACHED || n->trouble == MAP_TROUBLE_ALONE;
}

/* R1b: of two nodes that do not reach each other one is out, and nobody is without need. */
static void check_troubles(struct world *w, const struct bundle *b, const struct map *next)
{
    bool needed[NODES_MAX] = {false};
    for (unsigned i = 0; i < b->in.report_count; i++) {
        const struct map_report *r = &b->reports[i];
        const struct map_node *from = map_node_by_uuid(next, &r->uuid);
        const struct map_node *to =
            r->said.unreachable_count ? map_node(next, r->said.unreachable[0]) : NULL;
        if (!from || from->session.value == 0 || from->session.value != r->session.value)
            continue;
        check(w, (from->trouble == MAP_TROUBLE_STORE) == (r->said.failed != 0));
        if (!to || to->session.value == 0)
            continue;
        check(w, !(node_well(from) && node_well(to)));
        needed[from - next->nodes] |= node_well(to);
        needed[to - next->nodes] |= node_well(from);
    }
    for (uint32_t i = 0; i < next->node_count; i++)
        check(w, needed[i] || !is_cut_off(&next->nodes[i]));
}

/* R2, and the two other ways in: from last_full when all were given up, and by accepting a loss. */
static void check_entry(struct world *w, const struct bundle *b, const struct map *next, uint32_t g,
                        uint16_t node)
{
    const struct map_group *old = &w->now->groups[g];
    const struct map_node *was = map_node(w->now, node), *is = map_node(next, node);
    bool reported = false, all_lost = true, accepted = false;
    for (unsigned i = 0; i < b->in.report_count; i++) {
        const struct map_report *r = &b->reports[i];
        for (uint32_t k = 0; k < r->said.joined_count; k++)
            reported |= uuid_equal(&r->uuid, &is->uuid) && r->session.value == is->session.value &&
                        r->said.joined[k].group == g && r->said.joined[k].epoch == old->epoch.value;
    }
    if (was && was->session.value == is->session.value && is->session.value != 0 && reported &&
        set_has(old->joining, old->joining_count, node))
        return;
    for (unsigned i = 0; i < old->in_sync_count; i++) {
        const struct actor *a = actor_of(w, old->in_sync[i]);
        all_lost &= a->wish.lost || a->member.inexact;
        accepted |= a->wish.accept_loss && uuid_equal(&a->wish.heir, &is->uuid);
    }
    check(w, all_lost);
    if (set_has(old->last_full, old->last_full_count, node))
        return;
    check(w, accepted);
    for (unsigned i = 0; i < old->last_full_count; i++)
        check(w, actor_of(w, old->last_full[i])->wish.lost);
    w->broken[g] = true;
}

static unsigned count_well(const struct map *m, const uint16_t *set, unsigned count)
{
    unsigned n = 0;
    for (unsigned i = 0; i < count; i++)
        n += node_well(map_node(m, set[i]));
    return n;
}

static void compute_targets(const struct map *m, uint16_t targets[GROUPS_MAX][NODES_MAX],
                            unsigned *ret_count)
{
    const struct map_pool *pool = &m->pools[0];
    struct place *place = NULL;
    unsigned count = pool->copies;
    while (count > 0 && place_new_empty(m, pool, (uint8_t)count, &place) < 0)
        count--;
    for (uint32_t g = 0; g < m->group_count && count > 0; g++)
        place_group(place, g, (uint8_t)count, targets[g]);
    place_free(place);
    *ret_count = count;
}

/* Who is well and exact leaves only when enough others are left (R5). */
static void check_exit(struct world *w, const struct map *next, uint32_t g, uint16_t node)
{
    const struct map_group *group = &next->groups[g];
    const struct map_node *n = map_node(next, node), *was = map_node(w->now, node);
    const struct actor *a = actor_of(w, node);
    if (!n || !node_well(n) || (n->session.value != was->session.value && a->member.inexact))
        return;
    check(w, count_well(next, group->in_sync, group->in_sync_count) >= next->pools[0].copies);
    uint16_t targets[GROUPS_MAX][NODES_MAX];
    unsigned target_count;
    compute_targets(next, targets, &target_count);
    for (unsigned i = 0; i < target_count; i++)
        check(w, targets[g][i] != node && (map_group_in_sync(group, targets[g][i]) ||
                                           !node_well(map_node(next, targets[g][i]))));
}

static bool session_differs(const struct map *a, const struct map *b, const uint16_t *set,
                            unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        const struct map_node *x = map_node(a, set[i]), *y = map_node(b, set[i]);
        if (!y || x->session.value != y->session.value)
            return true;
    }
    return false;
}

/* W2: whatever a joining node has compared or noted of a session's changes is void when it left. */
static bool any_session_left(const struct map *a, const struct map *b)
{
    for (uint32_t i = 0; i < a->node_count; i++) {
        const struct map_node *x = &a->nodes[i], *y = map_node(b, x->number);
        if (x->session.value != 0 && (!y || y->session.value != x->session.value))
            return true;
    }
    return false;
}

/* Below min_copies nothing is answered, and last_full stays, but for who has nothing to give. */
static void check_last_full_kept(struct world *w, const struct map *next, uint32_t g)
{
    const struct map_group *old = &w->now->groups[g], *group = &next->groups[g];
    bool any = false;
    for (unsigned i = 0; i < old->last_full_count; i++) {
        const struct map_node *n = map_node(next, old->last_full[i]);
        const struct map_node *was = map_node(w->now, old->last_full[i]);
        if (!n || n->state == MAP_NODE_LOST ||
            (n->session.value != was->session.value && n->inexact))
            continue;
        check(w, set_has(group->last_full, group->last_full_count, n->number));
        any = true;
    }
    for (unsigned i = 0; any && i < group->last_full_count; i++)
        check(w, set_has(old->last_full, old->last_full_count, group->last_full[i]));
}

static void check_group(struct world *w, const struct bundle *b, const struct map *next, uint32_t g)
{
    const struct map_group *old = &w->now->groups[g], *group = &next->groups[g];
    check(w, group->in_sync_count > 0);
    for (unsigned i = 0; i < group->in_sync_count; i++) {
        check(w, map_node(next, group->in_sync[i]));
        check(w, !set_has(group->in_sync, i, group->in_sync[i]));
        if (!map_group_in_sync(old, group->in_sync[i]))
            check_entry(w, b, next, g, group->in_sync[i]);
    }
    for (unsigned i = 0; i < group->joining_count; i++) {
        const struct map_node *n = map_node(next, group->joining[i]);
        check(w, n && node_well(n));
        check(w, !map_group_in_sync(group, group->joining[i]));
    }
    for (unsigned i = 0; i < group->last_full_count; i++)
        check(w, map_node(next, group->last_full[i]));
    if (count_well(next, group->in_sync, group->in_sync_count) > 0) { /* R1 */
        for (unsigned i = 0; i < group->in_sync_count; i++) {
            const struct actor *a = actor_in(w, next, group->in_sync[i]);
            check(w, node_well(map_node(next, group->in_sync[i])) ||
                         (w->grace && !a->seen && live_session(a) == 0));
        }
    }
    bool all_dead = true;
    for (unsigned i = 0; i < group->in_sync_count; i++)
        all_dead &= map_node(next, group->in_sync[i])->session.value == 0;
    for (unsigned i = 0; i < old->in_sync_count; i++) {
        if (map_group_in_sync(group, old->in_sync[i]))
            continue;
        check_exit(w, next, g, old->in_sync[i]);
        const struct actor *a = actor_of(w, old->in_sync[i]);
        /* Nobody leaves a set that nobody is left of, but who lost something or was given up. */
        check(w, !all_dead || a->wish.lost || a->member.inexact);
        bool spared = w->grace && !a->seen && live_session(a) == 0;
        check(w, !spared || a->wish.lost);
    }
    if (group->in_sync_count >= next->pools[0].min_copies)
        check(w, same_set(group->in_sync, group->in_sync_count, group->last_full,
                          group->last_full_count));
    else
        check_last_full_kept(w, next, g);
    bool changed =
        !same_set(old->in_sync, old->in_sync_count, group->in_sync, group->in_sync_count) ||
        !same_set(old->joining, old->joining_count, group->joining, group->joining_count) ||
        !same_set(old->last_full, old->last_full_count, group->last_full, group->last_full_count) ||
        session_differs(w->now, next, old->in_sync, old->in_sync_count) ||
        session_differs(w->now, next, old->joining, old->joining_count) ||
        (old->joining_count > 0 && any_session_left(w->now, next));
    check(w, group->epoch.value == (changed ? next->version : old->epoch.value));
}

/* --- what is answered, and who has it --- */

static bool reported_now(const struct world *w, const struct actor *a, uint32_t g)
{
    if (a->report_session == 0 || a->report_session != live_session(a))
        return false;
    for (uint32_t i = 0; i < a->joined_count; i++) {
        if (a->joined[i].group == g && a->joined[i].epoch == w->now->groups[g].epoch.value)
            return true;
    }
    return false;
}

static void write_all(struct world *w)
{
    for (uint32_t g = 0; g < w->now->group_count; g++) {
        const struct map_group *group = &w->now->groups[g];
        bool answered = group->in_sync_count >= w->now->pools[0].min_copies;
        for (unsigned i = 0; i < group->in_sync_count; i++) {
            const struct map_node *n = map_node(w->now, group->in_sync[i]);
            const struct actor *a = actor_of(w, group->in_sync[i]);
            answered &= n->session.value != 0 && n->session.value == live_session(a) && !a->fails;
        }
        if (!answered)
            continue;
        for (unsigned i = 0; i < w->actor_count; i++) {
            struct actor *a = &w->actors[i];
            const struct map_node *n = map_node_by_uuid(w->now, &a->member.node.uuid);
            bool in_sync = n && map_group_in_sync(group, n->number);
            bool joined = n && map_group_has(group, n->number) && live_session(a) != 0 &&
                          n->session.value == live_session(a) && reported_now(w, a, g);
            a->holds[g] &= in_sync || joined;
        }
    }
}

static void check_holders(struct world *w)
{
    for (uint32_t g = 0; g < w->now->group_count; g++) {
        const struct map_group *group = &w->now->groups[g];
        for (unsigned i = 0; i < group->in_sync_count && !w->broken[g]; i++) {
            const struct actor *a = actor_of(w, group->in_sync[i]);
            check(w, a->wish.lost || a->lacks || a->holds[g]);
        }
        for (unsigned i = 0; i < group->last_full_count && !w->broken[g]; i++) {
            const struct actor *a = actor_of(w, group->last_full[i]);
            check(w, a->wish.lost || a->lacks || a->holds[g]);
        }
    }
}

static bool holds_any(struct world *w, const uint16_t *set, unsigned count, uint32_t g)
{
    for (unsigned i = 0; i < count; i++) {
        const struct actor *a = actor_of(w, set[i]);
        if (a->holds[g] && !a->wish.lost)
            return true;
    }
    return false;
}

/* Groups of which no copy is left that the map could know of. */
static void find_broken(struct world *w)
{
    for (uint32_t g = 0; g < w->now->group_count; g++) {
        const struct map_group *group = &w->now->groups[g];
        w->broken[g] |= !holds_any(w, group->in_sync, group->in_sync_count, g) &&
                        !holds_any(w, group->last_full, group->last_full_count, g);
    }
}

/* What a leader keeps between maps does not matter for them. */
static void check_kept_targets(struct world *w, const struct map_inputs *in, const struct map *next)
{
    struct map_inputs with = *in;
    struct map *same;
    with.targets = w->targets;
    assert_int_equal(map_next(w->now, &with, &same), 0);
    check(w, (same != NULL) == (next != NULL));
    if (same)
        check(w,
              memcmp(same->groups, next->groups, next->group_count * sizeof(next->groups[0])) == 0);
    map_unref(same);
}

bool lead(struct world *w)
{
    struct bundle b;
    struct map *next, *again;
    make_bundle(w, &b);
    find_broken(w);
    w->pending = 0;
    assert_int_equal(map_next(w->now, &b.in, &next), 0);
    if (w->targets)
        check_kept_targets(w, &b.in, next);
    if (!next)
        return false;
    check_nodes(w, next);
    check_troubles(w, &b, next);
    for (uint32_t g = 0; g < next->group_count; g++)
        check_group(w, &b, next, g);
    map_unref(w->now);
    w->now = next;
    for (uint32_t i = 0; i < next->node_count; i++) {
        if (next->nodes[i].session.value != 0)
            actor_of(w, next->nodes[i].number)->lacks = false;
    }
    assert_int_equal(map_next(w->now, &b.in, &again), 0);
    check(w, !again); /* what it has seen it has acted on */
    check_holders(w);
    write_all(w);
    return true;
}

/* --- events --- */

static void end_session(struct actor *a)
{
    a->member.node.session.value = 0;
    a->member.inexact = a->fails = a->complains = a->out = false;
    a->joined_count = 0;
    a->report_session = 0;
}

static void begin_session(struct world *w, struct actor *a, bool inexact)
{
    struct actor old = *a;
    end_session(a);
    if (live_session(&old) != 0 && !old.fails && !old.complains) {
        a->report_session = old.report_session; /* nobody has cleared the old one's report away */
        a->joined_count = old.joined_count;
    }
    a->member.node.session.value = w->session_next++;
    a->lacks |= inexact;
    a->member.inexact = a->lacks;
    a->registered = a->seen = true;
    a->out = false;
    for (uint32_t g = 0; inexact && g < w->now->group_count; g++)
        a->holds[g] = false;
}

/* Reports every group it joins now as complete; from then on it has everything. */
static bool report(struct world *w, struct actor *a)
{
    const struct map_node *n = map_node_by_uuid(w->now, &a->member.node.uuid);
    if (!n || n->session.value == 0 || n->session.value != live_session(a))
        return false;
    bool any = false;
    a->joined_count = 0;
    a->report_session = live_session(a);
    for (uint32_t g = 0; g < w->now->group_count; g++) {
        const struct map_group *group = &w->now->groups[g];
        bool source = false;
        for (unsigned i = 0; i < group->in_sync_count; i++) {
            const struct actor *from = actor_of(w, group->in_sync[i]);
            source |= live_session(from) != 0;
        }
        if (!source || !map_group_has(group, n->number) || map_group_in_sync(group, n->number))
            continue;
        a->joined[a->joined_count++] = (struct cluster_joined){g, group->epoch.value};
        a->holds[g] = true;
        any = true;
    }
    return any;
}

static bool cut_power(struct world *w)
{
    bool any = false;
    for (unsigned i = 0; i < w->actor_count; i++) {
        any |= live_session(&w->actors[i]) != 0;
        end_session(&w->actors[i]);
        w->actors[i].seen = false;
    }
    w->grace = true;
    return any;
}

static bool wish(struct world *w, enum kind kind, unsigned i)
{
    struct actor *a = &w->actors[i];
    const struct actor *other = &w->actors[(i + 1) % w->actor_count];
    if (!a->registered || (a->wish.lost && kind != REMOVE && kind != ACCEPT_LOSS))
        return false;
    switch (kind) {
    case DRAIN:
        a->wish.drain = !a->wish.drain;
        return true;
    case REWEIGHT:
        a->wish.has_weight = !a->wish.has_weight;
        return true;
    case LOST:
        a->wish.lost = true;
        return live_session(a) == 0;
    case ACCEPT_LOSS:
        if (live_session(a) != 0 || a->wish.accept_loss || other->wish.lost || !other->registered)
            return false;
        a->wish.lost = a->wish.accept_loss = true;
        a->wish.heir = other->member.node.uuid;
        return true;
    default:
        a->wish.remove = !a->wish.remove;
        return true;
    }
}

static bool toggle(bool *what)
{
    *what = !*what;
    return true;
}

/* Whatever it says next, it says as its present session. */
static void new_report(struct actor *a)
{
    if (a->report_session != live_session(a))
        a->joined_count = 0;
    a->report_session = live_session(a);
}

static bool apply_node(struct world *w, enum kind kind, unsigned i)
{
    struct actor *a = &w->actors[i];
    switch (kind) {
    case DIE:
        if (live_session(a) == 0)
            return false;
        end_session(a);
        return true;
    case RETURN:
    case RETURN_INEXACT: /* also while it lives: a restart nobody saw */
        if (a->wish.lost && (kind == RETURN_INEXACT || !a->registered))
            return false; /* somebody may start it all the same */
        begin_session(w, a, kind == RETURN_INEXACT);
        return true;
    case REPORT:
        return live_session(a) != 0 && report(w, a);
    case FAIL:
        a->out = false;
        new_report(a);
        return live_session(a) != 0 && toggle(&a->fails);
    case COMPLAIN:
        new_report(a);
        return live_session(a) != 0 && toggle(&a->complains);
    case OUT:
        return (live_session(a) == 0 || a->fails) && !a->out && toggle(&a->out);
    default:
        return wish(w, kind, i);
    }
}

static bool apply_all(struct world *w, enum kind kind)
{
    switch (kind) {
    case POWER_CUT:
        return cut_power(w);
    case GRACE_OVER:
        return w->grace && toggle(&w->grace);
    case MIN_COPIES:
        w->pool.min_copies = w->pool.min_copies == 1 ? MIN(w->min_copies, w->pool.copies) : 1;
        return w->min_copies > 1;
    default:
        w->pool.copies = w->pool.copies == w->copies ? w->copies - 1 : w->copies;
        w->pool.min_copies = MIN(w->pool.min_copies, w->pool.copies);
        return w->copies > 1;
    }
}

unsigned event_count(const struct world *w)
{
    return KIND_COUNT * w->actor_count + (ALL_KIND_COUNT - KIND_COUNT);
}

bool apply(struct world *w, unsigned event)
{
    unsigned node_events = KIND_COUNT * w->actor_count;
    enum kind kind = event < node_events ? event % KIND_COUNT : KIND_COUNT + event - node_events;
    size_t used = strlen(w->log);
    if (kind < KIND_COUNT)
        snprintf(w->log + used, LOG_MAX - used, " %s(%u)", kind_names[kind], event / KIND_COUNT);
    else
        snprintf(w->log + used, LOG_MAX - used, " %s", kind_names[kind]);
    w->pending++;
    return kind < KIND_COUNT ? apply_node(w, kind, event / KIND_COUNT) : apply_all(w, kind);
}

/* --- convergence --- */

/* All groups are where they should be, and nobody joins any more. */
static void check_settled(struct world *w)
{
    uint16_t targets[GROUPS_MAX][NODES_MAX];
    unsigned target_count;
    const struct map *m = w->now;
    compute_targets(m, targets, &target_count);
    for (uint32_t g = 0; g < m->group_count; g++) {
        const struct map_group *group = &m->groups[g];
        bool any_live = false;
        for (unsigned i = 0; i < group->in_sync_count; i++)
            any_live |= map_node(m, group->in_sync[i])->session.value != 0;
        if (!any_live) { /* only what nobody can help is left so */
            for (unsigned i = 0; i < group->in_sync_count; i++)
                check(w, actor_of(w, group->in_sync[i])->wish.lost);
            continue;
        }
        check(w, group->joining_count == 0);
        for (unsigned i = 0; i < target_count; i++)
            check(w, map_group_in_sync(group, targets[g][i]));
        check(w, group->in_sync_count >= target_count);
        check(w, group->in_sync_count <= MAX((unsigned)m->pools[0].copies, target_count));
        if (target_count == m->pools[0].copies)
            check(w, group->in_sync_count == target_count);
    }
}

void settle(const struct world *from)
{
    struct world copy = *from, *w = &copy;
    map_ref(w->now);
    lead(w);
    w->grace = false;
    for (unsigned i = 0; i < w->actor_count; i++) {
        struct actor *a = &w->actors[i];
        a->fails = a->complains = a->out = false;
        new_report(a);
        if (a->registered && live_session(a) == 0 && !a->wish.lost)
            begin_session(w, a, false);
    }
    snprintf(w->log + strlen(w->log), LOG_MAX - strlen(w->log), " settle");
    unsigned maps = 0;
    for (bool busy = true; busy;) {
        busy = lead(w);
        for (unsigned i = 0; i < w->actor_count; i++)
            busy |= live_session(&w->actors[i]) != 0 && report(w, &w->actors[i]);
        check(w, ++maps < 12);
    }
    check_settled(w);
    map_unref(w->now);
}

void world_init(struct world *w, unsigned nodes, unsigned spare, uint8_t copies, uint8_t min_copies,
                uint32_t groups)
{
    *w = (struct world){.actor_count = nodes + spare,
                        .copies = copies,
                        .min_copies = min_copies,
                        .pool = {1, copies, min_copies},
                        .session_next = 100};
    struct map_member members[NODES_MAX];
    for (unsigned i = 0; i < w->actor_count; i++) {
        struct actor *a = &w->actors[i];
        a->member = make_member(i, i, 1024, i < nodes ? i + 1 : 0);
        a->wish.uuid = a->member.node.uuid;
        a->registered = a->seen = i < nodes;
        members[i] = a->member;
        for (uint32_t g = 0; g < groups; g++)
            a->holds[g] = i < nodes;
    }
    struct map_format f = make_format(copies, groups);
    f.min_copies = min_copies;
    assert_int_equal(map_first(&f, members, nodes, &w->now), 0);
    write_all(w);
}

uint64_t fingerprint(struct world *w)
{
    uint8_t bytes[1024];
    size_t n = 0;
    const struct map *m = w->now;
    bytes[n++] = (uint8_t)w->pending;
    bytes[n++] = (uint8_t)(w->grace | w->pool.copies << 1 | w->pool.min_copies << 4);
    bytes[n++] = (uint8_t)(m->pools[0].copies << 4 | m->pools[0].min_copies);
    for (unsigned i = 0; i < w->actor_count; i++) {
        const struct actor *a = &w->actors[i];
        const struct map_node *node = map_node_by_uuid(m, &a->member.node.uuid);
        bool same = node && node->session.value == live_session(a);
        bytes[n++] =
            (uint8_t)((live_session(a) != 0) | a->member.inexact << 1 | a->registered << 2 |
                      a->fails << 3 | a->complains << 4 | a->seen << 5 | a->out << 6 | same << 7);
        bytes[n++] = a->lacks;
        bytes[n++] = (uint8_t)(a->wish.drain | a->wish.remove << 1 | a->wish.lost << 2 |
                               a->wish.accept_loss << 3 | a->wish.has_weight << 4);
        bytes[n++] = node ? (uint8_t)((node->session.value != 0) | node->state << 1 |
                                      (node->weight != 0) << 3 | node->out << 4 |
                                      (unsigned)node->trouble << 5)
                          : 0xff;
        for (uint32_t g = 0; g < m->group_count; g++)
            bytes[n++] = (uint8_t)(a->holds[g] | reported_now(w, a, g) << 1);
        bytes[n++] = node ? (uint8_t)node->number : 0xff;
    }
    for (uint32_t g = 0; g < m->group_count; g++) {
        const struct map_group *group = &m->groups[g];
        bytes[n++] = (uint8_t)(group->in_sync_count | group->joining_count << 4);
        bytes[n++] = (uint8_t)(group->last_full_count | w->broken[g] << 4);
        for (unsigned i = 0; i < group->in_sync_count; i++)
            bytes[n++] = (uint8_t)group->in_sync[i];
        for (unsigned i = 0; i < group->joining_count; i++)
            bytes[n++] = (uint8_t)group->joining[i];
        for (unsigned i = 0; i < group->last_full_count; i++)
            bytes[n++] = (uint8_t)group->last_full[i];
    }
    assert_true(n <= sizeof(bytes));
    return hash_bytes(bytes, n) | 1;
}
