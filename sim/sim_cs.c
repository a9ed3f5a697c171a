/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated cluster store.
 *
 * SC1 A transaction takes effect at one moment between its call and its return; a node that dies
 *     meanwhile may have written or not.
 * SC2 Each connection has a queue of the commits that its watches were not told of yet; they
 *     arrive a little later, in order. Nothing touches the fibers of a node that died.
 * SC3 While the store cannot be reached, calls wait, and end with an unknown outcome when that
 *     takes too long: what was not applied by then never is.
 * SC4 A session with a timeout ends `timeout_ns` after the store heard of it last, never sooner:
 *     what the node takes for confirmed, counted from before it sent, ends earlier.
 */
#include "sim/sim_cs.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "cluster/watch.h"
#include "sim/sim_internal.h"

#define DELAY_NS_MIN  (20 * NS_PER_US)
#define DELAY_NS_MAX  (1 * NS_PER_MS)
#define RETRY_NS      (20 * NS_PER_MS)
#define CUT_COUNT_MAX 16
#define PATIENCE_NS   (5 * NS_PER_S) /* of a call that does not reach the store */

struct entry {
    char key[CS_KEY_SIZE];
    uint8_t *value; /* owned, never NULL */
    size_t length;
    uint64_t revision, session;
};

struct sim_cs {
    struct sim *sim;
    struct entry *entries; /* by key */
    size_t count, capacity;
    uint64_t revision, session_last;
    struct list conns;
    bool outage, late_loss;
    uint64_t timeout_ns; /* 0: sessions end only when told to */
    struct rt *cut[CUT_COUNT_MAX];
    unsigned cut_count;
};

/* A change that one connection was not told of yet. */
struct queued {
    struct list link;
    struct cs_change change;
    char key[CS_KEY_SIZE];
    uint8_t value[];
};

struct sim_cs_conn {
    struct cs cs;     /* first */
    struct list link; /* sim_cs.conns */
    struct sim_cs *store;
    uint64_t life; /* of the node when the session began */
    struct cs_watches watches;
    struct list queue;
    struct timer deliver;
    bool ended;        /* the session is over, and the node does not know it yet */
    uint64_t heard_ns; /* SC4 */
    struct timer expiry;
    bool beating, closing;
    struct waitq beat;
};

static struct sim_cs_conn *conn_of(struct cs *cs)
{
    return container_of(cs, struct sim_cs_conn, cs);
}

static bool node_lives(const struct sim_cs_conn *c)
{
    return sim_node_of(c->cs.rt)->life == c->life;
}

static bool is_unreachable(const struct sim_cs_conn *c)
{
    bool cut = c->store->outage;
    for (unsigned i = 0; i < c->store->cut_count; i++)
        cut = cut || c->store->cut[i] == c->cs.rt;
    return cut;
}

/* --- the store --- */

