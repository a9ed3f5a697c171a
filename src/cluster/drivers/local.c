/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The `local` cluster store driver: one SQLite file shared by the daemons of one machine.
 *
 * L1 The database is touched by the helper thread only, the watches by the loop only; the follower
 *    fiber carries from the one to the other, so that each watch gets its state and all later
 *    commits in order.
 * L2 Nothing polls: the bell (a file that each writer writes to) and the ends of sessions arrive
 *    by inotify.
 * L3 A commit whose writer died before it rang is found when that writer's session ends: each
 *    event makes the follower look.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>
#include "base/err.h"
#include "base/log.h"
#include "cluster/drivers/drivers.h"
#include "cluster/drivers/local_db.h"
#include "cluster/drivers/local_session.h"

#define LOG_MODULE "cluster"

#define INOTIFY_MASK                                                                               \
    (IN_MODIFY | IN_CLOSE_WRITE | IN_DELETE | IN_MOVED_FROM | IN_DELETE_SELF | IN_MOVE_SELF)

/* A session that may be over is looked at after 1, 2, 4 … 2048 ms: the kernel closes files before
 * it releases their locks, and a process that is being killed closes them one after the other. */
#define SUSPECT_TRIES_MAX 12
/* Those that were alive when we came get the last few looks only. */
#define SUSPECT_TRIES_OLD 6

struct suspect {
    struct list link;
    uint64_t session;
    unsigned tries;
    uint64_t due_ns;
};

struct local {
    struct cs cs; /* first */
    struct worker *worker;
    struct local_db *db;          /* helper thread */
    struct local_session session; /* helper thread; id and bell never change while open */
    struct cs_watches watches;
    struct fd_watch *fd_watch;
    int inotify_fd;
    uint64_t change_last; /* the follower has handed out everything up to here */
    struct list suspects;
    struct timer suspect_timer;
    struct waitq follower_wake;
    bool dirty;  /* something may have been committed */
    bool missed; /* commits were missed: watches need the state */
    bool closing;
    struct wgroup running;
};

static struct local *local_of(struct cs *cs)
{
    return container_of(cs, struct local, cs);
}

static void lose(struct local *l, const char *why)
{
    if (l->cs.lost || l->closing)
        return;
    l->cs.lost = true;
    log_error(
        "lost the cluster store %s (%s): this node stops serving; restart it when that is mended",
        local_db_path(l->db), why);
    if (l->cs.on_lost)
        l->cs.on_lost(l->cs.on_lost_arg);
}

static void lose_if_broken(struct local *l)
{
    if (local_db_broken(l->db))
        lose(l, "its file cannot be used");
}

/* --- events --- */

static void suspect_fire(struct timer *t)
{
    struct local *l = container_of(t, struct local, suspect_timer);
    waitq_wake_all(&l->follower_wake);
}

static void suspect_add(struct local *l, uint64_t session, unsigned tries)
{
    struct suspect *s;
    list_for_each (s, &l->suspects, link) {
        if (s->session == session) {
            s->tries = MIN(s->tries, tries);
            s->due_ns = 0;
            return;
        }
    }
    s = calloc(1, sizeof(*s));
    if (!s)
        return; /* the next daemon that starts finds it */
    *s = (struct suspect){.session = session, .tries = tries};
    list_push_back(&l->suspects, &s->link);
}

static void on_event(struct local *l, const struct inotify_event *e)
{
    l->dirty = true;
    if (e->mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_IGNORED | IN_UNMOUNT)) {
        lose(l, "its directory of sessions was removed");
        return;
    }
    if (e->mask & IN_Q_OVERFLOW)
        log_debug("events about the cluster store were lost, reading its state");
    uint64_t session = e->len > 0 ? local_session_parse(e->name) : 0;
    if (session == 0)
        return;
    if (session == l->session.id) {
        if (e->mask & (IN_DELETE | IN_MOVED_FROM))
            lose(l, "the file of its session was removed");
    } else if (e->mask & (IN_CLOSE_WRITE | IN_DELETE | IN_MOVED_FROM)) {
        suspect_add(l, session, 0);
    }
}

static void on_inotify(void *arg)
{
    struct local *l = arg;
    _Alignas(struct inotify_event) char buffer[4096];
    ssize_t n;
    while ((n = read(l->inotify_fd, buffer, sizeof(buffer))) > 0) {
        for (char *p = buffer; p < buffer + n;) {
            const struct inotify_event *e = (const struct inotify_event *)p;
            on_event(l, e);
            p += sizeof(*e) + e->len;
        }
    }
    waitq_wake_all(&l->follower_wake);
}

/* --- the follower --- */

struct job {
    struct local *l;
    const char *prefix;
    struct local_rows rows;
    uint64_t revision, last, session;
    int r;
};

static void job_changes(void *arg)
{
    struct job *j = arg;
    j->r = local_db_changes(j->l->db, &j->last, &j->rows);
}

static void job_change_last(void *arg)
{
    struct job *j = arg;
    j->r = local_db_change_last(j->l->db, &j->last);
}

