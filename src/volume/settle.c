/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing the index lazily: linking own objects and leaves, removing what was punched, dropping
 * what is owed.
 *
 * T1 What a block write is to contain is gathered in the step that takes its version (V4): what is
 * punched or written later has a higher version, and S stays below the block's until it is
 * answered. T2 One pass at a time (settle_lock). Within it leaves are tidied side by side, then the
 * root, then debts. T3 An entry that referred to another vid is owed with the write that replaces
 * it (V2); a shared leaf with copied = 1, because the own leaf is a copy of it (V3).
 */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "volume/instance.h"

#define LOG_MODULE "volume"

#define SETTLE_WIDTH 8u  /* blocks at once */
#define REMOVE_WIDTH 16u /* objects at once, per leaf */

bool settle_has_work(const struct instance *in)
{
    return !list_empty(&in->leaf_work) || !list_empty(&in->leaves_unlinked) ||
           !list_empty(&in->blocks_owed);
}

/* --- one leaf --- */

enum tidy_kind { TIDY_LINK, TIDY_EMPTY };
struct tidy_item {
    struct active *a;
    enum tidy_kind kind;
    struct version punched; /* TIDY_EMPTY */
};

/* What one write of a leaf does, and for whom. */
struct tidy {
    struct instance *in;
    struct block *leaf;
    struct tidy_item *items;
    struct block_change *changes;
    struct index_owed *owed;
    unsigned item_count, change_count, owed_count;
};

static void tidy_done(struct tidy *t)
{
    for (unsigned i = 0; i < t->item_count; i++)
        active_put(t->items[i].a);
    free(t->items);
    free(t->changes);
    free(t->owed);
    t->items = NULL;
    t->changes = NULL;
    t->owed = NULL;
    t->item_count = t->change_count = t->owed_count = 0;
}

static int tidy_reserve(struct tidy *t)
{
    unsigned count = 0;
    struct active *a;
    list_for_each (a, &t->leaf->work, leaf_link)
        count++;
    t->items = calloc(count + 1, sizeof(*t->items));
    t->changes = calloc(count + 1, sizeof(*t->changes));
    t->owed = calloc(count + t->leaf->owed_count + 1, sizeof(*t->owed));
    if (!t->items || !t->changes || !t->owed)
        return -ENOMEM;
    t->owed_count = t->leaf->owed_count;
    if (t->owed_count)
        memcpy(t->owed, t->leaf->owed, t->owed_count * sizeof(*t->owed));
    return 0;
}

/* Puts the entry of one object right. */
static void tidy_add(struct tidy *t, struct active *a, enum tidy_kind kind)
{
    uint64_t vid = t->in->image.vid.value;
    uint32_t at = a->index % t->in->image.entries;
    struct index_entry old = t->leaf->entries[at];
    struct index_entry new = {.vid = kind == TIDY_LINK ? vid : 0};
    a->users++;
    t->items[t->item_count++] =
        (struct tidy_item){.a = a, .kind = kind, .punched = a->punched_version};
    if (old.vid == new.vid)
        return;
    if (old.vid != 0 && old.vid != vid) /* T3 */
        t->owed[t->owed_count++] =
            (struct index_owed){.vid = old.vid, .index = a->index, .generation = old.generation};
    t->changes[t->change_count++] = (struct block_change){.at = at, .entry = new};
}

/* T1. Does not suspend. */
static void tidy_gather(struct tidy *t)
{
    struct active *a, *next;
    list_for_each_safe (a, next, &t->leaf->work, leaf_link) {
        if (active_is_punched(a))
            tidy_add(t, a, TIDY_EMPTY);
        else if (a->unlinked && a->version.value != 0)
            tidy_add(t, a, TIDY_LINK);
        else if (a->unlinked && a->users == 0)
            active_clear_unlinked(a); /* it was never made */
    }
}

/* The write was answered (or nothing had to be written): memory follows. */
static void tidy_answered(struct tidy *t)
{
    for (unsigned i = 0; i < t->item_count; i++) {
        struct active *a = t->items[i].a;
        if (t->items[i].kind == TIDY_LINK) {
            active_clear_unlinked(a);
            active_set_linked(a, true);
            a->emptied_version = (struct version){0};
            continue;
        }
        active_set_linked(a, false);
        if (active_is_punched(a))
            a->emptied_version = t->items[i].punched;
        else if (a->version.value != 0) /* V4: written since, so it is unlinked again */
            active_set_unlinked(a, t->leaf->version);
    }
}

