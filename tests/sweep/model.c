/* SPDX-License-Identifier: Apache-2.0 */
/* See model.h. */
#include "model.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "memory.h"

static const uint8_t zeros[STORE_BLOCK];

void model_init(struct model *m, unsigned actor)
{
    memset(m, 0, sizeof(*m));
    m->actor = actor;
}

void model_object_done(struct model_object *o)
{
    for (unsigned i = 0; o->blocks != NULL && i < MODEL_BLOCKS; i++)
        free(o->blocks[i]);
    free(o->blocks);
    o->blocks = NULL;
}

void model_done(struct model *m)
{
    for (unsigned i = 0; i < MODEL_OBJECTS; i++)
        model_object_done(&m->objects[i]);
}

struct oid model_oid(unsigned actor, unsigned object)
{
    return (struct oid){.vid = 100 + actor, .index = object, .group = (uint16_t)(object % 5)};
}

struct version model_version(unsigned number)
{
    return version_make((struct term){1}, number + 1);
}

/* --- content --- */

void model_content(unsigned actor, const struct step *step, unsigned number, uint32_t offset,
                   uint32_t length, uint8_t *out)
{
    uint64_t seed = hash_u64((uint64_t)actor << 32 | (number + 1)), word = 0;

    for (uint32_t k = 0; k < length; k++) {
        uint32_t at = offset + k;
        bool hole = step->kind == STEP_INSTALL && at / STORE_BLOCK % 3 == 2;
        if (k == 0 || at % 8 == 0)
            word = hash_u64(seed + at / 8);
        out[k] = hole ? 0 : (uint8_t)(word >> (8 * (at % 8)));
    }
}

static uint8_t *block_of(struct model_object *o, uint32_t block, bool *ret_new)
{
    ASSERT(block < MODEL_BLOCKS);
    if (o->blocks == NULL)
        o->blocks = memory_zalloc(MODEL_BLOCKS * sizeof(*o->blocks));
    *ret_new = o->blocks[block] == NULL;
    if (*ret_new)
        o->blocks[block] = memory_zalloc(STORE_BLOCK);
    return o->blocks[block];
}

static void block_drop(struct model_object *o, uint32_t block)
{
    if (o->blocks == NULL)
        return;
    free(o->blocks[block]);
    o->blocks[block] = NULL;
}

static void put_extent(struct model *m, struct model_object *o, const struct step *step,
                       unsigned number, const struct store_extent *e)
{
    uint32_t end = e->offset + e->length, n;

    for (uint32_t at = e->offset; at < end; at += n) {
        uint32_t within = at % STORE_BLOCK;
        bool fresh;
        uint8_t *block = block_of(o, at / STORE_BLOCK, &fresh);
        n = MIN(STORE_BLOCK - within, end - at);
        model_content(m->actor, step, number, at, n, block + within);
        if (step->kind == STEP_INSTALL && memcmp(block, zeros, STORE_BLOCK) == 0)
            block_drop(o, at / STORE_BLOCK);
    }
}

static void punch_extent(struct model_object *o, const struct store_extent *e)
{
    uint32_t end = e->offset + e->length, n;

    for (uint32_t at = e->offset; at < end; at += n) {
        uint32_t within = at % STORE_BLOCK, block = at / STORE_BLOCK;
        n = MIN(STORE_BLOCK - within, end - at);
        if (o->blocks == NULL || o->blocks[block] == NULL)
            continue;
        if (n == STORE_BLOCK)
            block_drop(o, block);
        else
            memset(o->blocks[block] + within, 0, n);
    }
}

void model_meta(unsigned actor, uint64_t meta_version, unsigned length, uint8_t *out)
{
    static const struct step step = {.kind = STEP_META};

    model_content(actor, &step, (unsigned)meta_version + 500000, 0, length, out);
}

struct model_object model_object_copy(const struct model_object *o)
{
    struct model_object copy = *o;

    copy.blocks = NULL;
    for (unsigned i = 0; o->blocks != NULL && i < MODEL_BLOCKS; i++) {
        bool fresh;
        if (o->blocks[i] != NULL)
            memcpy(block_of(&copy, i, &fresh), o->blocks[i], STORE_BLOCK);
    }
    return copy;
}

/* --- steps --- */

static void remove_object(struct model_object *o, unsigned number)
{
    if (!o->exists)
        return;
    model_object_done(o);
    *o = (struct model_object){.tombstone = model_version(number)};
}

static void make_object(struct model_object *o, unsigned number)
{
    o->exists = true;
    o->settled = false;
    o->version = model_version(number);
    o->tombstone.value = 0;
}

static void put_meta(struct model_object *o, const struct step *step, unsigned number)
{
    o->meta_version = number + 1;
    o->meta_length = step->length;
}

static void apply_change(struct model *m, const struct step *step, unsigned number)
{
    struct model_object *o = &m->objects[step->object];

    if (step->kind == STEP_CLONE) {
        struct model_object copy = model_object_copy(&m->objects[step->source]);
        model_object_done(o);
        *o = (struct model_object){.blocks = copy.blocks};
    }
    if (step->kind == STEP_INSTALL)
        model_object_done(o);
    for (unsigned i = 0; i < step->extent_count; i++) {
        if (step->kind == STEP_PUNCH)
            punch_extent(o, &step->extents[i]);
        else
            put_extent(m, o, step, number, &step->extents[i]);
    }
    make_object(o, number);
}

