/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One open image: a working image under our lease, or a frozen one. Its index in memory, the
 * objects in use, and what its stable version waits for. Private to volume/.
 *
 * V6 The stable version S is lower than every version given out and unanswered (`inflight`), than
 * that of every unlinked or punched-but-not-removed own object, of every own leaf that the root
 * does not name, and of every block with owed entries. Each such thing keeps the version at which
 * it became so, and stands in a list that is sorted by it: S is one less than the least head. I1
 * Lock order: active object (ascending index), leaf, root. I2 A version is taken and its change
 * handed to object_change() in one step, so that the order of versions is the order of sending
 * (W4). I3 Memory changes when the change is answered, not before: a refused one leaves no trace.
 */
#pragma once
#include "object/index_block.h"
#include "volume/service.h"

/* --- the index --- */

#define SEQUENCE_LINKED (1ULL << 63) /* the entry is known to be {W, 0} */
#define SEQUENCE_MASK   ((1ULL << VERSION_SEQUENCE_BITS) - 1)

/* An index block in memory: the root (level 2) or a leaf (level 1). */
struct block {
    uint8_t level;
    uint32_t index;
    struct fmutex lock;          /* I1; held across loads and writes */
    struct index_entry *entries; /* NULL: not in memory */
    bool reload;                 /* they are to be read again, and serve until then */
    bool own;               /* the object is written by this vid (else: shared, or none at all) */
    struct version version; /* of an own block that was read or written; 0 not known */
    unsigned repairs;       /* since the last good write (W7) */
    struct index_owed *owed;
    unsigned owed_count;
    struct list lru_link;      /* volumes.cached_blocks */
    struct list unlinked_link; /* instance.leaves_unlinked */
    struct version unlinked_since;
    struct list owed_link; /* instance.blocks_owed */
    struct version owed_since;
    /* Leaves only. Per position: the sequence (of this term) of the own object's last change, 0 not
     * known, and SEQUENCE_LINKED. NULL until the first change. */
    uint64_t *sequences;
    struct list work;      /* struct active.leaf_link: unlinked or punched */
    struct list work_link; /* instance.leaf_work */
};

/* --- objects in use --- */

/* One change under way; on the stack of its fiber. */
struct flight {
    struct list link;          /* active.flights, NULL-initialised list when of no object */
    struct list inflight_link; /* instance.inflight (V6) */
    struct version version;
    uint32_t offset, length; /* what readers have to wait for (W5) */
};

/* A data object with users, or with unfinished business. */
struct active {
    struct hnode node;
    struct instance *in;
    struct block *leaf;
    uint32_t index;
    unsigned users;
    bool exclusive; /* one fiber creates, clones, removes or repairs it; others wait */
    bool unlinked, punched;
    struct waitq waiters;
    struct list flights; /* by version */
    struct version
        version; /* last one given out for the own object; 0: not known, look at the entry */
    struct version unlinked_since;
    struct version punched_version; /* confirmed punch of the whole object */
    struct version emptied_version; /* punch for which the entry was made empty */
    unsigned repairs;               /* times its copies were evened out */
    struct list unlinked_link, punched_link, leaf_link;
};

/* --- the image --- */

enum instance_state {
    INSTANCE_OPENING,
    INSTANCE_OPEN,
    INSTANCE_CLOSING,
    INSTANCE_GONE, /* off the list; freed with its last reference */
};

struct instance {
    struct volumes *vs;
    struct list link;
    enum instance_state state;
    unsigned references;   /* memory: the service's until it is gone, each user's, operation's, and
                              fiber's */
    unsigned users;        /* handles */
    unsigned remote_users; /* of which other nodes' (forward_serve.c) */
    uint64_t own_idle_since_ns; /* users == remote_users since then */
    unsigned operations;        /* snapshot, resize … */
    bool alone; /* one operation has it to itself: others wait before they share it */
    char name[VOLUME_NAME_SIZE], tag[VOLUME_NAME_SIZE];
    bool frozen;
    struct image image;
    int failed; /* 0, or why it serves no more: fenced, or an outcome unknown */
    struct object_owner owner;
    uint64_t sequence; /* last one given out in this term */
    struct version published;
    struct version removed; /* latest removal whose tombstones may still be there, 0 none */
    uint64_t published_at_ns;

    struct block root;
    struct block **leaves; /* image.entries pointers; NULL: never looked at */
    struct htable actives;
    struct list active_pool; /* free ones, by unlinked_link */

    struct list inflight, unlinked, punched, leaves_unlinked, blocks_owed; /* V6 */
    unsigned unlinked_count, punched_count;
    struct list leaf_work;

    unsigned changing; /* guest changes inside the gate */
    bool held;         /* the gate is shut */
    struct waitq gate, drained;
    struct waitq answered; /* volume_flush */

