/* SPDX-License-Identifier: Apache-2.0 */
/* The map as a value: look-ups, and a codec that takes nothing damaged. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"
#include "members.h"

static struct map *make_map(unsigned node_count, uint32_t group_count)
{
    struct map_member members[16];
    for (unsigned i = 0; i < node_count; i++)
        members[i] = make_member(i, i % 4, 1024, 100 + i);
    struct map_format f = make_format(3, group_count);
    struct map *m;
    assert_int_equal(map_first(&f, members, node_count, &m), 0);
    return m;
}

static void assert_maps_equal(const struct map *a, const struct map *b)
{
    assert_int_equal(a->version, b->version);
    assert_true(uuid_equal(&a->cluster, &b->cluster));
    assert_string_equal(a->cluster_name, b->cluster_name);
    assert_int_equal(a->node_number_next, b->node_number_next);
    assert_int_equal(a->node_count, b->node_count);
    for (uint32_t i = 0; i < a->node_count; i++) {
        const struct map_node *x = &a->nodes[i], *y = &b->nodes[i];
        assert_int_equal(x->number, y->number);
        assert_true(uuid_equal(&x->uuid, &y->uuid));
        assert_int_equal(x->session.value, y->session.value);
        assert_int_equal(x->state, y->state);
        assert_int_equal(x->weight, y->weight);
        assert_string_equal(x->name, y->name);
        assert_string_equal(x->zone, y->zone);
        assert_string_equal(x->address, y->address);
        assert_string_equal(x->admin, y->admin);
        assert_string_equal(x->nbd, y->nbd);
        assert_true(x->inexact == y->inexact && x->out == y->out && x->trouble == y->trouble);
        assert_true(x->trouble_by == y->trouble_by && x->trouble_error == y->trouble_error);
        assert_true(x->away_since == y->away_since);
    }
    assert_int_equal(a->pool_count, b->pool_count);
    for (uint32_t i = 0; i < a->pool_count; i++) {
        const struct map_pool *x = &a->pools[i], *y = &b->pools[i];
        assert_string_equal(x->name, y->name);
        assert_true(x->id == y->id && x->copies == y->copies && x->min_copies == y->min_copies &&
                    x->group_base == y->group_base && x->group_count == y->group_count &&
                    x->object_size == y->object_size);
    }
    assert_int_equal(a->group_count, b->group_count);
    assert_memory_equal(a->groups, b->groups, a->group_count * sizeof(a->groups[0]));
}

static struct map *decode_all(const struct map *m)
{
    struct enc e;
    struct map *copy;
    enc_init(&e);
    map_encode_head(m, &e);
    assert_int_equal(e.error, 0);
    assert_int_equal(map_decode_head(e.data, e.length, &copy), 0);
    enc_done(&e);
    for (uint32_t i = 0; i < map_shard_count(m); i++) {
        map_encode_shard(m, i, &e);
        assert_int_equal(map_decode_shard(copy, i, e.data, e.length), 0);
        enc_done(&e);
    }
    return copy;
}

static void test_round_trip(void **state)
{
    for (unsigned nodes = 4; nodes <= 9; nodes++) {
        struct map *m = make_map(nodes, nodes == 7 ? 2500 : 5 * nodes);
        m->version = 1ull << 40;
        m->nodes[1].session.value = 0;
        m->nodes[2].state = MAP_NODE_DRAINING;
        m->nodes[3].state = MAP_NODE_LOST;
        m->nodes[1].out = m->nodes[2].inexact = true;
        m->nodes[1].away_since = 1ull << 33;
        m->nodes[2].trouble = MAP_TROUBLE_ALONE;
        m->nodes[2].trouble_by = 3;
        m->nodes[2].trouble_error = 5;
        memset(m->nodes[0].admin, 'x', sizeof(m->nodes[0].admin) - 1);
        struct map_group *g = &m->groups[3];
        g->epoch.value = m->version;
        g->joining[g->joining_count++] = g->in_sync[--g->in_sync_count];
        g->in_sync[g->in_sync_count] = 0;
        struct map *copy = decode_all(m);
        assert_maps_equal(m, copy);
        map_unref(copy);
        map_unref(m);
    }
}

#define NODE_MORE_BYTES 14 /* what version 2 put behind each node */

/* A head as version 1 wrote it: the nodes end after nbd. */
static void encode_old_head(const struct map *m, struct enc *e)
{
    struct enc now;
    struct map *none = map_clone(m);
    enc_init(&now);
    none->node_count = 0;
    map_encode_head(none, &now);
    size_t nodes = now.length - 4; /* where they begin; the checksum is of no use */
    enc_done(&now);
    map_encode_head(m, &now);
    enc_bytes(e, now.data, nodes);
    put_le16(e->data + 4, 1);
    for (uint32_t i = 0; i < m->node_count; i++) {
        none->node_count = 1;
        none->nodes[0] = m->nodes[i];
        struct enc one;
        enc_init(&one);
        map_encode_head(none, &one);
        enc_bytes(e, one.data + nodes, one.length - nodes - NODE_MORE_BYTES - 4);
        enc_done(&one);
    }
    enc_done(&now);
    enc_u32(e, crc32c(0, e->data, e->length));
    map_unref(none);
}

static void test_old_version(void **state)
{
    struct map *m = make_map(5, 40), *copy;
    struct enc e;
    enc_init(&e);
    m->nodes[2].session.value = 0;
    m->nodes[3].state = MAP_NODE_DRAINING;
    encode_old_head(m, &e);
    assert_int_equal(map_decode_head(e.data, e.length, &copy), 0);
    enc_done(&e);
    memcpy(copy->groups, m->groups, m->group_count * sizeof(m->groups[0]));
    assert_maps_equal(m, copy);
    map_unref(copy);
    map_unref(m);
}

