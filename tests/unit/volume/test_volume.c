/* SPDX-License-Identifier: Apache-2.0 */
/* Volumes over objects in memory, one story after the other; test_owner.c does the same at random,
 * with crashes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "harness.h"

#define ENTRIES 8u
#define MIB     (1u << 20)

/* What a scene works with. */
struct scene {
    struct harness h;
    struct volumes *vs;
    fiber_fn void (*fn)(struct scene *s);
    unsigned findings;
};

static void on_finding(void *arg, const char *finding)
{
    struct scene *s = arg;
    s->findings++;
    snprintf(s->h.finding, sizeof(s->h.finding), "%s", finding);
}

static fiber_fn void check_exact(struct scene *s)
{
    struct volume_check_report r = {0};
    for (unsigned i = 0; i < 100 && !r.at_rest; i++) {
        fiber_sleep(s->vs->rt, 20 * NS_PER_MS);
        assert_int_equal(volume_check(s->vs, on_finding, s, &r), 0);
    }
    if (r.findings)
        fprintf(stderr, "finding: %s\n", s->h.finding);
    assert_true(r.at_rest);
    assert_int_equal(r.findings, 0);
    assert_int_equal(r.objects_reachable, r.objects_stored);
}

static fiber_fn void create(struct scene *s, const char *name, uint64_t size)
{
    struct volume_error e = {0};
    struct volume_create_options o = {.name = name, .size = size};
    int r = volume_create(s->vs, &o, &e);
    if (r)
        fprintf(stderr, "create: %s\n", e.text);
    assert_int_equal(r, 0);
}

static fiber_fn struct volume *open_it(struct scene *s, const char *name, const char *tag)
{
    struct volume *v;
    struct volume_error e = {0};
    int r = volume_open(s->vs, name, tag, 0, &v, &e);
    if (r)
        fprintf(stderr, "open: %s\n", e.text);
    assert_int_equal(r, 0);
    return v;
}

static fiber_fn void put(struct volume *v, uint64_t offset, uint32_t length, uint64_t value)
{
    uint8_t *b = malloc(length);
    fill(b, length, value);
    assert_int_equal(volume_write(v, offset, length, b), 0);
    free(b);
}

static fiber_fn void expect(struct volume *v, uint64_t offset, uint32_t length, uint64_t value)
{
    uint8_t *b = malloc(length), *w = malloc(length);
    fill(w, length, value);
    memset(b, 0xee, length);
    assert_int_equal(volume_read(v, offset, length, b), 0);
    assert_memory_equal(b, w, length);
    free(b);
    free(w);
}

static fiber_fn void snapshot(struct scene *s, const char *name, const char *tag)
{
    uint64_t pause;
    assert_int_equal(volume_snapshot(s->vs, name, tag, &pause, NULL), 0);
}

static fiber_fn void delete_all(struct scene *s)
{
    struct volume_info *list;
    size_t count;
    assert_int_equal(volume_list(s->vs, NULL, &list, &count), 0);
    for (size_t i = 0; i < count; i++) {
        struct volume_error e = {0};
        int r = list[i].working ? volume_delete(s->vs, list[i].name, &e)
                                : volume_delete_snapshot(s->vs, list[i].name, list[i].tag, &e);
        if (r)
            fprintf(stderr, "delete %s@%s: %s\n", list[i].name, list[i].tag, e.text);
        assert_int_equal(r, 0);
    }
    free(list);
    for (unsigned i = 0; i < 200 && fake_world_object_count(s->h.world); i++)
        fiber_sleep(s->vs->rt, 20 * NS_PER_MS);
    assert_int_equal(fake_world_object_count(s->h.world), 0);
    check_exact(s);
}

static fiber_fn void scene_main(void *arg)
{
    struct scene *s = arg;
    s->vs = s->h.gateways[0].vs;
    s->fn(s);
    delete_all(s);
}

static void run(fiber_fn void (*fn)(struct scene *s))
{
    struct scene s = {.fn = fn};
    harness_start(&s.h, 7, ENTRIES, 1);
    gateway_do(&s.h.gateways[0], scene_main, &s);
    harness_stop(&s.h);
}

/* --- scenes --- */

