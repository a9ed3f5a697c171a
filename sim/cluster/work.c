/* SPDX-License-Identifier: Apache-2.0 */
/* What guests do beside I/O: open, snapshot, clone, roll back, resize, delete. See work.h. */
#include "sim/cluster/work.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/hash.h"
#include "sim/cluster/guest_io.h"

#define READ_CHUNK (64u << 10)

static uint64_t dice(struct work *k, uint64_t below)
{
    return draw(&k->random, below);
}

struct node *work_some_node(struct work *k)
{
    struct node *n = NULL;
    for (unsigned i = 0; i < 8 && (!n || !node_up(n)); i++)
        n = &k->w->nodes[dice(k, k->w->plan.nodes)];
    return n;
}

static fiber_fn void rest(struct work *k)
{
    fiber_sleep(k->w->rt, (5 + dice(k, 100)) * NS_PER_MS);
}

/* Nothing was done. */
static bool is_refusal(int r)
{
    return r == -EBUSY || r == -EAGAIN || r == -ENOSPC;
}

/* Nobody knows what was done. */
static bool is_unknown(int r)
{
    return r == -EOWNERDEAD || r == -ECANCELED || r == -ETIMEDOUT || r == -ECONNRESET ||
           r == -EIO || r == -EUCLEAN;
}

/* --- calls with their arguments --- */

struct named_call {
    const char *name, *tag, *other;
    uint64_t size;
    unsigned flags;
    struct volume *volume;
    struct volume_info *list;
    size_t count;
    struct volume_error error;
};

static fiber_fn int call_open(struct node *n, void *arg)
{
    struct named_call *c = arg;
    return volume_open(n->volumes, c->name, c->tag, c->flags, &c->volume, &c->error);
}

static fiber_fn int call_close(struct node *n, void *arg)
{
    volume_close(arg);
    return 0;
}

static fiber_fn int call_create(struct node *n, void *arg)
{
    struct named_call *c = arg;
    struct volume_create_options o = {.name = c->name, .size = c->size};
    return volume_create(n->volumes, &o, &c->error);
}

static fiber_fn int call_clone(struct node *n, void *arg)
{
    struct named_call *c = arg;
    return volume_clone(n->volumes, c->name, c->tag, c->other, &c->error);
}

static fiber_fn int call_delete(struct node *n, void *arg)
{
    struct named_call *c = arg;
    return volume_delete(n->volumes, c->name, &c->error);
}

static fiber_fn int call_delete_snapshot(struct node *n, void *arg)
{
    struct named_call *c = arg;
    return volume_delete_snapshot(n->volumes, c->name, c->tag, &c->error);
}

static fiber_fn int call_snapshot(struct node *n, void *arg)
{
    struct named_call *c = arg;
    return volume_snapshot(n->volumes, c->name, c->tag, NULL, &c->error);
}

static fiber_fn int call_rollback(struct node *n, void *arg)
{
    struct named_call *c = arg;
    return volume_rollback(n->volumes, c->name, c->tag, &c->error);
}

static fiber_fn int call_resize(struct node *n, void *arg)
{
    struct named_call *c = arg;
    return volume_resize(n->volumes, c->name, c->size, &c->error);
}

static fiber_fn int call_list(struct node *n, void *arg)
{
    struct named_call *c = arg;
    return volume_list(n->volumes, NULL, &c->list, &c->count);
}

/* One operation on some node; counted, traced, and refused answers that make no sense are wrong. */
static fiber_fn int operate(struct work *k, struct node *n, call_fn *fn, struct named_call *c,
                            const char *what)
{
    struct world *w = k->w;
    w->stats.operations++;
    w->stats.admin++;
    int r = call_node(n, fn, c);
    world_note(w, "node %s: %s %s%s%s: %s %s", n->name, what, c->name, c->tag ? "@" : "",
               c->tag ? c->tag : "", r ? err_text(r) : "ok",
               r && r != -EOWNERDEAD ? c->error.text : "");
    w->stats.unanswered += is_unknown(r);
    w->stats.refused += is_refusal(r);
    if (r != 0 && !is_refusal(r) && !is_unknown(r) && r != -ENOENT)
        world_wrong(w, "%s %s: %s (%s)", what, c->name, err_text(r), c->error.text);
    return r;
}