/* Index of the first entry whose key is not below `key`. */
static size_t find_place(const struct sim_cs *sc, const char *key)
{
    size_t low = 0, high = sc->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(sc->entries[middle].key, key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct entry *find_entry(const struct sim_cs *sc, const char *key)
{
    size_t i = find_place(sc, key);
    return i < sc->count && strcmp(sc->entries[i].key, key) == 0 ? &sc->entries[i] : NULL;
}

static uint8_t *copy_value(const void *value, size_t length)
{
    uint8_t *copy = malloc(length + 1);
    ASSERT(copy);
    if (length > 0)
        memcpy(copy, value, length);
    return copy;
}

static void entry_put(struct sim_cs *sc, const char *key, const void *value, size_t length,
                      uint64_t session)
{
    struct entry *e = find_entry(sc, key);
    if (!e) {
        if (sc->count == sc->capacity) {
            sc->capacity = sc->capacity ? sc->capacity * 2 : 64;
            sc->entries = realloc(sc->entries, sc->capacity * sizeof(*sc->entries));
            ASSERT(sc->entries);
        }
        size_t i = find_place(sc, key);
        e = &sc->entries[i];
        memmove(e + 1, e, (sc->count - i) * sizeof(*e));
        sc->count++;
        *e = (struct entry){0};
        memcpy(e->key, key, strlen(key) + 1);
    }
    free(e->value);
    e->value = copy_value(value, length);
    e->length = length;
    e->revision = sc->revision;
    e->session = session;
}

static void entry_delete(struct sim_cs *sc, struct entry *e)
{
    free(e->value);
    size_t i = (size_t)(e - sc->entries);
    memmove(e, e + 1, (sc->count - i - 1) * sizeof(*e));
    sc->count--;
}

/* --- telling the watches --- */

static void drain_queue(struct sim_cs_conn *c)
{
    struct cs_change *rows = NULL;
    size_t count = 0;
    struct queued *q, *next;
    list_for_each (q, &c->queue, link)
        count++;
    if (count == 0)
        return;
    rows = calloc(count, sizeof(*rows));
    ASSERT(rows);
    count = 0;
    list_for_each (q, &c->queue, link)
        rows[count++] = q->change;
    int r = cs_watches_commits(&c->watches, rows, count);
    ASSERT(r == 0);
    free(rows);
    list_for_each_safe (q, next, &c->queue, link)
        free(q);
    list_init(&c->queue);
}

static void deliver_fire(struct timer *t)
{
    struct sim_cs_conn *c = container_of(t, struct sim_cs_conn, deliver);
    if (!is_unreachable(c))
        drain_queue(c);
}

static void tell(struct sim_cs_conn *c, const char *key, const void *value, size_t length)
{
    if (!node_lives(c))
        return;
    struct queued *q = calloc(1, sizeof(*q) + length);
    ASSERT(q);
    memcpy(q->key, key, strlen(key) + 1);
    if (length > 0)
        memcpy(q->value, value, length);
    q->change = (struct cs_change){.key = q->key,
                                   .value = value ? q->value : NULL,
                                   .length = length,
                                   .revision = c->store->revision};
    bool idle = list_empty(&c->queue);
    list_push_back(&c->queue, &q->link);
    struct sim *s = c->store->sim;
    if (idle)
        timer_arm(&c->deliver, s->now + sim_random_between(s, DELAY_NS_MIN, DELAY_NS_MAX));
}

static void tell_all(struct sim_cs *sc, const char *key, const void *value, size_t length)
{
    struct sim_cs_conn *c;
    list_for_each (c, &sc->conns, link)
        tell(c, key, value, length);
}

/* --- operations --- */

static void lose(struct sim_cs_conn *c)
{
    if (c->cs.lost)
        return;
    c->cs.lost = true;
    if (c->cs.on_lost)
        c->cs.on_lost(c->cs.on_lost_arg);
}

/* The way to the store or back. 0, -ECONNRESET: the session has ended, -ETIMEDOUT. */
static fiber_fn int delay(struct sim_cs_conn *c)
{
    struct sim *s = c->store->sim;
    uint64_t deadline = s->now + PATIENCE_NS;
    fiber_sleep_until(c->cs.rt, s->now + sim_random_between(s, DELAY_NS_MIN, DELAY_NS_MAX));
    while (is_unreachable(c) && s->now < deadline && !c->cs.lost) {
        if (fiber_sleep(c->cs.rt, RETRY_NS) < 0)
            return -ETIMEDOUT;
    }
    if (is_unreachable(c) && !c->cs.lost)
        return -ETIMEDOUT;
    if (c->ended)
        lose(c);
    return c->cs.lost ? -ECONNRESET : 0;
}

static int check_conditions(const struct sim_cs *sc, const struct cs_op *ops, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        const struct entry *e = find_entry(sc, ops[i].key);
        uint64_t revision = e ? e->revision : CS_REVISION_ABSENT;
        if (ops[i].revision != CS_REVISION_ANY && ops[i].revision != revision)
            return -ESTALE;
    }
    return 0;
}

static void apply(struct sim_cs *sc, const struct cs_op *ops, unsigned count, uint64_t session)
{
    bool changes = false;
    for (unsigned i = 0; i < count; i++)
        changes |=
            ops[i].kind == CS_PUT || (ops[i].kind == CS_DELETE && find_entry(sc, ops[i].key));
    sc->revision += changes;
    for (unsigned i = 0; i < count; i++) {
        struct entry *e = find_entry(sc, ops[i].key);
        if (ops[i].kind == CS_PUT) {
            const void *value = ops[i].length ? ops[i].value : "";
            entry_put(sc, ops[i].key, value, ops[i].length, ops[i].ephemeral ? session : 0);
            tell_all(sc, ops[i].key, value, ops[i].length);
        } else if (ops[i].kind == CS_DELETE && e) {
            entry_delete(sc, e);
            tell_all(sc, ops[i].key, NULL, 0);
        }
    }
}

static fiber_fn int sim_cs_txn(struct cs *cs, const struct cs_op *ops, unsigned count,
                               uint64_t *ret_revision)
{
    struct sim_cs_conn *c = conn_of(cs);
    struct sim_cs *sc = c->store;
    int r = delay(c);
    if (r < 0)
        return r;
    r = check_conditions(sc, ops, count);
    if (r == 0) {
        apply(sc, ops, count, cs->session.value);
        *ret_revision = sc->revision;
    }
    int back = delay(c);
    return back == -ETIMEDOUT ? back : r;
}

static fiber_fn int sim_cs_get(struct cs *cs, const char *key, struct enc *ret_value,
                               uint64_t *ret_revision)
{
    struct sim_cs_conn *c = conn_of(cs);
    int r = delay(c);
    if (r < 0)
        return r;
    const struct entry *e = find_entry(c->store, key);
    if (!e)
        return -ENOENT;
    enc_bytes(ret_value, e->value, e->length);
    *ret_revision = e->revision;
    return 0;
}

static fiber_fn int sim_cs_list(struct cs *cs, const char *prefix,
                                int (*fn)(void *arg, const char *key, const void *value,
                                          size_t length, uint64_t revision),
                                void *arg)
{
    struct sim_cs_conn *c = conn_of(cs);
    const struct sim_cs *sc = c->store;
    int r = delay(c);
    for (size_t i = find_place(sc, prefix); r == 0 && i < sc->count; i++) {
        const struct entry *e = &sc->entries[i];
        if (strncmp(e->key, prefix, strlen(prefix)) != 0)
            break;
        r = fn(arg, e->key, e->value, e->length, e->revision);
    }
    return r;
}

static int sim_cs_watch(struct cs *cs, const char *prefix, cs_watch_fn *fn, void *arg)
{
    struct sim_cs_conn *c = conn_of(cs);
    const struct sim_cs *sc = c->store;
    drain_queue(c);
    int r = cs_watches_add(&c->watches, prefix, fn, arg);
    if (r < 0)
        return r;
    struct cs_change *rows = calloc(sc->count + 1, sizeof(*rows));
    ASSERT(rows);
    size_t count = 0;
    for (size_t i = 0; i < sc->count; i++) {
        const struct entry *e = &sc->entries[i];
        if (strncmp(e->key, prefix, strlen(prefix)) == 0)
            rows[count++] = (struct cs_change){
                .key = e->key, .value = e->value, .length = e->length, .revision = e->revision};
    }
    r = cs_watcher_state(cs_watches_fresh(&c->watches), rows, count, sc->revision);
    free(rows);
    return r;
}

/* --- sessions --- */

static void end_keys(struct sim_cs *sc, uint64_t session)
{
    bool any = false;
    for (size_t i = 0; i < sc->count && !any; i++)
        any = sc->entries[i].session == session;
    sc->revision += any;
    for (size_t i = 0; i < sc->count;) {
        struct entry *e = &sc->entries[i];
        if (e->session != session) {
            i++;
            continue;
        }
        tell_all(sc, e->key, NULL, 0);
        entry_delete(sc, e);
    }
}

static void conn_free(struct sim_cs_conn *c)
{
    timer_cancel(&c->expiry);
    struct queued *q, *next;
    list_for_each_safe (q, next, &c->queue, link)
        free(q);
    list_remove(&c->link);
    free(c);
}

static fiber_fn void sim_cs_close(struct cs *cs)
{
    struct sim_cs_conn *c = conn_of(cs);
    c->closing = true;
    waitq_wake_all(&c->beat);
    while (c->beating)
        waitq_wait(&c->beat);
    timer_cancel(&c->deliver);
    cs_watches_stop(&c->watches);
    end_keys(c->store, cs->session.value);
    timer_cancel(&c->deliver);
    conn_free(c);
}

static void end_conn(struct sim_cs_conn *c)
{
    struct sim_cs *sc = c->store;
    end_keys(sc, c->cs.session.value);
    if (!node_lives(c))
        conn_free(c);
    else if (sc->late_loss && is_unreachable(c))
        c->ended = true;
    else
        lose(c);
}

/* Watches hear what they missed, sessions that ended are told so. */
static void resume(struct sim_cs *sc)
{
    struct sim_cs_conn *c, *next;
    list_for_each_safe (c, next, &sc->conns, link) {
        if (!node_lives(c) || is_unreachable(c))
            continue;
        if (!list_empty(&c->queue))
            timer_arm(&c->deliver,
                      sc->sim->now + sim_random_between(sc->sim, DELAY_NS_MIN, DELAY_NS_MAX));
        if (c->ended)
            lose(c);
    }
}

void sim_cs_outage(struct sim_cs *sc, bool on)
{
    struct sim_cs_conn *c;
    if (sc->outage && !on) {
        list_for_each (c, &sc->conns, link)
            c->heard_ns = sc->sim->now;
    }
    sc->outage = on;
    resume(sc);
}

void sim_cs_cut(struct sim_cs *sc, struct rt *node, bool on)
{
    unsigned i = 0;
    while (i < sc->cut_count && sc->cut[i] != node)
        i++;
    if (on && i == sc->cut_count) {
        ASSERT(sc->cut_count < CUT_COUNT_MAX);
        sc->cut[sc->cut_count++] = node;
    } else if (!on && i < sc->cut_count) {
        sc->cut[i] = sc->cut[--sc->cut_count];
    }
    resume(sc);
}

void sim_cs_late_loss(struct sim_cs *sc, bool on)
{
    sc->late_loss = on;
}

/* SC4 */
static void expiry_fire(struct timer *t)
{
    struct sim_cs_conn *c = container_of(t, struct sim_cs_conn, expiry);
    struct sim_cs *sc = c->store;
    uint64_t end = (sc->outage ? sc->sim->now : c->heard_ns) + sc->timeout_ns;
    if (sc->sim->now < end)
        timer_arm(&c->expiry, end);
    else
        end_conn(c);
}

/* One confirmation: the node works, and the store has heard of it. */
static fiber_fn void beat_once(struct sim_cs_conn *c)
{
    struct sim *s = c->store->sim;
    uint64_t sent_ns = s->now;
    if (c->cs.probe && c->cs.probe(c->cs.probe_arg) < 0)
        return;
    if (delay(c) < 0)
        return;
    c->heard_ns = s->now;
    if (delay(c) == 0)
        c->cs.confirmed_ns = MAX(c->cs.confirmed_ns, sent_ns);
}

static fiber_fn void beat_main(void *arg)
{
    struct sim_cs_conn *c = arg;
    while (!c->closing && !c->cs.lost && !rt_stopping(c->cs.rt)) {
        beat_once(c);
        if (!c->closing)
            (void)waitq_wait_until(&c->beat, c->cs.rt, c->store->sim->now + c->cs.timeout_ns / 8);
    }
    c->beating = false;
    waitq_wake_all(&c->beat);
}

static void beat_start(struct sim_cs_conn *c)
{
    c->heard_ns = c->cs.confirmed_ns = c->store->sim->now;
    c->cs.timeout_ns = c->store->timeout_ns;
    timer_arm(&c->expiry, c->heard_ns + c->cs.timeout_ns);
    c->beating = true;
    ASSERT(fiber_spawn(c->cs.rt, "session", beat_main, c) == 0);
}

void sim_cs_timeout(struct sim_cs *sc, uint64_t timeout_ns)
{
    sc->timeout_ns = timeout_ns;
}

bool sim_cs_is_over(const struct sim_cs *sc, struct session session)
{
    const struct sim_cs_conn *c;
    list_for_each (c, &sc->conns, link) {
        if (c->cs.session.value == session.value)
            return c->ended || c->cs.lost || c->closing;
    }
    return true;
}

void sim_cs_end_session(struct sim_cs *sc, struct session session)
{
    struct sim_cs_conn *c, *next;
    list_for_each_safe (c, next, &sc->conns, link) {
        if (c->cs.session.value == session.value)
            end_conn(c);
    }
}

unsigned sim_cs_end_dead(struct sim_cs *sc)
{
    unsigned count = 0;
    struct sim_cs_conn *c, *next;
    list_for_each_safe (c, next, &sc->conns, link) {
        if (!node_lives(c)) {
            end_conn(c);
            count++;
        }
    }
    return count;
}

/* --- life --- */

struct sim_cs *sim_cs_new(struct sim *s)
{
    struct sim_cs *sc = calloc(1, sizeof(*sc));
    ASSERT(sc);
    sc->sim = s;
    list_init(&sc->conns);
    return sc;
}

void sim_cs_free(struct sim_cs *sc)
{
    struct sim_cs_conn *c, *next;
    list_for_each_safe (c, next, &sc->conns, link)
        conn_free(c);
    for (size_t i = 0; i < sc->count; i++)
        free(sc->entries[i].value);
    free(sc->entries);
    free(sc);
}

int sim_cs_open(struct rt *rt, struct sim_cs *sc, struct cs **ret)
{
    static const struct cs_ops ops = {
        .name = "sim",
        .close = sim_cs_close,
        .txn = sim_cs_txn,
        .get = sim_cs_get,
        .list = sim_cs_list,
        .watch = sim_cs_watch,
    };
    struct sim_cs_conn *c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    c->cs = (struct cs){.ops = &ops, .rt = rt, .session = {++sc->session_last}};
    c->store = sc;
    c->life = sim_node_of(rt)->life;
    cs_watches_init(&c->watches, rt);
    list_init(&c->queue);
    timer_init(&c->deliver, rt, deliver_fire);
    timer_init(&c->expiry, &sc->sim->world, expiry_fire);
    waitq_init(&c->beat);
    list_push_back(&sc->conns, &c->link);
    if (sc->timeout_ns > 0)
        beat_start(c);
    *ret = &c->cs;
    return 0;
}
