/* SPDX-License-Identifier: Apache-2.0 */
/* Promise: disk.h holds on real files. */
#include "harness.h"
#include "rt/seam.h"
#include <fcntl.h>
#include <sys/stat.h>

#define DISK_SIZE (8u << 20)

static char path[64];

static int run_io(struct disk *d, struct disk_io *io);

static void write_read_body(void *arg)
{
    struct rt *rt = arg;
    struct disk *d;
    CHECK(disk_open(rt, path, DISK_OPEN_CREATE | DISK_OPEN_EXCLUSIVE, DISK_SIZE, &d) == 0);
    CHECK(d->size == DISK_SIZE && d->kind == DISK_FILE && strcmp(d->name, path) == 0);
    uint8_t *a = buf_get(rt, 1 << 20), *b = aligned_alloc(4096, 1 << 20);
    for (unsigned i = 0; i < 1 << 20; i++)
        a[i] = (uint8_t)(i * 13 + (i >> 8));
    CHECK(disk_write(d, 4096, a, 1 << 20, 0) == 0);
    CHECK(disk_flush(d) == 0);
    CHECK(disk_read(d, 4096, b, 1 << 20) == 0);
    CHECK(memcmp(a, b, 1 << 20) == 0);
    CHECK(disk_write(d, DISK_SIZE - 4096, b, 4096, DISK_IO_FUA) == 0);
    CHECK(disk_read(d, DISK_SIZE - 4096, a, 4096) == 0);
    CHECK(memcmp(a, b, 4096) == 0);

    /* vectors: reversed blocks */
    struct iovec iov[16];
    for (unsigned i = 0; i < 16; i++)
        iov[i] = (struct iovec){b + (15 - i) * 4096, 4096};
    struct disk_io io = {.op = DISK_READ, .offset = 4096, .iov = iov, .iov_count = 16};
    CHECK(run_io(d, &io) == 0 && io.length == 16 * 4096);
    CHECK(disk_read(d, 4096, a, 16 * 4096) == 0);
    for (unsigned i = 0; i < 16; i++)
        CHECK(memcmp(b + (15 - i) * 4096, a + i * 4096, 4096) == 0);

    io = (struct disk_io){.op = DISK_ZERO, .offset = 8192, .length = DISK_SIZE / 2};
    CHECK(run_io(d, &io) == 0);
    CHECK(disk_read(d, 4096, a, 12288) == 0);
    CHECK(memcmp(a, b + 15 * 4096, 4096) == 0); /* before the range: as it was */
    for (unsigned i = 4096; i < 12288; i++)
        CHECK(a[i] == 0);
    io = (struct disk_io){.op = DISK_DISCARD, .offset = 4096, .length = 4096};
    CHECK(run_io(d, &io) == 0);
    CHECK(disk_read(d, 4096, a, 4096) == 0 && a[0] == 0 && memcmp(a, a + 1, 4095) == 0);
    buf_put(rt, a);
    free(b);
    disk_close(d);
    unlink(path);
}

struct io_wait {
    struct disk_io *io;
    struct fiber *fiber;
};
static struct io_wait io_waiting;

static void io_done(struct disk_io *io)
{
    CHECK(io == io_waiting.io && fiber_current() == NULL);
    fiber_wake(io_waiting.fiber);
}

static int run_io(struct disk *d, struct disk_io *io)
{
    io_waiting = (struct io_wait){io, fiber_current()};
    io->done = io_done;
    disk_submit(d, io);
    fiber_suspend();
    return io->result;
}

static void test_write_read(void **state)
{
    run_on_uring(NULL, write_read_body);
}

