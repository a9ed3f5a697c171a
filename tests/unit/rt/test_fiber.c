/* SPDX-License-Identifier: Apache-2.0 */
/* Promise: fiber.h and rt.h hold on both seams. */
#include "harness.h"

/* --- order and yielding --- */

static char trace[256];

static void trace_add(const char *s)
{
    strncat(trace, s, sizeof(trace) - strlen(trace) - 1);
}

static void yielding_main(void *arg)
{
    const char *name = arg;
    CHECK(strcmp(fiber_name(fiber_current()), "yielding") == 0);
    for (int i = 0; i < 3; i++) {
        trace_add(name);
        fiber_yield();
    }
}

static void yield_body(void *arg)
{
    trace[0] = '\0';
    CHECK(fiber_spawn(arg, "yielding", yielding_main, "a") == 0);
    CHECK(fiber_spawn(arg, "yielding", yielding_main, "b") == 0);
    CHECK(trace[0] == '\0'); /* F1: spawning does not run */
    for (int i = 0; i < 5; i++)
        fiber_yield();
    CHECK(strcmp(trace, "ababab") == 0);
}

/* --- more fibers than stacks (F3) --- */

struct crowd {
    struct rt *rt;
    unsigned running, running_max, finished;
    struct wgroup group;
};

static void crowd_main(void *arg)
{
    struct crowd *c = arg;
    volatile uint8_t stack_user[8192];
    stack_user[0] = 1;
    stack_user[sizeof(stack_user) - 1] = 2;
    c->running++;
    c->running_max = MAX(c->running_max, c->running);
    CHECK(fiber_sleep(c->rt, NS_PER_MS) == 0);
    CHECK(stack_user[0] == 1 && stack_user[sizeof(stack_user) - 1] == 2);
    c->running--;
    c->finished++;
    wgroup_finish(&c->group);
}

static void crowd_body(void *arg)
{
    struct crowd c = {.rt = arg};
    struct rt_stats stats;
    wgroup_init(&c.group);
    wgroup_add(&c.group, 50);
    for (int i = 0; i < 50; i++)
        CHECK(fiber_spawn(c.rt, "crowd", crowd_main, &c) == 0);
    rt_stats(c.rt, &stats);
    CHECK(stats.fibers_live == 8 && stats.fibers_queued == 43);
    wgroup_wait(&c.group);
    CHECK(c.finished == 50 && c.running_max == 7); /* and this fiber */
}

/* --- timers --- */

struct mark {
    struct timer timer;
    uint64_t deadline_ns;
};
static uint64_t last_deadline;
static unsigned fired_count;
static struct mark *fired_last;

static void mark_fire(struct timer *t)
{
    struct mark *m = container_of(t, struct mark, timer);
    CHECK(fiber_current() == NULL && !timer_armed(t));
    CHECK(clock_now(t->rt) >= t->deadline_ns);
    CHECK(m->deadline_ns >= last_deadline);
    /* T1: equal deadlines in the order of arming */
    CHECK(m->deadline_ns > last_deadline || !fired_last || m > fired_last);
    last_deadline = m->deadline_ns;
    fired_last = m;
    fired_count++;
}

static void timers_body(void *arg)
{
    struct rt *rt = arg;
    enum { COUNT = 500 };
    struct mark *marks = calloc(COUNT, sizeof(*marks));
    uint64_t start = clock_now(rt), x = 12345;
    last_deadline = 0;
    fired_count = 0;
    fired_last = NULL;
    for (unsigned i = 0; i < COUNT; i++) {
        x = x * 6364136223846793005ULL + 1442695040888963407ULL;
        timer_init(&marks[i].timer, rt, mark_fire);
        marks[i].deadline_ns = start + (x >> 33) % 50 * 100 * NS_PER_US;
        timer_arm(&marks[i].timer, i % 5 == 1 ? UINT64_MAX : marks[i].deadline_ns);
    }
    unsigned cancelled = 0;
    for (unsigned i = 0; i < COUNT; i++) {
        if (i % 3 == 0) {
            timer_cancel(&marks[i].timer);
            timer_cancel(&marks[i].timer);
            cancelled++;
        } else if (i % 5 == 1) {
            timer_cancel(&marks[i].timer); /* re-armed out of order above: leave these out */
            cancelled++;
        }
    }
    CHECK(fiber_sleep(rt, 6 * NS_PER_MS) == 0);
    CHECK(fired_count == COUNT - cancelled);
    free(marks);
}

/* --- waiting --- */

struct waiting {
    struct rt *rt;
    struct waitq q;
    struct fmutex mutex;
    unsigned inside, order_next;
    struct wgroup group;
};

static void locker_main(void *arg)
{
    struct waiting *w = arg;
    unsigned order = w->order_next++;
    fmutex_lock(&w->mutex);
    CHECK(w->inside++ == 0 && !fmutex_trylock(&w->mutex));
    CHECK(fiber_sleep(w->rt, (order % 3) * 50 * NS_PER_US) == 0);
    char name[2] = {(char)('a' + order), 0};
    trace_add(name);
    w->inside--;
    fmutex_unlock(&w->mutex);
    wgroup_finish(&w->group);
}

