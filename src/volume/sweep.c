/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sweeper: one fiber of each node. It kills trash that this node made, and, where the node
 * leads, all trash and what was left behind.
 *
 * Z1 Everything here may be done twice, by two nodes at once: kills are idempotent, opening takes
 * the lease. Z2 Nothing ticks: it wakes for new trash, a new map and a new duty, and while
 * something is waiting for its time.
 */
#include "volume/sweep.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "volume/instance.h"

#define LOG_MODULE "volume"

#define CARE_AFTER_NS (60 * NS_PER_S) /* L6 */
#define OWN_AFTER_NS  (5 * NS_PER_S)  /* what failed on this very node */
#define RETRY_NS      (5 * NS_PER_S)

/* A record that needs somebody, since when. */
struct care {
    uint64_t volume;
    uint64_t since_ns;
    bool seen;
};

struct sweeper {
    struct volumes *vs;
    struct waitq work, ended;
    bool running, stop;
    bool due;         /* something happened: look now */
    bool trash_left;  /* there may be trash of ours */
    bool ruins;       /* a volume may be in disorder on this node */
    uint64_t next_ns; /* else look again then, UINT64_MAX never */
    struct care *cares;
    unsigned care_count;
};

/* --- trash --- */

static fiber_fn int kill_root(struct volumes *vs, const struct trash *t)
{
    struct image image = {.vid = t->vid,
                          .family = t->family,
                          .group_base = t->group_base,
                          .group_count = t->group_count};
    struct ref_op op = {.kind = REF_KILL,
                        .target = image_oid(&image, t->vid.value, 2, 0),
                        .copies = t->root_copies};
    int r = object_refs(vs->objects, NULL, REF_SENDER_REGISTRY, &op, 1);
    if (!r)
        r = registry_erase_trash(service_cs(vs), t->vid);
    if (!r)
        object_settle(vs->objects, t->vid, (struct version){UINT64_MAX});
    return r;
}

fiber_fn int sweep_trash(struct volumes *vs)
{
    struct trash *list = NULL;
    size_t count = 0;
    int r = registry_list_trash(service_cs(vs), &list, &count);
    for (size_t i = 0; !r && i < count && !vs->stopping; i++)
        r = kill_root(vs, &list[i]);
    free(list);
    return r;
}

/* --- records that nobody owns --- */

static struct care *care_of(struct sweeper *s, uint64_t volume)
{
    for (unsigned i = 0; i < s->care_count; i++) {
        if (s->cares[i].volume == volume)
            return &s->cares[i];
    }
    struct care *more = reallocarray(s->cares, s->care_count + 1, sizeof(*more));
    if (!more)
        return NULL;
    s->cares = more;
    more[s->care_count] = (struct care){.volume = volume, .since_ns = clock_now(s->vs->rt)};
    return &more[s->care_count++];
}

static bool has_dying_snapshot(const struct record *r)
{
    for (unsigned i = 0; i < r->snapshot_count; i++) {
        if (r->snapshots[i].state == SNAPSHOT_DELETING)
            return true;
    }
    return false;
}

/* Left by this session: it failed here, and nobody uses it any more. */
static bool is_own_ruin(struct volumes *vs, const struct record *r)
{
    return r->working.vid.value != 0 && !r->lease.clean &&
           r->lease.session.value == cluster_session(vs->cluster).value &&
           !instance_find(vs, r->name, NULL);
}

static bool needs_care(struct volumes *vs, const struct record *r)
{
    if (is_own_ruin(vs, r))
        return true;
    if (!cluster_is_leader(vs->cluster))
        return false;
    if (has_dying_snapshot(r))
        return true;
    if (r->working.vid.value == 0)
        return false;
    if (r->lease.clean)
        return r->pending.kind != PENDING_NONE;
    const struct map *m = cluster_map(vs->cluster);
    return r->lease.map_version <= m->version && !map_node_by_session(m, r->lease.session);
}

static fiber_fn void take_care(struct volumes *vs, const struct record *r)
{
    struct instance *in;
    struct volume_error error = {0};
    for (unsigned i = 0; i < r->snapshot_count; i++) {
        if (r->snapshots[i].state == SNAPSHOT_DELETING)
            volume_delete_snapshot(vs, r->name, r->snapshots[i].tag, NULL);
    }
    if (r->working.vid.value == 0 || (r->lease.clean && r->pending.kind == PENDING_NONE))
        return;
    log_info("volume %s was left open; opening it to put it in order", r->name);
    int e = instance_open(vs, r->name, NULL, false, &in, &error);
    if (!e)
        instance_release(in, false);
    else
        log_warn("volume %s could not be put in order: %s", r->name, error.text);
}

