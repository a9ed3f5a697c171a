/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forwarding (L4) at random: clients on three gateways come and go, each writes its own regions of
 * one volume and reads all of them, while links break, answers get lost and gateways die. Every 512
 * bytes carry the sequence of the write that made them, and no read may ever find an older one than
 * was answered, or seen, before it began. `… SEED [COUNT]` replays; a failing run prints what it
 * found and aborts.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "backend.h"
#include "volume/handle.h"

#define ENTRIES 8u
#define SIZE    (1u << 20)
#ifndef COPIES
#define COPIES 1 /* more only with real objects: then the network is the simulator's */
#endif
#define SEEDS (COPIES > 1 ? 6u : 20u)

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                             \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#define CLIENT_FIBERS 3u
#define REGIONS       (CLIENT_FIBERS * GATEWAY_COUNT)
#define REGION_UNITS  64u

struct cell {
    uint64_t sent, least; /* least: what any read that begins now must find, or newer */
};

struct test {
    struct harness h;
    struct cell cells[REGIONS * REGION_UNITS];
    uint64_t sequence, reads, writes, taken, crashes;
    bool stop;
    unsigned clients[GATEWAY_COUNT]; /* fibers that run */
};

struct client {
    struct test *t;
    struct gateway *g;
    struct volume *v;
    unsigned fibers; /* of this opening */
};

struct worker {
    struct client *c;
    unsigned index, ops;
};

static uint64_t draw(struct test *t, uint64_t below)
{
    return harness_draw(&t->h) % below;
}

static fiber_fn void read_some(struct test *t, struct volume *v)
{
    uint64_t least[REGION_UNITS], value;
    unsigned count = 1 + (unsigned)draw(t, REGION_UNITS);
    unsigned first = (unsigned)draw(t, REGIONS * REGION_UNITS - count + 1);
    uint8_t *b = malloc(count * UNIT);
    for (unsigned i = 0; i < count; i++)
        least[i] = t->cells[first + i].least;
    CHECK(volume_read(v, first * UNIT, count * UNIT, b) == 0);
    for (unsigned i = 0; i < count; i++) {
        struct cell *c = &t->cells[first + i];
        for (unsigned k = 0; k < UNIT; k += sizeof(value)) {
            uint64_t part;
            memcpy(&part, b + i * UNIT + k, sizeof(part));
            value = k ? value : part;
            CHECK(part == value);
        }
        if (value < least[i] || value > c->sent) {
            fprintf(stderr, "unit %u: read %" PRIu64 ", expected %" PRIu64 " to %" PRIu64 "\n",
                    first + i, value, least[i], c->sent);
            abort();
        }
        c->least = MAX(c->least, value);
    }
    free(b);
    t->reads++;
}

static fiber_fn void write_some(struct test *t, struct volume *v, unsigned region)
{
    unsigned count = 1 + (unsigned)draw(t, draw(t, 2) ? 8 : REGION_UNITS);
    unsigned first = region * REGION_UNITS + (unsigned)draw(t, REGION_UNITS - count + 1);
    uint64_t sequence = ++t->sequence;
    uint8_t *b = malloc(count * UNIT);
    fill(b, count * UNIT, sequence);
    for (unsigned i = 0; i < count; i++)
        t->cells[first + i].sent = sequence;
    CHECK(volume_write(v, first * UNIT, count * UNIT, b) == 0);
    for (unsigned i = 0; i < count; i++)
        t->cells[first + i].least = sequence;
    free(b);
    t->writes++;
}

static fiber_fn void worker_main(void *arg)
{
    struct worker *w = arg;
    struct client *c = w->c;
    struct test *t = c->t;
    unsigned region = w->index * GATEWAY_COUNT + c->g->number;
    for (unsigned i = 0; i < w->ops && !t->stop; i++) {
        if (draw(t, 2))
            write_some(t, c->v, region);
        else
            read_some(t, c->v);
        if (draw(t, 8) == 0)
            CHECK(volume_flush(c->v) == 0);
        fiber_sleep(c->g->rt, draw(t, 4) ? 0 : draw(t, 20 * NS_PER_MS));
    }
    c->fibers--;
    free(w);
}

static fiber_fn void use_volume(struct client *c)
{
    struct test *t = c->t;
    struct volume_error e = {0};
    int r = volume_open(c->g->vs, "a", NULL, VOLUME_FORWARD, &c->v, &e);
    if (r) {
        CHECK(r == -EBUSY || r == -EAGAIN);
        return;
    }
    bool here = c->v->in != NULL;
    for (unsigned i = 0; i < CLIENT_FIBERS; i++) {
        struct worker *w = malloc(sizeof(*w));
        *w = (struct worker){c, i, (unsigned)draw(t, 300)};
        c->fibers++;
        CHECK(fiber_spawn(c->g->rt, "worker", worker_main, w) == 0);
    }
    while (c->fibers > 0)
        fiber_sleep(c->g->rt, NS_PER_MS);
    t->taken += !here && c->v->in;
    volume_close(c->v);
}

static fiber_fn void client_main(void *arg)
{
    struct client *c = arg;
    struct test *t = c->t;
    while (!t->stop) {
        use_volume(c);
        fiber_sleep(c->g->rt, draw(t, 3) ? draw(t, 100 * NS_PER_MS) : draw(t, 4 * NS_PER_S));
    }
    t->clients[c->g->number]--;
    free(c);
}

