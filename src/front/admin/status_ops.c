/* SPDX-License-Identifier: Apache-2.0 */
/* Operations that tell how the cluster is: status, and how far recovery is. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "base/err.h"
#include "front/admin/admin_internal.h"

struct counts {
    uint64_t total, full, degraded, waiting, moving;
};

static void count_groups(const struct map *m, struct counts *ret)
{
    *ret = (struct counts){0};
    for (uint32_t p = 0; p < m->pool_count; p++) {
        const struct map_pool *pool = &m->pools[p];
        for (uint32_t i = pool->group_base; i < pool->group_base + pool->group_count; i++) {
            const struct map_group *g = &m->groups[i];
            unsigned live = 0;
            for (unsigned k = 0; k < g->in_sync_count; k++) {
                const struct map_node *n = map_node(m, g->in_sync[k]);
                live += n && n->session.value != 0;
            }
            ret->total++;
            ret->waiting += live < pool->min_copies;
            ret->degraded += live < pool->copies && live >= pool->min_copies;
            ret->full += live >= pool->copies;
            ret->moving += g->joining_count > 0;
        }
    }
}

static void reason(json_t *reasons, const char *action, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void reason(json_t *reasons, const char *action, const char *format, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    json_t *r = json_object();
    admin_set_string(r, "text", text);
    admin_set_string(r, "action", action);
    json_array_append_new(reasons, r);
}

/* --- nodes --- */

static void explain_trouble(json_t *reasons, const struct map *m, const struct map_node *n)
{
    const struct map_node *by = map_node(m, n->trouble_by);
    switch (n->trouble) {
    case MAP_TROUBLE_NONE:
        break;
    case MAP_TROUBLE_STORE:
        reason(reasons, "look at its disk and the log of its sheep, then start it again",
               "node %s cannot write to its store: %s", n->name, err_text(-n->trouble_error));
        break;
    case MAP_TROUBLE_UNREACHED:
        reason(reasons, "look at the network between them",
               "node %s cannot be reached by node %s and maybe others", n->name,
               by ? by->name : "?");
        break;
    case MAP_TROUBLE_ALONE:
        reason(reasons, "look at its network", "node %s cannot reach other nodes, %s among them",
               n->name, by ? by->name : "?");
        break;
    }
}

static void explain_node(json_t *reasons, const struct map *m, const struct map_node *n)
{
    char action[MAP_NAME_SIZE + 128];
    if (n->state == MAP_NODE_LOST)
        return; /* known; what is missing because of it is told by groups */
    if (n->session.value == 0) {
        snprintf(action, sizeof(action),
                 "start its sheep; if its disk is gone for good: dog node lost %s", n->name);
        reason(reasons, action, "node %s is away%s", n->name,
               n->out ? "; its groups get copies elsewhere" : "");
    } else {
        explain_trouble(reasons, m, n);
    }
}

/* What a live node says of its own store. Suspends. */
static fiber_fn void explain_store(struct admin_call *call, json_t *reasons,
                                   const struct map_node *n)
{
    struct object_node_info info;
    if (n->session.value == 0)
        return;
    if (object_node_info(call->admin->objects, n->number, &info) < 0) {
        reason(reasons, "look at the network, or whether its sheep hangs",
               "node %s does not answer", n->name);
        return;
    }
    if (info.failed)
        reason(reasons, "look at its disk and the log of its sheep, then start it again",
               "the store of node %s has failed: %s", n->name, err_text(info.failed));
    if (info.checksum_errors + info.scrub_errors > info.scrub_mended)
        reason(reasons, "look at its disk (smartctl) and replace it soon",
               "node %s has met %llu blocks with wrong content since it started", n->name,
               (unsigned long long)(info.checksum_errors + info.scrub_errors - info.scrub_mended));
    if (info.free_bytes < info.size_bytes / 50)
        reason(reasons, "delete volumes or snapshots, discard in guests, or add nodes",
               "node %s is nearly full", n->name);
}

