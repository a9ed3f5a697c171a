/* SPDX-License-Identifier: Apache-2.0 */
/* Messages of volume/ between nodes: carried whole, at most once per connection, never in the way
 * of anything else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "trio.h"

struct echo {
    struct objects *o;
    unsigned calls;
    bool held; /* answers wait */
    struct waitq wait;
};

/* Answers the body backwards, and the payload with every byte one higher. */
static fiber_fn int echo(void *arg, const struct object_forward *m,
                         struct object_forward_answer *ret)
{
    struct echo *e = arg;
    e->calls++;
    CHECK(m->session.value != 0);
    while (e->held)
        waitq_wait(&e->wait);
    const uint8_t *body = m->body, *payload = m->payload;
    for (uint32_t i = m->body_length; i > 0; i--)
        enc_u8(&ret->body, body[i - 1]);
    if (m->payload_length == 0)
        return -EBUSY;
    if (!object_forward_buffer(e->o, ret, m->payload_length))
        return -EAGAIN;
    for (uint32_t i = 0; i < m->payload_length; i++)
        ((uint8_t *)ret->payload)[i] = (uint8_t)(payload[i] + 1);
    ret->payload_length = m->payload_length;
    return 0;
}

static fiber_fn int send(struct trio *t, const char *body, void *payload, uint32_t length)
{
    struct object_forward_answer a = {.payload = payload, .payload_size = length};
    const struct object_forward m = {.node = 1,
                                     .body = body,
                                     .body_length = (uint32_t)strlen(body),
                                     .payload = payload,
                                     .payload_length = length};
    enc_init(&a.body);
    int r = object_forward(trio_objects(t, 0), &m, &a);
    if (r == 0 || r == -EBUSY) {
        CHECK(a.body.length == strlen(body) && a.body.data[0] == body[strlen(body) - 1]);
        CHECK(a.payload_length == length);
    } else {
        CHECK(a.body.length == 0);
    }
    enc_done(&a.body);
    return r;
}

static fiber_fn void scene_echo(struct trio *t)
{
    struct echo e = {.o = trio_objects(t, 1)};
    waitq_init(&e.wait);
    trio_settle_map(t);
    CHECK(send(t, "abc", NULL, 0) == -ESTALE); /* nobody serves them */
    objects_set_forward(e.o, echo, &e);
    CHECK(send(t, "abc", NULL, 0) == -EBUSY); /* a result of its own */
    static const uint32_t lengths[] = {1, 4096, 100000, OBJECT_FORWARD_PAYLOAD_MAX};
    for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
        uint8_t *p = malloc(lengths[i]);
        memset(p, 7, lengths[i]);
        CHECK(send(t, "hello", p, lengths[i]) == 0);
        for (uint32_t k = 0; k < lengths[i]; k++)
            CHECK(p[k] == 8);
        free(p);
    }
    objects_set_forward(e.o, NULL, NULL);
    CHECK(send(t, "abc", NULL, 0) == -ESTALE);
    CHECK(e.calls == 1 + ARRAY_SIZE(lengths));
}

struct sender {
    struct trio *t;
    unsigned *running;
    int result;
};

static fiber_fn void sender_main(void *arg)
{
    struct sender *s = arg;
    uint8_t *p = calloc(1, 1u << 20);
    s->result = send(s->t, "x", p, 1u << 20);
    free(p);
    --*s->running;
}

/* More than there is room for, all held up: changes pass them, a broken connection fails them, and
 * what was begun is never begun again. */
static fiber_fn void scene_full(struct trio *t)
{
    struct echo e = {.o = trio_objects(t, 1), .held = true};
    struct sender s[40];
    unsigned running = ARRAY_SIZE(s), refused = 0, broken = 0;
    waitq_init(&e.wait);
    trio_settle_map(t);
    objects_set_forward(e.o, echo, &e);
    for (unsigned i = 0; i < ARRAY_SIZE(s); i++) {
        s[i] = (struct sender){.t = t, .running = &running};
        CHECK(fiber_spawn(t->rt, "sender", sender_main, &s[i]) == 0);
    }
    while (running > FORWARD_BYTES_MAX >> 20 || e.calls < FORWARD_BYTES_MAX >> 20)
        fiber_sleep(t->rt, NS_PER_MS);
    struct object_owner owner = trio_owner(1, 9);
    struct oid oid = trio_oid(t, 9, 0, 1);
    uint64_t first = version_make(owner.term, 1).value;
    CHECK(trio_write(trio_objects(t, 0), &owner, oid, 0, first, 0, 4096, 5) == 0);
    link_drop(&node_get(trio_objects(t, 0), 1)->link);
    while (running > 0)
        fiber_sleep(t->rt, NS_PER_MS);
    for (unsigned i = 0; i < ARRAY_SIZE(s); i++) {
        refused += s[i].result == -EAGAIN;
        broken += s[i].result == -ECONNRESET;
    }
    CHECK(refused == ARRAY_SIZE(s) - (FORWARD_BYTES_MAX >> 20) &&
          refused + broken == ARRAY_SIZE(s));
    CHECK(trio_write(trio_objects(t, 0), &owner, oid, first, first + 1, 0, 4096, 6) == 0);
    CHECK(e.calls == FORWARD_BYTES_MAX >> 20);
    e.held = false;
    waitq_wake_all(&e.wait);
    uint8_t p[512] = {0};
    while (send(t, "y", p, sizeof(p)) != 0) /* the room comes back */
        fiber_sleep(t->rt, NS_PER_MS);
    CHECK(e.calls >= (FORWARD_BYTES_MAX >> 20) + 1);
    objects_set_forward(e.o, NULL, NULL);
}

static void test_echo(void **state)
{
    trio_run(scene_echo, 3, 3);
}

static void test_full(void **state)
{
    trio_run(scene_full, 3, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_echo),
        cmocka_unit_test(test_full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
