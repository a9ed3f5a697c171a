/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The workers of a joining node: they compare groups with in-sync nodes, and bring objects that
 * differ, or were noted, to what an in-sync node has (recovery.h).
 *
 * P1 Every question names the epoch of the join, and the node asked answers at exactly that epoch
 *    (gate.c): so it has everything that was answered before it.
 * P2 The own copies of a group do not change between its epoch's beginning and its comparison, and
 *    from the moment in which both sides' states are known to the marking of what differs nothing
 *    suspends.
 * P3 An object is taken over at one version, and only if the own copy is still the one that was
 *    looked at.
 */
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "object/listing.h"
#include "object/recovery.h"

#define LOG_MODULE "object"
#include "base/log.h"

#define RETRY_NS         (20 * NS_PER_MS)
#define RETRY_MAX_NS     (500 * NS_PER_MS)
#define FULL_RETRY_NS    (2 * NS_PER_S)
#define HOLD_NS          (500 * NS_PER_MS) /* how long changes may wait for a pull */
#define HOLD_RETRY_NS    (5 * NS_PER_MS)
#define LAPSE_NS         (2 * NS_PER_S) /* then the noting node is asked what became of it */
#define ANSWER_NS        (20 * NS_PER_S)
#define LOOK_COUNT_MAX   64u  /* objects looked at for one that is due */
#define BASE_WAITS       100u /* of RETRY_NS */
#define FOREGROUND_MANY  8u   /* requests of others under way: pulls make way */
#define FOREGROUND_NS    (2 * NS_PER_MS)
#define FOREGROUND_TRIES 10u
#define BURST_NS         (50 * NS_PER_MS)

/* --- making way --- */

static fiber_fn void make_way(struct objects *o)
{
    for (unsigned i = 0; i < FOREGROUND_TRIES && o->foreground > FOREGROUND_MANY; i++)
        if (fiber_sleep(o->rt, FOREGROUND_NS) < 0)
            return;
    if (o->joins.free_ns > clock_now(o->rt))
        (void)fiber_sleep_until(o->rt, o->joins.free_ns);
}

/* So many bytes more have come: when the next ones may. */
static void charge(struct objects *o, uint64_t bytes)
{
    uint64_t now = clock_now(o->rt);
    uint64_t from = MAX(o->joins.free_ns, now > BURST_NS ? now - BURST_NS : 0);
    o->joins.free_ns = from + bytes * NS_PER_S / o->joins.rate;
    o->joins.bytes_done += bytes;
}

/* --- whom to ask --- */

/* An in-sync node that lives; another one with each try. -EAGAIN: there is none. */
static int choose_source(const struct join *j, uint64_t seed, uint16_t *ret)
{
    const struct map_group *g = group_map(j->o, j->group);
    for (unsigned i = 0; g && i < g->in_sync_count; i++) {
        uint16_t number = g->in_sync[(seed + i) % g->in_sync_count];
        const struct map_node *n = map_node(j->o->map, number);
        if (n && n->session.value != 0 && number != j->o->self) {
            *ret = number;
            return 0;
        }
    }
    return -EAGAIN;
}

static void call_prepare(struct objects *o, struct call *c, uint32_t group)
{
    c->flags = CALL_FAIL_FAST | CALL_BOUND;
    c->deadline_ns = clock_now(o->rt) + ANSWER_NS;
    c->group = group;
}

/* --- comparing a group --- */

struct compare_call {
    struct call call;
    struct peer_compare answer;
};

static int take_compare(struct call *c, const uint8_t *body, size_t length)
{
    return peer_compare_decode(body, length, &container_of(c, struct compare_call, call)->answer);
}

int compare_own(struct objects *o, uint32_t group, struct peer_compare *ret)
{
    const struct store_filter filter = {.by_group = true, .group = (uint16_t)group};
    struct store_entry *entries;
    size_t count;
    int r = store_list(o->store, &filter, &entries, &count);
    if (r < 0)
        return r;
    *ret = (struct peer_compare){.objects = store_digest(o->store, (uint16_t)group)};
    for (size_t i = 0; i < count; i++)
        if (entries[i].tombstone)
            ret->tombstones +=
                hash_u64(oid_hash(&entries[i].oid) ^ hash_u64(entries[i].version.value));
    free(entries);
    return 0;
}

