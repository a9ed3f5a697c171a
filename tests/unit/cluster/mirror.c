/* SPDX-License-Identifier: Apache-2.0 */
/* A copy of a key prefix kept by a watch. */
#include "mirror.h"
#include <stdlib.h>
#include <string.h>
#include "base/crc32c.h"

#define DEADLINE_NS (30 * NS_PER_S)

static fiber_fn void on_event(void *arg, const char *key, const void *value, size_t length,
                              uint64_t revision, bool more)
{
    struct mirror *m = arg;
    if (m->slow_ns)
        fiber_sleep(m->rt, m->slow_ns);
    if (m->count == m->capacity) {
        m->capacity = m->capacity ? m->capacity * 2 : 256;
        m->events = realloc(m->events, m->capacity * sizeof(*m->events));
        ASSERT(m->events);
    }
    struct mirror_event *e = &m->events[m->count++];
    *e = (struct mirror_event){
        .deleted = !value, .more = more, .revision = revision, .length = length};
    if (key) {
        ASSERT(strlen(key) < sizeof(e->key));
        strcpy(e->key, key);
    } else {
        ASSERT(m->end_at == 0 && !value && !more);
        m->end_at = m->count;
    }
    if (value)
        e->checksum = crc32c(0, value, length);
    waitq_wake_all(&m->changed);
}

void mirror_init(struct mirror *m, struct rt *rt, struct cs *cs, const char *prefix)
{
    *m = (struct mirror){.rt = rt};
    waitq_init(&m->changed);
    ASSERT(cs_watch(cs, prefix, on_event, m) == 0);
}

void mirror_done(struct mirror *m)
{
    free(m->events);
}

const struct mirror_event *mirror_find(const struct mirror *m, const char *key)
{
    for (size_t i = m->count; i > 0; i--) {
        if (strcmp(m->events[i - 1].key, key) == 0)
            return &m->events[i - 1];
    }
    return NULL;
}

bool mirror_has(const struct mirror *m, const char *key)
{
    const struct mirror_event *e = mirror_find(m, key);
    return e && !e->deleted;
}

static fiber_fn void wait_presence(struct mirror *m, const char *key, bool presence)
{
    uint64_t deadline = clock_now(m->rt) + DEADLINE_NS;
    while (m->end_at == 0 || mirror_has(m, key) != presence)
        ASSERT(waitq_wait_until(&m->changed, m->rt, deadline) == 0);
}

fiber_fn void mirror_wait_key(struct mirror *m, const char *key)
{
    wait_presence(m, key, true);
}

fiber_fn void mirror_wait_gone(struct mirror *m, const char *key)
{
    wait_presence(m, key, false);
}

fiber_fn void mirror_wait_revision(struct mirror *m, uint64_t revision)
{
    uint64_t deadline = clock_now(m->rt) + DEADLINE_NS;
    while (m->end_at == 0 || m->events[m->count - 1].revision < revision ||
           m->events[m->count - 1].more)
        ASSERT(waitq_wait_until(&m->changed, m->rt, deadline) == 0);
}

void mirror_check_order(const struct mirror *m)
{
    ASSERT(m->end_at > 0);
    const struct mirror_event *previous =
        &m->events[m->end_at - 1]; /* its revision is the state's */
    for (size_t i = 0; i + 1 < m->end_at; i++)
        ASSERT(m->events[i].revision <= previous->revision && !m->events[i].deleted);
    for (size_t i = m->end_at; i < m->count; i++) {
        const struct mirror_event *e = &m->events[i];
        if (i > m->end_at && previous->more)
            ASSERT(e->revision == previous->revision);
        else
            ASSERT(e->revision > previous->revision);
        previous = e;
    }
    ASSERT(!previous->more);
}
