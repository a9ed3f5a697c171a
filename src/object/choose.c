/* SPDX-License-Identifier: Apache-2.0 */
/* The choice between copies; see choose.h for H1 and H2. */
#include "object/choose.h"

static bool beats(const struct copy_state *a, const struct copy_state *b)
{
    if (a->version.value != b->version.value)
        return a->version.value > b->version.value;
    return !a->tombstone && b->tombstone;
}

void choose_copy(const struct copy_state *copies, unsigned count, struct choice *ret)
{
    ASSERT(count >= 1);
    unsigned best = 0;
    for (unsigned i = 1; i < count; i++)
        if (beats(&copies[i], &copies[best]))
            best = i;
    *ret = (struct choice){
        .version = copies[best].version,
        .tombstone = copies[best].tombstone && copies[best].version.value != 0,
        .donor = best,
    };
}

enum copy_action choose_action(const struct choice *c, const struct copy_state *copy)
{
    bool present = copy->version.value != 0 && !copy->tombstone;
    if (c->version.value == 0)
        return COPY_KEEP;
    if (c->tombstone)
        return present ? COPY_REMOVE : COPY_KEEP;
    return present && copy->version.value == c->version.value ? COPY_KEEP : COPY_INSTALL;
}