static fiber_fn int remove_one(void *arg, unsigned i)
{
    struct tidy *t = arg;
    return t->items[i].kind == TIDY_EMPTY ? data_remove(t->items[i].a) : 0;
}

static fiber_fn int tidy_leaf(struct instance *in, struct block *leaf)
{
    struct tidy t = {.in = in, .leaf = leaf};
    int r;
    fmutex_lock(&leaf->lock);
    do {
        tidy_done(&t);
        r = in->failed ? in->failed : block_load(in, leaf);
        if (!r)
            r = tidy_reserve(&t);
        if (r)
            break;
        tidy_gather(&t);
        if (t.change_count)
            r = block_write(in, leaf, t.changes, t.change_count, t.owed, t.owed_count);
    } while (r == -EAGAIN);
    if (!r)
        tidy_answered(&t);
    fmutex_unlock(&leaf->lock);
    if (!r)
        r = parallel_run(in->vs->rt, t.item_count, REMOVE_WIDTH, remove_one, &t);
    tidy_done(&t);
    return r;
}

/* --- the root --- */

struct root_links {
    struct block_change *changes;
    struct block **leaves;
    struct index_owed *owed;
    unsigned change_count, owed_count;
};

static int root_gather(struct instance *in, struct root_links *l)
{
    unsigned count = 0;
    struct block *b, *next;
    list_for_each (b, &in->leaves_unlinked, unlinked_link)
        count++;
    l->changes = calloc(count + 1, sizeof(*l->changes));
    l->leaves = calloc(count + 1, sizeof(*l->leaves));
    l->owed = calloc(count + in->root.owed_count + 1, sizeof(*l->owed));
    if (!l->changes || !l->leaves || !l->owed)
        return -ENOMEM;
    l->owed_count = in->root.owed_count;
    if (l->owed_count)
        memcpy(l->owed, in->root.owed, l->owed_count * sizeof(*l->owed));
    list_for_each_safe (b, next, &in->leaves_unlinked, unlinked_link) {
        struct index_entry old = in->root.entries[b->index];
        ASSERT(b->own);
        if (old.vid == in->image.vid.value) { /* a predecessor got that far */
            list_remove(&b->unlinked_link);
            continue;
        }
        if (old.vid != 0) /* T3 */
            l->owed[l->owed_count++] = (struct index_owed){.vid = old.vid,
                                                           .index = b->index,
                                                           .level = 1,
                                                           .copied = 1,
                                                           .generation = old.generation};
        l->leaves[l->change_count] = b;
        l->changes[l->change_count++] =
            (struct block_change){.at = b->index, .entry = {.vid = in->image.vid.value}};
    }
    return 0;
}

static void root_links_done(struct root_links *l)
{
    free(l->changes);
    free(l->leaves);
    free(l->owed);
    *l = (struct root_links){0};
}

static fiber_fn int link_leaves(struct instance *in)
{
    struct root_links l = {0};
    int r;
    if (list_empty(&in->leaves_unlinked))
        return 0;
    fmutex_lock(&in->root.lock);
    do {
        root_links_done(&l);
        r = in->failed ? in->failed : block_load(in, &in->root);
        if (!r)
            r = root_gather(in, &l);
        if (!r && l.change_count)
            r = block_write(in, &in->root, l.changes, l.change_count, l.owed, l.owed_count);
    } while (r == -EAGAIN);
    for (unsigned i = 0; !r && i < l.change_count; i++)
        list_remove(&l.leaves[i]->unlinked_link);
    fmutex_unlock(&in->root.lock);
    root_links_done(&l);
    return r;
}

/* --- debts --- */

static bool owed_equal(const struct index_owed *a, const struct index_owed *b)
{
    return a->vid == b->vid && a->index == b->index && a->level == b->level &&
           a->generation == b->generation && a->copied == b->copied;
}

static fiber_fn int send_drops(struct instance *in, const struct block *b,
                               const struct index_owed *owed, unsigned count)
{
    struct ref_op *ops = calloc(count, sizeof(*ops));
    if (!ops)
        return -ENOMEM;
    for (unsigned i = 0; i < count; i++) {
        ops[i] = (struct ref_op){
            .kind = REF_DROP,
            .target = image_oid(&in->image, owed[i].vid, owed[i].level, owed[i].index),
            .holder_vid = in->image.vid.value,
            .holder_level = b->level,
            .generation = owed[i].generation,
            .copied = owed[i].copied,
            .stamp = instance_next_version(in).value, /* above owed_since, so above S (V6) */
        };
    }
    int r = object_refs(in->vs->objects, &in->owner, REF_SENDER_VOLUME, ops, count);
    free(ops);
    if (r && r != -ENOMEM)
        instance_fail(in, -ECANCELED,
                      r == -ESTALE ? "another node owns it" : "reference messages were cut off");
    return r;
}

