/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Watches of a cluster store connection (see watch.h).
 *
 * CW1 Events of one watch are called back one after the other, in commit order, on the watch's own
 *     fiber. CW2 known holds exactly the keys that exist after the last queued event, with their
 *     revisions.
 * CW3 The last event of a commit, and only it, has more == false.
 */
#include "cluster/watch.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/hash.h"

struct event {
    struct list link;
    bool is_end; /* the mark behind the first state */
    bool is_deleted;
    bool more;
    uint64_t revision;
    size_t length;
    char key[CS_KEY_SIZE];
    uint8_t value[];
};

struct known {
    struct hnode node;
    uint64_t revision;
    uint64_t seen; /* number of the state that held it last */
    char key[];
};

struct cs_watcher {
    struct list link;
    struct cs_watches *owner;
    cs_watch_fn *fn;
    void *arg;
    struct list events;
    struct waitq wake;
    struct htable known;
    uint64_t revision;    /* everything up to here is queued */
    uint64_t state_count; /* states taken in; 0: fresh */
    bool stopping;
    char prefix[CS_KEY_SIZE];
};

static bool watcher_matches(const struct cs_watcher *w, const char *key)
{
    return strncmp(key, w->prefix, strlen(w->prefix)) == 0;
}

static struct known *known_find(const struct cs_watcher *w, const char *key)
{
    struct hnode *n = htable_first(&w->known, hash_bytes(key, strlen(key)));
    for (; n; n = htable_next_same(n)) {
        struct known *k = container_of(n, struct known, node);
        if (strcmp(k->key, key) == 0)
            return k;
    }
    return NULL;
}

static int known_set(struct cs_watcher *w, const char *key, uint64_t revision)
{
    struct known *k = known_find(w, key);
    if (!k) {
        size_t size = strlen(key) + 1;
        k = malloc(sizeof(*k) + size);
        if (!k)
            return -ENOMEM;
        memcpy(k->key, key, size);
        int r = htable_insert(&w->known, &k->node, hash_bytes(key, size - 1));
        if (r < 0) {
            free(k);
            return r;
        }
    }
    k->revision = revision;
    k->seen = w->state_count;
    return 0;
}

static void known_drop(struct cs_watcher *w, struct known *k)
{
    htable_remove(&w->known, &k->node);
    free(k);
}

static int push_event(struct cs_watcher *w, const struct cs_change *c)
{
    size_t length = c->value ? c->length : 0;
    struct event *e = malloc(sizeof(*e) + length);
    if (!e)
        return -ENOMEM;
    *e = (struct event){
        .is_deleted = c->value == NULL, .revision = c->revision, .length = length, .more = true};
    memcpy(e->key, c->key, strlen(c->key) + 1);
    if (length > 0)
        memcpy(e->value, c->value, length);
    list_push_back(&w->events, &e->link);
    return 0;
}

/* Queues one change and keeps CW2. A key that neither was known nor exists now is no event. */
static int push_change(struct cs_watcher *w, const struct cs_change *c)
{
    if (c->value) {
        int r = known_set(w, c->key, c->revision);
        return r < 0 ? r : push_event(w, c);
    }
    struct known *k = known_find(w, c->key);
    if (!k)
        return 0;
    int r = push_event(w, c);
    if (r == 0)
        known_drop(w, k);
    return r;
}

/* Marks the last queued event as the last of its commit and wakes the fiber. */
static void end_commit(struct cs_watcher *w)
{
    if (list_empty(&w->events))
        return;
    list_entry(w->events.prev, struct event, link)->more = false;
    waitq_wake_all(&w->wake);
}

static void watcher_free(struct cs_watcher *w)
{
    struct event *e, *next;
    list_for_each_safe (e, next, &w->events, link)
        free(e);
    struct hnode *n;
    while ((n = htable_iter(&w->known, NULL)))
        known_drop(w, container_of(n, struct known, node));
    htable_done(&w->known);
    list_remove(&w->link);
    free(w);
}

static fiber_fn void watcher_main(void *arg)
{
    struct cs_watcher *w = arg;
    while (!w->stopping) {
        if (list_empty(&w->events)) {
            waitq_wait(&w->wake);
            continue;
        }
        struct event *e = list_first(&w->events, struct event, link);
        list_remove(&e->link);
        const void *value = e->is_deleted || e->is_end ? NULL : e->value;
        w->fn(w->arg, e->is_end ? NULL : e->key, value, e->length, e->revision, e->more);
        free(e);
    }
    struct cs_watches *ws = w->owner;
    watcher_free(w);
    wgroup_finish(&ws->running);
}

