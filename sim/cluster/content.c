/* SPDX-License-Identifier: Apache-2.0 */
/* The linearizability checker of one image. See content.h for M1 to M3. */
#include "sim/cluster/content.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/hash.h"

#define CONFIG_COUNT_MAX 96u
#define MAGIC            0x6b656c7069655342ULL

struct pending {
    uint64_t id, value, process;
};

struct config {
    uint64_t value;
    uint32_t done; /* bit i: contains pendings[i] */
};

struct cloud {
    unsigned pending_count, config_count;
    bool anything; /* doubts were given up */
    uint64_t lost; /* a change that surely never happened and has no answer yet, 0 none (M3) */
    struct pending pendings[UNIT_PENDING_MAX];
    struct config configs[CONFIG_COUNT_MAX];
};

static uint64_t overflow_count;

uint64_t content_overflows(void)
{
    return overflow_count;
}

/* --- bytes --- */

static uint64_t word_of(uint64_t value, uint32_t unit, unsigned word)
{
    switch (word) {
    case 0:
        return MAGIC;
    case 1:
        return value;
    case 2:
        return unit;
    default:
        return hash_u64(value * 64 + word + ((uint64_t)unit << 40));
    }
}

static void fill_unit(uint8_t *out, uint32_t unit, uint64_t value)
{
    for (unsigned i = 0; value != 0 && i < UNIT / 8; i++)
        put_le64(out + i * 8, word_of(value, unit, i));
    if (value == 0)
        memset(out, 0, UNIT);
}

void content_fill(uint8_t *out, uint32_t first_unit, uint32_t count, uint64_t value)
{
    for (uint32_t i = 0; i < count; i++)
        fill_unit(out + (size_t)i * UNIT, first_unit + i, value);
}

bool content_is_block(const uint8_t *p)
{
    bool any = false;
    for (unsigned i = 0; i < 4096; i += UNIT)
        any = any || get_le64(p + i) == MAGIC;
    return any;
}

/* False: the bytes are no unit that was ever written there. */
static bool read_unit(const uint8_t *p, uint32_t unit, uint64_t *ret_value)
{
    uint8_t expected[UNIT];
    uint64_t value = get_le64(p) == MAGIC ? get_le64(p + 8) : 0;
    fill_unit(expected, unit, value);
    *ret_value = value;
    return memcmp(p, expected, UNIT) == 0;
}

/* --- configurations --- */

static struct cloud *cloud_of(struct unit *u)
{
    if (!u->cloud) {
        u->cloud = malloc(sizeof(*u->cloud));
        ASSERT(u->cloud);
        u->cloud->pending_count = 0;
        u->cloud->config_count = 1;
        u->cloud->anything = false;
        u->cloud->lost = 0;
        u->cloud->configs[0] = (struct config){.value = u->value};
    }
    return u->cloud;
}

static void simplify(struct unit *u)
{
    struct cloud *c = u->cloud;
    if (!c || c->pending_count || c->config_count != 1 || c->anything || c->lost)
        return;
    u->value = c->configs[0].value;
    free(c);
    u->cloud = NULL;
}

static void config_add(struct cloud *c, uint64_t value, uint32_t done)
{
    for (unsigned i = 0; i < c->config_count; i++) {
        if (c->configs[i].value == value && c->configs[i].done == done)
            return;
    }
    if (c->config_count == CONFIG_COUNT_MAX) {
        overflow_count += !c->anything;
        c->anything = true;
        return;
    }
    c->configs[c->config_count++] = (struct config){value, done};
}

/* All that can be reached by letting open changes happen, in any order. */
static void close_over(struct cloud *c)
{
    for (unsigned i = 0; i < c->config_count; i++) {
        for (unsigned k = 0; k < c->pending_count; k++) {
            struct config now = c->configs[i];
            if (!(now.done & 1u << k))
                config_add(c, c->pendings[k].value, now.done | 1u << k);
        }
    }
}

static void dedupe(struct cloud *c)
{
    unsigned count = c->config_count;
    c->config_count = 0;
    for (unsigned i = 0; i < count; i++) {
        struct config x = c->configs[i];
        config_add(c, x.value, x.done);
    }
}

/* Forgets which configurations contain pendings[k]; it is over. */
static void pending_remove(struct cloud *c, unsigned k)
{
    uint32_t low = (1u << k) - 1;
    for (unsigned i = 0; i < c->config_count; i++) {
        uint32_t done = c->configs[i].done;
        c->configs[i].done = (done & low) | ((done >> 1) & ~low);
    }
    c->pending_count--;
    memmove(&c->pendings[k], &c->pendings[k + 1], (c->pending_count - k) * sizeof(c->pendings[0]));
    dedupe(c);
}

static int pending_find(const struct cloud *c, uint64_t id)
{
    for (unsigned k = 0; c && k < c->pending_count; k++) {
        if (c->pendings[k].id == id)
            return (int)k;
    }
    return -1;
}

/* Keeps configurations that contain pendings[k]. */
static void keep_done(struct cloud *c, unsigned k)
{
    unsigned count = c->config_count;
    c->config_count = 0;
    for (unsigned i = 0; i < count; i++) {
        if (c->configs[i].done & 1u << k)
            c->configs[c->config_count++] = c->configs[i];
    }
}

