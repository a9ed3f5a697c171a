/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stories of volumes: an owner dies at a chosen moment, another node carries on. One scene per
 * rule. Objects are in memory (tests/unit/volume/fake_objects.c).
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "../unit/volume/backend.h"
#include "volume/instance.h"

#define ENTRIES 8u
#define MIB     (1u << 20)
#define OBJECT  65536u

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                             \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

struct story {
    struct harness h;
    struct gateway *g; /* where fn runs */
    struct volumes *vs;
    fiber_fn void (*fn)(struct story *s);
    struct volume *v;
    bool flag;
};

/* --- words of the stories --- */

static fiber_fn void step_main(void *arg)
{
    struct story *s = arg;
    s->fn(s);
}

/* Runs fn on gateway `number`. */
static void on(struct story *s, unsigned number, fiber_fn void (*fn)(struct story *s))
{
    s->g = &s->h.gateways[number];
    s->vs = s->g->vs;
    s->fn = fn;
    gateway_do(s->g, step_main, s);
}

static fiber_fn void must(int r, const struct volume_error *e)
{
    if (r)
        fprintf(stderr, "%s: %s\n", err_text(r), e->text);
    CHECK(r == 0);
}

static fiber_fn void create(struct story *s, const char *name)
{
    struct volume_error e = {0};
    struct volume_create_options o = {.name = name, .size = 4 * MIB};
    must(volume_create(s->vs, &o, &e), &e);
}

static fiber_fn struct volume *open_it(struct story *s, const char *name, const char *tag)
{
    struct volume_error e = {0};
    struct volume *v = NULL;
    int r = -EBUSY;
    for (unsigned i = 0; i < 100 && r == -EBUSY;
         i++) { /* until the map tells that its owner is gone */
        r = volume_open(s->vs, name, tag, 0, &v, &e);
        if (r)
            fiber_sleep(s->g->rt, NS_PER_MS);
    }
    must(r, &e);
    return v;
}

static fiber_fn void put(struct volume *v, uint64_t offset, uint32_t length, uint64_t value)
{
    uint8_t *b = malloc(length);
    fill(b, length, value);
    CHECK(volume_write(v, offset, length, b) == 0);
    free(b);
}

static fiber_fn void expect(struct volume *v, uint64_t offset, uint32_t length, uint64_t value)
{
    uint8_t *b = malloc(length), *w = malloc(length);
    fill(w, length, value);
    CHECK(volume_read(v, offset, length, b) == 0);
    CHECK(memcmp(b, w, length) == 0);
    free(b);
    free(w);
}

static void on_finding(void *arg, const char *finding)
{
    fprintf(stderr, "finding: %s\n", finding);
}

static fiber_fn void check_exact(struct story *s)
{
    struct volume_check_report r = {0};
    for (unsigned i = 0; i < 500 && !r.at_rest; i++) {
        fiber_sleep(s->g->rt, 20 * NS_PER_MS);
        CHECK(volume_check(s->vs, on_finding, s, &r) == 0);
    }
    CHECK(r.at_rest && r.findings == 0);
    CHECK(r.objects_stored == r.objects_reachable);
    CHECK(backend_key_count(s->g) == 0);
}

/* The index stays as it is until settled by hand: nothing happens in the background. */
static void freeze_background(struct story *s)
{
    for (unsigned i = 0; i < GATEWAY_COUNT; i++)
        s->h.gateways[i].vs->delay_ns = s->h.gateways[i].vs->publish_ns = 3600 * NS_PER_S;
}

/* Publishes S as it may be now, as a background fiber could at this very moment. */
static fiber_fn void publish(struct story *s)
{
    struct instance *in = instance_find(s->vs, "a", NULL);
    fmutex_lock(&in->settle_lock);
    CHECK(settle_publish(in) == 0);
    fmutex_unlock(&in->settle_lock);
}

static fiber_fn void settle_once(struct story *s)
{
    struct instance *in = instance_find(s->vs, "a", NULL);
    fmutex_lock(&in->settle_lock);
    CHECK(settle_all(in) == 0);
    fmutex_unlock(&in->settle_lock);
}

static void begin(struct story *s, const char *what)
{
    fprintf(stderr, "%s\n", what);
    harness_start(&s->h, 11, ENTRIES, 1);
    freeze_background(s);
}

