/* SPDX-License-Identifier: Apache-2.0 */
/* Building and breaking the three nodes. See trio.h. */
#include "trio.h"
#include "object/recovery.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "rt/uring/uring.h"

#define STORE_BYTES (40u << 20)
#define DEADLINE_NS (60 * NS_PER_S)

uint64_t trio_random(struct trio *t)
{
    t->random = hash_u64(t->random + 0x9e3779b97f4a7c15ULL);
    return t->random;
}

/* What every node waits for, when a test has waited too long. */
static void tell_state(struct trio *t)
{
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        struct objects *o = t->nodes[i].objects;
        char text[400];
        if (!o)
            continue;
        object_waiting_text(o, text, sizeof(text));
        fprintf(stderr, "seed %llu: node %u: map %llu of %llu, self %d, serving %d, waits: %s\n",
                (unsigned long long)t->seed, i, (unsigned long long)o->map->version,
                (unsigned long long)cluster_map(t->nodes[i].cluster)->version, o->self,
                gate_serving(o), text);
        for (uint32_t g = 0; g < o->group_count; g++) {
            const struct group *p = &o->groups[g];
            const struct map_group *m = group_map(o, g);
            fprintf(stderr, " group %u: epoch %llu%s, %u inflight, %u in sync, %u joining", g,
                    (unsigned long long)p->epoch, p->closed ? " closed" : "", p->inflight,
                    m ? m->in_sync_count : 0, m ? m->joining_count : 0);
            if (p->join)
                fprintf(stderr, "; join: listed %d complete %d, %zu objects", p->join->listed,
                        p->join->complete, p->join->objects.count);
            fprintf(stderr, "\n");
        }
    }
}

fiber_fn void trio_wait(struct trio *t, bool (*fn)(void *arg), void *arg)
{
    uint64_t deadline_ns = clock_now(t->rt) + DEADLINE_NS;
    while (!fn(arg)) {
        if (clock_now(t->rt) >= deadline_ns)
            tell_state(t);
        CHECK(clock_now(t->rt) < deadline_ns);
        CHECK(fiber_sleep(t->rt, NS_PER_MS) == 0);
    }
}

/* --- one node --- */

static struct uuid node_uuid(unsigned i)
{
    struct uuid u;
    memset(u.bytes, (int)(0x20 + i), sizeof(u.bytes));
    return u;
}

static fiber_fn void start_main(void *arg)
{
    static const char *const names[] = {"a", "b", "c"};
    static const char *const zones[] = {"za", "zb", "zc"};
    struct trio_node *n = arg;
    struct trio *t = n->t;
    const struct store_open_options so = {.cache_bytes = 4u << 20};
    CHECK(store_open(n->rt, n->disk, &so, &n->store) == 0);
    struct listener *l;
    CHECK(net_listen(n->rt, "tcp:127.0.0.1:0", &l) == 0);
    struct cluster_options co = {
        .store_uuid = node_uuid(n->index),
        .name = names[n->index],
        .zone = zones[n->index],
        .address = listener_address(l),
        .admin = "tcp:127.0.0.1:1",
        .weight = 1024,
        .recovery = t->recovery,
        .grace_ns = 1,
        .inexact = store_is_inexact(n->store),
    };
    if (t->sim_cs)
        CHECK(sim_cs_open(n->rt, t->sim_cs, &co.cs) == 0);
    else
        co.driver_spec = t->spec;
    CHECK(cluster_start(n->rt, &co, &n->cluster) == 0);
    const struct objects_options oo = {.listener = l, .entries_per_block = TRIO_ENTRIES};
    struct objects *o;
    CHECK(objects_start(n->rt, n->store, n->cluster, &oo, &o) == 0);
    n->objects = o;
    n->busy = false;
}

static fiber_fn void stop_main(void *arg)
{
    struct trio_node *n = arg;
    objects_stop(n->objects);
    n->objects = NULL;
    cluster_stop(n->cluster);
    CHECK(store_close(n->store) == 0);
    n->busy = false;
}

static bool is_idle(void *arg)
{
    const struct trio_node *n = arg;
    return !n->busy;
}

static fiber_fn void run_on_node(struct trio *t, unsigned i, fiber_main *fn)
{
    struct trio_node *n = &t->nodes[i];
    CHECK(!n->busy);
    n->busy = true;
    CHECK(fiber_spawn(n->rt, "node", fn, n) == 0);
    trio_wait(t, is_idle, n);
}

fiber_fn void trio_start_node(struct trio *t, unsigned i)
{
    CHECK(!t->nodes[i].objects);
    run_on_node(t, i, start_main);
}

fiber_fn void trio_stop_node(struct trio *t, unsigned i)
{
    CHECK(t->nodes[i].objects);
    run_on_node(t, i, stop_main);
}