static fiber_fn int open_once(struct work *k, const char *name, const char *tag, struct opened *ret)
{
    struct named_call c = {.name = name, .tag = tag};
    if (k->w->plan.forward && !tag && dice(k, 4))
        c.flags = VOLUME_FORWARD;
    struct node *n = work_some_node(k);
    uint64_t process = n->process;
    int r = operate(k, n, call_open, &c, "open");
    if (r == 0 && (n->process != process || n->state == NODE_DOWN))
        r = -EOWNERDEAD; /* it died between its answer and now */
    if (r == 0) {
        bool forwards = volume_began_elsewhere(c.volume);
        *ret = (struct opened){.node = n,
                               .process = process,
                               .carrier = forwards ? PROCESS_ANY : process,
                               .volume = c.volume,
                               .size = volume_size(c.volume)};
        k->w->stats.forwarding += forwards;
        n->guest_count++;
    }
    return r;
}

fiber_fn int work_try_open(struct work *k, const char *name, struct opened *ret)
{
    return open_once(k, name, NULL, ret);
}

fiber_fn int work_open(struct work *k, const char *name, const char *tag, struct opened *ret)
{
    for (;;) {
        int r = open_once(k, name, tag, ret);
        if (r == 0 || r == -ENOENT)
            return r;
        rest(k);
    }
}

fiber_fn void work_close(struct opened *o)
{
    struct call c = {.fn = call_close, .arg = o->volume, .is_closing = true};
    if (o->node->process != o->process || o->node->state == NODE_DOWN)
        return;
    call_begin(&c, o->node);
    ASSERT(call_wait(o->node->w, &c, UINT64_MAX) == 0);
    if (c.result == 0)
        o->node->guest_count--;
}

fiber_fn void work_list(struct work *k, struct volume_info **ret, size_t *ret_count)
{
    for (;;) {
        struct named_call c = {.name = "all"};
        if (operate(k, work_some_node(k), call_list, &c, "list") == 0) {
            *ret = c.list;
            *ret_count = c.count;
            return;
        }
        rest(k);
    }
}

bool work_listed(const struct volume_info *list, size_t count, const char *name, const char *tag)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(list[i].name, name) == 0 && strcmp(list[i].tag, tag) == 0)
            return true;
    }
    return false;
}

static fiber_fn bool is_listed(struct work *k, const char *name, const char *tag)
{
    struct volume_info *list;
    size_t count;
    work_list(k, &list, &count);
    bool found = work_listed(list, count, name, tag);
    free(list);
    return found;
}

/* --- choosing --- */

static struct volume_model *some_volume(struct work *k, bool alone)
{
    struct volume_model *m = &k->volumes[dice(k, k->w->plan.volumes)];
    return m->exists && !m->claimed && (!alone || m->users == 0) ? m : NULL;
}

static struct volume_model *free_volume(struct work *k)
{
    for (unsigned i = 0; i < k->w->plan.volumes; i++) {
        if (!k->volumes[i].exists && !k->volumes[i].claimed)
            return &k->volumes[i];
    }
    return NULL;
}

static struct snapshot_model *some_snapshot(struct work *k, int volume, bool alone)
{
    unsigned start = (unsigned)dice(k, SNAPSHOT_COUNT_MAX);
    for (unsigned i = 0; i < SNAPSHOT_COUNT_MAX; i++) {
        struct snapshot_model *s = &k->snapshots[(start + i) % SNAPSHOT_COUNT_MAX];
        if (s->exists && !s->claimed && (!alone || s->users == 0) &&
            (volume < 0 || s->volume == (unsigned)volume))
            return s;
    }
    return NULL;
}

