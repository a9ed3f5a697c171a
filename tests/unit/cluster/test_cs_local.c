/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver contract over `local`, with several connections in one process and with other
 * processes that are killed; and its answers to wrong files.
 *
 * Children are this program again ("child MODE DATABASE"), so that no database or ring is carried
 * over a fork.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/bytes.h"
#include "base/err.h"
#include "base/log.h"
#include "contract.h"
#include "mirror.h"
#include "rt/uring/uring.h"

static char directory[64], database[96], where[128];

static void make_place(void)
{
    strcpy(directory, "/tmp/cluster-XXXXXX");
    ASSERT(mkdtemp(directory));
    snprintf(database, sizeof(database), "%s/cluster.db", directory);
    snprintf(where, sizeof(where), "local:%s", database);
}

static void remove_place(void)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    ASSERT(system(command) == 0);
}

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

static void run_scene(fiber_fn void (*fn)(struct rt *rt))
{
    struct scene s = {.fn = fn};
    make_place();
    ASSERT(rt_uring_new(NULL, &s.rt) == 0);
    ASSERT(fiber_spawn(s.rt, "scene", scene_main, &s) == 0);
    ASSERT(rt_uring_run(s.rt) == 0);
    rt_uring_free(s.rt);
    remove_place();
}

/* --- the contract --- */

static fiber_fn int open_local(struct contract *k, struct cs **ret)
{
    return open_at(k->rt, where, ret);
}

static fiber_fn void contract_scene(struct rt *rt)
{
    struct contract k = {.rt = rt, .open = open_local};
    contract_run(&k);
}

static void test_contract(void **state)
{
    run_scene(contract_scene);
}

/* --- children --- */

static fiber_fn void child_stay(struct rt *rt)
{
    struct cs *cs;
    char key[64];
    ASSERT(open_at(rt, where, &cs) == 0);
    snprintf(key, sizeof(key), "live/%d", (int)getpid());
    struct cs_op op = {.kind = CS_PUT, .key = key, .revision = CS_REVISION_ANY, .ephemeral = true};
    ASSERT(cs_txn(cs, &op, 1, NULL) == 0);
    for (;;)
        fiber_sleep(rt, 3600 * NS_PER_S);
}

/* Writes the same number to two keys, again and again. */
static fiber_fn void child_write(struct rt *rt)
{
    struct cs *cs;
    char key[64];
    ASSERT(open_at(rt, where, &cs) == 0);
    snprintf(key, sizeof(key), "live/%d", (int)getpid());
    for (uint64_t i = 0;; i++) {
        uint8_t bytes[8];
        put_le64(bytes, i);
        struct cs_op ops[] = {
            {.kind = CS_PUT,
             .key = "twin/a",
             .revision = CS_REVISION_ANY,
             .value = bytes,
             .length = 8},
            {.kind = CS_PUT,
             .key = "twin/b",
             .revision = CS_REVISION_ANY,
             .value = bytes,
             .length = 8},
            {.kind = CS_PUT, .key = key, .revision = CS_REVISION_ANY, .ephemeral = true},
        };
        ASSERT(cs_txn(cs, ops, 3, NULL) == 0);
    }
}

/* Watches, and at the word "told/end" writes how many of told/N there are now. */
static fiber_fn void child_watch(struct rt *rt)
{
    struct cs *cs;
    struct mirror m;
    ASSERT(open_at(rt, where, &cs) == 0);
    mirror_init(&m, rt, cs, "told/");
    mirror_wait_key(&m, "told/before");
    struct cs_op op = {
        .kind = CS_PUT, .key = "ready", .revision = CS_REVISION_ANY, .ephemeral = true};
    ASSERT(cs_txn(cs, &op, 1, NULL) == 0);
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
    op = (struct cs_op){.kind = CS_PUT,
                        .key = "answer",
                        .revision = CS_REVISION_ANY,
                        .value = text,
                        .length = strlen(text)};
    ASSERT(cs_txn(cs, &op, 1, NULL) == 0);
    cs_close(cs);
    mirror_done(&m);
}

