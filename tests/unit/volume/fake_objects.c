/* SPDX-License-Identifier: Apache-2.0 */
/* object.h in memory. */
#include "fake_internal.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "object/index_block.h"

struct fake_object {
    struct list link;
    struct oid oid;
    struct version version, tombstone; /* version 0: absent */
    uint8_t *data;
    size_t size;
    uint64_t mapped; /* bit per 4 KiB of the first 256 KiB; beyond counts as mapped */
    struct ledger ledger;
    uint64_t meta_version;
    unsigned drops_waiting; /* while it is being taken apart */
};

enum message_kind { MESSAGE_CHANGE, MESSAGE_READ, MESSAGE_REF, MESSAGE_MAP };

/* What a fiber waits for; gone when its node dies. */
struct call {
    struct waitq wait;
    unsigned waiting;
    int result;
};

struct message {
    struct list link;
    enum message_kind kind;
    struct objects *sender; /* NULL: a dying block's */
    struct call *call;      /* NULL: nobody waits */
    uint64_t volume, due_ns;
    struct term term;
    struct version stable;
    struct object_change change;
    struct object_extent extents[OBJECT_EXTENT_COUNT_MAX];
    uint8_t *data;
    struct oid oid;
    uint32_t offset, length;
    void *buffer;
    struct version *ret_version;
    void (*map_fn)(void *arg, uint32_t offset, uint32_t length, bool mapped);
    void *map_arg;
    struct ref_op ref;
    enum ref_sender_kind ref_sender;
    uint64_t ref_sender_id;
    struct fake_object *dying;
};

uint64_t fake_draw(struct fake_world *w)
{
    w->seed += 0x9e3779b97f4a7c15ULL;
    return hash_u64(w->seed);
}

bool fake_chance(struct fake_world *w, unsigned permille)
{
    return permille && fake_draw(w) % 1000 < permille;
}

/* --- objects --- */

static struct fake_object *find(const struct fake_world *w, const struct oid *oid)
{
    struct fake_object *o;
    list_for_each (o, &w->objects, link) {
        if (oid_equal(&o->oid, oid))
            return o;
    }
    return NULL;
}

static struct fake_object *find_live(const struct fake_world *w, const struct oid *oid)
{
    struct fake_object *o = find(w, oid);
    return o && o->version.value ? o : NULL;
}

static struct fake_object *make(struct fake_world *w, const struct oid *oid)
{
    struct fake_object *o = find(w, oid);
    if (!o) {
        o = calloc(1, sizeof(*o));
        o->oid = *oid;
        list_push_back(&w->objects, &o->link);
    }
    if (o->version.value == 0) {
        ledger_done(&o->ledger);
        ASSERT(ledger_init(&o->ledger) == 0);
        o->meta_version = 0;
        free(o->data);
        o->data = NULL;
        o->size = 0;
        o->mapped = 0;
    }
    return o;
}

static void forget(struct fake_object *o)
{
    list_remove(&o->link);
    ledger_done(&o->ledger);
    free(o->data);
    free(o);
}

static void grow(struct fake_object *o, size_t size)
{
    if (size <= o->size)
        return;
    o->data = realloc(o->data, size);
    memset(o->data + o->size, 0, size - o->size);
    o->size = size;
}

static void mark(struct fake_object *o, uint32_t offset, uint32_t length, bool mapped)
{
    for (uint32_t b = offset / 4096; b * 4096ULL < (uint64_t)offset + length && b < 64; b++) {
        uint64_t bit = 1ULL << b;
        bool whole = b * 4096u >= offset && (b + 1) * 4096ULL <= (uint64_t)offset + length;
        if (mapped)
            o->mapped |= bit;
        else if (whole)
            o->mapped &= ~bit;
    }
}

static void put_bytes(struct fake_object *o, const struct message *m)
{
    const uint8_t *data = m->data;
    for (unsigned i = 0; i < m->change.extent_count; i++) {
        const struct object_extent *e = &m->extents[i];
        grow(o, (size_t)e->offset + e->length);
        if (m->change.kind == OBJECT_PUNCH) {
            memset(o->data + e->offset, 0, e->length);
        } else {
            memcpy(o->data + e->offset, data, e->length);
            data += e->length;
        }
        mark(o, e->offset, e->length, m->change.kind != OBJECT_PUNCH);
    }
}

