/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading: the own store if it is in sync, else another node; and repair of a copy that turned out
 * bad.
 *
 * W5 Reads may go to any in-sync node. A bad checksum or a dead peer moves the read on; a bad
 *    copy is repaired from a copy of the same version.
 * B1 An answer from the own store counts only if this node served, at one epoch, from before to
 *    after.
 */
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "object/object_internal.h"

#define LOG_MODULE "object"
#include "base/log.h"

#define RETRY_NS          (50 * NS_PER_MS)
#define PATIENCE_NS       NS_PER_S /* with one node while there are others, at first */
#define PATIENCE_DOUBLES  6u
#define INSTALL_BYTES_MAX (16u << 20)

/* --- one remote copy --- */

struct remote_read {
    struct call call;
    struct version version;
};

static int take_read_version(struct call *c, const uint8_t *body, size_t length)
{
    if (length != PEER_VERSION_BYTES)
        return -EBADMSG;
    container_of(c, struct remote_read, call)->version.value = get_le64(body);
    return 0;
}

fiber_fn int copy_read(struct objects *o, uint16_t node, const struct oid *oid, uint32_t offset,
                       uint32_t length, void *buffer, uint64_t patience_ns,
                       struct version *ret_version)
{
    uint8_t body[PEER_READ_BYTES];
    const struct peer_read pr = {*oid, offset, length};
    struct remote_read rr = {.version = {0}};
    int r = call_init(&rr.call, PEER_READ, 0);
    if (r < 0)
        return r;
    peer_read_put(body, &pr);
    rr.call.flags = CALL_FAIL_FAST | CALL_BOUND;
    rr.call.deadline_ns = patience_ns ? clock_now(o->rt) + patience_ns : 0;
    rr.call.group = oid->group;
    rr.call.body = body;
    rr.call.body_length = sizeof(body);
    rr.call.reply_payload = buffer;
    rr.call.reply_payload_size = length;
    rr.call.on_body = take_read_version;
    r = node_call(o, node, &rr.call, NULL, "reads");
    if (r == 0 && rr.call.reply_payload_length != length)
        r = -EBADMSG;
    call_done(&rr.call);
    *ret_version = rr.version;
    return r;
}

static int take_entry(struct call *c, const uint8_t *body, size_t length)
{
    struct dec d;
    struct peer_entry en;
    dec_init(&d, body, length);
    peer_entry_decode(&d, &en);
    en.meta = NULL;
    if (dec_finish(&d) < 0)
        return -EBADMSG;
    *(struct peer_entry *)c->reply_payload = en;
    return 0;
}

fiber_fn int copy_stat(struct objects *o, uint16_t node, const struct oid *oid,
                       const struct object_owner *owner, struct peer_entry *ret)
{
    uint8_t body[PEER_READ_BYTES];
    const struct peer_read pr = {.oid = *oid};
    struct call c;
    int r = call_init(&c, PEER_STAT, 0);
    if (r < 0)
        return r;
    peer_read_put(body, &pr);
    c.flags = CALL_BOUND;
    c.group = oid->group;
    c.body = body;
    c.body_length = sizeof(body);
    c.reply_payload = ret; /* the answer has a body only; see take_entry() */
    c.on_body = take_entry;
    r = node_call(o, node, &c, owner, "comparing");
    call_done(&c);
    return r;
}

/* --- evening out --- */

struct copy_change {
    struct call call;
    struct version current;
};

static int take_current(struct call *c, const uint8_t *body, size_t length)
{
    if (length != PEER_VERSION_BYTES)
        return -EBADMSG;
    container_of(c, struct copy_change, call)->current.value = get_le64(body);
    return 0;
}

/* One change on one node alone. Done already is done. */
static fiber_fn int copy_change(struct objects *o, uint16_t node, const struct peer_change *pc,
                                const struct iovec *iov, uint32_t payload_crc,
                                const struct object_owner *owner)
{
    uint8_t body[PEER_CHANGE_BYTES_MAX];
    struct copy_change cc = {.current = {0}};
    int r = call_init(&cc.call, PEER_CHANGE, iov ? 1 : 0);
    if (r < 0)
        return r;
    cc.call.flags = CALL_BOUND;
    cc.call.group = pc->oid.group;
    cc.call.body = body;
    cc.call.body_length = (uint32_t)peer_change_put(body, pc);
    cc.call.payload = iov;
    cc.call.payload_length = iov ? (uint32_t)iov->iov_len : 0;
    cc.call.payload_crc = payload_crc;
    cc.call.on_body = take_current;
    r = node_call(o, node, &cc.call, owner, "repairs");
    call_done(&cc.call);
    return r == -ESTALE && cc.current.value == pc->next.value ? 0 : r;
}