struct theirs {
    struct peer_entry *entries;
    size_t count, capacity;
};

static int add_theirs(void *arg, const struct peer_entry *e)
{
    struct theirs *t = arg;
    if (t->count == t->capacity) {
        size_t capacity = MAX((size_t)64, t->capacity * 2);
        struct peer_entry *entries = realloc(t->entries, capacity * sizeof(entries[0]));
        if (!entries)
            return -ENOMEM;
        t->entries = entries;
        t->capacity = capacity;
    }
    t->entries[t->count] = *e;
    t->entries[t->count++].meta = NULL;
    return 0;
}

static bool entries_differ(const struct store_entry *own, const struct peer_entry *theirs)
{
    return own->version.value != theirs->version.value || own->tombstone != theirs->tombstone ||
           (!own->tombstone && own->meta_version != theirs->meta_version);
}

static int compare_sibling(const void *a, const void *b)
{
    const struct oid *x = &(*(const struct peer_entry *const *)a)->oid,
                     *y = &(*(const struct peer_entry *const *)b)->oid;
    if (x->level != y->level)
        return x->level < y->level ? -1 : 1;
    if (x->kind != y->kind)
        return x->kind < y->kind ? -1 : 1;
    if (x->index != y->index)
        return x->index < y->index ? -1 : 1;
    return x->vid < y->vid ? -1 : x->vid > y->vid;
}

/* For each entry the vid of the next older object at the same place of an image: what it is a clone
 * of, most likely. NULL when out of memory: then nothing is cloned. */
static uint64_t *find_bases(const struct theirs *t)
{
    const struct peer_entry **order = malloc((t->count + 1) * sizeof(*order));
    uint64_t *bases = calloc(t->count + 1, sizeof(*bases));
    size_t n = 0;
    for (size_t i = 0; order && i < t->count; i++)
        if (!t->entries[i].tombstone)
            order[n++] = &t->entries[i];
    if (n > 1)
        qsort(order, n, sizeof(*order), compare_sibling);
    for (size_t i = 1; bases && i < n; i++) {
        const struct oid *x = &order[i - 1]->oid, *y = &order[i]->oid;
        if (x->level == y->level && x->kind == y->kind && x->index == y->index)
            bases[order[i] - t->entries] = x->vid;
    }
    free(order);
    return bases;
}

/* P2. Both sides in oid order. */
static int mark_differing(struct join *j, const struct theirs *t)
{
    const struct store_filter filter = {.by_group = true, .group = (uint16_t)j->group};
    struct store_entry *own;
    size_t own_count, i = 0, k = 0;
    int r = store_list(j->o->store, &filter, &own, &own_count);
    if (r < 0)
        return r;
    uint64_t *bases = find_bases(t);
    while (r == 0 && (i < own_count || k < t->count)) {
        int order = i == own_count  ? 1
                    : k == t->count ? -1
                                    : oid_compare(&own[i].oid, &t->entries[k].oid);
        const struct oid *oid = order <= 0 ? &own[i].oid : &t->entries[k].oid;
        if (order != 0 || entries_differ(&own[i], &t->entries[k])) {
            struct join_object *x = join_unclean(j, oid);
            if (!x)
                r = -ENOMEM;
            else if (order >= 0) {
                x->end = t->entries[k].end;
                x->base_vid = bases ? bases[k] : 0;
            }
        }
        i += order <= 0;
        k += order >= 0;
    }
    free(own);
    free(bases);
    return r;
}

