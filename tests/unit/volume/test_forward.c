/* SPDX-License-Identifier: Apache-2.0 */
/* Forwarding (L4) in stories: several gateways use one volume, while answers get lost and gateways
 * die. test_forward_random.c does it at random. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "backend.h"
#include "volume/handle.h"

#define ENTRIES 8u
#define MIB     (1u << 20)
#define SIZE    (4 * MIB)

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                             \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* --- words of the stories --- */

struct scene {
    struct harness h;
    struct gateway *g; /* where the present step runs */
    fiber_fn void (*step)(struct scene *s);
    struct volume *v[GATEWAY_COUNT];
    bool flag, done;
    unsigned count;
};

static fiber_fn void step_main(void *arg)
{
    struct scene *s = arg;
    s->step(s);
}

static void on(struct scene *s, unsigned number, fiber_fn void (*step)(struct scene *s))
{
    s->g = &s->h.gateways[number];
    s->step = step;
    gateway_do(s->g, step_main, s);
}

/* A fiber that goes on by itself. */
static void begin_on(struct scene *s, unsigned number, fiber_main *fn)
{
    CHECK(fiber_spawn(s->h.gateways[number].rt, "story", fn, s) == 0);
}

static void pass(struct scene *s, uint64_t ns)
{
    sim_run(s->h.sim, sim_now(s->h.sim) + ns);
}

static void wait_for(struct scene *s, const bool *flag)
{
    for (unsigned i = 0; i < 120000 && !*flag; i++)
        pass(s, NS_PER_MS);
    CHECK(*flag);
}

static fiber_fn void create(struct gateway *g)
{
    struct volume_error e = {0};
    struct volume_create_options o = {.name = "a", .size = SIZE};
    CHECK(volume_create(g->vs, &o, &e) == 0);
}

static fiber_fn struct volume *open_at(struct gateway *g)
{
    struct volume_error e = {0};
    struct volume *v = NULL;
    int r = volume_open(g->vs, "a", NULL, VOLUME_FORWARD, &v, &e);
    if (r)
        fprintf(stderr, "open at %u: %s (%s)\n", g->number, err_text(r), e.text);
    CHECK(r == 0 && volume_size(v) == SIZE && volume_object_size(v) == 65536);
    CHECK(strcmp(volume_name(v), "a") == 0);
    return v;
}

static fiber_fn void put(struct volume *v, uint64_t offset, uint32_t length, uint64_t value)
{
    uint8_t *b = malloc(length);
    fill(b, length, value);
    CHECK(volume_write(v, offset, length, b) == 0);
    free(b);
}

static fiber_fn bool is(struct volume *v, uint64_t offset, uint32_t length, uint64_t value)
{
    uint8_t *b = malloc(length), *w = malloc(length);
    fill(w, length, value);
    CHECK(volume_read(v, offset, length, b) == 0);
    bool same = memcmp(b, w, length) == 0;
    free(b);
    free(w);
    return same;
}

static fiber_fn int owner(struct gateway *g)
{
    struct volume_info *list;
    size_t count;
    CHECK(volume_list(g->vs, "a", &list, &count) == 0 && count >= 1);
    int node = list[count - 1].clean ? -1 : list[count - 1].owner_node;
    free(list);
    return node;
}

static void on_finding(void *arg, const char *finding)
{
    fprintf(stderr, "finding: %s\n", finding);
}

static fiber_fn uint64_t objects_left(struct scene *s)
{
    struct volume_check_report r = {0};
    CHECK(volume_check(s->g->vs, on_finding, s, &r) == 0);
    return r.objects_stored;
}

static fiber_fn void delete_all(struct scene *s)
{
    struct volume_check_report r = {0};
    struct volume_error e = {0};
    for (unsigned i = 0; i < 500 && !r.at_rest; i++) {
        fiber_sleep(s->g->rt, 20 * NS_PER_MS);
        CHECK(volume_check(s->g->vs, on_finding, s, &r) == 0);
    }
    CHECK(r.at_rest && r.findings == 0);
    int k = -EBUSY;
    for (unsigned i = 0; i < 20 && k == -EBUSY; i++) { /* its last owner's grace period */
        fiber_sleep(s->g->rt, 10 * NS_PER_MS);
        k = volume_delete(s->g->vs, "a", &e);
    }
    if (k)
        fprintf(stderr, "delete: %s\n", e.text);
    CHECK(k == 0);
    for (unsigned i = 0; i < 500 && objects_left(s); i++)
        fiber_sleep(s->g->rt, 20 * NS_PER_MS);
    CHECK(objects_left(s) == 0);
}