fiber_fn void trio_kill_node(struct trio *t, unsigned i, bool power_cut)
{
    struct trio_node *n = &t->nodes[i];
    CHECK(t->sim && !n->busy);
    if (power_cut)
        sim_node_crash(t->sim, n->rt);
    else
        sim_node_kill(t->sim, n->rt);
    n->objects = NULL;
    fiber_yield(); /* only then it is dead */
    sim_cs_end_dead(t->sim_cs);
}

static bool map_is_settled(void *arg)
{
    struct trio *t = arg;
    uint64_t version = 0;
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        struct objects *o = t->nodes[i].objects;
        if (!o)
            continue;
        if (o->self < 0 || o->map->group_count == 0)
            return false;
        version = MAX(version, cluster_map(t->nodes[i].cluster)->version);
        for (unsigned k = 0; k < TRIO_NODES; k++) {
            struct objects *p = t->nodes[k].objects;
            if (p && !map_node_by_session(o->map, cluster_session(p->cluster)))
                return false;
        }
    }
    for (unsigned i = 0; i < TRIO_NODES; i++)
        if (t->nodes[i].objects && t->nodes[i].objects->map->version < version)
            return false;
    return true;
}

fiber_fn void trio_settle_map(struct trio *t)
{
    trio_wait(t, map_is_settled, t);
}

/* --- joining --- */

static bool all_in_sync(void *arg)
{
    struct trio *t = arg;
    if (!map_is_settled(t))
        return false;
    unsigned running = 0;
    for (unsigned i = 0; i < TRIO_NODES; i++)
        running += t->nodes[i].objects != NULL;
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        struct objects *o = t->nodes[i].objects;
        for (uint32_t g = 0; o && g < o->map->group_count; g++) {
            const struct map_group *m = &o->map->groups[g];
            if (m->joining_count > 0 || m->in_sync_count != MIN(running, t->copies))
                return false;
            for (unsigned k = 0; k < m->in_sync_count; k++)
                if (map_node(o->map, m->in_sync[k])->session.value == 0)
                    return false;
        }
    }
    return true;
}

fiber_fn void trio_settle_sync(struct trio *t)
{
    trio_wait(t, all_in_sync, t);
}

/* --- maps made by hand --- */

struct adoption {
    struct objects *o;
    struct map *map;
    unsigned *left;
};

static fiber_fn void adopt_main(void *arg)
{
    struct adoption *a = arg;
    objects_adopt(a->o, a->map);
    --*a->left;
}

static bool none_left(void *arg)
{
    return *(unsigned *)arg == 0;
}

static bool same_sets(const struct map_group *a, const struct map_group *b)
{
    return a->in_sync_count == b->in_sync_count && a->joining_count == b->joining_count &&
           memcmp(a->in_sync, b->in_sync, a->in_sync_count * sizeof(a->in_sync[0])) == 0 &&
           memcmp(a->joining, b->joining, a->joining_count * sizeof(a->joining[0])) == 0;
}

fiber_fn void trio_change_map(struct trio *t, void (*edit)(void *arg, struct map *m), void *arg)
{
    struct map *now = NULL;
    struct adoption adoptions[TRIO_NODES];
    unsigned left = 0;
    for (unsigned i = 0; i < TRIO_NODES; i++)
        if (t->nodes[i].objects && (!now || t->nodes[i].objects->map->version > now->version))
            now = t->nodes[i].objects->map;
    struct map *m = map_clone(now);
    CHECK(m);
    m->version += 1000; /* more than the leader will have written meanwhile */
    edit(arg, m);
    for (uint32_t i = 0; i < m->group_count; i++)
        if (!same_sets(&m->groups[i], &now->groups[i]))
            m->groups[i].epoch.value = m->version;
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        if (!t->nodes[i].objects || t->deaf >> i & 1)
            continue;
        adoptions[i] = (struct adoption){t->nodes[i].objects, m, &left};
        left++;
        CHECK(fiber_spawn(t->nodes[i].rt, "adopt", adopt_main, &adoptions[i]) == 0);
    }
    trio_wait(t, none_left, &left);
    map_unref(m);
}

static uint16_t number_of(struct trio *t, const struct map *m, int i)
{
    struct uuid u = node_uuid((unsigned)i);
    return map_node_by_uuid(m, &u)->number;
}

void trio_set_in_sync(struct trio *t, struct map *m, uint32_t group, const int *nodes)
{
    struct map_group *g = &m->groups[group];
    for (g->in_sync_count = 0; *nodes >= 0; nodes++)
        g->in_sync[g->in_sync_count++] = number_of(t, m, *nodes);
}

