/* SPDX-License-Identifier: Apache-2.0 */
/* Operations on volumes that move no data: create, delete, list, snapshot, clone, rollback, resize,
 * usage. */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "front/admin/admin_internal.h"

#define LIST_BATCH 256u /* entries in one frame */

static fiber_fn int op_create(struct admin_call *call)
{
    struct volume_create_options o = {0};
    uint64_t object_size = 0;
    int r = admin_arg_string(call, "name", ADMIN_REQUIRED, &o.name);
    if (r == 0)
        r = admin_arg_u64(call, "size", ADMIN_REQUIRED, INT64_MAX, &o.size);
    if (r == 0)
        r = admin_arg_u64(call, "object_size", ADMIN_OPTIONAL, UINT32_MAX, &object_size);
    if (r == 0)
        r = admin_arg_string(call, "pool", ADMIN_OPTIONAL, &o.pool);
    if (r < 0)
        return r;
    o.object_size = (uint32_t)object_size;
    return volume_create(call->admin->volumes, &o, &call->error);
}

/* "name" and, if asked for, "tag". */
static int names_of(struct admin_call *call, const char **ret_name, enum admin_need tag_need,
                    const char **ret_tag)
{
    int r = admin_arg_string(call, "name", ADMIN_REQUIRED, ret_name);
    return r < 0 ? r : admin_arg_string(call, "tag", tag_need, ret_tag);
}

static fiber_fn int op_delete(struct admin_call *call)
{
    const char *name = NULL, *tag = NULL;
    int r = names_of(call, &name, ADMIN_OPTIONAL, &tag);
    if (r < 0)
        return r;
    if (tag)
        return volume_delete_snapshot(call->admin->volumes, name, tag, &call->error);
    return volume_delete(call->admin->volumes, name, &call->error);
}

static fiber_fn int op_snapshot(struct admin_call *call)
{
    const char *name = NULL, *tag = NULL;
    uint64_t pause_ns = 0;
    int r = names_of(call, &name, ADMIN_REQUIRED, &tag);
    if (r == 0)
        r = volume_snapshot(call->admin->volumes, name, tag, &pause_ns, &call->error);
    if (r == 0)
        admin_set_u64(call->answer, "pause_ns", pause_ns);
    return r;
}

static fiber_fn int op_clone(struct admin_call *call)
{
    const char *source = NULL, *tag = NULL, *name = NULL;
    int r = names_of(call, &source, ADMIN_REQUIRED, &tag);
    if (r == 0)
        r = admin_arg_string(call, "new_name", ADMIN_REQUIRED, &name);
    return r < 0 ? r : volume_clone(call->admin->volumes, source, tag, name, &call->error);
}

static fiber_fn int op_rollback(struct admin_call *call)
{
    const char *name = NULL, *tag = NULL;
    int r = names_of(call, &name, ADMIN_REQUIRED, &tag);
    return r < 0 ? r : volume_rollback(call->admin->volumes, name, tag, &call->error);
}

static fiber_fn int op_resize(struct admin_call *call)
{
    const char *name = NULL;
    uint64_t size = 0;
    int r = admin_arg_string(call, "name", ADMIN_REQUIRED, &name);
    if (r == 0)
        r = admin_arg_u64(call, "size", ADMIN_REQUIRED, INT64_MAX, &size);
    return r < 0 ? r : volume_resize(call->admin->volumes, name, size, &call->error);
}

static void set_usage(json_t *object, const struct volume_usage *u, uint64_t object_size)
{
    admin_set_u64(object, "own_objects", u->own_objects);
    admin_set_u64(object, "shared_objects", u->shared_objects);
    admin_set_u64(object, "index_blocks", u->index_blocks);
    admin_set_u64(object, "used_bytes", u->own_objects * object_size);
    admin_set_u64(object, "shared_bytes", u->shared_objects * object_size);
}