static fiber_fn int compare_once(struct join *j)
{
    struct objects *o = j->o;
    struct compare_call cc = {.answer = {0}};
    struct peer_compare own;
    uint16_t source;
    int r = choose_source(j, j->group + j->tries, &source);
    if (r < 0)
        return r;
    call_init(&cc.call, PEER_COMPARE, 0); /* without payload it cannot fail */
    call_prepare(o, &cc.call, j->group);
    cc.call.on_body = take_compare;
    r = node_call(o, source, &cc.call, NULL, "comparing");
    call_done(&cc.call);
    if (r == 0 && !j->dead)
        r = compare_own(o, j->group, &own);
    if (r < 0 || j->dead)
        return r;
    struct theirs t = {.entries = NULL};
    if (own.objects != cc.answer.objects || own.tombstones != cc.answer.tombstones) {
        const struct listing l = {
            .node = source,
            .flags = CALL_FAIL_FAST | CALL_BOUND,
            .gated = true,
            .filter = {.flags = PEER_LIST_BY_GROUP, .group = (uint16_t)j->group},
            .fn = add_theirs,
            .arg = &t,
        };
        r = listing_run(o, &l, NULL, NULL);
        if (r == 0 && !j->dead)
            r = mark_differing(j, &t);
    }
    if (r == 0 && !j->dead)
        j->listed = true;
    free(t.entries);
    return r;
}

static fiber_fn void compare(struct join *j)
{
    j->users++;
    j->comparing = true;
    int r = compare_once(j);
    j->comparing = false;
    j->tries++;
    if (!j->dead) {
        if (r < 0) {
            j->due_ns = clock_now(j->o->rt) + MIN(RETRY_NS * j->tries, RETRY_MAX_NS);
            if (r != -EAGAIN && r != -ECONNRESET && r != -ECANCELED)
                log_warn("group %u cannot be compared yet (%s); tried again", j->group,
                         err_text(r));
        }
        join_check_complete(j);
    }
    join_release(j);
}

/* --- one object --- */

struct fetch {
    struct call call;
    struct peer_fetched answer;
    uint8_t *body;   /* that `answer` points into; owned */
    void *data;      /* owned: install_buffer_get() */
    struct oid base; /* that was offered, and its version */
    struct version base_version;
    uint32_t size;
};

static int take_fetched(struct call *c, const uint8_t *body, size_t length)
{
    struct fetch *f = container_of(c, struct fetch, call);
    uint8_t *copy = malloc(length);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, body, length);
    free(f->body);
    f->body = copy;
    return peer_fetched_decode(copy, length, &f->answer);
}

static void fetch_done(struct objects *o, struct fetch *f)
{
    if (f->size > 0)
        install_buffer_put(o, f->data, f->size);
    free(f->body);
    *f = (struct fetch){.body = NULL};
}

static fiber_fn int fetch_once(struct join *j, uint16_t source, const struct peer_fetch *pf,
                               struct fetch *f)
{
    struct objects *o = j->o;
    uint8_t body[PEER_FETCH_BYTES];
    f->size = pf->limit;
    f->base = pf->base;
    f->base_version = pf->base_version;
    if (f->size > 0) {
        f->data = install_buffer_get(o, f->size);
        if (!f->data) {
            f->size = 0;
            return -ENOMEM;
        }
    }
    if (j->dead)
        return -EAGAIN;
    peer_fetch_put(body, pf);
    call_init(&f->call, PEER_FETCH, 0); /* without payload it cannot fail */
    call_prepare(o, &f->call, j->group);
    f->call.body = body;
    f->call.body_length = sizeof(body);
    f->call.reply_payload = f->data;
    f->call.reply_payload_size = f->size;
    f->call.on_body = take_fetched;
    int r = node_call(o, source, &f->call, NULL, "recovery");
    uint32_t got = f->call.reply_payload_length, sum = 0;
    call_done(&f->call);
    if ((r == 0 || r == -EFBIG) && !f->body)
        return -EBADMSG;
    for (unsigned i = 0; r == 0 && i < f->answer.extent_count; i++)
        sum += f->answer.extents[i].length;
    for (size_t i = 0; r == 0 && i < f->answer.block_count; i++)
        sum += f->answer.relations[i] == PEER_OTHER ? OBJECT_BLOCK : 0;
    if (r == 0 && (sum != got || !oid_equal(&f->answer.entry.oid, &pf->oid) ||
                   (f->answer.data == PEER_FETCHED_CHANGED && pf->base_version.value == 0)))
        r = -EBADMSG;
    charge(o, got);
    return r;
}

/* What x is probably a clone of, if that is here already: then only what differs has to come, and
 * shares its blocks here as it does there. */
