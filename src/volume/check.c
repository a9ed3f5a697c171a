/* SPDX-License-Identifier: Apache-2.0 */
/*
 * volume_check(): is what is stored exactly what the records reach, with exact ledgers, equal on
 * all nodes?
 *
 * X1 At rest, an object's ledger is L[g] = (references with generation g) - sum of copies of the
 * holders of references with generation g - 1. Copies of a root are in its record, of a leaf in its
 * own ledger. X2 What moves is no fault: a finding counts only if a second look, a moment later,
 * finds the very same, and ledgers and orphans are judged only when nothing owes, dies, is pending
 * or unlinked.
 * X4 Only copies on in-sync nodes count. Nodes that catch up, and objects that a node still has of
 * groups that have moved away from it, mean that the cluster is not at rest.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "volume/check_table.h"
#include "volume/instance.h"

#define SECOND_LOOK_NS (1500 * NS_PER_MS) /* longer than an open volume leaves links undone */
#define FINDING_MAX    1000u

/* One look at everything. */
struct look {
    struct volumes *vs;
    struct check_table table;
    struct record *records;
    size_t record_count;
    struct volume_check_report report;
    bool busy; /* X2 */
    char **findings;
    size_t finding_count;
    uint32_t missing_nodes; /* whose inventory could not be had */
    uint16_t node;          /* whose inventory is being read */
};