static fiber_fn void rw_scene(struct scene *s)
{
    create(s, "a", 2 * MIB + 512);
    struct volume *v = open_it(s, "a", NULL);
    assert_int_equal(volume_size(v), 2 * MIB + 512);
    assert_int_equal(volume_object_size(v), 65536);
    expect(v, 0, 4096, 0);
    put(v, 0, 4096, 1);
    put(v, 65536 - 512, 1024, 2); /* two objects */
    put(v, 2 * MIB, 512, 3);      /* the ragged end */
    put(v, 200000 / 512 * 512, 300032, 4);
    expect(v, 0, 4096, 1);
    expect(v, 4096, 4096, 0);
    expect(v, 65536 - 512, 1024, 2);
    expect(v, 2 * MIB, 512, 3);
    expect(v, 200000 / 512 * 512, 300032, 4);
    uint8_t b[512];
    assert_int_equal(volume_read(v, 2 * MIB + 512, 1, b), -EINVAL);
    assert_int_equal(volume_write(v, UINT64_MAX - 3, 8, b), -EINVAL);
    assert_int_equal(volume_flush(v), 0);
    volume_close(v);
    check_exact(s);
    v = open_it(s, "a", "");
    expect(v, 65536 - 512, 1024, 2);
    put(v, 0, 512, 9); /* first write of a new term */
    put(v, 512, 512, 8);
    expect(v, 0, 512, 9);
    volume_close(v);
    check_exact(s);
}

static fiber_fn void snapshot_scene(struct scene *s)
{
    create(s, "a", 4 * MIB);
    struct volume *v = open_it(s, "a", NULL);
    for (unsigned i = 0; i < 20; i++)
        put(v, i * 65536, 65536, 100 + i);
    snapshot(s, "a", "one");
    snapshot(s, "a", "one"); /* the same request */
    put(v, 0, 4096, 5);
    put(v, 65536, 65536, 6);
    expect(v, 4096, 4096, 100);
    check_exact(s);
    snapshot(s, "a", "two");
    put(v, 8192, 4096, 7);
    struct volume *one = open_it(s, "a", "one"), *two = open_it(s, "a", "two");
    assert_true(volume_is_read_only(one));
    uint8_t b[512] = {0};
    assert_int_equal(volume_write(one, 0, 512, b), -EROFS);
    expect(one, 0, 65536, 100);
    expect(one, 65536, 65536, 101);
    expect(two, 0, 4096, 5);
    expect(two, 8192, 4096, 100);
    expect(two, 65536, 65536, 6);
    expect(v, 8192, 4096, 7);
    struct volume_error e = {0};
    assert_int_equal(volume_delete_snapshot(s->vs, "a", "one", &e), -EBUSY);
    volume_close(one);
    volume_close(two);
    check_exact(s);
    assert_int_equal(volume_delete_snapshot(s->vs, "a", "one", &e), 0);
    check_exact(s);
    expect(v, 0, 4096, 5);
    assert_int_equal(volume_delete(s->vs, "a", &e), -EBUSY);
    assert_int_equal(volume_rollback(s->vs, "a", "two", &e), -EBUSY);
    volume_close(v);
    assert_int_equal(volume_rollback(s->vs, "a", "two", &e), 0);
    v = open_it(s, "a", NULL);
    expect(v, 8192, 4096, 100);
    expect(v, 0, 4096, 5);
    volume_close(v);
    check_exact(s);
}

