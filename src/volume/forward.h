/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A second gateway of a volume (L4): its handles send each request to the owner, which carries it
 * out through its own open volume. Private to volume/.
 *
 * FW1 A change is carried out at most once by one owner: it has an id in its handle, the owner
 *     keeps what it began and how that ended until the handle says that it has the answer
 *     (`floor`), and answers what it knows again. What is below the floor is never begun.
 * FW2 While a handle is attached, its owner's volume stays open: it counts as a user there.
 * FW3 An owner is left only when it says so (-ESTALE: it did not carry the request out) or when its
 *     session has left the map; the next one opens the volume by L1 to L3, so nothing of the old
 *     one is under way. What was not answered is then sent, or carried out, anew.
 * FW4 A hand-over waits until all changes of all handles of that node are answered, so that nothing
 *     is begun twice by it; and the owner keeps the volume while handles of two nodes are attached.
 */
#pragma once
#include "object/object.h"
#include "volume/volume.h"
#include "wire/peer.h"

struct instance;

/* --- decisions (forward_rules.c): pure --- */

/* Changes of one handle that are begun and not known to be answered. */
#define FORWARD_WINDOW 256u
enum forward_slot_state { FORWARD_SLOT_FREE, FORWARD_SLOT_RUNNING, FORWARD_SLOT_ENDED };
struct forward_window {
    uint64_t floor; /* 1 at first */
    struct {
        uint64_t id;
        enum forward_slot_state state;
        int result;
    } slots[FORWARD_WINDOW];
};
enum forward_verdict {
    FORWARD_BEGIN,   /* never seen: carry it out, then forward_window_end() */
    FORWARD_RUNNING, /* begun before: wait for that */
    FORWARD_ENDED,   /* carried out before: *ret_result was the answer */
    FORWARD_REFUSED, /* below the floor, or farther ahead than the window: never carry it out */
};
void forward_window_init(struct forward_window *w);
/* A request with that id and floor (floor <= id) has come. */
enum forward_verdict forward_window_begin(struct forward_window *w, uint64_t id, uint64_t floor,
                                          int *ret_result);
void forward_window_end(struct forward_window *w, uint64_t id, int result);

/* What the owner looks at to say whether a node that forwards may have the volume. */
struct forward_view {
    unsigned own_users, operations, nodes; /* nodes: that have handles attached */
    uint64_t own_idle_ns;                  /* since it had users of its own */
    bool sound;                            /* the volume is open and has not failed */
};
#define FORWARD_IDLE_NS NS_PER_S /* hysteresis of FW4 */
bool forward_offers(const struct forward_view *v);

/* --- the owner's side (forward_serve.c) --- */
struct forward_service {
    struct list guests;   /* struct guest: handles of other nodes */
    unsigned serving;     /* messages in the handler */
    struct list forwards; /* struct forward: our handles that began at another node */
    uint64_t last_handle;
    struct waitq changed; /* a guest or a message went, a change of ours was answered */
};
int forward_start(struct volumes *vs);
/* Takes no more messages, waits for those that run (until deadline_ns), lets all guests go. */
fiber_fn void forward_stop(struct volumes *vs, uint64_t deadline_ns);
/* Nothing of it uses `vs` any more. What ends that wakes vs->instances_changed. */
static inline bool forward_is_quiet(const struct forward_service *f)
{
    return list_empty(&f->guests) && list_empty(&f->forwards) && f->serving == 0;
}
/* The instance failed: guests go, so that it can be opened anew. */
fiber_fn void forward_evict(struct instance *in);
/* Requests of a guest whose session has left the map are still running (FS3). */
bool forward_has_dead(const struct instance *in);
/* A new map: handles whose owner it lacks look for another one (forward.c). Does not suspend. */
void forward_look(struct volumes *vs);

/* --- the asking side (forward.c) --- */
struct forward;
/* For volume_open() with VOLUME_FORWARD, when `session` owns it: attaches, or opens it here after
 * all. Sets v->forward, and v->in when it is local. */
fiber_fn int forward_open(struct volumes *vs, const char *name, struct volume *v,
                          struct volume_error *ret_error);
/* v->in is NULL or not: lets the owner's side go, and frees. */
fiber_fn void forward_close(struct volume *v);
uint64_t forward_size(const struct forward *f);
uint32_t forward_object_size(const struct forward *f);
const char *forward_name(const struct forward *f);
/* As the calls of volume.h; each may find that v->in has come into being, and uses it then. */
fiber_fn int forward_read(struct volume *v, uint64_t offset, uint32_t length, void *buffer);
fiber_fn int forward_write(struct volume *v, uint64_t offset, uint32_t length, const void *buffer);
fiber_fn int forward_flush(struct volume *v);
fiber_fn int forward_zero(struct volume *v, uint64_t offset, uint64_t length, unsigned flags);
fiber_fn int forward_discard(struct volume *v, uint64_t offset, uint64_t length);
fiber_fn int forward_map(struct volume *v, uint64_t offset, uint64_t length, unsigned runs_max,
                         struct volume_run **ret, size_t *ret_count);
