/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A cluster of three gateways in the simulator over a backend (backend.h), and a reference model of
 * what volumes and snapshots must read, for the tests of volume/.
 *
 * Content is modelled in units of 512 bytes, each filled with one 64-bit value (0: zeros). A unit
 * whose change was cut off may have any of a few values, until a read shows which.
 */
#pragma once
#include "fake_objects.h"
#include "sim/sim_cs.h"
#include "volume/service.h"
#include "volume/volume.h"

#define GATEWAY_COUNT 3
#define UNIT          512u
#define VALUE_MAX     12

struct unit {
    uint8_t count; /* possible values; 0: anything */
    bool busy;     /* a change is under way */
    uint64_t values[VALUE_MAX];
};

/* Content of one image. */
struct content {
    uint64_t size, capacity; /* bytes */
    struct unit *units;
};
void content_init(struct content *c, uint64_t size, uint64_t capacity);
void content_done(struct content *c);
void content_copy(struct content *to, const struct content *from);
/* One more value is possible (in all units of the range) … */
void content_add(struct content *c, uint64_t offset, uint64_t length, uint64_t value);
/* … or the only one. */
void content_set(struct content *c, uint64_t offset, uint64_t length, uint64_t value);
/* False, with a line on stderr, when buffer is not possible; narrows what is possible to it. */
bool content_match(struct content *c, uint64_t offset, uint64_t length, const uint8_t *buffer,
                   const char *what);
void fill(uint8_t *buffer, uint64_t length, uint64_t value);

struct gateway {
    struct harness *h;
    unsigned number;
    bool up;
    struct rt *rt;
    struct cluster *cluster;
    struct objects *objects;
    struct volumes *vs;
};

struct harness {
    struct sim *sim;
    struct sim_cs *cs;
    struct fake_world *world; /* backend_fake.c */
    uint8_t copies;
    struct gateway gateways[GATEWAY_COUNT];
    uint32_t entries;
    uint64_t seed;
    bool formatted;
    char finding[600];
};

void harness_start(struct harness *h, uint64_t seed, uint32_t entries, uint8_t copies);
void harness_stop(struct harness *h);
uint64_t harness_draw(struct harness *h);
/* Power cut of the daemon; its session ends at once if `session_ends`, else when
 * harness_end_sessions(). */
void gateway_crash(struct gateway *g, bool session_ends);
/* Starts it again and waits until it serves. */
void gateway_start(struct gateway *g);
void gateway_stop(struct gateway *g);
/* Runs fn(arg) on a fiber of the gateway until it returns. */
void gateway_do(struct gateway *g, fiber_main *fn, void *arg);