static void mutex_body(void *arg)
{
    struct waiting w = {.rt = arg};
    trace[0] = '\0';
    fmutex_init(&w.mutex);
    wgroup_init(&w.group);
    wgroup_add(&w.group, 6);
    for (int i = 0; i < 6; i++)
        CHECK(fiber_spawn(w.rt, "locker", locker_main, &w) == 0);
    wgroup_wait(&w.group);
    CHECK(strcmp(trace, "abcdef") == 0);
}

static void waker_main(void *arg)
{
    struct waiting *w = arg;
    CHECK(fiber_sleep(w->rt, NS_PER_MS) == 0);
    waitq_wake_one(&w->q);
}

static void timed_wait_body(void *arg)
{
    struct waiting w = {.rt = arg};
    waitq_init(&w.q);
    uint64_t start = clock_now(w.rt);
    CHECK(waitq_wait_until(&w.q, w.rt, start) == -ETIMEDOUT);
    CHECK(waitq_wait_until(&w.q, w.rt, start + NS_PER_MS) == -ETIMEDOUT);
    CHECK(clock_now(w.rt) >= start + NS_PER_MS && waitq_empty(&w.q));
    CHECK(fiber_spawn(w.rt, "waker", waker_main, &w) == 0);
    CHECK(waitq_wait_until(&w.q, w.rt, clock_now(w.rt) + 60 * NS_PER_S) == 0);
    CHECK(fiber_spawn(w.rt, "waker", waker_main, &w) == 0);
    CHECK(waitq_wait_until(&w.q, w.rt, UINT64_MAX) == 0);
}

/* A wake and a deadline within one turn of the loop, in both orders: the first one counts. */
struct early {
    struct timer timer;
    struct waiting *w;
};

static void early_fire(struct timer *t)
{
    struct early *e = container_of(t, struct early, timer);
    waitq_wake_one(&e->w->q);
}

static void coincidence_body(void *arg)
{
    struct waiting w = {.rt = arg};
    struct early e = {.w = &w};
    waitq_init(&w.q);
    timer_init(&e.timer, w.rt, early_fire);
    uint64_t deadline = clock_now(w.rt) + NS_PER_MS;
    timer_arm(&e.timer, deadline);
    CHECK(waitq_wait_until(&w.q, w.rt, deadline) == 0);
    CHECK(waitq_empty(&w.q) && !timer_armed(&e.timer));
    deadline = clock_now(w.rt) + NS_PER_MS;
    timer_arm(&e.timer, deadline + 1);
    CHECK(waitq_wait_until(&w.q, w.rt, deadline) == -ETIMEDOUT);
    CHECK(fiber_sleep(w.rt, NS_PER_MS) == 0 && waitq_empty(&w.q));
}

/* --- channels --- */

struct channel {
    struct chan *chan;
    struct wgroup group;
    int items[100];
};

static void producer_main(void *arg)
{
    struct channel *c = arg;
    for (int i = 0; i < 100; i++)
        CHECK(chan_push(c->chan, &c->items[i]) == 0);
    chan_close(c->chan);
    CHECK(chan_push(c->chan, c) == -ECANCELED);
    wgroup_finish(&c->group);
}

static void chan_body(void *arg)
{
    struct channel c = {.chan = chan_new(3)};
    wgroup_init(&c.group);
    wgroup_add(&c.group, 1);
    CHECK(fiber_spawn(arg, "producer", producer_main, &c) == 0);
    for (int i = 0; i < 100; i++)
        CHECK(chan_pop(c.chan) == &c.items[i]);
    CHECK(chan_pop(c.chan) == NULL);
    wgroup_wait(&c.group);
    chan_free(c.chan);
}

/* --- buffers --- */

struct hungry {
    struct rt *rt;
    size_t size;
    struct wgroup *group;
};

static void hungry_main(void *arg)
{
    struct hungry *h = arg;
    void *p = buf_get(h->rt, h->size);
    char name[2] = {(char)('0' + h->size / 65536), 0};
    trace_add(name);
    buf_put(h->rt, p);
    wgroup_finish(h->group);
}

static void buffer_budget_body(void *arg)
{
    struct rt *rt = arg;
    struct wgroup group;
    trace[0] = '\0';
    wgroup_init(&group);
    void *a = buf_get(rt, 740 << 10), *b = buf_get(rt, 280 << 10);
    CHECK(a && b && (uintptr_t)a % 4096 == 0 && (uintptr_t)b % 4096 == 0);
    CHECK(buf_try_get(rt, 65536) == NULL);
    struct hungry hungry[] = {{rt, 5 * 65536, &group}, {rt, 65536, &group}, {rt, 32 << 20, &group}};
    for (size_t i = 0; i < ARRAY_SIZE(hungry); i++) {
        wgroup_add(&group, 1);
        CHECK(fiber_spawn(rt, "hungry", hungry_main, &hungry[i]) == 0);
    }
    fiber_yield();
    CHECK(buf_try_get(rt, 4096) == NULL); /* B2: not before those who wait */
    buf_put(rt, b);
    fiber_yield();
    CHECK(trace[0] ==
          '\0'); /* 284 KiB are not enough for the first, and the second waits its turn */
    buf_put(rt, a);
    wgroup_wait(&group);
    CHECK(strcmp(trace, "51") > 0 && strncmp(trace, "51", 2) == 0);
    struct rt_stats stats;
    rt_stats(rt, &stats);
    CHECK(stats.buffer_bytes_used == 0 && stats.buffer_waits == 3);
}

