/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Volumes in memory; see fake_volume.h.
 *
 * F1 An object of 4 MiB is allocated at the first write into it; a block of it that is not `mapped`
 *    holds zeros. F2 A volume is freed only with the service, when nobody has it open.
 */
#include "fake_volume.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"

#define OBJECT_SIZE (4u << 20)
#define BLOCK_SIZE  4096u
#define BLOCK_COUNT (OBJECT_SIZE / BLOCK_SIZE)
#define MIB         (1u << 20)
#define SLOWNESS_NS (20 * NS_PER_MS)

struct fake_object {
    bool mapped[BLOCK_COUNT];
    uint8_t bytes[OBJECT_SIZE];
};

struct volume {
    struct list link;
    struct volumes *service;
    char name[VOLUME_NAME_SIZE], tag[VOLUME_NAME_SIZE];
    uint64_t size;
    struct fake_object **objects;
    size_t object_count;
    unsigned open_count, running_count;
};

struct volumes {
    struct rt *rt;
    struct list volumes;
    enum fake_speed speed;
};

struct volumes *fake_volumes_new(struct rt *rt)
{
    struct volumes *vs = calloc(1, sizeof(*vs));
    if (!vs)
        return NULL;
    vs->rt = rt;
    list_init(&vs->volumes);
    return vs;
}

void fake_volumes_free(struct volumes *vs)
{
    struct volume *v, *tmp;
    list_for_each_safe (v, tmp, &vs->volumes, link) {
        ASSERT(v->open_count == 0 && v->running_count == 0); /* F2 */
        for (size_t i = 0; i < v->object_count; i++)
            free(v->objects[i]);
        free(v->objects);
        free(v);
    }
    free(vs);
}

int fake_volumes_add(struct volumes *vs, const char *name, const char *tag, uint64_t size)
{
    struct volume *v = calloc(1, sizeof(*v));
    if (!v)
        return -ENOMEM;
    v->service = vs;
    snprintf(v->name, sizeof(v->name), "%s", name);
    snprintf(v->tag, sizeof(v->tag), "%s", tag);
    v->size = size;
    v->object_count = size / OBJECT_SIZE + 1;
    v->objects = calloc(v->object_count, sizeof(v->objects[0]));
    if (!v->objects) {
        free(v);
        return -ENOMEM;
    }
    list_push_back(&vs->volumes, &v->link);
    return 0;
}

unsigned fake_volumes_open_count(const struct volumes *vs)
{
    unsigned count = 0;
    struct volume *v;
    list_for_each (v, &vs->volumes, link)
        count += v->open_count;
    return count;
}

void fake_volumes_set_speed(struct volumes *vs, enum fake_speed speed)
{
    vs->speed = speed;
}

/* --- the part of volume.h that front ends use --- */

fiber_fn int volume_list(struct volumes *vs, const char *name_or_null, struct volume_info **ret,
                         size_t *ret_count)
{
    size_t count = 0, room = 0;
    struct volume_info *infos = NULL;
    struct volume *v;
    list_for_each (v, &vs->volumes, link)
        room++;
    infos = calloc(room + 1, sizeof(*infos));
    if (!infos)
        return -ENOMEM;
    list_for_each (v, &vs->volumes, link) {
        if (name_or_null && strcmp(v->name, name_or_null) != 0)
            continue;
        struct volume_info *i = &infos[count++];
        memcpy(i->name, v->name, sizeof(i->name));
        memcpy(i->tag, v->tag, sizeof(i->tag));
        i->size = v->size;
        i->object_size = OBJECT_SIZE;
        i->copies = 1;
        i->snapshot_number = 1;
        i->working = v->tag[0] == '\0';
        i->owner_node = -1;
    }
    *ret = infos;
    *ret_count = count;
    return 0;
}

