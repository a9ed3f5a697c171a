/* SPDX-License-Identifier: Apache-2.0 */
/* Promise: what only production has: fd watches, signals, posts from threads, an idle loop that
 * sleeps. */
#include "harness.h"
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>

static struct rt *the_rt;
static struct waitq woken;
static unsigned events;

static void pipe_readable(void *arg)
{
    char byte;
    CHECK(read(*(int *)arg, &byte, 1) == 1);
    events++;
    waitq_wake_one(&woken);
}

static void watch_body(void *arg)
{
    int fds[2];
    struct fd_watch *w;
    events = 0;
    waitq_init(&woken);
    CHECK(pipe(fds) == 0);
    CHECK(fd_watch_add(arg, fds[0], pipe_readable, &fds[0], &w) == 0);
    for (unsigned i = 1; i <= 3; i++) {
        CHECK(write(fds[1], "x", 1) == 1);
        waitq_wait(&woken);
        CHECK(events == i);
    }
    fd_watch_remove(w);
    CHECK(write(fds[1], "x", 1) == 1);
    CHECK(fiber_sleep(arg, 2 * NS_PER_MS) == 0);
    CHECK(events == 3);
    close(fds[0]);
    close(fds[1]);
}

static void test_watch(void **state)
{
    run_on_uring(NULL, watch_body);
}

static void got_signal(void *arg, int signal)
{
    CHECK(signal == SIGTERM && arg == the_rt);
    rt_stop(arg);
}

static void sleep_until_stopped(void *arg)
{
    CHECK(kill(getpid(), SIGTERM) == 0);
    CHECK(fiber_sleep(arg, 60 * NS_PER_S) == -ECANCELED);
}

static void test_signal_stops(void **state)
{
    assert_int_equal(rt_uring_new(NULL, &the_rt), 0);
    assert_int_equal(rt_uring_on_signal(the_rt, got_signal, the_rt), 0);
    assert_int_equal(fiber_spawn(the_rt, "sleeper", sleep_until_stopped, the_rt), 0);
    assert_int_equal(rt_uring_run(the_rt), 0);
    rt_uring_free(the_rt);
}

#define POSTS_PER_THREAD 2000

static void count_post(void *arg)
{
    events++;
    if (events == 2 * POSTS_PER_THREAD)
        waitq_wake_one(&woken);
}

static void *posting_thread(void *arg)
{
    for (unsigned i = 0; i < POSTS_PER_THREAD; i++)
        CHECK(rt_post(arg, count_post, NULL) == 0);
    return NULL;
}

static void posts_body(void *arg)
{
    pthread_t threads[2];
    events = 0;
    waitq_init(&woken);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, posting_thread, arg) == 0);
    while (events < 2 * POSTS_PER_THREAD)
        waitq_wait(&woken);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
}

static void test_posts_from_threads(void **state)
{
    run_on_uring(NULL, posts_body);
}

static void idle_body(void *arg)
{
    struct rt_stats before, after;
    rt_stats(arg, &before);
    CHECK(fiber_sleep(arg, 300 * NS_PER_MS) == 0);
    rt_stats(arg, &after);
    CHECK(after.loop_iterations - before.loop_iterations <= 3); /* it slept, it did not tick */
}

static void test_idle(void **state)
{
    run_on_uring(NULL, idle_body);
}

static void nothing_body(void *arg)
{
}

/* The loop can be run again, and a second runtime lives beside it. */
static void test_run_twice(void **state)
{
    struct rt *a, *b;
    assert_int_equal(rt_uring_new(NULL, &a), 0);
    assert_int_equal(rt_uring_new(NULL, &b), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(fiber_spawn(a, "nothing", nothing_body, NULL), 0);
        assert_int_equal(fiber_spawn(b, "nothing", nothing_body, NULL), 0);
        assert_int_equal(rt_uring_run(a), 0);
        assert_int_equal(rt_uring_run(b), 0);
    }
    rt_uring_free(a);
    rt_uring_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_watch),
        cmocka_unit_test(test_signal_stops),
        cmocka_unit_test(test_posts_from_threads),
        cmocka_unit_test(test_idle),
        cmocka_unit_test(test_run_twice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
