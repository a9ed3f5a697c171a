/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing: a commit is one multi that moves the head on by one and adds an entry to the log.
 *
 * ZC1 The multi is conditional on the version of the head's node. So the state on which a commit's
 *     conditions were examined is the state that it changes, and its entry has the next number.
 * ZC2 It is conditional on the node of the writer's session: a session that is over writes nothing.
 *     The end of a dead session proves in its multi that there is no such node.
 * ZC3 When nobody knows whether a multi took effect, it is sent again unchanged or found in the log
 *     by its nonce: the condition on the head lets it happen once. Only when its place in the log
 *     was removed before we saw it, or we may not wait, the answer is "unknown".
 * ZC4 Parts of a body are written before the entry that speaks of them and go with it. Those of a
 *     writer that died in between are swept once its session is over.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "cluster/drivers/zookeeper_internal.h"

#define LOG_MODULE "cluster"

/* Head, session (create and delete), entry, removed entries with their parts. */
#define MULTI_PARTS_MAX 64u
#define MULTI_OPS_MAX   (4u + ZK_REMOVED_MAX + MULTI_PARTS_MAX)

/* What an attempt came to, besides errors. */
enum {
    STALE = 1, /* a condition does not hold in our state */
    NOTHING,   /* the commit would change nothing in it */
    MOVED,     /* the store is not where our state is: look again */
};

struct attempt {
    struct zk_commit *commit;
    uint64_t base; /* revision of the state that it changes */
    struct zk_header header;
    struct enc head, body, entry;
    struct zk_change *changes; /* of the body */
    unsigned change_count;
    unsigned op_count, session_op, log_op;
    zoo_op_t ops[MULTI_OPS_MAX];
    zoo_op_result_t results[MULTI_OPS_MAX];
    char paths[MULTI_OPS_MAX][ZK_PATH_SIZE];
    char created[ZK_PATH_SIZE];
};

/* --- what it does --- */

static bool conditions_hold(const struct zk_state *s, const struct cs_op *ops, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        const struct zk_key *k = zk_state_get(s, ops[i].key);
        uint64_t revision = k ? k->revision : CS_REVISION_ABSENT;
        if (ops[i].revision != CS_REVISION_ANY && ops[i].revision != revision)
            return false;
    }
    return true;
}

/* Number of changes; whether any is one. */
static unsigned count_changes(const struct zk_state *s, const struct zk_commit *c, bool *ret_any)
{
    unsigned n = 0;
    *ret_any = false;
    for (unsigned i = 0; i < c->count; i++) {
        n += c->ops[i].kind != CS_CHECK;
        *ret_any |= c->ops[i].kind == CS_PUT ||
                    (c->ops[i].kind == CS_DELETE && zk_state_get(s, c->ops[i].key));
    }
    return n;
}

static void encode_txn(struct zk *z, const struct zk_commit *c, unsigned count, struct enc *body)
{
    zk_body_begin(body, count);
    for (unsigned i = 0; i < c->count; i++) {
        const struct cs_op *op = &c->ops[i];
        if (op->kind == CS_PUT)
            zk_body_put(body, op->key, op->ephemeral ? z->cs.session.value : 0,
                        op->length ? op->value : "", op->length);
        else if (op->kind == CS_DELETE)
            zk_body_delete(body, op->key);
    }
}

void zk_session_key(char out[CS_KEY_SIZE], uint64_t session)
{
    snprintf(out, CS_KEY_SIZE, ZK_SESSION_KEY "%020" PRIu64, session);
}

static void encode_begin(uint64_t session, struct enc *body)
{
    char key[CS_KEY_SIZE];
    zk_session_key(key, session);
    zk_body_begin(body, 1);
    zk_body_put(body, key, session, "", 0);
}

static unsigned encode_end(const struct zk_state *s, uint64_t session, struct enc *body)
{
    const struct zk_key *k;
    unsigned count = 0;
    for (size_t position = 0; (k = zk_state_next(s, "", &position));)
        count += k->owner == session;
    zk_body_begin(body, count);
    for (size_t position = 0; (k = zk_state_next(s, "", &position));) {
        if (k->owner == session)
            zk_body_delete(body, k->name);
    }
    return count;
}

