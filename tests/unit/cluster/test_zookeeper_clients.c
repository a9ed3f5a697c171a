/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients of the zookeeper driver that are killed, suspended, hung, or far behind: other processes,
 * which are this program again ("child MODE SPEC").
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"
#include "base/log.h"
#include "cluster/drivers/zookeeper_entry.h"
#include "cluster/drivers/zookeeper_link.h"
#include "contract.h"
#include "mirror.h"
#include "rt/uring/uring.h"
#include "zk_scene.h"

/* --- the children --- */

static fiber_fn void put_live(struct cs *cs)
{
    char key[64];
    snprintf(key, sizeof(key), "live/%d", (int)getpid());
    zk_put_ephemeral(cs, "live/taken", "child");
    zk_put_ephemeral(cs, key, "child"); /* last: who sees it may stop us */
}

/* Ends well when it notices that its session is over; and it must not have been serving when it was
 * asleep for longer than its timeout. */
static fiber_fn void child_stay(struct rt *rt)
{
    struct cs *cs;
    ASSERT(zk_open(rt, zk_stage.where, &cs) == 0);
    put_live(cs);
    uint64_t last = clock_now(rt);
    while (!cs->lost) {
        uint64_t now = clock_now(rt);
        if (now - last > cs->timeout_ns)
            ASSERT(now - cs->confirmed_ns > cs->timeout_ns / 3 * 2);
        last = now;
        fiber_sleep(rt, 20 * NS_PER_MS);
    }
    struct cs_op op = {.kind = CS_PUT, .key = "live/late", .revision = CS_REVISION_ANY};
    ASSERT(cs_txn(cs, &op, 1, NULL) == -EIO);
    cs_close(cs);
}

/* The loop hangs, the library's threads do not. */
static fiber_fn void child_hang(struct rt *rt)
{
    struct cs *cs;
    ASSERT(zk_open(rt, zk_stage.where, &cs) == 0);
    put_live(cs);
    for (;;)
        sleep(1);
}

static fiber_fn int failing_probe(void *arg)
{
    return -EIO;
}

/* The loop runs, the disk does not answer. */
static fiber_fn void child_no_disk(struct rt *rt)
{
    struct cs *cs;
    ASSERT(zk_open(rt, zk_stage.where, &cs) == 0);
    put_live(cs);
    cs->probe = failing_probe;
    while (!cs->lost)
        fiber_sleep(rt, 20 * NS_PER_MS);
    ASSERT(clock_now(rt) - cs->confirmed_ns > cs->timeout_ns / 3 * 2);
    cs_close(cs);
}

/* Watches, and at the word "told/end" writes how many of told/N there are now. */
static fiber_fn void child_watch(struct rt *rt)
{
    struct cs *cs;
    struct mirror m;
    ASSERT(zk_open(rt, zk_stage.where, &cs) == 0);
    mirror_init(&m, rt, cs, "told/");
    mirror_wait_key(&m, "told/before");
    zk_put_ephemeral(cs, "ready", "");
    mirror_wait_key(&m, "told/end");
    mirror_wait_gone(&m, "told/before");
    unsigned count = 0;
    for (unsigned i = 0; i < 100; i++) {
        char key[32];
        snprintf(key, sizeof(key), "told/%u", i);
        count += mirror_has(&m, key);
    }
    char text[16];
    snprintf(text, sizeof(text), "%u", count);
    struct cs_op op = {.kind = CS_PUT,
                       .key = "answer",
                       .revision = CS_REVISION_ANY,
                       .value = text,
                       .length = strlen(text)};
    ASSERT(cs_txn(cs, &op, 1, NULL) == 0);
    cs_close(cs);
    mirror_done(&m);
}

static int child_main(const char *mode, const char *spec)
{
    static const struct {
        const char *mode;
        fiber_fn void (*fn)(struct rt *rt);
    } modes[] = {{"stay", child_stay},
                 {"hang", child_hang},
                 {"no-disk", child_no_disk},
                 {"watch", child_watch}};
    snprintf(zk_stage.where, sizeof(zk_stage.where), "%s", spec);
    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        if (strcmp(mode, modes[i].mode) == 0)
            zk_run(modes[i].fn);
    }
    return 0;
}