static fiber_fn void delete_all(struct story *s)
{
    struct volume_info *list;
    size_t count;
    CHECK(volume_list(s->vs, NULL, &list, &count) == 0);
    for (size_t i = 0; i < count; i++) {
        struct volume_error e = {0};
        must(list[i].working ? volume_delete(s->vs, list[i].name, &e)
                             : volume_delete_snapshot(s->vs, list[i].name, list[i].tag, &e),
             &e);
    }
    free(list);
    check_exact(s);
    CHECK(backend_object_count(&s->h) == 0);
}

static void end(struct story *s)
{
    on(s, 1, check_exact);
    on(s, 1, delete_all);
    harness_stop(&s->h);
}

/* --- V6: each thing that keeps S down, then death right after publishing, then takeover --- */

static fiber_fn void fill_and_freeze(struct story *s)
{
    create(s, "a");
    s->v = open_it(s, "a", NULL);
    for (unsigned i = 0; i < 16; i++)
        put(s->v, i * OBJECT, OBJECT, 100 + i);
    must(volume_snapshot(s->vs, "a", "s", NULL, NULL), NULL);
}

static fiber_fn void unlinked_step(struct story *s)
{
    fill_and_freeze(s);
    put(s->v, 0, 4096, 1);
    put(s->v, 20 * OBJECT, 4096, 2);
    publish(s);
}

static fiber_fn void unlinked_after(struct story *s)
{
    struct volume *v = open_it(s, "a", NULL);
    expect(v, 0, 4096, 1);
    expect(v, 4096, 4096, 100);
    expect(v, 20 * OBJECT, 4096, 2);
    volume_close(v);
}

static fiber_fn void owed_step(struct story *s)
{
    fill_and_freeze(s);
    CHECK(volume_discard(s->v, 2 * OBJECT, 3 * OBJECT) ==
          0); /* empty and owed, in an unlinked leaf */
    publish(s);
}

static fiber_fn void owed_after(struct story *s)
{
    struct volume *v = open_it(s, "a", NULL);
    expect(v, 2 * OBJECT, 3 * OBJECT, 0);
    expect(v, OBJECT, OBJECT, 101);
    volume_close(v);
}

static fiber_fn void owed_linked_step(struct story *s)
{
    fill_and_freeze(s);
    put(s->v, 0, 4096, 1);
    settle_once(s); /* the leaf is own and linked now */
    CHECK(volume_discard(s->v, 2 * OBJECT, 3 * OBJECT) == 0);
    publish(s);
}

/* Does not look at the leaf: only reconciling can find it. */
static fiber_fn void just_open(struct story *s)
{
    volume_close(open_it(s, "a", NULL));
}

static fiber_fn void punched_step(struct story *s)
{
    create(s, "a");
    s->v = open_it(s, "a", NULL);
    for (unsigned i = 0; i < 8; i++)
        put(s->v, i * OBJECT, OBJECT, 100 + i);
    settle_once(s);
    CHECK(volume_discard(s->v, 2 * OBJECT, 3 * OBJECT) == 0); /* own and linked: punched */
    publish(s);
}

static fiber_fn void punched_after(struct story *s)
{
    struct volume_usage u;
    struct volume *v = open_it(s, "a", NULL);
    expect(v, 2 * OBJECT, 3 * OBJECT, 0);
    expect(v, OBJECT, OBJECT, 101);
    settle_once(s);
    must(volume_usage(s->vs, "a", NULL, &u, NULL), NULL);
    CHECK(u.own_objects == 5); /* nothing of it is left behind */
    volume_close(v);
}

static void die_and_take_over(const char *what, fiber_fn void (*before)(struct story *s),
                              fiber_fn void (*after)(struct story *s))
{
    struct story s = {0};
    begin(&s, what);
    on(&s, 0, before);
    gateway_crash(&s.h.gateways[0], true);
    on(&s, 1, after);
    gateway_start(&s.h.gateways[0]);
    end(&s);
}

/* --- W5 --- */

static fiber_fn void slow_write(void *arg)
{
    struct story *s = arg;
    put(s->v, 8192, 4096, 7);
    s->flag = true;
}

static fiber_fn void reader_step(struct story *s)
{
    create(s, "a");
    s->v = open_it(s, "a", NULL);
    put(s->v, 0, OBJECT, 1);
    fake_world_options(s->h.world)->delay_ns_max = 50 * NS_PER_MS;
    for (unsigned i = 0; i < 20; i++) {
        s->flag = false;
        CHECK(fiber_spawn(s->g->rt, "writer", slow_write, s) == 0);
        fiber_yield();
        expect(s->v, 8192, 4096, 7);
        CHECK(s->flag);
        put(s->v, 8192, 4096, 6);
    }
    backend_calm(&s->h);
    volume_close(s->v);
}