/* Fills in the body for the present state. STALE, NOTHING, -EFBIG, -ENOMEM. */
static int build_body(struct zk *z, struct attempt *a)
{
    struct zk_commit *c = a->commit;
    bool any = true;
    a->base = z->state.revision;
    if (c->kind == ZK_COMMIT_TXN) {
        if (!conditions_hold(&z->state, c->ops, c->count))
            return STALE;
        unsigned count = count_changes(&z->state, c, &any);
        if (any)
            encode_txn(z, c, count, &a->body);
    } else if (c->kind == ZK_COMMIT_BEGIN) {
        encode_begin(a->base + 1, &a->body);
    } else {
        any = encode_end(&z->state, c->session, &a->body) > 0;
    }
    if (!any)
        return NOTHING;
    if (a->body.error)
        return a->body.error;
    return a->body.length > ZK_BODY_BYTES_MAX ? -EFBIG : 0;
}

/* --- parts --- */

static unsigned part_count(const struct attempt *a)
{
    return a->body.length <= ZK_PART_BYTES
               ? 0
               : (unsigned)((a->body.length + ZK_PART_BYTES - 1) / ZK_PART_BYTES);
}

/* ZC4. -EAGAIN: the connection was lost. */
static fiber_fn int write_parts(struct zk *z, struct attempt *a)
{
    unsigned count = part_count(a);
    for (unsigned i = 0; i < count; i++) {
        struct zk_call call;
        char path[ZK_PATH_SIZE];
        size_t from = (size_t)i * ZK_PART_BYTES;
        zk_path_part(z, path, z->cs.session.value, a->commit->nonce, i);
        zk_start_create(z->link, &call, path, a->body.data + from,
                        MIN(a->body.length - from, ZK_PART_BYTES));
        int rc = zk_wait(&call);
        zk_call_done(&call);
        a->commit->has_parts = true;
        if (rc != ZOK && rc != ZNODEEXISTS)
            return zk_rc_unknown(rc) ? -EAGAIN : -EIO;
    }
    return 0;
}

static fiber_fn void drop_parts(struct zk *z, struct zk_commit *c)
{
    for (unsigned i = 0; c->has_parts && i < ZK_PART_COUNT_MAX; i++) {
        struct zk_call call;
        char path[ZK_PATH_SIZE];
        zk_path_part(z, path, z->cs.session.value, c->nonce, i);
        zk_start_delete(z->link, &call, path);
        int rc = zk_wait(&call);
        zk_call_done(&call);
        if (rc != ZOK)
            break;
    }
    c->has_parts = false;
}

/* --- one attempt --- */

static zoo_op_t *next_op(struct attempt *a, char **ret_path)
{
    ASSERT(a->op_count < MULTI_OPS_MAX);
    *ret_path = a->paths[a->op_count];
    return &a->ops[a->op_count++];
}

static void add_session_ops(struct zk *z, struct attempt *a)
{
    const struct zk_commit *c = a->commit;
    bool own = c->kind == ZK_COMMIT_TXN || c->session == z->cs.session.value;
    uint64_t session = c->kind == ZK_COMMIT_BEGIN ? a->base + 1
                       : c->kind == ZK_COMMIT_END ? c->session
                                                  : z->cs.session.value;
    char *path;
    zoo_op_t *op = next_op(a, &path);
    a->session_op = a->op_count - 1;
    zk_path_session(z, path, session);
    if (c->kind == ZK_COMMIT_TXN)
        zoo_check_op_init(op, path, -1);
    else if (c->kind == ZK_COMMIT_BEGIN || !own)
        zoo_create_op_init(op, path, "", 0, &ZOO_OPEN_ACL_UNSAFE, ZOO_EPHEMERAL, a->created,
                           sizeof(a->created));
    if (c->kind != ZK_COMMIT_END)
        return;
    if (!own)
        op = next_op(a, &path);
    zk_path_session(z, path, session);
    zoo_delete_op_init(op, path, -1);
}

