/* SPDX-License-Identifier: Apache-2.0 */
/* The checks at rest. See verify.h for V1 to V5. */
#include "sim/cluster/verify.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"

#define REST_NS  (400 * NS_PER_S) /* the liveness bound: two rounds of L6's minute and retries */
#define CHUNK    65536u
#define FINDINGS 3u

struct verify {
    struct work *k;
    struct world *w;
    bool done;
    char findings[FINDINGS][400];
    unsigned finding_count;
};

/* --- V1 --- */

static fiber_fn void verify_image(struct verify *v, const char *name, const char *tag,
                                  struct content *c)
{
    struct opened o;
    bool whole = false;
    while (!whole) {
        if (work_open(v->k, name, tag, &o) < 0)
            world_wrong(v->w, "%s%s%s is missing", name, tag ? "@" : "", tag ? tag : "");
        whole = work_check_image(v->k, &o, c, name, tag);
        work_close(&o);
    }
}

static fiber_fn void verify_images(struct verify *v)
{
    struct work *k = v->k;
    for (unsigned i = 0; i < VOLUME_COUNT_MAX; i++) {
        if (k->volumes[i].exists)
            verify_image(v, k->volumes[i].name, NULL, &k->volumes[i].content);
    }
    for (unsigned i = 0; i < SNAPSHOT_COUNT_MAX; i++) {
        struct snapshot_model *s = &k->snapshots[i];
        if (s->exists)
            verify_image(v, k->volumes[s->volume].name, s->tag, &s->content);
    }
}

static fiber_fn void verify_list(struct verify *v)
{
    struct work *k = v->k;
    struct volume_info *list;
    size_t count, known = 0;
    work_list(k, &list, &count);
    for (unsigned i = 0; i < VOLUME_COUNT_MAX; i++)
        known += k->volumes[i].exists;
    for (unsigned i = 0; i < SNAPSHOT_COUNT_MAX; i++)
        known += k->snapshots[i].exists;
    if (known != count)
        world_wrong(v->w, "%zu images are listed, there should be %zu", count, known);
    free(list);
}

/* --- V2 --- */

static void on_finding(void *arg, const char *finding)
{
    struct verify *v = arg;
    if (v->finding_count < FINDINGS)
        snprintf(v->findings[v->finding_count++], sizeof(v->findings[0]), "%s", finding);
}

struct check_call {
    struct verify *v;
    struct volume_check_report report;
};

static fiber_fn int call_check(struct node *n, void *arg)
{
    struct check_call *c = arg;
    return volume_check(n->volumes, on_finding, c->v, &c->report);
}

/* Returns what is reachable. */
static fiber_fn uint64_t verify_references(struct verify *v)
{
    struct world *w = v->w;
    uint64_t end = sim_now(w->sim) + REST_NS;
    struct check_call c = {.v = v};
    int r;
    do {
        v->finding_count = 0;
        c.report = (struct volume_check_report){0};
        r = call_node(work_some_node(v->k), call_check, &c);
        if (r == 0 && c.report.at_rest)
            break;
        fiber_sleep(w->rt, 200 * NS_PER_MS);
    } while (sim_now(w->sim) < end);
    if (r != 0 || !c.report.at_rest)
        world_stuck(w, r ? "the check fails" : "the check does not come to rest");
    if (c.report.findings > 0)
        world_wrong(w, "%" PRIu64 " findings: %s; %s; %s", c.report.findings, v->findings[0],
                    v->findings[1], v->findings[2]);
    if (c.report.objects_reachable != c.report.objects_stored)
        world_wrong(w, "%" PRIu64 " objects are stored, %" PRIu64 " reachable",
                    c.report.objects_stored, c.report.objects_reachable);
    return c.report.objects_reachable;
}

/* --- V3 --- */

struct inventory {
    struct store_entry *entries; /* objects only, by oid */
    size_t count;
};

static fiber_fn int call_inventory(struct node *n, void *arg)
{
    struct inventory *i = arg;
    const struct store_filter all = {0};
    int r = store_list(n->store, &all, &i->entries, &i->count);
    size_t kept = 0;
    for (size_t k = 0; r == 0 && k < i->count; k++) {
        if (!i->entries[k].tombstone)
            i->entries[kept++] = i->entries[k];
    }
    i->count = kept;
    return r;
}

struct content_call {
    struct oid oid;
    uint8_t *bytes; /* 64 KiB, then a meta */
    size_t meta_length;
    bool rotten;
};

static fiber_fn int call_content(struct node *n, void *arg)
{
    struct content_call *c = arg;
    uint64_t meta_version;
    struct version version;
    memset(c->bytes, 0, CHUNK + STORE_META_SIZE_MAX);
    int r = store_read(n->store, &c->oid, 0, CHUNK, c->bytes, &version);
    c->rotten = r == -EUCLEAN;
    if (r == 0)
        r = store_meta_get(n->store, &c->oid, c->bytes + CHUNK, &c->meta_length, &meta_version);
    return r;
}