static void begin(struct scene *s, const char *what)
{
    printf("%s\n", what);
    fflush(stdout);
    *s = (struct scene){0};
    harness_start(&s->h, 11, ENTRIES, 1);
}

static void end(struct scene *s)
{
    on(s, 1, delete_all);
    harness_stop(&s->h);
}

static fiber_fn void create_step(struct scene *s)
{
    create(s->g);
}

static fiber_fn void open_step(struct scene *s)
{
    s->v[s->g->number] = open_at(s->g);
}

static fiber_fn void close_step(struct scene *s)
{
    volume_close(s->v[s->g->number]);
    s->v[s->g->number] = NULL;
}

/* --- stories --- */

static fiber_fn void both_step(struct scene *s)
{
    struct volume *a = s->v[0], *b = s->v[1];
    struct volume_error e = {0};
    uint8_t byte;
    CHECK(!b->in && a->in);
    put(a, 0, 4096, 1);
    CHECK(is(b, 0, 4096, 1));
    put(b, 4096, 512, 2);
    CHECK(is(a, 4096, 512, 2) && is(a, 0, 4096, 1));
    put(b, 65536 - 512, 3 * MIB + 1024, 3); /* several messages, ragged */
    CHECK(is(a, 65536 - 512, 3 * MIB + 1024, 3) && is(b, 65536 - 512, 3 * MIB + 1024, 3));
    CHECK(is(a, 4096, 512, 2));
    CHECK(volume_zero(b, 2 * MIB + 512, 8192, 0) == 0);
    CHECK(is(a, 2 * MIB + 512, 8192, 0) && is(a, 2 * MIB, 512, 3));
    CHECK(volume_zero(b, 2 * MIB + 65536, 4096, VOLUME_ZERO_NO_HOLE) == 0);
    CHECK(is(a, 2 * MIB + 65536, 4096, 0));
    CHECK(volume_discard(b, MIB, MIB) == 0);
    CHECK(is(a, MIB, MIB, 0) && is(a, 2 * MIB, 512, 3));
    CHECK(volume_flush(b) == 0 && volume_flush(a) == 0);
    CHECK(volume_read(b, SIZE, 1, &byte) == -EINVAL);
    CHECK(volume_write(b, SIZE, 1, &byte) == -EINVAL);
    /* What changes the volume as a whole is for its owner. */
    CHECK(volume_snapshot(s->h.gateways[1].vs, "a", "s", NULL, &e) == -EBUSY);
    CHECK(strcmp(e.redirect, "admin-of-a") == 0);
    CHECK(volume_open(s->h.gateways[1].vs, "a", NULL, 0, &s->v[2], &e) == -EBUSY);
    CHECK(strcmp(e.redirect, "admin-of-a") == 0);
    CHECK(volume_snapshot(s->h.gateways[0].vs, "a", "s", NULL, &e) == 0);
    put(b, 0, 512, 9);
    CHECK(is(a, 0, 512, 9));
    CHECK(volume_delete_snapshot(s->h.gateways[0].vs, "a", "s", &e) == 0);
}

static fiber_fn void map_step(struct scene *s)
{
    for (unsigned limit = 0; limit < 4; limit++) {
        struct volume_run *x, *y;
        size_t n, m;
        CHECK(volume_map(s->v[0], 4096, SIZE - 4096, limit, &x, &n) == 0);
        CHECK(volume_map(s->v[1], 4096, SIZE - 4096, limit, &y, &m) == 0);
        CHECK(n == m && n > 0);
        for (size_t i = 0; i < n; i++)
            CHECK(x[i].offset == y[i].offset && x[i].length == y[i].length &&
                  x[i].mapped == y[i].mapped);
        free(x);
        free(y);
    }
}

