/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions of the zookeeper driver: beginning, confirming and ending the own one, and ending those
 * of the dead.
 *
 * ZN1 A session is the node session/ID, which belongs to the process's session with ZooKeeper and
 *     vanishes with it. ID is the number of the commit that made it, so it is never used again.
 * ZN2 The keys of a session go in one commit of the log (D3): made by itself when it closes, else
 * by whoever sees that the node is gone. It says which keys, and does not touch those that another
 *     session has taken over meanwhile.
 * ZN3 The session is confirmed by a completed write to its node, counted from its sending. It is
 *     tried only after the probe has succeeded, and a session that is not tried ends (watchdog).
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/err.h"
#include "base/log.h"
#include "cluster/drivers/zookeeper_internal.h"

#define LOG_MODULE "cluster"

#define HEARTBEATS        6 /* per timeout */
#define SESSION_BATCH_MAX 64

/* --- ending the sessions of the dead --- */

static bool is_listed(const struct zk_call *names, uint64_t session)
{
    for (unsigned i = 0; i < names->name_count; i++) {
        if (strtoull(names->names[i], NULL, 10) == session)
            return true;
    }
    return false;
}

/* Sessions that own keys and are not among the names, up to SESSION_BATCH_MAX. */
static unsigned find_dead(const struct zk *z, const struct zk_call *names, uint64_t *ret)
{
    const struct zk_key *k;
    unsigned count = 0;
    for (size_t position = 0; (k = zk_state_next(&z->state, ZK_SESSION_KEY, &position));) {
        if (count < SESSION_BATCH_MAX && !is_listed(names, k->owner))
            ret[count++] = k->owner;
    }
    return count;
}

/* 0, or -EAGAIN to look again. */
static fiber_fn int reap(struct zk *z)
{
    struct zk_call names;
    char path[ZK_PATH_SIZE];
    uint64_t dead[SESSION_BATCH_MAX];
    zk_path(z, path, "session");
    z->sessions_watched = true;
    zk_start_children(z->link, &names, path, ZK_SESSIONS);
    int rc = zk_wait(&names);
    unsigned count = rc == ZOK ? find_dead(z, &names, dead) : 0;
    zk_call_done(&names);
    if (rc != ZOK) {
        z->sessions_watched = false;
        return -EAGAIN;
    }
    for (unsigned i = 0; i < count; i++) {
        struct zk_commit c = {.kind = ZK_COMMIT_END, .session = dead[i]};
        int r = zk_commit(z, &c);
        if (r == 0)
            log_debug("session %" PRIu64 " is over", dead[i]);
        else if (r != -EBUSY)
            return -EAGAIN;
    }
    if (count > 0)
        zk_sweep_parts(z);
    return count == SESSION_BATCH_MAX ? -EAGAIN : 0;
}

static fiber_fn void reap_main(void *arg)
{
    struct zk *z = arg;
    while (!z->ending) {
        if (z->cs.lost || z->sessions_watched || !zk_link_connected(z->link))
            waitq_wait(&z->helper_wake);
        else if (reap(z) < 0) {
            z->sessions_watched = false;
            zk_breathe(z);
        }
    }
    wgroup_finish(&z->helpers);
}

/* --- confirming the own one --- */

struct beat {
    struct zk_call call;
    bool under_way;
    uint64_t sent_ns;
    uint8_t value[8];
};

static void beat_start(struct zk *z, struct beat *b)
{
    char path[ZK_PATH_SIZE];
    zk_path_session(z, path, z->cs.session.value);
    b->sent_ns = clock_now(z->cs.rt);
    put_le64(b->value, b->sent_ns);
    b->under_way = true;
    zk_start_set(z->link, &b->call, path, b->value, sizeof(b->value));
}

static fiber_fn void beat_finish(struct zk *z, struct beat *b)
{
    int rc = zk_wait(&b->call);
    zk_call_done(&b->call);
    b->under_way = false;
    if (rc == ZOK)
        z->cs.confirmed_ns = MAX(z->cs.confirmed_ns, b->sent_ns);
    else if (rc == ZNONODE && !z->ending)
        zk_lose(z, "its node was deleted");
}

static fiber_fn void heart_main(void *arg)
{
    struct zk *z = arg;
    struct beat b = {0};
    uint64_t next_ns = 0;
    while (!z->ending) {
        uint64_t now = clock_now(z->cs.rt);
        if (b.under_way && b.call.done) {
            beat_finish(z, &b);
        } else if (now < next_ns || z->cs.lost) {
            waitq_wait_until(b.under_way ? &b.call.wake : &z->helper_wake, z->cs.rt,
                             z->cs.lost ? UINT64_MAX : next_ns);
        } else {
            next_ns = now + z->cs.timeout_ns / HEARTBEATS;
            if (z->cs.probe && z->cs.probe(z->cs.probe_arg) < 0)
                continue;
            zk_watchdog_pet(z->watchdog);
            if (!b.under_way)
                beat_start(z, &b);
        }
    }
    if (b.under_way)
        beat_finish(z, &b);
    wgroup_finish(&z->helpers);
}

/* --- the own one's begin and end --- */

fiber_fn int zk_session_begin(struct zk *z)
{
    char path[ZK_PATH_SIZE];
    struct zk_commit c = {.kind = ZK_COMMIT_BEGIN};
    z->cs.timeout_ns = zk_link_timeout_ns(z->link);
    z->cs.confirmed_ns = clock_now(z->cs.rt);
    int r = zk_commit(z, &c);
    if (r < 0)
        return r;
    z->cs.session.value = c.revision;
    zk_path_session(z, path, c.revision);
    r = zk_watchdog_start(z->link, path, z->cs.timeout_ns, &z->watchdog);
    if (r == 0)
        r = zk_spawn(z, "zk-reap", reap_main, &z->helpers);
    if (r == 0)
        r = zk_spawn(z, "zk-heart", heart_main, &z->helpers);
    return r;
}

fiber_fn void zk_session_end(struct zk *z)
{
    z->ending = true;
    zk_wake_all(z);
    wgroup_wait(&z->helpers);
    zk_watchdog_stop(z->watchdog);
    if (z->cs.session.value == 0 || z->cs.lost)
        return;
    struct zk_commit c = {.kind = ZK_COMMIT_END, .session = z->cs.session.value};
    int r = zk_commit(z, &c);
    if (r < 0)
        log_warn("cannot tell ZooKeeper that this session ends (%s): it will expire", err_text(r));
}
