/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the log adds up to.
 *
 * ZS1 A key's value is that of the latest entry that speaks of it.
 * ZS2 An entry is needed while it is the latest of a key and either puts it, or deletes it while
 *     older entries speak of it (who reads the log from its beginning must not find them alive).
 *     Only entries that are not needed are removed, so the log always adds up to the same.
 * ZS3 An entry that is not needed never is again: later entries only take needs away.
 */
#include "cluster/drivers/zookeeper_state.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"

struct zk_log {
    struct list link, loose_link;
    uint64_t revision, session, nonce;
    unsigned part_count;
    unsigned needed;                      /* keys that need it (ZS2) */
    uint64_t loose_revision, loose_bytes; /* of the state when it became loose */
    unsigned key_count;
    struct zk_key *keys[];
};

void zk_state_init(struct zk_state *s)
{
    *s = (struct zk_state){0};
    list_init(&s->logs);
    list_init(&s->loose);
}

static void key_free(struct zk_key *k)
{
    free(k->value);
    free(k);
}

void zk_state_done(struct zk_state *s)
{
    struct zk_log *l, *next;
    list_for_each_safe (l, next, &s->logs, link)
        free(l);
    for (size_t i = 0; i < s->key_count; i++)
        key_free(s->keys[i]);
    free(s->keys);
    zk_state_init(s);
}

void zk_state_take(struct zk_state *to, struct zk_state *from)
{
    zk_state_done(to);
    *to = *from;
    list_init(&to->logs);
    list_init(&to->loose);
    list_splice_back(&to->logs, &from->logs);
    list_splice_back(&to->loose, &from->loose);
    zk_state_init(from);
}