/* --- authority --- */

static struct volume_state *volume_state(struct fake_world *w, uint64_t volume)
{
    for (unsigned i = 0; i < w->volume_count; i++) {
        if (w->volumes[i].volume == volume)
            return &w->volumes[i];
    }
    ASSERT(w->volume_count < VOLUME_MAX);
    w->volumes[w->volume_count] = (struct volume_state){.volume = volume};
    return &w->volumes[w->volume_count++];
}

/* True: refused. */
static bool check_authority(struct fake_world *w, const struct message *m)
{
    if (!m->volume)
        return false;
    struct volume_state *v = volume_state(w, m->volume);
    if (m->term.value < v->term.value)
        return true;
    v->term = m->term;
    if (m->stable.value > v->floor)
        v->floor = m->stable.value;
    return false;
}

/* --- applying --- */

static int apply_change(struct fake_world *w, const struct message *m)
{
    const struct object_change *c = &m->change;
    struct fake_object *o = find_live(w, &c->oid);
    struct version now = o ? o->version : (struct version){0};
    w->stats.changes++;
    if (o && version_term(c->next).value == version_term(now).value && c->next.value <= now.value)
        return 0;
    if (!o && c->kind == OBJECT_REMOVE)
        return 0;
    if (c->prev.value == UINT64_MAX) {
        if (o && version_term(now).value >= version_term(c->next).value)
            return -ESTALE;
    } else if (c->prev.value == 0) {
        struct fake_object *t = find(w, &c->oid);
        if (o || (t && t->tombstone.value >= c->next.value))
            return -ESTALE;
    } else if (now.value != c->prev.value) {
        return -ESTALE;
    }
    if (c->kind == OBJECT_REMOVE) {
        w->stats.removes++;
        o->tombstone = c->next;
        o->version.value = 0;
        return 0;
    }
    if (c->kind == OBJECT_CLONE) {
        struct fake_object *s = find_live(w, &c->source);
        w->stats.clones++;
        if (!s)
            return -ENOENT;
        o = make(w, &c->oid);
        grow(o, s->size);
        if (s->size)
            memcpy(o->data, s->data, s->size);
        o->mapped = s->mapped;
    } else {
        o = make(w, &c->oid);
    }
    put_bytes(o, m);
    o->version = c->next;
    return 0;
}

static uint64_t group_floor(const struct fake_world *w, uint64_t group)
{
    return w->group_dying[group] ? 0 : 1ULL << 40 | w->group_sequence[group];
}

static void erase_keys(struct fake_world *w, struct fake_object *o)
{
    for (unsigned i = 0; i < w->volume_count; i++)
        ledger_erase_keys(&o->ledger, REF_SENDER_VOLUME, w->volumes[i].volume, w->volumes[i].floor);
    for (unsigned g = 0; g < GROUP_MAX; g++)
        ledger_erase_keys(&o->ledger, REF_SENDER_GROUP, g, group_floor(w, g));
}

static struct message *message_new(struct fake_world *w, enum message_kind kind)
{
    struct message *m = calloc(1, sizeof(*m));
    m->kind = kind;
    m->due_ns = sim_now(w->sim) + fake_draw(w) % (w->options.delay_ns_max + 1);
    list_init(&m->link);
    return m;
}

