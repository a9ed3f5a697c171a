/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Not a test: how fast the store is by itself, on a file.
 *   bench_store PATH [seconds] [unsafe]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "base/err.h"
#include "base/log.h"
#include "rt/uring/uring.h"
#include "store/store.h"

#define OBJECTS      64u
#define OBJECT_BYTES (4u << 20)

enum mode { MODE_WRITE, MODE_READ, MODE_SEQ_WRITE, MODE_SEQ_READ };

struct bench {
    struct rt *rt;
    const char *path;
    struct store *s;
    double seconds;
    bool unsafe;
    uint64_t versions[OBJECTS]; /* last given out */
    uint64_t random, end_ns, ops, latency_max;
    enum mode mode;
    struct wgroup group;
};

static uint64_t next_random(struct bench *b)
{
    b->random += 0x9e3779b97f4a7c15ull;
    return hash_u64(b->random);
}

static struct oid bench_oid(unsigned i)
{
    return (struct oid){.vid = 1, .index = i};
}

static void die(const char *what, int r)
{
    fprintf(stderr, "%s: %s\n", what, err_text(r));
    exit(1);
}

static fiber_fn void bench_write(struct bench *b, unsigned i, uint32_t offset, uint8_t *buffer,
                                 uint32_t length)
{
    struct store_extent extent = {offset, length};
    struct iovec iov = {buffer, length};
    uint64_t version = b->versions[i]++;
    struct store_change c = {.kind = STORE_WRITE,
                             .oid = bench_oid(i),
                             .prev = {version},
                             .next = {version + 1},
                             .extents = &extent,
                             .extent_count = 1,
                             .iov = &iov,
                             .iov_count = 1};
    int r = store_apply(b->s, &c, NULL);

    if (r < 0)
        die("write", r);
}

static void worker(void *arg)
{
    struct bench *b = arg;
    uint32_t length = b->mode >= MODE_SEQ_WRITE ? 1 << 20 : 4096;
    uint8_t *buffer = buf_get(b->rt, length);

    memset(buffer, (int)next_random(b), length);
    for (uint64_t now = clock_now(b->rt); now < b->end_ns;) {
        uint64_t x = next_random(b), then;
        unsigned i = x % OBJECTS;
        uint32_t offset = (uint32_t)((x >> 32) % (OBJECT_BYTES / length)) * length;
        if (b->mode == MODE_WRITE || b->mode == MODE_SEQ_WRITE) {
            memcpy(buffer, &x, sizeof(x));
            bench_write(b, i, offset, buffer, length);
        } else {
            struct oid oid = bench_oid(i);
            int r = store_read(b->s, &oid, offset, length, buffer, NULL);
            if (r < 0)
                die("read", r);
        }
        then = clock_now(b->rt);
        if (then - now > b->latency_max)
            b->latency_max = then - now;
        now = then;
        b->ops++;
    }
    buf_put(b->rt, buffer);
    wgroup_finish(&b->group);
}

static double cpu_seconds(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static double user_seconds(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)u.ru_utime.tv_sec + (double)u.ru_utime.tv_usec * 1e-6;
}

static fiber_fn void phase(struct bench *b, const char *name, enum mode mode, unsigned depth)
{
    struct store_stats before, after;
    double cpu = cpu_seconds(), user = user_seconds(), elapsed;
    uint64_t start = clock_now(b->rt);

    store_stats(b->s, &before);
    b->mode = mode;
    b->ops = b->latency_max = 0;
    b->end_ns = start + (uint64_t)(b->seconds * 1e9);
    wgroup_init(&b->group);
    wgroup_add(&b->group, depth);
    for (unsigned i = 0; i < depth; i++)
        fiber_spawn(b->rt, "bench", worker, b);
    wgroup_wait(&b->group);
    elapsed = (double)(clock_now(b->rt) - start) * 1e-9;
    store_stats(b->s, &after);
    printf("%-14s depth %2u: %8.0f/s  cpu %5.1f us/op (user %4.1f)  max %6.2f ms  commits %llu "
           "log blocks %llu flushes %llu checkpoints %llu\n",
           name, depth, (double)b->ops / elapsed, (cpu_seconds() - cpu) / (double)b->ops * 1e6,
           (user_seconds() - user) / (double)b->ops * 1e6, (double)b->latency_max * 1e-6,
           (unsigned long long)(after.commits - before.commits),
           (unsigned long long)(after.log_blocks - before.log_blocks),
           (unsigned long long)(after.flushes - before.flushes),
           (unsigned long long)(after.checkpoints - before.checkpoints));
}

static void bench_fiber(void *arg)
{
    struct bench *b = arg;
    struct store_format_options options = {.size = 1ull << 30, .overwrite = true};
    struct store_open_options open_options = {.unsafe_no_flush = b->unsafe};
    uint8_t *buffer = buf_get(b->rt, 1 << 20);
    uint64_t start;
    int r = store_format(b->rt, b->path, &options, NULL, NULL);

    if (r == 0)
        r = store_open(b->rt, b->path, &open_options, &b->s);
    if (r < 0)
        die("format or open", r);
    memset(buffer, 7, 1 << 20);
    start = clock_now(b->rt);
    for (unsigned i = 0; i < OBJECTS * 4; i++)
        bench_write(b, i / 4, (i % 4) << 20, buffer, 1 << 20);
    printf("fill: %.0f MiB/s\n", OBJECTS * 4 / ((double)(clock_now(b->rt) - start) * 1e-9));
    phase(b, "seqread-1m", MODE_SEQ_READ, 4);
    phase(b, "randwrite-4k", MODE_WRITE, 1);
    phase(b, "randwrite-4k", MODE_WRITE, 32);
    phase(b, "randread-4k", MODE_READ, 1);
    phase(b, "randread-4k", MODE_READ, 32);
    phase(b, "write-1m", MODE_SEQ_WRITE, 4);
    buf_put(b->rt, buffer);
    start = clock_now(b->rt);
    r = store_close(b->s);
    printf("close: %.1f ms\n", (double)(clock_now(b->rt) - start) * 1e-6);
    if (r < 0)
        die("close", r);
}

int main(int argc, char **argv)
{
    struct bench b = {.seconds = argc > 2 ? atof(argv[2]) : 3};

    if (argc < 2) {
        fprintf(stderr, "usage: %s PATH [seconds] [unsafe]\n", argv[0]);
        return 1;
    }
    b.path = argv[1];
    b.unsafe = argc > 3 && strcmp(argv[3], "unsafe") == 0;
    if (rt_uring_new(NULL, &b.rt) < 0 || fiber_spawn(b.rt, "bench", bench_fiber, &b) < 0)
        return 1;
    if (rt_uring_run(b.rt) < 0)
        return 1;
    rt_uring_free(b.rt);
    return 0;
}