static pid_t start_child(const char *mode, const char *spec)
{
    pid_t parent = getpid(), pid = fork();
    ASSERT(pid >= 0);
    if (pid == 0) {
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && getppid() == parent)
            execl("/proc/self/exe", "test_cs_zookeeper", "child", mode, spec, NULL);
        _exit(127);
    }
    return pid;
}

static void kill_child(pid_t pid)
{
    ASSERT(kill(pid, SIGKILL) == 0);
    ASSERT(waitpid(pid, NULL, 0) == pid);
}

static void stop_child(pid_t pid)
{
    int status;
    ASSERT(kill(pid, SIGSTOP) == 0);
    ASSERT(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
}

/* Lets the loop go on meanwhile. */
static fiber_fn void wait_child(struct rt *rt, pid_t pid)
{
    uint64_t deadline = clock_now(rt) + 60 * NS_PER_S;
    int status;
    pid_t done;
    while ((done = waitpid(pid, &status, WNOHANG)) == 0) {
        ASSERT(clock_now(rt) < deadline);
        fiber_sleep(rt, 20 * NS_PER_MS);
    }
    ASSERT(done == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* --- sessions that end without being told to --- */

static void child_key(char out[64], pid_t pid)
{
    snprintf(out, 64, "live/%d", (int)pid);
}

/* A killed process' keys go when its session expires, in one commit; what a newer session has taken
 * over stays (that is how a node that starts again replaces itself at once). */
static fiber_fn void killed_scene(struct rt *rt)
{
    struct cs *a, *b;
    struct mirror m;
    char key[64];
    ASSERT(zk_open(rt, zk_stage.where, &a) == 0 && zk_open(rt, zk_stage.where, &b) == 0);
    mirror_init(&m, rt, a, "live/");
    pid_t first = start_child("stay", zk_stage.where);
    child_key(key, first);
    mirror_wait_key(&m, key);
    mirror_wait_key(&m, "live/taken");
    kill_child(first);
    ASSERT(mirror_has(&m, key) && zk_value_is(b, key, "child")); /* "and not before" */
    zk_put_ephemeral(b, "live/taken", "mine");
    mirror_wait_gone(&m, key);
    ASSERT(zk_value_is(a, "live/taken", "mine"));
    pid_t second = start_child("stay", zk_stage.where); /* takes it again … */
    child_key(key, second);
    mirror_wait_key(&m, key);
    while (!zk_value_is(a, "live/taken", "child"))
        fiber_sleep(rt, NS_PER_MS);
    kill_child(second);
    mirror_wait_gone(&m, key);
    mirror_wait_gone(&m, "live/taken"); /* … and does lose it */
    ASSERT(mirror_find(&m, key)->revision == mirror_find(&m, "live/taken")->revision);
    mirror_check_order(&m);
    cs_close(a);
    cs_close(b);
    mirror_done(&m);
}

static void test_killed(void **state)
{
    zk_run_scene(4, killed_scene);
}

/* A process that is suspended for longer than its timeout notices when it comes back. */
static fiber_fn void suspended_scene(struct rt *rt)
{
    struct cs *a;
    struct mirror m;
    char key[64];
    ASSERT(zk_open(rt, zk_stage.where, &a) == 0);
    mirror_init(&m, rt, a, "live/");
    pid_t pid = start_child("stay", zk_stage.where);
    child_key(key, pid);
    mirror_wait_key(&m, key);
    stop_child(pid);
    mirror_wait_gone(&m, key);
    ASSERT(kill(pid, SIGCONT) == 0);
    wait_child(rt, pid);
    ASSERT(!mirror_has(&m, "live/late"));
    cs_close(a);
    mirror_done(&m);
}

static void test_suspended(void **state)
{
    zk_run_scene(4, suspended_scene);
}

/* A node whose loop hangs, or whose disk does not answer, loses its session though the library's
 * threads are well. */
static fiber_fn void hung_scene(struct rt *rt)
{
    struct cs *a;
    struct mirror m;
    char hung_key[64], key[64];
    ASSERT(zk_open(rt, zk_stage.where, &a) == 0);
    mirror_init(&m, rt, a, "live/");
    pid_t hung = start_child("hang", zk_stage.where),
          no_disk = start_child("no-disk", zk_stage.where);
    child_key(hung_key, hung);
    child_key(key, no_disk);
    mirror_wait_key(&m, hung_key);
    mirror_wait_key(&m, key);
    mirror_wait_gone(&m, hung_key);
    mirror_wait_gone(&m, key);
    wait_child(rt, no_disk);
    ASSERT(waitpid(hung, NULL, WNOHANG) == 0);
    kill_child(hung);
    cs_close(a);
    mirror_done(&m);
}

static void test_hung(void **state)
{
    zk_run_scene(4, hung_scene);
}

/* --- the log --- */

static fiber_fn void put_told(struct cs *cs, unsigned from, unsigned to, unsigned rounds)
{
    for (unsigned round = 0; round < rounds; round++) {
        for (unsigned i = from; i < to; i++) {
            char key[32];
            snprintf(key, sizeof(key), "told/%u", i);
            struct cs_op op = {.kind = CS_PUT,
                               .key = key,
                               .revision = CS_REVISION_ANY,
                               .value = key,
                               .length = strlen(key)};
            ASSERT(cs_txn(cs, &op, 1, NULL) == 0);
        }
    }
}

/* A process that slept through more commits than are kept, but kept its session, still learns what
 * became of its keys; and the log does not grow for ever. */
static fiber_fn void missed_scene(struct rt *rt)
{
    struct cs *cs, *late;
    struct mirror ready, answer;
    char spec[300];
    unsigned nodes = zk_server_node_count(&zk_stage.servers, 0);
    strcpy(spec, zk_stage.where);
    strcpy(strstr(spec, "?timeout="), "?timeout=60"); /* it must not expire */
    ASSERT(zk_open(rt, zk_stage.where, &cs) == 0);
    mirror_init(&ready, rt, cs, "ready");
    mirror_init(&answer, rt, cs, "answer");
    put_told(cs, 0, 2, 1);
    struct cs_op op = {.kind = CS_PUT, .key = "told/before", .revision = CS_REVISION_ANY};
    ASSERT(cs_txn(cs, &op, 1, NULL) == 0);
    pid_t pid = start_child("watch", spec);
    mirror_wait_key(&ready, "ready");
    stop_child(pid);
    struct cs_op gone[] = {{.kind = CS_DELETE, .key = "told/before", .revision = CS_REVISION_ANY},
                           {.kind = CS_DELETE, .key = "told/0", .revision = CS_REVISION_ANY}};
    ASSERT(cs_txn(cs, gone, 2, NULL) == 0);
    put_told(cs, 1, 20, 130); /* 2470 commits, more than twice of what is kept */
    op.key = "told/end";
    ASSERT(cs_txn(cs, &op, 1, NULL) == 0);
    ASSERT(kill(pid, SIGCONT) == 0);
    mirror_wait_key(&answer, "answer");
    ASSERT(zk_value_is(cs, "answer", "19"));
    wait_child(rt, pid);
    ASSERT(zk_server_node_count(&zk_stage.servers, 0) < nodes + 1024 + 200);
    ASSERT(zk_open(rt, zk_stage.where, &late) == 0); /* reads the whole log */
    ASSERT(zk_value_is(late, "told/19", "told/19") && zk_value_is(late, "told/end", ""));
    struct enc e;
    enc_init(&e);
    ASSERT(cs_get(late, "told/before", &e, NULL) == -ENOENT);
    enc_done(&e);
    cs_close(late);
    cs_close(cs);
    mirror_done(&ready);
    mirror_done(&answer);
}

static void test_missed_commits(void **state)
{
    zk_run_scene(10, missed_scene);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "child") == 0)
        return child_main(argv[2], argv[3]);
    if (argc == 2)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_suspended),
        cmocka_unit_test(test_hung),
        cmocka_unit_test(test_missed_commits),
    };
    return cmocka_run_group_tests(tests, zk_stage_one, zk_stage_done);
}
