/* SPDX-License-Identifier: Apache-2.0 */
/* The simulated cluster and the reference model. */
#include "backend.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"

/* --- the model --- */

void content_init(struct content *c, uint64_t size, uint64_t capacity)
{
    c->size = size;
    c->capacity = capacity;
    c->units = calloc(capacity / UNIT, sizeof(*c->units));
    for (uint64_t i = 0; i < capacity / UNIT; i++)
        c->units[i].count = 1;
}

void content_done(struct content *c)
{
    free(c->units);
    c->units = NULL;
}

void content_copy(struct content *to, const struct content *from)
{
    *to = *from;
    to->units = malloc(from->capacity / UNIT * sizeof(*to->units));
    memcpy(to->units, from->units, from->capacity / UNIT * sizeof(*to->units));
    for (uint64_t i = 0; i < to->capacity / UNIT; i++)
        to->units[i].busy = false;
}

static void add_value(struct unit *u, uint64_t value)
{
    for (unsigned i = 0; i < u->count; i++) {
        if (u->values[i] == value)
            return;
    }
    if (u->count == 0)
        return;
    if (u->count == VALUE_MAX)
        u->count = 0;
    else
        u->values[u->count++] = value;
}

void content_add(struct content *c, uint64_t offset, uint64_t length, uint64_t value)
{
    for (uint64_t i = offset / UNIT; i < (offset + length) / UNIT; i++)
        add_value(&c->units[i], value);
}

void content_set(struct content *c, uint64_t offset, uint64_t length, uint64_t value)
{
    for (uint64_t i = offset / UNIT; i < (offset + length) / UNIT; i++) {
        c->units[i].count = 1;
        c->units[i].values[0] = value;
    }
}

void fill(uint8_t *buffer, uint64_t length, uint64_t value)
{
    for (uint64_t i = 0; i < length; i += sizeof(value))
        memcpy(buffer + i, &value, sizeof(value));
}

static bool unit_match(struct unit *u, const uint8_t *p)
{
    uint64_t value;
    memcpy(&value, p, sizeof(value));
    for (unsigned i = 0; i < UNIT; i += sizeof(value)) {
        if (memcmp(p + i, &value, sizeof(value)) != 0)
            return false;
    }
    for (unsigned i = 0; i < u->count; i++) {
        if (u->values[i] != value)
            continue;
        u->values[0] = value; /* C2: once seen, it stays */
        u->count = 1;
        return true;
    }
    if (u->count == 0) {
        u->count = 1;
        u->values[0] = value;
        return true;
    }
    return false;
}

bool content_match(struct content *c, uint64_t offset, uint64_t length, const uint8_t *buffer,
                   const char *what)
{
    for (uint64_t i = 0; i < length; i += UNIT) {
        struct unit *u = &c->units[(offset + i) / UNIT];
        if (u->busy || unit_match(u, buffer + i))
            continue;
        uint64_t value;
        memcpy(&value, buffer + i, sizeof(value));
        fprintf(stderr,
                "%s at %" PRIu64 " (object %" PRIu64 "): read %" PRIu64 ", possible %u values:",
                what, offset + i, (offset + i) / 65536, value, u->count);
        for (unsigned k = 0; k < u->count; k++)
            fprintf(stderr, " %" PRIu64, u->values[k]);
        fprintf(stderr, "\n");
        return false;
    }
    return true;
}

/* --- the cluster --- */

uint64_t harness_draw(struct harness *h)
{
    h->seed += 0x9e3779b97f4a7c15ULL;
    return hash_u64(h->seed);
}

static fiber_fn void start_main(void *arg)
{
    struct gateway *g = arg;
    struct harness *h = g->h;
    static const char *const names[] = {"a", "b", "c"};
    static const char *const zones[] = {"za", "zb", "zc"};
    struct cluster_options o = {.name = names[g->number],
                                .zone = zones[g->number],
                                .admin = g->number ? "admin-of-another" : "admin-of-a",
                                .weight = 1024};
    memset(o.store_uuid.bytes, 0x11 + (int)g->number, sizeof(o.store_uuid.bytes));
    backend_prepare(g, &o);
    ASSERT(sim_cs_open(g->rt, h->cs, &o.cs) == 0);
    ASSERT(cluster_start(g->rt, &o, &g->cluster) == 0);
}