void cs_watches_init(struct cs_watches *ws, struct rt *rt)
{
    ws->rt = rt;
    list_init(&ws->watchers);
    wgroup_init(&ws->running);
}

void cs_watches_stop(struct cs_watches *ws)
{
    struct cs_watcher *w;
    list_for_each (w, &ws->watchers, link) {
        w->stopping = true;
        waitq_wake_all(&w->wake);
    }
    wgroup_wait(&ws->running);
}

int cs_watches_add(struct cs_watches *ws, const char *prefix, cs_watch_fn *fn, void *arg)
{
    struct cs_watcher *w = calloc(1, sizeof(*w));
    if (!w)
        return -ENOMEM;
    *w = (struct cs_watcher){.owner = ws, .fn = fn, .arg = arg};
    memcpy(w->prefix, prefix, strlen(prefix) + 1);
    list_init(&w->link);
    list_init(&w->events);
    waitq_init(&w->wake);
    htable_init(&w->known);
    int r = fiber_spawn(ws->rt, "watch", watcher_main, w);
    if (r < 0) {
        watcher_free(w);
        return r;
    }
    list_push_back(&ws->watchers, &w->link);
    wgroup_add(&ws->running, 1);
    return 0;
}

struct cs_watcher *cs_watches_fresh(struct cs_watches *ws)
{
    struct cs_watcher *w;
    list_for_each (w, &ws->watchers, link) {
        if (w->state_count == 0)
            return w;
    }
    return NULL;
}

struct cs_watcher *cs_watches_next(struct cs_watches *ws, struct cs_watcher *after)
{
    struct list *next = after ? after->link.next : ws->watchers.next;
    return next == &ws->watchers ? NULL : list_entry(next, struct cs_watcher, link);
}

const char *cs_watcher_prefix(const struct cs_watcher *w)
{
    return w->prefix;
}

/* Keys that the present state does not hold any more become deletions. */
static int push_missing(struct cs_watcher *w, uint64_t revision)
{
    struct hnode *n = htable_iter(&w->known, NULL);
    while (n) {
        struct known *k = container_of(n, struct known, node);
        n = htable_iter(&w->known, n);
        if (k->seen == w->state_count)
            continue;
        int r = push_change(w, &(struct cs_change){.key = k->key, .revision = revision});
        if (r < 0)
            return r;
    }
    return 0;
}

static int push_end(struct cs_watcher *w, uint64_t revision)
{
    struct event *e = calloc(1, sizeof(*e));
    if (!e)
        return -ENOMEM;
    e->is_end = true;
    e->revision = revision;
    list_push_back(&w->events, &e->link);
    return 0;
}

int cs_watcher_state(struct cs_watcher *w, const struct cs_change *state, size_t count,
                     uint64_t revision)
{
    w->state_count++;
    for (size_t i = 0; i < count; i++) {
        struct known *k = known_find(w, state[i].key);
        if (k && k->revision == state[i].revision) {
            k->seen = w->state_count;
            continue;
        }
        int r = push_change(w, &state[i]);
        if (r < 0)
            return r;
    }
    int r = push_missing(w, revision);
    if (r < 0)
        return r;
    end_commit(w);
    if (w->state_count == 1)
        r = push_end(w, revision);
    end_commit(w);
    w->revision = revision;
    return r;
}

static int watcher_commits(struct cs_watcher *w, const struct cs_change *rows, size_t count)
{
    uint64_t open = 0; /* revision of the commit whose last event is not marked yet */
    for (size_t i = 0; i < count; i++) {
        if (rows[i].revision <= w->revision || !watcher_matches(w, rows[i].key))
            continue;
        if (open != 0 && rows[i].revision != open)
            end_commit(w);
        open = rows[i].revision;
        int r = push_change(w, &rows[i]);
        if (r < 0)
            return r;
    }
    if (open != 0)
        end_commit(w);
    if (count > 0)
        w->revision = MAX(w->revision, rows[count - 1].revision);
    return 0;
}

int cs_watches_commits(struct cs_watches *ws, const struct cs_change *rows, size_t count)
{
    struct cs_watcher *w;
    list_for_each (w, &ws->watchers, link) {
        if (w->state_count == 0)
            continue;
        int r = watcher_commits(w, rows, count);
        if (r < 0)
            return r;
    }
    return 0;
}