static int child_main(const char *mode, const char *path)
{
    struct scene s = {.fn = strcmp(mode, "stay") == 0    ? child_stay
                            : strcmp(mode, "write") == 0 ? child_write
                                                         : child_watch};
    snprintf(where, sizeof(where), "local:%s", path);
    ASSERT(rt_uring_new(NULL, &s.rt) == 0);
    ASSERT(fiber_spawn(s.rt, "child", scene_main, &s) == 0);
    ASSERT(rt_uring_run(s.rt) == 0);
    rt_uring_free(s.rt);
    return 0;
}

static pid_t start_child(const char *mode)
{
    pid_t pid = fork();
    ASSERT(pid >= 0);
    if (pid == 0) {
        execl("/proc/self/exe", "test_cs_local", "child", mode, database, NULL);
        _exit(127);
    }
    return pid;
}

static void kill_child(pid_t pid)
{
    ASSERT(kill(pid, SIGKILL) == 0);
    ASSERT(waitpid(pid, NULL, 0) == pid);
}

/* Other processes notice a death by themselves, whoever is first, and only the dead lose their
 * keys. */
static fiber_fn void kill_scene(struct rt *rt)
{
    struct cs *a, *b;
    struct mirror m;
    char key[64], survivor_key[64];
    ASSERT(open_at(rt, where, &a) == 0 && open_at(rt, where, &b) == 0);
    mirror_init(&m, rt, a, "live/");
    pid_t survivor = start_child("stay");
    snprintf(survivor_key, sizeof(survivor_key), "live/%d", (int)survivor);
    mirror_wait_key(&m, survivor_key);
    for (unsigned round = 0; round < 8; round++) {
        pid_t pid = start_child("stay");
        snprintf(key, sizeof(key), "live/%d", (int)pid);
        mirror_wait_key(&m, key);
        kill_child(pid);
        mirror_wait_gone(&m, key);
        ASSERT(mirror_has(&m, survivor_key));
    }
    kill_child(survivor);
    mirror_wait_gone(&m, survivor_key);
    mirror_check_order(&m);
    cs_close(a);
    cs_close(b);
    mirror_done(&m);
}

static void test_kill(void **state)
{
    run_scene(kill_scene);
}

/* Killed while writing: whole transactions only, and the next one comes through. */
static fiber_fn void kill_writer_scene(struct rt *rt)
{
    struct cs *cs;
    ASSERT(open_at(rt, where, &cs) == 0);
    struct mirror m;
    mirror_init(&m, rt, cs, "live/");
    for (unsigned round = 0; round < 8; round++) {
        char key[64];
        pid_t pid = start_child("write");
        snprintf(key, sizeof(key), "live/%d", (int)pid);
        mirror_wait_key(&m, key);
        fiber_sleep(rt, rt_random(rt) % (20 * NS_PER_MS)); /* any moment will do */
        kill_child(pid);
        mirror_wait_gone(&m, key);
        struct enc x, y;
        uint64_t x_revision, y_revision;
        enc_init(&x);
        enc_init(&y);
        ASSERT(cs_get(cs, "twin/a", &x, &x_revision) == 0 &&
               cs_get(cs, "twin/b", &y, &y_revision) == 0);
        ASSERT(x.length == 8 && y.length == 8 && memcmp(x.data, y.data, 8) == 0 &&
               x_revision == y_revision);
        enc_done(&x);
        enc_done(&y);
        struct cs_op op = {.kind = CS_PUT, .key = "own", .revision = CS_REVISION_ANY};
        ASSERT(cs_txn(cs, &op, 1, NULL) == 0);
    }
    mirror_check_order(&m);
    cs_close(cs);
    mirror_done(&m);
}

