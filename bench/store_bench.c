/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store by itself on a file or device, without network and replication: bench/store runs it
 * beside fio.
 *
 *   store-bench fill PATH MIB              formats, and writes MIB of objects
 *   store-bench run PATH ROW DEPTH SECONDS    ROW: randwrite-4k randread-4k seqwrite-1m seqread-1m
 *   store-bench batch PATH ROW DEPTH SECONDS  the same without a store, on the bare file, which is
 *                                             overwritten: DEPTH writes at once, then one fdatasync
 *
 * Both print one JSON object: operations per second, CPU per operation, bytes that went to the disk
 * per byte of data.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include "base/err.h"
#include "base/log.h"
#include "rt/uring/uring.h"
#include "store/store.h"

#define OBJECT_BYTES (4u << 20)
#define RAMP_NS      (300 * NS_PER_MS)

static const struct row {
    const char *name;
    uint32_t length;
    bool writes, sequential;
} rows[] = {
    {"randwrite-4k", 4096, true, false},
    {"randread-4k", 4096, false, false},
    {"seqwrite-1m", 1 << 20, true, true},
    {"seqread-1m", 1 << 20, false, true},
};

/* What the process has used and done so far. */
struct totals {
    double cpu_s, user_s;
    uint64_t disk_bytes; /* written */
    struct store_stats store;
};

struct bench {
    struct rt *rt;
    const char *path;
    struct store *s;
    const struct row *row; /* NULL: fill */
    bool bare;             /* no store */
    unsigned depth, objects;
    double seconds;
    uint64_t *versions; /* of each object, the last given out */
    uint64_t random, place, end_ns, ops, latency_ns_max;
    struct wgroup group;
};

static void die(const char *what, int r)
{
    fprintf(stderr, "store-bench: %s: %s\n", what, err_text(r));
    exit(1);
}

static struct oid bench_oid(unsigned i)
{
    return (struct oid){.vid = 1, .index = i};
}

