/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The heart at random: two gateways write, discard, snapshot, clone, roll back, resize and delete,
 * and die at any moment; then all must come to rest, read right (G1, G4), with exact ledgers (G2),
 * and deleting everything must leave nothing. `test_owner SEED [COUNT]` replays; a failing run
 * prints its seed and aborts.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "backend.h"

#define VOLUME_COUNT   6u
#define SNAPSHOT_COUNT 12u
#define CAPACITY       (1u << 20)
#define IO_MAX         (200u << 10)
#define WORKERS        3u
#ifndef COPIES
#define COPIES 1 /* more only with real objects */
#endif

enum op_kind { OP_NONE, OP_CREATE, OP_CLONE, OP_DELETE, OP_SNAPSHOT, OP_ROLLBACK, OP_RESIZE };

struct model_snapshot {
    bool exists, claimed, doubtful, deleting;
    unsigned gateway; /* that claimed it */
    unsigned volume;
    char tag[16];
    struct content content;
};
struct model_volume {
    bool exists, claimed, doubtful;
    int gateway; /* that works on it */
    char name[16];
    struct content content;
    enum op_kind op; /* under way */
    struct model_snapshot *op_snapshot;
    uint64_t op_size;
    uint64_t changes[CAPACITY / UNIT]; /* how often each unit was changed */
};

struct test {
    struct harness h;
    struct model_volume volumes[VOLUME_COUNT];
    struct model_snapshot snapshots[SNAPSHOT_COUNT];
    uint64_t next_value, next_tag;
    bool stop;
    unsigned workers[GATEWAY_COUNT];
    uint64_t ops, crashes, objects_left;
};

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                             \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static uint64_t draw(struct test *t, uint64_t below)
{
    return harness_draw(&t->h) % below;
}

/* An answer that only a dying or crowded moment explains. */
static bool is_excuse(int r)
{
    return r == -EBUSY || r == -EAGAIN;
}

static void expect_ok(struct test *t, int r, const struct volume_error *e, const char *what,
                      const char *name)
{
    if (r == 0 || is_excuse(r))
        return;
    fprintf(stderr, "%s %s: %s (%s)\n", what, name, err_text(r), e->text);
    abort();
}

/* --- I/O --- */

struct io {
    struct test *t;
    struct model_volume *m;
    struct volume *v;
    struct rt *rt;
    unsigned *running;
    unsigned ops;
};

static bool take_range(struct io *io, uint64_t *ret_offset, uint64_t *ret_length)
{
    struct test *t = io->t;
    struct model_volume *m = io->m;
    uint64_t units = m->content.size / UNIT, count = 1 + draw(t, 8);
    if (draw(t, 3) == 0)
        count = 1 + draw(t, IO_MAX / UNIT);
    uint64_t first = draw(t, units);
    unsigned shape = (unsigned)draw(t, 4);
    if (shape == 0) { /* a whole object, or more */
        first = ALIGN_DOWN(first, 128);
        count = 128 * (1 + draw(t, 3));
    } else if (shape == 1) {
        first = ALIGN_DOWN(first, 8);
        count = ALIGN_UP(count, 8);
    }
    count = MIN(count, units - first);
    for (uint64_t i = first; i < first + count; i++) {
        if (m->content.units[i].busy)
            return false;
    }
    *ret_offset = first * UNIT;
    *ret_length = count * UNIT;
    return true;
}

static void begin_change(struct io *io, uint64_t offset, uint64_t length, uint64_t value)
{
    struct model_volume *m = io->m;
    content_add(&m->content, offset, length, value);
    if (m->op == OP_SNAPSHOT)
        content_add(&m->op_snapshot->content, offset, length, value);
    for (uint64_t i = offset / UNIT; i < (offset + length) / UNIT; i++) {
        m->content.units[i].busy = true;
        m->changes[i]++;
    }
}