static void choose_base(struct join *j, const struct join_object *x, const struct store_stat *own,
                        struct peer_fetch *pf)
{
    struct store_stat base;
    if (x->base_vid == 0 || x->tries > 0 || own->version.value != 0 || own->tombstone.value != 0)
        return;
    pf->base = x->oid;
    pf->base.vid = x->base_vid;
    store_stat(j->o->store, &pf->base, &base);
    if (!join_find(j, &pf->base))
        pf->base_version = base.version;
}

/* What the source has of x. 0: *f is to be ended by fetch_done(). */
static fiber_fn int fetch(struct join *j, struct join_object *x, const struct store_stat *own,
                          struct fetch *f)
{
    struct peer_fetch pf = {.oid = x->oid, .have = own->version, .need = x->needs, .limit = x->end};
    uint16_t source;
    int r = choose_source(j, oid_hash(&x->oid) + x->tries, &source);
    choose_base(j, x, own, &pf);
    if (r == 0)
        r = fetch_once(j, source, &pf, f);
    for (unsigned i = 0; r == -EFBIG && i < 3; i++) {
        pf.limit = f->answer.entry.end;
        fetch_done(j->o, f);
        r = pf.limit > 0 && pf.limit <= STORE_OBJECT_SIZE_MAX ? fetch_once(j, source, &pf, f)
                                                              : -EBADMSG;
    }
    x->end = pf.limit;
    if (r < 0)
        fetch_done(j->o, f);
    return r == -EFBIG ? -EAGAIN : r;
}

/* An object without content, so that it can be removed with the tombstone wanted. */
static fiber_fn int make_empty(struct store *s, const struct oid *oid, struct version version)
{
    const struct store_change c = {.kind = STORE_INSTALL, .oid = *oid, .next = version};
    return store_apply(s, &c, NULL);
}

/* What is absent gets that tombstone, or none (0). */
static fiber_fn int tombstone_set(struct store *s, const struct oid *oid, struct version before,
                                  struct version tombstone)
{
    const struct store_meta_change gone = {.oid = *oid, .remove = true, .next = tombstone};
    int r = make_empty(s, oid, tombstone.value ? tombstone : before);
    return r == 0 ? store_meta_apply(s, &gone, 1) : r;
}

fiber_fn int tombstone_drop(struct store *s, const struct oid *oid, struct version version)
{
    return tombstone_set(s, oid, version, (struct version){0});
}

/* Removes the own copy, leaving that tombstone, or none (0). */
static fiber_fn int take_removal(struct objects *o, const struct oid *oid,
                                 const struct store_stat *own, struct version tombstone)
{
    const struct store_meta_change gone = {.oid = *oid, .remove = true, .next = tombstone};
    if (own->version.value != 0)
        return store_meta_apply(o->store, &gone, 1);
    if (own->tombstone.value == tombstone.value)
        return 0;
    return tombstone_set(o->store, oid, own->tombstone, tombstone);
}

/* --- a clone of what is here --- */

struct clone {
    struct objects *o;
    const struct fetch *f;
    const struct store_change *first; /* CLONE */
    struct version at, last;
    uint8_t *data; /* next block of the payload */
};

/* The next run of blocks of that relation from *at on: false, there is none. */
static bool next_run(const struct peer_fetched *a, enum peer_relation what, size_t *at,
                     struct store_extent *ret)
{
    size_t i = *at, end;
    while (i < a->block_count && a->relations[i] != what)
        i++;
    for (end = i; end < a->block_count && a->relations[end] == what; end++)
        ;
    *ret = (struct store_extent){(uint32_t)i * OBJECT_BLOCK, (uint32_t)(end - i) * OBJECT_BLOCK};
    *at = end;
    return end > i;
}

static uint64_t count_steps(const struct peer_fetched *a, enum peer_relation what)
{
    struct store_extent x;
    uint64_t runs = 0;
    size_t at = 0;
    while (next_run(a, what, &at, &x))
        runs++;
    return (runs + STORE_EXTENT_COUNT_MAX - 1) / STORE_EXTENT_COUNT_MAX;
}

