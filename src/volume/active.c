/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Data objects in use: who writes them now, their last version, and whether they are still to be
 * linked or removed.
 *
 * A1 An active object lives while it has users, or is unlinked or punched; it is pooled then, so
 * that the steady state allocates nothing. A2 Its version and the leaf's table of sequences say the
 * same for versions of this term.
 */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "volume/instance.h"

struct active *active_find(const struct instance *in, uint32_t index)
{
    struct hnode *n = htable_first(&in->actives, hash_u64(index));
    for (; n; n = htable_next_same(n)) {
        struct active *a = container_of(n, struct active, node);
        if (a->index == index)
            return a;
    }
    return NULL;
}

static struct active *take(struct instance *in)
{
    struct active *a;
    if (list_empty(&in->active_pool)) {
        a = malloc(sizeof(*a));
    } else {
        a = list_first(&in->active_pool, struct active, unlinked_link);
        list_remove(&a->unlinked_link);
    }
    return a;
}

static bool reserve_sequences(struct instance *in, struct block *leaf)
{
    if (!leaf->sequences)
        leaf->sequences = calloc(in->image.entries, sizeof(*leaf->sequences));
    return leaf->sequences != NULL;
}

struct active *active_get(struct instance *in, uint32_t index)
{
    struct active *a = active_find(in, index);
    if (a) {
        a->users++;
        return a;
    }
    struct block *leaf = leaf_get(in, index / in->image.entries);
    if (!leaf || !reserve_sequences(in, leaf))
        return NULL;
    a = take(in);
    if (!a)
        return NULL;
    *a = (struct active){.in = in, .leaf = leaf, .index = index, .users = 1};
    waitq_init(&a->waiters);
    list_init(&a->flights);
    list_init(&a->unlinked_link);
    list_init(&a->punched_link);
    list_init(&a->leaf_link);
    uint64_t s = leaf->sequences[index % in->image.entries] & SEQUENCE_MASK;
    if (s)
        a->version = version_make(in->owner.term, s);
    if (htable_insert(&in->actives, &a->node, hash_u64(index))) {
        free(a);
        return NULL;
    }
    return a;
}

static void free_if_idle(struct active *a)
{
    if (a->users > 0 || a->unlinked || a->punched)
        return;
    ASSERT(!a->exclusive && list_empty(&a->flights) && list_empty(&a->leaf_link));
    htable_remove(&a->in->actives, &a->node);
    list_push_front(&a->in->active_pool, &a->unlinked_link);
}

void active_put(struct active *a)
{
    ASSERT(a->users > 0);
    a->users--;
    free_if_idle(a);
}

fiber_fn void active_lock(struct active *a)
{
    ASSERT(a->users > 0);
    while (a->exclusive)
        waitq_wait(&a->waiters);
    a->exclusive = true;
    while (!list_empty(&a->flights))
        waitq_wait(&a->waiters);
}

void active_unlock(struct active *a)
{
    ASSERT(a->exclusive);
    a->exclusive = false;
    waitq_wake_all(&a->waiters);
}

void active_set_version(struct active *a, struct version v)
{
    a->version = v;
    uint64_t *s = &a->leaf->sequences[a->index % a->in->image.entries];
    if (v.value && version_term(v).value == a->in->owner.term.value)
        *s = (*s & SEQUENCE_LINKED) | (v.value & SEQUENCE_MASK); /* A2 */
    else
        *s &= SEQUENCE_LINKED;
}

bool active_is_linked(const struct active *a)
{
    return a->leaf->sequences[a->index % a->in->image.entries] & SEQUENCE_LINKED;
}

void active_set_linked(struct active *a, bool linked)
{
    uint64_t *s = &a->leaf->sequences[a->index % a->in->image.entries];
    *s = linked ? *s | SEQUENCE_LINKED : *s & ~SEQUENCE_LINKED;
}

/* The leaf has work while one of its objects is unlinked or punched. */
static void update_work(struct active *a)
{
    struct instance *in = a->in;
    bool wanted = a->unlinked || a->punched;
    if (wanted && list_empty(&a->leaf_link)) {
        list_push_back(&a->leaf->work, &a->leaf_link);
        if (list_empty(&a->leaf->work_link))
            list_push_back(&in->leaf_work, &a->leaf->work_link);
        instance_work(in);
    } else if (!wanted) {
        list_remove(&a->leaf_link);
        if (list_empty(&a->leaf->work))
            list_remove(&a->leaf->work_link);
    }
}

void active_set_unlinked(struct active *a, struct version since)
{
    struct instance *in = a->in;
    if (a->unlinked)
        return;
    a->unlinked = true;
    a->unlinked_since = since;
    struct list *at = in->unlinked.prev; /* sorted; nearly always the newest */
    while (at != &in->unlinked &&
           list_entry(at, struct active, unlinked_link)->unlinked_since.value > since.value)
        at = at->prev;
    list_insert_between(&a->unlinked_link, at, at->next);
    in->unlinked_count++;
    update_work(a);
}

void active_clear_unlinked(struct active *a)
{
    if (!a->unlinked)
        return;
    a->unlinked = false;
    list_remove(&a->unlinked_link);
    a->in->unlinked_count--;
    update_work(a);
    free_if_idle(a);
}

void active_set_punched(struct active *a, struct version version)
{
    struct instance *in = a->in;
    if (a->punched)
        list_remove(&a->punched_link);
    else
        in->punched_count++;
    a->punched = true;
    a->punched_version = version;
    struct list *at = in->punched.prev;
    while (at != &in->punched &&
           list_entry(at, struct active, punched_link)->punched_version.value > version.value)
        at = at->prev;
    list_insert_between(&a->punched_link, at, at->next);
    update_work(a);
}

void active_clear_punched(struct active *a)
{
    if (!a->punched)
        return;
    a->punched = false;
    a->punched_version = a->emptied_version = (struct version){0};
    list_remove(&a->punched_link);
    a->in->punched_count--;
    update_work(a);
    free_if_idle(a);
}

bool active_overlaps(const struct active *a, uint32_t offset, uint32_t length)
{
    struct flight *f;
    list_for_each (f, &a->flights, link) {
        if (offset < f->offset + f->length && f->offset < offset + length)
            return true;
    }
    return false;
}
