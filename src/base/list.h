/* SPDX-License-Identifier: Apache-2.0 */
/* Intrusive circular doubly linked list. A node that is on no list points to itself. */
#pragma once
#include "base/check.h"

struct list {
    struct list *prev, *next;
};

#define LIST_INIT(name)                                                                            \
    {                                                                                              \
        &(name), &(name)                                                                           \
    }

static inline void list_init(struct list *l)
{
    l->prev = l->next = l;
}

static inline bool list_empty(const struct list *l)
{
    return l->next == l;
}

static inline void list_insert_between(struct list *n, struct list *prev, struct list *next)
{
    n->prev = prev;
    n->next = next;
    prev->next = n;
    next->prev = n;
}

static inline void list_push_back(struct list *head, struct list *n)
{
    list_insert_between(n, head->prev, head);
}

static inline void list_push_front(struct list *head, struct list *n)
{
    list_insert_between(n, head, head->next);
}

/* Leaves n pointing to itself, so removing twice is harmless. */
static inline void list_remove(struct list *n)
{
    n->prev->next = n->next;
    n->next->prev = n->prev;
    list_init(n);
}

/* Moves all nodes of `from` to the end of `to`; `from` is empty afterwards. */
static inline void list_splice_back(struct list *to, struct list *from)
{
    if (list_empty(from))
        return;
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    list_init(from);
}

#define list_entry(ptr, type, member)  container_of(ptr, type, member)
#define list_first(head, type, member) list_entry((head)->next, type, member)

#define list_for_each(var, head, member)                                                           \
    for (var = list_entry((head)->next, __typeof__(*var), member); &var->member != (head);         \
         var = list_entry(var->member.next, __typeof__(*var), member))

/* As list_for_each, but `var` may be removed or freed in the body; tmp holds the one after it. */
#define list_for_each_safe(var, tmp, head, member)                                                 \
    for (var = list_entry((head)->next, __typeof__(*var), member),                                 \
        tmp = list_entry(var->member.next, __typeof__(*var), member);                              \
         &var->member != (head);                                                                   \
         var = tmp, tmp = list_entry(tmp->member.next, __typeof__(*tmp), member))