static fiber_fn int op_usage(struct admin_call *call)
{
    const char *name = NULL, *tag = NULL;
    uint64_t object_size = 0;
    struct volume_usage u;
    int r = names_of(call, &name, ADMIN_OPTIONAL, &tag);
    if (r == 0)
        r = admin_arg_u64(call, "object_size", ADMIN_REQUIRED, UINT32_MAX, &object_size);
    if (r == 0)
        r = volume_usage(call->admin->volumes, name, tag, &u, &call->error);
    if (r == 0)
        set_usage(call->answer, &u, object_size);
    return r;
}

static void set_owner(struct admin *a, json_t *entry, int owner)
{
    const struct map_node *n =
        owner < 0 ? NULL : map_node(cluster_map(a->cluster), (uint16_t)owner);
    admin_set_string(entry, "owner", n ? n->name : "");
}

static json_t *describe_volume(struct admin *a, const struct volume_info *v)
{
    json_t *e = json_object();
    if (!e)
        return NULL;
    admin_set_string(e, "name", v->name);
    admin_set_string(e, "tag", v->tag);
    admin_set_u64(e, "id", v->volume);
    admin_set_u64(e, "vid", v->vid.value);
    admin_set_u64(e, "parent_vid", v->parent_vid.value);
    admin_set_string(e, "parent_name", v->parent_name);
    admin_set_string(e, "parent_tag", v->parent_tag);
    admin_set_string(e, "pool", v->pool);
    admin_set_u64(e, "snapshot_number", v->snapshot_number);
    admin_set_u64(e, "size", v->size);
    admin_set_u64(e, "object_size", v->object_size);
    admin_set_u64(e, "copies", v->copies);
    admin_set_u64(e, "created_ns", v->created_wall_ns);
    admin_set_u64(e, "root_copies", v->root_copies);
    admin_set_bool(e, "working", v->working);
    admin_set_bool(e, "clean", v->clean);
    set_owner(a, e, v->owner_node);
    return e;
}

/* Adds what the image uses; where another node has to say (redirect), or the image went away
 * meanwhile, the keys are left out. */
static fiber_fn void add_usage(struct admin_call *call, json_t *entry, const struct volume_info *v)
{
    struct volume_usage u;
    struct volume_error *error = &call->error;
    *error = (struct volume_error){0};
    int r = volume_usage(call->admin->volumes, v->name, v->working ? NULL : v->tag, &u, error);
    if (r == 0)
        set_usage(entry, &u, v->object_size);
    else if (error->redirect[0])
        admin_set_string(entry, "usage_at", error->redirect);
    *error = (struct volume_error){0};
}

/* Entries travel in frames {"items": [...]} before the answer, so that any number fits. */
static fiber_fn int send_list(struct admin_call *call, const struct volume_info *volumes,
                              size_t count, bool with_usage)
{
    json_t *items = json_array();
    for (size_t i = 0; i < count; i++) {
        json_t *entry = describe_volume(call->admin, &volumes[i]);
        if (!items || !entry) {
            json_decref(items);
            return -ENOMEM;
        }
        if (with_usage)
            add_usage(call, entry, &volumes[i]);
        json_array_append_new(items, entry);
        if (json_array_size(items) < LIST_BATCH && i + 1 < count)
            continue;
        int r = admin_send_json(call->conn, json_pack("{s:o}", "items", items));
        items = json_array();
        if (r < 0) {
            json_decref(items);
            return r;
        }
    }
    json_decref(items);
    return 0;
}

static fiber_fn int op_list(struct admin_call *call)
{
    const char *name = NULL;
    struct volume_info *volumes;
    size_t count;
    int r = admin_arg_string(call, "name", ADMIN_OPTIONAL, &name);
    if (r == 0)
        r = volume_list(call->admin->volumes, name, &volumes, &count);
    if (r < 0)
        return r;
    bool with_usage = json_is_true(json_object_get(call->request, "usage"));
    r = send_list(call, volumes, count, with_usage);
    free(volumes);
    return r;
}

const struct admin_op admin_volume_ops[] = {
    {"vdi.create", op_create},     {"vdi.delete", op_delete}, {"vdi.list", op_list},
    {"vdi.snapshot", op_snapshot}, {"vdi.clone", op_clone},   {"vdi.rollback", op_rollback},
    {"vdi.resize", op_resize},     {"vdi.usage", op_usage},   {NULL, NULL},
};
