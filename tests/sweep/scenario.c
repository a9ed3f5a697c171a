/* SPDX-License-Identifier: Apache-2.0 */
/* See scenario.h. Lengths and offsets are bytes; B is a block. */
#include "scenario.h"
#include <stdlib.h>
#include <string.h>

#define B   STORE_BLOCK
#define MIB (1u << 20)

/* --- short forms --- */

static struct step *add(struct script *s, enum step_kind kind, unsigned object)
{
    if (s->count == s->capacity) {
        s->capacity = s->capacity * 2 + 32;
        s->steps = realloc(s->steps, s->capacity * sizeof(*s->steps));
        ASSERT(s->steps != NULL);
    }
    s->steps[s->count] = (struct step){.kind = kind, .object = object};
    return &s->steps[s->count++];
}

static struct step *with(struct step *step, uint32_t offset, uint32_t length)
{
    ASSERT(step->extent_count < STEP_EXTENTS);
    step->extents[step->extent_count++] = (struct store_extent){offset, length};
    return step;
}

static struct step *put(struct script *s, unsigned object, uint32_t offset, uint32_t length)
{
    return with(add(s, STEP_WRITE, object), offset, length);
}

static struct step *punch(struct script *s, unsigned object, uint32_t offset, uint32_t length)
{
    return with(add(s, STEP_PUNCH, object), offset, length);
}

static struct step *install(struct script *s, unsigned object, uint32_t offset, uint32_t length)
{
    return with(add(s, STEP_INSTALL, object), offset, length);
}

static struct step *clone(struct script *s, unsigned source, unsigned object)
{
    struct step *step = add(s, STEP_CLONE, object);

    step->source = source;
    return step;
}

static void meta(struct script *s, unsigned object, unsigned length)
{
    add(s, STEP_META, object)->length = length;
}

static void batch(struct script *s, unsigned first, unsigned count, unsigned removals,
                  unsigned length)
{
    struct step *step = add(s, STEP_BATCH, first);

    step->count = count;
    step->removals = removals;
    step->length = length;
}

static void check_read(struct script *s, unsigned object, uint32_t offset, uint32_t length)
{
    with(add(s, STEP_READ, object), offset, length);
}

/* --- scenarios --- */

/* Writes of all sizes and overlaps: whole and partial blocks, several extents, a burst to one
 * object, many leaves. */
static void writes(struct script sc[SCENARIO_ACTORS])
{
    struct script *a = &sc[0], *b = &sc[1], *c = &sc[2];

    put(a, 0, 0, B);
    put(a, 0, 0, 16 * B);
    put(a, 0, 100, 200);
    put(a, 0, B - 50, 100);
    put(a, 0, 3 * B - 1, 2 * B + 2);
    with(with(put(a, 0, 10, 20), 40, 20), B + 512, 3 * B);
    check_read(a, 0, 0, 20 * B);
    put(a, 1, 0, 512);
    with(put(a, 1, 512, 512), 5 * B, 4 * B);
    for (unsigned i = 0; i < 6; i++)
        put(a, 2, i * 512, 512 + i * 700)->burst = i < 5;
    check_read(a, 2, 0, 2 * B);

    put(b, 0, 0, 70 * B);
    put(b, 0, 30 * B + 7, 20 * B);
    put(b, 0, 64 * B, 64 * B);
    for (unsigned i = 0; i < 6; i++) /* beyond four leaves there is an indirect block */
        put(b, 1, i * 2 * MIB + 3 * B, 2 * B);
    put(b, 1, 2 * MIB - B, 2 * B);
    check_read(b, 1, 2 * MIB - 2 * B, 4 * B);

    for (unsigned i = 0; i < 8; i++)
        put(c, i % 2, (i * 5 % 8) * B, B);
    for (unsigned i = 0; i < 8; i++)
        put(c, 2, i * B, B)->burst = i < 7;
    check_read(c, 2, 0, 8 * B);
}