static void take_apart(struct fake_world *w, struct fake_object *o)
{
    uint32_t tail = 4096;
    struct index_header h;
    while (tail < o->size && index_header_decode(o->data + tail, o->size - tail, &h) != 0)
        tail += 4096;
    ASSERT(tail < o->size && index_tail_offset(h.entries) == tail);
    w->stats.cascades++;
    w->group_dying[o->oid.group]++;
    o->ledger.state = LEDGER_DYING;
    o->drops_waiting = 1;
    for (uint32_t i = 0; i < h.entries; i++) {
        struct index_entry e = index_entry_get(o->data + i * INDEX_ENTRY_BYTES);
        struct oid child;
        if (index_entry_empty(&e))
            continue;
        ASSERT(index_child(&h, &o->oid, i, &e, &child) == 0);
        struct message *m = message_new(w, MESSAGE_REF);
        m->ref = (struct ref_op){.kind = REF_DROP,
                                 .target = child,
                                 .holder_vid = o->oid.vid,
                                 .holder_level = o->oid.level,
                                 .generation = e.generation,
                                 .copies = o->ledger.copies,
                                 .stamp = 1ULL << 40 | ++w->group_sequence[o->oid.group]};
        m->ref_sender = REF_SENDER_GROUP;
        m->ref_sender_id = o->oid.group;
        m->oid = child;
        m->dying = o;
        o->drops_waiting++;
        list_push_back(&w->messages, &m->link);
    }
}

static void drop_answered(struct fake_world *w, struct fake_object *o)
{
    if (--o->drops_waiting > 0)
        return;
    w->group_dying[o->oid.group]--;
    forget(o);
}

static int apply_ref(struct fake_world *w, const struct message *m)
{
    struct fake_object *o = find_live(w, &m->ref.target);
    w->stats.refs++;
    if (m->ref_sender == REF_SENDER_VOLUME &&
        m->ref.stamp <= volume_state(w, m->ref_sender_id)->floor)
        return -ESTALE;
    if (!o)
        return 0;
    erase_keys(w, o);
    enum ledger_outcome outcome;
    unsigned times = fake_chance(w, 50) ? 2 : 1; /* sent again before it was answered */
    bool died = false;
    for (unsigned i = 0; i < times; i++) {
        ASSERT(ledger_apply(&o->ledger, &m->ref, m->ref_sender, m->ref_sender_id, &outcome) == 0);
        died = died || outcome == LEDGER_DIED;
    }
    o->meta_version++;
    if (!died)
        return 0;
    if (o->oid.level == 0) {
        forget(o);
        return 0;
    }
    take_apart(w, o);
    drop_answered(w, o); /* the one it began with */
    return 0;
}

static int apply_read(struct fake_world *w, const struct message *m)
{
    struct fake_object *o = find_live(w, &m->oid);
    w->stats.reads++;
    memset(m->buffer, 0, m->length);
    if (m->ret_version)
        *m->ret_version = o ? o->version : (struct version){0};
    if (!o)
        return -ENOENT;
    if (m->offset < o->size)
        memcpy(m->buffer, o->data + m->offset, MIN(o->size - m->offset, m->length));
    return 0;
}

static int apply_map(struct fake_world *w, const struct message *m)
{
    struct fake_object *o = find_live(w, &m->oid);
    if (!o)
        return -ENOENT;
    for (uint32_t at = m->offset; at < m->offset + m->length;) {
        uint32_t end = MIN(ALIGN_DOWN(at, 4096) + 4096, m->offset + m->length);
        m->map_fn(m->map_arg, at, end - at, at / 4096 < 64 && (o->mapped >> at / 4096 & 1));
        at = end;
    }
    return 0;
}

static void deliver(struct fake_world *w, struct message *m)
{
    int r;
    list_remove(&m->link);
    if (m->kind != MESSAGE_READ && m->kind != MESSAGE_MAP && check_authority(w, m))
        r = -ESTALE;
    else
        r = m->kind == MESSAGE_CHANGE ? apply_change(w, m)
            : m->kind == MESSAGE_REF  ? apply_ref(w, m)
            : m->kind == MESSAGE_READ ? apply_read(w, m)
                                      : apply_map(w, m);
    if (m->dying)
        drop_answered(w, m->dying);
    if (m->call) {
        if (r && !m->call->result)
            m->call->result = r;
        m->call->waiting--;
        waitq_wake_all(&m->call->wait);
    }
    free(m->data);
    free(m);
}

/* --- the network --- */

