/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading the log: what is there at first, what comes, and telling the watches.
 *
 * ZF1 Entries are applied in order, each once: the follower reads them, and a commit of our own is
 *     applied by whoever comes first.
 * ZF2 A reader of the whole log takes its entries from the youngest to the oldest. An entry is only
 *     removed when younger ones have taken its place, so it may miss what those say anyway, but
 *     never finds a key that was deleted. It has read enough once it has followed up to a head that
 *     was read afterwards.
 * ZF3 Watches are told of every entry in order; after a gap (entries that were removed before we
 *     read them) of the difference, once the state holds what the store held after it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "cluster/drivers/zookeeper_internal.h"

#define LOG_MODULE "cluster"

#define WINDOW 64u /* requests under way while reading many entries */

void zk_learn_head(struct zk *z, uint64_t revision, int32_t version)
{
    if (revision < z->head_revision)
        return;
    z->head_revision = revision;
    z->head_version = version;
    waitq_wake_all(&z->changed);
    waitq_wake_all(&z->follow_wake);
}

/* --- one entry --- */

struct fetch {
    struct zk_call call;
    uint64_t revision;
    bool missing;
    struct zk_header header;
    uint8_t *bytes; /* owned: what the changes point into */
    struct zk_change *changes;
    unsigned count;
};

static void fetch_start(struct zk *z, struct fetch *f, uint64_t revision)
{
    char path[ZK_PATH_SIZE];
    *f = (struct fetch){.revision = revision};
    zk_path_log(z, path, revision);
    zk_start_get(z->link, &f->call, path, ZK_NO_WATCH);
}

static void fetch_done(struct fetch *f)
{
    zk_call_done(&f->call);
    free(f->bytes);
    free(f->changes);
    f->bytes = NULL;
    f->changes = NULL;
}

static int broken(struct zk *z, const char *what, uint64_t revision, int r)
{
    log_error("the cluster store's %s %" PRIu64 " cannot be used (%s)%s", what, revision,
              err_text(r),
              r == -EPROTO ? ": it is of a newer version, use that"
                           : ": something else has written to its place in ZooKeeper");
    return r;
}

/* -EAGAIN: the connection was lost. *ret_missing: there is none. */
static fiber_fn int fetch_part(struct zk *z, struct fetch *f, unsigned part, uint32_t *position)
{
    struct zk_call call;
    char path[ZK_PATH_SIZE];
    zk_path_part(z, path, f->header.session, f->header.nonce, part);
    zk_start_get(z->link, &call, path, ZK_NO_WATCH);
    int rc = zk_wait(&call), r = 0;
    if (rc == ZNONODE) {
        f->missing = true;
    } else if (rc != ZOK) {
        r = rc == ZSYSTEMERROR ? -ENOMEM : -EAGAIN;
    } else if (call.length > f->header.body_length - *position) {
        r = broken(z, "entry", f->revision, -EBADMSG);
    } else {
        memcpy(f->bytes + *position, call.data, call.length);
        *position += (uint32_t)call.length;
    }
    zk_call_done(&call);
    return r;
}

static fiber_fn int fetch_parts(struct zk *z, struct fetch *f)
{
    uint32_t position = 0;
    int r = 0;
    f->bytes = malloc(f->header.body_length + 1u);
    if (!f->bytes)
        return -ENOMEM;
    for (unsigned i = 0; i < f->header.part_count && r == 0 && !f->missing; i++)
        r = fetch_part(z, f, i, &position);
    if (r == 0 && !f->missing && zk_body_check(&f->header, f->bytes, position) < 0)
        r = broken(z, "entry", f->revision, -EBADMSG);
    return r;
}