static void end_change(struct io *io, uint64_t offset, uint64_t length, uint64_t value, int r)
{
    struct model_volume *m = io->m;
    if (r == 0)
        content_set(&m->content, offset, length, value);
    for (uint64_t i = offset / UNIT; i < (offset + length) / UNIT; i++)
        m->content.units[i].busy = false;
}

static fiber_fn void change(struct io *io, uint64_t offset, uint64_t length, bool zero)
{
    struct test *t = io->t;
    uint64_t value = zero ? 0 : ++t->next_value;
    bool aligned =
        offset % 4096 == 0 && (length % 4096 == 0 || offset + length == io->m->content.size);
    int r;
    begin_change(io, offset, length, value);
    if (!zero) {
        uint8_t *b = aligned_alloc(4096, ALIGN_UP(length, 4096));
        fill(b, length, value);
        r = volume_write(io->v, offset, (uint32_t)length, b);
        free(b);
    } else if (aligned && draw(t, 2)) {
        r = volume_discard(io->v, offset, length);
    } else {
        r = volume_zero(io->v, offset, length, draw(t, 6) ? 0 : VOLUME_ZERO_NO_HOLE);
    }
    if (r != 0 && r != -ENOSPC) {
        fprintf(stderr, "change of %s: %s\n", io->m->name, err_text(r));
        abort();
    }
    end_change(io, offset, length, value, r);
}

/* A read may run into changes: then it may see what was possible before, or what is now. */
static fiber_fn void read_back(struct io *io, uint64_t offset, uint64_t length)
{
    struct model_volume *m = io->m;
    uint64_t units = length / UNIT, first = offset / UNIT;
    struct unit *before = malloc(units * sizeof(*before));
    uint64_t *changes = malloc(units * sizeof(*changes));
    uint8_t *b = malloc(length);
    memcpy(before, &m->content.units[first], units * sizeof(*before));
    memcpy(changes, &m->changes[first], units * sizeof(*changes));
    int r = volume_read(io->v, offset, (uint32_t)length, b);
    if (r)
        fprintf(stderr, "read of %s: %s\n", m->name, err_text(r));
    CHECK(r == 0);
    for (uint64_t i = 0; i < units; i++) {
        bool touched = m->changes[first + i] != changes[i] || before[i].busy;
        if (!touched) {
            CHECK(content_match(&m->content, offset + i * UNIT, UNIT, b + i * UNIT, m->name));
            continue;
        }
        if (m->changes[first + i] > changes[i] + 1)
            continue;
        struct content c = {.units = &before[i]};
        const struct unit *now = &m->content.units[first + i];
        before[i].busy = false;
        if (now->count == 0)
            continue;
        for (unsigned k = 0; k < now->count; k++)
            content_add(&c, 0, UNIT, now->values[k]);
        CHECK(content_match(&c, 0, UNIT, b + i * UNIT, m->name));
    }
    free(before);
    free(changes);
    free(b);
}

static fiber_fn void io_main(void *arg)
{
    struct io *io = arg;
    struct test *t = io->t;
    while (io->ops-- > 0 && !t->stop) {
        uint64_t offset, length;
        unsigned what = (unsigned)draw(t, 10);
        t->ops++;
        if (what >= 7) {
            offset = draw(t, io->m->content.size / UNIT) * UNIT;
            length = UNIT * (1 + draw(t, 200));
            length = MIN(length, io->m->content.size - offset);
            read_back(io, offset, length);
        } else if (take_range(io, &offset, &length)) {
            change(io, offset, length, what >= 4);
        }
        if (draw(t, 4) == 0)
            fiber_sleep(io->rt, draw(t, 3 * NS_PER_MS));
        if (draw(t, 20) == 0)
            CHECK(volume_flush(io->v) == 0);
    }
    --*io->running;
    free(io);
}

/* --- operations --- */

static struct model_volume *free_volume(struct test *t)
{
    for (unsigned i = 0; i < VOLUME_COUNT; i++) {
        if (!t->volumes[i].exists && !t->volumes[i].claimed)
            return &t->volumes[i];
    }
    return NULL;
}