/* M3: an operation that `process` began at `begun_at` was answered. */
static void drop_gone(struct cloud *c, uint64_t process, uint64_t begun_at,
                      const struct process_view *view)
{
    for (unsigned k = c->pending_count; k-- > 0;) {
        if (c->pendings[k].process == process ||
            view->gone_at(view->arg, c->pendings[k].process) > begun_at)
            continue;
        bool maybe = c->anything;
        for (unsigned i = 0; i < c->config_count; i++)
            maybe = maybe || (c->configs[i].done & 1u << k);
        if (!maybe)
            c->lost = c->pendings[k].id;
        pending_remove(c, k);
    }
}

static bool is_possible(const struct unit *u, uint64_t value)
{
    const struct cloud *c = u->cloud;
    if (!c)
        return u->value == value;
    bool found = c->anything;
    for (unsigned i = 0; i < c->config_count; i++)
        found = found || c->configs[i].value == value;
    for (unsigned i = 0; i < c->pending_count; i++)
        found = found || c->pendings[i].value == value;
    return found;
}

/* --- images --- */

void content_init(struct content *c, uint64_t size, uint64_t capacity)
{
    *c = (struct content){.size = size, .capacity = capacity};
    c->units = calloc(capacity / UNIT, sizeof(*c->units));
    ASSERT(c->units);
}

void content_done(struct content *c)
{
    for (uint64_t i = 0; c->units && i < c->capacity / UNIT; i++)
        free(c->units[i].cloud);
    free(c->units);
    free(c->notes);
    *c = (struct content){0};
}

static void unit_settle(struct unit *u)
{
    struct cloud *c = u->cloud;
    if (!c)
        return;
    close_over(c);
    c->pending_count = 0;
    c->lost = 0;
    for (unsigned i = 0; i < c->config_count; i++)
        c->configs[i].done = 0;
    dedupe(c);
    simplify(u);
}

void content_copy(struct content *to, const struct content *from)
{
    content_init(to, from->size, from->capacity);
    for (uint64_t i = 0; i < from->capacity / UNIT; i++) {
        struct unit *u = &to->units[i];
        u->value = from->units[i].value;
        if (!from->units[i].cloud)
            continue;
        *cloud_of(u) = *from->units[i].cloud;
        unit_settle(u);
    }
}

void content_settle(struct content *c)
{
    for (uint64_t i = 0; i < c->capacity / UNIT; i++)
        unit_settle(&c->units[i]);
}

/* --- changes --- */

bool content_may_change(const struct content *c, struct piece p)
{
    for (uint32_t i = p.first; i < p.first + p.count; i++) {
        if (c->units[i].cloud && c->units[i].cloud->pending_count == UNIT_PENDING_MAX)
            return false;
    }
    return true;
}

static void note(struct content *c, struct piece p, uint64_t id, uint64_t value)
{
    if (c->note_count == c->note_capacity) {
        c->note_capacity = c->note_capacity ? 2 * c->note_capacity : 64;
        c->notes = realloc(c->notes, c->note_capacity * sizeof(*c->notes));
        ASSERT(c->notes);
    }
    c->notes[c->note_count++] = (struct change_note){id, value, p.first, p.count};
}

void content_begin(struct content *c, struct piece p, uint64_t id, uint64_t value, uint64_t process)
{
    ASSERT((uint64_t)p.first + p.count <= c->capacity / UNIT);
    note(c, p, id, value);
    for (uint32_t i = p.first; i < p.first + p.count; i++) {
        struct cloud *cloud = cloud_of(&c->units[i]);
        ASSERT(cloud->pending_count < UNIT_PENDING_MAX);
        cloud->pendings[cloud->pending_count++] = (struct pending){id, value, process};
        c->units[i].events++;
    }
}

static const char *unit_answered(struct unit *u, uint64_t id, uint64_t process, uint64_t begun_at,
                                 const struct process_view *view)
{
    struct cloud *c = u->cloud;
    int k = pending_find(c, id);
    if (c && c->lost == id)
        return "an answer to a change that another owner has not found (C4)";
    if (k < 0)
        return NULL;
    close_over(c);
    keep_done(c, (unsigned)k);
    if (c->config_count == 0)
        c->anything = true; /* only after doubts were given up */
    pending_remove(c, (unsigned)k);
    drop_gone(c, process, begun_at, view);
    return NULL;
}

const char *content_end(struct content *c, struct piece p, uint64_t id, enum content_end end,
                        uint64_t process, uint64_t begun_at, const struct process_view *view)
{
    const char *wrong = NULL;
    for (uint32_t i = p.first; c->units && i < p.first + p.count; i++) {
        struct unit *u = &c->units[i];
        u->events++;
        if (end == CONTENT_ANSWERED) {
            const char *w = unit_answered(u, id, process, begun_at, view);
            wrong = wrong ? wrong : w;
        } else if (end == CONTENT_REFUSED && pending_find(u->cloud, id) >= 0) {
            close_over(u->cloud);
            pending_remove(u->cloud, (unsigned)pending_find(u->cloud, id));
        }
        simplify(u);
    }
    return wrong;
}