/* Entries that this commit removes from the log. */
static void add_removals(struct zk *z, struct attempt *a)
{
    struct zk_loose loose[ZK_REMOVED_MAX];
    unsigned count =
        zk_state_removable(&z->state, ZK_KEEP_COUNT, ZK_KEEP_BYTES, loose, ZK_REMOVED_MAX);
    unsigned parts = 0;
    for (unsigned i = 0; i < count; i++) {
        char *path;
        zoo_op_t *op;
        parts += loose[i].part_count;
        if (parts > MULTI_PARTS_MAX)
            break;
        a->header.removed[a->header.removed_count++] = loose[i].revision;
        op = next_op(a, &path);
        zk_path_log(z, path, loose[i].revision);
        zoo_delete_op_init(op, path, -1);
        for (unsigned j = 0; j < loose[i].part_count; j++) {
            op = next_op(a, &path);
            zk_path_part(z, path, loose[i].session, loose[i].nonce, j);
            zoo_delete_op_init(op, path, -1);
        }
    }
}

static int build_multi(struct zk *z, struct attempt *a)
{
    char *path;
    zoo_op_t *op = next_op(a, &path);
    zk_head_encode(&a->head, a->base + 1);
    zk_path(z, path, "head");
    zoo_set_op_init(op, path, (const char *)a->head.data, (int)a->head.length, z->head_version,
                    NULL);
    add_session_ops(z, a);
    op = next_op(a, &path);
    a->log_op = a->op_count - 1;
    zk_path_log(z, path, a->base + 1);
    add_removals(z, a);
    a->header.revision = a->base + 1;
    a->header.session = z->cs.session.value;
    a->header.nonce = a->commit->nonce;
    a->header.part_count = part_count(a);
    zk_entry_encode(&a->entry, &a->header, &a->body);
    zoo_create_op_init(op, path, (const char *)a->entry.data, (int)a->entry.length,
                       &ZOO_OPEN_ACL_UNSAFE, ZOO_PERSISTENT, a->created, sizeof(a->created));
    return a->head.error ? a->head.error : a->entry.error;
}

/* Why the multi was refused, from the operation that was. */
static int refused(struct zk *z, const struct attempt *a, int rc)
{
    unsigned i = 0;
    while (i < a->op_count &&
           (a->results[i].err == ZOK || a->results[i].err == ZRUNTIMEINCONSISTENCY))
        i++;
    if (i == a->session_op && a->commit->kind != ZK_COMMIT_BEGIN) {
        if (a->commit->kind == ZK_COMMIT_END && a->commit->session != z->cs.session.value)
            return rc == ZNODEEXISTS ? -EBUSY : -EIO;
        zk_lose(z, "its session was ended");
        return -EIO;
    }
    if (i > a->log_op && i < a->op_count && rc == ZNONODE) {
        for (unsigned j = 0; j < a->header.removed_count; j++)
            zk_state_forget(&z->state, a->header.removed[j]);
        return MOVED;
    }
    if ((i == 0 && rc == ZBADVERSION) || (i == a->log_op && rc == ZNODEEXISTS))
        return MOVED;
    log_error("the cluster store refuses a commit: %s%s", zk_rc_text(rc),
              rc == ZNOAUTH ? "; its nodes in ZooKeeper need permissions for everyone" : "");
    return rc == ZNOAUTH ? -EPERM : -EIO;
}

/* Sends it. 0: done (c->done), -EAGAIN: nobody knows, MOVED, or another error. */
static fiber_fn int send_multi(struct zk *z, struct attempt *a)
{
    struct zk_commit *c = a->commit;
    struct zk_call call;
    c->sent = true;
    c->base = a->base;
    c->gap_count = z->gap_count;
    int32_t version = z->head_version;
    zk_start_multi(z->link, &call, a->ops, a->op_count, a->results);
    int rc = zk_wait(&call);
    zk_call_done(&call);
    if (rc == ZOK) {
        c->done = true;
        c->revision = a->base + 1;
        zk_learn_head(z, a->base + 1, (int32_t)((uint32_t)version + 1));
        int r = zk_take(z, &a->header, a->changes, a->change_count);
        if (r < 0)
            zk_lose(z, err_text(r));
        return 0;
    }
    if (!zk_rc_unknown(rc))
        return refused(z, a, rc);
    c->unknown = true;
    return -EAGAIN;
}