/* One change with as many runs as fit. */
static fiber_fn int clone_step(struct clone *c, enum store_change_kind kind, struct version next,
                               enum peer_relation what, size_t *at)
{
    struct store_extent extents[STORE_EXTENT_COUNT_MAX];
    struct iovec iov = {c->data, 0};
    struct store_change change = *c->first;
    unsigned n = 0;
    while (n < STORE_EXTENT_COUNT_MAX && next_run(&c->f->answer, what, at, &extents[n]))
        iov.iov_len += extents[n++].length;
    change.kind = kind;
    change.prev = c->at;
    change.next = next;
    change.extents = extents;
    change.extent_count = n;
    if (what == PEER_OTHER && n > 0) {
        change.iov = &iov;
        change.iov_count = 1;
        c->data += iov.iov_len;
    }
    int r = store_apply(c->o->store, &change, NULL);
    c->at = next;
    return r;
}

/* The versions on the way are below the one fetched, and only here: this copy is not in sync. */
/* What is half made has a version that no owner ever gave (W3: terms begin at 1): after a crash it
 * is never taken for an older content of the object. */
static struct version step_version(const struct peer_fetched *a, uint64_t total, uint64_t left)
{
    return left > 0 ? version_make((struct term){0}, total - left) : a->entry.version;
}

static fiber_fn int take_clone(struct objects *o, const struct oid *oid, const struct oid *base,
                               const struct fetch *f)
{
    const struct peer_fetched *a = &f->answer;
    const struct store_meta_change gone = {.oid = *oid, .remove = true};
    struct store_stat st;
    const struct store_change first = {.kind = STORE_CLONE, .oid = *oid, .source = *base};
    struct clone c = {.o = o, .f = f, .first = &first, .data = f->data};
    uint64_t writes = MAX(count_steps(a, PEER_OTHER), (uint64_t)1);
    uint64_t left = writes + count_steps(a, PEER_HOLE), total = left;
    size_t at = 0;
    int r = 0;
    for (uint64_t i = 0; r == 0 && i < writes; i++) {
        r = clone_step(&c, i ? STORE_WRITE : STORE_CLONE, step_version(a, total, --left),
                       PEER_OTHER, &at);
        store_stat(o->store, base, &st);
        if (r == 0 && i == 0 && st.version.value != f->base_version.value) {
            /* The base went on, perhaps before it was cloned (changes become visible in the order
             * of the log): this is a clone of something else. */
            r = store_meta_apply(o->store, &gone, 1);
            return r == 0 ? -EAGAIN : r;
        }
    }
    for (at = 0; r == 0 && left > 0;)
        r = clone_step(&c, STORE_PUNCH, step_version(a, total, --left), PEER_HOLE, &at);
    return r;
}

static fiber_fn int take_content(struct objects *o, const struct oid *oid,
                                 const struct store_stat *own, const struct fetch *f)
{
    struct store_extent extents[STORE_EXTENT_COUNT_MAX];
    const struct peer_fetched *a = &f->answer;
    for (unsigned i = 0; i < a->extent_count; i++)
        extents[i] = (struct store_extent){a->extents[i].offset, a->extents[i].length};
    const struct iovec iov = {f->data, f->call.reply_payload_length};
    const struct store_change c = {
        .kind = STORE_INSTALL,
        .oid = *oid,
        .prev = own->version, /* P3 */
        .next = a->entry.version,
        .extents = extents,
        .extent_count = a->extent_count,
        .iov = a->extent_count ? &iov : NULL,
        .iov_count = a->extent_count ? 1 : 0,
    };
    return store_apply(o->store, &c, NULL);
}

/* Makes the own copy what was fetched; the caller is admitted (J4). */
static fiber_fn int take_over(struct objects *o, const struct oid *oid,
                              const struct store_stat *own, const struct fetch *f)
{
    const struct peer_entry *e = &f->answer.entry;
    if (e->version.value == 0 || e->tombstone)
        return take_removal(o, oid, own, e->tombstone ? e->version : (struct version){0});
    uint64_t meta_version = own->version.value ? own->meta_version : 0;
    int r = own->version.value == e->version.value   ? 0
            : f->answer.data == PEER_FETCHED_CHANGED ? take_clone(o, oid, &f->base, f)
                                                     : take_content(o, oid, own, f);
    if (r == 0 && meta_version != e->meta_version) {
        const struct store_meta_change meta = {
            .oid = *oid,
            .meta_version = e->meta_version,
            .meta = e->meta,
            .length = e->meta_length,
            .force = true,
        };
        r = store_meta_apply(o->store, &meta, 1);
    }
    return r;
}