static struct model_snapshot *free_snapshot(struct test *t)
{
    for (unsigned i = 0; i < SNAPSHOT_COUNT; i++) {
        if (!t->snapshots[i].exists && !t->snapshots[i].claimed)
            return &t->snapshots[i];
    }
    return NULL;
}

static struct model_snapshot *some_snapshot(struct test *t, int of_volume)
{
    unsigned start = (unsigned)draw(t, SNAPSHOT_COUNT);
    for (unsigned i = 0; i < SNAPSHOT_COUNT; i++) {
        struct model_snapshot *s = &t->snapshots[(start + i) % SNAPSHOT_COUNT];
        if (s->exists && !s->claimed && (of_volume < 0 || s->volume == (unsigned)of_volume))
            return s;
    }
    return NULL;
}

static fiber_fn void snapshot(struct test *t, struct volumes *vs, struct model_volume *m)
{
    struct model_snapshot *s = free_snapshot(t);
    struct volume_error e = {0};
    if (!s || m->op != OP_NONE)
        return;
    s->claimed = true;
    s->gateway = (unsigned)m->gateway;
    s->volume = (unsigned)(m - t->volumes);
    snprintf(s->tag, sizeof(s->tag), "t%" PRIu64, ++t->next_tag);
    content_copy(&s->content, &m->content);
    m->op = OP_SNAPSHOT;
    m->op_snapshot = s;
    int r = volume_snapshot(vs, m->name, s->tag, NULL, &e);
    if (r != -ENOSPC)
        expect_ok(t, r, &e, "snapshot", m->name);
    m->op = OP_NONE;
    s->claimed = false;
    s->exists = r == 0;
    if (r)
        content_done(&s->content);
}

static fiber_fn void use_volume(struct test *t, struct gateway *g, struct model_volume *m)
{
    struct volume *v;
    struct volume_error e = {0};
    int r = volume_open(g->vs, m->name, NULL, 0, &v, &e);
    if (r) {
        if (r == -ENOSPC)
            return;
        expect_ok(t, r, &e, "open", m->name);
        fiber_sleep(g->rt, 5 * NS_PER_MS);
        return;
    }
    CHECK(volume_size(v) == m->content.size);
    unsigned *running = calloc(1, sizeof(*running));
    for (unsigned i = 0; i < 4; i++) {
        struct io *io = malloc(sizeof(*io));
        *io = (struct io){
            .t = t, .m = m, .v = v, .rt = g->rt, .running = running, .ops = (unsigned)draw(t, 40)};
        ++*running;
        CHECK(fiber_spawn(g->rt, "io", io_main, io) == 0);
    }
    while (*running > 0) {
        fiber_sleep(g->rt, draw(t, 10 * NS_PER_MS));
        if (draw(t, 3) == 0 && !t->stop)
            snapshot(t, g->vs, m);
    }
    free(running);
    volume_close(v);
}

static fiber_fn void create_or_clone(struct test *t, struct gateway *g)
{
    struct model_volume *m = free_volume(t);
    struct model_snapshot *s = draw(t, 3) ? some_snapshot(t, -1) : NULL;
    struct volume_error e = {0};
    if (!m)
        return;
    m->claimed = true;
    m->gateway = (int)g->number;
    snprintf(m->name, sizeof(m->name), "v%u", (unsigned)(m - t->volumes));
    memset(m->changes, 0, sizeof(m->changes));
    int r;
    if (s) {
        s->claimed = true;
        s->gateway = g->number;
        m->op = OP_CLONE;
        m->op_snapshot = s;
        content_copy(&m->content, &s->content);
        r = volume_clone(g->vs, t->volumes[s->volume].name, s->tag, m->name, &e);
        s->claimed = false;
    } else {
        uint64_t size = UNIT * (1 + draw(t, CAPACITY / UNIT));
        struct volume_create_options o = {.name = m->name, .size = size};
        m->op = OP_CREATE;
        content_init(&m->content, size, CAPACITY);
        r = volume_create(g->vs, &o, &e);
    }
    m->op = OP_NONE;
    m->claimed = false;
    m->exists = r == 0;
    if (r != -ENOSPC)
        expect_ok(t, r, &e, "create", m->name);
    if (r)
        content_done(&m->content);
}