static void start_client(struct test *t, unsigned number)
{
    struct client *c = calloc(1, sizeof(*c));
    c->t = t;
    c->g = &t->h.gateways[number];
    t->clients[number] = 1;
    CHECK(fiber_spawn(c->g->rt, "client", client_main, c) == 0);
}

static void crash_one(struct test *t)
{
    struct gateway *g = &t->h.gateways[draw(t, GATEWAY_COUNT)];
    unsigned up = 0;
    for (unsigned i = 0; i < GATEWAY_COUNT; i++)
        up += t->h.gateways[i].up;
    if (!g->up || up < 2)
        return;
    gateway_crash(g, draw(t, 2));
    t->clients[g->number] = 0;
    t->crashes++;
}

static void bring_back(struct test *t, unsigned number)
{
    if (t->h.gateways[number].up)
        return;
    sim_cs_end_dead(t->h.cs);
    gateway_start(&t->h.gateways[number]);
    if (!t->stop)
        start_client(t, number);
}

static void event(struct test *t)
{
    switch (draw(t, 6)) {
    case 0:
        crash_one(t);
        break;
    case 1:
    case 2:
        bring_back(t, (unsigned)draw(t, GATEWAY_COUNT));
        break;
    case 3:
        sim_cs_end_dead(t->h.cs);
        break;
    case 4:
        backend_rough_links(&t->h);
        break;
    case 5:
        backend_calm(&t->h);
        break;
    }
}

static fiber_fn void create_main(void *arg)
{
    struct test *t = arg;
    struct volume_error e = {0};
    struct volume_create_options o = {.name = "a", .size = SIZE};
    CHECK(volume_create(t->h.gateways[0].vs, &o, &e) == 0);
}

static fiber_fn void verify_main(void *arg)
{
    struct client *c = arg;
    struct volume_error e = {0};
    CHECK(volume_open(c->g->vs, "a", NULL, VOLUME_FORWARD, &c->v, &e) == 0);
    for (unsigned i = 0; i < 100; i++)
        read_some(c->t, c->v);
    volume_close(c->v);
}

static bool quiet(const struct test *t)
{
    for (unsigned i = 0; i < GATEWAY_COUNT; i++) {
        if (t->clients[i])
            return false;
    }
    return true;
}

static void on_finding(void *arg, const char *finding)
{
    fprintf(stderr, "finding: %s\n", finding);
}

static fiber_fn void check(struct test *t, struct gateway *g)
{
    struct volume_check_report r = {0};
    for (unsigned i = 0; i < 500 && !r.at_rest; i++) {
        fiber_sleep(g->rt, 20 * NS_PER_MS);
        CHECK(volume_check(g->vs, on_finding, t, &r) == 0);
    }
    CHECK(r.at_rest && r.findings == 0);
}

static fiber_fn void check_main(void *arg)
{
    struct test *t = arg;
    struct gateway *g = &t->h.gateways[1];
    struct volume_error e = {0};
    check(t, g);
    int r = -EBUSY;
    for (unsigned i = 0; i < 50 && r == -EBUSY; i++) { /* its last owner's grace period */
        fiber_sleep(g->rt, 10 * NS_PER_MS);
        r = volume_delete(g->vs, "a", &e);
    }
    if (r)
        fprintf(stderr, "delete: %s\n", e.text);
    CHECK(r == 0);
    check(t, g);
}

static void run_seed(uint64_t seed)
{
    static struct test t;
    memset(&t, 0, sizeof(t));
    harness_start(&t.h, seed, ENTRIES, COPIES);
    gateway_do(&t.h.gateways[0], create_main, &t);
    for (unsigned i = 0; i < GATEWAY_COUNT; i++)
        start_client(&t, i);
    for (unsigned i = 0; i < 40; i++) {
        sim_run(t.h.sim, sim_now(t.h.sim) + draw(&t, draw(&t, 2) ? 500 : 50) * NS_PER_MS);
        event(&t);
    }
    t.stop = true;
    backend_calm(&t.h);
    for (unsigned i = 0; i < GATEWAY_COUNT; i++)
        bring_back(&t, i);
    for (unsigned i = 0; i < 120000 && !quiet(&t); i++)
        sim_run(t.h.sim, sim_now(t.h.sim) + NS_PER_MS);
    CHECK(quiet(&t));
    for (unsigned i = 0; i < GATEWAY_COUNT; i++) {
        struct client c = {.t = &t, .g = &t.h.gateways[i]};
        gateway_do(c.g, verify_main, &c);
    }
    printf("seed %" PRIu64 ": %" PRIu64 " writes, %" PRIu64 " reads, %" PRIu64
           " crashes, taken over %" PRIu64 " times\n",
           seed, t.writes, t.reads, t.crashes, t.taken);
    fflush(stdout);
    gateway_do(&t.h.gateways[1], check_main, &t);
    harness_stop(&t.h);
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 0) : argc > 1 ? 1 : SEEDS;
    log_level = getenv("VERBOSE") ? LOG_DEBUG : LOG_ERROR;
    for (uint64_t i = 0; i < count; i++)
        run_seed(seed + i);
    return 0;
}