static void buffer_random_body(void *arg)
{
    struct rt *rt = arg;
    struct {
        uint8_t *p;
        size_t size;
    } held[64] = {0};
    for (unsigned i = 0; i < 20000; i++) {
        unsigned slot = (unsigned)(rt_random(rt) % ARRAY_SIZE(held));
        if (held[slot].p) {
            CHECK(held[slot].p[0] == slot && held[slot].p[held[slot].size - 1] == slot);
            buf_put(rt, held[slot].p);
            held[slot].p = NULL;
        } else {
            held[slot].size = 1 + rt_random(rt) % (1u << (rt_random(rt) % 18));
            held[slot].p = buf_try_get(rt, held[slot].size);
            if (held[slot].p)
                held[slot].p[0] = held[slot].p[held[slot].size - 1] = (uint8_t)slot;
        }
    }
    for (unsigned slot = 0; slot < ARRAY_SIZE(held); slot++)
        buf_put(rt, held[slot].p);
    void *whole = buf_try_get(rt, 1 << 20); /* B3: all joined again */
    CHECK(whole);
    buf_put(rt, whole);
}

/* --- helper threads, posts --- */

static void helper_work(void *arg)
{
    CHECK(arg);
    trace_add("w");
}

static void posted(void *arg)
{
    CHECK(fiber_current() == NULL);
    trace_add("p");
    waitq_wake_one(arg);
}

static void helper_body(void *arg)
{
    struct worker *w;
    struct waitq q;
    trace[0] = '\0';
    waitq_init(&q);
    CHECK(worker_start(arg, "a helper with a long name", &w) == 0);
    worker_call(w, helper_work, arg);
    worker_call(w, helper_work, arg);
    CHECK(rt_post(arg, posted, &q) == 0);
    CHECK(strcmp(trace, "ww") == 0);
    waitq_wait(&q);
    CHECK(strcmp(trace, "wwp") == 0);
    worker_stop(w);
}

/* --- stopping --- */

static void sleeper_main(void *arg)
{
    CHECK(fiber_sleep(arg, 3600 * NS_PER_S) == -ECANCELED);
    CHECK(fiber_sleep(arg, 1) == -ECANCELED);
    trace_add("s");
}

static void stop_callback(void *arg)
{
    trace_add(arg);
}

static void stop_body(void *arg)
{
    struct rt *rt = arg;
    trace[0] = '\0';
    CHECK(fiber_spawn(rt, "sleeper", sleeper_main, rt) == 0);
    CHECK(rt_on_stop(rt, stop_callback, "1") == 0 && rt_on_stop(rt, stop_callback, "2") == 0);
    fiber_yield();
    CHECK(!rt_stopping(rt));
    rt_stop(rt);
    rt_stop(rt);
    CHECK(rt_stopping(rt) && strcmp(trace, "12") == 0);
    CHECK(rt_on_stop(rt, stop_callback, "3") == 0 && strcmp(trace, "123") == 0);
    for (int i = 0; i < 4; i++)
        fiber_yield();
    CHECK(strcmp(trace, "123s") == 0);
}

static const struct rt_options few_stacks = {.fiber_count_max = 8};
static const struct rt_options one_mebibyte = {.buffer_bytes_max = 1 << 20};

#define ON_BOTH(name, options)                                                                     \
    static void test_##name##_uring(void **state)                                                  \
    {                                                                                              \
        run_on_uring(options, name##_body);                                                        \
    }                                                                                              \
    static void test_##name##_sim(void **state)                                                    \
    {                                                                                              \
        run_on_sim(options, name##_body);                                                          \
    }
ON_BOTH(yield, NULL)
ON_BOTH(crowd, &few_stacks)
ON_BOTH(timers, NULL)
ON_BOTH(mutex, NULL)
ON_BOTH(timed_wait, NULL)
ON_BOTH(coincidence, NULL)
ON_BOTH(chan, NULL)
ON_BOTH(buffer_budget, &one_mebibyte)
ON_BOTH(buffer_random, &one_mebibyte)
ON_BOTH(helper, NULL)
ON_BOTH(stop, NULL)
#define BOTH(name) cmocka_unit_test(test_##name##_uring), cmocka_unit_test(test_##name##_sim)

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(yield),         BOTH(crowd),       BOTH(timers), BOTH(mutex),
        BOTH(timed_wait),    BOTH(coincidence), BOTH(chan),   BOTH(buffer_budget),
        BOTH(buffer_random), BOTH(helper),      BOTH(stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
