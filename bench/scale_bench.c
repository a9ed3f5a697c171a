/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Not a test: a large sparse store with very many objects, one stage per process; bench/scale runs
 * them and makes the table. Each stage prints lines "name value".
 *   scale-bench PATH OBJECTS create GIB | open | write SECONDS DEPTH | crash 0 DEPTH |
 *                            read SECONDS DEPTH | fragment MIB
 * In the environment: SCALE_CACHE_MIB; SCALE_NO_ZERO_AHEAD: the store does not write the file ahead
 * of itself; SCALE_NO_FLUSH: what the disk takes for flushes is left out (and always with "crash":
 * a kill loses nothing).
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/err.h"
#include "base/log.h"
#include "rt/uring/uring.h"
#include "store/checkpoint.h"

#define OBJECT_BLOCKS  2u
#define FRAGMENT_BYTES (1u << 20)
#define CREATE_DEPTH   64u

struct samples {
    uint32_t *us; /* owned */
    size_t count, capacity;
};

struct bench {
    struct rt *rt;
    const char *path, *stage;
    int a, b; /* arguments of the stage */
    struct store *s;
    uint64_t vid, objects, object_bytes, random, next, limit, end_ns, bytes;
    uint32_t io_bytes;
    void (*op)(struct bench *b, uint8_t *buffer, uint64_t x);
    struct samples calm, busy; /* latencies without and with a checkpoint under way */
    struct wgroup group;
};

static void die(const char *what, int r)
{
    fprintf(stderr, "%s: %s\n", what, err_text(r));
    exit(1);
}

static uint64_t next_random(struct bench *b)
{
    b->random += 0x9e3779b97f4a7c15ull;
    return hash_u64(b->random);
}

static double resident_bytes(void)
{
    unsigned long total = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    if (f == NULL || fscanf(f, "%lu %lu", &total, &resident) != 2)
        die("statm", -EIO);
    fclose(f);
    return (double)resident * 4096;
}

static double cpu_seconds(const struct rusage *u)
{
    return (double)(u->ru_utime.tv_sec + u->ru_stime.tv_sec) +
           (double)(u->ru_utime.tv_usec + u->ru_stime.tv_usec) * 1e-6;
}

static double seconds_since(struct bench *b, uint64_t start)
{
    return (double)(clock_now(b->rt) - start) * 1e-9;
}

/* --- latencies --- */

static void sample(struct samples *s, uint64_t ns)
{
    if (s->count == s->capacity) {
        s->capacity = s->capacity * 2 + 4096;
        s->us = realloc(s->us, s->capacity * sizeof(*s->us));
        if (s->us == NULL)
            die("samples", -ENOMEM);
    }
    s->us[s->count++] = (uint32_t)MIN(ns / 1000, (uint64_t)UINT32_MAX);
}