static void clones(struct script sc[SCENARIO_ACTORS])
{
    struct script *a = &sc[0], *b = &sc[1];

    put(a, 0, 0, 12 * B);
    clone(a, 0, 1);
    put(a, 0, 2 * B, 2 * B);
    with(clone(a, 0, 2), B + 100, 3 * B);
    put(a, 1, 0, 12 * B);
    clone(a, 2, 3);
    add(a, STEP_REMOVE, 0);
    check_read(a, 2, 0, 12 * B);
    punch(a, 2, 0, 12 * B);
    clone(a, 3, 0);
    add(a, STEP_REMOVE, 3);
    add(a, STEP_REOPEN, 0);
    clone(a, 0, 3);
    put(a, 0, 5 * B + 1, B);
    check_read(a, 3, 0, 12 * B);

    for (unsigned i = 0; i < 5; i++)
        put(b, 0, i * 2 * MIB, B);
    clone(b, 0, 1);
    punch(b, 0, 2 * MIB, 4 * MIB);
    add(b, STEP_REMOVE, 1);
    add(b, STEP_REOPEN, 0);
    clone(b, 0, 1);
    put(b, 1, 8 * MIB, 2 * B);
}

/* Punches, removals, new life after a tombstone, settled tombstones, pins that hold frees up. */
static void removals(struct script sc[SCENARIO_ACTORS])
{
    struct script *a = &sc[0], *b = &sc[1], *c = &sc[2];

    put(a, 0, 0, 20 * B);
    punch(a, 0, 2 * B, 3 * B);
    punch(a, 0, 7 * B + 100, 2 * B);
    punch(a, 1, 0, B);
    add(a, STEP_REMOVE, 0);
    put(a, 0, B, 2 * B);
    add(a, STEP_REMOVE, 0);
    add(a, STEP_SETTLE, 0);
    put(a, 2, 0, 3 * B);
    add(a, STEP_REMOVE, 1);
    put(a, 0, 0, 30 * B);
    check_read(a, 0, 0, 30 * B);

    put(b, 0, 0, 10 * B);
    add(b, STEP_PIN, 0);
    put(b, 0, 0, 10 * B);
    add(b, STEP_PIN_READ, 0);
    add(b, STEP_REMOVE, 0);
    put(b, 1, 0, 10 * B);
    add(b, STEP_PIN_READ, 0);
    add(b, STEP_UNPIN, 0);
    put(b, 1, 0, 10 * B);
    put(b, 2, 100, 10 * B);

    for (unsigned i = 0; i < 6; i++) {
        put(c, i % 3, 0, 4 * B);
        add(c, STEP_REMOVE, i % 3);
    }
    add(c, STEP_SETTLE, 0);
    put(c, 0, 0, B);
}

static void installs(struct script sc[SCENARIO_ACTORS])
{
    struct script *a = &sc[0], *b = &sc[1];

    install(a, 0, 0, 30 * B);
    with(install(a, 0, 100, 10 * B), 20 * B, 5 * B);
    meta(a, 0, 30);
    put(a, 0, 50 * B, B);
    install(a, 0, 0, 80 * B);
    add(a, STEP_REMOVE, 0);
    install(a, 0, B, 7 * B);
    clone(a, 0, 1);
    install(a, 1, 0, 9 * B);
    check_read(a, 0, 0, 10 * B);

    for (unsigned i = 0; i < 4; i++)
        with(install(b, 0, i * 2 * MIB, 40 * B), (i + 2) * 2 * MIB, 2 * B);
    put(b, 0, 0, B);
    install(b, 1, 9 * MIB, 512);
}

/* Meta in the record, in a block of its own, both ways, and batches. */
static void metas(struct script sc[SCENARIO_ACTORS])
{
    struct script *a = &sc[0], *b = &sc[1];

    put(a, 0, 0, B);
    meta(a, 0, 10);
    meta(a, 0, 40);
    meta(a, 0, 41);
    meta(a, 0, STORE_META_SIZE_MAX);
    meta(a, 0, 1);
    meta(a, 0, 0);
    meta(a, 0, 3000);
    put(a, 0, 0, 2 * B);
    add(a, STEP_REOPEN, 0);
    meta(a, 0, 2000);
    put(a, 0, 77, 10);
    add(a, STEP_REMOVE, 0);
    put(a, 0, 0, B);

    for (unsigned i = 0; i < 8; i++)
        punch(b, i, 0, B)->burst = false;
    batch(b, 0, 8, 0, 30);
    batch(b, 0, 4, 4, 2500);
    put(b, 5, 0, 3 * B);
    add(b, STEP_REOPEN, 0);
    batch(b, 0, 4, 0, 35);
    put(b, 6, 0, B);
    batch(b, 0, 4, 3, 4096);
}

/* Batches of metas that fill the log faster than anything else, so that it wraps and checkpoints
 * are written all the time; beside them small writes and removals. */
