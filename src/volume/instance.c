/* SPDX-License-Identifier: Apache-2.0 */
/* Open images: life, versions in flight, the gate of guest changes. */
#include "volume/instance.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"

#define LOG_MODULE "volume"

struct instance *instance_new(struct volumes *vs, const char *name, const char *tag)
{
    struct instance *in = calloc(1, sizeof(*in));
    if (!in)
        return NULL;
    in->vs = vs;
    in->references = 1;
    in->own_idle_since_ns = clock_now(vs->rt);
    strcpy(in->name, name);
    strcpy(in->tag, tag ? tag : "");
    block_init(&in->root, 2, 0);
    htable_init(&in->actives);
    struct list *lists[] = {&in->active_pool, &in->inflight,        &in->unlinked,   &in->punched,
                            &in->leaf_work,   &in->leaves_unlinked, &in->blocks_owed};
    for (unsigned i = 0; i < ARRAY_SIZE(lists); i++)
        list_init(lists[i]);
    struct waitq *queues[] = {&in->gate, &in->drained, &in->answered,
                              &in->work, &in->hurry,   &in->background_ended};
    for (unsigned i = 0; i < ARRAY_SIZE(queues); i++)
        waitq_init(queues[i]);
    fmutex_init(&in->settle_lock);
    timer_init(&in->grace, vs->rt, NULL);
    list_push_back(&vs->instances, &in->link);
    return in;
}

void instance_set_state(struct instance *in, enum instance_state state)
{
    static const bool legal[4][4] = {
        [INSTANCE_OPENING] = {[INSTANCE_OPEN] = true, [INSTANCE_GONE] = true},
        [INSTANCE_OPEN] = {[INSTANCE_CLOSING] = true},
        [INSTANCE_CLOSING] = {[INSTANCE_OPEN] = true, [INSTANCE_GONE] = true},
    };
    ASSERT(legal[in->state][state]);
    in->state = state;
    if (state == INSTANCE_GONE)
        list_remove(&in->link);
    waitq_wake_all(&in->vs->instances_changed);
}

struct instance *instance_ref(struct instance *in)
{
    in->references++;
    return in;
}

static void free_actives(struct instance *in)
{
    for (struct hnode *n = htable_iter(&in->actives, NULL); n;) {
        struct active *a = container_of(n, struct active, node);
        n = htable_iter(&in->actives, n);
        ASSERT(a->users == 0 && list_empty(&a->flights));
        free(a);
    }
    htable_done(&in->actives);
    while (!list_empty(&in->active_pool)) {
        struct active *a = list_first(&in->active_pool, struct active, unlinked_link);
        list_remove(&a->unlinked_link);
        free(a);
    }
}

void instance_unref(struct instance *in)
{
    ASSERT(in->references > 0);
    if (--in->references > 0)
        return;
    ASSERT(in->state == INSTANCE_GONE && in->users + in->operations == 0 && !in->background);
    ASSERT(list_empty(&in->inflight));
    timer_cancel(&in->grace);
    index_done(in);
    free_actives(in);
    free(in);
}

struct instance *instance_find(struct volumes *vs, const char *name, const char *tag)
{
    struct instance *in;
    list_for_each (in, &vs->instances, link) {
        if (strcmp(in->name, name) == 0 && strcmp(in->tag, tag ? tag : "") == 0)
            return in;
    }
    return NULL;
}

int instance_set_image(struct instance *in, const struct image *image)
{
    ASSERT(!in->leaves && image->vid.value != 0);
    in->leaves = calloc(image->entries, sizeof(*in->leaves));
    if (!in->leaves)
        return -ENOMEM;
    in->image = *image;
    in->owner.vid = image->vid;
    return 0;
}

void instance_fail(struct instance *in, int error, const char *why)
{
    ASSERT(error < 0);
    if (in->failed)
        return;
    bool store_is_lost = error == -ECONNRESET || error == -ETIMEDOUT;
    in->failed = store_is_lost ? -ECANCELED : error; /* what guests may get: volume.h */
    in->owner.cancelled = true;
    log_error("volume %s stops serving on this node: %s (%s)", in->name, why, err_text(error));
    waitq_wake_all(&in->gate);
    waitq_wake_all(&in->work);
    waitq_wake_all(&in->hurry);
}

struct version instance_next_version(struct instance *in)
{
    ASSERT(!in->frozen && in->owner.term.value > 0);
    return version_make(in->owner.term, ++in->sequence);
}

struct version instance_stable(const struct instance *in)
{
    uint64_t low = version_make(in->owner.term, in->sequence).value;
    if (!list_empty(&in->inflight))
        low = MIN(low, list_first(&in->inflight, struct flight, inflight_link)->version.value - 1);
    if (!list_empty(&in->unlinked))
        low = MIN(
            low, list_first(&in->unlinked, struct active, unlinked_link)->unlinked_since.value - 1);
    if (!list_empty(&in->punched))
        low = MIN(low,
                  list_first(&in->punched, struct active, punched_link)->punched_version.value - 1);
    if (!list_empty(&in->leaves_unlinked))
        low = MIN(
            low,
            list_first(&in->leaves_unlinked, struct block, unlinked_link)->unlinked_since.value -
                1);
    if (!list_empty(&in->blocks_owed))
        low = MIN(low, list_first(&in->blocks_owed, struct block, owed_link)->owed_since.value - 1);
    return (struct version){low};
}

void flight_begin(struct instance *in, struct active *a, struct flight *f, struct version version,
                  uint32_t offset, uint32_t length)
{
    *f = (struct flight){.version = version, .offset = offset, .length = length};
    list_init(&f->link);
    list_init(&f->inflight_link);
    if (a)
        list_push_back(&a->flights, &f->link);
    if (version.value == 0)
        return; /* only readers wait for it */
    ASSERT(list_empty(&in->inflight) ||
           list_entry(in->inflight.prev, struct flight, inflight_link)->version.value <
               version.value);
    list_push_back(&in->inflight, &f->inflight_link);
}

void flight_end(struct instance *in, struct active *a, struct flight *f)
{
    list_remove(&f->inflight_link);
    list_remove(&f->link);
    if (a)
        waitq_wake_all(&a->waiters);
    waitq_wake_all(&in->answered);
    if (in->background_idle)
        instance_work(in); /* S may move */
}

fiber_fn int volume_gate_enter(struct instance *in)
{
    while (in->held && !in->failed)
        waitq_wait(&in->gate);
    if (in->failed)
        return in->failed;
    in->changing++;
    return 0;
}

void volume_gate_leave(struct instance *in)
{
    ASSERT(in->changing > 0);
    if (--in->changing == 0)
        waitq_wake_all(&in->drained);
}

fiber_fn void gate_hold(struct instance *in)
{
    ASSERT(!in->held);
    in->held = true;
    while (in->changing > 0)
        waitq_wait(&in->drained);
}

void gate_release(struct instance *in)
{
    ASSERT(in->held);
    in->held = false;
    waitq_wake_all(&in->gate);
}