static fiber_fn int attempt_once(struct zk *z, struct attempt *a)
{
    int r = build_body(z, a);
    if (r == 0)
        r = write_parts(z, a);
    if (r != 0)
        return r;
    if (z->gap || z->state.revision != a->base || z->head_revision != a->base)
        return MOVED; /* the store has moved while parts were written */
    r = build_multi(z, a);
    if (r == 0)
        r = zk_body_decode(a->body.data, a->body.length, &a->changes, &a->change_count);
    return r < 0 ? r : send_multi(z, a);
}

static fiber_fn int try_commit(struct zk *z, struct zk_commit *c)
{
    struct attempt *a = calloc(1, sizeof(*a));
    if (!a)
        return -ENOMEM;
    a->commit = c;
    enc_init(&a->head);
    enc_init(&a->body);
    enc_init(&a->entry);
    int r = attempt_once(z, a);
    enc_done(&a->head);
    enc_done(&a->body);
    enc_done(&a->entry);
    free(a->changes);
    free(a);
    return r;
}

/* --- until it is known --- */

/* Gives the answer for an end without success. */
static int unknown_or(const struct zk_commit *c, int r)
{
    return c->unknown ? -ECONNRESET : r == -ECANCELED ? -ETIMEDOUT : r;
}

/* The state is at least as new as the call: what became of earlier attempts? */
static void settle(const struct zk *z, struct zk_commit *c)
{
    if (c->unknown && c->gap_count == z->gap_count && z->state.revision > c->base)
        c->unknown = false; /* another commit has its place */
}

static fiber_fn int commit_locked(struct zk *z, struct zk_commit *c)
{
    bool fresh = false; /* the state is not older than the call */
    for (;;) {
        int r = zk_wait_connected(z, UINT64_MAX);
        if (r == 0)
            r = zk_catch_up(z, UINT64_MAX);
        if (c->done)
            return 0;
        settle(z, c);
        if (c->unknown && c->gap_count != z->gap_count)
            return -ECONNRESET; /* ZC3 */
        if (r < 0)
            return unknown_or(c, r);
        r = try_commit(z, c);
        if (c->done)
            return 0;
        if ((r == STALE || r == NOTHING) && fresh) {
            c->revision = z->state.revision;
            return r == STALE ? -ESTALE : 0;
        }
        if (r == -EAGAIN)
            zk_breathe(z);
        if (r < 0 && r != -EAGAIN)
            return unknown_or(c, r);
        r = zk_refresh(z, UINT64_MAX);
        fresh = r == 0;
    }
}

fiber_fn int zk_commit(struct zk *z, struct zk_commit *c)
{
    fmutex_lock(&z->commit_lock);
    c->nonce = rt_random(z->cs.rt);
    z->pending = c;
    int r = z->cs.lost ? -EIO : commit_locked(z, c);
    z->pending = NULL;
    if (!c->done && !c->unknown && !z->cs.lost)
        drop_parts(z, c);
    fmutex_unlock(&z->commit_lock);
    return r;
}

/* --- parts that nobody wants --- */

/* ZC4. The name is SESSION-NONCE-PART. */
static bool part_is_lost(const struct zk *z, const char *name)
{
    char *end, key[CS_KEY_SIZE];
    uint64_t session = strtoull(name, &end, 10);
    if (*end != '-' || session > z->state.revision)
        return false;
    uint64_t nonce = strtoull(end + 1, &end, 16);
    zk_session_key(key, session);
    return *end == '-' && !zk_state_get(&z->state, key) &&
           !zk_state_has_parts(&z->state, session, nonce);
}

fiber_fn void zk_sweep_parts(struct zk *z)
{
    struct zk_call names, call;
    char path[ZK_PATH_SIZE];
    zk_path(z, path, "part");
    zk_start_children(z->link, &names, path, ZK_NO_WATCH);
    int rc = zk_wait(&names);
    for (unsigned i = 0; rc == ZOK && i < names.name_count; i++) {
        if (!part_is_lost(z, names.names[i]))
            continue;
        snprintf(path, sizeof(path), "%s/part/%s", z->spec.root, names.names[i]);
        zk_start_delete(z->link, &call, path);
        rc = zk_wait(&call);
        zk_call_done(&call);
        if (rc == ZNONODE)
            rc = ZOK;
    }
    zk_call_done(&names);
}