void trio_set_joining(struct trio *t, struct map *m, uint32_t group, const int *nodes)
{
    struct map_group *g = &m->groups[group];
    for (g->joining_count = 0; *nodes >= 0; nodes++)
        g->joining[g->joining_count++] = number_of(t, m, *nodes);
}

/* --- all --- */

static fiber_fn void format_store(void *arg)
{
    struct trio_node *n = arg;
    const struct store_format_options fo = {
        .store_uuid = node_uuid(n->index),
        .size = STORE_BYTES,
        .overwrite = true,
    };
    CHECK(store_format(n->rt, n->disk, &fo, NULL, NULL) == 0);
    n->busy = false;
}

fiber_fn void trio_wipe_node(struct trio *t, unsigned i)
{
    CHECK(!t->nodes[i].objects);
    run_on_node(t, i, format_store);
}

static bool all_registered(void *arg)
{
    struct trio *t = arg;
    for (unsigned i = 0; i < TRIO_NODES; i++)
        if (!t->nodes[i].objects)
            return false;
    return true;
}

static fiber_fn void format_cluster(void *arg)
{
    struct trio_node *n = arg;
    struct map_format f = {
        .cluster_name = "trio",
        .copies = (uint8_t)n->t->copies,
        .min_copies = 1,
        .group_count = n->t->group_count,
    };
    memset(f.cluster.bytes, 0xcc, sizeof(f.cluster.bytes));
    CHECK(cluster_format(n->cluster, &f) == 0);
    n->busy = false;
}

static fiber_fn void scene_main(void *arg)
{
    struct trio *t = arg;
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        run_on_node(t, i, format_store);
        trio_start_node(t, i);
    }
    trio_wait(t, all_registered, t);
    run_on_node(t, 0, format_cluster);
    trio_settle_map(t);
    t->scene(t);
    for (unsigned i = 0; i < TRIO_NODES; i++)
        if (t->nodes[i].objects)
            trio_stop_node(t, i);
}

static void init(struct trio *t, fiber_fn void (*scene)(struct trio *t), unsigned copies,
                 uint64_t seed)
{
    *t = (struct trio){
        .seed = seed, .random = seed, .copies = copies, .group_count = 8, .scene = scene};
    for (unsigned i = 0; i < TRIO_NODES; i++)
        t->nodes[i] = (struct trio_node){.t = t, .index = i};
}

static void run_on_sim(fiber_fn void (*scene)(struct trio *t), unsigned copies, uint64_t seed,
                       enum cluster_recovery recovery)
{
    struct trio t;
    init(&t, scene, copies, seed);
    t.recovery = recovery;
    t.sim = sim_new(seed);
    t.rt = sim_node_new(t.sim, NULL);
    t.sim_cs = sim_cs_new(t.sim);
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        struct trio_node *n = &t.nodes[i];
        n->rt = sim_node_new(t.sim, NULL);
        snprintf(n->disk, sizeof(n->disk), "disk-%u", i);
        CHECK(sim_disk_new(t.sim, n->disk, STORE_BYTES, DISK_WRITE_BACK) == 0);
    }
    sim_do(t.sim, t.rt, scene_main, &t);
    sim_cs_free(t.sim_cs);
    sim_free(t.sim);
}

static void run_on_uring(fiber_fn void (*scene)(struct trio *t), unsigned copies,
                         enum cluster_recovery recovery)
{
    struct trio t;
    char command[128];
    init(&t, scene, copies, 1);
    t.recovery = recovery;
    assert_int_equal(rt_uring_new(NULL, &t.rt), 0);
    snprintf(t.directory, sizeof(t.directory), "/tmp/object-test-XXXXXX");
    assert_non_null(mkdtemp(t.directory));
    snprintf(t.spec, sizeof(t.spec), "local:%s/cluster.db", t.directory);
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        t.nodes[i].rt = t.rt;
        snprintf(t.nodes[i].disk, sizeof(t.nodes[i].disk), "%s/store-%u", t.directory, i);
    }
    assert_int_equal(fiber_spawn(t.rt, "scene", scene_main, &t), 0);
    assert_int_equal(rt_uring_run(t.rt), 0);
    rt_uring_free(t.rt);
    snprintf(command, sizeof(command), "rm -rf %s", t.directory);
    assert_int_equal(system(command), 0);
}

static void run_seeds(fiber_fn void (*scene)(struct trio *t), unsigned copies, unsigned seeds,
                      enum cluster_recovery recovery)
{
    const char *only = getenv("SEED"), *more = getenv("SEEDS");
    if (more && seeds > 0)
        seeds = (unsigned)strtoul(more, NULL, 0);
    for (uint64_t seed = 1; seed <= seeds; seed++) {
        if (only && strtoull(only, NULL, 0) != seed)
            continue;
        if (getenv("VERBOSE"))
            fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
        run_on_sim(scene, copies, seed, recovery);
    }
}

