/* SPDX-License-Identifier: Apache-2.0 */
/* Checks of D1 to D4, each on keys of its own. */
#include "contract.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"
#include "mirror.h"

#define PUT(k, r, v)                                                                               \
    {                                                                                              \
        .kind = CS_PUT, .key = (k), .revision = (r), .value = (v), .length = strlen(v)             \
    }
#define PUT_EPHEMERAL(k, v)                                                                        \
    {                                                                                              \
        .kind = CS_PUT, .key = (k), .revision = CS_REVISION_ANY, .value = (v),                     \
        .length = strlen(v), .ephemeral = true                                                     \
    }
#define DELETE(k, r)                                                                               \
    {                                                                                              \
        .kind = CS_DELETE, .key = (k), .revision = (r)                                             \
    }
#define CHECK_KEY(k, r)                                                                            \
    {                                                                                              \
        .kind = CS_CHECK, .key = (k), .revision = (r)                                              \
    }
#define TXN(cs, ret, ...)                                                                          \
    cs_txn((cs), (struct cs_op[]){__VA_ARGS__},                                                    \
           sizeof((struct cs_op[]){__VA_ARGS__}) / sizeof(struct cs_op), (ret))

static struct cs *open_one(struct contract *k)
{
    struct cs *cs = NULL;
    ASSERT(k->open(k, &cs) == 0 && cs);
    return cs;
}

static fiber_fn bool value_is(struct cs *cs, const char *key, const char *expected)
{
    struct enc e;
    enc_init(&e);
    int r = cs_get(cs, key, &e, NULL);
    bool same = r == 0 ? expected && e.length == strlen(expected) &&
                             (e.length == 0 || memcmp(e.data, expected, e.length) == 0)
                       : r == -ENOENT && !expected;
    enc_done(&e);
    return same;
}

static fiber_fn void check_compare_and_set(struct contract *k)
{
    struct cs *a = open_one(k), *b = open_one(k);
    uint64_t r1, r2, r3, r4, seen;
    struct enc e;
    ASSERT(a->session.value != 0 && a->session.value != b->session.value);
    ASSERT(TXN(a, &r1, PUT("cas/x", CS_REVISION_ABSENT, "1")) == 0);
    ASSERT(TXN(b, &r2, PUT("cas/x", CS_REVISION_ABSENT, "no")) == -ESTALE);
    ASSERT(value_is(b, "cas/x", "1"));
    ASSERT(TXN(b, &r2, PUT("cas/x", r1, "2")) == 0 && r2 > r1);
    ASSERT(TXN(a, &r3, PUT("cas/x", r1, "no")) == -ESTALE);
    ASSERT(TXN(a, &r3, DELETE("cas/x", r1)) == -ESTALE);
    enc_init(&e);
    ASSERT(cs_get(a, "cas/x", &e, &seen) == 0 && seen == r2);
    enc_done(&e);
    ASSERT(TXN(a, &r3, DELETE("cas/x", r2)) == 0 && r3 > r2);
    ASSERT(value_is(b, "cas/x", NULL));
    ASSERT(TXN(b, &r4, PUT("cas/x", CS_REVISION_ABSENT, "3")) == 0 && r4 > r3); /* D2 */
    ASSERT(TXN(b, NULL, PUT("cas/x", CS_REVISION_ANY, "4")) == 0);
    ASSERT(TXN(b, NULL, DELETE("cas/none", CS_REVISION_ANY)) == 0);
    ASSERT(TXN(b, NULL, DELETE("cas/none", r4)) == -ESTALE);
    ASSERT(value_is(a, "cas/x", "4"));
    cs_close(a);
    cs_close(b);
}

