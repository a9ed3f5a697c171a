/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One node's membership: start, stop, and what the layers above ask.
 *
 * C1 Fibers of a cluster end before it is freed; who waits inside a call counts among them.
 * C2 The map is never NULL and its version never falls.
 */
#include "cluster/cluster.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "cluster/cluster_internal.h"

#define LOG_MODULE "cluster"

#define GRACE_DEFAULT_NS (10 * NS_PER_S)
#define OUT_DEFAULT_NS   (600 * NS_PER_S)

int cluster_spawn(struct cluster *c, const char *name, fiber_main *fn)
{
    int r = fiber_spawn(c->rt, name, fn, c);
    if (r == 0)
        wgroup_add(&c->running, 1);
    return r;
}

void cluster_fiber_end(struct cluster *c)
{
    wgroup_finish(&c->running);
}

fiber_fn bool cluster_pause(struct cluster *c)
{
    return fiber_sleep(c->rt, RETRY_NS) == 0 && !c->stopping;
}

fiber_fn int cluster_wait(struct cluster *c, uint64_t deadline_ns)
{
    if (c->stopping)
        return -ECANCELED;
    wgroup_add(&c->running, 1);
    int r = waitq_wait_until(&c->changed, c->rt, deadline_ns);
    if (c->stopping)
        r = -ECANCELED;
    wgroup_finish(&c->running);
    return r;
}

static int copy_text(char *to, size_t size, const char *from, bool (*valid)(const char *),
                     const char *what)
{
    const char *text = from ? from : "";
    if (!valid(text)) {
        log_error("\"%.128s\" cannot be a node's %s", text, what);
        return -EINVAL;
    }
    snprintf(to, size, "%s", text);
    return 0;
}

static int set_self(struct map_node *n, const struct cluster_options *o)
{
    n->uuid = o->store_uuid;
    n->weight = o->weight;
    int r = uuid_is_null(&n->uuid) ? -EINVAL : 0;
    if (r == 0)
        r = copy_text(n->name, sizeof(n->name), o->name, member_name_valid, "name");
    if (r == 0)
        r = copy_text(n->zone, sizeof(n->zone), o->zone, member_name_valid, "zone");
    if (r == 0)
        r = copy_text(n->address, sizeof(n->address), o->address, member_address_valid, "address");
    if (r == 0)
        r = copy_text(n->admin, sizeof(n->admin), o->admin, member_address_valid, "admin address");
    if (r == 0)
        r = copy_text(n->nbd, sizeof(n->nbd), o->nbd, member_address_valid, "NBD address");
    return r;
}

static fiber_fn int open_cs(struct rt *rt, const struct cluster_options *o, struct cs **ret)
{
    if (o->cs) {
        *ret = o->cs;
        return 0;
    }
    const char *where = NULL;
    const struct cs_driver *d = o->driver_spec ? cs_driver_find(o->driver_spec, &where) : NULL;
    if (!d) {
        log_error("\"%.200s\" names no cluster store; known are:",
                  o->driver_spec ? o->driver_spec : "");
        for (d = cs_drivers; d->name; d++)
            log_error("  %s", d->help);
        return -EINVAL;
    }
    return d->open(rt, where, ret);
}

static void on_lost(void *arg)
{
    struct cluster *c = arg;
    c->leader.value = 0;
    waitq_wake_all(&c->changed);
}

static struct cluster *cluster_new(struct rt *rt, const struct cluster_options *o)
{
    struct cluster *c = calloc(1, sizeof(*c));
    struct map *m = map_new();
    struct map_targets *targets = map_targets_new();
    if (!c || !m || !targets) {
        free(c);
        map_unref(m);
        map_targets_free(targets);
        return NULL;
    }
    *c = (struct cluster){
        .rt = rt, .store_cluster = o->store_cluster, .map = m, .inexact = o->inexact};
    enum cluster_recovery recovery =
        o->recovery == CLUSTER_RECOVERY_DEFAULT ? CLUSTER_RECOVERY_BY_DEFAULT : o->recovery;
    c->targets = targets;
    c->recovery = recovery == CLUSTER_RECOVERY_ON ? MAP_RECOVERY_ON : MAP_RECOVERY_OFF;
    c->grace_end_ns = clock_now(rt) + (o->grace_ns ? o->grace_ns : GRACE_DEFAULT_NS);
    c->out_ns = o->out_ns ? o->out_ns : OUT_DEFAULT_NS;
    c->lead_again_ns = UINT64_MAX;
    enc_init(&c->report);
    list_init(&c->seen);
    list_init(&c->pending);
    list_init(&c->map_callbacks);
    list_init(&c->lead_callbacks);
    list_init(&c->acks);
    fmutex_init(&c->callback_lock);
    waitq_init(&c->changed);
    wgroup_init(&c->running);
    return c;
}