/* J2: no note is open any more when the own copy is what `e` says. */
static bool is_satisfied(const struct join_object *x, const struct peer_entry *e)
{
    bool live = e->version.value != 0 && !e->tombstone;
    if (x->needs.value > e->version.value || (x->needs_gone && live))
        return false;
    return !live || e->meta_version >= x->meta_needs;
}

/* 1: the own copy is what the source has, and that is all that is noted. 0: not yet. */
static fiber_fn int pull_once(struct join *j, struct join_object *x)
{
    struct objects *o = j->o;
    struct store_stat own, still;
    struct fetch f = {.body = NULL};
    store_stat(o->store, &x->oid, &own);
    int r = fetch(j, x, &own, &f);
    if (r < 0)
        return r;
    const struct peer_entry *e = &f.answer.entry;
    bool live = e->version.value != 0 && !e->tombstone;
    bool waits =
        live && f.answer.data == PEER_FETCHED_NONE && e->version.value != own.version.value;
    r = j->dead || waits ? -EAGAIN : gate_enter(o, j->group, j->epoch);
    if (r == 0) {
        store_stat(o->store, &x->oid, &still);
        r = memcmp(&still, &own, sizeof(own)) == 0 ? take_over(o, &x->oid, &own, &f) : -EAGAIN;
        /* Before gate_leave(): the join cannot be over. */
        if (r == 0)
            r = is_satisfied(x, e);
        gate_leave(o, j->group);
    } else if (waits && !j->dead) {
        r = 0;
    }
    fetch_done(o, &f);
    return r;
}

/* --- notes that nobody may answer any more --- */

struct underway_call {
    struct call call;
    uint8_t underway;
};

static int take_underway(struct call *c, const uint8_t *body, size_t length)
{
    if (length != 1)
        return -EBADMSG;
    container_of(c, struct underway_call, call)->underway = body[0];
    return 0;
}

/* A change that was noted may have been given up by its owner, or be on all in-sync nodes and
 * replaced since: then there is nothing to wait for, but the object is compared once more. */
static fiber_fn void ask_what_became(struct join *j, struct join_object *x)
{
    struct objects *o = j->o;
    uint8_t body[OID_BYTES];
    uint32_t notes = x->notes;
    struct underway_call uc = {.underway = 1};
    const struct map_node *n = map_node(o->map, x->from);
    int r = 0;
    oid_put(body, &x->oid);
    call_init(&uc.call, PEER_UNDERWAY, 0); /* without payload it cannot fail */
    uc.call.flags = CALL_FAIL_FAST | CALL_BOUND;
    uc.call.deadline_ns = clock_now(o->rt) + ANSWER_NS;
    uc.call.body = body;
    uc.call.body_length = sizeof(body);
    uc.call.on_body = take_underway;
    if (n && n->session.value != 0)
        r = node_call(o, x->from, &uc.call, NULL, "recovery");
    else
        uc.underway = 0;
    call_done(&uc.call);
    if (r == 0 && !uc.underway && !j->dead && x->notes == notes)
        x->needs.value = 0;
}

/* --- workers --- */

static void pull_failed(struct join *j, struct join_object *x, int r)
{
    char name[OID_TEXT_SIZE];
    uint64_t now = clock_now(j->o->rt);
    x->tries++;
    x->due_ns = now + MIN(RETRY_NS << MIN(x->tries, 8u), RETRY_MAX_NS);
    if (r == -ENOSPC)
        x->due_ns = now + FULL_RETRY_NS;
    if (r != -EAGAIN && r != -ECONNRESET && r != -ECANCELED && r != -ETIMEDOUT &&
        (x->tries & (x->tries - 1)) == 0)
        log_warn("object %s cannot be brought up to date yet (%s); tried again",
                 oid_format(&x->oid, name), err_text(r));
}

