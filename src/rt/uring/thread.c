/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Other threads: work posted from them to the loop, and helper threads that run blocking calls.
 *
 * D1 The loop and other threads share only uring.posts (under post_mutex) and a worker's queue
 * (under its mutex). D2 A worker_call lives on its fiber's stack; the fiber resumes only through a
 * post. D3 Helper threads take no signals.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "base/err.h"
#include "rt/uring/loop.h"

/* --- posts --- */

void uring_post_queue(struct uring *u, struct post *p)
{
    pthread_mutex_lock(&u->post_mutex);
    list_push_back(&u->posts, &p->link);
    bool signal = !u->post_signalled;
    u->post_signalled = true;
    /* Under the mutex, so that the fd outlives the write even if the loop ends right after this
     * post. */
    if (signal)
        eventfd_write(u->post_fd, 1);
    pthread_mutex_unlock(&u->post_mutex);
}

struct posted_call {
    struct post post;
    void (*fn)(void *arg);
    void *arg;
};

static void posted_call_run(struct post *p)
{
    struct posted_call *c = container_of(p, struct posted_call, post);
    c->fn(c->arg);
    free(c);
}

int uring_post(struct rt *rt, void (*fn)(void *arg), void *arg)
{
    struct posted_call *c = malloc(sizeof(*c));
    if (!c)
        return -ENOMEM;
    *c = (struct posted_call){.post.run = posted_call_run, .fn = fn, .arg = arg};
    uring_post_queue(uring_of(rt), &c->post);
    return 0;
}

static void posts_ready(void *arg)
{
    struct uring *u = arg;
    struct list taken = LIST_INIT(taken);
    eventfd_t value;
    pthread_mutex_lock(&u->post_mutex);
    eventfd_read(u->post_fd, &value);
    u->post_signalled = false;
    list_splice_back(&taken, &u->posts);
    pthread_mutex_unlock(&u->post_mutex);
    while (!list_empty(&taken)) {
        struct post *p = list_first(&taken, struct post, link);
        list_remove(&p->link);
        p->run(p);
    }
}

bool uring_has_posts(struct uring *u)
{
    pthread_mutex_lock(&u->post_mutex);
    bool has = !list_empty(&u->posts);
    pthread_mutex_unlock(&u->post_mutex);
    return has;
}

int uring_post_init(struct uring *u)
{
    list_init(&u->posts);
    u->post_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (u->post_fd < 0)
        return -errno;
    int r = fd_watch_add(&u->rt, u->post_fd, posts_ready, u, &u->post_watch);
    if (r < 0) {
        close(u->post_fd);
        return r;
    }
    pthread_mutex_init(&u->post_mutex, NULL);
    return 0;
}

void uring_post_done(struct uring *u)
{
    posts_ready(u); /* what came after the loop's end still runs, so that nothing leaks */
    close(u->post_fd);
    pthread_mutex_destroy(&u->post_mutex);
}

/* --- helper threads --- */

struct uring_worker {
    struct worker base; /* first */
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t not_empty;
    struct list calls; /* under mutex */
    bool stopping;     /* under mutex */
};

struct blocking_call {
    struct list link;
    struct post post;
    void (*fn)(void *arg);
    void *arg;
    struct fiber *fiber;
    bool finished; /* the loop's */
};

static void blocking_call_finished(struct post *p)
{
    struct blocking_call *c = container_of(p, struct blocking_call, post);
    c->finished = true;
    fiber_wake(c->fiber);
}

static void *worker_main(void *arg)
{
    struct uring_worker *w = arg;
    pthread_mutex_lock(&w->mutex);
    for (;;) {
        while (list_empty(&w->calls) && !w->stopping)
            pthread_cond_wait(&w->not_empty, &w->mutex);
        if (list_empty(&w->calls))
            break;
        struct blocking_call *c = list_first(&w->calls, struct blocking_call, link);
        list_remove(&c->link);
        pthread_mutex_unlock(&w->mutex);
        c->fn(c->arg);
        uring_post_queue(uring_of(w->base.rt), &c->post); /* D2: c may be gone from here on */
        pthread_mutex_lock(&w->mutex);
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

static fiber_fn void uring_worker_call(struct worker *base, void (*fn)(void *arg), void *arg)
{
    struct uring_worker *w = container_of(base, struct uring_worker, base);
    struct blocking_call c = {
        .post.run = blocking_call_finished, .fn = fn, .arg = arg, .fiber = fiber_current()};
    pthread_mutex_lock(&w->mutex);
    ASSERT(!w->stopping);
    list_push_back(&w->calls, &c.link);
    pthread_cond_signal(&w->not_empty);
    pthread_mutex_unlock(&w->mutex);
    while (!c.finished)
        fiber_suspend();
}

static void do_nothing(void *arg)
{
}

static fiber_fn void uring_worker_stop(struct worker *base)
{
    worker_call(base, do_nothing, NULL); /* everything queued before is done after this */
    uring_worker_free(base);
}

void uring_worker_free(struct worker *base)
{
    struct uring_worker *w = container_of(base, struct uring_worker, base);
    pthread_mutex_lock(&w->mutex);
    w->stopping = true;
    pthread_cond_signal(&w->not_empty);
    pthread_mutex_unlock(&w->mutex);
    pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->not_empty);
    pthread_mutex_destroy(&w->mutex);
    free(w);
}

int uring_worker_start(struct rt *rt, const char *name, struct worker **ret)
{
    static const struct worker_ops ops = {.call = uring_worker_call, .stop = uring_worker_stop};
    struct uring_worker *w = malloc(sizeof(*w));
    if (!w)
        return -ENOMEM;
    *w = (struct uring_worker){.base = {.ops = &ops, .rt = rt}};
    list_init(&w->calls);
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->not_empty, NULL);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* D3 */
    int r = -pthread_create(&w->thread, NULL, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r < 0) {
        pthread_cond_destroy(&w->not_empty);
        pthread_mutex_destroy(&w->mutex);
        free(w);
        return r;
    }
    char thread_name[16]; /* the kernel's limit */
    size_t length = strnlen(name, sizeof(thread_name) - 1);
    memcpy(thread_name, name, length);
    thread_name[length] = '\0';
    pthread_setname_np(w->thread, thread_name);
    *ret = &w->base;
    return 0;
}