static void wrap(struct script sc[SCENARIO_ACTORS])
{
    struct script *a = &sc[0], *b = &sc[1], *c = &sc[2];

    for (unsigned i = 0; i < 50; i++)
        punch(a, i, 0, B);
    for (unsigned i = 0; i < 9; i++)
        batch(a, 0, 50, 0, 4000);
    for (unsigned i = 0; i < 40; i++) {
        put(b, i % 3, (i % 7) * B, (1 + i % 4) * B - 100);
        if (i % 8 == 7)
            add(b, STEP_REMOVE, i % 3);
    }
    put(c, 0, 0, 40 * B);
    for (unsigned i = 0; i < 10; i++) {
        clone(c, 0, 1);
        put(c, 0, i * 3 * B, 2 * B);
        add(c, STEP_REMOVE, 1);
        check_read(c, 0, 0, 40 * B);
    }
}

/* Hardly a free block, so that what is freed is used again at once. */
static void full(struct script sc[SCENARIO_ACTORS])
{
    for (unsigned k = 0; k < SCENARIO_ACTORS; k++) {
        struct script *a = &sc[k];
        for (unsigned i = 0; i < 14; i++)
            put(a, 0, 0, 8 * B);
        put(a, 1, 0, 5 * B);
        punch(a, 0, 0, 4 * B);
        put(a, 0, B + 5, 2 * B);
        add(a, STEP_REMOVE, 1);
        meta(a, 0, 3000);
        put(a, 2, 0, 8 * B);
        clone(a, 0, 3);
        put(a, 0, 0, 8 * B);
        add(a, STEP_REMOVE, 0);
        add(a, STEP_REMOVE, 3);
        put(a, 0, 0, 8 * B);
        check_read(a, 0, 0, 8 * B);
    }
}

/* The store is closed and opened in between, with changes of many objects to read back. */
static void reopens(struct script sc[SCENARIO_ACTORS])
{
    struct script *a = &sc[0], *b = &sc[1];

    for (unsigned i = 0; i < 40; i++)
        put(a, i, (i % 5) * B, B);
    add(a, STEP_REOPEN, 0);
    for (unsigned i = 0; i < 12; i++)
        put(a, i * 3, 100, 10);
    add(a, STEP_REMOVE, 5);
    add(a, STEP_REOPEN, 0);
    clone(a, 3, 5);
    put(a, 3, 0, 2 * B);
    check_read(a, 5, 0, 4 * B);

    for (unsigned i = 0; i < 7; i++)
        put(b, 0, i * 2 * MIB, B);
    add(b, STEP_REOPEN, 0);
    punch(b, 0, 4 * MIB, 2 * MIB);
    put(b, 0, 6 * MIB + 9, B);
    add(b, STEP_REOPEN, 0);
    put(b, 0, 8 * MIB, 3 * B);
    check_read(b, 0, 6 * MIB, 2 * MIB);
}

#define SMALL (2 + 256 + 1024)

const struct scenario scenarios[] = {
    {"writes", writes, 3, SMALL, DISK_WRITE_BACK},
    {"writes-fua", writes, 3, SMALL, DISK_FUA},
    {"writes-through", writes, 3, SMALL, DISK_WRITE_THROUGH},
    {"clones", clones, 2, SMALL, DISK_WRITE_BACK},
    {"removals", removals, 3, SMALL, DISK_WRITE_BACK},
    {"installs", installs, 2, SMALL, DISK_WRITE_BACK},
    {"metas", metas, 2, SMALL, DISK_WRITE_BACK},
    {"wrap", wrap, 3, SMALL, DISK_WRITE_BACK},
    {"full", full, 3, SMALL, DISK_WRITE_BACK, .fill = true},
    {"reopens", reopens, 2, SMALL, DISK_WRITE_BACK},
    {"ahead", wrap, 3, SMALL, DISK_WRITE_BACK, .ahead = true},
};
const unsigned scenario_count = ARRAY_SIZE(scenarios);

void scenario_build(const struct scenario *sc, struct script scripts[SCENARIO_ACTORS])
{
    sc->build(scripts);
}

void scenario_free(struct script scripts[SCENARIO_ACTORS])
{
    for (unsigned i = 0; i < SCENARIO_ACTORS; i++)
        free(scripts[i].steps);
    memset(scripts, 0, SCENARIO_ACTORS * sizeof(*scripts));
}
