/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Promises: the choice between copies is the highest version, whatever the order (H1, H2); an index
 * block's bytes come back exactly, damage is refused, and the place of every child is right.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"
#include "object/choose.h"
#include "object/index_block.h"

/* Copies of up to three nodes, each absent, or at version 1 to 3, object or tombstone: all 7 ^ 3.
 */
static struct copy_state state_of(unsigned code)
{
    return (struct copy_state){.version = {(code + 1) / 2}, .tombstone = code > 0 && code % 2 == 0};
}

static void check_choice(const struct copy_state *copies, unsigned count)
{
    struct choice c;
    uint64_t highest = 0;
    bool any_object = false;
    for (unsigned i = 0; i < count; i++)
        highest = MAX(highest, copies[i].version.value);
    for (unsigned i = 0; i < count; i++)
        any_object = any_object || (copies[i].version.value == highest && !copies[i].tombstone);
    choose_copy(copies, count, &c);
    assert_int_equal(c.version.value, highest);
    assert_int_equal(c.tombstone, highest > 0 && !any_object);
    assert_true(c.donor < count && copies[c.donor].version.value == highest);
    /* After the actions all are equal. */
    for (unsigned i = 0; i < count; i++) {
        bool present = copies[i].version.value > 0 && !copies[i].tombstone;
        switch (choose_action(&c, &copies[i])) {
        case COPY_KEEP:
            if (highest > 0 && !c.tombstone)
                assert_true(present && copies[i].version.value == highest);
            else
                assert_false(present);
            break;
        case COPY_INSTALL:
            assert_true(highest > 0 && !c.tombstone);
            assert_false(present && copies[i].version.value == highest);
            break;
        case COPY_REMOVE:
            assert_true(c.tombstone && present);
            break;
        }
    }
    assert_int_equal(choose_action(&c, &copies[c.donor]), COPY_KEEP);
}

static void test_choice(void **state)
{
    for (unsigned a = 0; a < 7; a++)
        for (unsigned b = 0; b < 7; b++)
            for (unsigned c = 0; c < 7; c++) {
                const struct copy_state copies[] = {state_of(a), state_of(b), state_of(c)};
                for (unsigned n = 1; n <= 3; n++)
                    check_choice(copies, n);
            }
}

static void test_index(void **state)
{
    static const uint32_t entry_counts[] = {1, 2, 255, 256, 257, 4096, INDEX_ENTRIES_MAX};
    static const uint32_t owed_counts[] = {0, 1, 125, 126, 127, 500};
    for (unsigned i = 0; i < ARRAY_SIZE(entry_counts); i++) {
        uint32_t n = entry_counts[i];
        assert_true(index_tail_offset(n) % INDEX_PAGE == 0);
        assert_true(index_tail_offset(n) >= n * INDEX_ENTRY_BYTES);
        assert_true(index_tail_offset(n) < n * INDEX_ENTRY_BYTES + INDEX_PAGE);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(owed_counts); i++) {
        const struct index_header h = {
            .level = 2,
            .family = 0x1122334455667788,
            .group_base = 100,
            .group_count = 4096,
            .entries = 4096,
            .owed_count = owed_counts[i],
        };
        struct index_owed owed[500], back[500];
        for (unsigned k = 0; k < h.owed_count; k++)
            owed[k] = (struct index_owed){k * 3 + 1, k, (uint8_t)(k % 3), (uint8_t)(k % 2), k + 9};
        size_t length = index_tail_bytes(h.owed_count);
        uint8_t *bytes = malloc(length);
        assert_non_null(bytes);
        index_tail_encode(&h, h.owed_count ? owed : NULL, bytes);
        struct index_header got;
        assert_int_equal(index_header_decode(bytes, length, &got), 0);
        assert_true(got.level == h.level && got.family == h.family && got.entries == h.entries);
        assert_true(got.group_base == h.group_base && got.group_count == h.group_count);
        assert_int_equal(got.owed_count, h.owed_count);
        assert_int_equal(index_owed_decode(bytes, length, &got, back), 0);
        for (unsigned k = 0; k < h.owed_count; k++) {
            assert_int_equal(back[k].vid, owed[k].vid);
            assert_int_equal(back[k].index, owed[k].index);
            assert_int_equal(back[k].level, owed[k].level);
            assert_int_equal(back[k].copied, owed[k].copied);
            assert_int_equal(back[k].generation, owed[k].generation);
        }
        /* Each flipped bit is seen. */
        for (size_t k = 0; k < INDEX_HEADER_BYTES + h.owed_count * INDEX_OWED_BYTES; k++) {
            bytes[k] ^= (uint8_t)(1u << k % 8);
            int r = index_header_decode(bytes, length, &got);
            if (r == 0)
                r = index_owed_decode(bytes, length, &got, back);
            assert_true(r == -EBADMSG || r == -EPROTO);
            bytes[k] ^= (uint8_t)(1u << k % 8);
        }
        assert_int_equal(index_header_decode(bytes, INDEX_HEADER_BYTES - 1, &got), -EBADMSG);
        if (h.owed_count)
            assert_int_equal(index_owed_decode(bytes, INDEX_HEADER_BYTES, &h, back), -EBADMSG);
        free(bytes);
    }
}