static const struct store_entry *find_entry(const struct inventory *i, const struct oid *oid)
{
    for (size_t k = 0; k < i->count; k++) {
        if (oid_compare(&i->entries[k].oid, oid) == 0)
            return &i->entries[k];
    }
    return NULL;
}

static const char *oid_text(const struct oid *oid)
{
    static char text[80];
    snprintf(text, sizeof(text), "object %" PRIu64 "/%u/%u of group %u", oid->vid,
             (unsigned)oid->level, (unsigned)oid->index, (unsigned)oid->group);
    return text;
}

static fiber_fn void fetch(struct verify *v, struct node *n, struct content_call *c)
{
    int r = call_node(n, call_content, c);
    if (c->rotten && (v->w->plan.faults[FAULT_ROT] || v->w->plan.faults[FAULT_LYING_DISK]))
        return;
    if (r < 0)
        world_wrong(v->w, "%s on node %s: %s", oid_text(&c->oid), n->name, err_text(r));
}

/* The same bytes on each node that has it; those that rot are left out. */
static fiber_fn void compare_content(struct verify *v, const struct oid *oid, const bool *has)
{
    struct world *w = v->w;
    struct content_call first = {.oid = *oid}, other = {.oid = *oid};
    struct node *first_node = NULL;
    first.bytes = malloc(2 * (CHUNK + STORE_META_SIZE_MAX));
    ASSERT(first.bytes);
    other.bytes = first.bytes + CHUNK + STORE_META_SIZE_MAX;
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        struct node *n = &w->nodes[i];
        struct content_call *c = first_node ? &other : &first;
        if (!has[i])
            continue;
        fetch(v, n, c);
        if (c->rotten)
            continue;
        if (!first_node)
            first_node = n;
        else if (memcmp(first.bytes, other.bytes, CHUNK + STORE_META_SIZE_MAX) != 0)
            world_wrong(w, "%s differs between node %s and node %s (C3)", oid_text(oid),
                        first_node->name, n->name);
    }
    free(first.bytes);
}

/* Every copy of one object: where it must be, and the same. */
static fiber_fn void compare_object(struct verify *v, const struct map *m,
                                    const struct inventory *all, const struct store_entry *e,
                                    const char *holder)
{
    struct world *w = v->w;
    bool has[NODE_COUNT_MAX] = {false};
    const struct map_group *g = &m->groups[e->oid.group];
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        struct node *n = &w->nodes[i];
        const struct map_node *mn = map_node_by_uuid(m, &n->uuid);
        const struct store_entry *here = find_entry(&all[i], &e->oid);
        bool member = mn && map_group_in_sync(g, mn->number);
        has[i] = here != NULL;
        if (here && !member)
            world_wrong(w, "%s is on node %s, where it does not belong (C3)", oid_text(&e->oid),
                        n->name);
        if (!here && member)
            world_wrong(w, "%s is on node %s, but not on node %s (C3)", oid_text(&e->oid), holder,
                        n->name);
        if (here &&
            (here->version.value != e->version.value || here->meta_version != e->meta_version))
            world_wrong(w,
                        "%s is at %" PRIx64 " (meta %" PRIx64 ") on node %s, at %" PRIx64
                        " (meta %" PRIx64 ") on node %s (C3)",
                        oid_text(&e->oid), e->version.value, e->meta_version, holder,
                        here->version.value, here->meta_version, n->name);
    }
    compare_content(v, &e->oid, has);
}

static fiber_fn void verify_replicas(struct verify *v)
{
    struct world *w = v->w;
    struct inventory all[NODE_COUNT_MAX] = {0};
    struct map *m = map_ref(cluster_map(w->nodes[0].cluster));
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        if (call_node(&w->nodes[i], call_inventory, &all[i]) < 0)
            world_wrong(w, "node %s cannot list its objects", w->nodes[i].name);
    }
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        for (size_t k = 0; k < all[i].count; k++) {
            bool seen = false; /* compared when an earlier node was looked at */
            for (unsigned j = 0; j < i && !seen; j++)
                seen = find_entry(&all[j], &all[i].entries[k].oid) != NULL;
            if (!seen)
                compare_object(v, m, all, &all[i].entries[k], w->nodes[i].name);
        }
    }
    for (unsigned i = 0; i < w->plan.nodes; i++)
        free(all[i].entries);
    map_unref(m);
}

/* Zones with a node that takes data. */
static unsigned zone_count(const struct map *m)
{
    unsigned count = 0;
    for (uint32_t i = 0; i < m->node_count; i++) {
        bool is_new = map_node_takes_data(&m->nodes[i]);
        for (uint32_t k = 0; k < i && is_new; k++)
            is_new = !map_node_takes_data(&m->nodes[k]) ||
                     strcmp(m->nodes[k].zone, m->nodes[i].zone) != 0;
        count += is_new;
    }
    return count;
}

/* NULL when every group is where it should be, as far as the map tells; else what is not yet. */
static const char *find_unsettled_group(const struct map *m)
{
    static char text[120];
    unsigned want = MIN(m->pools[0].copies, zone_count(m));
    for (uint32_t i = 0; i < m->group_count; i++) {
        const struct map_group *g = &m->groups[i];
        if (g->joining_count == 0 && g->in_sync_count == want)
            continue;
        snprintf(text, sizeof(text),
                 "group %u has %u nodes in sync and %u joining, it should have %u", i,
                 g->in_sync_count, g->joining_count, want);
        return text;
    }
    return NULL;
}