static fiber_fn void write_at(struct bench *b, uint64_t at, uint8_t *buffer, uint32_t length)
{
    unsigned i = (unsigned)(at / OBJECT_BYTES);
    struct store_extent extent = {(uint32_t)(at % OBJECT_BYTES), length};
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

static fiber_fn void read_at(struct bench *b, uint64_t at, uint8_t *buffer, uint32_t length)
{
    struct oid oid = bench_oid((unsigned)(at / OBJECT_BYTES));
    int r = store_read(b->s, &oid, at % OBJECT_BYTES, length, buffer, NULL);

    if (r < 0)
        die("read", r);
}

static uint64_t next_place(struct bench *b)
{
    uint64_t places = (uint64_t)b->objects * (OBJECT_BYTES / b->row->length);

    if (b->row->sequential)
        return b->place++ % places * b->row->length;
    b->random += 0x9e3779b97f4a7c15ull;
    return hash_u64(b->random) % places * b->row->length;
}

static void worker(void *arg)
{
    struct bench *b = arg;
    uint32_t length = b->row->length;
    uint8_t *buffer = buf_get(b->rt, length);

    memset(buffer, 0x5a, length);
    for (uint64_t now = clock_now(b->rt), then; now < b->end_ns; now = then) {
        uint64_t at = next_place(b);
        if (b->row->writes) {
            memcpy(buffer, &at, sizeof(at));
            write_at(b, at, buffer, length);
        } else {
            read_at(b, at, buffer, length);
        }
        then = clock_now(b->rt);
        b->latency_ns_max = MAX(b->latency_ns_max, then - now);
        b->ops++;
    }
    buf_put(b->rt, buffer);
    wgroup_finish(&b->group);
}

static fiber_fn void run_workers(struct bench *b, uint64_t ns)
{
    b->ops = b->latency_ns_max = 0;
    b->end_ns = clock_now(b->rt) + ns;
    wgroup_init(&b->group);
    wgroup_add(&b->group, b->depth);
    for (unsigned i = 0; i < b->depth; i++)
        fiber_spawn(b->rt, "bench", worker, b);
    wgroup_wait(&b->group);
}

static uint64_t written_bytes(void)
{
    char line[128];
    unsigned long long n = 0;
    FILE *f = fopen("/proc/self/io", "r");

    while (f != NULL && fgets(line, sizeof(line), f) != NULL)
        (void)sscanf(line, "write_bytes: %llu", &n);
    if (f != NULL)
        fclose(f);
    return n;
}

static struct totals totals_now(const struct bench *b)
{
    struct totals t;
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    t.user_s = (double)u.ru_utime.tv_sec + (double)u.ru_utime.tv_usec * 1e-6;
    t.cpu_s = t.user_s + (double)u.ru_stime.tv_sec + (double)u.ru_stime.tv_usec * 1e-6;
    t.disk_bytes = written_bytes();
    store_stats(b->s, &t.store);
    return t;
}

static void print_result(const struct bench *b, double elapsed_s, const struct totals *t0,
                         const struct totals *t1)
{
    double ops = (double)b->ops, data = ops * b->row->length;
    json_t *j = json_pack(
        "{s:f,s:f,s:f,s:f,s:f,s:f,s:I,s:I}", "iops", ops / elapsed_s, "mib_per_s",
        data / elapsed_s / (1 << 20), "cpu_us", (t1->cpu_s - t0->cpu_s) / ops * 1e6, "user_us",
        (t1->user_s - t0->user_s) / ops * 1e6, "latency_ms_max", (double)b->latency_ns_max * 1e-6,
        "amplification", b->row->writes ? (double)(t1->disk_bytes - t0->disk_bytes) / data : 0.0,
        "commits", (json_int_t)(t1->store.commits - t0->store.commits), "checkpoints",
        (json_int_t)(t1->store.checkpoints - t0->store.checkpoints));

    json_dumpf(j, stdout, JSON_REAL_PRECISION(6));
    printf("\n");
    json_decref(j);
}

/* --- the bare file --- */

struct piece {
    struct disk_io io;
    struct iovec iov;
    struct wgroup *group;
};

static void piece_done(struct disk_io *io)
{
    wgroup_finish(container_of(io, struct piece, io)->group);
}

/* What one group commit cannot avoid: the data, and a flush after it. */
static fiber_fn void write_batch(struct bench *b, struct disk *d, struct piece *pieces)
{
    int r;

    wgroup_init(&b->group);
    wgroup_add(&b->group, b->depth);
    for (unsigned i = 0; i < b->depth; i++) {
        struct piece *p = &pieces[i];
        p->group = &b->group;
        p->io = (struct disk_io){.op = DISK_WRITE,
                                 .offset = next_place(b),
                                 .iov = &p->iov,
                                 .iov_count = 1,
                                 .done = piece_done};
        disk_submit(d, &p->io);
    }
    wgroup_wait(&b->group);
    for (unsigned i = 0; i < b->depth; i++) {
        if (pieces[i].io.result < 0)
            die("write", pieces[i].io.result);
    }
    r = disk_flush(d);
    if (r < 0)
        die("flush", r);
    b->ops += b->depth;
}

static fiber_fn void batch(struct bench *b)
{
    struct piece *pieces = calloc(b->depth, sizeof(*pieces));
    struct disk *d;
    uint64_t start;
    int r = disk_open(b->rt, b->path, 0, 0, &d);

    if (r < 0)
        die(b->path, r);
    for (unsigned i = 0; i < b->depth; i++) {
        pieces[i].iov = (struct iovec){buf_get(b->rt, b->row->length), b->row->length};
        memset(pieces[i].iov.iov_base, 0x5a, b->row->length);
    }
    b->objects = (unsigned)(d->size / OBJECT_BYTES);
    start = clock_now(b->rt);
    while (clock_now(b->rt) < start + (uint64_t)(b->seconds * 1e9))
        write_batch(b, d, pieces);
    printf("{\"iops\": %.1f}\n", (double)b->ops / ((double)(clock_now(b->rt) - start) * 1e-9));
    for (unsigned i = 0; i < b->depth; i++)
        buf_put(b->rt, pieces[i].iov.iov_base);
    free(pieces);
    disk_close(d);
}

/* Brings the maps of all objects into the cache, as in a store that has run for a while. */
static fiber_fn void warm_up(struct bench *b)
{
    uint8_t *buffer = buf_get(b->rt, 4096);

    for (uint64_t at = 0; at < (uint64_t)b->objects * OBJECT_BYTES; at += 1 << 20)
        read_at(b, at, buffer, 4096);
    buf_put(b->rt, buffer);
}

static fiber_fn void measure(struct bench *b)
{
    struct totals t0, t1;
    uint64_t start;

    warm_up(b);
    run_workers(b, RAMP_NS);
    t0 = totals_now(b);
    start = clock_now(b->rt);
    run_workers(b, (uint64_t)(b->seconds * 1e9));
    t1 = totals_now(b);
    print_result(b, (double)(clock_now(b->rt) - start) * 1e-9, &t0, &t1);
}

static fiber_fn void fill(struct bench *b)
{
    uint8_t *buffer = buf_get(b->rt, 1 << 20);

    memset(buffer, 7, 1 << 20);
    for (uint64_t at = 0; at < (uint64_t)b->objects * OBJECT_BYTES; at += 1 << 20)
        write_at(b, at, buffer, 1 << 20);
    buf_put(b->rt, buffer);
}

/* Finds out how many objects fill() made, and their versions. */
static void look(struct bench *b)
{
    struct store_usage usage;

    store_usage(b->s, &usage);
    b->objects = (unsigned)usage.object_count;
    b->versions = calloc(b->objects + 1, sizeof(*b->versions));
    for (unsigned i = 0; i < b->objects; i++) {
        struct oid oid = bench_oid(i);
        struct store_stat st;
        store_stat(b->s, &oid, &st);
        b->versions[i] = st.version.value;
    }
    if (b->objects == 0)
        die("the store is empty, fill it first", -ENOENT);
}

static void batch_fiber(void *arg)
{
    batch(arg);
}

static void bench_fiber(void *arg)
{
    struct bench *b = arg;
    /* Room for all objects once more: what is overwritten becomes free only later. */
    struct store_format_options options = {.size = 2ull * b->objects * OBJECT_BYTES + (128 << 20),
                                           .overwrite = true};
    int r = b->row == NULL ? store_format(b->rt, b->path, &options, NULL, NULL) : 0;

    if (r == 0)
        r = store_open(b->rt, b->path, NULL, &b->s);
    if (r < 0)
        die("format or open", r);
    if (b->row != NULL) {
        look(b);
        measure(b);
    } else {
        b->versions = calloc(b->objects, sizeof(*b->versions));
        fill(b);
    }
    r = store_close(b->s);
    if (r < 0)
        die("close", r);
    free(b->versions);
}

static const struct row *find_row(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        if (strcmp(rows[i].name, name) == 0)
            return &rows[i];
    }
    return NULL;
}