/* X5: the store's checksum of a page must tell two headers apart; and version 1 is read. */
static void test_header_checksum(void **state)
{
    uint8_t a[INDEX_PAGE], b[INDEX_PAGE];
    struct index_header h = {.level = 1, .family = 7, .group_count = 17, .entries = 3}, back;
    index_tail_encode(&h, NULL, a);
    h.level = 2;
    index_tail_encode(&h, NULL, b);
    assert_true(crc32c(0, a, sizeof(a)) != crc32c(0, b, sizeof(b)));
    put_le16(b + 4, 1);
    put_le32(b + 60, crc32c(0, b, 60));
    assert_int_equal(index_header_decode(b, sizeof(b), &back), 0);
    assert_int_equal(back.level, 2);
    put_le16(b + 4, 3);
    put_le32(b + 60, crc32c(0, b, 60) * 0x9e3779b1u);
    assert_int_equal(index_header_decode(b, sizeof(b), &back), -EPROTO);
}

static void test_entries(void **state)
{
    uint8_t bytes[INDEX_ENTRY_BYTES] = {0};
    struct index_entry e = index_entry_get(bytes);
    assert_true(index_entry_empty(&e));
    const struct index_entry full = {.vid = UINT64_MAX - 5, .generation = 77, .flags = 0x80000001};
    index_entry_put(bytes, &full);
    e = index_entry_get(bytes);
    assert_memory_equal(&e, &full, sizeof(e));
    assert_false(index_entry_empty(&e));
}

static void test_children(void **state)
{
    const struct index_header root = {.level = 2, .family = 9, .group_count = 64, .entries = 4096};
    const struct index_header leaf = {.level = 1, .family = 9, .group_count = 64, .entries = 4096};
    const struct oid r = {.vid = 5, .level = 2}, k = {.vid = 5, .level = 1, .index = 3};
    const struct index_entry e = {.vid = 77};
    struct oid child;
    assert_int_equal(index_child(&root, &r, 3, &e, &child), 0);
    assert_int_equal(child.vid, 77);
    assert_int_equal(child.level, 1);
    assert_int_equal(child.index, 3);
    assert_int_equal(child.group, oid_group(9, 1, 3, 0, 64));
    assert_int_equal(index_child(&leaf, &k, 7, &e, &child), 0);
    assert_int_equal(child.level, 0);
    assert_int_equal(child.index, 3 * 4096 + 7);
    assert_int_equal(child.group, oid_group(9, 0, 3 * 4096 + 7, 0, 64));
    /* Impossible: beyond the block, another level, a position that no image has. */
    assert_int_equal(index_child(&leaf, &k, 4096, &e, &child), -EBADMSG);
    assert_int_equal(index_child(&root, &k, 0, &e, &child), -EBADMSG);
    const struct oid far = {.vid = 5, .level = 1, .index = UINT32_MAX};
    assert_int_equal(index_child(&leaf, &far, 0, &e, &child), -EBADMSG);
    const struct index_owed owed = {.vid = 6, .index = 12, .level = 0};
    struct oid target = index_owed_target(&leaf, &k, &owed);
    assert_int_equal(target.group, oid_group(9, 0, 12, 0, 64));
    assert_int_equal(target.vid, 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),          cmocka_unit_test(test_index),
        cmocka_unit_test(test_header_checksum), cmocka_unit_test(test_entries),
        cmocka_unit_test(test_children),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