static void hold_changes(struct join_object *x, uint64_t now)
{
    if (x->tries > 0 && !x->holding && x->needs.value > 0) {
        x->holding = true;
        x->hold_end_ns = now + HOLD_NS;
    } else if (x->holding && now >= x->hold_end_ns) {
        x->holding = false;
        join_wake_held(x);
    }
}

/* A clone comes after what it is a clone of, unless that takes too long. */
static bool waits_for_base(struct join *j, struct join_object *x)
{
    struct oid base = x->oid;
    base.vid = x->base_vid;
    if (x->base_vid == 0 || x->tries > 0 || !join_find(j, &base) || ++x->waits > BASE_WAITS)
        return false;
    list_remove(&x->in_todo);
    list_push_back(&j->todo, &x->in_todo);
    x->due_ns = clock_now(j->o->rt) + RETRY_NS;
    return true;
}

static fiber_fn void pull(struct join *j, struct join_object *x)
{
    struct objects *o = j->o;
    if (waits_for_base(j, x))
        return;
    j->users++;
    x->busy = true;
    list_remove(&x->in_todo);
    make_way(o);
    int r = -EAGAIN;
    if (!j->dead) {
        hold_changes(x, clock_now(o->rt)); /* not while this pull has to wait itself */
        r = pull_once(j, x);
    }
    if (r == 0 && !j->dead && x->needs.value > 0 && clock_now(o->rt) > x->noted_ns + LAPSE_NS) {
        ask_what_became(j, x);
        if (!j->dead)
            x->noted_ns = clock_now(o->rt);
    }
    if (j->dead) {
        join_object_orphaned(j, x);
    } else {
        if (r < 0) {
            pull_failed(j, x, r);
        } else if (r == 0) {
            x->tries++;
            x->due_ns = clock_now(o->rt) + (x->holding ? HOLD_RETRY_NS : RETRY_NS);
        }
        join_pulled(j, x, r > 0);
    }
    join_release(j);
}

/* The first object that is due; *due_ns: when another one may be. */
static struct join_object *due_object(struct join *j, uint64_t now, uint64_t *due_ns)
{
    unsigned looked = 0;
    struct join_object *x;
    list_for_each (x, &j->todo, in_todo) {
        if (x->due_ns <= now)
            return x;
        *due_ns = MIN(*due_ns, x->due_ns);
        if (++looked == LOOK_COUNT_MAX)
            break;
    }
    return NULL;
}

/* False: nothing is to be done before *due_ns. */
static fiber_fn bool work_once(struct objects *o, uint64_t *due_ns)
{
    uint64_t now = clock_now(o->rt);
    struct join *j;
    *due_ns = UINT64_MAX;
    /* Comparing comes first: most groups are complete with it, and it shows how much is to come. */
    list_for_each (j, &o->joins.active, in_active) {
        if (j->listed || j->comparing)
            continue;
        if (j->due_ns <= now) {
            compare(j);
            return true;
        }
        *due_ns = MIN(*due_ns, j->due_ns);
    }
    list_for_each (j, &o->joins.active, in_active) {
        struct join_object *x = j->listed ? due_object(j, now, due_ns) : NULL;
        if (x) {
            pull(j, x);
            return true;
        }
    }
    return false;
}

static fiber_fn void worker_main(void *arg)
{
    struct objects *o = arg;
    uint64_t due_ns;
    while (!o->stopping && !rt_stopping(o->rt) && !list_empty(&o->joins.active)) {
        if (!work_once(o, &due_ns) && !list_empty(&o->joins.active))
            waitq_wait_until(&o->joins.work, o->rt, MIN(due_ns, clock_now(o->rt) + RETRY_MAX_NS));
    }
    o->joins.workers--;
    objects_fiber_end(o);
}

void pull_kick(struct objects *o)
{
    waitq_wake_one(&o->joins.work);
    while (!list_empty(&o->joins.active) && o->joins.workers < JOIN_WORKERS && !o->stopping) {
        if (objects_spawn(o, "object-join", worker_main, o) < 0)
            return;
        o->joins.workers++;
    }
}
