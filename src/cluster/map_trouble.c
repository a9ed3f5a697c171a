/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Complaints (R1b): nodes whose store cannot write, and nodes that others cannot reach.
 *
 * T1 Of two nodes one of which cannot reach the other, at least one is kept out of in_sync.
 * T2 As few as that takes, or nearly: who has part in the most complaints goes first. So a node
 *    that alone complains about many goes itself, and one that many complain about goes alone.
 * T3 Only live nodes complain and are complained about, each with the session that the map lists.
 *
 * T4 The same complaints give the same decision again; and who is out stays so, rather than
 *    another, while that suffices and each of them is needed.
 */
#include "cluster/map_trouble.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"

/* `from` cannot reach `to`; indexes of m->nodes. */
struct complaint {
    uint16_t from, to;
    bool settled; /* one of them is out */
};

struct tally {
    uint32_t against, by; /* complaints that count */
    bool was_out, out;
};

struct troubles {
    struct map *m;
    struct complaint *complaints;
    uint32_t count;
    struct tally *tallies; /* by index of m->nodes */
};

/* Index of the node whose present session wrote the report, or -1 (T3). */
static int64_t find_reporter(const struct map *m, const struct map_report *r)
{
    for (uint32_t i = 0; i < m->node_count; i++) {
        if (m->nodes[i].session.value != 0 && m->nodes[i].session.value == r->session.value &&
            uuid_equal(&m->nodes[i].uuid, &r->uuid))
            return i;
    }
    return -1;
}

static void add_complaints(struct troubles *t, uint32_t from, const struct cluster_report *said)
{
    for (unsigned i = 0; i < said->unreachable_count; i++) {
        const struct map_node *n = map_node(t->m, said->unreachable[i]);
        if (!n || n->session.value == 0 || n - t->m->nodes == from)
            continue;
        t->complaints[t->count++] =
            (struct complaint){(uint16_t)from, (uint16_t)(n - t->m->nodes), false};
    }
}

static void put_out(struct troubles *t, uint32_t index)
{
    t->tallies[index].out = true;
    for (uint32_t i = 0; i < t->count; i++) {
        struct complaint *c = &t->complaints[i];
        c->settled |= c->from == index || c->to == index;
    }
}

/* Counts the complaints that are not settled; false if there are none. */
static bool count_open(struct troubles *t)
{
    bool any = false;
    for (uint32_t i = 0; i < t->m->node_count; i++)
        t->tallies[i].against = t->tallies[i].by = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        const struct complaint *c = &t->complaints[i];
        if (c->settled)
            continue;
        t->tallies[c->from].by++;
        t->tallies[c->to].against++;
        any = true;
    }
    return any;
}

/* T2: among equals who is complained about, and then the later one. */
static bool goes_before(const struct tally *a, const struct tally *b)
{
    if (a->against + a->by != b->against + b->by)
        return a->against + a->by > b->against + b->by;
    return a->against >= b->against;
}

static void choose(struct troubles *t)
{
    while (count_open(t)) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < t->m->node_count; i++) {
            if (goes_before(&t->tallies[i], &t->tallies[best]))
                best = i;
        }
        put_out(t, best);
    }
}

/* T4: those that were out settle all, and each of them something that no other one does. */
static bool suffices_as_it_was(struct troubles *t)
{
    for (uint32_t i = 0; i < t->m->node_count; i++)
        t->tallies[i].by = 0; /* what only this one settles */
    for (uint32_t i = 0; i < t->count; i++) {
        const struct complaint *c = &t->complaints[i];
        bool from = t->tallies[c->from].was_out, to = t->tallies[c->to].was_out;
        if (c->settled)
            continue;
        if (!from && !to)
            return false;
        if (from != to)
            t->tallies[from ? c->from : c->to].by++;
    }
    for (uint32_t i = 0; i < t->m->node_count; i++) {
        if (t->tallies[i].was_out && t->tallies[i].by == 0)
            t->tallies[i].was_out = false;
    }
    for (uint32_t i = 0; i < t->count; i++) { /* without those that were not needed */
        const struct complaint *c = &t->complaints[i];
        if (!c->settled && !t->tallies[c->from].was_out && !t->tallies[c->to].was_out)
            return false;
    }
    return true;
}

static void describe(struct troubles *t)
{
    for (uint32_t i = 0; i < t->count; i++)
        t->complaints[i].settled = false;
    count_open(t);
    for (uint32_t k = t->count; k-- > 0;) { /* the first complaint names the other node */
        const struct complaint *c = &t->complaints[k];
        for (unsigned side = 0; side < 2; side++) {
            uint16_t index = side ? c->to : c->from;
            const struct tally *tally = &t->tallies[index];
            bool unreached = tally->against >= tally->by;
            if (!tally->out || unreached != (side == 1))
                continue;
            t->m->nodes[index].trouble = unreached ? MAP_TROUBLE_UNREACHED : MAP_TROUBLE_ALONE;
            t->m->nodes[index].trouble_by = t->m->nodes[side ? c->from : c->to].number;
        }
    }
}

static void read_reports(struct troubles *t, const struct map_inputs *in)
{
    for (unsigned i = 0; i < in->report_count; i++) {
        int64_t from = find_reporter(t->m, &in->reports[i]);
        if (from >= 0)
            add_complaints(t, (uint32_t)from, &in->reports[i].said);
    }
}

/* Who cannot write is out in any case, and settles what it has part in. */
static void put_out_failed(struct troubles *t, const struct map_inputs *in)
{
    for (unsigned i = 0; i < in->report_count; i++) {
        int64_t from = find_reporter(t->m, &in->reports[i]);
        if (from < 0 || in->reports[i].said.failed == 0)
            continue;
        put_out(t, (uint32_t)from);
        t->tallies[from].out = t->tallies[from].was_out = false; /* for another reason */
        t->m->nodes[from].trouble = MAP_TROUBLE_STORE;
        t->m->nodes[from].trouble_error = (uint16_t)-in->reports[i].said.failed;
    }
}

static void set_troubles(struct troubles *t, const struct map_inputs *in)
{
    for (uint32_t i = 0; i < t->m->node_count; i++) {
        struct map_node *n = &t->m->nodes[i];
        t->tallies[i].was_out =
            n->trouble == MAP_TROUBLE_UNREACHED || n->trouble == MAP_TROUBLE_ALONE;
        n->trouble = MAP_TROUBLE_NONE;
        n->trouble_by = n->trouble_error = 0;
    }
    read_reports(t, in);
    put_out_failed(t, in);
    if (suffices_as_it_was(t)) {
        for (uint32_t i = 0; i < t->m->node_count; i++) {
            if (t->tallies[i].was_out)
                put_out(t, i);
        }
    } else {
        choose(t);
    }
    describe(t);
}

int map_next_troubles(struct map *m, const struct map_inputs *in)
{
    size_t count = 0;
    for (unsigned i = 0; i < in->report_count; i++)
        count += in->reports[i].said.unreachable_count;
    struct troubles t = {.m = m,
                         .complaints = calloc(count + 1, sizeof(*t.complaints)),
                         .tallies = calloc(m->node_count + 1, sizeof(*t.tallies))};
    int r = t.complaints && t.tallies ? 0 : -ENOMEM;
    if (r == 0)
        set_troubles(&t, in);
    free(t.complaints);
    free(t.tallies);
    return r;
}