static fiber_fn void clone_scene(struct scene *s)
{
    struct volume_error e = {0};
    create(s, "a", 4 * MIB);
    struct volume *v = open_it(s, "a", NULL);
    for (unsigned i = 0; i < 12; i++)
        put(v, i * 65536, 65536, 100 + i);
    snapshot(s, "a", "s");
    assert_int_equal(volume_clone(s->vs, "a", "s", "c", &e), 0);
    assert_int_equal(volume_clone(s->vs, "a", "s", "c", &e), -EEXIST);
    assert_int_equal(volume_clone(s->vs, "a", "no", "d", &e), -ENOENT);
    struct volume *c = open_it(s, "c", NULL);
    put(c, 65536, 512, 1);
    put(v, 2 * 65536, 512, 2);
    expect(c, 65536 + 512, 512, 101);
    expect(c, 2 * 65536, 512, 102);
    expect(v, 65536, 512, 101);
    check_exact(s);
    volume_close(v);
    assert_int_equal(volume_delete(s->vs, "a", &e), 0);
    assert_int_equal(volume_delete(s->vs, "a", &e), -ENOENT);
    assert_int_equal(volume_snapshot(s->vs, "a", "x", NULL, &e), -ENOENT);
    expect(c, 3 * 65536, 65536, 103);
    snapshot(s, "c", "t");
    assert_int_equal(volume_delete_snapshot(s->vs, "a", "s", &e), 0);
    check_exact(s);
    expect(c, 3 * 65536, 65536, 103);
    create(s, "a", MIB); /* the name is free again */
    assert_int_equal(volume_clone(s->vs, "c", "t", "d", &e), 0);
    struct volume *d = open_it(s, "d", NULL);
    expect(d, 65536, 512, 1);
    expect(d, 3 * 65536, 65536, 103);
    struct volume_info *list;
    size_t count;
    assert_int_equal(volume_list(s->vs, "d", &list, &count), 0);
    assert_int_equal(count, 1);
    assert_string_equal(list[0].parent_name, "c");
    assert_string_equal(list[0].parent_tag, "t");
    assert_int_equal(list[0].owner_node, 0);
    free(list);
    volume_close(c);
    volume_close(d);
    check_exact(s);
}

static fiber_fn void discard_scene(struct scene *s)
{
    create(s, "a", 4 * MIB);
    struct volume *v = open_it(s, "a", NULL);
    for (unsigned i = 0; i < 24; i++)
        put(v, i * 65536, 65536, 100 + i);
    assert_int_equal(volume_discard(v, 0, 65536), 0); /* own, not linked yet */
    expect(v, 0, 65536, 0);
    put(v, 512, 512, 7); /* rewritten at once */
    check_exact(s);
    expect(v, 512, 512, 7);
    expect(v, 1024, 512, 0);
    assert_int_equal(volume_discard(v, 65536, 3 * 65536), 0); /* own, linked */
    assert_int_equal(volume_zero(v, 5 * 65536 + 512, 8192, 0), 0);
    expect(v, 5 * 65536, 512, 105);
    expect(v, 5 * 65536 + 512, 8192, 0);
    expect(v, 5 * 65536 + 8704, 512, 105);
    snapshot(s, "a", "s");
    assert_int_equal(volume_discard(v, 8 * 65536, 10 * 65536), 0); /* shared */
    assert_int_equal(volume_zero(v, 20 * 65536 + 4096, 4096, 0), 0);
    expect(v, 8 * 65536, 10 * 65536, 0);
    expect(v, 20 * 65536, 4096, 120);
    expect(v, 20 * 65536 + 4096, 4096, 0);
    put(v, 9 * 65536, 4096, 1);
    expect(v, 9 * 65536, 4096, 1);
    expect(v, 9 * 65536 + 4096, 4096, 0);
    check_exact(s);
    struct volume *o = open_it(s, "a", "s");
    expect(o, 9 * 65536, 65536, 109);
    expect(o, 2 * 65536, 65536, 0);
    volume_close(o);
    assert_int_equal(volume_zero(v, 0, 4 * MIB, 0), 0);
    expect(v, 0, 4 * MIB, 0);
    struct volume_run *runs;
    size_t count;
    assert_int_equal(volume_map(v, 0, 4 * MIB, 0, &runs, &count), 0);
    assert_int_equal(count, 1);
    assert_false(runs[0].mapped);
    assert_int_equal(runs[0].length, 4 * MIB);
    free(runs);
    put(v, 3 * 65536 + 8192, 4096, 3);
    assert_int_equal(volume_map(v, 4096, 4 * MIB - 4096, 0, &runs, &count), 0);
    assert_int_equal(count, 3);
    assert_int_equal(runs[1].offset, 3 * 65536 + 8192);
    assert_int_equal(runs[1].length, 4096);
    assert_true(runs[1].mapped);
    free(runs);
    assert_int_equal(volume_zero(v, 0, 65536, VOLUME_ZERO_NO_HOLE), 0);
    assert_int_equal(volume_map(v, 0, 65536, 0, &runs, &count), 0);
    assert_true(count == 1 && runs[0].mapped);
    free(runs);
    volume_close(v);
    check_exact(s);
}