static struct snapshot_model *free_snapshot(struct work *k)
{
    for (unsigned i = 0; i < SNAPSHOT_COUNT_MAX; i++) {
        if (!k->snapshots[i].exists && !k->snapshots[i].claimed)
            return &k->snapshots[i];
    }
    return NULL;
}

/* G2: opens until it opens, which also completes what was begun. False: there is no such volume. */
static fiber_fn bool settle(struct work *k, struct volume_model *m, uint64_t *ret_size)
{
    struct opened o;
    if (work_open(k, m->name, NULL, &o) < 0)
        return false;
    *ret_size = o.size;
    work_close(&o);
    return true;
}

/* --- operations --- */

static fiber_fn void create(struct work *k)
{
    struct volume_model *m = free_volume(k);
    uint64_t size;
    if (!m)
        return;
    m->claimed = true;
    snprintf(m->name, sizeof(m->name), "v%u", (unsigned)(m - k->volumes));
    struct named_call c = {.name = m->name,
                           .size = UNIT * (1 + dice(k, k->w->plan.capacity / UNIT))};
    if (dice(k, 2))
        c.size = k->w->plan.capacity;
    int r = operate(k, work_some_node(k), call_create, &c, "create");
    m->exists = r == 0 || settle(k, m, &size); /* also when it was refused on its way */
    if (m->exists)
        content_init(&m->content, c.size, k->w->plan.capacity);
    m->claimed = false;
}

static fiber_fn void clone(struct work *k)
{
    struct volume_model *m = free_volume(k);
    struct snapshot_model *s = some_snapshot(k, -1, false);
    uint64_t size;
    if (!m || !s)
        return;
    m->claimed = true;
    s->users++;
    snprintf(m->name, sizeof(m->name), "v%u", (unsigned)(m - k->volumes));
    struct named_call c = {.name = k->volumes[s->volume].name, .tag = s->tag, .other = m->name};
    int r = operate(k, work_some_node(k), call_clone, &c, "clone");
    m->exists = r == 0 || settle(k, m, &size);
    if (m->exists)
        content_copy(&m->content, &s->content);
    m->claimed = false;
    s->users--;
}

fiber_fn void work_delete(struct work *k, struct volume_model *m)
{
    struct named_call c = {.name = m->name};
    uint64_t size;
    m->claimed = true;
    int r = operate(k, work_some_node(k), call_delete, &c, "delete");
    if (r == -ENOENT)
        world_wrong(k->w, "volume %s is missing", m->name);
    m->exists = r != 0 && (!is_unknown(r) || settle(k, m, &size));
    if (!m->exists)
        content_done(&m->content);
    m->claimed = false;
}

fiber_fn void work_delete_snapshot(struct work *k, struct snapshot_model *s)
{
    struct named_call c = {.name = k->volumes[s->volume].name, .tag = s->tag};
    s->claimed = true;
    int r = operate(k, work_some_node(k), call_delete_snapshot, &c, "delete snapshot");
    if (r == -ENOENT)
        world_wrong(k->w, "snapshot %s@%s is missing", c.name, c.tag);
    while (is_unknown(r) && is_listed(k, c.name, c.tag)) {
        rest(k);
        r = operate(k, work_some_node(k), call_delete_snapshot, &c, "delete snapshot");
        if (is_refusal(r))
            r = -EOWNERDEAD; /* it was begun: it has to end */
    }
    s->exists = is_refusal(r);
    if (!s->exists)
        content_done(&s->content);
    s->claimed = false;
}

static fiber_fn void read_snapshot(struct work *k, struct snapshot_model *s)
{
    struct opened o;
    const char *name = k->volumes[s->volume].name;
    s->users++;
    if (work_open(k, name, s->tag, &o) < 0)
        world_wrong(k->w, "snapshot %s@%s is missing", name, s->tag);
    work_check_image(k, &o, &s->content, name, s->tag);
    work_close(&o);
    s->users--;
}