static fiber_fn void delete_snapshot(struct test *t, struct gateway *g)
{
    struct model_snapshot *s = some_snapshot(t, -1);
    struct volume_error e = {0};
    if (!s)
        return;
    s->claimed = s->deleting = true;
    s->gateway = g->number;
    int r = volume_delete_snapshot(g->vs, t->volumes[s->volume].name, s->tag, &e);
    expect_ok(t, r, &e, "delete snapshot of", t->volumes[s->volume].name);
    s->claimed = s->deleting = false;
    s->exists = r != 0;
    if (r == 0)
        content_done(&s->content);
}

static fiber_fn void verify_image(struct test *t, struct gateway *g, const char *name,
                                  const char *tag, struct content *c)
{
    struct volume *v;
    struct volume_error e = {0};
    int r = volume_open(g->vs, name, tag, 0, &v, &e);
    if (r) {
        expect_ok(t, r, &e, "open", name);
        return;
    }
    uint8_t *b = malloc(c->size);
    CHECK(volume_size(v) == c->size);
    CHECK(volume_read(v, 0, (uint32_t)c->size, b) == 0);
    CHECK(content_match(c, 0, c->size, b, tag ? tag : name));
    free(b);
    volume_close(v);
}

static fiber_fn void read_snapshot(struct test *t, struct gateway *g)
{
    struct model_snapshot *s = some_snapshot(t, -1);
    if (!s)
        return;
    s->claimed = true;
    s->gateway = g->number;
    verify_image(t, g, t->volumes[s->volume].name, s->tag, &s->content);
    s->claimed = false;
}

static fiber_fn void delete_volume(struct test *t, struct gateway *g, struct model_volume *m)
{
    struct volume_error e = {0};
    m->op = OP_DELETE;
    int r = volume_delete(g->vs, m->name, &e);
    if (r != -ENOSPC)
        expect_ok(t, r, &e, "delete", m->name);
    m->op = OP_NONE;
    if (r == 0) {
        m->exists = false;
        content_done(&m->content);
    }
}

static fiber_fn void roll_back(struct test *t, struct gateway *g, struct model_volume *m)
{
    struct model_snapshot *s = some_snapshot(t, (int)(m - t->volumes));
    struct volume_error e = {0};
    if (!s)
        return;
    s->claimed = true;
    s->gateway = g->number;
    m->op = OP_ROLLBACK;
    m->op_snapshot = s;
    int r = volume_rollback(g->vs, m->name, s->tag, &e);
    if (r != -ENOSPC)
        expect_ok(t, r, &e, "roll back", m->name);
    m->op = OP_NONE;
    s->claimed = false;
    if (r == 0) {
        content_done(&m->content);
        content_copy(&m->content, &s->content);
    }
}

/* What shrinking cut off reads as zeros once it grows again. */
static void model_resize(struct content *c, uint64_t size)
{
    if (size < c->size)
        content_set(c, size, c->capacity - size, 0);
    c->size = size;
}

static fiber_fn void resize(struct test *t, struct gateway *g, struct model_volume *m)
{
    struct volume_error e = {0};
    m->op = OP_RESIZE;
    m->op_size = UNIT * (1 + draw(t, CAPACITY / UNIT));
    int r = volume_resize(g->vs, m->name, m->op_size, &e);
    if (r != -ENOSPC)
        expect_ok(t, r, &e, "resize", m->name);
    m->op = OP_NONE;
    if (r == 0)
        model_resize(&m->content, m->op_size);
    else if (m->op_size < m->content.size) /* some of it may be zero already */
        content_add(&m->content, m->op_size, m->content.size - m->op_size, 0);
}