static fiber_fn void resize_scene(struct scene *s)
{
    struct volume_error e = {0};
    create(s, "a", MIB);
    struct volume *v = open_it(s, "a", NULL);
    for (unsigned i = 0; i < 16; i++)
        put(v, i * 65536, 65536, 100 + i);
    snapshot(s, "a", "s");
    assert_int_equal(volume_resize(s->vs, "a", 100000, &e), 0);
    assert_int_equal(volume_size(v), 100000);
    uint8_t b[512];
    assert_int_equal(volume_read(v, 100000, 1, b), -EINVAL);
    put(v, 65536, 512, 1);
    assert_int_equal(volume_resize(s->vs, "a", 2 * MIB, &e), 0);
    expect(v, 0, 65536, 100);
    expect(v, 65536, 512, 1);
    expect(v, 100352, 2 * MIB - 100352, 0);
    assert_int_equal(volume_read(v, 100000, 352, b), 0);
    for (unsigned i = 0; i < 352; i++)
        assert_int_equal(b[i], 0);
    assert_int_equal(volume_resize(s->vs, "a", 5 * MIB, &e), -EFBIG);
    assert_int_equal(volume_resize(s->vs, "a", 0, &e), -EINVAL);
    volume_close(v);
    v = open_it(s, "a", "s");
    assert_int_equal(volume_size(v), MIB);
    expect(v, 15 * 65536, 65536, 115);
    volume_close(v);
    check_exact(s);
}

static fiber_fn void wrong_scene(struct scene *s)
{
    struct volume_error e = {0};
    struct volume *v;
    char longest[VOLUME_NAME_SIZE + 1];
    memset(longest, 'x', VOLUME_NAME_SIZE);
    longest[VOLUME_NAME_SIZE] = '\0';
    struct volume_create_options o = {.name = longest, .size = MIB};
    assert_int_equal(volume_create(s->vs, &o, &e), -ENAMETOOLONG);
    longest[VOLUME_NAME_SIZE - 1] = '\0';
    assert_int_equal(volume_create(s->vs, &o, &e), 0);
    const char *bad[] = {"", "a b", "a/b", "a@b", "a\nb", "\xff", "\xc3", "a\xe2\x80\x8b"};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        o.name = bad[i];
        assert_int_equal(volume_create(s->vs, &o, &e), -EINVAL);
        assert_true(strlen(e.text) > 20);
        assert_int_equal(volume_open(s->vs, bad[i], NULL, 0, &v, &e), -ENOENT);
    }
    o = (struct volume_create_options){.name = "größe-%~", .size = 0};
    assert_int_equal(volume_create(s->vs, &o, &e), -EINVAL);
    o.size = (uint64_t)ENTRIES * ENTRIES * 65536 + 1;
    assert_int_equal(volume_create(s->vs, &o, &e), -EFBIG);
    o.size = (uint64_t)ENTRIES * ENTRIES * 65536;
    assert_int_equal(volume_create(s->vs, &o, &e), 0);
    assert_int_equal(volume_create(s->vs, &o, &e), -EEXIST);
    o.pool = "nope";
    assert_int_equal(volume_create(s->vs, &o, &e), -ENOENT);
    o.pool = NULL;
    o.object_size = 100000;
    assert_int_equal(volume_create(s->vs, &o, &e), -EINVAL);
    assert_int_equal(volume_open(s->vs, "no", NULL, 0, &v, &e), -ENOENT);
    assert_non_null(strstr(e.text, "dog vdi list"));
    assert_int_equal(volume_open(s->vs, o.name, "no", 0, &v, &e), -ENOENT);
    assert_int_equal(volume_delete(s->vs, "no", &e), -ENOENT);
    assert_int_equal(volume_delete_snapshot(s->vs, o.name, "no", &e), -ENOENT);
    assert_int_equal(volume_rollback(s->vs, o.name, "no", &e), -ENOENT);
    assert_int_equal(volume_snapshot(s->vs, o.name, "a b", NULL, &e), -EINVAL);
    /* The other gateway is told where to go. */
    v = open_it(s, o.name, NULL);
    struct volume *w;
    assert_int_equal(volume_open(s->h.gateways[1].vs, o.name, NULL, 0, &w, &e), -EBUSY);
    assert_string_equal(e.redirect, "admin-of-a");
    volume_close(v);
    fiber_sleep(s->vs->rt, 100 * NS_PER_MS);
    assert_int_equal(volume_open(s->h.gateways[1].vs, o.name, NULL, 0, &w, &e), 0);
    volume_close(w);
    fiber_sleep(s->vs->rt, 100 * NS_PER_MS);
}