static void job_list(void *arg)
{
    struct job *j = arg;
    j->r = local_db_list(j->l->db, j->prefix, &j->rows, &j->revision);
}

static void job_reap(void *arg)
{
    struct job *j = arg;
    j->r = local_session_reap(&j->l->session, j->l->db, j->session);
}

static fiber_fn int give_state(struct local *l, struct cs_watcher *w)
{
    struct job j = {.l = l, .prefix = cs_watcher_prefix(w)};
    worker_call(l->worker, job_list, &j);
    if (j.r == 0)
        j.r = cs_watcher_state(w, j.rows.rows, j.rows.count, j.revision);
    local_rows_done(&j.rows);
    return j.r;
}

/* After commits were missed: everything that a watch does not know yet, as one commit. */
static fiber_fn int follow_state(struct local *l)
{
    struct job j = {.l = l};
    l->missed = false;
    worker_call(l->worker, job_change_last, &j);
    if (j.r < 0)
        return j.r;
    l->change_last = j.last;
    int r = 0;
    for (struct cs_watcher *w = cs_watches_next(&l->watches, NULL); w && r == 0;
         w = cs_watches_next(&l->watches, w))
        r = give_state(l, w);
    return r;
}

static fiber_fn int follow_changes(struct local *l)
{
    struct job j = {.l = l, .last = l->change_last};
    worker_call(l->worker, job_changes, &j);
    if (j.r == -ESTALE) {
        l->missed = true;
        return 0;
    }
    if (j.r == 0 && j.last != l->change_last) {
        l->change_last = j.last;
        l->dirty = true; /* there may be more */
        j.r = cs_watches_commits(&l->watches, j.rows.rows, j.rows.count);
    }
    local_rows_done(&j.rows);
    return j.r;
}

static struct suspect *suspect_due(struct local *l, uint64_t now)
{
    struct suspect *s;
    uint64_t next_ns = UINT64_MAX;
    list_for_each (s, &l->suspects, link) {
        if (s->due_ns <= now)
            return s;
        next_ns = MIN(next_ns, s->due_ns);
    }
    if (next_ns != UINT64_MAX)
        timer_arm(&l->suspect_timer, next_ns);
    return NULL;
}

static fiber_fn void follow_suspect(struct local *l, struct suspect *s)
{
    struct job j = {.l = l, .session = s->session};
    list_remove(&s->link);
    worker_call(l->worker, job_reap, &j);
    if (j.r == 0 || s->tries >= SUSPECT_TRIES_MAX) {
        free(s);
        return;
    }
    s->due_ns = clock_now(l->cs.rt) + (NS_PER_MS << s->tries);
    s->tries++;
    list_push_back(&l->suspects, &s->link);
}

static fiber_fn void follower_main(void *arg)
{
    struct local *l = arg;
    while (!l->closing) {
        struct cs_watcher *fresh = cs_watches_fresh(&l->watches);
        struct suspect *s;
        int r = 0;
        if (l->cs.lost) {
            waitq_wait(&l->follower_wake);
        } else if (fresh) {
            r = give_state(l, fresh);
        } else if (l->missed) {
            r = follow_state(l);
        } else if (l->dirty) {
            l->dirty = false;
            r = follow_changes(l);
        } else if ((s = suspect_due(l, clock_now(l->cs.rt)))) {
            follow_suspect(l, s);
        } else {
            waitq_wait(&l->follower_wake);
        }
        lose_if_broken(l);
        if (r < 0 && !l->closing)
            lose(l, err_text(r)); /* a watch that misses an event would be worse (D4) */
    }
    wgroup_finish(&l->running);
}

/* --- the operations --- */

struct call {
    struct local *l;
    const struct cs_op *ops;
    unsigned count;
    const char *key;
    struct enc *value;
    uint64_t revision;
    int r;
};

static void call_txn(void *arg)
{
    struct call *c = arg;
    struct local *l = c->l;
    c->r = local_db_txn(l->db, l->session.id, c->ops, c->count, &c->revision);
    if (c->r == 0)
        local_session_ring(&l->session);
}

static void call_get(void *arg)
{
    struct call *c = arg;
    c->r = local_db_get(c->l->db, c->key, c->value, &c->revision);
}

static fiber_fn int local_txn(struct cs *cs, const struct cs_op *ops, unsigned count,
                              uint64_t *ret_revision)
{
    struct local *l = local_of(cs);
    struct call c = {.l = l, .ops = ops, .count = count};
    if (cs->lost)
        return -EIO;
    worker_call(l->worker, call_txn, &c);
    lose_if_broken(l);
    if (c.r == 0)
        *ret_revision = c.revision;
    return c.r;
}

static fiber_fn int local_get(struct cs *cs, const char *key, struct enc *ret_value,
                              uint64_t *ret_revision)
{
    struct local *l = local_of(cs);
    struct call c = {.l = l, .key = key, .value = ret_value};
    if (cs->lost)
        return -EIO;
    worker_call(l->worker, call_get, &c);
    lose_if_broken(l);
    if (c.r == 0)
        *ret_revision = c.revision;
    return c.r;
}