/* --- groups --- */

/* "b, c": nodes that are away, and with which the groups that wait could go on. */
static void name_awaited(const struct map *m, char *out, size_t size)
{
    bool seen[UINT16_MAX + 1] = {false};
    size_t used = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < m->group_count; i++) {
        const struct map_group *g = &m->groups[i];
        for (unsigned k = 0; k < g->last_full_count && g->in_sync_count < g->last_full_count; k++)
            seen[g->last_full[k]] = true;
        for (unsigned k = 0; k < g->in_sync_count; k++)
            seen[g->in_sync[k]] = true;
    }
    for (uint32_t i = 0; i < m->node_count && used < size; i++) {
        const struct map_node *n = &m->nodes[i];
        if (seen[n->number] && n->session.value == 0 && n->state != MAP_NODE_LOST)
            used += (size_t)snprintf(out + used, size - used, "%s%s", used ? ", " : "", n->name);
    }
}

static void explain_groups(json_t *reasons, const struct map *m, const struct counts *c)
{
    char names[256], action[320];
    if (c->waiting > 0) {
        name_awaited(m, names, sizeof(names));
        snprintf(action, sizeof(action), "%s%s",
                 names[0] ? "start one of: " : "wait until joining nodes have caught up", names);
        reason(reasons, action, "writes wait in %llu of %llu groups: too few copies are in sync",
               (unsigned long long)c->waiting, (unsigned long long)c->total);
    }
    if (c->degraded > 0)
        reason(reasons, c->moving ? "" : "bring nodes back, or add some in zones of their own",
               "%llu of %llu groups have fewer copies than wanted", (unsigned long long)c->degraded,
               (unsigned long long)c->total);
    if (c->moving > 0)
        reason(reasons, "", "copies of %llu of %llu groups are being made (dog node recovery)",
               (unsigned long long)c->moving, (unsigned long long)c->total);
}

static const char *state_of(const struct counts *c, bool any_reason)
{
    if (c->waiting > 0)
        return "waiting";
    if (c->degraded > 0 && c->moving == 0)
        return "degraded";
    if (c->moving > 0)
        return "recovering";
    return any_reason ? "degraded" : "healthy";
}

static int require_format(struct admin_call *call)
{
    if (cluster_map(call->admin->cluster)->version != 0)
        return 0;
    return admin_fail(call, -EAGAIN,
                      "the cluster is not formatted yet: dog cluster format --copies N");
}

static fiber_fn int op_status(struct admin_call *call)
{
    struct counts c;
    char waiting[400] = "";
    int r = require_format(call);
    if (r < 0)
        return r;
    struct map *m = map_ref(cluster_map(call->admin->cluster));
    json_t *reasons = json_array(), *groups = json_object();
    count_groups(m, &c);
    for (uint32_t i = 0; i < m->node_count; i++)
        explain_node(reasons, m, &m->nodes[i]);
    explain_groups(reasons, m, &c);
    object_waiting_text(call->admin->objects, waiting, sizeof(waiting));
    if (waiting[0] != '\0')
        reason(reasons, "", "%s", waiting);
    for (uint32_t i = 0; i < m->node_count; i++)
        explain_store(call, reasons, &m->nodes[i]);
    bool any = json_array_size(reasons) > 0;
    admin_set_bool(call->answer, "healthy", !any);
    admin_set_string(call->answer, "state", state_of(&c, any));
    json_object_set_new(call->answer, "reasons", reasons);
    admin_set_u64(groups, "total", c.total);
    admin_set_u64(groups, "full", c.full);
    admin_set_u64(groups, "degraded", c.degraded);
    admin_set_u64(groups, "waiting", c.waiting);
    admin_set_u64(groups, "moving", c.moving);
    json_object_set_new(call->answer, "groups", groups);
    map_unref(m);
    return 0;
}

const struct admin_op admin_status_ops[] = {
    {"cluster.status", op_status},
    {NULL, NULL},
};