static void test_kill_writer(void **state)
{
    run_scene(kill_writer_scene);
}

/* A session that ended while nobody was there is swept by the next who comes. */
static fiber_fn void sweep_scene(struct rt *rt)
{
    struct cs *cs;
    struct mirror m;
    char key[64];
    ASSERT(open_at(rt, where, &cs) == 0);
    mirror_init(&m, rt, cs, "live/");
    pid_t pid = start_child("stay");
    snprintf(key, sizeof(key), "live/%d", (int)pid);
    mirror_wait_key(&m, key);
    cs_close(cs);
    mirror_done(&m);
    kill_child(pid);
    struct enc e;
    enc_init(&e);
    ASSERT(open_at(rt, where, &cs) == 0);
    ASSERT(cs_get(cs, key, &e, NULL) == -ENOENT);
    enc_done(&e);
    cs_close(cs);
}

static void test_sweep(void **state)
{
    run_scene(sweep_scene);
}

static fiber_fn void put_big(struct cs *cs, unsigned from, unsigned to)
{
    static uint8_t big[CS_VALUE_MAX];
    for (unsigned i = from; i < to; i++) {
        char key[32];
        snprintf(key, sizeof(key), "told/%u", i);
        struct cs_op op = {.kind = CS_PUT,
                           .key = key,
                           .revision = CS_REVISION_ANY,
                           .value = big,
                           .length = sizeof(big)};
        ASSERT(cs_txn(cs, &op, 1, NULL) == 0);
    }
}