static fiber_fn int local_list(struct cs *cs, const char *prefix,
                               int (*fn)(void *arg, const char *key, const void *value,
                                         size_t length, uint64_t revision),
                               void *arg)
{
    struct local *l = local_of(cs);
    struct job j = {.l = l, .prefix = prefix};
    if (cs->lost)
        return -EIO;
    worker_call(l->worker, job_list, &j);
    lose_if_broken(l);
    for (size_t i = 0; j.r == 0 && i < j.rows.count; i++) {
        const struct cs_change *row = &j.rows.rows[i];
        j.r = fn(arg, row->key, row->value, row->length, row->revision);
    }
    local_rows_done(&j.rows);
    return j.r;
}

static int local_watch(struct cs *cs, const char *prefix, cs_watch_fn *fn, void *arg)
{
    struct local *l = local_of(cs);
    int r = cs_watches_add(&l->watches, prefix, fn, arg);
    waitq_wake_all(&l->follower_wake);
    return r;
}

/* --- open and close --- */

static void collect_suspect(void *arg, uint64_t session)
{
    suspect_add(arg, session, SUSPECT_TRIES_OLD);
}

struct open_call {
    struct local *l;
    const char *where;
    int r;
};

/* inotify first, so that no session's end goes unseen between looking and listening. */
static int listen_events(struct local *l)
{
    l->inotify_fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (l->inotify_fd < 0 ||
        inotify_add_watch(l->inotify_fd, l->session.directory, INOTIFY_MASK) < 0) {
        int r = -errno;
        log_error("cannot watch %s: %s (see /proc/sys/fs/inotify for the limits)",
                  l->session.directory, err_text(r));
        return r;
    }
    return 0;
}

static void call_open(void *arg)
{
    struct open_call *c = arg;
    struct local *l = c->l;
    c->r = local_db_open(c->where, &l->db);
    if (c->r == 0)
        c->r = local_session_prepare(&l->session, l->db);
    if (c->r == 0)
        c->r = listen_events(l);
    if (c->r == 0)
        c->r = local_session_begin(&l->session, l->db);
    if (c->r == 0)
        c->r = local_db_change_last(l->db, &l->change_last);
    if (c->r == 0)
        c->r = local_session_list(&l->session, l->db, collect_suspect, l);
    struct suspect *s, *next;
    list_for_each_safe (s, next, &l->suspects, link) {
        if (c->r == 0 && local_session_reap(&l->session, l->db, s->session) == -EBUSY)
            continue;
        list_remove(&s->link);
        free(s);
    }
}

static void call_close(void *arg)
{
    struct local *l = arg;
    if (l->db)
        local_session_end(&l->session, l->db);
    local_db_close(l->db);
}

/* Frees what call_open() and local_cs_open() made; the follower has ended or was never started. */
static fiber_fn void local_free(struct local *l)
{
    if (l->fd_watch)
        fd_watch_remove(l->fd_watch);
    if (l->inotify_fd >= 0)
        close(l->inotify_fd);
    timer_cancel(&l->suspect_timer);
    worker_call(l->worker, call_close, l);
    worker_stop(l->worker);
    struct suspect *s, *next;
    list_for_each_safe (s, next, &l->suspects, link)
        free(s);
    free(l);
}

static fiber_fn void local_close(struct cs *cs)
{
    struct local *l = local_of(cs);
    l->closing = true;
    local_db_cancel(l->db);
    waitq_wake_all(&l->follower_wake);
    wgroup_wait(&l->running);
    cs_watches_stop(&l->watches);
    local_free(l);
}

static const struct cs_ops local_ops = {
    .name = "local",
    .close = local_close,
    .txn = local_txn,
    .get = local_get,
    .list = local_list,
    .watch = local_watch,
};

fiber_fn int local_cs_open(struct rt *rt, const char *where, struct cs **ret)
{
    struct local *l = calloc(1, sizeof(*l));
    if (!l)
        return -ENOMEM;
    *l = (struct local){.cs = {.ops = &local_ops, .rt = rt},
                        .inotify_fd = -1,
                        .session = {.fd = -1, .bell_fd = -1}};
    cs_watches_init(&l->watches, rt);
    list_init(&l->suspects);
    timer_init(&l->suspect_timer, rt, suspect_fire);
    waitq_init(&l->follower_wake);
    wgroup_init(&l->running);
    int r = worker_start(rt, "cluster", &l->worker);
    if (r < 0) {
        free(l);
        return r;
    }
    struct open_call c = {.l = l, .where = where};
    worker_call(l->worker, call_open, &c);
    if (c.r == 0)
        c.r = fd_watch_add(rt, l->inotify_fd, on_inotify, l, &l->fd_watch);
    if (c.r == 0)
        c.r = fiber_spawn(rt, "cluster-follow", follower_main, l);
    if (c.r < 0) {
        local_free(l);
        return c.r;
    }
    wgroup_add(&l->running, 1);
    l->cs.session.value = l->session.id;
    *ret = &l->cs;
    return 0;
}