static fiber_fn void check_whole_or_nothing(struct contract *k)
{
    struct cs *a = open_one(k);
    uint64_t r1;
    ASSERT(TXN(a, &r1, PUT("all/x", CS_REVISION_ABSENT, "1"),
               PUT("all/y", CS_REVISION_ABSENT, "1")) == 0);
    ASSERT(TXN(a, NULL, PUT("all/x", r1, "2"), PUT("all/y", r1, "2"),
               PUT("all/z", CS_REVISION_ABSENT, "2"), CHECK_KEY("all/none", r1)) == -ESTALE);
    ASSERT(TXN(a, NULL, DELETE("all/x", r1), PUT("all/y", CS_REVISION_ABSENT, "3")) == -ESTALE);
    ASSERT(value_is(a, "all/x", "1") && value_is(a, "all/y", "1") && value_is(a, "all/z", NULL));
    ASSERT(TXN(a, NULL, CHECK_KEY("all/x", r1), CHECK_KEY("all/none", CS_REVISION_ABSENT),
               PUT("all/y", r1, "4"), DELETE("all/x", r1)) == 0);
    ASSERT(value_is(a, "all/x", NULL) && value_is(a, "all/y", "4"));
    cs_close(a);
}

/* --- several writers: two counters that every transaction increments together --- */

struct writers {
    struct cs *cs[3];
    struct wgroup running;
    unsigned next;
};

struct pair {
    uint64_t revisions[2], values[2];
    unsigned count;
};

static int read_pair(void *arg, const char *key, const void *value, size_t length,
                     uint64_t revision)
{
    struct pair *p = arg;
    ASSERT(p->count < 2 && length == 8);
    p->revisions[p->count] = revision;
    p->values[p->count++] = get_le64(value);
    return 0;
}

static fiber_fn int increment(struct cs *cs, uint64_t *ret)
{
    struct pair p = {0};
    ASSERT(cs_list(cs, "pair/", read_pair, &p) == 0);
    ASSERT(p.values[0] == p.values[1] && p.revisions[0] == p.revisions[1]); /* one state */
    uint8_t bytes[8];
    put_le64(bytes, p.values[0] + 1);
    struct cs_op ops[] = {
        {.kind = CS_PUT, .key = "pair/a", .revision = p.revisions[0], .value = bytes, .length = 8},
        {.kind = CS_PUT, .key = "pair/b", .revision = p.revisions[1], .value = bytes, .length = 8},
    };
    int r = cs_txn(cs, ops, 2, NULL);
    if (r == 0)
        *ret = p.values[0] + 1;
    return r;
}

#define INCREMENTS 20

static fiber_fn void writer_main(void *arg)
{
    struct writers *w = arg;
    struct cs *cs = w->cs[w->next++];
    uint64_t last = 0, value;
    for (unsigned done = 0; done < INCREMENTS;) {
        int r = increment(cs, &value);
        ASSERT(r == 0 || r == -ESTALE);
        if (r < 0)
            continue;
        ASSERT(value > last);
        last = value;
        done++;
    }
    wgroup_finish(&w->running);
}

static fiber_fn void check_writers(struct contract *k)
{
    struct writers w = {0};
    wgroup_init(&w.running);
    for (unsigned i = 0; i < ARRAY_SIZE(w.cs); i++)
        w.cs[i] = open_one(k);
    for (unsigned i = 0; i < ARRAY_SIZE(w.cs); i++) {
        wgroup_add(&w.running, 1);
        ASSERT(fiber_spawn(k->rt, "writer", writer_main, &w) == 0);
    }
    wgroup_wait(&w.running);
    struct pair p = {0};
    ASSERT(cs_list(w.cs[0], "pair/", read_pair, &p) == 0);
    ASSERT(p.values[0] == ARRAY_SIZE(w.cs) * INCREMENTS && p.values[1] == p.values[0]);
    for (unsigned i = 0; i < ARRAY_SIZE(w.cs); i++)
        cs_close(w.cs[i]);
}

/* --- sessions --- */