static void add_all_of(struct content *to, const struct content *from)
{
    for (uint32_t i = 0; i < to->capacity / UNIT; i++)
        content_add_possible(to, i, from);
}

static fiber_fn void roll_back(struct work *k, struct volume_model *m)
{
    struct snapshot_model *s = some_snapshot(k, (int)(m - k->volumes), false);
    uint64_t size = m->content.size;
    if (!s)
        return;
    m->claimed = true;
    s->users++;
    struct named_call c = {.name = m->name, .tag = s->tag};
    int r = operate(k, work_some_node(k), call_rollback, &c, "roll back");
    if (r == 0) {
        content_done(&m->content);
        content_copy(&m->content, &s->content);
    } else if (is_unknown(r)) {
        if (!settle(k, m, &size))
            world_wrong(k->w, "volume %s is missing", m->name);
        if (size != m->content.size && size != s->content.size)
            world_wrong(k->w, "volume %s has a size that it never had", m->name);
        content_settle(&m->content);
        add_all_of(&m->content, &s->content);
        m->content.size = size;
    } else if (r == -ENOENT) {
        world_wrong(k->w, "volume %s or its snapshot %s is missing", m->name, s->tag);
    }
    s->users--;
    m->claimed = false;
}

/* What shrinking cut off reads as zeros once it grows again. */
static void model_resize(struct content *c, uint64_t size)
{
    if (size < c->size)
        content_set(
            c, (struct piece){(uint32_t)(size / UNIT), (uint32_t)((c->capacity - size) / UNIT)}, 0);
    c->size = size;
}

static fiber_fn void resize(struct work *k, struct volume_model *m)
{
    uint64_t size = UNIT * (1 + dice(k, k->w->plan.capacity / UNIT)), now = m->content.size;
    struct named_call c = {.name = m->name, .size = size};
    m->claimed = true;
    int r = operate(k, work_some_node(k), call_resize, &c, "resize");
    if (r == -ENOENT)
        world_wrong(k->w, "volume %s is missing", m->name);
    if (is_unknown(r) && !settle(k, m, &now))
        world_wrong(k->w, "volume %s is missing", m->name);
    if (now != m->content.size && now != size)
        world_wrong(k->w, "volume %s has a size that it never had", m->name);
    if (r == 0 || now == size)
        model_resize(&m->content, size);
    else if (size < m->content.size) /* some of it may be zero already */
        content_add(
            &m->content,
            (struct piece){(uint32_t)(size / UNIT), (uint32_t)((m->content.size - size) / UNIT)},
            0);
    m->claimed = false;
}

fiber_fn void work_snapshot(struct work *k, struct volume_model *m, struct node *n)
{
    struct snapshot_model *s = free_snapshot(k);
    struct named_call c = {.name = m->name};
    uint64_t size;
    if (!s || m->taking)
        return;
    s->claimed = true;
    s->volume = (unsigned)(m - k->volumes);
    snprintf(s->tag, sizeof(s->tag), "t%" PRIu64, ++k->next_tag);
    c.tag = s->tag;
    content_copy(&s->content, &m->content);
    m->taking = s;
    int r = operate(k, n, call_snapshot, &c, "snapshot");
    s->exists = r == 0;
    if (is_unknown(r)) {
        if (!settle(k, m, &size))
            world_wrong(k->w, "volume %s is missing", m->name);
        s->exists = is_listed(k, m->name, s->tag);
    }
    m->taking = NULL;
    s->claimed = false;
    k->w->stats.snapshots += s->exists;
    if (!s->exists)
        content_done(&s->content);
}

/* --- whole images --- */

struct image_read {
    struct volume *volume;
    uint64_t offset;
    uint32_t length;
    uint8_t *buffer;
};

static fiber_fn int call_read(struct node *n, void *arg)
{
    struct image_read *r = arg;
    return volume_read(r->volume, r->offset, r->length, r->buffer);
}

