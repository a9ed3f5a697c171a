/* SPDX-License-Identifier: Apache-2.0 */
/* Records in the cluster store. */
#include "volume/registry.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "volume/names.h"

#define LOG_MODULE "volume"

/* Reads the record at its key; absence is 0 with *ret_exists false. */
static fiber_fn int read_record(struct cs *cs, const char *name, struct record *ret,
                                uint64_t *ret_revision, bool *ret_exists)
{
    char key[CS_KEY_SIZE];
    name_key(name, key);
    struct enc value;
    enc_init(&value);
    uint64_t revision = CS_REVISION_ABSENT;
    int r = cs_get(cs, key, &value, &revision);
    if (r == -ENOENT) {
        record_init(ret);
        strcpy(ret->name, name);
        *ret_exists = false;
        *ret_revision = CS_REVISION_ABSENT;
        r = 0;
    } else if (!r) {
        r = record_decode(value.data, value.length, ret);
        *ret_exists = true;
        *ret_revision = revision;
        if (r)
            log_error("the record of volume %s cannot be read: %s", name, err_text(r));
        else if (strcmp(ret->name, name) != 0) { /* M1 */
            log_error("the names %s and %s have the same key; choose another name", name,
                      ret->name);
            record_done(ret);
            r = -EEXIST;
        }
    }
    enc_done(&value);
    return r;
}

fiber_fn int registry_get(struct cs *cs, const char *name, struct record *ret)
{
    uint64_t revision;
    bool exists;
    int r = read_record(cs, name, ret, &revision, &exists);
    if (!r && !exists) {
        record_done(ret);
        r = -ENOENT;
    }
    return r;
}

/* One record of a transaction. */
struct edited {
    struct record record;
    uint64_t revision;
    bool exists;
    char key[CS_KEY_SIZE];
    struct enc value;
};

static fiber_fn int edited_read(struct cs *cs, const char *name, struct edited *ret)
{
    enc_init(&ret->value);
    name_key(name, ret->key);
    return read_record(cs, name, &ret->record, &ret->revision, &ret->exists);
}

static void edited_done(struct edited *e)
{
    record_done(&e->record);
    enc_done(&e->value);
}

/* Y2. Adds at most one operation. */
static int edited_op(struct edited *e, struct cs_op *ops, unsigned *count)
{
    if (record_is_empty(&e->record)) {
        if (e->exists)
            ops[(*count)++] =
                (struct cs_op){.kind = CS_DELETE, .key = e->key, .revision = e->revision};
        return 0;
    }
    record_encode(&e->record, &e->value);
    if (e->value.error)
        return e->value.error;
    if (e->value.length > RECORD_VALUE_MAX)
        return -EFBIG;
    ops[(*count)++] = (struct cs_op){.kind = CS_PUT,
                                     .key = e->key,
                                     .revision = e->revision,
                                     .value = e->value.data,
                                     .length = e->value.length};
    return 0;
}

static fiber_fn int commit(struct cs *cs, struct edited *first, struct edited *second,
                           const struct registry_edit *edit)
{
    struct cs_op ops[5];
    unsigned count = 0;
    char trash_keys[ARRAY_SIZE(edit->trash)][CS_KEY_SIZE], use[CS_KEY_SIZE];
    struct enc trash;
    enc_init(&trash);
    int r = edited_op(first, ops, &count);
    if (!r && second)
        r = edited_op(second, ops, &count);
    for (unsigned i = 0; i < edit->trash_count; i++)
        trash_encode(&edit->trash[i], &trash);
    if (!r)
        r = trash.error;
    for (unsigned i = 0; i < edit->trash_count; i++) {
        size_t size = trash.length / edit->trash_count;
        trash_key(edit->trash[i].vid, trash_keys[i]);
        ops[count++] = (struct cs_op){.kind = CS_PUT,
                                      .key = trash_keys[i],
                                      .revision = CS_REVISION_ANY,
                                      .value = trash.data + i * size,
                                      .length = size};
    }
    if (edit->use.value) {
        use_key(edit->use, cs->session, use);
        ops[count++] = (struct cs_op){.kind = CS_PUT,
                                      .key = use,
                                      .revision = CS_REVISION_ANY,
                                      .value = "",
                                      .ephemeral = true};
    }
    if (!r && count > 0)
        r = cs_txn(cs, ops, count, NULL);
    enc_done(&trash);
    return r;
}

