/* SPDX-License-Identifier: Apache-2.0 */
/* Operations on the cluster: format, info, check. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/err.h"
#include "front/admin/admin_internal.h"

#define COPIES_MAX MAP_GROUP_MEMBER_MAX

static int count_key(void *arg, const char *key, const void *value, size_t length,
                     uint64_t revision)
{
    ++*(uint64_t *)arg;
    return 0;
}

/* Nodes that are registered and alive. */
static fiber_fn int count_registered(struct admin *a, uint64_t *ret)
{
    uint64_t count = 0;
    int r = cs_list(cluster_cs(a->cluster), "session/", count_key, &count);
    if (r == 0)
        *ret = count;
    return r;
}

/* Waits until `wanted` nodes are there; the client sees how many there are, and may go away. */
static fiber_fn int wait_nodes(struct admin_call *call, uint64_t wanted)
{
    for (uint64_t last = UINT64_MAX;;) {
        uint64_t count = 0;
        int r = count_registered(call->admin, &count);
        if (r < 0 || count >= wanted)
            return r;
        if (count != last) {
            r = admin_send_json(call->conn,
                                json_pack("{s:I, s:I, s:s}", "progress", (json_int_t)count, "total",
                                          (json_int_t)wanted, "what", "nodes registered"));
            if (r < 0)
                return r;
            last = count;
        }
        r = fiber_sleep(call->admin->rt, 100 * NS_PER_MS);
        if (r < 0)
            return r;
    }
}

static fiber_fn int explain_format(struct admin_call *call, int r, const struct map_format *f)
{
    uint64_t count = 0;
    switch (r) {
    case -EEXIST:
        return admin_fail(call, r, "the cluster is formatted already (dog cluster info shows it)");
    case -ENOSPC:
        (void)count_registered(call->admin, &count);
        return admin_fail(
            call, r,
            "%u copies need nodes in %u different zones; %" PRIu64
            " nodes are registered: start more sheep with other values of --zone, or ask "
            "for fewer copies",
            f->copies, f->copies, count);
    case -EINVAL:
        return admin_fail(
            call, r,
            "the cluster cannot be formatted like that: copies 1 to %u, min-copies 1 to "
            "copies, object size a power of two from 64K to 64M, groups up to %u",
            COPIES_MAX, MAP_GROUP_COUNT_MAX);
    default:
        return r;
    }
}

static int format_args(struct admin_call *call, struct map_format *ret, uint64_t *ret_wait)
{
    uint64_t copies = 0, min_copies = 0, object_size = 0, groups = 0;
    const char *name = "kelpie";
    int r = admin_arg_u64(call, "copies", ADMIN_REQUIRED, COPIES_MAX, &copies);
    if (r == 0)
        r = admin_arg_u64(call, "min_copies", ADMIN_OPTIONAL, COPIES_MAX, &min_copies);
    if (r == 0)
        r = admin_arg_u64(call, "object_size", ADMIN_OPTIONAL, 64u << 20, &object_size);
    if (r == 0)
        r = admin_arg_u64(call, "groups", ADMIN_OPTIONAL, MAP_GROUP_COUNT_MAX, &groups);
    if (r == 0)
        r = admin_arg_u64(call, "wait_nodes", ADMIN_OPTIONAL, MAP_NODE_COUNT_MAX, ret_wait);
    if (r == 0)
        r = admin_arg_string(call, "name", ADMIN_OPTIONAL, &name);
    if (r < 0)
        return r;
    if (copies == 0 || min_copies > copies)
        return admin_fail(call, -EINVAL,
                          "copies must be 1 to %u, and min-copies not more than copies",
                          COPIES_MAX);
    if (object_size != 0 && (object_size < 64u << 10 || (object_size & (object_size - 1)) != 0))
        return admin_fail(call, -EINVAL,
                          "object size %" PRIu64 " is not a power of two from 64K to 64M",
                          object_size);
    if (name[0] == '\0' || strlen(name) >= MAP_NAME_SIZE)
        return admin_fail(call, -EINVAL, "the cluster's name must have 1 to %d bytes",
                          MAP_NAME_SIZE - 1);
    /* min_copies left out: one may be away of three or more, none of fewer. */
    if (min_copies == 0)
        min_copies = copies > 2 ? copies - 1 : 1;
    *ret = (struct map_format){.copies = (uint8_t)copies,
                               .min_copies = (uint8_t)min_copies,
                               .group_count = (uint32_t)groups,
                               .object_size = (uint32_t)object_size};
    snprintf(ret->cluster_name, sizeof(ret->cluster_name), "%s", name);
    return 0;
}

static void random_uuid(struct rt *rt, struct uuid *ret)
{
    uint64_t words[2] = {rt_random(rt), rt_random(rt)};
    memcpy(ret->bytes, words, sizeof(words));
    ret->bytes[6] = (uint8_t)(0x40 | (ret->bytes[6] & 0x0f)); /* version 4, variant 1 */
    ret->bytes[8] = (uint8_t)(0x80 | (ret->bytes[8] & 0x3f));
}

static fiber_fn int op_format(struct admin_call *call)
{
    struct admin *a = call->admin;
    struct map_format f;
    uint64_t wait = 0;
    int r = format_args(call, &f, &wait);
    if (r < 0)
        return r;
    if (cluster_map(a->cluster)->version != 0)
        return explain_format(call, -EEXIST, &f);
    if (wait > 0 && (r = wait_nodes(call, wait)) < 0)
        return r;
    random_uuid(a->rt, &f.cluster);
    r = cluster_format(a->cluster, &f);
    if (r < 0)
        return explain_format(call, r, &f);
    /* This node's own map follows a moment later; volumes can be made when it is there. */
    r = cluster_wait_map(a->cluster, 1, clock_now(a->rt) + 30 * NS_PER_S);
    if (r < 0)
        return r;
    const struct map *m = cluster_map(a->cluster);
    admin_set_uuid(call->answer, "uuid", &m->cluster);
    admin_set_u64(call->answer, "nodes", m->node_count);
    return 0;
}