static fiber_fn void kept_step(struct scene *s)
{
    struct volume_error e = {0};
    CHECK(owner(s->g) == 0);
    CHECK(volume_delete(s->h.gateways[0].vs, "a", &e) == -EBUSY); /* in use, from afar */
}

static fiber_fn void busy_step(struct scene *s)
{
    /* The owner has no client of its own for long: the first answer offers the volume. */
    put(s->v[1], 0, 512, 10);
    for (unsigned i = 0; i < 100 && !s->v[1]->in; i++) {
        fiber_sleep(s->g->rt, 10 * NS_PER_MS);
        put(s->v[1], 0, 512, 11 + i);
        CHECK(is(s->v[1], 0, 512, 11 + i) && is(s->v[1], 65536, 512, 3));
    }
    CHECK(s->v[1]->in && owner(s->g) == 1);
    CHECK(!instance_find(s->h.gateways[0].vs, "a", NULL));
}

static fiber_fn void back_step(struct scene *s)
{
    CHECK(!s->v[0]->in);
    put(s->v[0], 512, 512, 77);
    CHECK(is(s->v[1], 512, 512, 77) && owner(s->g) == 1);
}

static void story_both(void)
{
    struct scene s;
    begin(&s, "two gateways use one volume, and it follows the busy one");
    on(&s, 0, create_step);
    on(&s, 0, open_step);
    on(&s, 1, open_step);
    on(&s, 0, both_step);
    on(&s, 1, map_step);
    on(&s, 0, close_step);
    pass(&s, 5 * NS_PER_S);
    on(&s, 1, kept_step);
    on(&s, 1, busy_step);
    on(&s, 0, open_step);
    on(&s, 0, back_step);
    pass(&s, 3 * NS_PER_S);
    on(&s, 0, back_step); /* no ping-pong while both have clients */
    on(&s, 1, close_step);
    on(&s, 0, close_step);
    end(&s);
}

static fiber_fn void at_once_step(struct scene *s)
{
    CHECK(s->v[1]->in); /* nobody used it: it is closed there and opened here */
    CHECK(owner(s->g) == 1);
}

static void story_idle_owner(void)
{
    struct scene s;
    begin(&s, "an owner whose clients are gone gives the volume away at once");
    on(&s, 0, create_step);
    s.h.gateways[0].vs->grace_ns = 60 * NS_PER_S;
    on(&s, 0, open_step);
    on(&s, 0, close_step);
    on(&s, 1, open_step);
    on(&s, 1, at_once_step);
    on(&s, 1, close_step);
    end(&s);
}

/* Two nodes forward: the owner keeps the volume. */
static fiber_fn void three_step(struct scene *s)
{
    for (unsigned i = 0; i < 200; i++) {
        put(s->v[1], 0, 512, i + 1);
        CHECK(is(s->v[2], 0, 512, i + 1));
        put(s->v[2], 0, 512, i + 1000);
        CHECK(is(s->v[1], 0, 512, i + 1000));
        fiber_sleep(s->g->rt, 20 * NS_PER_MS);
    }
    CHECK(owner(s->g) == 0);
}

static void story_three(void)
{
    struct scene s;
    begin(&s, "two gateways forward to a third one without clients");
    on(&s, 0, create_step);
    for (unsigned i = 0; i < 3; i++)
        on(&s, i, open_step);
    on(&s, 0, close_step);
    on(&s, 1, three_step);
    on(&s, 2, close_step);
    on(&s, 1, close_step);
    end(&s);
}

static fiber_fn void write_on_main(void *arg)
{
    struct scene *s = arg;
    while (!s->flag) {
        put(s->v[1], s->count % 1024 * 512, 512, s->count + 1);
        s->count++;
    }
    s->done = true;
}

static fiber_fn void look_step(struct scene *s)
{
    for (unsigned k = 0; k < 1024 && k < s->count; k++)
        CHECK(is(s->v[1], k * 512, 512, (s->count - 1 - k) / 1024 * 1024 + k + 1));
    CHECK(s->v[1]->in && owner(s->g) == 1);
    CHECK(is(s->v[2], 0, 512, (s->count - 1) / 1024 * 1024 + 1) && !s->v[2]->in);
}