void model_apply(struct model *m, const struct step *step, unsigned number)
{
    switch (step->kind) {
    case STEP_WRITE:
    case STEP_CLONE:
    case STEP_PUNCH:
    case STEP_INSTALL:
        apply_change(m, step, number);
        break;
    case STEP_REMOVE:
        remove_object(&m->objects[step->object], number);
        break;
    case STEP_META:
        put_meta(&m->objects[step->object], step, number);
        break;
    case STEP_BATCH:
        for (unsigned i = 0; i < step->count; i++)
            put_meta(&m->objects[step->object + i], step, number);
        for (unsigned i = 0; i < step->removals; i++)
            remove_object(&m->objects[step->object + step->count + i], number);
        break;
    case STEP_SETTLE:
        for (unsigned i = 0; i < MODEL_OBJECTS; i++)
            m->objects[i].settled = !m->objects[i].exists;
        break;
    case STEP_READ:
    case STEP_PIN:
    case STEP_PIN_READ:
    case STEP_UNPIN:
    case STEP_REOPEN:
        break;
    }
}

/* --- comparing --- */

bool model_equal(const struct model_object *o, uint64_t offset, size_t length, const uint8_t *bytes)
{
    size_t n;

    for (size_t done = 0; done < length; done += n) {
        uint64_t at = offset + done;
        uint32_t within = at % STORE_BLOCK;
        const uint8_t *want = o->blocks != NULL ? o->blocks[at / STORE_BLOCK] : NULL;
        n = MIN(STORE_BLOCK - within, length - done);
        if (memcmp(bytes + done, want != NULL ? want + within : zeros, n) != 0)
            return false;
    }
    return true;
}

struct mapping {
    const struct model_object *o;
    bool wrong;
};

static void compare_map(void *arg, uint64_t offset, uint64_t length, bool mapped)
{
    struct mapping *c = arg;

    for (uint64_t b = offset / STORE_BLOCK; b < (offset + length) / STORE_BLOCK; b++) {
        if ((c->o->blocks != NULL && c->o->blocks[b] != NULL) != mapped)
            c->wrong = true;
    }
}

static fiber_fn const char *content_differs(const struct model_object *o, struct store *s,
                                            const struct oid *oid)
{
    const uint32_t size = MODEL_BLOCKS * STORE_BLOCK;
    const char *why = NULL;
    struct mapping map = {.o = o};
    int r = store_map(s, oid, 0, size, compare_map, &map);
    uint8_t *buffer;

    if (r < 0)
        return "its map cannot be read";
    if (map.wrong)
        return "its map differs";
    buffer = memory_pages(64 * STORE_BLOCK);
    for (uint32_t b = 0; o->blocks != NULL && why == NULL && b < MODEL_BLOCKS; b++) {
        uint32_t n = 0;
        struct version v;
        while (n < 64 && b + n < MODEL_BLOCKS && o->blocks[b + n] != NULL)
            n++;
        if (n == 0)
            continue;
        r = store_read(s, oid, (uint64_t)b * STORE_BLOCK, (size_t)n * STORE_BLOCK, buffer, &v);
        if (r < 0)
            why = r == -EUCLEAN ? "checksum error" : "it cannot be read";
        else if (v.value != o->version.value)
            why = "read at another version";
        else if (!model_equal(o, (uint64_t)b * STORE_BLOCK, (size_t)n * STORE_BLOCK, buffer))
            why = "its content differs";
        b += n;
    }
    free(buffer);
    return why;
}

static fiber_fn const char *meta_differs(const struct model *m, unsigned i, struct store *s)
{
    const struct model_object *o = &m->objects[i];
    struct oid oid = model_oid(m->actor, i);
    uint8_t have[STORE_META_SIZE_MAX], want[STORE_META_SIZE_MAX];
    uint64_t version = 0;
    size_t length = 0;

    if (store_meta_get(s, &oid, have, &length, &version) < 0)
        return "its meta cannot be read";
    if (length != o->meta_length || version != o->meta_version)
        return "its meta has another length or version";
    if (length > 0)
        model_meta(m->actor, o->meta_version, o->meta_length, want);
    return memcmp(have, want, length) == 0 ? NULL : "its meta differs";
}

static fiber_fn const char *object_differs(const struct model *m, unsigned i, struct store *s)
{
    const struct model_object *o = &m->objects[i];
    struct oid oid = model_oid(m->actor, i);
    struct store_stat st;
    const char *why = NULL;

    store_stat(s, &oid, &st);
    if (st.version.value != (o->exists ? o->version.value : 0))
        return "it is at another version";
    if (st.tombstone.value != o->tombstone.value && !(o->settled && st.tombstone.value == 0))
        return "its tombstone differs";
    if (!o->exists)
        return NULL;
    if (st.meta_version != o->meta_version || st.meta_length != o->meta_length)
        return "stat gives another meta version or length";
    if (o->meta_version != 0)
        why = meta_differs(m, i, s);
    return why != NULL ? why : content_differs(o, s, &oid);
}

fiber_fn const char *model_differs(const struct model *m, struct store *s)
{
    static char text[160];

    for (unsigned i = 0; i < MODEL_OBJECTS; i++) {
        const char *why = object_differs(m, i, s);
        if (why != NULL) {
            snprintf(text, sizeof(text), "actor %u object %u: %s", m->actor, i, why);
            return text;
        }
    }
    return NULL;
}

unsigned model_count(const struct model *m)
{
    unsigned n = 0;

    for (unsigned i = 0; i < MODEL_OBJECTS; i++)
        n += m->objects[i].exists;
    return n;
}
