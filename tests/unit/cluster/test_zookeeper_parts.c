/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The zookeeper driver's pure parts: specs, bytes, and what the log adds up to while entries are
 * removed from it and readers are on their way through it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/hash.h"
#include "cluster/drivers/zookeeper_spec.h"
#include "cluster/drivers/zookeeper_state.h"

/* --- specs --- */

static void expect_spec(const char *text, const char *servers, const char *root, unsigned timeout)
{
    struct zk_spec s;
    const char *why = "";
    if (zk_spec_parse(text, &s, &why) < 0)
        fail_msg("%s: %s", text, why);
    assert_string_equal(s.servers, servers);
    assert_string_equal(s.root, root);
    assert_int_equal(s.timeout_ms, timeout);
}

static void test_specs(void **state)
{
    expect_spec("a", "a:2181", "/kelpie", 10000);
    expect_spec("a:1,b.example:65535,c", "a:1,b.example:65535,c:2181", "/kelpie", 10000);
    expect_spec("10.0.0.1:2181/x/y?timeout=30", "10.0.0.1:2181", "/x/y", 30000);
    expect_spec("[::1]:7,[::2]/x//", "[::1]:7,[::2]:2181", "/x", 10000);
    expect_spec("a?timeout=1", "a:2181", "/kelpie", 1000);
    static const char *const wrong[] = {
        "",           ":2181",
        "a:0",        "a:65536",
        "a:x",        "a:",
        "a,",         ",a",
        "a,,b",       "a/",
        "a//",        "a//b",
        "a/../b",     "a/./b",
        "a/x y",      "a?timeout=0",
        "a?timeout=", "a?timeout=601",
        "a?time=5",   "a?",
        "a b",        "a/x?timeout=x",
        "a/..",       "\xc3\xa4",
    };
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        struct zk_spec s;
        const char *why = NULL;
        if (zk_spec_parse(wrong[i], &s, &why) != -EINVAL || !why)
            fail_msg("\"%s\" was taken", wrong[i]);
    }
    char text[4096], *p = text;
    for (unsigned i = 0; i < 200; i++)
        p += sprintf(p, "%sserver%u", i ? "," : "", i);
    struct zk_spec s;
    const char *why;
    assert_int_equal(zk_spec_parse(text, &s, &why), -EINVAL);
    memset(text, 'x', sizeof(text) - 1);
    text[1] = '/';
    text[sizeof(text) - 1] = '\0';
    assert_int_equal(zk_spec_parse(text, &s, &why), -EINVAL);
}

/* --- bytes --- */

static void make_entry(struct enc *entry, struct enc *body)
{
    struct zk_header h = {
        .revision = 7, .session = 3, .nonce = 99, .removed_count = 2, .removed = {1, 4}};
    enc_init(body);
    zk_body_begin(body, 3);
    zk_body_put(body, "a/b", 3, "value", 5);
    zk_body_delete(body, "c");
    zk_body_put(body, "empty", 0, "", 0);
    enc_init(entry);
    zk_entry_encode(entry, &h, body);
    assert_int_equal(entry->error, 0);
}

static void test_bytes(void **state)
{
    struct enc entry, body, head;
    struct zk_header h;
    const uint8_t *p;
    struct zk_change *changes;
    unsigned count;
    uint64_t revision = 0;
    make_entry(&entry, &body);
    assert_int_equal(zk_entry_decode(entry.data, entry.length, &h, &p), 0);
    assert_true(h.revision == 7 && h.session == 3 && h.nonce == 99 && h.removed_count == 2);
    assert_true(h.removed[1] == 4 && h.part_count == 0 && p);
    assert_int_equal(zk_body_decode(p, h.body_length, &changes, &count), 0);
    assert_int_equal(count, 3);
    assert_true(strcmp(changes[0].key, "a/b") == 0 && changes[0].owner == 3 &&
                changes[0].length == 5 && memcmp(changes[0].value, "value", 5) == 0);
    assert_true(strcmp(changes[1].key, "c") == 0 && !changes[1].value);
    assert_true(changes[2].value && changes[2].length == 0);
    free(changes);
    /* Any one byte that differs, and any end that is missing, is noticed. */
    for (size_t i = 0; i < entry.length; i++) {
        entry.data[i] ^= 0x20;
        assert_true(zk_entry_decode(entry.data, entry.length, &h, &p) < 0);
        entry.data[i] ^= 0x20;
        assert_true(zk_entry_decode(entry.data, i, &h, &p) < 0);
    }
    /* Bodies have no checksum of their own here: whatever they hold, nothing is read beyond. */
    for (size_t i = 0; i < body.length; i++) {
        uint8_t *copy = malloc(i + 1);
        assert_non_null(copy);
        memcpy(copy, body.data, i);
        assert_int_equal(zk_body_decode(copy, i, &changes, &count), -EBADMSG);
        free(copy);
    }
    enc_init(&head);
    zk_head_encode(&head, 12345);
    assert_int_equal(zk_head_decode(head.data, head.length, &revision), 0);
    assert_true(revision == 12345);
    head.data[4]++;
    assert_int_equal(zk_head_decode(head.data, head.length, &revision), -EBADMSG);
    enc_done(&head);
    enc_done(&entry);
    enc_done(&body);
}