void trio_run_sim(fiber_fn void (*scene)(struct trio *t), unsigned copies, unsigned seeds)
{
    run_seeds(scene, copies, seeds, CLUSTER_RECOVERY_OFF);
}

void trio_run(fiber_fn void (*scene)(struct trio *t), unsigned copies, unsigned seeds)
{
    if (!getenv("SEED"))
        run_on_uring(scene, copies, CLUSTER_RECOVERY_OFF);
    trio_run_sim(scene, copies, seeds);
}

void trio_run_recovery(fiber_fn void (*scene)(struct trio *t), unsigned copies, unsigned seeds)
{
    run_seeds(scene, copies, seeds, CLUSTER_RECOVERY_ON);
}

void trio_run_recovery_real(fiber_fn void (*scene)(struct trio *t), unsigned copies)
{
    if (!getenv("SEED"))
        run_on_uring(scene, copies, CLUSTER_RECOVERY_ON);
}

/* --- work --- */

struct oid trio_oid(struct trio *t, uint64_t vid, unsigned level, uint32_t index)
{
    return (struct oid){
        .vid = vid,
        .index = index,
        .level = (uint8_t)level,
        .group = oid_group(7, level, index, 0, t->group_count),
    };
}

struct object_owner trio_owner(uint64_t term, uint64_t vid)
{
    return (struct object_owner){.volume = 7, .term = {term}, .vid = {vid}};
}

fiber_fn int trio_write(struct objects *o, const struct object_owner *owner, struct oid oid,
                        uint64_t prev, uint64_t next, uint32_t offset, uint32_t length,
                        uint8_t fill)
{
    void *data = buf_get(o->rt, length);
    memset(data, fill, length);
    const struct object_extent extent = {offset, length};
    const struct iovec iov = {data, length};
    const struct object_change c = {
        .kind = OBJECT_WRITE,
        .oid = oid,
        .prev = {prev},
        .next = {next},
        .extents = &extent,
        .extent_count = 1,
        .iov = &iov,
        .iov_count = 1,
    };
    int r = object_change(o, owner, &c);
    buf_put(o->rt, data);
    return r;
}

fiber_fn int trio_byte(struct objects *o, struct oid oid, uint32_t offset)
{
    uint8_t byte = 0xee;
    int r = object_read(o, &oid, offset, 1, &byte, NULL);
    CHECK(r == 0 || r == -ENOENT);
    return r == 0 ? byte : -1;
}

static struct store_entry *list_own(struct trio *t, unsigned i, size_t *ret_count)
{
    const struct store_filter filter = {.by_vid = false};
    struct store_entry *entries;
    size_t n, kept = 0;
    CHECK(store_list(t->nodes[i].store, &filter, &entries, &n) == 0);
    for (size_t k = 0; k < n; k++)
        if (!entries[k].tombstone)
            entries[kept++] = entries[k];
    *ret_count = kept;
    return entries;
}

size_t trio_object_count(struct trio *t, unsigned i)
{
    size_t count;
    free(list_own(t, i, &count));
    return count;
}

fiber_fn void trio_check_equal(struct trio *t)
{
    size_t count, other_count;
    CHECK(t->copies == TRIO_NODES);
    struct store_entry *entries = list_own(t, 0, &count);
    for (unsigned i = 1; i < TRIO_NODES; i++) {
        struct store_entry *other = list_own(t, i, &other_count);
        CHECK(count == other_count);
        for (size_t k = 0; k < count; k++) {
            struct store_stat a, b;
            CHECK(oid_equal(&entries[k].oid, &other[k].oid));
            CHECK(entries[k].version.value == other[k].version.value);
            CHECK(entries[k].meta_version == other[k].meta_version);
            store_stat(t->nodes[0].store, &entries[k].oid, &a);
            store_stat(t->nodes[i].store, &entries[k].oid, &b);
            if (a.end != b.end || a.block_count != b.block_count)
                fprintf(stderr,
                        "seed %llu: node %u: end %u, %u blocks; node 0: end %u, %u blocks\n",
                        (unsigned long long)t->seed, i, b.end, b.block_count, a.end, a.block_count);
            CHECK(a.end == b.end && a.block_count == b.block_count);
            if (a.end == 0)
                continue;
            uint8_t *x = malloc(a.end), *y = malloc(a.end);
            CHECK(x && y);
            CHECK(store_read(t->nodes[0].store, &entries[k].oid, 0, a.end, x, NULL) == 0);
            CHECK(store_read(t->nodes[i].store, &entries[k].oid, 0, a.end, y, NULL) == 0);
            CHECK(memcmp(x, y, a.end) == 0);
            free(x);
            free(y);
        }
        free(other);
    }
    free(entries);
}