/* --- a clone against the deletion of its source --- */

static fiber_fn void clone_main(void *arg)
{
    struct story *s = arg;
    struct volume_error e = {0};
    must(volume_clone(s->vs, "a", "s", "c", &e), &e);
    s->flag = true;
}

static fiber_fn void pin_step(struct story *s)
{
    fill_and_freeze(s);
    fake_world_options(s->h.world)->delay_ns_max = 50 * NS_PER_MS;
    s->flag = false;
    CHECK(fiber_spawn(s->g->rt, "clone", clone_main, s) == 0);
    unsigned refused = 0;
    for (size_t count = 0; count == 0;) { /* until it is begun */
        struct volume_info *list;
        CHECK(volume_list(s->vs, "c", &list, &count) == 0);
        free(list);
    }
    while (!s->flag) {
        struct volume_error e = {0};
        int r = volume_delete_snapshot(s->vs, "a", "s", &e);
        CHECK(r == 0 || r == -EBUSY);
        refused += r == -EBUSY;
        if (r == 0)
            break;
    }
    while (!s->flag)
        fiber_sleep(s->g->rt, NS_PER_MS);
    CHECK(refused > 0);
    backend_calm(&s->h);
    struct volume *c = open_it(s, "c", NULL);
    expect(c, 3 * OBJECT, OBJECT, 103);
    volume_close(c);
    volume_close(s->v);
}

/* --- L6, and a deletion that was cut off --- */

static fiber_fn void abandon_step(struct story *s)
{
    fill_and_freeze(s);
    create(s, "b");
    put(s->v, 0, 4096, 1);
}

static fiber_fn void swept_step(struct story *s)
{
    struct volume_info *list;
    size_t count;
    fiber_sleep(s->g->rt, 70 * NS_PER_S); /* nobody opens it */
    CHECK(volume_list(s->vs, "a", &list, &count) == 0);
    for (size_t i = 0; i < count; i++)
        CHECK(!list[i].working || list[i].clean);
    free(list);
    struct volume *v = open_it(s, "a", NULL);
    expect(v, 0, 4096, 1);
    volume_close(v);
}

static int edit_mark(void *arg, struct registry_edit *e)
{
    e->record->snapshots[0].state = SNAPSHOT_DELETING;
    return 0;
}

static fiber_fn void mark_step(struct story *s)
{
    struct volume *v;
    struct volume_error e = {0};
    CHECK(registry_edit(service_cs(s->vs), "a", NULL, edit_mark, NULL) == 0);
    CHECK(volume_open(s->vs, "a", "s", 0, &v, &e) == -EBUSY);
}

static fiber_fn void mark_after(struct story *s)
{
    struct volume_info *list;
    size_t count;
    fiber_sleep(s->g->rt, 150 * NS_PER_S);
    CHECK(volume_list(s->vs, "a", &list, &count) == 0);
    CHECK(count == 1 && list[0].working);
    free(list);
    check_exact(s);
}

static void test_sweep(void)
{
    struct story s = {0};
    begin(&s, "L6: what a dead owner left is put in order by the leader");
    on(&s, 0, abandon_step);
    gateway_crash(&s.h.gateways[0], true);
    on(&s, 1, swept_step);
    on(&s, 1, mark_step);
    gateway_start(&s.h.gateways[0]); /* a new map: the leader looks around */
    on(&s, 1, mark_after);
    end(&s);
}

/* --- W3: a new term before the sequence is used up --- */

static fiber_fn void term_step(struct story *s)
{
    s->vs->delay_ns = s->vs->publish_ns = NS_PER_MS;
    fill_and_freeze(s);
    struct instance *in = instance_find(s->vs, "a", NULL);
    uint64_t term = in->owner.term.value;
    in->sequence = (1ULL << (VERSION_SEQUENCE_BITS - 1)) + 5;
    put(s->v, 0, 4096, 1);
    for (unsigned i = 0; i < 1000 && in->owner.term.value == term; i++)
        fiber_sleep(s->g->rt, 10 * NS_PER_MS);
    CHECK(in->owner.term.value == term + 1 && in->sequence < 100);
    put(s->v, 4096, 4096, 2);
    put(s->v, OBJECT, 4096, 3);
    expect(s->v, 0, 4096, 1);
    expect(s->v, 4096, 4096, 2);
    expect(s->v, 8192, 4096, 100);
    volume_close(s->v);
    check_exact(s);
}

/* --- a rollback that its node does not live to finish --- */

static fiber_fn void rollback_main(void *arg)
{
    struct story *s = arg;
    volume_rollback(s->vs, "a", "s", NULL);
}