fiber_fn int copy_remove(struct objects *o, uint16_t node, const struct oid *oid,
                         struct version prev, struct version next, const struct object_owner *owner)
{
    const struct peer_change pc = {
        .kind = PEER_CHANGE_REMOVE, .oid = *oid, .prev = prev, .next = next};
    return copy_change(o, node, &pc, NULL, 0, owner);
}

fiber_fn int copy_note(struct objects *o, uint16_t node, const struct oid *oid,
                       struct version version, enum copy_kind kind,
                       const struct object_owner *owner)
{
    const struct peer_change pc = {
        .kind = PEER_CHANGE_NOTE,
        .oid = *oid,
        .prev = kind == COPY_TOMBSTONE ? version : (struct version){0},
        .next = version,
    };
    return copy_change(o, node, &pc, NULL, 0, owner);
}

/* Memory for installs is a class of its own: they hold it while they wait for other nodes, and what
 * serves those nodes (payload_get()) must not wait for that. */
fiber_fn void *install_buffer_get(struct objects *o, uint32_t size)
{
    while (o->install_used > 0 && o->install_used + size > INSTALL_BYTES_MAX)
        waitq_wait(&o->install_wait);
    void *p = aligned_alloc(OBJECT_BLOCK, ALIGN_UP((size_t)size, (size_t)OBJECT_BLOCK));
    if (p)
        o->install_used += size;
    return p;
}

void install_buffer_put(struct objects *o, void *p, uint32_t size)
{
    free(p);
    o->install_used -= size;
    waitq_wake_all(&o->install_wait);
}

fiber_fn int copy_install(struct objects *o, uint16_t node, uint16_t donor, const struct oid *oid,
                          struct version prev, struct version next, uint32_t end,
                          const struct object_owner *owner)
{
    struct peer_change pc = {.kind = PEER_CHANGE_INSTALL, .oid = *oid, .prev = prev, .next = next};
    if (end == 0)
        return copy_change(o, node, &pc, NULL, 0, owner);
    void *buffer = install_buffer_get(o, end);
    struct version version;
    if (!buffer)
        return -ENOMEM;
    int r = copy_read(o, donor, oid, 0, end, buffer, 0, &version);
    if (r == 0 && version.value != next.value)
        r = -ESTALE; /* the donor went on: look again */
    if (r == 0) {
        const struct iovec iov = {buffer, end};
        pc.extent_count = 1;
        pc.extents[0] = (struct peer_extent){0, end};
        r = copy_change(o, node, &pc, &iov, crc32c(0, buffer, end), owner);
    }
    install_buffer_put(o, buffer, end);
    return r;
}

/* --- background repair --- */

struct repair {
    struct objects *o;
    struct oid oid;
    uint16_t node;
};

/* 0: equal versions found and the copy rewritten. */
static fiber_fn int repair_once(struct repair *rp)
{
    struct objects *o = rp->o;
    struct peer_entry bad, good;
    const struct map_group *g = group_map(o, rp->oid.group);
    uint16_t members[MAP_GROUP_MEMBER_MAX];
    unsigned count = g ? g->in_sync_count : 0;
    for (unsigned i = 0; i < count; i++)
        members[i] = g->in_sync[i];
    int r = copy_stat(o, rp->node, &rp->oid, NULL, &bad);
    if (r < 0 || bad.tombstone || bad.version.value == 0)
        return r;
    r = -ENOENT;
    for (unsigned i = 0; i < count && r < 0; i++) {
        if (members[i] == rp->node)
            continue;
        r = copy_stat(o, members[i], &rp->oid, NULL, &good);
        if (r == 0 && good.version.value != bad.version.value)
            r = -ESTALE;
        if (r == 0)
            r = copy_install(o, rp->node, members[i], &rp->oid, bad.version, bad.version, good.end,
                             NULL);
    }
    return r;
}

static fiber_fn void repair_main(void *arg)
{
    struct repair *rp = arg;
    struct objects *o = rp->o;
    char name[OID_TEXT_SIZE];
    int r = -EAGAIN;
    for (unsigned i = 0; i < 10 && r < 0 && !o->stopping; i++) {
        r = repair_once(rp);
        if (r < 0 && fiber_sleep(o->rt, (1ULL << i) * 20 * NS_PER_MS) < 0)
            break;
    }
    if (r == 0)
        log_warn("object %s: the bad copy on node %u was repaired", oid_format(&rp->oid, name),
                 rp->node);
    else
        log_error("object %s: the bad copy on node %u is not repaired yet: %s",
                  oid_format(&rp->oid, name), rp->node, err_text(r));
    free(rp);
    o->repairs_running--;
    objects_fiber_end(o);
}