/* W4: no earlier request of the same sender for the same object is still under way. */
static bool in_order(const struct fake_world *w, const struct message *m)
{
    struct message *e;
    if (m->kind != MESSAGE_CHANGE)
        return true;
    list_for_each (e, &w->messages, link) {
        if (e == m)
            return true;
        if (e->kind == MESSAGE_CHANGE && e->sender == m->sender &&
            oid_equal(&e->change.oid, &m->change.oid))
            return false;
    }
    return true;
}

static fiber_fn void network_main(void *arg)
{
    struct fake_world *w = arg;
    for (;;) {
        struct message *m, *chosen = NULL;
        unsigned ready = 0;
        uint64_t next = UINT64_MAX;
        list_for_each (m, &w->messages, link) {
            if (!in_order(w, m))
                continue;
            next = MIN(next, m->due_ns);
            if (m->due_ns <= sim_now(w->sim) && fake_draw(w) % ++ready == 0)
                chosen = m;
        }
        if (chosen) {
            deliver(w, chosen);
            fiber_yield();
        } else if (next != UINT64_MAX) {
            waitq_wait_until(&w->work, w->rt, next);
        } else {
            waitq_wait(&w->work);
        }
    }
}

static void send(struct fake_world *w, struct message *m)
{
    list_push_back(&w->messages, &m->link);
    waitq_wake_all(&w->work);
}

static fiber_fn int await(struct objects *o, struct call *call, const struct object_owner *owner)
{
    while (call->waiting > 0)
        waitq_wait(&call->wait);
    return call->result;
}

/* --- the world --- */

struct fake_world *fake_world_new(struct sim *s, uint64_t seed, const struct fake_options *o)
{
    struct fake_world *w = calloc(1, sizeof(*w));
    w->sim = s;
    w->seed = seed;
    w->options = *o;
    list_init(&w->objects);
    list_init(&w->messages);
    list_init(&w->services);
    list_init(&w->forwards);
    waitq_init(&w->work);
    w->rt = sim_node_new(s, NULL);
    ASSERT(fiber_spawn(w->rt, "network", network_main, w) == 0);
    return w;
}

void fake_world_free(struct fake_world *w)
{
    struct fake_object *o, *next;
    list_for_each_safe (o, next, &w->objects, link)
        forget(o);
    struct message *m, *mnext;
    list_for_each_safe (m, mnext, &w->messages, link) {
        free(m->data);
        free(m);
    }
    fake_forwards_free(w);
    free(w);
}

struct fake_options *fake_world_options(struct fake_world *w)
{
    return &w->options;
}

fiber_fn int fake_objects_start(struct fake_world *w, struct rt *rt, struct cluster *c,
                                struct objects **ret)
{
    struct objects *o = calloc(1, sizeof(*o));
    *o = (struct objects){.w = w, .rt = rt, .cluster = c};
    list_push_back(&w->services, &o->in_services);
    *ret = o;
    return 0;
}

void fake_objects_died(struct objects *o)
{
    fake_forwards_died(o);
    struct message *m, *next;
    list_for_each_safe (m, next, &o->w->messages, link) {
        if (m->sender != o)
            continue;
        m->call = NULL;
        if (m->kind == MESSAGE_READ || m->kind == MESSAGE_MAP || fake_draw(o->w) % 3 == 0) {
            list_remove(&m->link);
            free(m->data);
            free(m);
        }
    }
}

size_t fake_world_object_count(const struct fake_world *w)
{
    size_t n = 0;
    struct fake_object *o;
    list_for_each (o, &w->objects, link)
        n += o->version.value != 0;
    return n;
}

fiber_fn size_t fake_world_key_count(struct fake_world *w, struct objects *s)
{
    size_t n = 0;
    for (unsigned i = 0; i < w->volume_count; i++) {
        uint64_t floor;
        if (s->lookup && s->lookup(s->lookup_arg, w->volumes[i].volume, &floor) == 0)
            w->volumes[i].floor = MAX(w->volumes[i].floor, floor);
    }
    struct fake_object *o;
    list_for_each (o, &w->objects, link) {
        if (o->version.value) {
            erase_keys(w, o);
            n += o->ledger.key_count;
        }
    }
    return n;
}