static fiber_fn void rollback_step(struct story *s)
{
    fill_and_freeze(s);
    put(s->v, 0, 4096, 1);
    volume_close(s->v);
    fiber_sleep(s->g->rt, 200 * NS_PER_MS); /* its grace */
    CHECK(fiber_spawn(s->g->rt, "rollback", rollback_main, s) == 0);
}

/* Nobody wakes the leader after the takeover: who finishes the rollback sees to its trash. */
static void test_rollback_cut(void)
{
    for (uint64_t delay_ns = 0; delay_ns < 10 * NS_PER_MS; delay_ns += 500 * NS_PER_US) {
        struct story s = {0};
        begin(&s, "P1: a rollback is finished by another node, which reclaims the image before");
        on(&s, 0, rollback_step);
        sim_run(s.h.sim, sim_now(s.h.sim) + delay_ns);
        gateway_crash(&s.h.gateways[0], true);
        gateway_start(&s.h.gateways[0]);
        sim_run(s.h.sim, sim_now(s.h.sim) + NS_PER_S);
        on(&s, 1, just_open);
        end(&s);
    }
}

/* --- C4: an owner that may be fenced does not answer from its index --- */

static fiber_fn void hole_reader(void *arg)
{
    struct story *s = arg;
    expect(s->v, 5 * OBJECT, 4096, 0);
    s->flag = true;
}

static fiber_fn void hole_discarder(void *arg)
{
    struct story *s = arg;
    CHECK(volume_discard(s->v, 5 * OBJECT, OBJECT) == 0);
    s->flag = true;
}

static fiber_fn void unconfirmed_step(struct story *s)
{
    struct cs *cs = cluster_cs(s->g->cluster);
    fiber_main *const mains[] = {hole_reader, hole_discarder};
    create(s, "a");
    s->v = open_it(s, "a", NULL);
    put(s->v, 0, 4096, 1);
    for (unsigned i = 0; i < ARRAY_SIZE(mains); i++) {
        s->flag = false;
        cs->timeout_ns = NS_PER_MS; /* and it was never confirmed: clock times begin at a second */
        cs->confirmed_ns = 0;
        CHECK(fiber_spawn(s->g->rt, "hole", mains[i], s) == 0);
        fiber_sleep(s->g->rt, 3 * NS_PER_S);
        CHECK(!s->flag);
        cs->timeout_ns = 0;
        fiber_sleep(s->g->rt, NS_PER_S);
        CHECK(s->flag);
    }
    volume_close(s->v);
}

/* --- costs: the same at any size --- */

static fiber_fn uint64_t snapshot_changes(struct story *s, const char *tag)
{
    struct fake_stats before, after;
    settle_once(s);
    fake_world_stats(s->h.world, &before);
    must(volume_snapshot(s->vs, "a", tag, NULL, NULL), NULL);
    fake_world_stats(s->h.world, &after);
    CHECK(after.clones == before.clones && after.refs == before.refs);
    return after.changes - before.changes;
}

static fiber_fn void cost_step(struct story *s)
{
    create(s, "a");
    s->v = open_it(s, "a", NULL);
    put(s->v, 0, 4096, 1);
    uint64_t small = snapshot_changes(s, "small");
    for (unsigned i = 0; i < 64; i++)
        put(s->v, i * OBJECT, 4096, 2);
    uint64_t full = snapshot_changes(s, "full");
    CHECK(small == 1 && full == 1); /* one block write */
    volume_close(s->v);
    check_exact(s);
}

static void simple(const char *what, fiber_fn void (*step)(struct story *s))
{
    struct story s = {0};
    begin(&s, what);
    on(&s, 0, step);
    end(&s);
}

int main(void)
{
    log_level = getenv("VERBOSE") ? LOG_DEBUG : LOG_ERROR;
    die_and_take_over("V6: unlinked objects are found", unlinked_step, unlinked_after);
    die_and_take_over("V6: debts of an unlinked leaf are paid", owed_step, owed_after);
    die_and_take_over("V6: debts of a linked leaf are paid", owed_linked_step, just_open);
    die_and_take_over("V6, V4: punched objects are removed", punched_step, punched_after);
    simple("W5: a read waits for a write under way", reader_step);
    simple("C4: a hole is not answered without a confirmed session", unconfirmed_step);
    simple("P1: the source of a pending clone stays", pin_step);
    simple("W3: a term is renewed in time", term_step);
    simple("a snapshot costs one block write", cost_step);
    test_sweep();
    test_rollback_cut();
    return 0;
}
