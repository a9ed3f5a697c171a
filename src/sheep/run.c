/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sheep run: brings the parts of a node up in order, waits for a reason to end, takes them down in
 * reverse.
 *
 * N1 The addresses are bound before the node registers: what others read in the cluster store can
 *    be connected to.
 * N2 The store is bound to the cluster before it holds any of the cluster's objects.
 * N3 An orderly end closes the volumes while peers can still be reached, and ends the session last
 *    but one; the store comes last. What cannot end because nodes are missing is given up after
 *    STOP_PATIENCE_NS; a second signal, or STOP_TIMEOUT_NS more, ends the process at once. Either
 *    way the next opening reconciles (L2, L3).
 * N4 A store that may lack something says so when it registers; objects/ marks it exact once all
 *    of it was compared.
 */
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/err.h"
#include "base/human.h"
#include "base/log.h"
#include "front/admin/admin.h"
#include "front/nbd/nbd.h"
#include "rt/uring/uring.h"
#include "sheep/listen.h"
#include "sheep/sheep.h"
#include "store/store.h"

#define LOG_MODULE       "sheep"
#define STOP_PATIENCE_NS (8 * NS_PER_S)
#define STOP_TIMEOUT_NS  (12 * NS_PER_S)
#define WATCH_PERIOD_NS  (1 * NS_PER_S)

enum run_state { RUN_STARTING, RUN_SERVING, RUN_STOPPING };

struct node {
    const struct sheep_options *options;
    struct rt *rt;
    enum run_state state;
    bool stop_wanted;
    struct waitq stop_waiters;
    struct timer stop_deadline;
    int exit_code;

    struct store *store;
    struct listen_set listen;
    struct cluster *cluster;
    struct objects *objects;
    struct volumes *volumes;
    struct nbd_server *nbd; /* NULL: none wanted */
    struct admin *admin;
    char name[MAP_NAME_SIZE];
};

/* Ends the process at once; everything answered is durable already. */
static void leave_now(struct node *n, int code)
{
    sheep_remove_file(n->options->ports_file);
    sheep_remove_file(n->options->pidfile);
    _exit(code);
}

/* First what waits for others gives up; if that is not enough, we leave as we are. */
static void stop_deadline_passed(struct timer *t)
{
    struct node *n = container_of(t, struct node, stop_deadline);
    if (!rt_stopping(n->rt)) {
        char waiting[400] = "";
        if (n->objects)
            object_waiting_text(n->objects, waiting, sizeof(waiting));
        log_warn("what still waits is given up, and done again at the next opening: %s",
                 waiting[0] ? waiting : "requests in progress");
        timer_arm(&n->stop_deadline, clock_now(n->rt) + STOP_TIMEOUT_NS);
        rt_stop(n->rt);
        return;
    }
    log_warn("the orderly end takes too long: leaving without it");
    leave_now(n, SHEEP_FAILURE);
}

static void on_signal(void *arg, int signal)
{
    struct node *n = arg;
    if (signal == SIGHUP)
        return; /* there is nothing to read again */
    if (n->stop_wanted) {
        log_warn("second signal: leaving at once");
        leave_now(n, SHEEP_FAILURE);
    }
    log_info("signal %s: stopping", signal == SIGINT ? "INT" : "TERM");
    n->stop_wanted = true;
    timer_arm(&n->stop_deadline, clock_now(n->rt) + STOP_PATIENCE_NS);
    waitq_wake_all(&n->stop_waiters);
    if (n->state == RUN_STARTING)
        rt_stop(n->rt); /* what waits for others gives up */
}

/* --- the store --- */
/* The store has said what is wrong; this says what to do. */
static int store_open_failed(const char *path, int r)
{
    switch (r) {
    case -EBUSY:
        log_error("%s is served by another sheep already: one store is one sheep", path);
        break;
    case -ENOENT:
        log_error("%s is not there: sheep format %s --size 20G makes a store", path, path);
        break;
    case -EPROTO:
        log_error("%s needs a newer sheep", path);
        break;
    case -EUCLEAN:
        log_error(
            "%s is damaged: sheep check %s lists what, sheep check --repair %s mends what it can",
            path, path, path);
        break;
    default:
        log_error("%s cannot be served", path);
        break;
    }
    return r;
}

static fiber_fn void await_lock(struct node *n)
{
    uint64_t deadline = clock_now(n->rt) + SHEEP_TAKEOVER_NS;
    while (sheep_probe_lock(n->options->path) == -EBUSY && clock_now(n->rt) < deadline) {
        if (fiber_sleep(n->rt, SHEEP_TAKEOVER_STEP_NS) < 0)
            break;
    }
}