/* A process that slept through more commits than are kept still learns what became of its keys. */
static fiber_fn void missed_scene(struct rt *rt)
{
    struct cs *cs;
    struct mirror ready, answer;
    ASSERT(open_at(rt, where, &cs) == 0);
    mirror_init(&ready, rt, cs, "ready");
    mirror_init(&answer, rt, cs, "answer");
    struct cs_op op = {.kind = CS_PUT, .key = "told/before", .revision = CS_REVISION_ANY};
    ASSERT(cs_txn(cs, &op, 1, NULL) == 0);
    put_big(cs, 0, 2);
    pid_t pid = start_child("watch");
    mirror_wait_key(&ready, "ready");
    ASSERT(kill(pid, SIGSTOP) == 0);
    int status;
    ASSERT(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
    struct cs_op gone[] = {{.kind = CS_DELETE, .key = "told/before", .revision = CS_REVISION_ANY},
                           {.kind = CS_DELETE, .key = "told/0", .revision = CS_REVISION_ANY}};
    ASSERT(cs_txn(cs, gone, 2, NULL) == 0);
    put_big(cs, 1, 20);
    op.key = "told/end";
    ASSERT(cs_txn(cs, &op, 1, NULL) == 0);
    ASSERT(kill(pid, SIGCONT) == 0);
    mirror_wait_key(&answer, "answer");
    struct enc e;
    enc_init(&e);
    ASSERT(cs_get(cs, "answer", &e, NULL) == 0 && e.length == 2 && memcmp(e.data, "19", 2) == 0);
    enc_done(&e);
    ASSERT(waitpid(pid, &status, 0) == pid && status == 0);
    cs_close(cs);
    mirror_done(&ready);
    mirror_done(&answer);
}

static void test_missed_commits(void **state)
{
    run_scene(missed_scene);
}

/* --- wrong files --- */

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    ASSERT(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

/* Overwrites a field of the header that every SQLite file begins with. */
static void patch_header(const char *path, off_t offset, uint32_t value)
{
    uint8_t bytes[4];
    put_be32(bytes, value);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    ASSERT(fd >= 0 && pwrite(fd, bytes, 4, offset) == 4 && close(fd) == 0);
}

#define HEADER_USER_VERSION   60
#define HEADER_APPLICATION_ID 68

static fiber_fn int try_path(struct rt *rt, const char *path)
{
    char spec[160];
    struct cs *cs;
    snprintf(spec, sizeof(spec), "local:%s", path);
    int r = open_at(rt, spec, &cs);
    if (r == 0)
        cs_close(cs);
    return r;
}

static fiber_fn void wrong_scene(struct rt *rt)
{
    char path[128];
    enum log_level level = log_level;
    log_level = LOG_ERROR;
    snprintf(path, sizeof(path), "%s/none/cluster.db", directory);
    ASSERT(try_path(rt, path) == -ENOENT);
    ASSERT(try_path(rt, directory) == -EMEDIUMTYPE);
    ASSERT(try_path(rt, ":memory:") == -EINVAL);
    snprintf(path, sizeof(path), "%s/text", directory);
    write_text(path, "This is a text of more than the hundred bytes which a header of SQLite has, "
                     "so that nobody "
                     "can take it for an empty file.\n");
    ASSERT(try_path(rt, path) == -EMEDIUMTYPE);
    snprintf(path, sizeof(path), "%s/other.db", directory);
    ASSERT(try_path(rt, path) == 0);
    patch_header(path, HEADER_APPLICATION_ID, 0x4f544852);
    ASSERT(try_path(rt, path) == -EMEDIUMTYPE);
    patch_header(path, HEADER_APPLICATION_ID, 0); /* no mark at all, but tables */
    patch_header(path, HEADER_USER_VERSION, 0);
    ASSERT(try_path(rt, path) == -EMEDIUMTYPE);
    snprintf(path, sizeof(path), "%s/newer.db", directory);
    ASSERT(try_path(rt, path) == 0);
    ASSERT(try_path(rt, path) == 0);
    patch_header(path, HEADER_USER_VERSION, 2);
    ASSERT(try_path(rt, path) == -EPROTO);
    snprintf(path, sizeof(path), "%s/empty.db", directory);
    write_text(path, "");
    ASSERT(try_path(rt, path) == 0);
    const char *ignored;
    ASSERT(!cs_driver_find("local", &ignored) && !cs_driver_find("local:", &ignored));
    ASSERT(!cs_driver_find("etcd:/x", &ignored) && !cs_driver_find("", &ignored));
    log_level = level;
}

static void test_wrong_files(void **state)
{
    run_scene(wrong_scene);
}

static void count_loss(void *arg)
{
    ++*(unsigned *)arg;
}

/* The database is taken away under us: no more answers, and the loss is told once. */
static fiber_fn void removed_scene(struct rt *rt)
{
    struct cs *a, *b;
    unsigned losses = 0;
    char command[192];
    struct cs_op op = {.kind = CS_PUT, .key = "x", .revision = CS_REVISION_ANY};
    ASSERT(open_at(rt, where, &a) == 0 && open_at(rt, where, &b) == 0);
    a->on_lost = count_loss;
    a->on_lost_arg = &losses;
    snprintf(command, sizeof(command), "rm -r %s*", database);
    ASSERT(system(command) == 0);
    uint64_t deadline = clock_now(rt) + 30 * NS_PER_S;
    while (!a->lost || !b->lost) {
        ASSERT(clock_now(rt) < deadline);
        fiber_sleep(rt, NS_PER_MS);
    }
    ASSERT(losses == 1);
    ASSERT(cs_txn(a, &op, 1, NULL) == -EIO && cs_txn(b, &op, 1, NULL) == -EIO);
    cs_close(a);
    cs_close(b);
    ASSERT(losses == 1);
}

static void test_removed(void **state)
{
    run_scene(removed_scene);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "child") == 0)
        return child_main(argv[2], argv[3]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_contract),       cmocka_unit_test(test_kill),
        cmocka_unit_test(test_kill_writer),    cmocka_unit_test(test_sweep),
        cmocka_unit_test(test_missed_commits), cmocka_unit_test(test_wrong_files),
        cmocka_unit_test(test_removed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