bool fake_world_quiet(const struct fake_world *w)
{
    return list_empty(&w->messages);
}

bool fake_world_break_ledger(struct fake_world *w)
{
    struct fake_object *o;
    list_for_each (o, &w->objects, link) {
        if (o->version.value && o->oid.level == 0 && o->ledger.count_count) {
            o->ledger.counts[0].count++;
            o->meta_version++;
            return true;
        }
    }
    return false;
}

bool fake_world_lose_object(struct fake_world *w, unsigned level)
{
    struct fake_object *o;
    list_for_each (o, &w->objects, link) {
        if (o->version.value && o->oid.level == level) {
            forget(o);
            return true;
        }
    }
    return false;
}

void fake_world_add_orphan(struct fake_world *w, const struct oid *oid)
{
    make(w, oid)->version.value = 1;
}

void fake_world_stats(const struct fake_world *w, struct fake_stats *ret)
{
    *ret = w->stats;
}

/* --- object.h --- */

static void set_owner(struct message *m, struct objects *o, const struct object_owner *owner)
{
    m->sender = o;
    if (owner) {
        m->volume = owner->volume;
        m->term = owner->term;
        m->stable = owner->stable;
    }
}

fiber_fn int object_change(struct objects *o, const struct object_owner *owner,
                           const struct object_change *c)
{
    struct fake_world *w = o->w;
    bool allocates = c->kind == OBJECT_WRITE || c->kind == OBJECT_CLONE;
    ASSERT(c->extent_count <= OBJECT_EXTENT_COUNT_MAX && c->next.value);
    if (owner->cancelled)
        return -ECANCELED;
    if (allocates && fake_chance(w, w->options.full_permille))
        return -ENOSPC;
    if (fake_chance(w, w->options.stale_permille) && !oid_equal(&c->oid, &w->refused)) {
        w->refused = c->oid; /* not twice in a row: callers try only so often */
        fiber_yield();
        return -ESTALE;
    }
    struct call call = {.waiting = 1};
    waitq_init(&call.wait);
    struct message *m = message_new(w, MESSAGE_CHANGE);
    set_owner(m, o, owner);
    m->call = &call;
    m->change = *c;
    size_t length = 0;
    for (unsigned i = 0; i < c->extent_count; i++) {
        m->extents[i] = c->extents[i];
        length += c->extents[i].length;
    }
    if (c->iov_count) {
        m->data = malloc(length);
        size_t at = 0;
        for (unsigned i = 0; i < c->iov_count; i++) {
            ASSERT(at + c->iov[i].iov_len <= length);
            memcpy(m->data + at, c->iov[i].iov_base, c->iov[i].iov_len);
            at += c->iov[i].iov_len;
        }
        ASSERT(at == length);
    }
    send(w, m);
    return await(o, &call, owner);
}

fiber_fn int object_read(struct objects *o, const struct oid *oid, uint32_t offset, uint32_t length,
                         void *buffer, struct version *ret_version)
{
    struct call call = {.waiting = 1};
    waitq_init(&call.wait);
    struct message *m = message_new(o->w, MESSAGE_READ);
    set_owner(m, o, NULL);
    m->call = &call;
    m->oid = *oid;
    m->offset = offset;
    m->length = length;
    m->buffer = buffer;
    m->ret_version = ret_version;
    send(o->w, m);
    return await(o, &call, NULL);
}

fiber_fn int object_map(struct objects *o, const struct oid *oid, uint32_t offset, uint32_t length,
                        void (*fn)(void *arg, uint32_t offset, uint32_t length, bool mapped),
                        void *arg)
{
    struct call call = {.waiting = 1};
    waitq_init(&call.wait);
    struct message *m = message_new(o->w, MESSAGE_MAP);
    set_owner(m, o, NULL);
    m->call = &call;
    m->oid = *oid;
    m->offset = offset;
    m->length = length;
    m->map_fn = fn;
    m->map_arg = arg;
    send(o->w, m);
    return await(o, &call, NULL);
}