/* Writes the block with what is owed less what was answered. */
static fiber_fn int clear_owed(struct instance *in, struct block *b, const struct index_owed *sent,
                               unsigned sent_count)
{
    int r;
    fmutex_lock(&b->lock);
    do {
        r = in->failed ? in->failed : block_load(in, b);
        if (r)
            break;
        struct index_owed *rest = calloc(b->owed_count + 1, sizeof(*rest));
        if (!rest) {
            r = -ENOMEM;
            break;
        }
        unsigned count = 0, s = 0;
        for (unsigned i = 0; i < b->owed_count; i++) { /* both in the order of appending */
            if (s < sent_count && owed_equal(&b->owed[i], &sent[s]))
                s++;
            else
                rest[count++] = b->owed[i];
        }
        r = block_write(in, b, NULL, 0, rest, count);
        free(rest);
    } while (r == -EAGAIN);
    fmutex_unlock(&b->lock);
    return r;
}

static fiber_fn int settle_owed(struct instance *in, struct block *b)
{
    unsigned count = b->owed_count;
    if (count == 0)
        return 0;
    struct index_owed *sent = malloc(count * sizeof(*sent));
    if (!sent)
        return -ENOMEM;
    memcpy(sent, b->owed, count * sizeof(*sent));
    int r = in->failed ? in->failed : send_drops(in, b, sent, count);
    if (!r)
        r = clear_owed(in, b, sent, count);
    free(sent);
    return r;
}

/* --- a pass --- */

struct block_list {
    struct instance *in;
    struct block **blocks;
    unsigned count;
    fiber_fn int (*fn)(struct instance *in, struct block *b);
};

static fiber_fn int run_one(void *arg, unsigned i)
{
    struct block_list *l = arg;
    return l->fn(l->in, l->blocks[i]);
}

/* fn for each block of a list (found by the offset of its link), which may change meanwhile. */
static fiber_fn int for_blocks(struct instance *in, struct list *head, size_t link_offset,
                               fiber_fn int (*fn)(struct instance *in, struct block *b))
{
    struct block_list l = {.in = in, .fn = fn};
    unsigned count = 0;
    for (struct list *n = head->next; n != head; n = n->next)
        count++;
    if (count == 0)
        return 0;
    l.blocks = calloc(count, sizeof(*l.blocks));
    if (!l.blocks)
        return -ENOMEM;
    for (struct list *n = head->next; n != head; n = n->next)
        l.blocks[l.count++] = (struct block *)((char *)n - link_offset);
    int r = parallel_run(in->vs->rt, l.count, SETTLE_WIDTH, run_one, &l);
    free(l.blocks);
    return r;
}

fiber_fn int settle_pass(struct instance *in)
{
    ASSERT(in->settle_lock.owner == fiber_current() && !in->frozen);
    int r = for_blocks(in, &in->leaf_work, offsetof(struct block, work_link), tidy_leaf);
    if (!r)
        r = link_leaves(in);
    if (!r)
        r = for_blocks(in, &in->blocks_owed, offsetof(struct block, owed_link), settle_owed);
    return r;
}

fiber_fn int settle_all(struct instance *in)
{
    int r = in->failed;
    while (!r && settle_has_work(in)) {
        r = settle_pass(in);
        fiber_yield();
    }
    return r;
}

/* --- L5 --- */

static int edit_stable(void *arg, struct registry_edit *e)
{
    const struct version *s = arg;
    if (e->record->stable.value >= s->value)
        return REGISTRY_UNCHANGED;
    e->record->stable = *s;
    return 0;
}

fiber_fn int settle_publish(struct instance *in)
{
    struct version s = instance_stable(in);
    in->published_at_ns = clock_now(in->vs->rt);
    if (s.value <= in->published.value)
        return 0;
    int r = lease_edit(in, NULL, edit_stable, &s);
    if (r)
        return r;
    in->published = in->owner.stable = s; /* only now may it serve as a floor */
    if (in->removed.value && in->removed.value <= s.value) {
        in->removed.value = 0;
        object_settle(in->vs->objects, in->image.vid, s);
    }
    return 0;
}