/* Waits and decodes. 0 (maybe f->missing), -EAGAIN: connection lost, -ENOMEM, -EBADMSG, -EPROTO. */
static fiber_fn int fetch_finish(struct zk *z, struct fetch *f)
{
    const uint8_t *body = NULL;
    int rc = zk_wait(&f->call), r = 0;
    f->missing = rc == ZNONODE;
    if (f->missing)
        return 0;
    if (rc != ZOK)
        return rc == ZSYSTEMERROR ? -ENOMEM : -EAGAIN;
    r = zk_entry_decode(f->call.data, f->call.length, &f->header, &body);
    if (r == 0 && f->header.revision != f->revision)
        r = -EBADMSG;
    if (r < 0)
        return broken(z, "entry", f->revision, r);
    if (f->header.part_count > 0) {
        r = fetch_parts(z, f);
        body = f->bytes;
    } else {
        f->bytes = f->call.data; /* taken over */
        f->call.data = NULL;
    }
    if (r < 0 || f->missing)
        return r;
    r = zk_body_decode(body, f->header.body_length, &f->changes, &f->count);
    return r == -EBADMSG ? broken(z, "entry", f->revision, r) : r;
}

/* --- taking in --- */

static int tell_watches(struct zk *z, const struct zk_header *h, const struct zk_change *changes,
                        unsigned count)
{
    unsigned n = 0;
    struct cs_change *rows = calloc(count + 1, sizeof(*rows));
    if (!rows)
        return -ENOMEM;
    for (unsigned i = 0; i < count; i++) {
        if (changes[i].key[0] != ZK_OWN_KEY)
            rows[n++] = (struct cs_change){.key = changes[i].key,
                                           .value = changes[i].value,
                                           .length = changes[i].length,
                                           .revision = h->revision};
    }
    int r = n > 0 ? cs_watches_commits(&z->watches, rows, n) : 0;
    free(rows);
    return r;
}

static void tell_pending(struct zk *z, const struct zk_header *h)
{
    struct zk_commit *c = z->pending;
    if (!c || !c->sent || c->nonce != h->nonce)
        return;
    c->done = true;
    c->revision = h->revision;
}

/* Another node has found that our session is over. */
static void lose_if_ended(struct zk *z)
{
    char key[CS_KEY_SIZE];
    zk_session_key(key, z->cs.session.value);
    if (z->cs.session.value != 0 && !z->ending && !zk_state_get(&z->state, key))
        zk_lose(z, "another node has seen it end");
}

int zk_take(struct zk *z, const struct zk_header *h, const struct zk_change *changes,
            unsigned count)
{
    if (h->revision != z->state.revision + 1)
        return 0; /* somebody was faster */
    int r = zk_state_apply(&z->state, h, changes, count);
    if (r < 0)
        return r;
    tell_pending(z, h);
    lose_if_ended(z);
    waitq_wake_all(&z->changed);
    return z->gap ? 0 : tell_watches(z, h, changes, count);
}

/* --- the whole log --- */

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Revisions of the log's entries, ascending. *ret is owned. */
static fiber_fn int list_log(struct zk *z, uint64_t **ret, unsigned *ret_count)
{
    struct zk_call call;
    char path[ZK_PATH_SIZE];
    int r = 0;
    zk_path(z, path, "log");
    zk_start_children(z->link, &call, path, ZK_NO_WATCH);
    int rc = zk_wait(&call);
    uint64_t *revisions = calloc(call.name_count + 1, sizeof(*revisions));
    if (rc != ZOK)
        r = rc == ZSYSTEMERROR ? -ENOMEM : zk_rc_unknown(rc) ? -EAGAIN : -EBADMSG;
    else if (!revisions)
        r = -ENOMEM;
    for (unsigned i = 0; i < call.name_count && r == 0; i++) {
        char *end;
        revisions[i] = strtoull(call.names[i], &end, 10);
        if (*end || revisions[i] == 0)
            r = broken(z, "log has a foreign node instead of entry", revisions[i], -EBADMSG);
    }
    *ret_count = call.name_count;
    zk_call_done(&call);
    if (r < 0) {
        free(revisions);
        return r;
    }
    qsort(revisions, *ret_count, sizeof(*revisions), by_number);
    *ret = revisions;
    return 0;
}

