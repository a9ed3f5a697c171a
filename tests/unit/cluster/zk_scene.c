/* SPDX-License-Identifier: Apache-2.0 */
/* Scenes on real ZooKeeper servers. */
#include "zk_scene.h"
#include <stdio.h>
#include <string.h>
#include "base/err.h"
#include "rt/uring/uring.h"

struct zk_stage zk_stage;

int zk_stage_one(void **state)
{
    zk_servers_start(&zk_stage.servers, 1);
    return 0;
}

int zk_stage_three(void **state)
{
    zk_servers_start(&zk_stage.servers, 3);
    return 0;
}

int zk_stage_done(void **state)
{
    zk_servers_done(&zk_stage.servers);
    return 0;
}

fiber_fn int zk_open(struct rt *rt, const char *spec, struct cs **ret)
{
    const char *path;
    const struct cs_driver *d = cs_driver_find(spec, &path);
    ASSERT(d);
    return d->open(rt, path, ret);
}

struct scene {
    struct rt *rt;
    fiber_fn void (*fn)(struct rt *rt);
};

static void scene_main(void *arg)
{
    struct scene *s = arg;
    s->fn(s->rt);
    rt_stop(s->rt);
}

void zk_run(fiber_fn void (*fn)(struct rt *rt))
{
    struct scene s = {.fn = fn};
    ASSERT(rt_uring_new(NULL, &s.rt) == 0);
    ASSERT(fiber_spawn(s.rt, "scene", scene_main, &s) == 0);
    ASSERT(rt_uring_run(s.rt) == 0);
    rt_uring_free(s.rt);
}

void zk_run_scene(unsigned timeout_s, fiber_fn void (*fn)(struct rt *rt))
{
    char address[128];
    zk_servers_address(&zk_stage.servers, address, sizeof(address));
    snprintf(zk_stage.where, sizeof(zk_stage.where), "zookeeper:%s/test/%u?timeout=%u", address,
             ++zk_stage.scene_count, timeout_s);
    zk_run(fn);
}

fiber_fn void zk_put_ephemeral(struct cs *cs, const char *key, const char *value)
{
    struct cs_op op = {.kind = CS_PUT,
                       .key = key,
                       .revision = CS_REVISION_ANY,
                       .value = value,
                       .length = strlen(value),
                       .ephemeral = true};
    ASSERT(cs_txn(cs, &op, 1, NULL) == 0);
}

fiber_fn bool zk_value_is(struct cs *cs, const char *key, const char *expected)
{
    struct enc e;
    enc_init(&e);
    int r = cs_get(cs, key, &e, NULL);
    ASSERT(r == 0 || r == -ENOENT);
    bool same = r == 0 && e.length == strlen(expected) &&
                (e.length == 0 || memcmp(e.data, expected, e.length) == 0);
    enc_done(&e);
    return same;
}