static fiber_fn int open_store(struct node *n)
{
    const struct sheep_options *o = n->options;
    await_lock(n);
    struct store_open_options so = {.cache_bytes = o->cache_bytes / 2,
                                    .unsafe_no_flush = o->unsafe_no_flush,
                                    .no_discard = o->no_discard,
                                    .scrub_bytes_per_s = o->scrub_rate};
    int r = store_open(n->rt, o->path, &so, &n->store);
    if (r < 0)
        return store_open_failed(o->path, r);
    if (store_is_inexact(n->store))
        log_warn("%s: objects or changes may be missing; this node's copies will be compared",
                 o->path);
    return 0;
}

/* --- the cluster --- */
static void choose_name(struct node *n)
{
    struct uuid store, cluster;
    char uuid[UUID_TEXT_SIZE], host[48] = "";
    store_ids(n->store, &store, &cluster);
    uuid_format(&store, uuid);
    if (gethostname(host, sizeof(host) - 1) < 0 || host[0] == '\0')
        snprintf(host, sizeof(host), "sheep");
    if (n->options->name)
        snprintf(n->name, sizeof(n->name), "%s", n->options->name);
    else
        snprintf(n->name, sizeof(n->name), "%s-%.4s", host, uuid);
}

static uint32_t choose_weight(const struct node *n)
{
    struct store_usage usage;
    if (n->options->weight != 0)
        return n->options->weight;
    store_usage(n->store, &usage);
    return (uint32_t)MAX(usage.size_bytes >> 30, (uint64_t)1); /* 1024 = 1 TiB */
}

/* A node whose disk hangs must not keep its session. */
static fiber_fn int probe_store(void *arg)
{
    struct node *n = arg;
    return store_probe(n->store);
}

static fiber_fn int join_cluster(struct node *n)
{
    const struct sheep_options *o = n->options;
    struct cluster_options co = {.driver_spec = o->cluster,
                                 .name = n->name,
                                 .zone = o->zone,
                                 .address = listen_peer(&n->listen),
                                 .admin = listen_admin(&n->listen),
                                 .nbd = listen_nbd(&n->listen),
                                 .weight = choose_weight(n),
                                 .out_ns = o->out_ns,
                                 .probe = probe_store,
                                 .probe_arg = n,
                                 .inexact = store_is_inexact(n->store)};
    store_ids(n->store, &co.store_uuid, &co.store_cluster);
    int r = cluster_start(n->rt, &co, &n->cluster);
    if (r < 0 && r != -ECANCELED)
        log_error("cannot take part in the cluster at %s: %s (--cluster, --name and --zone choose)",
                  o->cluster, err_text(r));
    return r;
}

/* N2: runs for every map, before the parts that were registered later. */
static fiber_fn void bind_store(void *arg, struct map *m)
{
    struct node *n = arg;
    struct uuid store, cluster;
    store_ids(n->store, &store, &cluster);
    if (m->version == 0 || !uuid_is_null(&cluster) || !map_node_by_uuid(m, &store))
        return;
    char uuid[UUID_TEXT_SIZE];
    uuid_format(&m->cluster, uuid);
    int r = store_set_cluster(n->store, &m->cluster);
    if (r < 0)
        log_error("%s cannot be bound to the cluster: %s", n->options->path, err_text(r));
    else
        log_info("%s belongs to cluster \"%s\" (%s) now", n->options->path, m->cluster_name, uuid);
}

/* --- the services --- */
static fiber_fn int start_services(struct node *n)
{
    struct objects_options oo = {.listener = listen_take_peer(&n->listen),
                                 .recovery_bytes_per_s = n->options->recovery_rate};
    int r = objects_start(n->rt, n->store, n->cluster, &oo, &n->objects);
    if (r < 0)
        return r;
    struct volumes_options vo = {.index_cache_bytes = n->options->cache_bytes / 2};
    return volumes_start(n->rt, n->cluster, n->objects, &vo, &n->volumes);
}

static fiber_fn int start_fronts(struct node *n)
{
    struct listener *listeners[SHEEP_LISTEN_COUNT_MAX];
    unsigned count = listen_take_nbd(&n->listen, listeners);
    if (count > 0) {
        struct nbd_options no = {.listeners = listeners, .listener_count = count};
        int r = nbd_start(n->rt, n->volumes, &no, &n->nbd);
        if (r < 0)
            return r;
    }
    count = listen_take_admin(&n->listen, listeners);
    struct admin_options ao = {.listeners = listeners,
                               .listener_count = count,
                               .cluster = n->cluster,
                               .objects = n->objects,
                               .volumes = n->volumes};
    return admin_start(n->rt, &ao, &n->admin);
}