/* ZF2. fetches[i] is for revisions[i]; all are to be freed also after an error. */
static fiber_fn int fetch_all(struct zk *z, struct fetch *fetches, const uint64_t *revisions,
                              unsigned count)
{
    int first_error = 0;
    for (unsigned end = count; end > 0 && first_error == 0;) {
        unsigned begin = end > WINDOW ? end - WINDOW : 0;
        for (unsigned i = end; i > begin; i--)
            fetch_start(z, &fetches[i - 1], revisions[i - 1]);
        for (unsigned i = end; i > begin; i--) {
            int r = fetch_finish(z, &fetches[i - 1]);
            if (first_error == 0)
                first_error = r;
        }
        end = begin;
    }
    return first_error;
}

static int fold(struct zk *z, struct zk_state *s, const struct fetch *fetches, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        const struct fetch *f = &fetches[i];
        if (f->missing)
            continue;
        int r = zk_state_apply(s, &f->header, f->changes, f->count);
        if (r < 0)
            return r;
        tell_pending(z, &f->header);
    }
    return 0;
}

static fiber_fn int load_once(struct zk *z)
{
    uint64_t *revisions;
    unsigned count;
    int r = list_log(z, &revisions, &count);
    if (r < 0)
        return r;
    struct fetch *fetches = calloc(count + 1, sizeof(*fetches));
    struct zk_state s;
    zk_state_init(&s);
    r = fetches ? fetch_all(z, fetches, revisions, count) : -ENOMEM;
    if (r == 0)
        r = fold(z, &s, fetches, count);
    for (unsigned i = 0; fetches && i < count; i++)
        fetch_done(&fetches[i]);
    free(fetches);
    free(revisions);
    if (r == 0 && s.revision >= z->state.revision)
        zk_state_take(&z->state, &s);
    zk_state_done(&s);
    return r;
}

fiber_fn int zk_load(struct zk *z)
{
    int r;
    while ((r = load_once(z)) == -EAGAIN) {
        zk_breathe(z);
        r = zk_wait_connected(z, UINT64_MAX);
        if (r < 0)
            break;
    }
    z->gap_count++;
    if (r == 0)
        lose_if_ended(z);
    waitq_wake_all(&z->changed);
    return r;
}

/* --- where the store is --- */

static int take_head(struct zk *z, struct zk_call *c)
{
    uint64_t revision;
    int rc = zk_wait(c), r = 0;
    if (rc == ZOK)
        r = zk_head_decode(c->data, c->length, &revision);
    if (rc != ZOK)
        r = rc == ZSYSTEMERROR ? -ENOMEM : zk_rc_unknown(rc) ? -EAGAIN : -ENOENT;
    else if (r < 0)
        broken(z, "head", 0, r);
    else
        zk_learn_head(z, revision, c->version);
    zk_call_done(c);
    return r;
}

/* -EAGAIN: the connection was lost. */
static fiber_fn int read_head(struct zk *z, enum zk_event watch)
{
    struct zk_call call;
    char path[ZK_PATH_SIZE];
    zk_path(z, path, "head");
    zk_start_get(z->link, &call, path, watch);
    return take_head(z, &call);
}

/* A head that is not older than this call. */
static fiber_fn int read_head_synced(struct zk *z)
{
    struct zk_call sync, call;
    char path[ZK_PATH_SIZE];
    zk_path(z, path, "head");
    zk_start_sync(z->link, &sync, path);
    zk_start_get(z->link, &call, path, ZK_NO_WATCH);
    int rc = zk_wait(&sync);
    int r = take_head(z, &call);
    zk_call_done(&sync);
    return rc == ZOK ? r : zk_rc_unknown(rc) ? -EAGAIN : -EIO;
}

fiber_fn int zk_catch_up(struct zk *z, uint64_t patience_ns)
{
    while (z->gap || z->state.revision < z->head_revision) {
        if (z->cs.lost)
            return -EIO;
        int r = zk_wait_connected(z, patience_ns);
        if (r < 0)
            return r;
        waitq_wake_all(&z->follow_wake);
        waitq_wait(&z->changed); /* also for a connection that is lost now */
    }
    return z->cs.lost ? -EIO : 0;
}