    struct fmutex settle_lock; /* one fiber tidies up at a time */
    struct waitq work,
        hurry; /* the background fiber waits in `work` while idle, in `hurry` while it gathers */
    bool background, background_idle, background_stop;
    struct waitq background_ended;
    struct timer grace;
};

/* Returns owned with one reference, state OPENING and on the service's list; NULL when out of
 * memory. */
struct instance *instance_new(struct volumes *vs, const char *name, const char *tag);
void instance_set_state(struct instance *in, enum instance_state state);
struct instance *instance_ref(struct instance *in);
void instance_unref(struct instance *in);
/* The live instance of that image on this node, or NULL. Borrowed. */
struct instance *instance_find(struct volumes *vs, const char *name, const char *tag);
/* Makes an empty index for `image`. */
int instance_set_image(struct instance *in, const struct image *image);
/* Serves no more: waiting calls return `error` (-ECANCELED for what only the cluster store says).
 */
void instance_fail(struct instance *in, int error, const char *why);

/* I2: the next version, which has to be sent before anything suspends. */
struct version instance_next_version(struct instance *in);
/* What S may be now (V6). */
struct version instance_stable(const struct instance *in);
void flight_begin(struct instance *in, struct active *a, struct flight *f, struct version version,
                  uint32_t offset, uint32_t length);
void flight_end(struct instance *in, struct active *a, struct flight *f);

/* The gate of guest changes. 0 or in->failed. */
fiber_fn int volume_gate_enter(struct instance *in);
void volume_gate_leave(struct instance *in);
/* Shuts it and waits until nobody is inside. One holder at a time (settle_lock). */
fiber_fn void gate_hold(struct instance *in);
void gate_release(struct instance *in);

/* So many unfinished objects are not left to gather any longer. */
#define INSTANCE_HURRY_COUNT 2048u
/* Something for the background fiber to do. */
static inline void instance_work(struct instance *in)
{
    if (in->background_idle)
        waitq_wake_all(&in->work);
    else if (in->unlinked_count + in->punched_count >= INSTANCE_HURRY_COUNT)
        waitq_wake_all(&in->hurry);
}

/* --- active.c --- */
/* NULL when nobody uses that object. Borrowed. */
struct active *active_find(const struct instance *in, uint32_t index);
/* Finds or makes it and counts a user. NULL when out of memory. */
struct active *active_get(struct instance *in, uint32_t index);
void active_put(struct active *a);
/* Waits until it is alone with the object: no other exclusive user, no change under way. */
fiber_fn void active_lock(struct active *a);
void active_unlock(struct active *a);
/* The version given out last; keeps the leaf's table in step. */
void active_set_version(struct active *a, struct version v);
void active_set_unlinked(struct active *a, struct version since);
void active_clear_unlinked(struct active *a);
void active_set_punched(struct active *a, struct version version);
void active_clear_punched(struct active *a);
bool active_is_linked(const struct active *a);
void active_set_linked(struct active *a, bool linked);
/* Punched, and nothing was written since. */
static inline bool active_is_punched(const struct active *a)
{
    return a->punched && a->version.value == a->punched_version.value;
}
/* True when an unanswered change touches the range. */
bool active_overlaps(const struct active *a, uint32_t offset, uint32_t length);

/* --- block.c --- */
/* The leaf of that position, made when it is not there; NULL when out of memory. */
struct block *leaf_get(struct instance *in, uint32_t leaf_index);
/* Loads the entries; b->lock held. 0, or an error of object_read, -EBADMSG, -ENOMEM. */
fiber_fn int block_load(struct instance *in, struct block *b);
/* Entry of one data position without suspending; false when the leaf has to be loaded first. */
bool index_try_entry(struct instance *in, uint32_t index, struct index_entry *ret);
fiber_fn int index_entry(struct instance *in, uint32_t index, struct index_entry *ret);
struct block_change {
    uint32_t at;
    struct index_entry entry;
};
/* V2: writes the block, which is loaded and locked, with these entries changed and `owed` (count)
 * as the whole list of what it owes. Takes its version and sends in the caller's step (I2).
 * -EAGAIN: replicas were evened out, decide again; -ENOSPC, -ENOMEM; else the instance has failed.
 */
fiber_fn int block_write(struct instance *in, struct block *b, const struct block_change *changes,
                         unsigned change_count, const struct index_owed *owed, unsigned owed_count);
/* Writes a root of another vid, all entries one generation on from those of `in`'s root (a copy),
 * or empty. */
fiber_fn int root_copy_write(struct volumes *vs, struct object_owner *owner, struct version version,
                             const struct image *image, const struct index_entry *entries);
/* Reads all entries of an index block of any vid, and (unless NULL) its owed list, malloc'ed. 0,
 * -ENOENT … */