static int write_files(const struct node *n)
{
    const struct sheep_options *o = n->options;
    char pid[32];
    int r = 0;
    if (o->pidfile) {
        snprintf(pid, sizeof(pid), "%ld\n", (long)getpid());
        r = sheep_write_file(o->pidfile, pid);
    }
    if (r < 0 || !o->ports_file)
        return r;
    json_t *nbd = json_array();
    for (unsigned i = 0; i < n->listen.nbd_count; i++)
        json_array_append_new(nbd, json_string(n->listen.nbd[i].address));
    json_t *admins = json_array();
    for (unsigned i = 0; i < n->listen.admin_count; i++)
        json_array_append_new(admins, json_string(n->listen.admin[i].address));
    json_t *ports = json_pack("{s:s, s:o, s:s, s:o, s:I, s:s}", "admin", listen_admin(&n->listen),
                              "admin_all", admins, "peer", listen_peer(&n->listen), "nbd", nbd,
                              "pid", (json_int_t)getpid(), "node", n->name);
    char *text = ports ? json_dumps(ports, JSON_INDENT(2)) : NULL;
    r = text ? sheep_write_file(o->ports_file, text) : -ENOMEM;
    free(text);
    json_decref(ports);
    return r;
}

static fiber_fn int start(struct node *n)
{
    int r = open_store(n);
    if (r < 0) {
        n->exit_code = SHEEP_STORE;
        return r;
    }
    choose_name(n);
    r = listen_bind(n->rt, n->options, &n->listen);
    if (r == 0)
        r = join_cluster(n);
    if (r < 0)
        return r;
    r = cluster_on_map(n->cluster, bind_store, n);
    if (r == 0)
        r = start_services(n);
    if (r == 0)
        r = start_fronts(n);
    if (r < 0) {
        if (r != -ECANCELED)
            log_error("cannot start: %s", err_text(r));
        return r;
    }
    return write_files(n);
}

/* Reverse of start(), from wherever it got to. */
static fiber_fn void stop(struct node *n)
{
    sheep_remove_file(n->options->ports_file);
    if (n->admin)
        admin_stop(n->admin);
    if (n->nbd)
        nbd_stop(n->nbd);
    if (n->volumes)
        volumes_stop(n->volumes);
    if (n->objects)
        objects_stop(n->objects);
    if (n->cluster)
        cluster_stop(n->cluster);
    listen_close(&n->listen);
    if (n->store) {
        int r = store_close(n->store);
        if (r < 0) {
            log_error("%s: closing failed: %s", n->options->path, err_text(r));
            n->exit_code = SHEEP_STORE;
        }
    }
    sheep_remove_file(n->options->pidfile);
}

static void announce(const struct node *n)
{
    struct store_usage u;
    char size[HUMAN_SIZE], free_text[HUMAN_SIZE];
    store_usage(n->store, &u);
    log_info("node %s, zone %s, serves %s (%s, %s free)", n->name, n->options->zone,
             n->options->path, human_size(u.size_bytes, size), human_size(u.free_bytes, free_text));
    for (unsigned i = 0; i < n->listen.admin_count; i++)
        log_info("dog: %s", n->listen.admin[i].address);
    for (unsigned i = 0; i < n->listen.nbd_count; i++)
        log_info("NBD: %s", n->listen.nbd[i].address);
    if (cluster_map(n->cluster)->version == 0)
        log_info("the cluster is not formatted yet: dog cluster format --copies N, when all its "
                 "sheep are running");
    else if (cluster_self(n->cluster) < 0)
        log_info("this node is not part of the cluster yet: waiting");
}

/* Until a signal, or something failed for good. */
static fiber_fn void serve(struct node *n)
{
    n->state = RUN_SERVING;
    announce(n);
    while (!n->stop_wanted) {
        (void)waitq_wait_until(&n->stop_waiters, n->rt, clock_now(n->rt) + WATCH_PERIOD_NS);
        int r = store_failed(n->store);
        if (r != 0) {
            log_error("%s has failed (%s): leaving, to be started again when the disk is well",
                      n->options->path, err_text(r));
            leave_now(n, SHEEP_STORE);
        }
        if (cluster_cs(n->cluster)->lost) {
            log_error(
                "the session with the cluster store %s has ended: leaving, to be started again",
                n->options->cluster);
            leave_now(n, SHEEP_FAILURE);
        }
    }
}

static fiber_fn void run_main(struct rt *rt, void *arg)
{
    struct node *n = arg;
    n->rt = rt;
    waitq_init(&n->stop_waiters);
    timer_init(&n->stop_deadline, rt, stop_deadline_passed);
    int r = rt_uring_on_signal(rt, on_signal, n);
    if (r < 0) {
        log_error("signals cannot be handled: %s", err_text(r));
        n->exit_code = SHEEP_STORE;
        return;
    }
    r = start(n);
    if (r == 0) {
        n->exit_code = SHEEP_OK;
        serve(n);
    } else if (r == -ECANCELED && n->stop_wanted) {
        n->exit_code = SHEEP_OK;
    }
    n->state = RUN_STOPPING;
    stop(n);
    timer_cancel(&n->stop_deadline);
    if (n->exit_code == SHEEP_OK)
        log_info("stopped");
}

int sheep_run(const struct sheep_options *o)
{
    struct node n = {.options = o, .exit_code = SHEEP_FAILURE};
    int code = sheep_loop(run_main, &n);
    return code != 0 ? code : n.exit_code;
}