/* NULL, or an object that is where it does not belong (any more). */
static fiber_fn const char *find_stray(struct verify *v, const struct map *m)
{
    static char text[160];
    const char *found = NULL;
    for (unsigned i = 0; i < v->w->plan.nodes && !found; i++) {
        struct node *n = &v->w->nodes[i];
        const struct map_node *mn = map_node_by_uuid(m, &n->uuid);
        struct inventory all = {0};
        if (call_node(n, call_inventory, &all) < 0)
            return "a node does not list its objects";
        for (size_t k = 0; k < all.count && !found; k++) {
            if (mn && map_group_has(&m->groups[all.entries[k].oid.group], mn->number))
                continue;
            snprintf(text, sizeof(text), "%s is on node %s, where it does not belong",
                     oid_text(&all.entries[k].oid), n->name);
            found = text;
        }
        free(all.entries);
    }
    return found;
}

/* Recovery comes to its end: every group has its copies, and nothing is left elsewhere. */
static fiber_fn void await_recovery(struct verify *v)
{
    struct world *w = v->w;
    uint64_t end = sim_now(w->sim) + REST_NS;
    const char *why = NULL;
    while (w->plan.recovery) {
        struct map *m = map_ref(cluster_map(w->nodes[0].cluster));
        why = find_unsettled_group(m);
        if (!why)
            why = find_stray(v, m);
        map_unref(m);
        if (!why)
            return;
        if (sim_now(w->sim) > end)
            world_stuck(w, why);
        fiber_sleep(w->rt, 100 * NS_PER_MS);
    }
}

/* --- V4 --- */

static fiber_fn void delete_everything(struct verify *v)
{
    struct work *k = v->k;
    for (bool left = true; left;) {
        left = false;
        for (unsigned i = 0; i < VOLUME_COUNT_MAX; i++) {
            if (k->volumes[i].exists)
                work_delete(k, &k->volumes[i]);
            left = left || k->volumes[i].exists;
        }
        for (unsigned i = 0; i < SNAPSHOT_COUNT_MAX; i++) {
            if (k->snapshots[i].exists)
                work_delete_snapshot(k, &k->snapshots[i]);
            left = left || k->snapshots[i].exists;
        }
        fiber_sleep(v->w->rt, 20 * NS_PER_MS);
    }
    if (verify_references(v) != 0)
        world_wrong(v->w, "all is deleted, but not everything is gone");
}

/* --- V5 --- */

static void on_store_finding(void *arg, const char *finding)
{
    struct verify *v = arg;
    on_finding(v, finding);
}

static fiber_fn void verify_store(struct verify *v, struct node *n)
{
    struct store_check_report report = {0};
    if (v->w->plan.faults[FAULT_LYING_DISK] && n->index == v->w->plan.seed % v->w->plan.nodes)
        return; /* what it has lost, its peers have; only sheep check --repair mends the rest */
    v->finding_count = 0;
    int r =
        store_check(v->w->rt, n->disk, !v->w->plan.faults[FAULT_ROT], on_store_finding, v, &report);
    if (r < 0 || report.error_count > 0)
        world_wrong(v->w, "the store of node %s: %s, %" PRIu64 " errors: %s", n->name, err_text(r),
                    report.error_count, v->findings[0]);
}

static bool all_are(struct world *w, enum node_state state)
{
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        if (w->nodes[i].state != state)
            return false;
    }
    return true;
}

static fiber_fn void verify_stores(struct verify *v)
{
    struct world *w = v->w;
    for (unsigned i = 0; i < w->plan.nodes; i++) {
        w->nodes[i].start_at_ns = UINT64_MAX;
        node_stop(&w->nodes[i]);
    }
    w->ending = true; /* nobody is started again */
    while (!all_are(w, NODE_DOWN))
        fiber_sleep(w->rt, 10 * NS_PER_MS);
    for (unsigned i = 0; i < w->plan.nodes; i++)
        verify_store(v, &w->nodes[i]);
    w->over = true;
}

static fiber_fn void verify_main(void *arg)
{
    struct verify *v = arg;
    struct world *w = v->w;
    while (!all_are(w, NODE_UP))
        fiber_sleep(w->rt, 100 * NS_PER_MS);
    world_note(w, "everybody is up");
    verify_images(v);
    verify_list(v);
    await_recovery(v);
    verify_references(v);
    verify_replicas(v);
    if (w->plan.seed % 2) {
        delete_everything(v);
        verify_replicas(v);
    }
    verify_stores(v);
    v->done = true;
}

void verify_all(struct work *k)
{
    struct verify v = {.k = k, .w = k->w};
    ASSERT(fiber_spawn(k->w->rt, "verify", verify_main, &v) == 0);
    world_run(k->w, &v.done, 2 * REST_NS, "verifying");
}