fiber_fn int zk_refresh(struct zk *z, uint64_t patience_ns)
{
    int r;
    for (;;) {
        r = zk_wait_connected(z, patience_ns);
        if (r == 0)
            r = read_head_synced(z);
        if (r != -EAGAIN)
            break;
        zk_breathe(z);
    }
    return r < 0 ? r : zk_catch_up(z, patience_ns);
}

/* --- the follower --- */

static int give_state(struct zk *z, struct cs_watcher *w)
{
    const char *prefix = cs_watcher_prefix(w);
    struct cs_change *rows = calloc(z->state.key_count + 1, sizeof(*rows));
    const struct zk_key *k;
    size_t position = 0, count = 0;
    if (!rows)
        return -ENOMEM;
    while ((k = zk_state_next(&z->state, prefix, &position))) {
        if (k->name[0] != ZK_OWN_KEY)
            rows[count++] = (struct cs_change){
                .key = k->name, .value = k->value, .length = k->length, .revision = k->revision};
    }
    int r = cs_watcher_state(w, rows, count, z->state.revision);
    free(rows);
    return r;
}

/* ZF3: the gap is over. */
static int give_differences(struct zk *z)
{
    z->gap = false;
    int r = 0;
    for (struct cs_watcher *w = cs_watches_next(&z->watches, NULL); w && r == 0;
         w = cs_watches_next(&z->watches, w))
        r = give_state(z, w);
    waitq_wake_all(&z->changed);
    return r;
}

/* The entries behind the state, as far as one window goes. */
static fiber_fn int follow_log(struct zk *z)
{
    uint64_t first = z->state.revision + 1;
    unsigned count = (unsigned)MIN(z->head_revision - z->state.revision, WINDOW);
    struct fetch *fetches = calloc(count, sizeof(*fetches));
    if (!fetches)
        return -ENOMEM;
    int r = 0;
    bool missing = false;
    for (unsigned i = 0; i < count; i++)
        fetch_start(z, &fetches[i], first + i);
    for (unsigned i = 0; i < count; i++) {
        int error = fetch_finish(z, &fetches[i]);
        if (r == 0)
            r = error;
        if (r == 0 && !missing && fetches[i].missing)
            missing = first + i > z->state.revision;
        if (r == 0 && !missing && !fetches[i].missing)
            r = zk_take(z, &fetches[i].header, fetches[i].changes, fetches[i].count);
    }
    for (unsigned i = 0; i < count; i++)
        fetch_done(&fetches[i]);
    free(fetches);
    if (r < 0 || !missing)
        return r;
    log_debug("commits of the cluster store were missed, reading its state");
    z->gap = true;
    z->head_watched = false; /* ZF2: the head is read anew before the gap is said to be over */
    return zk_load(z);
}

static fiber_fn int follow_once(struct zk *z)
{
    if (!zk_link_connected(z->link)) {
        waitq_wait(&z->follow_wake);
        return 0;
    }
    if (!z->head_watched) {
        z->head_watched = true;
        int r = read_head(z, ZK_HEAD);
        if (r < 0)
            z->head_watched = false;
        return r;
    }
    if (z->watch_barrier) {
        z->watch_barrier = false;
        int r = read_head_synced(z);
        if (r < 0)
            z->watch_barrier = true;
        return r;
    }
    if (z->state.revision < z->head_revision)
        return follow_log(z);
    if (z->gap)
        return give_differences(z);
    struct cs_watcher *fresh = cs_watches_fresh(&z->watches);
    if (fresh)
        return give_state(z, fresh);
    waitq_wait(&z->follow_wake);
    return 0;
}

fiber_fn void zk_follow_main(void *arg)
{
    struct zk *z = arg;
    while (!z->closing) {
        if (z->cs.lost) {
            waitq_wait(&z->follow_wake);
            continue;
        }
        int r = follow_once(z);
        if (r == -EAGAIN)
            zk_breathe(z);
        else if (r < 0 && r != -EAGAIN && !z->closing)
            zk_lose(z, err_text(r)); /* a watch that misses an event would be worse (D4) */
    }
    wgroup_finish(&z->follower);
}
