/* SPDX-License-Identifier: Apache-2.0 */
/* See classes.h. */
#include "tests/damage/classes.h"
#include <string.h>
#include "base/err.h"
#include "store/log_scan.h"
#include "store/walk.h"

const char *const block_class_names[BLOCK_CLASS_COUNT] = {
    "free",  "superblock", "log",      "index", "bitmap", "share",
    "table", "indirect",   "map leaf", "meta",  "data",   "shared data"};

static void set(uint8_t *classes, uint32_t block, enum block_class class)
{
    ASSERT(classes[block] == BLOCK_FREE);
    classes[block] = (uint8_t) class;
}

static int note_object(void *arg, const struct walk_object *o)
{
    uint8_t *classes = arg;

    ASSERT(!o->changed && !o->dropped);
    if (o->slot.flags & SLOT_INDIRECT)
        set(classes, o->slot.leaves[0].ptr.block, BLOCK_INDIRECT);
    for (unsigned i = 0; i < o->slot.leaf_count; i++) {
        if (o->leaves[i].ptr.block != 0)
            set(classes, o->leaves[i].ptr.block, BLOCK_LEAF);
    }
    if (o->slot.flags & SLOT_META_BLOCK)
        set(classes, o->slot.meta.block, BLOCK_META);
    return 0;
}

static void note_tree(const struct walk_tree *t, enum block_class pages, uint8_t *classes)
{
    for (unsigned l = 0; l < t->height; l++) {
        for (uint32_t i = 0; i < t->levels[l].count; i++) {
            if (t->levels[l].ptrs[i].block != 0)
                set(classes, t->levels[l].ptrs[i].block, l == 0 ? pages : BLOCK_TABLE);
        }
    }
}

static fiber_fn void note_log(struct walk *w, uint8_t *classes)
{
    struct log_commit c = {.valid = true};
    struct log_scan sc;

    ASSERT(log_scan_init(&sc, w->disk, &w->super, w->salt) == 0);
    enc_init(&c.payload);
    while (c.valid)
        ASSERT(log_scan_next(&sc, &c) == 0);
    for (uint64_t q = w->super.log_sequence; q < sc.sequence; q++)
        set(classes, w->super.log_first + (uint32_t)(q % w->super.log_count), BLOCK_LOG);
    enc_done(&c.payload);
    log_scan_done(&sc);
}

fiber_fn void classify(struct sample *p, uint8_t *classes, uint32_t count)
{
    struct walk w = {.on_object = note_object, .on_object_arg = classes};

    memset(classes, BLOCK_FREE, count);
    classes[0] = classes[1] = BLOCK_SUPER;
    ASSERT(walk_open(p->rt, SAMPLE_PATH, DISK_OPEN_READ_ONLY, &w) == 0);
    ASSERT(w.super.block_count == count && walk_run(&w) == 0 && w.finding_count == 0);
    note_tree(&w.trees[TREE_INDEX], BLOCK_INDEX, classes);
    note_tree(&w.trees[TREE_BITMAP], BLOCK_BITMAP, classes);
    note_tree(&w.trees[TREE_SHARE], BLOCK_SHARE, classes);
    note_log(&w, classes);
    for (uint32_t b = w.super.data_first; b < count; b++) {
        uint16_t users = w.owners[b - w.super.data_first];
        if (users != 0 && users != WALK_STRUCTURE)
            set(classes, b, users > 1 ? BLOCK_SHARED : BLOCK_DATA);
    }
    walk_close(&w);
}