static fiber_fn void format_main(void *arg)
{
    struct harness *h = arg;
    struct map_format f = {.copies = h->copies,
                           .min_copies = 1,
                           .group_count = 16,
                           .object_size = 65536,
                           .cluster_name = "t"};
    memset(f.cluster.bytes, 0xcc, sizeof(f.cluster.bytes));
    ASSERT(cluster_format(h->gateways[0].cluster, &f) == 0);
}

static fiber_fn void serve_main(void *arg)
{
    struct gateway *g = arg;
    backend_start(g);
    while (!cluster_serving(g->cluster))
        ASSERT(cluster_wait_change(g->cluster, cluster_map(g->cluster)->version,
                                   clock_now(g->rt) + 60 * NS_PER_S) == 0);
    struct volumes_options o = {.entries_per_block = g->h->entries,
                                .index_cache_bytes = g->h->entries * 16 * 6};
    ASSERT(volumes_start(g->rt, g->cluster, g->objects, &o, &g->vs) == 0);
    g->vs->grace_ns = 20 * NS_PER_MS;
    g->vs->delay_ns = 5 * NS_PER_MS;
    g->vs->publish_ns = 10 * NS_PER_MS;
    g->up = true;
}

struct doing {
    fiber_main *fn;
    void *arg;
    bool done;
};

static fiber_fn void doing_main(void *arg)
{
    struct doing *d = arg;
    d->fn(d->arg);
    d->done = true;
}

void gateway_do(struct gateway *g, fiber_main *fn, void *arg)
{
    struct doing d = {.fn = fn, .arg = arg};
    ASSERT(fiber_spawn(g->rt, "do", doing_main, &d) == 0);
    for (uint64_t deadline = sim_now(g->h->sim) + 600 * NS_PER_S; !d.done;) {
        sim_run(g->h->sim, sim_now(g->h->sim) + NS_PER_MS);
        ASSERT(sim_now(g->h->sim) < deadline);
    }
}

void gateway_start(struct gateway *g)
{
    ASSERT(!g->up);
    gateway_do(g, start_main, g);
    if (g->h->formatted)
        gateway_do(g, serve_main, g);
}

static fiber_fn void stop_main(void *arg)
{
    struct gateway *g = arg;
    volumes_stop(g->vs);
    backend_stop(g);
    cluster_stop(g->cluster);
    backend_stopped(g);
}

void gateway_stop(struct gateway *g)
{
    ASSERT(g->up);
    gateway_do(g, stop_main, g);
    g->up = false;
}

void gateway_crash(struct gateway *g, bool session_ends)
{
    ASSERT(g->up);
    backend_dies(g);
    sim_node_crash(g->h->sim, g->rt);
    g->up = false;
    if (session_ends)
        sim_cs_end_dead(g->h->cs);
}

void harness_start(struct harness *h, uint64_t seed, uint32_t entries, uint8_t copies)
{
    *h = (struct harness){.seed = seed, .entries = entries, .copies = copies};
    h->sim = sim_new(seed);
    h->cs = sim_cs_new(h->sim);
    backend_new(h);
    for (unsigned i = 0; i < GATEWAY_COUNT; i++) {
        h->gateways[i] = (struct gateway){.h = h, .number = i, .rt = sim_node_new(h->sim, NULL)};
        gateway_start(&h->gateways[i]);
    }
    gateway_do(&h->gateways[0], format_main, h);
    h->formatted = true;
    for (unsigned i = 0; i < GATEWAY_COUNT; i++)
        gateway_do(&h->gateways[i], serve_main, &h->gateways[i]);
}

void harness_stop(struct harness *h)
{
    for (unsigned i = 0; i < GATEWAY_COUNT; i++) {
        if (h->gateways[i].up)
            gateway_stop(&h->gateways[i]);
    }
    sim_run(h->sim, sim_now(h->sim) + NS_PER_S);
    backend_free(h);
    sim_cs_free(h->cs);
    sim_free(h->sim);
}