fiber_fn int volume_open(struct volumes *vs, const char *name, const char *tag, unsigned flags,
                         struct volume **ret, struct volume_error *ret_error)
{
    if (strcmp(name, "busy") == 0) {
        if (ret_error)
            snprintf(ret_error->text, sizeof(ret_error->text),
                     "volume busy is open on node other; connect there");
        return -EBUSY;
    }
    struct volume *v;
    list_for_each (v, &vs->volumes, link) {
        if (strcmp(v->name, name) != 0 || strcmp(v->tag, tag ? tag : "") != 0)
            continue;
        v->open_count++;
        *ret = v;
        return 0;
    }
    return -ENOENT;
}

fiber_fn void volume_close(struct volume *v)
{
    ASSERT(v->open_count > 0);
    v->open_count--;
    ASSERT(v->open_count > 0 || v->running_count == 0); /* closed under a running request? */
}

uint64_t volume_size(const struct volume *v)
{
    return v->size;
}

uint32_t volume_object_size(const struct volume *v)
{
    return OBJECT_SIZE;
}

bool volume_is_read_only(const struct volume *v)
{
    return v->tag[0] != '\0';
}

const char *volume_name(const struct volume *v)
{
    return v->name;
}

enum operation { OPERATION_READ, OPERATION_CHANGE };

static int injected_error(const struct volume *v, uint64_t offset, uint64_t length,
                          enum operation operation)
{
    static const struct {
        unsigned mib;
        int error;
        enum operation first; /* applies to this kind and those after it */
    } faults[] = {
        {1, -EIO, OPERATION_READ}, {2, -EUCLEAN, OPERATION_READ}, {3, -ENOSPC, OPERATION_CHANGE}};
    if (strcmp(v->name, "broken") != 0)
        return 0;
    for (size_t i = 0; i < ARRAY_SIZE(faults); i++) {
        uint64_t start = (uint64_t)faults[i].mib * MIB;
        if (operation >= faults[i].first && offset < start + MIB && offset + length > start)
            return faults[i].error;
    }
    return 0;
}

/* Every operation passes here first. */
static fiber_fn int begin(struct volume *v, uint64_t offset, uint64_t length,
                          enum operation operation)
{
    ASSERT(v->open_count > 0);
    ASSERT(offset <= v->size && length <= v->size - offset);
    ASSERT(operation == OPERATION_READ || !volume_is_read_only(v));
    v->running_count++;
    if (strcmp(v->name, "slow") == 0)
        (void)fiber_sleep(v->service->rt, SLOWNESS_NS);
    else if (v->service->speed == FAKE_YIELDS)
        fiber_yield();
    v->running_count--;
    return injected_error(v, offset, length, operation);
}

/* The part of [offset, offset + length) in the first object touched. */
struct piece {
    struct fake_object **object;
    uint32_t offset, length;
};

static struct piece first_piece(struct volume *v, uint64_t offset, uint64_t length)
{
    uint32_t inner = (uint32_t)(offset % OBJECT_SIZE);
    return (struct piece){.object = &v->objects[offset / OBJECT_SIZE],
                          .offset = inner,
                          .length = (uint32_t)MIN(length, (uint64_t)(OBJECT_SIZE - inner))};
}

fiber_fn int volume_read(struct volume *v, uint64_t offset, uint32_t length, void *buffer)
{
    int r = begin(v, offset, length, OPERATION_READ);
    uint8_t *out = buffer;
    while (length > 0 && r == 0) {
        struct piece p = first_piece(v, offset, length);
        if (*p.object)
            memcpy(out, (*p.object)->bytes + p.offset, p.length);
        else
            memset(out, 0, p.length);
        out += p.length;
        offset += p.length;
        length -= p.length;
    }
    return r;
}

/* data NULL: zeros that stay allocated. */
static int store(struct volume *v, uint64_t offset, uint64_t length, const uint8_t *data)
{
    while (length > 0) {
        struct piece p = first_piece(v, offset, length);
        if (!*p.object)
            *p.object = calloc(1, sizeof(**p.object));
        if (!*p.object)
            return -ENOMEM;
        if (data)
            memcpy((*p.object)->bytes + p.offset, data, p.length);
        else
            memset((*p.object)->bytes + p.offset, 0, p.length);
        uint32_t last = (p.offset + p.length - 1) / BLOCK_SIZE;
        for (uint32_t b = p.offset / BLOCK_SIZE; b <= last; b++)
            (*p.object)->mapped[b] = true;
        data = data ? data + p.length : NULL;
        offset += p.length;
        length -= p.length;
    }
    return 0;
}