static void story_death(void)
{
    struct scene s;
    begin(&s, "the owner dies: the forwarder stalls, takes over and goes on");
    on(&s, 0, create_step);
    for (unsigned i = 0; i < 3; i++)
        on(&s, i, open_step);
    begin_on(&s, 1, write_on_main);
    pass(&s, 500 * NS_PER_MS);
    gateway_crash(&s.h.gateways[0], false);
    pass(&s, 100 * NS_PER_MS);
    unsigned stalled = s.count;
    CHECK(stalled > 10);
    pass(&s, 5 * NS_PER_S);
    CHECK(s.count == stalled); /* its session still stands: it may be alive */
    sim_cs_end_dead(s.h.cs);
    pass(&s, 5 * NS_PER_S);
    CHECK(s.count > stalled + 10);
    s.flag = true;
    wait_for(&s, &s.done);
    /* Idle all the while, the third one has found the new owner by itself; here it may be either.
     */
    if (s.v[2]->in) {
        struct volume *v = s.v[1];
        CHECK(!v->in);
    } else {
        on(&s, 1, look_step);
    }
    on(&s, 1, close_step);
    on(&s, 2, close_step);
    gateway_start(&s.h.gateways[0]);
    end(&s);
}

/* A write is carried out, its answer is lost, it is seen and overwritten by another, and then sent
 * again. */
static fiber_fn void lost_main(void *arg)
{
    struct scene *s = arg;
    fake_world_options(s->h.world)->lose_answers = 1;
    put(s->v[1], 0, 512, 1);
    s->done = true;
}

static fiber_fn void overwrite_step(struct scene *s)
{
    while (!is(s->v[0], 0, 512, 1))
        fiber_sleep(s->g->rt, NS_PER_MS);
    CHECK(!s->done);
    put(s->v[0], 0, 512, 2);
}

static fiber_fn void newer_step(struct scene *s)
{
    CHECK(is(s->v[0], 0, 512, 2) && is(s->v[1], 0, 512, 2));
}

static fiber_fn void lost_zero_main(void *arg)
{
    struct scene *s = arg;
    fake_world_options(s->h.world)->lose_answers = 1;
    CHECK((s->flag ? volume_zero(s->v[1], 0, 512, 0) : volume_discard(s->v[1], 0, 4096)) == 0);
    s->done = true;
}

static fiber_fn void overwrite_zero_step(struct scene *s)
{
    while (!is(s->v[0], 0, 512, 0))
        fiber_sleep(s->g->rt, NS_PER_MS);
    CHECK(!s->done);
    put(s->v[0], 0, 4096, 2);
}

static void story_lost_answer(void)
{
    struct scene s;
    begin(&s, "a change whose answer is lost is not carried out twice");
    on(&s, 0, create_step);
    on(&s, 0, open_step);
    on(&s, 1, open_step);
    begin_on(&s, 1, lost_main);
    on(&s, 0, overwrite_step);
    wait_for(&s, &s.done);
    on(&s, 0, newer_step);
    for (unsigned i = 0; i < 2; i++) {
        s.flag = i;
        s.done = false;
        begin_on(&s, 1, lost_zero_main);
        on(&s, 0, overwrite_zero_step);
        wait_for(&s, &s.done);
        on(&s, 0, newer_step);
    }
    on(&s, 1, close_step);
    on(&s, 0, close_step);
    end(&s);
}

/* The forwarding node dies: the owner does not keep the volume open for it. */
static fiber_fn void released_step(struct scene *s)
{
    CHECK(!instance_find(s->g->vs, "a", NULL) && owner(s->g) == -1);
}

static void story_dead_guest(void)
{
    struct scene s;
    begin(&s, "the forwarding node dies: the owner closes");
    on(&s, 0, create_step);
    on(&s, 0, open_step);
    on(&s, 2, open_step);
    on(&s, 0, close_step);
    pass(&s, NS_PER_S);
    CHECK(instance_find(s.h.gateways[0].vs, "a", NULL) != NULL);
    gateway_crash(&s.h.gateways[2], true);
    pass(&s, NS_PER_S);
    on(&s, 0, released_step);
    gateway_start(&s.h.gateways[2]);
    end(&s);
}