fiber_fn int object_refs(struct objects *o, const struct object_owner *owner,
                         enum ref_sender_kind sender, const struct ref_op *ops, unsigned count)
{
    struct call call = {.waiting = count};
    waitq_init(&call.wait);
    ASSERT((sender == REF_SENDER_VOLUME) == (owner != NULL));
    if (owner && owner->cancelled)
        return -ECANCELED;
    for (unsigned i = 0; i < count; i++) {
        struct message *m = message_new(o->w, MESSAGE_REF);
        set_owner(m, o, owner);
        m->call = &call;
        m->ref = ops[i];
        m->ref_sender = sender;
        m->ref_sender_id = owner ? owner->volume : 0;
        send(o->w, m);
    }
    return await(o, &call, owner);
}

/* L2 has been: what an older owner sent never arrives. */
static void fence(struct fake_world *w, const struct object_owner *owner)
{
    struct volume_state *v = volume_state(w, owner->volume);
    ASSERT(v->term.value <= owner->term.value);
    v->term = owner->term;
    struct message *m, *next;
    list_for_each_safe (m, next, &w->messages, link) {
        if (m->volume != owner->volume || m->term.value >= owner->term.value || m->call)
            continue;
        list_remove(&m->link);
        free(m->data);
        free(m);
    }
}

static struct object_found describe(const struct fake_object *o)
{
    return (struct object_found){
        .oid = o->oid,
        .version = o->version.value ? o->version : o->tombstone,
        .tombstone = o->version.value == 0,
        .empty = o->version.value && o->mapped == 0,
    };
}

fiber_fn int object_reconcile(struct objects *o, const struct object_owner *owner, struct vid vid,
                              struct version above,
                              void (*fn)(void *arg, const struct object_found *f), void *arg)
{
    fence(o->w, owner);
    fiber_sleep(o->rt, fake_draw(o->w) % (o->w->options.delay_ns_max + 1));
    struct fake_object *x;
    list_for_each (x, &o->w->objects, link) {
        struct object_found f = describe(x);
        if (x->oid.vid == vid.value && f.version.value > above.value)
            fn(arg, &f);
    }
    return 0;
}

fiber_fn int object_reconcile_one(struct objects *o, const struct object_owner *owner,
                                  const struct oid *oid, struct object_found *ret)
{
    fence(o->w, owner);
    fiber_sleep(o->rt, fake_draw(o->w) % (o->w->options.delay_ns_max + 1));
    struct fake_object *x = find(o->w, oid);
    *ret = x ? describe(x) : (struct object_found){.oid = *oid};
    return 0;
}

fiber_fn void object_settle(struct objects *o, struct vid vid, struct version stable)
{
    struct fake_object *x, *next;
    list_for_each_safe (x, next, &o->w->objects, link) {
        if (x->oid.vid == vid.value && x->version.value == 0 && x->tombstone.value <= stable.value)
            forget(x);
    }
}

fiber_fn int object_inventory(struct objects *o, uint16_t node,
                              fiber_fn int (*fn)(void *arg, const struct object_entry *e),
                              void *arg)
{
    const struct map *m = cluster_map(o->cluster);
    struct fake_object *x;
    list_for_each (x, &o->w->objects, link) {
        if (!map_group_in_sync(&m->groups[x->oid.group], node))
            continue;
        struct enc meta;
        enc_init(&meta);
        if (x->version.value)
            ledger_encode(&x->ledger, &meta);
        struct object_found f = describe(x);
        struct object_entry e = {.oid = x->oid,
                                 .version = f.version,
                                 .tombstone = f.tombstone,
                                 .meta_version = x->meta_version,
                                 .meta = meta.length ? meta.data : NULL,
                                 .meta_length = meta.length};
        int r = fn(arg, &e);
        enc_done(&meta);
        if (r)
            return r;
    }
    return 0;
}

void objects_set_floor_lookup(struct objects *o,
                              fiber_fn int (*lookup)(void *arg, uint64_t volume,
                                                     uint64_t *ret_floor),
                              void *arg)
{
    o->lookup = lookup;
    o->lookup_arg = arg;
}

uint64_t object_free_bytes(const struct objects *o)
{
    return UINT64_MAX;
}