fiber_fn int volume_write(struct volume *v, uint64_t offset, uint32_t length, const void *buffer)
{
    int r = begin(v, offset, length, OPERATION_CHANGE);
    return r < 0 ? r : store(v, offset, length, buffer);
}

fiber_fn int volume_flush(struct volume *v)
{
    return begin(v, 0, 0, OPERATION_READ);
}

/* Whole blocks become holes; ragged ends are zeroed with OPERATION_CHANGE, else left. */
static void punch(struct volume *v, uint64_t offset, uint64_t length, enum operation ends)
{
    while (length > 0) {
        uint32_t inner = (uint32_t)(offset % BLOCK_SIZE);
        uint32_t n = (uint32_t)MIN(length, (uint64_t)(BLOCK_SIZE - inner));
        struct piece p = first_piece(v, offset, n);
        struct fake_object *o = *p.object;
        if (!o) { /* on to the next object */
            uint64_t rest = OBJECT_SIZE - offset % OBJECT_SIZE;
            offset += MIN(rest, length);
            length -= MIN(rest, length);
            continue;
        }
        if (n == BLOCK_SIZE || ends == OPERATION_CHANGE)
            memset(o->bytes + p.offset, 0, n);
        if (n == BLOCK_SIZE)
            o->mapped[p.offset / BLOCK_SIZE] = false;
        offset += n;
        length -= n;
    }
}

fiber_fn int volume_zero(struct volume *v, uint64_t offset, uint64_t length, unsigned flags)
{
    int r = begin(v, offset, length, OPERATION_CHANGE);
    if (r < 0)
        return r;
    if (flags & VOLUME_ZERO_NO_HOLE)
        return store(v, offset, length, NULL);
    punch(v, offset, length, OPERATION_CHANGE);
    return 0;
}

fiber_fn int volume_discard(struct volume *v, uint64_t offset, uint64_t length)
{
    int r = begin(v, offset, length, OPERATION_CHANGE);
    if (r == 0)
        punch(v, offset, length, OPERATION_READ);
    return r;
}

/* Length from `offset` that has one state, at most `length`. */
static uint64_t same_state(struct volume *v, uint64_t offset, uint64_t length, bool *ret_mapped)
{
    struct fake_object *o = v->objects[offset / OBJECT_SIZE];
    if (!o) {
        *ret_mapped = false;
        return MIN(length, OBJECT_SIZE - offset % OBJECT_SIZE);
    }
    *ret_mapped = o->mapped[offset % OBJECT_SIZE / BLOCK_SIZE];
    return MIN(length, BLOCK_SIZE - offset % BLOCK_SIZE);
}

fiber_fn int volume_map(struct volume *v, uint64_t offset, uint64_t length, unsigned runs_max,
                        struct volume_run **ret, size_t *ret_count)
{
    int r = begin(v, offset, length, OPERATION_READ);
    if (r < 0)
        return r;
    struct volume_run *runs = NULL;
    size_t count = 0, room = 0;
    while (length > 0) {
        bool mapped;
        uint64_t n = same_state(v, offset, length, &mapped);
        if (count > 0 && runs[count - 1].mapped == mapped) {
            runs[count - 1].length += n;
        } else {
            if (runs_max > 0 && count == runs_max)
                break;
            if (count == room) {
                room = room ? 2 * room : 16;
                struct volume_run *grown = realloc(runs, room * sizeof(*runs));
                if (!grown) {
                    free(runs);
                    return -ENOMEM;
                }
                runs = grown;
            }
            runs[count++] = (struct volume_run){.offset = offset, .length = n, .mapped = mapped};
        }
        offset += n;
        length -= n;
    }
    *ret = runs;
    *ret_count = count;
    return 0;
}