static int compare_us(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

static void print_latencies(const char *name, struct samples *s)
{
    static const double parts[] = {0.5, 0.99, 0.999};

    printf("%s-ops %zu\n", name, s->count);
    if (s->count == 0)
        return;
    qsort(s->us, s->count, sizeof(*s->us), compare_us);
    for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
        printf("%s-p%g %.3f\n", name, parts[i] * 100,
               s->us[(size_t)((double)s->count * parts[i])] * 1e-3);
    printf("%s-max %.3f\n", name, s->us[s->count - 1] * 1e-3);
}

static void samples_done(struct samples *s)
{
    free(s->us);
    *s = (struct samples){0};
}

/* --- operations --- */

static struct oid oid_of(const struct bench *b, uint64_t i)
{
    return (struct oid){.vid = b->vid, .index = (uint32_t)i, .group = (uint16_t)(i % 1024)};
}

static fiber_fn void write_at(struct bench *b, uint64_t i, uint32_t offset, uint8_t *buffer,
                              uint32_t length)
{
    struct store_extent extent = {offset, length};
    struct iovec iov = {buffer, length};
    struct store_stat stat;
    struct store_change c = {.kind = STORE_WRITE,
                             .oid = oid_of(b, i),
                             .extents = &extent,
                             .extent_count = 1,
                             .iov = &iov,
                             .iov_count = 1};
    int r;

    do {
        store_stat(b->s, &c.oid, &stat);
        c.prev = stat.version;
        c.next.value = stat.version.value + 1;
        r = store_apply(b->s, &c, NULL);
    } while (r == -ESTALE || (r == 0 && c.prev.value == 0 && stat.version.value != 0));
    if (r < 0)
        die("write", r);
}

static void create_op(struct bench *b, uint8_t *buffer, uint64_t x)
{
    memcpy(buffer, &x, sizeof(x));
    write_at(b, b->next++, 0, buffer, OBJECT_BLOCKS * STORE_BLOCK);
}

static void write_op(struct bench *b, uint8_t *buffer, uint64_t x)
{
    memcpy(buffer, &x, sizeof(x));
    write_at(b, x % b->objects,
             (uint32_t)((x >> 32) % (b->object_bytes / b->io_bytes)) * b->io_bytes, buffer,
             b->io_bytes);
}

/* Every block of every object once, in an order that jumps about. */
static void scatter_op(struct bench *b, uint8_t *buffer, uint64_t x)
{
    uint64_t blocks = b->objects * b->object_bytes / STORE_BLOCK;
    uint64_t at = b->next++ * 1000003 % blocks;

    memcpy(buffer, &x, sizeof(x));
    write_at(b, at % b->objects, (uint32_t)(at / b->objects) * STORE_BLOCK, buffer, STORE_BLOCK);
}

static void read_op(struct bench *b, uint8_t *buffer, uint64_t x)
{
    struct oid oid = oid_of(b, x % b->objects);
    uint32_t offset = (uint32_t)((x >> 32) % (b->object_bytes / b->io_bytes)) * b->io_bytes;
    int r = store_read(b->s, &oid, offset, b->io_bytes, buffer, NULL);

    if (r < 0)
        die("read", r);
    b->bytes += b->io_bytes;
}

static void worker(void *arg)
{
    struct bench *b = arg;
    uint8_t *buffer = buf_get(b->rt, FRAGMENT_BYTES);

    memset(buffer, 7, FRAGMENT_BYTES);
    for (uint64_t now = clock_now(b->rt); now < b->end_ns && b->next < b->limit;) {
        bool busy = b->s->ckpt != NULL;
        uint64_t then;
        b->op(b, buffer, next_random(b));
        then = clock_now(b->rt);
        sample(busy || b->s->ckpt != NULL ? &b->busy : &b->calm, then - now);
        now = then;
    }
    buf_put(b->rt, buffer);
    wgroup_finish(&b->group);
}

/* Runs op on `depth` fibers, for some seconds, or (0) until b->next has reached `limit`. */
static fiber_fn double run(struct bench *b, double seconds, uint64_t limit, unsigned depth,
                           void (*op)(struct bench *b, uint8_t *buffer, uint64_t x))
{
    uint64_t start = clock_now(b->rt);

    b->op = op;
    b->next = b->bytes = 0;
    b->limit = seconds == 0 ? limit : UINT64_MAX;
    b->end_ns = seconds == 0 ? UINT64_MAX : start + (uint64_t)(seconds * 1e9);
    samples_done(&b->calm);
    samples_done(&b->busy);
    wgroup_init(&b->group);
    wgroup_add(&b->group, depth);
    for (unsigned i = 0; i < depth; i++)
        fiber_spawn(b->rt, "bench", worker, b);
    wgroup_wait(&b->group);
    return seconds_since(b, start);
}

static void print_stats(struct bench *b, const struct store_stats *before, uint64_t written_bytes)
{
    struct store_stats now;
    double structure, log;

    store_stats(b->s, &now);
    structure = (double)(now.checkpoint_blocks - before->checkpoint_blocks) * STORE_BLOCK;
    log = (double)(now.log_blocks - before->log_blocks) * STORE_BLOCK;
    printf("checkpoints %llu\n", (unsigned long long)(now.checkpoints - before->checkpoints));
    printf("checkpoint-passes %llu\n",
           (unsigned long long)(now.checkpoint_passes - before->checkpoint_passes));
    printf("checkpoint-step-ms %.3f\n", (double)now.checkpoint_step_ns_max * 1e-6);
    printf("checkpoint-step-items %llu\n", (unsigned long long)now.checkpoint_step_items_max);
    printf("checkpoint-mib %.1f\n", structure / (1 << 20));
    if (written_bytes > 0)
        printf("write-amplification %.2f\n",
               ((double)written_bytes + structure + log) / (double)written_bytes);
}

/* --- stages --- */

/* A sparse file: zeroing 4 TiB is not what is measured. */
static void make_file(const struct bench *b, uint64_t size)
{
    struct super sb = {0};
    uint64_t min;
    uint8_t block[STORE_BLOCK];
    int fd = open(b->path, O_CREAT | O_TRUNC | O_RDWR, 0600);
    int r = layout_plan(size, 0, &sb, &min);

    if (fd < 0 || r < 0 || ftruncate(fd, (off_t)sb.size) < 0)
        die("create", r < 0 ? r : -errno);
    memset(sb.store.bytes, 5, sizeof(sb.store.bytes));
    for (unsigned i = 0; i < LAYOUT_SUPER_COPIES; i++) {
        sb.generation = i + 1;
        super_encode(&sb, block);
        if (pwrite(fd, block, sizeof(block), i * STORE_BLOCK) != STORE_BLOCK)
            die("create", -errno);
    }
    close(fd);
    printf("log-mib %.0f\n", (double)sb.log_count * STORE_BLOCK / (1 << 20));
}

static fiber_fn void do_open(struct bench *b)
{
    double before = resident_bytes(), after;
    uint64_t start = clock_now(b->rt);
    struct store_usage usage;
    const char *cache_mib = getenv("SCALE_CACHE_MIB");
    struct store_open_options options = {
        .no_zero_ahead = getenv("SCALE_NO_ZERO_AHEAD") != NULL,
        .cache_bytes = cache_mib != NULL ? (uint64_t)atoi(cache_mib) << 20 : 0,
        .unsafe_no_flush = strcmp(b->stage, "crash") == 0 || getenv("SCALE_NO_FLUSH") != NULL,
    };
    struct rusage begin, end;
    int r;

    getrusage(RUSAGE_SELF, &begin);
    r = store_open(b->rt, b->path, &options, &b->s);
    if (r < 0)
        die("open", r);
    printf("open-s %.3f\n", seconds_since(b, start));
    getrusage(RUSAGE_SELF, &end);
    printf("open-cpu-s %.3f\n", cpu_seconds(&end) - cpu_seconds(&begin));
    after = resident_bytes();
    store_usage(b->s, &usage);
    printf("resident-mib %.1f\n", after / (1 << 20));
    if (usage.object_count > 0)
        printf("open-bytes-per-object %.1f\n", (after - before) / (double)usage.object_count);
    printf("objects %llu\n", (unsigned long long)usage.object_count);
}

static fiber_fn void do_create(struct bench *b)
{
    struct store_stats before;
    double seconds;

    store_stats(b->s, &before);
    seconds = run(b, 0, b->objects, CREATE_DEPTH, create_op);
    printf("create-per-s %.0f\n", (double)b->objects / seconds);
    print_latencies("create-calm-ms", &b->calm);
    print_latencies("create-checkpoint-ms", &b->busy);
    print_stats(b, &before, b->objects * OBJECT_BLOCKS * STORE_BLOCK);
}

static fiber_fn void do_write(struct bench *b)
{
    struct store_stats before;
    double seconds;
    uint64_t ops;

    store_stats(b->s, &before);
    b->io_bytes = STORE_BLOCK;
    seconds = run(b, b->a, 0, (unsigned)b->b, write_op);
    ops = b->calm.count + b->busy.count;
    printf("write-per-s %.0f\n", (double)ops / seconds);
    print_latencies("write-calm-ms", &b->calm);
    print_latencies("write-checkpoint-ms", &b->busy);
    print_stats(b, &before, ops * STORE_BLOCK);
}

/* Writes until the log is as full as it gets: a checkpoint was due, and has come to its last step.
 */
static void crash_op(struct bench *b, uint8_t *buffer, uint64_t x)
{
    write_op(b, buffer, x);
    if (b->s->ckpt != NULL && b->s->ckpt->super.commit > b->s->super.commit) {
        printf("crash-log-blocks %llu\n",
               (unsigned long long)(b->s->log.sequence - b->s->log.tail));
        fflush(stdout);
        kill(getpid(), SIGKILL);
    }
}

static fiber_fn void do_crash(struct bench *b)
{
    b->io_bytes = STORE_BLOCK;
    (void)run(b, 3600, 0, (unsigned)b->b, crash_op);
}

static fiber_fn void do_read(struct bench *b)
{
    double seconds;

    b->io_bytes = STORE_BLOCK;
    seconds = run(b, b->a, 0, (unsigned)b->b, read_op);
    printf("read-per-s %.0f\n", (double)b->calm.count / seconds);
    print_latencies("read-ms", &b->calm);
}

static fiber_fn void read_sizes(struct bench *b, const char *name)
{
    static const uint32_t sizes[] = {4096, 65536, 1 << 20};

    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        double seconds;
        b->io_bytes = sizes[i];
        seconds = run(b, 4, 0, 8, read_op);
        printf("%s-read-%uk %.1f\n", name, sizes[i] / 1024, (double)b->bytes / seconds / (1 << 20));
    }
}