static fiber_fn void moved_step(struct scene *s)
{
    put(s->v[1], 0, 512, 5);
    CHECK(s->v[1]->in && owner(s->g) == 1);
}

static void story_orderly_stop(void)
{
    struct scene s;
    begin(&s, "the owner is shut down in order: the volume moves");
    on(&s, 0, create_step);
    on(&s, 0, open_step);
    on(&s, 1, open_step);
    begin_on(&s, 1, write_on_main);
    pass(&s, 100 * NS_PER_MS);
    on(&s, 0, close_step);
    gateway_stop(&s.h.gateways[0]);
    unsigned before = s.count;
    pass(&s, NS_PER_S);
    CHECK(s.count > before);
    s.flag = true;
    wait_for(&s, &s.done);
    on(&s, 1, moved_step);
    gateway_start(&s.h.gateways[0]);
    on(&s, 1, close_step);
    end(&s);
}

/* FS3: a long request of a node that died is still running at the owner when that node is back. */
static fiber_fn void long_zero_main(void *arg)
{
    struct scene *s = arg;
    volume_zero(s->v[2], 0, SIZE, VOLUME_ZERO_NO_HOLE);
}

static fiber_fn void after_zero_step(struct scene *s)
{
    s->v[2] = open_at(s->g);
    CHECK(!s->v[2]->in);
    put(s->v[2], SIZE - 65536, 512, 7);
    backend_calm(&s->h);
    fiber_sleep(s->g->rt, 10 * NS_PER_S);
    CHECK(is(s->v[2], SIZE - 65536, 512, 7));
}

static void story_dead_request(void)
{
    struct scene s;
    begin(&s, "nothing that a dead node asked is done on top of what it asks when it is back");
    on(&s, 0, create_step);
    on(&s, 0, open_step);
    on(&s, 2, open_step);
    fake_world_options(s.h.world)->delay_ns_max = 500 * NS_PER_MS;
    begin_on(&s, 2, long_zero_main);
    pass(&s, 700 * NS_PER_MS);
    gateway_crash(&s.h.gateways[2], true);
    gateway_start(&s.h.gateways[2]);
    on(&s, 2, after_zero_step);
    on(&s, 2, close_step);
    on(&s, 0, close_step);
    end(&s);
}

/* FW4: the volume moves while an answer to one handle is lost, and another handle goes on. */
static fiber_fn void second_handle_step(struct scene *s)
{
    struct volume *second = open_at(s->g);
    fiber_sleep(s->g->rt, 20 * NS_PER_MS);
    CHECK(!s->done && !second->in);
    for (unsigned i = 0; i < 50; i++) {
        CHECK(is(second, 4096, 512, 0)); /* gets the offer */
        fiber_sleep(s->g->rt, NS_PER_MS);
    }
    put(second, 0, 512, 2);
    while (!s->done || !second->in || !s->v[1]->in)
        fiber_sleep(s->g->rt, NS_PER_MS);
    CHECK(is(second, 0, 512, 2) && owner(s->g) == 1);
    volume_close(second);
}

static void story_move_and_lost_answer(void)
{
    struct scene s;
    begin(&s, "the volume moves only when every change is answered");
    on(&s, 0, create_step);
    on(&s, 0, open_step);
    on(&s, 1, open_step);
    on(&s, 0, close_step);
    pass(&s, 2 * NS_PER_S);
    begin_on(&s, 1, lost_main);
    on(&s, 1, second_handle_step);
    on(&s, 1, close_step);
    end(&s);
}

int main(void)
{
    log_level = getenv("VERBOSE") ? LOG_DEBUG : LOG_ERROR;
    story_both();
    story_idle_owner();
    story_three();
    story_death();
    story_lost_answer();
    story_dead_guest();
    story_orderly_stop();
    story_dead_request();
    story_move_and_lost_answer();
    return 0;
}
