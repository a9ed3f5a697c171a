/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbd-fake-server: the real NBD server over volumes in memory.
 *
 *   nbd-fake-server [--yield] [--connections N] [--payload BYTES] ADDRESS...
 *
 * Prints one line per address bound, then "ready"; SIGTERM and SIGINT stop it in order. It ends
 * with 1 if a volume is still open then, and prints its counters.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "fake_volume.h"
#include "front/nbd/nbd.h"
#include "rt/uring/uring.h"

#define ADDRESS_COUNT_MAX 8
#define MIB               (1ULL << 20)

struct fake_server {
    struct rt *rt;
    struct volumes *volumes;
    struct nbd_server *nbd;
    int status;
};

static void stop_main(void *arg)
{
    struct fake_server *f = arg;
    struct nbd_stats stats;
    nbd_stats(f->nbd, &stats);
    nbd_stop(f->nbd);
    f->nbd = NULL;
    f->status = fake_volumes_open_count(f->volumes) == 0 ? 0 : 1;
    printf("connections %" PRIu64 " requests %" PRIu64 " read %" PRIu64 " written %" PRIu64
           " errors %" PRIu64 "\n",
           stats.connections, stats.requests, stats.bytes_read, stats.bytes_written, stats.errors);
    rt_stop(f->rt);
}

static void on_signal(void *arg, int signal)
{
    static bool stopping;
    if (stopping)
        return;
    stopping = true;
    ASSERT(fiber_spawn(((struct fake_server *)arg)->rt, "stop", stop_main, arg) == 0);
}

static struct volumes *make_volumes(struct rt *rt)
{
    static const struct {
        const char *name, *tag;
        uint64_t size;
    } volumes[] = {
        {"disk", "", 64 * MIB}, {"disk", "first", 64 * MIB}, {"big", "", MIB << 20},
        {"odd", "", 1000001},   {"broken", "", 8 * MIB},     {"busy", "", 8 * MIB},
        {"slow", "", 64 * MIB}, {"bench", "", 256 * MIB},    {"name with blank", "", MIB},
    };
    struct volumes *vs = fake_volumes_new(rt);
    ASSERT(vs);
    for (size_t i = 0; i < ARRAY_SIZE(volumes); i++)
        ASSERT(fake_volumes_add(vs, volumes[i].name, volumes[i].tag, volumes[i].size) == 0);
    return vs;
}

static int usage(void)
{
    fprintf(stderr,
            "usage: nbd-fake-server [--yield] [--connections N] [--payload BYTES] ADDRESS...\n");
    return 64;
}

static int listen_all(struct rt *rt, char **addresses, unsigned count, struct listener **ret)
{
    for (unsigned i = 0; i < count; i++) {
        int r = net_listen(rt, addresses[i], &ret[i]);
        if (r < 0) {
            fprintf(stderr, "cannot listen on %s: %s\n", addresses[i], err_text(r));
            return r;
        }
        printf("%s\n", listener_address(ret[i]));
    }
    printf("ready\n");
    fflush(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"yield", no_argument, NULL, 'y'},
                                            {"connections", required_argument, NULL, 'c'},
                                            {"payload", required_argument, NULL, 'p'},
                                            {0}};
    struct nbd_options o = {0};
    enum fake_speed speed = FAKE_IMMEDIATE;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == 'y')
            speed = FAKE_YIELDS;
        else if (option == 'c')
            o.connection_count_max = (unsigned)atoi(optarg);
        else if (option == 'p')
            o.payload_bytes_max = strtoull(optarg, NULL, 10);
        else
            return usage();
    }
    unsigned count = (unsigned)(argc - optind);
    if (count == 0 || count > ADDRESS_COUNT_MAX)
        return usage();
    struct fake_server f = {0};
    int r = rt_uring_new(NULL, &f.rt);
    if (r < 0) {
        fprintf(stderr, "no io_uring: %s\n", err_text(r));
        return 2;
    }
    struct listener *listeners[ADDRESS_COUNT_MAX];
    if (listen_all(f.rt, argv + optind, count, listeners) < 0)
        return 2;
    f.volumes = make_volumes(f.rt);
    fake_volumes_set_speed(f.volumes, speed);
    o.listeners = listeners;
    o.listener_count = count;
    ASSERT(nbd_start(f.rt, f.volumes, &o, &f.nbd) == 0);
    ASSERT(rt_uring_on_signal(f.rt, on_signal, &f) == 0);
    r = rt_uring_run(f.rt);
    rt_uring_free(f.rt);
    fake_volumes_free(f.volumes);
    return r < 0 ? 2 : f.status;
}