static void repair_start(struct objects *o, const struct oid *oid, uint16_t node)
{
    char name[OID_TEXT_SIZE];
    log_warn("object %s: a block of the copy on node %u does not match its checksum; reading "
             "another copy",
             oid_format(oid, name), node);
    struct repair *rp = malloc(sizeof(*rp));
    if (!rp)
        return;
    *rp = (struct repair){o, *oid, node};
    if (objects_spawn(o, "object-repair", repair_main, rp) < 0)
        free(rp);
    else
        o->repairs_running++;
}

/* --- object_read --- */

struct reading {
    const struct oid *oid;
    uint32_t offset, length;
    void *buffer;
    struct version version;
    unsigned rounds; /* over all nodes */
    unsigned bad_count;
    uint16_t bad[MAP_GROUP_MEMBER_MAX];
};

/* B1. -EAGAIN: not from here, now. */
static fiber_fn int read_own(struct objects *o, struct reading *rd)
{
    const struct map_group *m = group_map(o, rd->oid->group);
    struct group *g = group_get(o, rd->oid->group);
    if (!m || g->closed || !gate_serving(o) || !map_group_in_sync(m, (uint16_t)o->self))
        return -EAGAIN;
    uint64_t epoch = g->epoch;
    int r = store_read(o->store, rd->oid, rd->offset, rd->length, rd->buffer, &rd->version);
    g = group_get(o, rd->oid->group);
    return g->epoch == epoch && !g->closed && gate_serving(o) ? r : -EAGAIN;
}

static bool is_bad(const struct reading *rd, uint16_t node)
{
    for (unsigned i = 0; i < rd->bad_count; i++)
        if (rd->bad[i] == node)
            return true;
    return false;
}

static bool is_live(const struct objects *o, uint16_t node)
{
    const struct map_node *n = map_node(o->map, node);
    return n && n->session.value != 0;
}

static unsigned live_count(const struct objects *o, const uint16_t *nodes, unsigned count)
{
    unsigned n = 0;
    for (unsigned i = 0; i < count; i++)
        n += is_live(o, nodes[i]);
    return n;
}

/* Tries the in-sync nodes one after the other; one that hangs is left for the next one after a
 * while, which doubles from round to round, for disks that are slow. 0 or -ENOENT: an answer.
 * -EUCLEAN: all copies are bad. */
static fiber_fn int read_any(struct objects *o, struct reading *rd)
{
    const struct map_group *m = group_map(o, rd->oid->group);
    uint16_t members[MAP_GROUP_MEMBER_MAX];
    unsigned count = m ? m->in_sync_count : 0;
    unsigned first = count ? (unsigned)(oid_hash(rd->oid) % count) : 0;
    for (unsigned i = 0; i < count; i++)
        members[i] = m->in_sync[(first + i) % count];
    int r = -EAGAIN;
    uint64_t patience_ns =
        live_count(o, members, count) < 2 ? 0 : PATIENCE_NS << MIN(rd->rounds, PATIENCE_DOUBLES);
    rd->rounds++;
    for (unsigned i = 0; i < count; i++) {
        if (is_bad(rd, members[i]) || !is_live(o, members[i]))
            continue;
        r = members[i] == o->self ? read_own(o, rd)
                                  : copy_read(o, members[i], rd->oid, rd->offset, rd->length,
                                              rd->buffer, patience_ns, &rd->version);
        if (r == 0 || r == -ENOENT)
            return r;
        if (r == -EUCLEAN)
            rd->bad[rd->bad_count++] = members[i];
    }
    return count > 0 && rd->bad_count == count ? -EUCLEAN : -EAGAIN;
}

static fiber_fn int read_patiently(struct objects *o, struct reading *rd)
{
    struct op op;
    op_begin(o, &op, NULL, "reads");
    int r;
    while ((r = read_any(o, rd)) == -EAGAIN) {
        if (op_cancelled(o, &op)) {
            r = -ECANCELED;
            break;
        }
        waitq_wait_until(&o->map_wait, o->rt, clock_now(o->rt) + RETRY_NS);
    }
    op_end(o, &op);
    for (unsigned i = 0; i < rd->bad_count && r == 0; i++)
        repair_start(o, rd->oid, rd->bad[i]);
    return r;
}

