/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Removing what this node holds of groups that have gone elsewhere (C3).
 *
 * X1 Only of a group that this node is no member of, in whose last full set it is not, and that has
 *    as many in-sync nodes as its pool wants for writing: then everything that was answered is on
 *    others, and nobody will ask for what is here.
 * X2 Every step looks at the map again, and is admitted by the group's gate as other work is: a map
 *    that makes this node join again is acted on after the step, and the comparison sees the rest.
 */
#include <stdlib.h>
#include "object/object_internal.h"

#define LOG_MODULE "object"
#include "base/log.h"

#define STEP_COUNT    16u
#define STEP_PAUSE_NS (20 * NS_PER_MS)
#define RETRY_NS      (2 * NS_PER_S)

/* X1 */
static bool is_elsewhere(const struct objects *o, uint32_t group)
{
    const struct map_group *g = group_map(o, group);
    if (!g || !gate_serving(o) || map_group_has(g, (uint16_t)o->self) || !group_may_write(o, group))
        return false;
    for (unsigned i = 0; i < g->last_full_count; i++)
        if (g->last_full[i] == o->self)
            return false;
    return true;
}

static fiber_fn int remove_step(struct objects *o, const struct store_entry *entries, size_t count)
{
    struct store_meta_change gone[STEP_COUNT];
    unsigned n = 0;
    for (size_t i = 0; i < count; i++)
        if (!entries[i].tombstone)
            gone[n++] = (struct store_meta_change){.oid = entries[i].oid, .remove = true};
    int r = n > 0 ? store_meta_apply(o->store, gone, n) : 0;
    for (size_t i = 0; i < count && r == 0; i++)
        if (entries[i].tombstone)
            r = tombstone_drop(o->store, &entries[i].oid, entries[i].version);
    return r;
}

/* 0: nothing of that group is here any more. */
static fiber_fn int clean_group(struct objects *o, uint32_t group)
{
    const struct store_filter filter = {.by_group = true, .group = (uint16_t)group};
    struct store_entry *entries;
    size_t count;
    int r = store_list(o->store, &filter, &entries, &count);
    if (r < 0)
        return r;
    if (count > 0)
        log_info("group %u is on other nodes now; removing its %zu objects here", group, count);
    for (size_t i = 0; i < count && r == 0; i += STEP_COUNT) {
        struct group *g = group_get(o, group);
        if (o->stopping || !g || g->closed || !is_elsewhere(o, group)) {
            r = -EAGAIN;
            break;
        }
        g->inflight++; /* X2 */
        r = remove_step(o, entries + i, MIN(count - i, (size_t)STEP_COUNT));
        gate_leave(o, group);
        if (r == 0 && fiber_sleep(o->rt, STEP_PAUSE_NS) < 0)
            r = -ECANCELED;
    }
    if (count > 0)
        free(entries);
    return r;
}

static fiber_fn int clean_all(struct objects *o)
{
    int first = 0;
    for (uint32_t i = 0; i < o->group_count && !o->stopping; i++) {
        if (!is_elsewhere(o, i))
            continue;
        int r = clean_group(o, i);
        first = first ? first : r;
    }
    /* While the session is not confirmed nothing is looked at, and no map need follow. */
    return first == 0 && o->self >= 0 && !gate_serving(o) ? -EAGAIN : first;
}

static fiber_fn void clean_main(void *arg)
{
    struct objects *o = arg;
    while (o->clean_again && !o->stopping && !rt_stopping(o->rt)) {
        o->clean_again = false;
        join_mark_exact(o);
        int r = clean_all(o);
        if (r < 0 && !o->stopping && r != -ECANCELED) {
            o->clean_again = true;
            if (r != -EAGAIN)
                log_warn("objects of groups that have gone elsewhere cannot be removed yet (%s)",
                         err_text(r));
            waitq_wait_until(&o->map_wait, o->rt, clock_now(o->rt) + RETRY_NS);
        }
    }
    o->clean_running = false;
    objects_fiber_end(o);
}

void clean_kick(struct objects *o)
{
    o->clean_again = true;
    if (!o->clean_running && !o->stopping)
        o->clean_running = objects_spawn(o, "object-clean", clean_main, o) == 0;
}