/* Objects of 1 MiB, read before and after each of their blocks was rewritten by itself. */
static fiber_fn void do_fragment(struct bench *b)
{
    b->vid = 2;
    b->objects = (uint64_t)b->a;
    b->object_bytes = b->io_bytes = FRAGMENT_BYTES;
    uint8_t *buffer = buf_get(b->rt, FRAGMENT_BYTES);
    memset(buffer, 3, FRAGMENT_BYTES);
    for (uint64_t i = 0; i < b->objects; i++)
        write_at(b, i, 0, buffer, FRAGMENT_BYTES);
    buf_put(b->rt, buffer);
    read_sizes(b, "fresh");
    (void)run(b, 0, b->objects * FRAGMENT_BYTES / STORE_BLOCK, 32, scatter_op);
    read_sizes(b, "fragmented");
}

static void bench_fiber(void *arg)
{
    struct bench *b = arg;
    int r;

    if (strcmp(b->stage, "create") == 0)
        make_file(b, (uint64_t)b->a << 30);
    do_open(b);
    if (strcmp(b->stage, "create") == 0)
        do_create(b);
    else if (strcmp(b->stage, "write") == 0)
        do_write(b);
    else if (strcmp(b->stage, "crash") == 0)
        do_crash(b);
    else if (strcmp(b->stage, "read") == 0)
        do_read(b);
    else if (strcmp(b->stage, "fragment") == 0)
        do_fragment(b);
    printf("resident-end-mib %.1f\n", resident_bytes() / (1 << 20));
    uint64_t start = clock_now(b->rt);
    r = store_close(b->s);
    if (r < 0)
        die("close", r);
    printf("close-s %.3f\n", seconds_since(b, start));
}

int main(int argc, char **argv)
{
    struct bench b = {
        .vid = 1, .object_bytes = OBJECT_BLOCKS * STORE_BLOCK, .random = (uint64_t)getpid()};

    if (argc < 4) {
        fprintf(stderr, "usage: %s PATH OBJECTS STAGE [ARGUMENTS]\n", argv[0]);
        return 1;
    }
    b.path = argv[1];
    b.objects = strtoull(argv[2], NULL, 10);
    b.stage = argv[3];
    b.a = argc > 4 ? atoi(argv[4]) : 0;
    b.b = argc > 5 ? atoi(argv[5]) : 1;
    if (rt_uring_new(NULL, &b.rt) < 0 || fiber_spawn(b.rt, "bench", bench_fiber, &b) < 0)
        return 1;
    if (rt_uring_run(b.rt) < 0)
        return 1;
    rt_uring_free(b.rt);
    return 0;
}