static fiber_fn int wait_first_map(struct cluster *c)
{
    while (!c->map_loaded && !c->map_error && !c->cs->lost)
        waitq_wait(&c->changed);
    return c->map_error ? c->map_error : c->map_loaded ? 0 : -EIO;
}

fiber_fn int cluster_start(struct rt *rt, const struct cluster_options *o, struct cluster **ret)
{
    struct cluster *c = cluster_new(rt, o);
    int r = c ? set_self(&c->self, o) : -ENOMEM;
    if (r < 0) {
        cs_close(o->cs);
        if (c) {
            map_unref(c->map);
            map_targets_free(c->targets);
        }
        free(c);
        return r;
    }
    r = open_cs(rt, o, &c->cs);
    if (r < 0) {
        map_unref(c->map);
        map_targets_free(c->targets);
        free(c);
        return r;
    }
    c->cs->on_lost = on_lost;
    c->cs->on_lost_arg = c;
    c->cs->probe = o->probe;
    c->cs->probe_arg = o->probe_arg;
    r = cluster_register(c);
    if (r == 0)
        r = cluster_follow(c);
    if (r == 0)
        r = cluster_lead(c);
    if (r == 0)
        r = cluster_reporting(c);
    if (r == 0)
        r = wait_first_map(c);
    if (r < 0) {
        cluster_stop(c);
        return r;
    }
    *ret = c;
    return 0;
}

fiber_fn void cluster_stop(struct cluster *c)
{
    c->stopping = true;
    waitq_wake_all(&c->changed);
    wgroup_wait(&c->running);
    cs_close(c->cs);
    cluster_follow_done(c);
    cluster_fence_done(c);
    struct lead_callback *cb, *next;
    list_for_each_safe (cb, next, &c->lead_callbacks, link)
        free(cb);
    struct seen *seen, *next_seen;
    list_for_each_safe (seen, next_seen, &c->seen, link)
        free(seen);
    enc_done(&c->report);
    map_unref(c->map);
    map_targets_free(c->targets);
    free(c);
}

struct map *cluster_map(struct cluster *c)
{
    return c->map;
}

struct cs *cluster_cs(struct cluster *c)
{
    return c->cs;
}

struct session cluster_session(const struct cluster *c)
{
    return c->cs->session;
}

int cluster_self(const struct cluster *c)
{
    const struct map_node *n = map_node_by_uuid(c->map, &c->self.uuid);
    return n ? n->number : -1;
}

/* Two thirds of the timeout: others may take the session for ended when all of it has passed. */
uint64_t cluster_unconfirmed_ns(const struct cluster *c)
{
    if (c->cs->timeout_ns == 0)
        return 0;
    uint64_t age = clock_now(c->rt) - c->cs->confirmed_ns;
    return age < c->cs->timeout_ns / 3 * 2 ? 0 : age;
}

bool cluster_serving(const struct cluster *c)
{
    return cluster_unconfirmed_ns(c) == 0 && !c->cs->lost && !c->map_error &&
           map_node_by_session(c->map, c->cs->session) != NULL;
}

fiber_fn int cluster_wait_map(struct cluster *c, uint64_t version, uint64_t deadline_ns)
{
    while (c->map->version < version) {
        int r = cluster_wait(c, deadline_ns);
        if (r < 0)
            return r;
    }
    return 0;
}

fiber_fn int cluster_wait_applied(struct cluster *c, uint64_t version, uint64_t deadline_ns)
{
    while (c->applied < version) {
        int r = cluster_wait(c, deadline_ns);
        if (r < 0)
            return r;
    }
    return 0;
}

fiber_fn int cluster_wait_change(struct cluster *c, uint64_t version, uint64_t deadline_ns)
{
    return cluster_wait_map(c, version + 1, deadline_ns);
}

unsigned cluster_missing_nodes(struct cluster *c, uint16_t *ret_numbers, unsigned max)
{
    unsigned count = 0;
    for (uint32_t i = 0; i < c->map->node_count && count < max; i++) {
        if (c->map->nodes[i].session.value == 0)
            ret_numbers[count++] = c->map->nodes[i].number;
    }
    return count;
}
