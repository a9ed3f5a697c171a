/* SPDX-License-Identifier: Apache-2.0 */
/*
 * admin-fake-server: the real admin server and a real cluster (local driver) over volumes in
 * memory.
 *
 *   admin-fake-server DATABASE ADDRESS REDIRECT CONNECTIONS
 *
 * Prints the address bound, then "ready"; SIGTERM stops it in order. It ends with 1 if a volume is
 * still open then. The volume "moved" is owned by the node at REDIRECT.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../nbd/fake_volume.h"
#include "base/err.h"
#include "cluster/cluster.h"
#include "front/admin/admin.h"
#include "rt/uring/uring.h"

#define MIB (1ULL << 20)

struct fake {
    struct rt *rt;
    const char *database, *address;
    struct listener *listener;
    struct cluster *cluster;
    struct volumes *volumes;
    struct admin *admin;
    struct waitq stop;
    bool stop_wanted;
    unsigned connection_count_max;
    int status;
};
static const char *redirect_to;

/* --- what the fake volumes lack --- */
fiber_fn int volume_create(struct volumes *vs, const struct volume_create_options *o,
                           struct volume_error *ret_error)
{
    struct volume_info *list;
    size_t count;
    ASSERT(volume_list(vs, o->name, &list, &count) == 0);
    free(list);
    if (count > 0) {
        snprintf(ret_error->text, sizeof(ret_error->text), "volume %s exists", o->name);
        return -EEXIST;
    }
    return fake_volumes_add(vs, o->name, "", o->size);
}

static int elsewhere(const char *name, struct volume_error *ret_error)
{
    if (strcmp(name, "moved") != 0 || !redirect_to)
        return 0;
    snprintf(ret_error->text, sizeof(ret_error->text), "moved is open on another node");
    snprintf(ret_error->redirect, sizeof(ret_error->redirect), "%s", redirect_to);
    return -EBUSY;
}

fiber_fn int volume_delete(struct volumes *vs, const char *name, struct volume_error *ret_error)
{
    snprintf(ret_error->text, sizeof(ret_error->text), "no volume %.200s", name);
    return -ENOENT;
}

fiber_fn int volume_delete_snapshot(struct volumes *vs, const char *name, const char *tag,
                                    struct volume_error *ret_error)
{
    snprintf(ret_error->text, sizeof(ret_error->text), "no snapshot %.100s@%.100s", name, tag);
    return -ENOENT;
}

fiber_fn int volume_resize(struct volumes *vs, const char *name, uint64_t size,
                           struct volume_error *ret_error)
{
    return elsewhere(name, ret_error);
}

fiber_fn int volume_snapshot(struct volumes *vs, const char *name, const char *tag,
                             uint64_t *ret_pause_ns, struct volume_error *ret_error)
{
    *ret_pause_ns = 12345;
    return fake_volumes_add(vs, name, tag, MIB);
}

fiber_fn int volume_clone(struct volumes *vs, const char *source, const char *tag, const char *name,
                          struct volume_error *ret_error)
{
    return fake_volumes_add(vs, name, "", MIB);
}

fiber_fn int volume_rollback(struct volumes *vs, const char *name, const char *tag,
                             struct volume_error *ret_error)
{
    return -ENOSPC; /* an error without a text */
}

fiber_fn int volume_usage(struct volumes *vs, const char *name, const char *tag_or_null,
                          struct volume_usage *ret, struct volume_error *ret_error)
{
    *ret = (struct volume_usage){.own_objects = 3, .shared_objects = 2, .index_blocks = 1};
    return elsewhere(name, ret_error);
}

fiber_fn int volume_check(struct volumes *vs, void (*report)(void *arg, const char *finding),
                          void *arg, struct volume_check_report *ret)
{
    report(arg, "object 1.0.7@3 is stored, but nothing refers to it");
    *ret = (struct volume_check_report){.volumes = 1, .findings = 1, .at_rest = true};
    return 0;
}

fiber_fn int volume_backlog(struct volumes *vs, struct volume_backlog *ret)
{
    *ret = (struct volume_backlog){.open = 1};
    return 0;
}

fiber_fn int object_node_info(struct objects *o, uint16_t node, struct object_node_info *ret)
{
    *ret = (struct object_node_info){
        .size_bytes = 100 * MIB, .used_bytes = 25 * MIB, .free_bytes = 75 * MIB, .object_count = 7};
    return 0;
}

void object_waiting_text(const struct objects *o, char *out, size_t size)
{
    snprintf(out, size, "writes wait for node b");
}

/* --- the server --- */
static fiber_fn int start(struct fake *f)
{
    struct cluster_options co = {.driver_spec = f->database,
                                 .store_uuid = {{1, 2, 3}},
                                 .name = "n0",
                                 .zone = "z0",
                                 .address = "tcp:127.0.0.1:1",
                                 .admin = listener_address(f->listener),
                                 .nbd = "",
                                 .weight = 1};
    int r = cluster_start(f->rt, &co, &f->cluster);
    if (r < 0)
        return r;
    struct admin_options ao = {.listeners = &f->listener,
                               .listener_count = 1,
                               .connection_count_max = f->connection_count_max,
                               .cluster = f->cluster,
                               .volumes = f->volumes};
    return admin_start(f->rt, &ao, &f->admin);
}

static void on_signal(void *arg, int signal)
{
    struct fake *f = arg;
    f->stop_wanted = true;
    waitq_wake_all(&f->stop);
}

static fiber_fn void fake_main(void *arg)
{
    struct fake *f = arg;
    waitq_init(&f->stop);
    ASSERT(rt_uring_on_signal(f->rt, on_signal, f) == 0);
    f->status = start(f) < 0;
    if (f->status == 0) {
        printf("%s\nready\n", listener_address(f->listener));
        fflush(stdout);
        while (!f->stop_wanted)
            waitq_wait(&f->stop);
        admin_stop(f->admin);
        f->status = fake_volumes_open_count(f->volumes) != 0;
    }
    if (f->cluster)
        cluster_stop(f->cluster);
    rt_stop(f->rt);
}

int main(int argc, char **argv)
{
    struct fake f = {.status = 2};
    if (argc < 5 || rt_uring_new(NULL, &f.rt) < 0)
        return 2;
    f.database = argv[1];
    redirect_to = argv[3][0] ? argv[3] : NULL;
    f.connection_count_max = (unsigned)atoi(argv[4]);
    if (net_listen(f.rt, argv[2], &f.listener) < 0)
        return 2;
    f.volumes = fake_volumes_new(f.rt);
    fake_volumes_set_speed(f.volumes, FAKE_YIELDS);
    ASSERT(fake_volumes_add(f.volumes, "disk", "", 64 * MIB) == 0);
    ASSERT(fake_volumes_add(f.volumes, "disk", "first", 64 * MIB) == 0);
    ASSERT(fake_volumes_add(f.volumes, "odd", "", 1000001) == 0);
    ASSERT(fake_volumes_add(f.volumes, "broken", "", 8 * MIB) == 0);
    ASSERT(fake_volumes_add(f.volumes, "moved", "", MIB) == 0);
    ASSERT(fiber_spawn(f.rt, "main", fake_main, &f) == 0);
    int r = rt_uring_run(f.rt);
    rt_uring_free(f.rt);
    fake_volumes_free(f.volumes);
    return r < 0 ? 2 : f.status;
}
