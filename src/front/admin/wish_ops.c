/* SPDX-License-Identifier: Apache-2.0 */
/* Operations that say what an administrator wants of nodes and pools; the leader carries them out.
 */
#include <stdlib.h>
#include "base/err.h"
#include "front/admin/admin_internal.h"

static int require_format(struct admin_call *call)
{
    if (cluster_map(call->admin->cluster)->version != 0)
        return 0;
    return admin_fail(call, -EAGAIN,
                      "the cluster is not formatted yet: dog cluster format --copies N");
}

static int explain_wish(struct admin_call *call, int r, const struct cluster_wish *w)
{
    const struct map *m = cluster_map(call->admin->cluster);
    switch (r) {
    case -ENOENT:
        return admin_fail(call, r, "there is no node %s (dog node list shows them)",
                          map_node_by_name(m, w->node) && w->heir ? w->heir : w->node);
    case -EBUSY:
        return admin_fail(call, r,
                          "node %s runs: stop its sheep first. If its disk only has to be emptied, "
                          "drain it instead",
                          w->node);
    case -EALREADY:
        return admin_fail(call, r, "node %s was declared lost before (dog node remove %s)", w->node,
                          w->node);
    case -EINVAL:
        return admin_fail(call, r, "node %s cannot be the heir: it is lost, or the node itself",
                          w->heir ? w->heir : w->node);
    default:
        return r;
    }
}

static fiber_fn int wish(struct admin_call *call, struct cluster_wish *w)
{
    int r = require_format(call);
    if (r == 0)
        r = admin_arg_string(call, "node", ADMIN_REQUIRED, &w->node);
    if (r < 0)
        return r;
    r = cluster_node_wish(call->admin->cluster, w);
    return r < 0 ? explain_wish(call, r, w) : 0;
}

static fiber_fn int op_drain(struct admin_call *call)
{
    bool undo = json_is_true(json_object_get(call->request, "undo"));
    struct cluster_wish w = {.kind = undo ? CLUSTER_WISH_UNDRAIN : CLUSTER_WISH_DRAIN};
    return wish(call, &w);
}

static fiber_fn int op_weight(struct admin_call *call)
{
    uint64_t weight = 0;
    int r = admin_arg_u64(call, "weight", ADMIN_REQUIRED, UINT32_MAX, &weight);
    if (r < 0)
        return r;
    struct cluster_wish w = {.kind = CLUSTER_WISH_WEIGHT, .weight = (uint32_t)weight};
    return wish(call, &w);
}

static fiber_fn int op_remove(struct admin_call *call)
{
    struct cluster_wish w = {.kind = CLUSTER_WISH_REMOVE};
    return wish(call, &w);
}

static fiber_fn int op_lost(struct admin_call *call)
{
    struct cluster_wish w = {.kind = CLUSTER_WISH_LOST};
    int r = admin_arg_string(call, "heir", ADMIN_OPTIONAL, &w.heir);
    if (r < 0)
        return r;
    if (w.heir)
        w.kind = CLUSTER_WISH_ACCEPT_LOSS;
    return wish(call, &w);
}

const struct admin_op admin_wish_ops[] = {
    {"node.drain", op_drain},
    {"node.weight", op_weight},
    {"node.remove", op_remove},
    {"node.lost", op_lost},
    {NULL, NULL},
};

static fiber_fn int op_pool_list(struct admin_call *call)
{
    int r = require_format(call);
    if (r == 0)
        admin_add_pools(call->answer, cluster_map(call->admin->cluster));
    return r;
}

static fiber_fn int op_pool_set(struct admin_call *call)
{
    const char *name = NULL;
    int r = require_format(call);
    if (r == 0)
        r = admin_arg_string(call, "name", ADMIN_REQUIRED, &name);
    if (r < 0)
        return r;
    const struct map_pool *p = map_pool_by_name(cluster_map(call->admin->cluster), name);
    if (!p)
        return admin_fail(call, -ENOENT, "there is no pool %s (dog pool list shows them)", name);
    uint64_t copies = p->copies, min_copies = 0;
    r = admin_arg_u64(call, "copies", ADMIN_OPTIONAL, MAP_GROUP_MEMBER_MAX, &copies);
    if (r == 0)
        r = admin_arg_u64(call, "min_copies", ADMIN_OPTIONAL, MAP_GROUP_MEMBER_MAX, &min_copies);
    if (r < 0)
        return r;
    if (min_copies == 0)
        min_copies = MIN((uint64_t)p->min_copies, copies);
    r = cluster_pool_wish(call->admin->cluster, name, (uint8_t)copies, (uint8_t)min_copies);
    if (r == -EINVAL)
        return admin_fail(call, r, "copies must be 1 to %u, and min-copies not more than copies",
                          MAP_GROUP_MEMBER_MAX);
    return r;
}

const struct admin_op admin_pool_ops[] = {
    {"pool.list", op_pool_list},
    {"pool.set", op_pool_set},
    {NULL, NULL},
};
