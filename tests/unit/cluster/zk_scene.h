/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests on real ZooKeeper servers share: the servers of the moment, and scenes on a real
 * loop, each with a path of its own. */
#pragma once
#include "cluster/driver.h"
#include "zk_server.h"

struct zk_stage {
    struct zk_servers servers;
    char where[256]; /* spec of the present scene's store */
    unsigned scene_count;
};
extern struct zk_stage zk_stage;

/* cmocka fixtures: one server, three, and their end. */
int zk_stage_one(void **state);
int zk_stage_three(void **state);
int zk_stage_done(void **state);

/* Runs fn on a fiber of a real loop, to its end. */
void zk_run(fiber_fn void (*fn)(struct rt *rt));
/* As zk_run(), after choosing a new zk_stage.where with that timeout of sessions. Short ones are
 * for scenes that wait for a session's end; where none may end, 10 s leave room for a busy machine.
 */
void zk_run_scene(unsigned timeout_s, fiber_fn void (*fn)(struct rt *rt));
fiber_fn int zk_open(struct rt *rt, const char *spec, struct cs **ret);
fiber_fn void zk_put_ephemeral(struct cs *cs, const char *key, const char *value);
fiber_fn bool zk_value_is(struct cs *cs, const char *key, const char *expected);
