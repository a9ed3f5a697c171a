/* SPDX-License-Identifier: Apache-2.0 */
/* Operations that tell how the cluster is: status, and how far recovery is. */
#include <stdarg.h>
#include <stdio.h>
#include "base/err.h"
#include "cluster/map_health.h"
#include "front/admin/admin_internal.h"

static void add_reason(void *arg, const char *text)
{
    json_array_append_new(arg, json_string(text));
}

static void reason(json_t *reasons, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void reason(json_t *reasons, const char *format, ...)
{
    char text[MAP_REASON_SIZE];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    add_reason(reasons, text);
}

/* What a live node says of its own store. Suspends. */
static fiber_fn void explain_store(struct admin_call *call, json_t *reasons,
                                   const struct map_node *n)
{
    struct object_node_info info;
    if (n->session.value == 0)
        return;
    if (object_node_info(call->admin->objects, n->number, &info) < 0) {
        reason(reasons, "Node %s does not answer: look at the network, or whether its sheep hangs.",
               n->name);
        return;
    }
    if (info.failed)
        reason(reasons,
               "The store of node %s has failed (%s): look at its disk and the log of its sheep, "
               "then start it again.",
               n->name, err_text(info.failed));
    if (info.checksum_errors + info.scrub_errors > info.scrub_mended)
        reason(reasons,
               "Node %s has met %llu blocks with wrong content since it started: look at its disk "
               "(smartctl) and replace it soon.",
               n->name,
               (unsigned long long)(info.checksum_errors + info.scrub_errors - info.scrub_mended));
    if (info.free_bytes < info.size_bytes / 50)
        reason(
            reasons,
            "Node %s is nearly full: delete volumes or snapshots, discard in guests, or add nodes.",
            n->name);
}

/* Whether this node serves: others let its questions wait until it does. */
static bool explain_session(struct admin_call *call, json_t *reasons)
{
    uint64_t ns = cluster_unconfirmed_ns(call->admin->cluster);
    if (ns > 0)
        reason(reasons,
               "The node that you ask has not confirmed its session for %llu s, so its guests "
               "wait: look whether it reaches the cluster store, whether that runs, and at the "
               "log of its sheep.",
               (unsigned long long)(ns / NS_PER_S));
    return ns == 0;
}

/* One word for all of it, the worst first. */
static const char *state_of(const struct map_health *h, bool any_reason)
{
    if (h->groups[MAP_GROUP_LOST] > 0)
        return "lost";
    if (h->groups[MAP_GROUP_WAITING] + h->groups[MAP_GROUP_READ_ONLY] > 0)
        return "waiting";
    if (h->joining > 0)
        return "recovering";
    return any_reason ? "degraded" : "healthy";
}

static void add_groups(json_t *answer, const struct map *m, const struct map_health *h)
{
    static const char *const names[MAP_GROUP_HEALTH_COUNT] = {
        [MAP_GROUP_LOST] = "lost",           [MAP_GROUP_WAITING] = "waiting",
        [MAP_GROUP_READ_ONLY] = "read_only", [MAP_GROUP_DEGRADED] = "degraded",
        [MAP_GROUP_MOVING] = "moving",       [MAP_GROUP_FULL] = "full",
    };
    json_t *groups = json_object();
    admin_set_u64(groups, "total", m->group_count);
    for (unsigned i = 0; i < MAP_GROUP_HEALTH_COUNT; i++)
        admin_set_u64(groups, names[i], h->groups[i]);
    admin_set_u64(groups, "joining", h->joining);
    json_object_set_new(answer, "groups", groups);
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
    struct admin *a = call->admin;
    struct map_health h;
    char waiting[400] = "";
    int r = require_format(call);
    if (r < 0)
        return r;
    struct map *m = map_ref(cluster_map(a->cluster));
    json_t *reasons = json_array();
    map_health(m, &h);
    map_health_reasons(m, clock_wall(a->rt) / NS_PER_S, add_reason, reasons);
    object_waiting_text(a->objects, waiting, sizeof(waiting));
    if (waiting[0] != '\0')
        reason(reasons, "On this node now: %s.", waiting);
    bool may_ask = explain_session(call, reasons);
    for (uint32_t i = 0; i < m->node_count && may_ask; i++)
        explain_store(call, reasons, &m->nodes[i]);
    bool any = json_array_size(reasons) > 0;
    admin_set_bool(call->answer, "healthy", !any && map_health_good(&h));
    admin_set_string(call->answer, "state", state_of(&h, any || !map_health_good(&h)));
    json_object_set_new(call->answer, "reasons", reasons);
    add_groups(call->answer, m, &h);
    map_unref(m);
    return 0;
}

const struct admin_op admin_status_ops[] = {
    {"cluster.status", op_status},
    {NULL, NULL},
};