static fiber_fn void work_on_volume(struct test *t, struct gateway *g)
{
    struct model_volume *m = &t->volumes[draw(t, VOLUME_COUNT)];
    unsigned what = (unsigned)draw(t, 20);
    if (!m->exists || m->claimed)
        return;
    m->claimed = true;
    m->gateway = (int)g->number;
    if (what == 0)
        delete_volume(t, g, m);
    else if (what <= 2)
        roll_back(t, g, m);
    else if (what <= 4)
        resize(t, g, m);
    else
        use_volume(t, g, m);
    m->claimed = false;
}

struct worker_arg {
    struct test *t;
    struct gateway *g;
};

static fiber_fn void worker_main(void *arg)
{
    struct worker_arg a = *(struct worker_arg *)arg;
    struct test *t = a.t;
    free(arg);
    while (!t->stop) {
        unsigned what = (unsigned)draw(t, 12);
        if (what == 0)
            create_or_clone(t, a.g);
        else if (what == 1)
            delete_snapshot(t, a.g);
        else if (what == 2)
            read_snapshot(t, a.g);
        else
            work_on_volume(t, a.g);
        fiber_sleep(a.g->rt, draw(t, 2 * NS_PER_MS));
    }
    t->workers[a.g->number]--;
}

static void start_workers(struct test *t, struct gateway *g)
{
    for (unsigned i = 0; i < WORKERS; i++) {
        struct worker_arg *a = malloc(sizeof(*a));
        *a = (struct worker_arg){.t = t, .g = g};
        CHECK(fiber_spawn(g->rt, "worker", worker_main, a) == 0);
        t->workers[g->number]++;
    }
}

/* --- death and recovery --- */

static void doubt_rollback(struct model_volume *m)
{
    for (uint64_t k = 0; k < CAPACITY / UNIT; k++) {
        const struct unit *u = &m->op_snapshot->content.units[k];
        for (unsigned j = 0; j < u->count; j++)
            content_add(&m->content, k * UNIT, UNIT, u->values[j]);
        if (u->count == 0)
            m->content.units[k].count = 0;
    }
}

/* What was under way on the dead gateway may have happened or not. */
static void doubt(struct test *t, unsigned gateway)
{
    for (unsigned i = 0; i < VOLUME_COUNT; i++) {
        struct model_volume *m = &t->volumes[i];
        if (!m->claimed || m->gateway != (int)gateway)
            continue;
        for (uint64_t k = 0; m->content.units && k < CAPACITY / UNIT; k++)
            m->content.units[k].busy = false; /* keeps all values that are possible */
        m->doubtful = m->exists = true;       /* maybe */
        if (m->op == OP_SNAPSHOT)
            m->op_snapshot->doubtful = m->op_snapshot->exists = true;
        if (m->op == OP_ROLLBACK) {
            m->op_size = m->op_snapshot->content.size;
            doubt_rollback(m);
        }
        if (m->op == OP_RESIZE && m->op_size < m->content.size)
            content_add(&m->content, m->op_size, m->content.size - m->op_size, 0);
    }
    for (unsigned i = 0; i < SNAPSHOT_COUNT; i++) {
        struct model_snapshot *s = &t->snapshots[i];
        if (!s->claimed || s->gateway != gateway)
            continue;
        s->doubtful = s->doubtful || s->deleting;
        s->claimed = s->doubtful;
    }
    t->workers[gateway] = 0;
}

static bool listed(const struct volume_info *list, size_t count, const char *name, const char *tag)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(list[i].name, name) == 0 && strcmp(list[i].tag, tag) == 0)
            return true;
    }
    return false;
}