static void open_body(void *arg)
{
    struct rt *rt = arg;
    struct disk *a, *b;
    CHECK(disk_open(rt, path, 0, 0, &a) == -ENOENT);
    CHECK(disk_open(rt, path, DISK_OPEN_CREATE, 100, &a) == -EINVAL);
    CHECK(disk_open(rt, "/nonexistent/file", DISK_OPEN_CREATE, 4096, &a) == -ENOENT);
    CHECK(disk_open(rt, "/tmp", 0, 0, &a) == -EMEDIUMTYPE);
    CHECK(disk_open(rt, "/dev/null", 0, 0, &a) == -EMEDIUMTYPE);
    CHECK(disk_open(rt, path, DISK_OPEN_CREATE, 1ULL << 60, &a) < 0);
    CHECK(access(path, F_OK) < 0); /* a failed creation leaves nothing */
    CHECK(disk_open(rt, path, DISK_OPEN_CREATE | DISK_OPEN_EXCLUSIVE, DISK_SIZE, &a) == 0);
    CHECK(disk_open(rt, path, DISK_OPEN_CREATE, DISK_SIZE, &b) == -EEXIST);
    CHECK(disk_open(rt, path, DISK_OPEN_EXCLUSIVE, 0, &b) == -EBUSY);
    CHECK(disk_open(rt, path, DISK_OPEN_READ_ONLY, 0, &b) == 0);
    CHECK(b->size == DISK_SIZE);
    uint8_t *p = buf_get(rt, 4096);
    CHECK(disk_read(b, 0, p, 4096) == 0);
    CHECK(disk_write(b, 0, p, 4096, 0) < 0);
    disk_close(b);
    disk_close(a);
    CHECK(disk_open(rt, path, DISK_OPEN_EXCLUSIVE, 0, &a) == 0); /* the lock went with the close */
    CHECK(truncate(path, 4096) == 0);
    CHECK(disk_read(a, 4096, p, 4096) == -EIO); /* ran into the end */
    disk_close(a);
    buf_put(rt, p);
    unlink(path);
}

static void test_open(void **state)
{
    run_on_uring(NULL, open_body);
}

/* More operations at once than the submission queue has entries. */
struct many {
    struct disk_io io;
    struct iovec iov;
    struct wgroup *group;
};

static void many_done(struct disk_io *io)
{
    struct many *m = container_of(io, struct many, io);
    CHECK(io->result == 0);
    wgroup_finish(m->group);
}

static void many_body(void *arg)
{
    struct rt *rt = arg;
    struct disk *d;
    enum { COUNT = 1500 };
    CHECK(disk_open(rt, path, DISK_OPEN_CREATE, COUNT * 4096, &d) == 0);
    struct many *ios = calloc(COUNT, sizeof(*ios));
    uint8_t *data = buf_get(rt, COUNT * 4096);
    struct wgroup group;
    wgroup_init(&group);
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 0)
            for (unsigned i = 0; i < COUNT; i++)
                memset(data + i * 4096, (int)(i % 251), 4096);
        else
            memset(data, 0xff, COUNT * 4096);
        wgroup_add(&group, COUNT);
        for (unsigned i = 0; i < COUNT; i++) {
            ios[i].iov = (struct iovec){data + i * 4096, 4096};
            ios[i].group = &group;
            ios[i].io = (struct disk_io){.op = pass == 0 ? DISK_WRITE : DISK_READ,
                                         .offset = i * 4096,
                                         .iov = &ios[i].iov,
                                         .iov_count = 1,
                                         .done = many_done};
            disk_submit(d, &ios[i].io);
        }
        wgroup_wait(&group);
    }
    for (unsigned i = 0; i < COUNT; i++)
        CHECK(data[i * 4096] == i % 251 && data[i * 4096 + 4095] == i % 251);
    buf_put(rt, data);
    free(ios);
    disk_close(d);
    unlink(path);
}

static void test_many_at_once(void **state)
{
    run_on_uring(NULL, many_body);
}

/* B6: pages that the kernel has registered must not be exchanged by trimming the arena. */
static void trim_body(void *arg)
{
    struct rt *rt = arg;
    struct disk *d;
    CHECK(disk_open(rt, path, DISK_OPEN_CREATE, DISK_SIZE, &d) == 0);
    void *burst = buf_get(rt, 8 << 20);
    memset(burst, 1, 8 << 20);
    buf_put(rt, burst);
    rt->buffers.trim.fire(&rt->buffers.trim);
    uint8_t *a = buf_get(rt, 4096), *b = aligned_alloc(4096, 4096);
    CHECK(a >= rt->buffers.hot && a < rt->buffers.hot + rt->buffers.hot_size);
    memset(a, 2, 4096);
    memset(b, 3, 4096);
    CHECK(disk_write(d, 0, a, 4096, 0) == 0); /* by registered buffer */
    CHECK(disk_read(d, 0, b, 4096) == 0);
    CHECK(b[0] == 2 && memcmp(a, b, 4096) == 0);
    buf_put(rt, a);
    free(b);
    disk_close(d);
    unlink(path);
}

static void test_trim_keeps_registered(void **state)
{
    run_on_uring(NULL, trim_body);
}

int main(void)
{
    snprintf(path, sizeof(path), "/var/tmp/rt-disk-%d.img", getpid());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_write_read),
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_many_at_once),
        cmocka_unit_test(test_trim_keeps_registered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