static fiber_fn bool check_chunk(struct work *k, const struct opened *o, struct content *c,
                                 uint64_t offset, uint8_t *buffer, const char *name,
                                 const char *tag)
{
    struct image_read a = {o->volume, offset, (uint32_t)MIN(c->size - offset, READ_CHUNK), buffer};
    struct piece p = {(uint32_t)(offset / UNIT), a.length / UNIT};
    struct content_read read;
    if (o->node->process != o->process)
        return false;
    content_read_begin(c, &read, p, o->process, sim_now(k->w->sim));
    int r = call_node(o->node, call_read, &a);
    k->w->stats.units_read += p.count;
    if (r == 0) {
        const char *wrong = content_read_end(c, &read, buffer, &k->view);
        if (wrong)
            world_wrong(k->w, "%s%s%s on node %s: %s", name, tag ? "@" : "", tag ? tag : "",
                        o->node->name, wrong);
        return true;
    }
    content_read_drop(&read);
    if (!is_unknown(r))
        world_wrong(k->w, "reading %s: %s", name, err_text(r));
    return false;
}

fiber_fn bool work_check_image(struct work *k, const struct opened *o, struct content *c,
                               const char *name, const char *tag)
{
    uint8_t *buffer = aligned_alloc(4096, READ_CHUNK);
    bool whole = true;
    ASSERT(buffer);
    if (o->size != c->size)
        world_wrong(k->w, "%s%s%s has %" PRIu64 " bytes, not %" PRIu64, name, tag ? "@" : "",
                    tag ? tag : "", o->size, c->size);
    for (uint64_t offset = 0; whole && offset < c->size; offset += READ_CHUNK)
        whole = check_chunk(k, o, c, offset, buffer, name, tag);
    free(buffer);
    return whole;
}

/* --- guests --- */

static enum work_kind choose(struct work *k)
{
    unsigned total = 0;
    for (unsigned i = 0; i < WORK_KIND_COUNT; i++)
        total += k->w->plan.weights[i];
    uint64_t pick = dice(k, total);
    for (unsigned i = 0; i < WORK_KIND_COUNT; i++) {
        if (pick < k->w->plan.weights[i])
            return (enum work_kind)i;
        pick -= k->w->plan.weights[i];
    }
    return WORK_USE;
}

static fiber_fn void work_once(struct work *k)
{
    enum work_kind kind = choose(k);
    struct volume_model *m = some_volume(k, kind != WORK_USE);
    struct snapshot_model *s = some_snapshot(k, -1, kind == WORK_DELETE_SNAPSHOT);
    if (kind == WORK_CREATE || (kind == WORK_USE && !m && dice(k, 4) == 0))
        create(k);
    else if (kind == WORK_CLONE)
        clone(k);
    else if (kind == WORK_USE && m)
        guest_use(k, m);
    else if (kind == WORK_DELETE && m)
        work_delete(k, m);
    else if (kind == WORK_DELETE_SNAPSHOT && s)
        work_delete_snapshot(k, s);
    else if (kind == WORK_READ_SNAPSHOT && s)
        read_snapshot(k, s);
    else if (kind == WORK_ROLLBACK && m)
        roll_back(k, m);
    else if (kind == WORK_RESIZE && m)
        resize(k, m);
    if (k->left > 0)
        k->left--;
}

static fiber_fn void guest_main(void *arg)
{
    struct work *k = arg;
    while (k->left > 0 && !k->w->healing) {
        work_once(k);
        fiber_sleep(k->w->rt, dice(k, 1 + k->w->plan.think_ns));
    }
    k->w->running--;
}

void work_start(struct work *k, struct world *w)
{
    *k = (struct work){.w = w,
                       .random = hash_u64(w->plan.seed ^ 0x6e57),
                       .left = w->plan.operations,
                       .view = {process_gone_at, w}};
    for (unsigned i = 0; i < w->plan.clients; i++) {
        w->running++;
        ASSERT(fiber_spawn(w->rt, "guest", guest_main, k) == 0);
    }
}