static fiber_fn void check_ephemeral(struct contract *k)
{
    struct cs *a = open_one(k), *b = open_one(k);
    struct mirror m;
    mirror_init(&m, k->rt, b, "eph/");
    ASSERT(TXN(a, NULL, PUT_EPHEMERAL("eph/1", "a"), PUT_EPHEMERAL("eph/2", "a"),
               PUT_EPHEMERAL("eph/3", "a"), PUT("eph/stays", CS_REVISION_ANY, "a")) == 0);
    ASSERT(TXN(b, NULL, PUT_EPHEMERAL("eph/2", "b")) == 0); /* now b's */
    ASSERT(TXN(a, NULL, PUT_EPHEMERAL("eph/4", "a")) == 0);
    ASSERT(TXN(a, NULL, PUT("eph/4", CS_REVISION_ANY, "kept")) == 0); /* now nobody's */
    mirror_wait_key(&m, "eph/4");
    ASSERT(value_is(b, "eph/1", "a"));
    cs_close(a);
    mirror_wait_gone(&m, "eph/1");
    mirror_wait_gone(&m, "eph/3");
    ASSERT(value_is(b, "eph/2", "b") && value_is(b, "eph/stays", "a") &&
           value_is(b, "eph/4", "kept"));
    ASSERT(value_is(b, "eph/1", NULL) && value_is(b, "eph/3", NULL));
    /* D3: in one commit. */
    ASSERT(mirror_find(&m, "eph/1")->revision == mirror_find(&m, "eph/3")->revision);
    mirror_check_order(&m);
    cs_close(b);
    a = open_one(k);
    ASSERT(value_is(a, "eph/2", NULL) && value_is(a, "eph/stays", "a"));
    cs_close(a);
    mirror_done(&m);
}

/* --- watches --- */

#define ROUNDS 60

/* A random transaction on watch/0 … watch/9 and on a key that is not watched. */
static fiber_fn uint64_t random_commit(struct cs *cs, struct rt *rt)
{
    char keys[4][32], value[24];
    struct cs_op ops[5];
    unsigned count = 1 + rt_random(rt) % 4;
    snprintf(value, sizeof(value), "%" PRIu64, rt_random(rt));
    for (unsigned i = 0; i < count; i++) {
        snprintf(keys[i], sizeof(keys[i]), "watch/%u", (unsigned)(i * 3 + rt_random(rt) % 3));
        ops[i] = (struct cs_op){.kind = rt_random(rt) % 3 ? CS_PUT : CS_DELETE,
                                .key = keys[i],
                                .revision = CS_REVISION_ANY,
                                .value = value,
                                .length = strlen(value)};
    }
    ops[count] = (struct cs_op)PUT("watch-not", CS_REVISION_ANY, value);
    uint64_t revision;
    ASSERT(cs_txn(cs, ops, count + 1, &revision) == 0);
    return revision;
}

/* What the mirror knows is what the store holds. */
static int compare_row(void *arg, const char *key, const void *value, size_t length,
                       uint64_t revision)
{
    const struct mirror_event *e = mirror_find(arg, key);
    ASSERT(e && !e->deleted && e->revision == revision && e->length == length);
    ASSERT(e->checksum == crc32c(0, value, length));
    return 0;
}