/* A head or shard in memory of exactly its size, so that a read beyond it is seen. */
static int decode_exact(struct map *m, int64_t shard, const uint8_t *data, size_t length)
{
    uint8_t *copy = malloc(length ? length : 1);
    struct map *decoded = NULL;
    assert_non_null(copy);
    memcpy(copy, data, length);
    int r = shard < 0 ? map_decode_head(copy, length, &decoded)
                      : map_decode_shard(m, (uint32_t)shard, copy, length);
    map_unref(decoded);
    free(copy);
    return r;
}

static void refuse_damage(struct map *m, int64_t shard, struct enc *e)
{
    assert_int_equal(decode_exact(m, shard, e->data, e->length), 0);
    for (size_t length = 0; length < e->length; length++)
        assert_int_equal(decode_exact(m, shard, e->data, length), -EBADMSG);
    for (size_t bit = 0; bit < e->length * 8; bit++) {
        e->data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(decode_exact(m, shard, e->data, e->length), -EBADMSG);
        e->data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

static void refix_checksum(struct enc *e)
{
    put_le32(e->data + e->length - 4, crc32c(0, e->data, e->length - 4));
}

/* With a checksum that fits, whatever is not a map is still refused, and nothing is read or written
 * astray. */
static void survive_forgery(struct map *m, int64_t shard, struct enc *e)
{
    for (size_t i = 0; i + 4 < e->length; i++) {
        static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};
        uint8_t old = e->data[i];
        for (size_t v = 0; v < ARRAY_SIZE(values); v++) {
            e->data[i] = values[v];
            refix_checksum(e);
            int r = decode_exact(m, shard, e->data, e->length);
            assert_true(r == 0 || r == -EBADMSG || r == -EPROTO);
        }
        e->data[i] = old;
    }
    put_le16(e->data + 4, 3);
    refix_checksum(e);
    assert_int_equal(decode_exact(m, shard, e->data, e->length), -EPROTO);
}

static void test_damage(void **state)
{
    struct map *m = make_map(4, 40), *copy = decode_all(m);
    struct enc e;
    enc_init(&e);
    map_encode_head(m, &e);
    refuse_damage(copy, -1, &e);
    survive_forgery(copy, -1, &e);
    enc_done(&e);
    map_encode_shard(m, 0, &e);
    refuse_damage(copy, 0, &e);
    survive_forgery(copy, 0, &e);
    enc_done(&e);
    /* Of another place, or another cluster. */
    map_encode_shard(m, 0, &e);
    assert_int_equal(decode_exact(copy, 1, e.data, e.length), -EBADMSG);
    enc_done(&e);
    copy->cluster.bytes[0] ^= 1;
    map_encode_shard(m, 0, &e);
    assert_int_equal(decode_exact(copy, 0, e.data, e.length), -EBADMSG);
    enc_done(&e);
    map_unref(copy);
    map_unref(m);
}

/* What a checksum cannot show. */
static void test_inconsistent(void **state)
{
    struct map *m = make_map(4, 40), *copy = decode_all(m);
    struct map_group good = m->groups[5];
    for (unsigned kind = 0; kind < 6; kind++) {
        struct map_group *g = &m->groups[5];
        *g = good;
        if (kind == 0)
            g->in_sync[1] = g->in_sync[0];
        else if (kind == 1)
            g->in_sync[1] = 77;
        else if (kind == 2)
            g->epoch.value = m->version + 1;
        else if (kind == 3)
            g->epoch.value = 0;
        else if (kind == 4)
            g->joining[g->joining_count++] = g->in_sync[2];
        else
            g->last_full[0] = 4;
        struct enc e;
        enc_init(&e);
        map_encode_shard(m, 0, &e);
        assert_int_equal(decode_exact(copy, 0, e.data, e.length), -EBADMSG);
        enc_done(&e);
    }
    map_unref(copy);
    map_unref(m);
}

static void test_lookups(void **state)
{
    struct map *m = make_map(6, 40);
    for (unsigned i = 0; i < 6; i++) {
        struct map_member member = make_member(i, i % 4, 1024, 100 + i);
        const struct map_node *n = map_node_by_uuid(m, &member.node.uuid);
        assert_non_null(n);
        assert_ptr_equal(n, map_node(m, n->number));
        assert_ptr_equal(n, map_node_by_name(m, member.node.name));
        assert_ptr_equal(n, map_node_by_session(m, (struct session){100 + i}));
    }
    assert_null(map_node(m, 6));
    assert_null(map_node_by_name(m, "n006"));
    m->nodes[2].session.value = 0;
    assert_null(map_node_by_session(m, (struct session){0})); /* R6: nobody has no session */
    assert_null(map_node_by_session(m, (struct session){102}));
    assert_ptr_equal(map_pool_by_name(m, "default"), map_pool(m, 1));
    assert_null(map_pool(m, 2));
    assert_null(map_pool_by_name(m, ""));
    struct map *copy = map_clone(m);
    assert_maps_equal(m, copy);
    copy->nodes[0].weight++;
    copy->groups[0].epoch.value++;
    assert_int_equal(m->nodes[0].weight, 1024);
    assert_int_equal(m->groups[0].epoch.value, 1);
    map_unref(map_ref(copy));
    map_unref(copy);
    struct map *empty = map_new();
    assert_null(map_node(empty, 0));
    assert_null(map_pool_by_name(empty, "default"));
    assert_int_equal(map_shard_count(empty), 0);
    map_unref(map_clone(empty));
    map_unref(empty);
    map_unref(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_old_version),
        cmocka_unit_test(test_damage),     cmocka_unit_test(test_inconsistent),
        cmocka_unit_test(test_lookups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
