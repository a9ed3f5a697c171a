/* SPDX-License-Identifier: Apache-2.0 */
/* The table of objects that a check fills. */
#include "volume/check_table.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/err.h"

void check_table_init(struct check_table *t)
{
    htable_init(&t->objects);
}

void check_table_done(struct check_table *t)
{
    for (struct hnode *n = htable_iter(&t->objects, NULL); n;) {
        struct check_object *o = container_of(n, struct check_object, node);
        n = htable_iter(&t->objects, n);
        ledger_done(&o->ledger);
        free(o->expected);
        free(o);
    }
    htable_done(&t->objects);
}

struct check_object *check_find(const struct check_table *t, const struct oid *oid)
{
    struct hnode *n = htable_first(&t->objects, oid_hash(oid));
    for (; n; n = htable_next_same(n)) {
        struct check_object *o = container_of(n, struct check_object, node);
        if (oid_equal(&o->oid, oid))
            return o;
    }
    return NULL;
}

struct check_object *check_get(struct check_table *t, const struct oid *oid)
{
    struct check_object *o = check_find(t, oid);
    if (o)
        return o;
    o = calloc(1, sizeof(*o));
    if (!o)
        return NULL;
    o->oid = *oid;
    if (ledger_init(&o->ledger) == 0) {
        if (htable_insert(&t->objects, &o->node, oid_hash(oid)) == 0)
            return o;
        ledger_done(&o->ledger);
    }
    free(o);
    return NULL;
}

unsigned check_live_replicas(const struct check_object *o)
{
    unsigned live = 0;
    for (unsigned i = 0; i < o->replica_count; i++)
        live += !o->replicas[i].tombstone;
    return live;
}

static int add_count(struct check_object *o, uint32_t g, int64_t n)
{
    for (unsigned i = 0; i < o->expected_count; i++) {
        if (o->expected[i].generation == g) {
            o->expected[i].count += n;
            return 0;
        }
    }
    struct ledger_count *more =
        reallocarray(o->expected, o->expected_count + 1, sizeof(*o->expected));
    if (!more)
        return -ENOMEM;
    o->expected = more;
    more[o->expected_count++] = (struct ledger_count){.generation = g, .count = n};
    return 0;
}

int check_add_reference(struct check_object *o, uint32_t g, uint64_t copies)
{
    int r = add_count(o, g, 1);
    return r || copies == 0 ? r : add_count(o, g + 1, -(int64_t)copies);
}

bool check_ledger_is_exact(const struct check_object *o)
{
    unsigned nonzero = 0;
    for (unsigned i = 0; i < o->expected_count; i++) {
        const struct ledger_count *c = &o->expected[i];
        nonzero += c->count != 0;
        if (ledger_get(&o->ledger, c->generation) != c->count)
            return false;
    }
    return nonzero == o->ledger.count_count && o->ledger.state == LEDGER_LIVE;
}

void check_format_counts(const struct ledger_count *counts, unsigned count, char *out, size_t size)
{
    size_t n = (size_t)snprintf(out, size, "{");
    const char *separator = "";
    for (unsigned i = 0; i < count && n < size; i++) {
        if (counts[i].count == 0)
            continue;
        n += (size_t)snprintf(out + n, size - n, "%s%u: %" PRId64, separator, counts[i].generation,
                              counts[i].count);
        separator = ", ";
    }
    if (n < size)
        snprintf(out + n, size - n, "}");
}