fiber_fn int object_read(struct objects *o, const struct oid *oid, uint32_t offset, uint32_t length,
                         void *buffer, struct version *ret_version)
{
    if ((uint64_t)offset + length > STORE_OBJECT_SIZE_MAX || length == 0)
        return length == 0 ? 0 : -EINVAL;
    if (oid->group >= o->group_count)
        return -EINVAL;
    struct reading rd = {.oid = oid, .offset = offset, .length = length, .buffer = buffer};
    int r = read_own(o, &rd);
    if (r != 0 && r != -ENOENT) {
        if (r == -EUCLEAN)
            rd.bad[rd.bad_count++] = (uint16_t)o->self;
        r = read_patiently(o, &rd);
    }
    if (r == -ENOENT) {
        memset(buffer, 0, length);
        rd.version.value = 0;
    }
    if (ret_version && (r == 0 || r == -ENOENT))
        *ret_version = rd.version;
    return r;
}

/* --- object_map --- */

struct mapping {
    struct call call;
    void (*fn)(void *arg, uint32_t offset, uint32_t length, bool mapped);
    void *arg;
    struct enc runs; /* the answer's body, kept: fn is told only once a whole answer is good */
};

static int take_runs(struct call *c, const uint8_t *body, size_t length)
{
    struct mapping *m = container_of(c, struct mapping, call);
    struct dec d;
    struct peer_run run;
    dec_init(&d, body, length);
    while (dec_left(&d) > 0 && !d.error)
        peer_run_decode(&d, &run);
    enc_done(&m->runs);
    enc_bytes(&m->runs, body, length);
    return d.error ? d.error : m->runs.error;
}

static void report_runs(struct mapping *m)
{
    struct dec d;
    dec_init(&d, m->runs.data, m->runs.length);
    while (dec_left(&d) > 0) {
        struct peer_run run;
        peer_run_decode(&d, &run);
        m->fn(m->arg, run.offset, run.length, run.mapped);
    }
}

/* As read_any(). */
static fiber_fn int map_any(struct objects *o, const struct oid *oid, struct mapping *m)
{
    const struct map_group *g = group_map(o, oid->group);
    uint16_t members[MAP_GROUP_MEMBER_MAX];
    unsigned count = 0;
    if (g && o->self >= 0 && map_group_in_sync(g, (uint16_t)o->self))
        members[count++] = (uint16_t)o->self;
    for (unsigned i = 0; g && i < g->in_sync_count; i++)
        if (g->in_sync[i] != o->self)
            members[count++] = g->in_sync[i];
    for (unsigned i = 0; i < count; i++) {
        if (!is_live(o, members[i]))
            continue;
        m->call.deadline_ns = i + 1 < count ? clock_now(o->rt) + PATIENCE_NS : 0;
        int r = node_call(o, members[i], &m->call, NULL, "reads");
        if (r == 0 || r == -ENOENT)
            return r;
    }
    return -EAGAIN;
}

fiber_fn int object_map(struct objects *o, const struct oid *oid, uint32_t offset, uint32_t length,
                        void (*fn)(void *arg, uint32_t offset, uint32_t length, bool mapped),
                        void *arg)
{
    uint8_t body[PEER_READ_BYTES];
    const struct peer_read pr = {*oid, offset, length};
    if (oid->group >= o->group_count || length == 0 ||
        (uint64_t)offset + length > STORE_OBJECT_SIZE_MAX)
        return -EINVAL;
    struct mapping m = {.fn = fn, .arg = arg};
    struct op op;
    int r = call_init(&m.call, PEER_MAP, 0);
    if (r < 0)
        return r;
    enc_init(&m.runs);
    peer_read_put(body, &pr);
    m.call.flags = CALL_FAIL_FAST | CALL_BOUND;
    m.call.group = oid->group;
    m.call.body = body;
    m.call.body_length = sizeof(body);
    m.call.on_body = take_runs;
    op_begin(o, &op, NULL, "reads");
    while ((r = map_any(o, oid, &m)) == -EAGAIN) {
        if (op_cancelled(o, &op)) {
            r = -ECANCELED;
            break;
        }
        waitq_wait_until(&o->map_wait, o->rt, clock_now(o->rt) + RETRY_NS);
    }
    op_end(o, &op);
    if (r == 0)
        report_runs(&m);
    else if (r == -ENOENT)
        fn(arg, offset, length, false);
    enc_done(&m.runs);
    call_done(&m.call);
    return r == -ENOENT ? 0 : r;
}
