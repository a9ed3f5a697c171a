/* SPDX-License-Identifier: Apache-2.0 */
/* Promise: changes reach all replicas in order and once, reads find them, through each node. */
#include "trio.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#define V(term, sequence) (((uint64_t)(term) << 40) | (sequence))

static fiber_fn int change(struct objects *o, const struct object_owner *owner,
                           enum object_change_kind kind, struct oid oid, struct oid source,
                           uint64_t prev, uint64_t next, uint32_t offset, uint32_t length)
{
    const struct object_extent extent = {offset, length};
    const struct object_change c = {
        .kind = kind,
        .oid = oid,
        .source = source,
        .prev = {prev},
        .next = {next},
        .extents = &extent,
        .extent_count = length ? 1 : 0,
    };
    return object_change(o, owner, &c);
}

static fiber_fn void scene_changes(struct trio *t)
{
    struct objects *o = trio_objects(t, 0);
    const struct object_owner w = trio_owner(1, 20);
    struct oid a = trio_oid(t, 20, 0, 3), clone = trio_oid(t, 21, 0, 3);
    CHECK(trio_byte(o, a, 0) == -1);
    CHECK(trio_write(o, &w, a, 0, V(1, 1), 0, 8192, 0x11) == 0);
    CHECK(trio_write(o, &w, a, V(1, 1), V(1, 2), 4096, 4096, 0x22) == 0);
    /* Again: done already. Not at prev: refused on all. */
    CHECK(trio_write(o, &w, a, V(1, 1), V(1, 2), 4096, 4096, 0x22) == 0);
    CHECK(trio_write(o, &w, a, V(1, 7), V(1, 8), 4096, 4096, 0x33) == -ESTALE);
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        CHECK(trio_byte(trio_objects(t, i), a, 1) == 0x11);
        CHECK(trio_byte(trio_objects(t, i), a, 4097) == 0x22);
    }
    /* Clone shares, is independent; a missing source is told. */
    CHECK(change(o, &w, OBJECT_CLONE, clone, a, 0, V(1, 3), 0, 0) == 0);
    CHECK(trio_write(o, &w, clone, V(1, 3), V(1, 4), 100, 50, 0x44) == 0);
    CHECK(trio_byte(trio_objects(t, 1), clone, 120) == 0x44);
    CHECK(trio_byte(trio_objects(t, 1), clone, 99) == 0x11);
    CHECK(trio_byte(trio_objects(t, 2), a, 120) == 0x11);
    CHECK(change(o, &w, OBJECT_CLONE, trio_oid(t, 23, 0, 3), trio_oid(t, 22, 0, 3), 0, V(1, 5), 0,
                 0) == -ENOENT);
    /* Nonsense is refused before anything is sent. */
    CHECK(change(o, &w, OBJECT_CLONE, trio_oid(t, 23, 0, 3), trio_oid(t, 23, 0, 3), 0, V(1, 5), 0,
                 0) == -EINVAL);
    /* Punch, removal, and a rewrite with a newer version. */
    CHECK(change(o, &w, OBJECT_PUNCH, a, a, V(1, 2), V(1, 6), 0, 4096) == 0);
    CHECK(trio_byte(trio_objects(t, 2), a, 1) == 0);
    CHECK(change(o, &w, OBJECT_REMOVE, a, a, V(1, 6), V(1, 7), 0, 0) == 0);
    CHECK(trio_byte(trio_objects(t, 1), a, 1) == -1);
    CHECK(trio_write(o, &w, a, 0, V(1, 9), 0, 512, 0x55) == 0);
    CHECK(trio_byte(trio_objects(t, 1), a, 511) == 0x55);
    CHECK(trio_byte(trio_objects(t, 1), a, 512) == 0);
    trio_check_equal(t);
}

static void test_changes(void **state)
{
    trio_run(scene_changes, 3, 5);
}

struct run {
    uint32_t offset, length;
    bool mapped;
};
static struct run runs[16];
static unsigned run_count;

static void add_run(void *arg, uint32_t offset, uint32_t length, bool mapped)
{
    CHECK(run_count < ARRAY_SIZE(runs));
    runs[run_count++] = (struct run){offset, length, mapped};
}

/* With two copies on three nodes, some node has to ask others for everything. */
static fiber_fn void scene_remote(struct trio *t)
{
    struct objects *o = trio_objects(t, 0);
    const struct object_owner w = trio_owner(1, 20);
    uint8_t *buffer = buf_get(t->nodes[0].rt, 1u << 20);
    struct version version;
    for (uint32_t i = 0; i < 16; i++) {
        struct oid oid = trio_oid(t, 20, 0, i);
        CHECK(trio_write(o, &w, oid, 0, V(1, i + 1), 4096 * i, 1u << 20, (uint8_t)(i + 1)) == 0);
        for (unsigned k = 0; k < TRIO_NODES; k++) {
            CHECK(object_read(trio_objects(t, k), &oid, 4096 * i, 1u << 20, buffer, &version) == 0);
            CHECK(version.value == V(1, i + 1));
            CHECK(buffer[0] == i + 1 && buffer[(1u << 20) - 1] == i + 1);
            run_count = 0;
            CHECK(object_map(trio_objects(t, k), &oid, 0, 2u << 20, add_run, NULL) == 0);
            CHECK(run_count == (i ? 3 : 2));
            CHECK(runs[i ? 1 : 0].mapped && runs[i ? 1 : 0].length == 1u << 20);
        }
        /* What one node refuses is refused, also when the owner's own store is not asked. */
        CHECK(trio_write(o, &w, oid, V(1, 70), V(1, 71), 0, 4096, 0x33) == -ESTALE);
        CHECK(change(o, &w, OBJECT_CLONE, trio_oid(t, 98, 0, i), trio_oid(t, 97, 0, i), 0, V(1, 72),
                     0, 0) == -ENOENT);
        run_count = 0;
        struct oid absent = trio_oid(t, 99, 0, i);
        CHECK(object_map(o, &absent, 0, 8192, add_run, NULL) == 0);
        CHECK(run_count == 1 && !runs[0].mapped && runs[0].length == 8192);
        CHECK(object_read(o, &absent, 0, 4096, buffer, &version) == -ENOENT);
        CHECK(buffer[0] == 0 && buffer[4095] == 0 && version.value == 0);
    }
    buf_put(t->nodes[0].rt, buffer);
    for (uint16_t k = 0; k < TRIO_NODES; k++) {
        struct object_node_info info;
        CHECK(object_node_info(o, o->map->nodes[k].number, &info) == 0);
        CHECK(info.object_count > 0 && info.free_bytes > 0 && info.rss_bytes > 0);
    }
    CHECK(object_free_bytes(o) > 0);
    char text[200];
    object_waiting_text(o, text, sizeof(text));
    CHECK(text[0] == '\0');
}

static void test_remote(void **state)
{
    trio_run(scene_remote, 2, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_remote),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
