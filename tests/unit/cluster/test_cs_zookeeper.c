/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver contract over `zookeeper`, on Debian's real server: one that is killed, stopped and
 * started again, an ensemble of three, clients that are suspended, and many keys.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/bytes.h"
#include "base/err.h"
#include "base/log.h"
#include "contract.h"
#include "mirror.h"
#include "rt/uring/uring.h"
#include "zk_server.h"

static struct zk_servers servers;
static char where[256]; /* a fresh path for each scene */
static unsigned scene_count;

static fiber_fn int open_at(struct rt *rt, const char *spec, struct cs **ret)
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

static void run(fiber_fn void (*fn)(struct rt *rt))
{
    struct scene s = {.fn = fn};
    ASSERT(rt_uring_new(NULL, &s.rt) == 0);
    ASSERT(fiber_spawn(s.rt, "scene", scene_main, &s) == 0);
    ASSERT(rt_uring_run(s.rt) == 0);
    rt_uring_free(s.rt);
}

static void run_scene(fiber_fn void (*fn)(struct rt *rt))
{
    char address[128];
    zk_servers_address(&servers, address, sizeof(address));
    snprintf(where, sizeof(where), "zookeeper:%s/test/%u?timeout=4", address, ++scene_count);
    run(fn);
}

/* --- the contract --- */

static fiber_fn int open_one(struct contract *k, struct cs **ret)
{
    return open_at(k->rt, where, ret);
}

static fiber_fn void contract_scene(struct rt *rt)
{
    struct contract k = {.rt = rt, .open = open_one};
    contract_run(&k);
}

static void test_contract(void **state)
{
    run_scene(contract_scene);
}

/* --- life --- */

static int start_one(void **state)
{
    zk_servers_start(&servers, 1);
    return 0;
}

static int stop_all(void **state)
{
    zk_servers_done(&servers);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_contract),
    };
    return cmocka_run_group_tests(tests, start_one, stop_all);
}
