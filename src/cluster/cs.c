/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver contract's common side: checks what callers pass, then dispatches to the driver.
 *
 * CS1 A driver sees only well-formed keys, values of at most CS_VALUE_MAX, and transactions that
 *     write no key twice.
 * CS2 All conditions of a transaction are about the state before it.
 */
#include "cluster/driver.h"
#include <string.h>
#include "base/err.h"

/* More would not fit into one transaction of every driver; it bounds the check for repeated keys.
 */
#define OP_COUNT_MAX 1024u

static bool text_valid(const char *s)
{
    size_t length = strnlen(s, CS_KEY_SIZE);
    for (size_t i = 0; i < length; i++) {
        if (s[i] <= ' ' || s[i] > '~')
            return false;
    }
    return length < CS_KEY_SIZE;
}

static bool key_valid(const char *key)
{
    return key && key[0] != '\0' && text_valid(key);
}

static int check_ops(const struct cs_op *ops, unsigned count)
{
    if (count == 0 || count > OP_COUNT_MAX)
        return -EINVAL;
    for (unsigned i = 0; i < count; i++) {
        if (!key_valid(ops[i].key))
            return -EINVAL;
        if (ops[i].kind == CS_CHECK)
            continue;
        if (ops[i].kind == CS_PUT && ops[i].length > CS_VALUE_MAX)
            return -EFBIG;
        if (ops[i].kind == CS_PUT && ops[i].length > 0 && !ops[i].value)
            return -EINVAL;
        for (unsigned j = 0; j < i; j++) {
            if (ops[j].kind != CS_CHECK && strcmp(ops[i].key, ops[j].key) == 0)
                return -EINVAL;
        }
    }
    return 0;
}

void cs_close(struct cs *cs)
{
    if (cs)
        cs->ops->close(cs);
}

int cs_txn(struct cs *cs, const struct cs_op *ops, unsigned count, uint64_t *ret_revision)
{
    int r = check_ops(ops, count);
    if (r < 0)
        return r;
    uint64_t revision = 0;
    r = cs->ops->txn(cs, ops, count, &revision);
    if (r == 0 && ret_revision)
        *ret_revision = revision;
    return r;
}

int cs_get(struct cs *cs, const char *key, struct enc *ret_value, uint64_t *ret_revision)
{
    if (!key_valid(key))
        return -EINVAL;
    uint64_t revision = 0;
    int r = cs->ops->get(cs, key, ret_value, &revision);
    if (r == 0 && ret_value->error)
        r = ret_value->error;
    if (r == 0 && ret_revision)
        *ret_revision = revision;
    return r;
}

int cs_list(struct cs *cs, const char *prefix,
            int (*fn)(void *arg, const char *key, const void *value, size_t length,
                      uint64_t revision),
            void *arg)
{
    return text_valid(prefix) ? cs->ops->list(cs, prefix, fn, arg) : -EINVAL;
}

int cs_watch(struct cs *cs, const char *prefix, cs_watch_fn *fn, void *arg)
{
    return text_valid(prefix) ? cs->ops->watch(cs, prefix, fn, arg) : -EINVAL;
}

const struct cs_driver *cs_driver_find(const char *spec, const char **ret_where)
{
    for (const struct cs_driver *d = cs_drivers; d->name; d++) {
        size_t length = strlen(d->name);
        if (strncmp(spec, d->name, length) == 0 && spec[length] == ':' &&
            spec[length + 1] != '\0') {
            *ret_where = spec + length + 1;
            return d;
        }
    }
    return NULL;
}
