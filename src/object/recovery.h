/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Joining a group (W2, R2): what this node holds of it is brought to what the in-sync nodes hold.
 *
 * J1 Per group and epoch. A new epoch begins anew with nothing compared; the local copies stay, so
 *    that the second comparison is cheap.
 * J2 A change or meta is applied, or called done, only for objects that are clean: compared in this
 *    epoch with an in-sync node that answered at this very epoch, and with no note open. For others
 *    it is noted: "needs at least that version".
 * J3 A group is complete when it is listed and no object of it is unclean. From then on nothing is
 *    noted any more in this epoch: what would have to be is refused with -EAGAIN.
 * J4 What a pull changes in the store is admitted by the group's gate at the epoch of the join: so
 *    the next epoch's comparison comes after it (R3).
 * J5 Changes of one object are decided and given to the store in the order in which they came:
 *    those that wait for a pull form a queue, and who comes while there is one goes to its end.
 */
#pragma once
#include "object/object_internal.h"

#define JOIN_WORKERS 4u

/* An object that is not clean, or whose queue is not empty. */
struct join_object {
    struct hnode node; /* join.objects */
    struct list in_todo;
    struct oid oid;
    bool clean;           /* only the queue keeps it here */
    bool busy;            /* a worker has it */
    bool holding;         /* changes wait for the pull rather than being noted */
    bool needs_gone;      /* noted: a removal by its ledger */
    struct version needs; /* noted: this version or a higher one; 0: none */
    uint64_t meta_needs;
    uint16_t from;  /* node whose change was noted last */
    uint32_t notes; /* how many so far: to see that there was another one */
    unsigned tries;
    unsigned waits;    /* for its base */
    uint64_t base_vid; /* of the object that it is a clone of, most likely; 0: of none */
    uint32_t end;      /* bytes that it may have at the source, as far as known */
    uint64_t due_ns, noted_ns, hold_end_ns;
    struct list held; /* struct held (J5) */
    unsigned held_count;
};

/* One group that this node joins at one epoch. */
struct join {
    struct list in_active; /* joins.active until complete */
    struct objects *o;
    uint32_t group;
    uint64_t epoch;
    unsigned users;  /* workers that hold it */
    bool dead;       /* the epoch is over; freed by the last user */
    bool comparing;  /* a worker does */
    bool listed;     /* every object that is not in `objects` is clean */
    bool complete;   /* J3 */
    unsigned tries;  /* of comparing and fetching: turns to another in-sync node */
    uint64_t due_ns; /* not to be compared again before */
    struct htable objects;
    struct list todo; /* objects that are neither clean nor busy */
};

/* --- join.c --- */
/* The join of that group at its present epoch; NULL: this node is not joining it. */
static inline struct join *join_of(const struct objects *o, uint32_t group)
{
    return group < o->group_count ? o->groups[group].join : NULL;
}
/* NULL: the object is clean if the group is listed. */
struct join_object *join_find(const struct join *j, const struct oid *oid);
/* Finds or makes; an object that was clean is to be pulled. NULL: out of memory. */
struct join_object *join_unclean(struct join *j, const struct oid *oid);
/* The worker has brought x to what the source has: without open notes it is clean now. */
void join_pulled(struct join *j, struct join_object *x, bool satisfied);
/* Wakes whoever waits for the pull of x. */
void join_wake_held(struct join_object *x);
/* Becomes complete if nothing is left to do (J3). */
void join_check_complete(struct join *j);
void join_release(struct join *j);
/* Frees an object that a worker had when the epoch ended. */
void join_object_orphaned(struct join *j, struct join_object *x);

/* --- pull.c --- */
/* There is something to do: starts workers, or wakes them. */
void pull_kick(struct objects *o);

/* --- tell.c --- */
/* Tells the leader soon what is complete now. */
void tell_kick(struct objects *o);
