/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The library's own thread keeps a session alive while our loop hangs. So this one looks whether
 * the loop still confirms the session, and takes the session's node away if it does not.
 *
 * ZW1 The thread reads `petted_ns` (atomic) and `stopping` (under the mutex), and calls one
 *     function of the library that any thread may call.
 */
#include "cluster/drivers/zookeeper_watchdog.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/err.h"
#include "base/log.h"

#define LOG_MODULE "cluster"

struct zk_watchdog {
    struct zk_link *link;
    uint64_t timeout_ns;
    _Atomic uint64_t petted_ns; /* CLOCK_BOOTTIME */
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool stopping;
    char path[];
};

static uint64_t boottime_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static void look(struct zk_watchdog *w, bool *told)
{
    uint64_t now = boottime_ns(), petted = atomic_load(&w->petted_ns);
    bool late = now > petted && now - petted > w->timeout_ns;
    if (late && !*told)
        log_error("the event loop or the disk has hung for %llu ms: ending this node's session",
                  (unsigned long long)((now - petted) / NS_PER_MS));
    if (late)
        zk_link_delete_blindly(w->link, w->path);
    *told = late;
}

static void *watchdog_main(void *arg)
{
    struct zk_watchdog *w = arg;
    uint64_t period_ns = w->timeout_ns / 8 + 1;
    bool told = false;
    pthread_mutex_lock(&w->mutex);
    while (!w->stopping) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        uint64_t ns = (uint64_t)until.tv_nsec + period_ns;
        until.tv_sec += (time_t)(ns / NS_PER_S);
        until.tv_nsec = (long)(ns % NS_PER_S);
        pthread_cond_clockwait(&w->wake, &w->mutex, CLOCK_MONOTONIC, &until);
        if (!w->stopping)
            look(w, &told);
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

int zk_watchdog_start(struct zk_link *link, const char *path, uint64_t timeout_ns,
                      struct zk_watchdog **ret)
{
    size_t size = strlen(path) + 1;
    struct zk_watchdog *w = calloc(1, sizeof(*w) + size);
    if (!w)
        return -ENOMEM;
    w->link = link;
    w->timeout_ns = timeout_ns;
    memcpy(w->path, path, size);
    zk_watchdog_pet(w);
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->wake, NULL);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the loop's */
    int r = -pthread_create(&w->thread, NULL, watchdog_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r < 0) {
        pthread_cond_destroy(&w->wake);
        pthread_mutex_destroy(&w->mutex);
        free(w);
        return r;
    }
    *ret = w;
    return 0;
}

void zk_watchdog_pet(struct zk_watchdog *w)
{
    atomic_store(&w->petted_ns, boottime_ns());
}

void zk_watchdog_stop(struct zk_watchdog *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->mutex);
    w->stopping = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->mutex);
    pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->wake);
    pthread_mutex_destroy(&w->mutex);
    free(w);
}