/* Opens what is doubtful until it opens, so that all that was pending is done. */
static fiber_fn void settle_volume(struct test *t, struct gateway *g, struct model_volume *m)
{
    struct volume *v = NULL;
    struct volume_error e = {0};
    int r;
    for (unsigned i = 0; i < 20000; i++) { /* a node that finds no space closes late */
        r = volume_open(g->vs, m->name, NULL, 0, &v, &e);
        if (!is_excuse(r) && r != -ENOSPC)
            break;
        fiber_sleep(g->rt, 5 * NS_PER_MS);
    }
    if (r == -ENOENT) {
        CHECK(m->op == OP_CREATE || m->op == OP_CLONE || m->op == OP_DELETE);
        m->exists = false;
        content_done(&m->content);
    } else {
        if (r)
            fprintf(stderr, "open %s: %s\n", m->name, e.text);
        CHECK(r == 0);
        uint64_t size = volume_size(v);
        if (m->op == OP_RESIZE) {
            CHECK(size == m->op_size || size == m->content.size);
            if (size == m->op_size)
                model_resize(&m->content, size);
        } else if (m->op == OP_ROLLBACK) {
            CHECK(size == m->content.size || size == m->op_size);
            m->content.size = size;
        } else {
            CHECK(size == m->content.size);
        }
        volume_close(v);
    }
    m->op = OP_NONE;
    m->claimed = m->doubtful = false;
}

static fiber_fn void settle_doubts_main(void *arg)
{
    struct worker_arg *a = arg;
    struct test *t = a->t;
    struct volumes *vs = a->g->vs;
    struct volume_info *list;
    size_t count;
    for (unsigned i = 0; i < VOLUME_COUNT; i++) {
        if (t->volumes[i].doubtful)
            settle_volume(t, a->g, &t->volumes[i]);
    }
    CHECK(volume_list(vs, NULL, &list, &count) == 0);
    for (unsigned i = 0; i < SNAPSHOT_COUNT; i++) {
        struct model_snapshot *s = &t->snapshots[i];
        if (!s->doubtful)
            continue;
        const char *name = t->volumes[s->volume].name;
        if (listed(list, count, name, s->tag) && s->deleting) {
            int r;
            struct volume_error e = {0};
            do {
                r = volume_delete_snapshot(vs, name, s->tag, &e);
            } while (is_excuse(r));
            expect_ok(t, r, &e, "delete the rest of a snapshot of", name);
            s->exists = false;
        } else {
            s->exists = listed(list, count, name, s->tag);
        }
        s->claimed = s->doubtful = s->deleting = false;
        if (!s->exists)
            content_done(&s->content);
    }
    free(list);
}

static void crash(struct test *t, struct gateway *g)
{
    bool at_once = draw(t, 2);
    t->crashes++;
    gateway_crash(g, at_once);
    doubt(t, g->number);
    if (!at_once) {
        sim_run(t->h.sim, sim_now(t->h.sim) + draw(t, 20 * NS_PER_MS));
        sim_cs_end_dead(t->h.cs);
    }
    gateway_start(g);
    struct worker_arg a = {.t = t, .g = &t->h.gateways[draw(t, GATEWAY_COUNT)]};
    gateway_do(a.g, settle_doubts_main, &a);
}

/* --- rest --- */

static void on_finding(void *arg, const char *finding)
{
    fprintf(stderr, "finding: %s\n", finding);
}

static fiber_fn void rest_main(void *arg)
{
    struct worker_arg *a = arg;
    struct test *t = a->t;
    for (unsigned i = 0; i < VOLUME_COUNT; i++) {
        if (t->volumes[i].exists)
            verify_image(t, a->g, t->volumes[i].name, NULL, &t->volumes[i].content);
    }
    for (unsigned i = 0; i < SNAPSHOT_COUNT; i++) {
        struct model_snapshot *s = &t->snapshots[i];
        if (s->exists)
            verify_image(t, a->g, t->volumes[s->volume].name, s->tag, &s->content);
    }
    struct volume_check_report r = {0};
    for (unsigned i = 0; i < 1500 && !r.at_rest; i++) {
        fiber_sleep(a->g->rt, 20 * NS_PER_MS);
        CHECK(volume_check(a->g->vs, on_finding, NULL, &r) == 0);
    }
    CHECK(r.at_rest);
    CHECK(r.findings == 0);
    CHECK(r.objects_stored == r.objects_reachable);
    if (backend_object_count(&t->h) != UINT64_MAX)
        CHECK(r.objects_stored == backend_object_count(&t->h));
    struct volume_info *list;
    size_t count, known = 0;
    CHECK(volume_list(a->g->vs, NULL, &list, &count) == 0);
    for (unsigned i = 0; i < VOLUME_COUNT; i++)
        known += t->volumes[i].exists;
    for (unsigned i = 0; i < SNAPSHOT_COUNT; i++)
        known += t->snapshots[i].exists;
    for (size_t i = 0; known != count && i < count; i++)
        fprintf(stderr, "there is %s@%s\n", list[i].name, list[i].tag);
    CHECK(known == count);
    free(list);
    CHECK(backend_key_count(a->g) == 0);
    t->objects_left = r.objects_stored;
}