/* One attempt: 0, an error, or -ESTALE when it has to be made again. */
static fiber_fn int edit_once(struct cs *cs, const char *name, const char *other, registry_fn *fn,
                              void *arg)
{
    struct edited first, second;
    bool two = other && strcmp(name, other) != 0;
    int r = edited_read(cs, name, &first);
    if (r)
        return r;
    r = two ? edited_read(cs, other, &second) : 0;
    if (r)
        goto done_first;
    struct registry_edit edit = {.record = &first.record, .exists = first.exists};
    if (other) {
        edit.other = two ? &second.record : &first.record;
        edit.other_exists = two ? second.exists : first.exists;
    }
    r = fn(arg, &edit);
    if (r == REGISTRY_UNCHANGED) {
        r = 0;
    } else if (!r) {
        r = commit(cs, &first, two ? &second : NULL, &edit);
        if (r == -ETIMEDOUT || r == -ECONNRESET)
            r = -ESTALE; /* unknown: look again (Y1) */
    }
    if (two)
        edited_done(&second);
done_first:
    edited_done(&first);
    return r;
}

fiber_fn int registry_edit(struct cs *cs, const char *name, const char *other, registry_fn *fn,
                           void *arg)
{
    for (;;) {
        if (cs->lost)
            return -ECANCELED;
        int r = edit_once(cs, name, other, fn, arg);
        if (r != -ESTALE)
            return r;
        fiber_yield();
    }
}

struct listing {
    void *items;
    size_t count, capacity, item_size;
    unsigned bad;
    int (*decode)(const void *p, size_t length, void *ret);
};

static int list_one(void *arg, const char *key, const void *value, size_t length, uint64_t revision)
{
    struct listing *l = arg;
    if (l->count == l->capacity) {
        size_t capacity = l->capacity ? 2 * l->capacity : 16;
        void *more = reallocarray(l->items, capacity, l->item_size);
        if (!more)
            return -ENOMEM;
        l->items = more;
        l->capacity = capacity;
    }
    int r = l->decode(value, length, (char *)l->items + l->count * l->item_size);
    if (r == -ENOMEM)
        return r;
    if (r) {
        l->bad++;
        log_error("the value of %s cannot be read: %s", key, err_text(r));
        return 0;
    }
    l->count++;
    return 0;
}

static int decode_record(const void *p, size_t length, void *ret)
{
    return record_decode(p, length, ret);
}

static int decode_trash(const void *p, size_t length, void *ret)
{
    return trash_decode(p, length, ret);
}

fiber_fn int registry_list(struct cs *cs, struct record **ret, size_t *ret_count, unsigned *ret_bad)
{
    struct listing l = {.item_size = sizeof(struct record), .decode = decode_record};
    int r = cs_list(cs, VOLUME_PREFIX, list_one, &l);
    if (r) {
        registry_list_free(l.items, l.count);
        return r;
    }
    *ret = l.items;
    *ret_count = l.count;
    if (ret_bad)
        *ret_bad = l.bad;
    return 0;
}

void registry_list_free(struct record *records, size_t count)
{
    for (size_t i = 0; i < count; i++)
        record_done(&records[i]);
    free(records);
}

fiber_fn int registry_list_trash(struct cs *cs, struct trash **ret, size_t *ret_count)
{
    struct listing l = {.item_size = sizeof(struct trash), .decode = decode_trash};
    int r = cs_list(cs, TRASH_PREFIX, list_one, &l);
    if (r) {
        free(l.items);
        return r;
    }
    *ret = l.items;
    *ret_count = l.count;
    return 0;
}

static fiber_fn int delete_key(struct cs *cs, const char *key)
{
    struct cs_op op = {.kind = CS_DELETE, .key = key, .revision = CS_REVISION_ANY};
    for (;;) {
        int r = cs->lost ? -ECANCELED : cs_txn(cs, &op, 1, NULL);
        if (r == -ENOENT || r == -ESTALE)
            return 0; /* somebody else did it */
        if (r != -ETIMEDOUT && r != -ECONNRESET)
            return r;
        fiber_yield();
    }
}

fiber_fn int registry_erase_trash(struct cs *cs, struct vid vid)
{
    char key[CS_KEY_SIZE];
    trash_key(vid, key);
    return delete_key(cs, key);
}

static int found_one(void *arg, const char *key, const void *value, size_t length,
                     uint64_t revision)
{
    return 1;
}

fiber_fn int registry_in_use(struct cs *cs, struct vid vid)
{
    char prefix[CS_KEY_SIZE];
    use_prefix(vid, prefix);
    return cs_list(cs, prefix, found_one, NULL);
}

fiber_fn void registry_release(struct cs *cs, struct vid vid)
{
    char key[CS_KEY_SIZE];
    use_key(vid, cs->session, key);
    int r = delete_key(cs, key);
    if (r && r != -ECANCELED)
        log_warn("could not release image %lu: %s; it stays in use until this daemon ends",
                 (unsigned long)vid.value, err_text(r));
}
