/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One-shot timers on an intrusive pairing heap. Most timers are deadlines that are cancelled before
 * they fire, so arming is O(1) and allocates nothing; removal is O(log n) amortized.
 *
 * T1 A timer is in the heap exactly while `armed`. The root has the least (deadline, sequence), so
 * equal deadlines fire in the order of arming. T2 `prev` of a first child is its parent, of any
 * other its left sibling, of the root NULL. T3 Timers armed by a callback for a time already past
 * fire in the next round, not in the same one.
 */
#include "rt/seam.h"

static bool timer_before(const struct timer *a, const struct timer *b)
{
    if (a->deadline_ns != b->deadline_ns)
        return a->deadline_ns < b->deadline_ns;
    return a->sequence < b->sequence;
}

/* Joins two heaps (either may be NULL) without siblings; returns the root. */
static struct timer *meld(struct timer *a, struct timer *b)
{
    if (!a || !b)
        return a ? a : b;
    if (timer_before(b, a)) {
        struct timer *swap = a;
        a = b;
        b = swap;
    }
    b->prev = a;
    b->next = a->child;
    if (a->child)
        a->child->prev = b;
    a->child = b;
    return a;
}

/* Joins a list of siblings in two passes: pairs from left to right, then all from right to left. */
static struct timer *meld_siblings(struct timer *first)
{
    struct timer *pairs = NULL; /* linked by next, last pair first */
    while (first) {
        struct timer *a = first, *b = a->next;
        first = b ? b->next : NULL;
        a->next = a->prev = NULL;
        if (b)
            b->next = b->prev = NULL;
        a = meld(a, b);
        a->next = pairs;
        pairs = a;
    }
    struct timer *root = NULL;
    while (pairs) {
        struct timer *next = pairs->next;
        pairs->next = NULL;
        root = meld(root, pairs);
        pairs = next;
    }
    return root;
}

static void heap_remove(struct rt *rt, struct timer *t)
{
    struct timer *rest = meld_siblings(t->child);
    if (t == rt->timer_root) {
        rt->timer_root = rest;
    } else {
        if (t->prev->child == t)
            t->prev->child = t->next;
        else
            t->prev->next = t->next;
        if (t->next)
            t->next->prev = t->prev;
        rt->timer_root = meld(rt->timer_root, rest);
    }
    t->child = t->next = t->prev = NULL;
    t->armed = false;
}

void timer_init(struct timer *t, struct rt *rt, void (*fire)(struct timer *t))
{
    *t = (struct timer){.rt = rt, .fire = fire};
}

void timer_arm(struct timer *t, uint64_t deadline_ns)
{
    struct rt *rt = t->rt;
    timer_cancel(t);
    t->deadline_ns = deadline_ns;
    t->sequence = rt->timer_sequence++;
    t->armed = true;
    rt->timer_root = meld(rt->timer_root, t);
}

void timer_cancel(struct timer *t)
{
    if (t->armed)
        heap_remove(t->rt, t);
}

uint64_t rt_core_next_deadline(const struct rt *rt)
{
    return rt->timer_root ? rt->timer_root->deadline_ns : UINT64_MAX;
}

void rt_core_fire_one(struct rt *rt)
{
    struct timer *t = rt->timer_root;
    ASSERT(t && t->armed);
    heap_remove(rt, t);
    t->fire(t);
}

void rt_core_fire_timers(struct rt *rt, uint64_t now)
{
    uint64_t sequence_end = rt->timer_sequence; /* T3 */
    while (rt->timer_root && rt->timer_root->deadline_ns <= now &&
           rt->timer_root->sequence < sequence_end)
        rt_core_fire_one(rt);
}