static fiber_fn void delete_main(void *arg)
{
    struct worker_arg *a = arg;
    struct test *t = a->t;
    for (bool left = true; left;) {
        left = false;
        for (unsigned i = 0; i < VOLUME_COUNT + SNAPSHOT_COUNT; i++) {
            struct model_volume *m = &t->volumes[draw(t, VOLUME_COUNT)];
            if (m->exists)
                delete_volume(t, a->g, m);
            delete_snapshot(t, a->g);
        }
        for (unsigned i = 0; i < VOLUME_COUNT; i++)
            left = left || t->volumes[i].exists;
        for (unsigned i = 0; i < SNAPSHOT_COUNT; i++)
            left = left || t->snapshots[i].exists;
    }
}

static void run_until_idle(struct test *t)
{
    t->stop = true;
    for (unsigned i = 0; i < GATEWAY_COUNT; i++) {
        for (unsigned n = 0; t->workers[i] > 0; n++) {
            sim_run(t->h.sim, sim_now(t->h.sim) + NS_PER_MS);
            CHECK(n < 100000);
        }
    }
    t->stop = false;
}

static void run_round(struct test *t)
{
    unsigned crash_permille = (unsigned)draw(t, 4) * 30;
    uint64_t delay_ns = NS_PER_US << draw(t, 14), publish_ns = NS_PER_US << draw(t, 14);
    backend_rough(&t->h);
    for (unsigned i = 0; i < 150; i++) {
        for (unsigned k = 0; k < GATEWAY_COUNT; k++) {
            t->h.gateways[k].vs->delay_ns = delay_ns;
            t->h.gateways[k].vs->publish_ns = publish_ns;
            if (t->workers[k] == 0)
                start_workers(t, &t->h.gateways[k]);
        }
        sim_run(t->h.sim, sim_now(t->h.sim) + draw(t, 4 * NS_PER_MS));
        if (draw(t, 1000) < crash_permille)
            crash(t, &t->h.gateways[draw(t, GATEWAY_COUNT)]);
    }
    run_until_idle(t);
    backend_calm(&t->h);
    struct worker_arg a = {.t = t, .g = &t->h.gateways[draw(t, GATEWAY_COUNT)]};
    gateway_do(a.g, rest_main, &a);
}

static void run_seed(uint64_t seed)
{
    struct test *t = calloc(1, sizeof(*t));
    fprintf(stderr, "seed %" PRIu64 "\n", seed);
    harness_start(&t->h, seed, 4 + (uint32_t)(seed % 5), COPIES);
    for (unsigned i = 0; i < 3; i++)
        run_round(t);
    struct worker_arg a = {.t = t, .g = &t->h.gateways[draw(t, GATEWAY_COUNT)]};
    gateway_do(a.g, delete_main, &a);
    gateway_do(a.g, rest_main, &a);
    CHECK(t->objects_left == 0);
    fprintf(stderr, "  %" PRIu64 " crashes, %" PRIu64 " guest operations\n", t->crashes, t->ops);
    backend_print(&t->h);
    harness_stop(&t->h);
    free(t);
}

int main(int argc, char **argv)
{
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 0) : argc > 1 ? 1 : 12;
    log_level = getenv("VERBOSE") ? LOG_DEBUG : LOG_ERROR;
    for (uint64_t seed = first; seed < first + count; seed++)
        run_seed(seed);
    return 0;
}