/* Several operations that want the volume for themselves, while another one runs. */
struct alone_call {
    struct scene *s;
    bool rollback;
    int result;
    unsigned *running;
};

static fiber_fn void alone_main(void *arg)
{
    struct alone_call *c = arg;
    c->result = c->rollback ? volume_rollback(c->s->vs, "a", "s", NULL)
                            : volume_snapshot(c->s->vs, "a", "t", NULL, NULL);
    --*c->running;
}

static fiber_fn void alone_scene(struct scene *s)
{
    create(s, "a", MIB);
    struct volume *v = open_it(s, "a", NULL);
    put(v, 0, 65536, 1);
    snapshot(s, "a", "s");
    put(v, 0, 65536, 2);
    volume_close(v);
    unsigned running = 3;
    struct alone_call calls[3] = {
        {s, false, 1, &running}, {s, true, 1, &running}, {s, true, 1, &running}};
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(fiber_spawn(s->vs->rt, "alone", alone_main, &calls[i]), 0);
    for (unsigned i = 0; i < 1000 && running; i++)
        fiber_sleep(s->vs->rt, 10 * NS_PER_MS);
    assert_int_equal(running, 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(calls[i].result, 0);
    v = open_it(s, "a", NULL);
    expect(v, 0, 65536, 1);
    volume_close(v);
    fiber_sleep(s->vs->rt, 100 * NS_PER_MS);
    check_exact(s);
}

/* The check must see what is wrong, and name it. */
static fiber_fn void damage_scene(struct scene *s)
{
    struct volume_check_report r;
    create(s, "a", 4 * MIB);
    struct volume *v = open_it(s, "a", NULL);
    for (unsigned i = 0; i < 12; i++)
        put(v, i * 65536, 65536, 100 + i);
    snapshot(s, "a", "s");
    put(v, 0, 65536, 1);
    volume_close(v);
    fiber_sleep(s->vs->rt, 100 * NS_PER_MS);
    check_exact(s);
    assert_true(fake_world_break_ledger(s->h.world));
    assert_int_equal(volume_check(s->vs, on_finding, s, &r), 0);
    assert_int_equal(r.findings, 1);
    assert_non_null(strstr(s->h.finding, "ledger"));
    assert_non_null(strstr(s->h.finding, "volume a"));
    struct oid orphan = {.vid = 12345, .index = 3, .group = 1};
    fake_world_add_orphan(s->h.world, &orphan);
    assert_int_equal(volume_check(s->vs, on_finding, s, &r), 0);
    assert_int_equal(r.findings, 2);
    assert_true(fake_world_lose_object(s->h.world, 0));
    assert_true(fake_world_lose_object(s->h.world, 1));
    assert_int_equal(volume_check(s->vs, on_finding, s, &r), 0);
    assert_true(r.findings >= 2);
}

static void test_rw(void **state)
{
    run(rw_scene);
}

static void test_snapshot(void **state)
{
    run(snapshot_scene);
}

static void test_clone(void **state)
{
    run(clone_scene);
}

static void test_discard(void **state)
{
    run(discard_scene);
}

static void test_resize(void **state)
{
    run(resize_scene);
}

static void test_wrong(void **state)
{
    run(wrong_scene);
}

static void test_alone(void **state)
{
    run(alone_scene);
}

static fiber_fn void damage_main(void *arg)
{
    struct scene *s = arg;
    s->vs = s->h.gateways[0].vs;
    damage_scene(s);
}

static void test_damage(void **state)
{
    struct scene s = {0};
    harness_start(&s.h, 7, ENTRIES, 1);
    gateway_do(&s.h.gateways[0], damage_main, &s);
    harness_stop(&s.h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rw),     cmocka_unit_test(test_snapshot),
        cmocka_unit_test(test_clone),  cmocka_unit_test(test_discard),
        cmocka_unit_test(test_resize), cmocka_unit_test(test_wrong),
        cmocka_unit_test(test_alone),  cmocka_unit_test(test_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