/* Index of the first key whose name is not below `name`. */
static size_t find_place(const struct zk_state *s, const char *name)
{
    size_t low = 0, high = s->key_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(s->keys[middle]->name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct zk_key *find_key(const struct zk_state *s, const char *name)
{
    size_t i = find_place(s, name);
    return i < s->key_count && strcmp(s->keys[i]->name, name) == 0 ? s->keys[i] : NULL;
}

static struct zk_key *add_key(struct zk_state *s, const char *name)
{
    if (s->key_count == s->key_capacity) {
        size_t capacity = s->key_capacity ? s->key_capacity * 2 : 256;
        struct zk_key **grown = realloc(s->keys, capacity * sizeof(struct zk_key *));
        if (!grown)
            return NULL;
        s->keys = grown;
        s->key_capacity = capacity;
    }
    size_t size = strlen(name) + 1;
    struct zk_key *k = calloc(1, sizeof(*k) + size);
    if (!k)
        return NULL;
    memcpy(k->name, name, size);
    size_t i = find_place(s, name);
    memmove(&s->keys[i + 1], &s->keys[i], (s->key_count - i) * sizeof(struct zk_key *));
    s->keys[i] = k;
    s->key_count++;
    return k;
}

static void drop_key(struct zk_state *s, struct zk_key *k)
{
    size_t i = find_place(s, k->name);
    ASSERT(s->keys[i] == k);
    s->key_count--;
    memmove(&s->keys[i], &s->keys[i + 1], (s->key_count - i) * sizeof(struct zk_key *));
    key_free(k);
}

/* ZS2, for the key's latest entry. */
static bool key_needs(const struct zk_key *k)
{
    return k->value || k->mentions > 1;
}

static void loosen(struct zk_state *s, struct zk_log *l)
{
    l->loose_revision = s->revision;
    l->loose_bytes = s->bytes;
    list_push_back(&s->loose, &l->loose_link);
}

static void need_less(struct zk_state *s, struct zk_log *l)
{
    ASSERT(l->needed > 0);
    if (--l->needed == 0)
        loosen(s, l);
}

/* One change of entry l, whose keys have room. */
static int apply_change(struct zk_state *s, struct zk_log *l, const struct zk_change *c)
{
    struct zk_key *k = find_key(s, c->key);
    if (!c->value && (!k || !k->value))
        return 0; /* deletes nothing */
    uint8_t *value = NULL;
    if (!k)
        k = add_key(s, c->key);
    if (c->value)
        value = malloc(c->length + 1);
    if (!k || (c->value && !value)) {
        free(value);
        return -ENOMEM;
    }
    if (value)
        memcpy(value, c->value, c->length);
    struct zk_log *old = k->latest;
    bool needed = old && key_needs(k);
    free(k->value);
    k->value = value;
    k->length = value ? c->length : 0;
    k->owner = value ? c->owner : 0;
    k->revision = l->revision;
    k->latest = l;
    if (old != l) {
        k->mentions++;
        l->keys[l->key_count++] = k;
    } else if (needed) {
        l->needed--; /* named twice */
    }
    if (key_needs(k))
        l->needed++;
    if (needed && old != l)
        need_less(s, old);
    return 0;
}

static void remove_log(struct zk_state *s, struct zk_log *l)
{
    for (unsigned i = 0; i < l->key_count; i++) {
        struct zk_key *k = l->keys[i];
        bool needed = key_needs(k);
        k->mentions--;
        if (k->mentions == 0)
            drop_key(s, k);
        else if (k->latest != l && needed && !key_needs(k))
            need_less(s, k->latest);
    }
    list_remove(&l->link);
    list_remove(&l->loose_link);
    s->log_count--;
    free(l);
}

void zk_state_forget(struct zk_state *s, uint64_t revision)
{
    struct zk_log *l;
    list_for_each (l, &s->loose, loose_link) {
        if (l->revision == revision) {
            remove_log(s, l);
            return;
        }
    }
}

int zk_state_apply(struct zk_state *s, const struct zk_header *h, const struct zk_change *changes,
                   unsigned count)
{
    ASSERT(h->revision > s->revision);
    struct zk_log *l = calloc(1, sizeof(*l) + count * sizeof(l->keys[0]));
    if (!l)
        return -ENOMEM;
    l->revision = h->revision;
    l->session = h->session;
    l->nonce = h->nonce;
    l->part_count = h->part_count;
    list_init(&l->loose_link);
    list_push_back(&s->logs, &l->link);
    s->log_count++;
    s->revision = h->revision;
    s->bytes += h->body_length;
    for (unsigned i = 0; i < h->removed_count; i++)
        zk_state_forget(s, h->removed[i]);
    for (unsigned i = 0; i < count; i++) {
        int r = apply_change(s, l, &changes[i]);
        if (r < 0)
            return r;
    }
    if (l->needed == 0)
        loosen(s, l);
    return 0;
}

const struct zk_key *zk_state_get(const struct zk_state *s, const char *key)
{
    const struct zk_key *k = find_key(s, key);
    return k && k->value ? k : NULL;
}

const struct zk_key *zk_state_next(const struct zk_state *s, const char *prefix, size_t *position)
{
    size_t i = *position ? *position : find_place(s, prefix);
    for (; i < s->key_count; i++) {
        const struct zk_key *k = s->keys[i];
        if (strncmp(k->name, prefix, strlen(prefix)) != 0)
            break;
        if (!k->value)
            continue;
        *position = i + 1;
        return k;
    }
    return NULL;
}

unsigned zk_state_removable(const struct zk_state *s, uint64_t keep_count, uint64_t keep_bytes,
                            struct zk_loose *ret, unsigned max)
{
    unsigned count = 0;
    const struct zk_log *l;
    list_for_each (l, &s->loose, loose_link) {
        if (count == max || (s->revision - l->loose_revision < keep_count &&
                             s->bytes - l->loose_bytes < keep_bytes))
            break;
        ret[count++] = (struct zk_loose){.revision = l->revision,
                                         .session = l->session,
                                         .nonce = l->nonce,
                                         .part_count = l->part_count};
    }
    return count;
}

bool zk_state_has_parts(const struct zk_state *s, uint64_t session, uint64_t nonce)
{
    const struct zk_log *l;
    list_for_each (l, &s->logs, link) {
        if (l->part_count > 0 && l->session == session && l->nonce == nonce)
            return true;
    }
    return false;
}

void zk_state_verify(const struct zk_state *s)
{
    size_t logs = 0, loose = 0, needs = 0, mentions = 0;
    uint64_t last = 0;
    const struct zk_log *l;
    list_for_each (l, &s->logs, link) {
        ASSERT(l->revision > last && l->revision <= s->revision);
        ASSERT((l->needed == 0) == !list_empty(&l->loose_link));
        last = l->revision;
        loose += l->needed == 0;
        needs += l->needed;
        mentions += l->key_count;
        logs++;
    }
    ASSERT(logs == s->log_count);
    list_for_each (l, &s->loose, loose_link)
        loose--;
    ASSERT(loose == 0);
    for (size_t i = 0; i < s->key_count; i++) {
        const struct zk_key *k = s->keys[i];
        ASSERT(i == 0 || strcmp(s->keys[i - 1]->name, k->name) < 0);
        ASSERT(k->mentions > 0 && k->latest->revision == k->revision);
        needs -= key_needs(k);
        mentions -= k->mentions;
    }
    ASSERT(needs == 0 && mentions == 0);
}