static fiber_fn void check_watch(struct contract *k)
{
    struct cs *a = open_one(k), *b = open_one(k), *c = open_one(k);
    struct mirror early, late, slow;
    mirror_init(&early, k->rt, a, "watch/");
    mirror_init(&slow, k->rt, b, "watch/");
    slow.slow_ns = NS_PER_MS / 4;
    for (unsigned i = 0; i < ROUNDS; i++)
        random_commit(i % 2 ? b : c, k->rt);
    mirror_init(&late, k->rt, c, "watch/");
    for (unsigned i = 0; i < ROUNDS; i++)
        random_commit(i % 2 ? a : c, k->rt);
    uint64_t last;
    ASSERT(TXN(b, &last, PUT("watch/last", CS_REVISION_ANY, "x")) == 0);
    mirror_wait_revision(&early, last);
    mirror_wait_revision(&late, last);
    mirror_wait_revision(&slow, last);
    mirror_check_order(&early);
    mirror_check_order(&late);
    mirror_check_order(&slow);
    ASSERT(cs_list(a, "watch/", compare_row, &early) == 0);
    ASSERT(cs_list(a, "watch/", compare_row, &late) == 0);
    /* Completeness: those who were there from the beginning were told the same, event for event. */
    size_t skip_early = early.end_at, skip_slow = slow.end_at;
    while (skip_early < early.count &&
           early.events[skip_early].revision <= slow.events[slow.end_at - 1].revision)
        skip_early++;
    while (skip_slow < slow.count &&
           slow.events[skip_slow].revision <= early.events[early.end_at - 1].revision)
        skip_slow++;
    ASSERT(early.count - skip_early == slow.count - skip_slow && early.count - skip_early > ROUNDS);
    for (size_t i = 0; i < early.count - skip_early; i++)
        ASSERT(memcmp(&early.events[skip_early + i], &slow.events[skip_slow + i],
                      sizeof(early.events[0])) == 0);
    cs_close(a);
    cs_close(b);
    cs_close(c);
    mirror_done(&early);
    mirror_done(&late);
    mirror_done(&slow);
}

/* Every single change of one key is told, though they come faster than anyone looks. */
static fiber_fn void check_every_commit(struct contract *k)
{
    struct cs *a = open_one(k), *b = open_one(k);
    struct mirror m;
    uint64_t revisions[100];
    mirror_init(&m, k->rt, b, "every/");
    mirror_wait_gone(&m, "every/key");
    for (unsigned i = 0; i < ARRAY_SIZE(revisions); i++)
        ASSERT(TXN(a, &revisions[i], PUT("every/key", CS_REVISION_ANY, "v")) == 0);
    mirror_wait_revision(&m, revisions[99]);
    ASSERT(m.count - m.end_at == ARRAY_SIZE(revisions));
    for (unsigned i = 0; i < ARRAY_SIZE(revisions); i++)
        ASSERT(m.events[m.end_at + i].revision == revisions[i]);
    cs_close(b);
    cs_close(a);
    mirror_done(&m);
}

/* --- sizes --- */

static fiber_fn void check_big_values(struct contract *k)
{
    struct cs *a = open_one(k), *b = open_one(k);
    struct mirror m;
    struct enc e;
    uint8_t *big = malloc(CS_VALUE_MAX + 1);
    ASSERT(big);
    for (size_t i = 0; i <= CS_VALUE_MAX; i++)
        big[i] = (uint8_t)(i * 31 + i / 4093);
    mirror_init(&m, k->rt, b, "big/");
    struct cs_op op = {.kind = CS_PUT,
                       .key = "big/x",
                       .value = big,
                       .length = CS_VALUE_MAX + 1,
                       .revision = CS_REVISION_ANY};
    ASSERT(cs_txn(a, &op, 1, NULL) == -EFBIG);
    op.length = CS_VALUE_MAX;
    ASSERT(cs_txn(a, &op, 1, NULL) == 0);
    mirror_wait_key(&m, "big/x");
    ASSERT(mirror_find(&m, "big/x")->checksum == crc32c(0, big, CS_VALUE_MAX));
    enc_init(&e);
    enc_u8(&e, 7); /* the value is appended */
    ASSERT(cs_get(b, "big/x", &e, NULL) == 0);
    ASSERT(e.length == CS_VALUE_MAX + 1 && e.data[0] == 7 &&
           memcmp(e.data + 1, big, CS_VALUE_MAX) == 0);
    enc_done(&e);
    /* An empty value is a value. */
    ASSERT(TXN(a, NULL, PUT("big/empty", CS_REVISION_ABSENT, "")) == 0);
    mirror_wait_key(&m, "big/empty");
    ASSERT(value_is(b, "big/empty", ""));
    cs_close(b);
    cs_close(a);
    mirror_done(&m);
    free(big);
}