/* --- the log --- */

#define KEYS        48
#define COMMITS     400
#define CHANGES_MAX 3

struct commit {
    struct zk_header header;
    struct zk_change changes[CHANGES_MAX];
    uint8_t value[8];
    unsigned count;
    bool gone;
};

struct world {
    struct zk_state state;
    struct commit commits[COMMITS + 1]; /* by revision */
    uint64_t seed, last;
    unsigned compared; /* readers that came through */
};

static uint64_t pick(struct world *w, uint64_t below)
{
    w->seed = hash_u64(w->seed + 0x9e3779b97f4a7c15ULL);
    return w->seed % below;
}

static void world_commit(struct world *w)
{
    struct zk_loose loose[ZK_REMOVED_MAX];
    struct commit *c = &w->commits[++w->last];
    c->header.revision = w->last;
    unsigned n = zk_state_removable(&w->state, pick(w, 3), UINT64_MAX, loose, ZK_REMOVED_MAX);
    for (unsigned i = 0; i < n; i++) {
        c->header.removed[c->header.removed_count++] = loose[i].revision;
        w->commits[loose[i].revision].gone = true;
    }
    c->count = (unsigned)pick(w, 8) == 0 ? 0 : 1 + (unsigned)pick(w, CHANGES_MAX);
    memcpy(c->value, &w->last, sizeof(c->value));
    for (unsigned i = 0; i < c->count; i++) {
        /* Different keys within a commit. */
        snprintf(c->changes[i].key, CS_KEY_SIZE, "k%02u",
                 (unsigned)(pick(w, KEYS / CHANGES_MAX) * CHANGES_MAX + i));
        if (pick(w, 4)) {
            c->changes[i].value = c->value;
            c->changes[i].length = sizeof(c->value);
        }
    }
    assert_int_equal(zk_state_apply(&w->state, &c->header, c->changes, c->count), 0);
    zk_state_verify(&w->state);
}

static void apply(struct zk_state *s, const struct commit *c)
{
    assert_int_equal(zk_state_apply(s, &c->header, c->changes, c->count), 0);
    zk_state_verify(s);
}

static void expect_same(const struct zk_state *a, const struct zk_state *b)
{
    size_t i = 0, j = 0;
    const struct zk_key *x, *y;
    do {
        x = zk_state_next(a, "", &i);
        y = zk_state_next(b, "", &j);
        assert_true(!x == !y);
        assert_true(!x || (strcmp(x->name, y->name) == 0 && x->revision == y->revision &&
                           x->length == y->length && memcmp(x->value, y->value, x->length) == 0));
    } while (x);
}

/* A reader that lists the log and reads it from the youngest to the oldest, while commits go on and
 * remove entries; then follows. */
static void read_log(struct world *w, unsigned commits_meanwhile)
{
    bool found[COMMITS + 1] = {0};
    uint64_t listed = w->last;
    for (uint64_t i = listed; i > 0; i--) {
        found[i] = !w->commits[i].gone;
        for (uint64_t n = pick(w, 3); n > 0 && commits_meanwhile > 0 && w->last < COMMITS; n--) {
            world_commit(w);
            commits_meanwhile--;
        }
    }
    struct zk_state s, copy;
    zk_state_init(&s);
    for (uint64_t i = 1; i <= listed; i++) {
        if (found[i])
            apply(&s, &w->commits[i]);
    }
    zk_state_init(&copy);
    zk_state_take(&copy, &s);
    for (uint64_t i = listed + 1; i <= w->last; i++) {
        if (w->commits[i].gone)
            goto out; /* too slow: it would begin again */
        apply(&copy, &w->commits[i]);
    }
    expect_same(&w->state, &copy);
    w->compared += w->last > listed;
out:
    zk_state_done(&copy);
}

static void test_log(void **state)
{
    struct world *w = calloc(1, sizeof(*w));
    unsigned compared = 0;
    assert_non_null(w);
    for (uint64_t seed = 1; seed <= 200; seed++) {
        *w = (struct world){.seed = seed};
        zk_state_init(&w->state);
        while (w->last < COMMITS) {
            world_commit(w);
            if (pick(w, 8) == 0)
                read_log(w, pick(w, 2) ? 0 : (unsigned)pick(w, 16));
        }
        /* Entries that nothing needs do go: at most one a key, those kept, and deletions. */
        unsigned left = 0;
        for (uint64_t i = 1; i <= w->last; i++)
            left += !w->commits[i].gone;
        assert_int_equal(left, w->state.log_count);
        assert_true(left <= 2 * KEYS + 12 + ZK_REMOVED_MAX);
        compared += w->compared;
        zk_state_done(&w->state);
    }
    assert_true(compared > 200); /* while commits went on */
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_specs),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