static void found(struct look *l, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void found(struct look *l, const char *format, ...)
{
    char text[600];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (l->finding_count >= FINDING_MAX)
        return;
    char **more = reallocarray(l->findings, l->finding_count + 1, sizeof(*more));
    char *copy = strdup(text);
    if (more)
        l->findings = more;
    if (more && copy)
        l->findings[l->finding_count++] = copy;
    else
        free(copy);
}

/* Where an object belongs, for people: "volume a@s at offset 4194304". */
static const char *place_of(const struct check_object *o, char *out, size_t size)
{
    if (!o->record) {
        snprintf(out, size, "no volume");
        return out;
    }
    const struct record *r = o->record;
    const struct image *i = r->working.vid.value ? &r->working
                            : r->snapshot_count  ? &r->snapshots[0].image
                                                 : &r->working;
    uint64_t span = i->object_size;
    for (unsigned level = 0; level < o->oid.level; level++)
        span *= i->entries;
    snprintf(out, size, "volume %s%s%s at offset %" PRIu64 "%s", r->name, o->tag ? "@" : "",
             o->tag ? o->tag : "", o->oid.level == 2 ? 0 : o->oid.index * span,
             o->oid.level ? " (index)" : "");
    return out;
}

/* --- inventories --- */

/* X4: only what in-sync nodes hold counts. True: goes on with the entry. */
static bool counts(struct look *l, const struct object_entry *e)
{
    const struct map *m = cluster_map(l->vs->cluster);
    if (e->oid.group >= m->group_count)
        return true;
    const struct map_group *g = &m->groups[e->oid.group];
    if (map_group_in_sync(g, l->node))
        return true;
    if (!e->tombstone && !map_group_has(g, l->node)) {
        l->report.strays++;
        l->busy = true;
    }
    return false;
}

static fiber_fn int add_entry(void *arg, const struct object_entry *e)
{
    struct look *l = arg;
    if (!counts(l, e))
        return 0;
    struct check_object *o = check_get(&l->table, &e->oid);
    if (!o)
        return -ENOMEM;
    if (o->replica_count < MAP_GROUP_MEMBER_MAX)
        o->replicas[o->replica_count++] = (struct check_replica){.node = l->node,
                                                                 .tombstone = e->tombstone,
                                                                 .version = e->version,
                                                                 .meta_version = e->meta_version};
    if (!e->meta || e->tombstone || e->meta_version < o->ledger_version)
        return 0;
    struct ledger ledger;
    o->ledger_bad = ledger_decode(e->meta, e->meta_length, &ledger) != 0;
    if (o->ledger_bad)
        return 0;
    ledger_done(&o->ledger);
    o->ledger = ledger;
    o->ledger_version = e->meta_version;
    return 0;
}

static bool holds_any_group(const struct map *m, uint16_t node)
{
    for (uint32_t i = 0; i < m->group_count; i++) {
        if (map_group_in_sync(&m->groups[i], node))
            return true;
    }
    return false;
}

/* X4 */
static bool is_recovering(const struct map *m)
{
    for (uint32_t i = 0; i < m->group_count; i++) {
        if (m->groups[i].joining_count > 0)
            return true;
    }
    return false;
}

static fiber_fn int take_inventories(struct look *l)
{
    struct map *m = map_ref(cluster_map(l->vs->cluster));
    int r = 0;
    l->busy = l->busy || is_recovering(m);
    for (uint32_t i = 0; i < m->node_count && !r; i++) {
        l->node = m->nodes[i].number;
        if (m->nodes[i].session.value == 0 && !holds_any_group(m, l->node))
            continue; /* away, and the others have everything */
        r = m->nodes[i].session.value ? object_inventory(l->vs->objects, l->node, add_entry, l)
                                      : -EAGAIN;
        if (r == -EAGAIN) {
            l->missing_nodes++;
            l->busy = true;
            r = 0;
        }
    }
    map_unref(m);
    return r;
}

/* --- the walk from the records --- */

struct walk {
    struct look *look;
    const struct record *record;
    const struct image *image;
    const char *tag;
};

/* One reference; the object, or NULL when out of memory. */
static struct check_object *refer(struct walk *w, const struct oid *oid, uint32_t generation,
                                  uint64_t copies)
{
    struct check_object *o = check_get(&w->look->table, oid);
    if (!o || check_add_reference(o, generation, copies))
        return NULL;
    if (!o->reachable) {
        o->reachable = true;
        o->record = w->record;
        o->tag = w->tag;
    }
    return o;
}

static bool is_stored(const struct check_object *o)
{
    return check_live_replicas(o) > 0;
}

/* Refers to all children of a block, once per block (X1). */
static fiber_fn int walk_block(struct walk *w, struct check_object *block, uint64_t copies)
{
    struct look *l = w->look;
    const struct image *image = w->image;
    if (block->walked || !is_stored(block))
        return 0;
    block->walked = true;
    struct index_entry *entries = calloc(image->entries, sizeof(*entries));
    if (!entries)
        return -ENOMEM;
    struct index_owed *owed = NULL;
    unsigned owed_count = 0;
    int r = block_read(l->vs, image, &block->oid, entries, NULL, &owed, &owed_count);
    free(owed);
    l->busy = l->busy || owed_count > 0 || r == -ENOENT;
    char text[OID_TEXT_SIZE], place[400];
    if (r == -EBADMSG || r == -EUCLEAN || r == -EPROTO)
        found(l, "index block %s of %s cannot be read: %s", oid_format(&block->oid, text),
              place_of(block, place, sizeof(place)), err_text(r));
    bool skip = r == -ENOENT || r == -EBADMSG || r == -EUCLEAN || r == -EPROTO;
    for (uint32_t i = 0; i < image->entries && !r; i++) {
        if (!entries[i].vid)
            continue;
        uint32_t index = block->oid.level == 2 ? i : block->oid.index * image->entries + i;
        struct oid oid = image_oid(image, entries[i].vid, block->oid.level - 1u, index);
        struct check_object *child = refer(w, &oid, entries[i].generation, copies);
        if (!child)
            r = -ENOMEM;
        else if (oid.level > 0)
            r = walk_block(w, child, child->ledger.copies);
    }
    free(entries);
    return skip ? 0 : r;
}

static fiber_fn int walk_image(struct look *l, const struct record *r, const struct image *image,
                               const char *tag)
{
    struct walk w = {.look = l, .record = r, .image = image, .tag = tag};
    struct oid oid = image_oid(image, image->vid.value, 2, 0);
    struct check_object *root = refer(&w, &oid, 0, 0);
    return root ? walk_block(&w, root, image->root_copies) : -ENOMEM;
}

static fiber_fn int walk_record(struct look *l, const struct record *r)
{
    const struct record_lease *lease = &r->lease;
    int e = 0;
    if (r->pending.kind != PENDING_NONE)
        l->busy = true;
    for (unsigned i = 0; i < r->snapshot_count && !e; i++) {
        l->report.snapshots++;
        e = walk_image(l, r, &r->snapshots[i].image, r->snapshots[i].tag);
    }
    if (r->working.vid.value == 0 || e)
        return e;
    if (!lease->clean && !map_node_by_session(cluster_map(l->vs->cluster), lease->session))
        l->busy = true; /* nobody has reconciled it yet */
    l->report.volumes++;
    return walk_image(l, r, &r->working, NULL);
}

/* --- judging --- */

static const struct record *record_of_working(const struct look *l, uint64_t vid)
{
    for (size_t i = 0; i < l->record_count; i++) {
        if (l->records[i].working.vid.value == vid)
            return &l->records[i];
    }
    return NULL;
}

/* V1: an own object of a working image is reachable whatever the index says. */
static void find_unlinked(struct look *l, struct check_object *o)
{
    if (o->reachable || !is_stored(o))
        return;
    const struct record *r = record_of_working(l, o->oid.vid);
    if (!r || r->lease.clean)
        return; /* of a volume that was closed cleanly there are none (V6) */
    o->unlinked = o->reachable = true;
    o->record = r;
    l->busy = true;
}

static void judge_replicas(struct look *l, const struct check_object *o)
{
    const struct map *m = cluster_map(l->vs->cluster);
    char text[OID_TEXT_SIZE], place[400];
    if (o->oid.group >= m->group_count || check_live_replicas(o) == 0 || l->missing_nodes)
        return;
    const struct map_group *g = &m->groups[o->oid.group];
    const struct check_replica *best = NULL;
    for (unsigned i = 0; i < o->replica_count; i++) {
        if (!best || o->replicas[i].version.value > best->version.value)
            best = &o->replicas[i];
    }
    l->report.replicas_compared += o->replica_count;
    for (unsigned k = 0; k < g->in_sync_count; k++) {
        const struct check_replica *mine = NULL;
        for (unsigned i = 0; i < o->replica_count; i++) {
            if (o->replicas[i].node == g->in_sync[k])
                mine = &o->replicas[i];
        }
        const struct map_node *n = map_node(m, g->in_sync[k]);
        const char *name = n ? n->name : "?";
        oid_format(&o->oid, text);
        place_of(o, place, sizeof(place));
        if (!mine || mine->tombstone != best->tombstone)
            found(l, "object %s of %s is missing on node %s", text, place, name);
        else if (mine->version.value != best->version.value)
            found(l, "object %s of %s has version %#" PRIx64 " on node %s, %#" PRIx64 " elsewhere",
                  text, place, mine->version.value, name, best->version.value);
        else if (mine->meta_version != best->meta_version)
            found(l,
                  "the ledger of object %s of %s is version %#" PRIx64 " on node %s, %#" PRIx64
                  " elsewhere",
                  text, place, mine->meta_version, name, best->meta_version);
    }
}

static void judge_object(struct look *l, struct check_object *o)
{
    char text[OID_TEXT_SIZE], place[400], is[200], should[200];
    oid_format(&o->oid, text);
    place_of(o, place, sizeof(place));
    bool stored = is_stored(o);
    l->report.objects_stored += stored;
    l->report.objects_reachable += o->reachable;
    judge_replicas(l, o);
    if (o->ledger_bad)
        found(l, "the ledger of object %s of %s cannot be read", text, place);
    if (o->reachable && !stored && l->missing_nodes == 0)
        found(l, "object %s of %s is missing on all nodes", text, place);
    if (o->reachable && stored && o->ledger.state != LEDGER_LIVE)
        found(l, "object %s of %s is in use, but is being removed", text, place);
    if (l->busy)
        return; /* X2 */
    if (!o->reachable && stored)
        found(l, "object %s is stored, but no volume refers to it", text);
    if (!o->reachable || !stored || o->unlinked || o->ledger_bad)
        return;
    l->report.ledgers++;
    if (check_ledger_is_exact(o))
        return;
    check_format_counts(o->ledger.counts, o->ledger.count_count, is, sizeof(is));
    check_format_counts(o->expected, o->expected_count, should, sizeof(should));
    found(l, "the ledger of object %s of %s counts %s, exact is %s", text, place, is, should);
}

/* --- a look --- */

static int compare_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Links of volumes that are open on this node are written now, so that an idle cluster is at rest.
 */
static fiber_fn void settle_own(struct volumes *vs)
{
    struct list *n = vs->instances.next;
    while (n != &vs->instances) {
        struct instance *in = instance_ref(list_entry(n, struct instance, link));
        if (!in->frozen && in->state == INSTANCE_OPEN && !in->failed) {
            fmutex_lock(&in->settle_lock);
            if (in->state == INSTANCE_OPEN && !in->failed)
                settle_pass(in);
            fmutex_unlock(&in->settle_lock);
        }
        n = in->state == INSTANCE_GONE ? &vs->instances : in->link.next;
        instance_unref(in);
    }
}

static fiber_fn int look_read(struct look *l)
{
    struct volumes *vs = l->vs;
    struct trash *trash;
    size_t trash_count;
    unsigned bad;
    int r = registry_list_trash(service_cs(vs), &trash, &trash_count);
    if (r)
        return r;
    free(trash);
    l->busy = trash_count > 0;
    r = registry_list(service_cs(vs), &l->records, &l->record_count, &bad);
    if (!r && bad) {
        found(l, "%u volume records cannot be read; see the log", bad);
        l->busy = true;
    }
    if (!r)
        r = take_inventories(l);
    for (size_t i = 0; i < l->record_count && !r; i++)
        r = walk_record(l, &l->records[i]);
    return r;
}

static fiber_fn int look_begin(struct volumes *vs, struct look *ret)
{
    *ret = (struct look){.vs = vs};
    check_table_init(&ret->table);
    settle_own(vs);
    int r = look_read(ret);
    if (r)
        return r;
    struct htable *t = &ret->table.objects;
    for (struct hnode *n = htable_iter(t, NULL); n; n = htable_iter(t, n)) {
        struct check_object *o = container_of(n, struct check_object, node);
        find_unlinked(ret, o);
        if (o->ledger.state == LEDGER_DYING && is_stored(o))
            ret->busy = true;
    }
    for (struct hnode *n = htable_iter(t, NULL); n; n = htable_iter(t, n))
        judge_object(ret, container_of(n, struct check_object, node));
    if (ret->finding_count)
        qsort(ret->findings, ret->finding_count, sizeof(*ret->findings), compare_text);
    ret->report.at_rest = !ret->busy;
    return 0;
}

static void look_end(struct look *l)
{
    check_table_done(&l->table);
    registry_list_free(l->records, l->record_count);
    for (size_t i = 0; i < l->finding_count; i++)
        free(l->findings[i]);
    free(l->findings);
}

/* X2: reports what both looks found. */
static uint64_t report_common(const struct look *a, const struct look *b,
                              void (*report)(void *arg, const char *finding), void *arg)
{
    uint64_t common = 0;
    for (size_t i = 0, k = 0; i < a->finding_count && k < b->finding_count;) {
        int order = strcmp(a->findings[i], b->findings[k]);
        if (order == 0) {
            common++;
            if (report)
                report(arg, b->findings[k]);
        }
        i += order <= 0;
        k += order >= 0;
    }
    return common;
}

fiber_fn int volume_check(struct volumes *vs, void (*report)(void *arg, const char *finding),
                          void *arg, struct volume_check_report *ret)
{
    struct look first, second;
    int r = look_begin(vs, &first);
    if (r || first.finding_count == 0) {
        if (!r)
            *ret = first.report;
        look_end(&first);
        return r;
    }
    r = fiber_sleep(vs->rt, SECOND_LOOK_NS);
    if (!r) {
        r = look_begin(vs, &second);
        if (!r) {
            *ret = second.report;
            ret->findings = report_common(&first, &second, report, arg);
        }
        look_end(&second);
    }
    look_end(&first);
    return r;
}