static fiber_fn void sweep_records(struct sweeper *s)
{
    struct volumes *vs = s->vs;
    struct record *records;
    size_t count;
    if (registry_list(service_cs(vs), &records, &count, NULL)) {
        s->next_ns = clock_now(vs->rt) + RETRY_NS;
        return;
    }
    for (unsigned i = 0; i < s->care_count; i++)
        s->cares[i].seen = false;
    for (size_t i = 0; i < count && !s->stop; i++) {
        if (!needs_care(vs, &records[i]))
            continue;
        struct care *c = care_of(s, records[i].volume);
        if (!c)
            continue;
        c->seen = true;
        uint64_t now = clock_now(vs->rt);
        uint64_t due = c->since_ns + (is_own_ruin(vs, &records[i]) ? OWN_AFTER_NS : CARE_AFTER_NS);
        if (now >= due) {
            c->since_ns = now; /* again that much later if it does not work */
            due = now + CARE_AFTER_NS;
            take_care(vs, &records[i]);
        }
        s->next_ns = MIN(s->next_ns, due);
    }
    unsigned kept = 0;
    for (unsigned i = 0; i < s->care_count; i++) {
        if (s->cares[i].seen)
            s->cares[kept++] = s->cares[i];
    }
    s->care_count = kept;
    s->ruins = kept > 0;
    registry_list_free(records, count);
}

/* --- the fiber --- */

static fiber_fn void sweep_once(struct sweeper *s)
{
    struct volumes *vs = s->vs;
    s->next_ns = UINT64_MAX;
    if (s->trash_left) {
        s->trash_left = false;
        int r = sweep_trash(vs);
        if (r && !s->stop) {
            log_warn("reclaiming deleted images has to wait: %s", err_text(r));
            s->trash_left = true;
            s->next_ns = clock_now(vs->rt) + RETRY_NS;
        }
    }
    if (!s->stop && (s->ruins || cluster_is_leader(vs->cluster)))
        sweep_records(s);
}

static fiber_fn void sweep_main(void *arg)
{
    struct sweeper *s = arg;
    while (!s->stop) {
        if (!s->due && clock_now(s->vs->rt) < s->next_ns) {
            waitq_wait_until(&s->work, s->vs->rt, s->next_ns);
            continue;
        }
        s->due = false;
        sweep_once(s);
    }
    s->running = false;
    waitq_wake_all(&s->ended);
}

static void look_soon(struct sweeper *s)
{
    s->trash_left = s->due = true;
    waitq_wake_all(&s->work);
}

static void on_lead(void *arg)
{
    look_soon(arg);
}

static fiber_fn void on_map(void *arg, struct map *m)
{
    struct sweeper *s = arg;
    if (s->stop || !cluster_is_leader(s->vs->cluster))
        return;
    look_soon(s);
}

void sweep_trash_soon(struct volumes *vs)
{
    if (vs->sweeper)
        look_soon(vs->sweeper);
}

void sweep_soon(struct volumes *vs)
{
    if (!vs->sweeper)
        return;
    vs->sweeper->due = vs->sweeper->ruins = true;
    waitq_wake_all(&vs->sweeper->work);
}

fiber_fn void sweep_stop(struct volumes *vs)
{
    struct sweeper *s = vs->sweeper;
    s->stop = true;
    waitq_wake_all(&s->work);
    while (s->running)
        waitq_wait(&s->ended);
    cluster_off_lead(vs->cluster, on_lead, s);
    cluster_off_map(vs->cluster, on_map, s);
    vs->sweeper = NULL;
    free(s->cares);
    free(s);
}

fiber_fn int sweep_start(struct volumes *vs)
{
    struct sweeper *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->vs = vs;
    s->next_ns = UINT64_MAX;
    waitq_init(&s->work);
    waitq_init(&s->ended);
    int r = fiber_spawn(vs->rt, "volume-sweep", sweep_main, s);
    if (r) {
        free(s);
        return r;
    }
    s->running = true;
    vs->sweeper = s;
    r = cluster_on_map(vs->cluster, on_map, s);
    if (!r)
        r = cluster_on_lead(vs->cluster, on_lead, s);
    if (r)
        sweep_stop(vs);
    return r;
}