struct ordered {
    char last[CS_KEY_SIZE];
    unsigned count, stop_at;
};

static int check_ordered(void *arg, const char *key, const void *value, size_t length,
                         uint64_t revision)
{
    struct ordered *o = arg;
    ASSERT(strncmp(key, "many/", 5) == 0 && strcmp(key, o->last) > 0);
    ASSERT(strlen(key) < sizeof(o->last));
    strcpy(o->last, key);
    return ++o->count == o->stop_at ? -EINVAL : 0;
}

static fiber_fn void check_many_keys(struct contract *k)
{
    struct cs *a = open_one(k);
    char keys[100][32];
    struct cs_op ops[100];
    for (unsigned base = 0; base < 1000; base += 100) {
        for (unsigned i = 0; i < 100; i++) {
            snprintf(keys[i], sizeof(keys[i]), "many/%u", (base + i) * 7919 % 1000);
            ops[i] = (struct cs_op)PUT(keys[i], CS_REVISION_ABSENT, keys[i]);
        }
        ASSERT(cs_txn(a, ops, 100, NULL) == 0);
    }
    ASSERT(TXN(a, NULL, PUT("many", CS_REVISION_ABSENT, "before"),
               PUT("many0", CS_REVISION_ABSENT, "behind"),
               PUT("many/~", CS_REVISION_ABSENT, "last")) == 0);
    struct ordered o = {0};
    ASSERT(cs_list(a, "many/", check_ordered, &o) == 0 && o.count == 1001 &&
           strcmp(o.last, "many/~") == 0);
    o = (struct ordered){.stop_at = 10};
    ASSERT(cs_list(a, "many/", check_ordered, &o) == -EINVAL && o.count == 10);
    o = (struct ordered){0};
    ASSERT(cs_list(a, "many/none/", check_ordered, &o) == 0 && o.count == 0);
    cs_close(a);
}

static fiber_fn void check_refusals(struct contract *k)
{
    struct cs *a = open_one(k);
    char long_key[CS_KEY_SIZE + 1];
    memset(long_key, 'k', CS_KEY_SIZE);
    long_key[CS_KEY_SIZE] = '\0';
    ASSERT(TXN(a, NULL, PUT(long_key, CS_REVISION_ANY, "x")) == -EINVAL);
    long_key[CS_KEY_SIZE - 1] = '\0';
    ASSERT(TXN(a, NULL, PUT(long_key, CS_REVISION_ANY, "x")) == 0);
    ASSERT(value_is(a, long_key, "x"));
    ASSERT(TXN(a, NULL, PUT("", CS_REVISION_ANY, "x")) == -EINVAL);
    ASSERT(TXN(a, NULL, PUT("a key", CS_REVISION_ANY, "x")) == -EINVAL);
    ASSERT(TXN(a, NULL, PUT("k\xc3\xa9y", CS_REVISION_ANY, "x")) == -EINVAL);
    ASSERT(TXN(a, NULL, PUT("twice", CS_REVISION_ANY, "x"), DELETE("twice", CS_REVISION_ANY)) ==
           -EINVAL);
    ASSERT(cs_txn(a, NULL, 0, NULL) == -EINVAL);
    ASSERT(value_is(a, "twice", NULL));
    /* Names are data, not patterns. */
    ASSERT(TXN(a, NULL, PUT("odd/%_'\";--*?[a]", CS_REVISION_ABSENT, "x")) == 0);
    ASSERT(value_is(a, "odd/%_'\";--*?[a]", "x") && value_is(a, "odd/ab'\";--*?[a]", NULL));
    cs_close(a);
}

fiber_fn void contract_run(struct contract *k)
{
    check_compare_and_set(k);
    check_whole_or_nothing(k);
    check_writers(k);
    check_ephemeral(k);
    check_watch(k);
    check_every_commit(k);
    check_big_values(k);
    check_many_keys(k);
    check_refusals(k);
}
