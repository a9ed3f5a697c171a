/* SPDX-License-Identifier: Apache-2.0 */
/* Decisions of forwarding: what is a repetition (FW1), who may have the volume (FW4). */
#include <string.h>
#include "volume/forward.h"

void forward_window_init(struct forward_window *w)
{
    memset(w, 0, sizeof(*w));
    w->floor = 1;
}

enum forward_verdict forward_window_begin(struct forward_window *w, uint64_t id, uint64_t floor,
                                          int *ret_result)
{
    ASSERT(id > 0 && floor <= id);
    if (floor > w->floor)
        w->floor = floor;
    if (id < w->floor || id - w->floor >= FORWARD_WINDOW)
        return FORWARD_REFUSED;
    __typeof__(w->slots[0]) *s = &w->slots[id % FORWARD_WINDOW];
    if (s->id == id && s->state == FORWARD_SLOT_RUNNING)
        return FORWARD_RUNNING;
    if (s->id == id && s->state == FORWARD_SLOT_ENDED) {
        *ret_result = s->result;
        return FORWARD_ENDED;
    }
    /* The slot's older id is below the floor: within the window no two ids share a slot. */
    ASSERT(s->state == FORWARD_SLOT_FREE || s->id < w->floor);
    s->id = id;
    s->state = FORWARD_SLOT_RUNNING;
    return FORWARD_BEGIN;
}

void forward_window_end(struct forward_window *w, uint64_t id, int result)
{
    __typeof__(w->slots[0]) *s = &w->slots[id % FORWARD_WINDOW];
    if (s->id != id || s->state != FORWARD_SLOT_RUNNING)
        return; /* a peer that raises its floor over what it has not got: its own loss */
    s->state = FORWARD_SLOT_ENDED;
    s->result = result;
}

bool forward_offers(const struct forward_view *v)
{
    return v->sound && v->own_users == 0 && v->operations == 0 && v->nodes == 1 &&
           v->own_idle_ns >= FORWARD_IDLE_NS;
}