void content_add(struct content *c, struct piece p, uint64_t value)
{
    for (uint32_t i = p.first; i < p.first + p.count; i++) {
        struct cloud *cloud = cloud_of(&c->units[i]);
        for (unsigned k = 0, n = cloud->config_count; k < n; k++)
            config_add(cloud, value, cloud->configs[k].done);
        c->units[i].events++;
        simplify(&c->units[i]);
    }
}

void content_add_possible(struct content *c, uint32_t unit, const struct content *other)
{
    const struct unit *o = &other->units[unit];
    struct piece p = {unit, 1};
    if (!o->cloud)
        content_add(c, p, o->value);
    for (unsigned i = 0; o->cloud && i < o->cloud->config_count; i++)
        content_add(c, p, o->cloud->configs[i].value);
}

void content_set(struct content *c, struct piece p, uint64_t value)
{
    for (uint32_t i = p.first; i < p.first + p.count; i++) {
        free(c->units[i].cloud);
        c->units[i].cloud = NULL;
        c->units[i].value = value;
        c->units[i].events++;
    }
}

/* --- reads --- */

void content_read_begin(const struct content *c, struct content_read *r, struct piece p,
                        uint64_t process, uint64_t begun_at)
{
    *r = (struct content_read){
        .piece = p, .process = process, .begun_at = begun_at, .note_first = c->note_count};
    r->before = calloc(p.count + 1, sizeof(*r->before));
    ASSERT(r->before);
    for (uint32_t i = 0; i < p.count; i++) {
        const struct unit *u = &c->units[p.first + i];
        r->before[i] = *u;
        if (u->cloud) {
            r->before[i].cloud = malloc(sizeof(*u->cloud));
            ASSERT(r->before[i].cloud);
            *r->before[i].cloud = *u->cloud;
        }
    }
}

void content_read_drop(struct content_read *r)
{
    for (uint32_t i = 0; r->before && i < r->piece.count; i++)
        free(r->before[i].cloud);
    free(r->before);
    r->before = NULL;
}

/* Nothing of the unit changed while it was read: now we know more. */
static bool narrow(struct unit *u, uint64_t value, const struct content_read *r,
                   const struct process_view *view)
{
    struct cloud *c = u->cloud;
    if (!c)
        return u->value == value;
    close_over(c);
    unsigned count = c->config_count;
    c->config_count = 0;
    for (unsigned i = 0; i < count; i++) {
        if (c->configs[i].value == value)
            c->configs[c->config_count++] = c->configs[i];
    }
    if (c->config_count == 0) {
        if (!c->anything)
            return false;
        c->configs[c->config_count++] = (struct config){.value = value};
    }
    c->anything = false;
    if (c->config_count < count)
        u->events++; /* a read that runs beside this one may have come before what this one saw */
    drop_gone(c, r->process, r->begun_at, view);
    simplify(u);
    return true;
}

static bool was_begun_since(const struct content *c, const struct content_read *r, uint32_t unit,
                            uint64_t value)
{
    for (uint32_t i = r->note_first; i < c->note_count; i++) {
        const struct change_note *n = &c->notes[i];
        if (n->value == value && unit >= n->first && unit < n->first + n->count)
            return true;
    }
    return false;
}

static const char *describe(const struct unit *u, uint32_t unit, uint64_t value, bool sound)
{
    static char text[500];
    int n = snprintf(text, sizeof(text),
                     "unit %" PRIu32 " (byte %" PRIu64 ") reads %s%" PRIu64 ", possible:", unit,
                     (uint64_t)unit * UNIT, sound ? "" : "no value: ", value);
    if (!u->cloud)
        snprintf(text + n, sizeof(text) - (size_t)n, " %" PRIu64, u->value);
    for (unsigned i = 0; u->cloud && i < u->cloud->config_count && n < 400; i++)
        n += snprintf(text + n, sizeof(text) - (size_t)n, " %" PRIu64, u->cloud->configs[i].value);
    for (unsigned i = 0; u->cloud && i < u->cloud->pending_count && n < 400; i++)
        n += snprintf(text + n, sizeof(text) - (size_t)n, " (%" PRIu64 ")",
                      u->cloud->pendings[i].value);
    return text;
}

const char *content_read_end(struct content *c, struct content_read *r, const uint8_t *buffer,
                             const struct process_view *view)
{
    const char *wrong = NULL;
    for (uint32_t i = 0; !wrong && i < r->piece.count; i++) {
        uint32_t unit = r->piece.first + i;
        struct unit *u = &c->units[unit];
        const struct unit *before = &r->before[i];
        uint64_t value;
        bool sound = read_unit(buffer + (size_t)i * UNIT, unit, &value), right;
        if (u->events == before->events)
            right = sound && (is_possible(u, value) && narrow(u, value, r, view));
        else
            right = sound && (is_possible(before, value) || was_begun_since(c, r, unit, value));
        if (!right)
            wrong = describe(u->events == before->events ? u : before, unit, value, sound);
    }
    content_read_drop(r);
    return wrong;
}