fiber_fn int block_read(struct volumes *vs, const struct image *image, const struct oid *oid,
                        struct index_entry *ret_entries, struct version *ret_version,
                        struct index_owed **ret_owed, unsigned *ret_owed_count);
void block_forget_entries(struct volumes *vs, struct block *b);
void block_set_unlinked(struct instance *in, struct block *b, struct version since);
void block_init(struct block *b, unsigned level, uint32_t index);
/* Forgets the sequences of all leaves: they belong to a term that is over. */
void index_forget_sequences(struct instance *in);
/* Drops all memory of the index. */
void index_done(struct instance *in);
/* After a snapshot: what W wrote is now shared with it; entries are one generation on, nothing is
 * own. */
void index_become_copy(struct instance *in, const struct image *image, struct version root_version);

/* --- settle.c --- */
/* Links, removes what was punched, drops what is owed. Returns when one pass is through. */
fiber_fn int settle_pass(struct instance *in);
/* Passes until nothing is left; the gate is held or nobody writes. settle_lock is held. */
fiber_fn int settle_all(struct instance *in);
bool settle_has_work(const struct instance *in);
/* V6, L5. Does nothing when S has not moved. */
fiber_fn int settle_publish(struct instance *in);
/* Starts the background fiber of an open volume (background.c). */
int settle_start(struct instance *in);
fiber_fn void settle_stop(struct instance *in);

/* --- data.c: one object each --- */
struct piece {
    uint32_t index, offset, length; /* of the object */
};
fiber_fn int data_read(struct instance *in, const struct piece *p, void *buffer);
fiber_fn int data_write(struct instance *in, const struct piece *p, const void *buffer);
/* Whole blocks of [offset, offset + length) become holes; nothing happens to an object that is not
 * there. */
fiber_fn int data_punch(struct instance *in, const struct piece *p);
/* V4: whole objects, ascending, all of one leaf; at most DATA_DISCARD_MAX. */
#define DATA_DISCARD_MAX 256u
fiber_fn int data_discard(struct instance *in, uint32_t first, unsigned count);
/* V4, last step: removes a punched object whose entry is empty. */
fiber_fn int data_remove(struct active *a);
/* Where the image's content of a position is: false when it is a hole. */
fiber_fn int data_locate(struct instance *in, uint32_t index, bool *ret_exists,
                         struct oid *ret_oid);
/* Bytes of the object at that position that the image's size covers. */
uint32_t data_span(const struct instance *in, uint32_t index);

/* --- lease.c --- */
/* Gets the instance of a name's working image or snapshot open, with a reference (and a user if
 * `user`). */
fiber_fn int instance_open(struct volumes *vs, const char *name, const char *tag, bool user,
                           struct instance **ret, struct volume_error *ret_error);
/* For a handle of another node: a user, counted in remote_users, too. NULL when the image is not
 * open here, or has failed. One that nobody uses is closed rather, so that the other node may have
 * it. */
fiber_fn struct instance *instance_open_remote(struct volumes *vs, const char *name);
static inline bool instance_is_idle(const struct instance *in)
{
    return in->users + in->operations == 0;
}
/* Gives back what instance_open() gave; closes now or after the grace period. */
fiber_fn void instance_release(struct instance *in, bool user);
/* Closes an instance that nobody uses, at once; -EBUSY when it has users. */
fiber_fn int instance_close_idle(struct volumes *vs, const char *name, const char *tag);
fiber_fn void instance_close(struct instance *in);
/* Opens the working image for one operation that nobody may share it with: -EBUSY while it is open
 * for users. */
fiber_fn int instance_open_alone(struct volumes *vs, const char *name, struct instance **ret,
                                 struct volume_error *ret_error);
/* The image is no more (deleted): closing it leaves the record alone. */
void instance_drop(struct instance *in);
/* An edit of the record under the lease: -ESTALE and the instance fails when the lease is lost. */
fiber_fn int lease_edit(struct instance *in, const char *other, registry_fn *fn, void *arg);
/* Inside an edit: is the lease (still) ours? */
bool lease_is_ours(const struct instance *in, const struct registry_edit *e);

/* --- pending.c --- */
/* Rolls what the record says is pending forward; nothing to do is 0. settle_lock and the gate are
 * held and all is settled, or nothing is served yet. When there is no space for a fresh operation's
 * root it is taken back as if it had never begun: -ENOSPC. */
enum pending_age { PENDING_FRESH, PENDING_FOUND /* begun by somebody else, maybe half done */ };
fiber_fn int pending_finish(struct instance *in, enum pending_age age);
/* Takes back what this instance has just begun, before its root was sent. Returns `why` or a worse
 * error. */
fiber_fn int pending_abort(struct instance *in, int why);