void admin_add_pools(json_t *answer, const struct map *m)
{
    json_t *pools = json_array();
    for (uint32_t i = 0; i < m->pool_count; i++) {
        const struct map_pool *p = &m->pools[i];
        json_t *pool = json_object();
        admin_set_string(pool, "name", p->name);
        admin_set_u64(pool, "copies", p->copies);
        admin_set_u64(pool, "min_copies", p->min_copies);
        admin_set_u64(pool, "groups", p->group_count);
        admin_set_u64(pool, "object_size", p->object_size);
        json_array_append_new(pools, pool);
    }
    json_object_set_new(answer, "pools", pools);
    if (m->pool_count > 0) {
        admin_set_u64(answer, "copies", m->pools[0].copies);
        admin_set_u64(answer, "object_size", m->pools[0].object_size);
    }
}

/* Space of all live nodes, and the names of the others. Suspends: `m` is a reference of the caller.
 */
static fiber_fn void add_nodes(struct admin_call *call, const struct map *m)
{
    uint64_t live = 0, size = 0, used = 0, free_bytes = 0, dying = 0;
    json_t *missing = json_array();
    for (uint32_t i = 0; i < m->node_count; i++) {
        const struct map_node *n = &m->nodes[i];
        struct object_node_info info;
        if (n->session.value == 0) {
            json_array_append_new(missing, json_string(n->name));
            continue;
        }
        live++;
        if (object_node_info(call->admin->objects, n->number, &info) < 0)
            continue; /* it went away a moment ago */
        size += info.size_bytes;
        used += info.used_bytes;
        free_bytes += info.free_bytes;
        dying += info.dying_count;
    }
    admin_set_u64(call->answer, "nodes", m->node_count);
    admin_set_u64(call->answer, "nodes_live", live);
    json_object_set_new(call->answer, "nodes_missing", missing);
    admin_set_u64(call->answer, "size_bytes", size);
    admin_set_u64(call->answer, "used_bytes", used);
    admin_set_u64(call->answer, "free_bytes", free_bytes);
    json_t *backlog = json_object();
    struct volume_backlog b;
    if (volume_backlog(call->admin->volumes, &b) == 0) {
        admin_set_u64(backlog, "trash", b.trash);
        admin_set_u64(backlog, "pending", b.pending);
        admin_set_u64(backlog, "open", b.open);
        admin_set_u64(backlog, "unclean", b.unclean);
        admin_set_u64(backlog, "dying", dying);
    }
    json_object_set_new(call->answer, "backlog", backlog);
}

static fiber_fn int op_info(struct admin_call *call)
{
    struct admin *a = call->admin;
    struct map *m = map_ref(cluster_map(a->cluster));
    int r = 0;
    admin_set_bool(call->answer, "formatted", m->version != 0);
    admin_set_u64(call->answer, "map_version", m->version);
    if (m->version == 0) {
        uint64_t count;
        r = count_registered(a, &count);
        if (r == 0)
            admin_set_u64(call->answer, "nodes_live", count);
    } else {
        char waiting[400] = "";
        object_waiting_text(a->objects, waiting, sizeof(waiting));
        admin_set_string(call->answer, "name", m->cluster_name);
        admin_set_uuid(call->answer, "uuid", &m->cluster);
        admin_set_string(call->answer, "waiting", waiting);
        admin_add_pools(call->answer, m);
        add_nodes(call, m);
    }
    map_unref(m);
    return r;
}

struct check_context {
    json_t *findings;
    uint64_t count;
};

/* Findings are kept and sent at the end: report() must not suspend. The first ones tell the story.
 */
#define FINDING_COUNT_MAX 1000u
static void check_report(void *arg, const char *finding)
{
    struct check_context *x = arg;
    if (x->count++ < FINDING_COUNT_MAX)
        json_array_append_new(x->findings, json_string(finding));
}

static fiber_fn int op_check(struct admin_call *call)
{
    struct check_context x = {.findings = json_array()};
    struct volume_check_report report;
    if (cluster_map(call->admin->cluster)->version == 0) {
        json_decref(x.findings);
        return admin_fail(call, -EAGAIN,
                          "the cluster is not formatted yet: dog cluster format --copies N");
    }
    int r = volume_check(call->admin->volumes, check_report, &x, &report);
    if (r < 0) {
        json_decref(x.findings);
        return r;
    }
    json_object_set_new(call->answer, "findings", x.findings);
    admin_set_u64(call->answer, "finding_count", MAX(report.findings, x.count));
    admin_set_u64(call->answer, "volumes", report.volumes);
    admin_set_u64(call->answer, "snapshots", report.snapshots);
    admin_set_u64(call->answer, "objects_reachable", report.objects_reachable);
    admin_set_u64(call->answer, "objects_stored", report.objects_stored);
    admin_set_u64(call->answer, "replicas_compared", report.replicas_compared);
    admin_set_u64(call->answer, "ledgers", report.ledgers);
    admin_set_u64(call->answer, "strays", report.strays);
    admin_set_bool(call->answer, "at_rest", report.at_rest);
    return 0;
}

const struct admin_op admin_cluster_ops[] = {
    {"cluster.format", op_format},
    {"cluster.info", op_info},
    {"cluster.check", op_check},
    {NULL, NULL},
};