static bool parse(struct bench *b, int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "fill") == 0) {
        b->objects = (unsigned)(atoll(argv[3]) * (1 << 20) / OBJECT_BYTES);
        b->path = argv[2];
        return b->objects > 0;
    }
    if (argc != 6)
        return false;
    b->bare = strcmp(argv[1], "batch") == 0;
    if (!b->bare && strcmp(argv[1], "run") != 0)
        return false;
    b->path = argv[2];
    b->row = find_row(argv[3]);
    b->depth = (unsigned)atoi(argv[4]);
    b->seconds = atof(argv[5]);
    return b->row != NULL && b->depth > 0 && b->seconds > 0 && (!b->bare || b->row->writes);
}

int main(int argc, char **argv)
{
    struct bench b = {0};

    if (!parse(&b, argc, argv)) {
        fprintf(stderr, "usage: store-bench fill PATH MIB\n"
                        "       store-bench run|batch PATH ROW DEPTH SECONDS\n");
        return 64;
    }
    if (rt_uring_new(NULL, &b.rt) < 0 ||
        fiber_spawn(b.rt, "bench", b.bare ? batch_fiber : bench_fiber, &b) < 0)
        return 1;
    b.random = clock_now(b.rt); /* another sequence in each run */
    if (rt_uring_run(b.rt) < 0)
        return 1;
    rt_uring_free(b.rt);
    return 0;
}
