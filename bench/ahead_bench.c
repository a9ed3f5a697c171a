/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Not a test: durable 4 KiB writes to new space of a file, written in three ways.
 *   ahead-bench PATH written|ahead|unwritten DEPTH SECONDS
 * `written`: all of the file was written at format. `ahead`: the store writes ahead of its
 * allocator. `unwritten`: nobody does (the file is allocated).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "rt/uring/uring.h"
#include "store/store.h"

#define FILE_BYTES   (3ull << 30)
#define OBJECT_BYTES (4u << 20)
#define MEASURED_MAX ((2ull << 30) / 4096) /* writes: all of them find new space */

struct bench {
    struct rt *rt;
    struct store *s;
    const char *path, *mode;
    unsigned depth;
    double seconds;
    uint64_t end_ns, ops, latency_max;
    struct wgroup group;
};

static void die(const char *what, int r)
{
    fprintf(stderr, "%s: %s\n", what, err_text(r));
    exit(1);
}

struct writer {
    struct bench *b;
    unsigned id;
};

/* Each writer fills objects of its own, one block after the other. */
static void writer_fiber(void *arg)
{
    struct writer *w = arg;
    struct bench *b = w->b;
    uint8_t *buffer = buf_get(b->rt, 4096);
    uint64_t now = clock_now(b->rt);

    memset(buffer, (int)w->id + 1, 4096);
    for (uint64_t n = 0; now < b->end_ns && b->ops < MEASURED_MAX; n++) {
        uint64_t in_object = n % (OBJECT_BYTES / 4096), then;
        struct store_extent extent = {(uint32_t)in_object * 4096, 4096};
        struct iovec iov = {buffer, 4096};
        struct store_change c = {
            .kind = STORE_WRITE,
            .oid = {.vid = 1 + w->id, .index = (uint32_t)(n / (OBJECT_BYTES / 4096))},
            .prev = {in_object},
            .next = {in_object + 1},
            .extents = &extent,
            .extent_count = 1,
            .iov = &iov,
            .iov_count = 1};
        int r = store_apply(b->s, &c, NULL);
        if (r < 0)
            die("write", r);
        then = clock_now(b->rt);
        b->latency_max = MAX(b->latency_max, then - now);
        now = then;
        b->ops++;
    }
    buf_put(b->rt, buffer);
    wgroup_finish(&b->group);
}

static void bench_fiber(void *arg)
{
    struct bench *b = arg;
    bool written = strcmp(b->mode, "written") == 0, ahead = strcmp(b->mode, "ahead") == 0;
    struct store_format_options format = {.size = FILE_BYTES,
                                          .zero_bytes = written ? UINT64_MAX
                                                        : ahead ? 0
                                                                : 4096};
    struct store_open_options options = {.no_zero_ahead = !ahead};
    struct writer *writers = calloc(b->depth, sizeof(*writers));
    struct store_stats stats;
    uint64_t start;
    int r = store_format(b->rt, b->path, &format, NULL, NULL);

    if (r == 0)
        r = store_open(b->rt, b->path, &options, &b->s);
    if (r < 0)
        die("format or open", r);
    start = clock_now(b->rt);
    b->end_ns = start + (uint64_t)(b->seconds * 1e9);
    wgroup_init(&b->group);
    wgroup_add(&b->group, (int)b->depth);
    for (unsigned i = 0; i < b->depth; i++) {
        writers[i] = (struct writer){b, i};
        fiber_spawn(b->rt, "bench", writer_fiber, &writers[i]);
    }
    wgroup_wait(&b->group);
    store_stats(b->s, &stats);
    printf("%-9s depth %2u: %6.0f/s, slowest %5.1f ms, %llu MiB zeroed meanwhile\n", b->mode,
           b->depth, (double)b->ops / ((double)(clock_now(b->rt) - start) * 1e-9),
           (double)b->latency_max * 1e-6, (unsigned long long)(stats.zeroed_blocks / 256));
    r = store_close(b->s);
    if (r < 0)
        die("close", r);
    free(writers);
}

int main(int argc, char **argv)
{
    struct bench b = {0};

    if (argc != 5 || (b.depth = (unsigned)atoi(argv[3])) == 0) {
        fprintf(stderr, "usage: %s PATH written|ahead|unwritten DEPTH SECONDS\n", argv[0]);
        return 1;
    }
    b.path = argv[1];
    b.mode = argv[2];
    b.seconds = atof(argv[4]);
    if (rt_uring_new(NULL, &b.rt) < 0 || fiber_spawn(b.rt, "bench", bench_fiber, &b) < 0)
        return 1;
    if (rt_uring_run(b.rt) < 0)
        return 1;
    rt_uring_free(b.rt);
    return 0;
}
