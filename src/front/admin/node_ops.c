/* SPDX-License-Identifier: Apache-2.0 */
/* Operations on nodes: list, info. */
#include <stdio.h>
#include <stdlib.h>
#include "base/err.h"
#include "front/admin/admin_internal.h"

static const char *state_name(const struct map_node *n)
{
    if (n->session.value == 0 && n->state != MAP_NODE_LOST)
        return "missing";
    switch (n->state) {
    case MAP_NODE_ACTIVE:
        return "active";
    case MAP_NODE_DRAINING:
        return "draining";
    case MAP_NODE_LOST:
        return "lost";
    }
    return "unknown";
}

static json_t *describe_node(const struct admin_call *call, const struct map_node *n)
{
    char session[32];
    json_t *node = json_object();
    if (!node)
        return NULL;
    admin_set_u64(node, "id", n->number);
    admin_set_string(node, "name", n->name);
    admin_set_uuid(node, "uuid", &n->uuid);
    admin_set_string(node, "zone", n->zone);
    admin_set_string(node, "state", state_name(n));
    admin_set_u64(node, "weight", n->weight);
    admin_set_string(node, "admin", n->admin);
    admin_set_string(node, "peer", n->address);
    admin_set_string(node, "nbd", n->nbd);
    snprintf(session, sizeof(session), "%llx", (unsigned long long)n->session.value);
    admin_set_string(node, "session", n->session.value ? session : "");
    admin_set_bool(node, "self", n->number == cluster_self(call->admin->cluster));
    return node;
}

static int require_format(struct admin_call *call)
{
    if (cluster_map(call->admin->cluster)->version != 0)
        return 0;
    return admin_fail(call, -EAGAIN,
                      "the cluster is not formatted yet: dog cluster format --copies N");
}

static fiber_fn int op_list(struct admin_call *call)
{
    int r = require_format(call);
    if (r < 0)
        return r;
    const struct map *m = cluster_map(call->admin->cluster);
    json_t *nodes = json_array();
    for (uint32_t i = 0; i < m->node_count; i++)
        json_array_append_new(nodes, describe_node(call, &m->nodes[i]));
    json_object_set_new(call->answer, "nodes", nodes);
    return 0;
}

static fiber_fn void add_space(struct admin_call *call, json_t *node, uint16_t number)
{
    struct object_node_info info;
    int r = object_node_info(call->admin->objects, number, &info);
    admin_set_bool(node, "reachable", r == 0);
    if (r < 0)
        return;
    admin_set_u64(node, "size_bytes", info.size_bytes);
    admin_set_u64(node, "used_bytes", info.used_bytes);
    admin_set_u64(node, "free_bytes", info.free_bytes);
    admin_set_u64(node, "data_bytes", info.data_bytes);
    admin_set_u64(node, "shared_bytes", info.shared_bytes);
    admin_set_u64(node, "objects", info.object_count);
    admin_set_u64(node, "tombstones", info.tombstone_count);
    admin_set_u64(node, "dying", info.dying_count);
    admin_set_u64(node, "ref_batches_pending", info.ref_batches_pending);
    admin_set_u64(node, "checksum_errors", info.checksum_errors);
    admin_set_u64(node, "rss_bytes", info.rss_bytes);
    admin_set_u64(node, "uptime_seconds", info.uptime_ns / NS_PER_S);
    admin_set_u64(node, "record_bytes", info.record_bytes);
    admin_set_u64(node, "pending_bytes", info.pending_bytes);
    admin_set_u64(node, "unreachable_bytes", info.unreachable_bytes);
    admin_set_u64(node, "reserve_bytes", info.reserve_bytes);
    admin_set_u64(node, "log_bytes", info.log_bytes);
    admin_set_u64(node, "scrub_rate", info.scrub_rate);
    admin_set_u64(node, "scrub_passes", info.scrub_passes);
    admin_set_u64(node, "scrub_bytes", info.scrub_bytes);
    admin_set_u64(node, "scrub_objects", info.scrub_objects);
    admin_set_u64(node, "scrub_errors", info.scrub_errors);
    admin_set_u64(node, "scrub_mended", info.scrub_mended);
    admin_set_string(node, "scrub_last", info.scrub_last);
    admin_set_bool(node, "inexact", info.inexact);
    admin_set_string(node, "failed", info.failed ? err_text(info.failed) : "");
}

static fiber_fn int op_info(struct admin_call *call)
{
    int r = require_format(call);
    if (r < 0)
        return r;
    struct map *m = map_ref(cluster_map(call->admin->cluster));
    json_t *nodes = json_array();
    for (uint32_t i = 0; i < m->node_count; i++) {
        json_t *node = describe_node(call, &m->nodes[i]);
        if (!node)
            continue;
        if (m->nodes[i].session.value != 0)
            add_space(call, node, m->nodes[i].number);
        else
            admin_set_bool(node, "reachable", false);
        json_array_append_new(nodes, node);
    }
    json_object_set_new(call->answer, "nodes", nodes);
    map_unref(m);
    /* What the volumes promise their guests, for the total line. */
    struct volume_info *volumes;
    size_t count;
    uint64_t virtual_bytes = 0;
    r = volume_list(call->admin->volumes, NULL, &volumes, &count);
    if (r < 0)
        return r;
    for (size_t i = 0; i < count; i++)
        virtual_bytes += volumes[i].working ? volumes[i].size : 0;
    free(volumes);
    admin_set_u64(call->answer, "virtual_bytes", virtual_bytes);
    return 0;
}

static fiber_fn void add_recovery(struct admin_call *call, json_t *node, uint16_t number)
{
    struct object_node_info info;
    int r = object_node_info(call->admin->objects, number, &info);
    admin_set_bool(node, "reachable", r == 0);
    if (r < 0)
        return;
    admin_set_u64(node, "groups_total", info.recovery.groups_total);
    admin_set_u64(node, "groups_done", info.recovery.groups_done);
    admin_set_u64(node, "objects_total", info.recovery.objects_total);
    admin_set_u64(node, "objects_done", info.recovery.objects_done);
    admin_set_u64(node, "bytes_done", info.recovery.bytes_done);
    admin_set_u64(node, "bytes_per_s", info.recovery.bytes_per_s);
    admin_set_u64(node, "eta_seconds", info.recovery.eta_s);
}

static fiber_fn int op_recovery(struct admin_call *call)
{
    int r = require_format(call);
    if (r < 0)
        return r;
    struct map *m = map_ref(cluster_map(call->admin->cluster));
    json_t *nodes = json_array();
    for (uint32_t i = 0; i < m->node_count; i++) {
        json_t *node = describe_node(call, &m->nodes[i]);
        if (!node)
            continue;
        if (m->nodes[i].session.value != 0)
            add_recovery(call, node, m->nodes[i].number);
        else
            admin_set_bool(node, "reachable", false);
        json_array_append_new(nodes, node);
    }
    json_object_set_new(call->answer, "nodes", nodes);
    map_unref(m);
    return 0;
}

const struct admin_op admin_node_ops[] = {
    {"node.recovery", op_recovery},
    {"node.list", op_list},
    {"node.info", op_info},
    {NULL, NULL},
};
