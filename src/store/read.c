/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading objects and pins.
 *
 * R1 The map of the whole range is copied in one step, when all its leaves are in memory: a read
 * sees one version. R2 From then until the data has arrived the read is a space_reader: its blocks
 * are not reused (S3). R3 Every block is checked; a bad one is never returned as good.
 */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/store_internal.h"

#define MAP_INLINE  64u /* blocks of a read whose map lives on the stack */
#define RUNS_INLINE 4u
#define RUNS_MAX    64u   /* requests in flight for one read */
#define PIECE_MAX   4096u /* blocks per request */

struct map {
    struct block_ptr *blocks, few[MAP_INLINE];
    uint32_t count;
};

struct read_io {
    struct disk_io io;
    struct iovec iov;
    struct wgroup *group;
    uint32_t first, count; /* within the map */
};

static int map_init(struct map *m, uint32_t count)
{
    m->count = count;
    m->blocks = m->few;
    if (count > MAP_INLINE)
        m->blocks = malloc(count * sizeof(*m->blocks));
    return m->blocks != NULL ? 0 : -ENOMEM;
}

static void map_done(struct map *m)
{
    if (m->blocks != m->few)
        free(m->blocks);
}

/* Copies the map of blocks [first, first + m->count) of o. -EAGAIN: something had to be loaded,
 * find the object again. */
static fiber_fn int map_fill(struct store *s, struct onode *o, uint32_t first, struct map *m)
{
    uint32_t k = 0;

    if (o->damaged)
        return -EUCLEAN;
    for (uint32_t i = first / LEAF_ENTRIES; i <= (first + m->count - 1) / LEAF_ENTRIES; i++) {
        struct leaf *l = NULL;
        bool suspended = false;
        int r = 0;
        if (i < o->leaf_count && o->refs[i].used > 0)
            r = leaf_load(s, o, i, &l, &suspended);
        if (r < 0)
            return r;
        if (suspended)
            return -EAGAIN;
        for (; k < m->count && (first + k) / LEAF_ENTRIES == i; k++)
            m->blocks[k] =
                l != NULL ? leaf_entry(l->data, (first + k) % LEAF_ENTRIES) : (struct block_ptr){0};
    }
    return 0;
}

static void read_io_done(struct disk_io *io)
{
    wgroup_finish(container_of(io, struct read_io, io)->group);
}

static int verify(struct store *s, const struct oid *oid, uint32_t first, const struct map *m,
                  const struct read_io *rio, const uint8_t *buffer)
{
    for (uint32_t k = rio->first; k < rio->first + rio->count; k++) {
        const uint8_t *data = buffer + (size_t)k * STORE_BLOCK;
        char name[OID_TEXT_SIZE];
        if (k + 1 < rio->first + rio->count)
            crc32c_prefetch(data + STORE_BLOCK, STORE_BLOCK);
        if (crc32c(0, data, STORE_BLOCK) == m->blocks[k].crc)
            continue;
        s->stats.checksum_errors++;
        store_problem(s, m->blocks[k].block, "checksum error in object %s at byte %llu",
                      oid_format(oid, name), (unsigned long long)(first + k) * STORE_BLOCK);
        return -EUCLEAN;
    }
    return 0;
}

/* Next run of neighbours on disk at or after *at; holes on the way are zeroed. False: the end. */
static bool next_run(const struct map *m, uint32_t *at, uint8_t *buffer, uint32_t *ret_first,
                     uint32_t *ret_count)
{
    uint32_t k = *at, n = 1;

    while (k < m->count && m->blocks[k].block == 0) {
        memset(buffer + (size_t)k * STORE_BLOCK, 0, STORE_BLOCK);
        k++;
    }
    if (k == m->count)
        return false;
    while (k + n < m->count && n < PIECE_MAX && m->blocks[k + n].block == m->blocks[k].block + n)
        n++;
    *ret_first = k;
    *ret_count = n;
    *at = k + n;
    return true;
}

/* Reads all mapped blocks into buffer (aligned) and verifies them. */
static fiber_fn int map_read(struct store *s, const struct oid *oid, uint32_t first,
                             const struct map *m, uint8_t *buffer)
{
    struct read_io few[RUNS_INLINE], *ios = few;
    unsigned capacity = RUNS_INLINE;
    uint32_t at = 0;
    int r = 0;

    if (m->count > MAP_INLINE) {
        capacity = RUNS_MAX;
        ios = malloc(capacity * sizeof(*ios));
        if (ios == NULL)
            return -ENOMEM;
    }
    while (r == 0 && at < m->count) {
        struct wgroup group;
        unsigned n = 0;

        wgroup_init(&group);
        while (n < capacity && next_run(m, &at, buffer, &ios[n].first, &ios[n].count)) {
            struct read_io *rio = &ios[n++];
            rio->iov = (struct iovec){buffer + (size_t)rio->first * STORE_BLOCK,
                                      (size_t)rio->count * STORE_BLOCK};
            rio->io.op = DISK_READ;
            rio->io.flags = 0;
            rio->io.offset = block_offset(m->blocks[rio->first].block);
            rio->io.iov = &rio->iov;
            rio->io.iov_count = 1;
            rio->io.done = read_io_done;
            rio->group = &group;
            s->stats.read_blocks += rio->count;
            wgroup_add(&group, 1);
            disk_submit(s->disk, &rio->io);
        }
        if (n == 0)
            break;
        wgroup_wait(&group);
        for (unsigned i = 0; i < n; i++) {
            if (r == 0)
                r = ios[i].io.result;
            if (r == 0)
                r = verify(s, oid, first, m, &ios[i], buffer);
        }
    }
    if (ios != few)
        free(ios);
    return r;
}

static fiber_fn int map_read_guarded(struct store *s, const struct oid *oid, uint32_t first,
                                     const struct map *m, uint8_t *buffer)
{
    struct space_reader reader;
    int r;

    space_reader_begin(&s->space, &reader); /* R2 */
    r = map_read(s, oid, first, m, buffer);
    if (space_reader_end(&s->space, &reader))
        waitq_wake_all(&s->space_wait);
    return r;
}

/* Whole blocks [first, first + count) into an aligned buffer. */
static fiber_fn int read_blocks(struct store *s, const struct oid *oid, uint32_t first,
                                uint32_t count, uint8_t *buffer, struct version *ret_version)
{
    struct onode_reader reader = {NULL, false};
    struct onode *o;
    struct map m;
    int r = map_init(&m, count);

    if (r < 0)
        return r;
    do {
        r = s->failed ? -EIO : onode_get(s, oid, &reader, &o);
        if (r == 0)
            r = map_fill(s, o, first, &m);
        reader.again = r == -EAGAIN;
    } while (reader.again);
    if (r == -ENOENT)
        memset(buffer, 0, (size_t)count * STORE_BLOCK);
    if (r == 0)
        *ret_version = o->e->version;
    onode_reader_end(s, &reader);
    if (r == 0)
        r = map_read_guarded(s, oid, first, &m, buffer);
    map_done(&m);
    return r;
}

struct bounds {
    uint32_t first, count; /* blocks that hold the bytes asked for, within the object's limits */
    size_t skip, length;   /* where the bytes begin in them, and how many there are */
};

/* Cuts the range at the largest possible object; zeroes what is behind. */
static struct bounds bounds_of(uint64_t offset, size_t length, uint8_t *buffer)
{
    struct bounds b = {.length = length};

    if (offset >= STORE_OBJECT_SIZE_MAX)
        b.length = 0;
    else if (length > STORE_OBJECT_SIZE_MAX - offset)
        b.length = (size_t)(STORE_OBJECT_SIZE_MAX - offset);
    memset(buffer + b.length, 0, length - b.length);
    if (b.length > 0) {
        b.first = (uint32_t)(offset / STORE_BLOCK);
        b.skip = offset % STORE_BLOCK;
        b.count = (uint32_t)((b.skip + b.length + STORE_BLOCK - 1) / STORE_BLOCK);
    }
    return b;
}

static bool reads_in_place(const struct bounds *b, const void *buffer)
{
    return (((uintptr_t)buffer | b->skip | b->length) & (STORE_BLOCK - 1)) == 0;
}

static fiber_fn int do_read(struct store *s, const struct oid *oid, uint64_t offset, size_t length,
                            void *buffer, struct version *ret_version)
{
    struct bounds b = bounds_of(offset, length, buffer);
    struct version version = {0};
    int r;

    s->stats.reads++;
    if (b.count == 0) {
        const struct entry *e = onode_entry(&s->index, oid);
        r = e != NULL && e->state == ONODE_LIVE ? 0 : -ENOENT;
        version = r == 0 ? e->version : version;
    } else if (reads_in_place(&b, buffer)) {
        r = read_blocks(s, oid, b.first, b.count, buffer, &version);
    } else {
        uint8_t *bounce = aligned_alloc(STORE_BLOCK, (size_t)b.count * STORE_BLOCK);
        if (bounce == NULL)
            return -ENOMEM;
        r = read_blocks(s, oid, b.first, b.count, bounce, &version);
        if (r == 0 || r == -ENOENT)
            memcpy(buffer, bounce + b.skip, b.length);
        free(bounce);
    }
    if (ret_version != NULL && (r == 0 || r == -ENOENT))
        *ret_version = version;
    return r;
}

fiber_fn int store_read(struct store *s, const struct oid *oid, uint64_t offset, size_t length,
                        void *buffer, struct version *ret_version)
{
    store_enter(s);
    return store_leave(s, do_read(s, oid, offset, length, buffer, ret_version));
}

/* Takes the map of a whole object (m is initialised on success only). */
static fiber_fn int map_object(struct store *s, const struct oid *oid, struct map *m)
{
    struct onode_reader reader = {NULL, false};
    int r;

    do {
        struct onode *o;
        bool init = false;
        r = s->failed ? -EIO : onode_get(s, oid, &reader, &o);
        if (r == 0 && o->damaged) /* also when nothing at all is left of its map */
            r = -EUCLEAN;
        if (r == 0) {
            r = map_init(m, o->leaf_count * LEAF_ENTRIES);
            init = r == 0;
        }
        if (r == 0 && m->count > 0)
            r = map_fill(s, o, 0, m);
        if (r < 0 && init)
            map_done(m);
        reader.again = r == -EAGAIN;
    } while (reader.again);
    onode_reader_end(s, &reader);
    return r;
}

static fiber_fn int do_map(struct store *s, const struct oid *oid, uint64_t offset, uint64_t length,
                           void (*fn)(void *arg, uint64_t offset, uint64_t length, bool mapped),
                           void *arg)
{
    uint64_t end = offset + length, at = offset, run = offset;
    bool mapped = false;
    struct map m;
    int r;

    if (end < offset)
        return -EINVAL;
    r = map_object(s, oid, &m);
    if (r < 0)
        return r;
    while (at < end) {
        uint64_t block = at / STORE_BLOCK;
        bool here = block < m.count && m.blocks[block].block != 0;
        if (here != mapped && at > run) {
            fn(arg, run, at - run, mapped);
            run = at;
        }
        mapped = here;
        at = block < m.count ? MIN(end, (block + 1) * STORE_BLOCK) : end;
    }
    if (end > run)
        fn(arg, run, end - run, mapped);
    map_done(&m);
    return 0;
}

fiber_fn int store_map(struct store *s, const struct oid *oid, uint64_t offset, uint64_t length,
                       void (*fn)(void *arg, uint64_t offset, uint64_t length, bool mapped),
                       void *arg)
{
    store_enter(s);
    return store_leave(s, do_map(s, oid, offset, length, fn, arg));
}

/* --- pins --- */

struct store_pin {
    struct store *store;
    struct oid oid;
    struct space_reader reader;
    struct map map;
};

fiber_fn int store_pin(struct store *s, const struct oid *oid, struct store_pin **ret)
{
    struct store_pin *p = malloc(sizeof(*p));
    int r;

    if (p == NULL)
        return -ENOMEM;
    p->store = s;
    p->oid = *oid;
    r = map_object(s, oid, &p->map);
    if (r < 0) {
        free(p);
        return r;
    }
    space_reader_begin(&s->space, &p->reader);
    store_enter(s); /* until it is unpinned */
    *ret = p;
    return 0;
}

fiber_fn int store_pin_read(struct store_pin *p, uint64_t offset, size_t length, void *buffer)
{
    struct bounds b = bounds_of(offset, length, buffer);
    uint8_t *bounce = buffer;
    struct map m;
    int r;

    if (b.count == 0)
        return 0;
    r = map_init(&m, b.count);
    if (r < 0)
        return r;
    for (uint32_t k = 0; k < b.count; k++)
        m.blocks[k] =
            b.first + k < p->map.count ? p->map.blocks[b.first + k] : (struct block_ptr){0};
    if (!reads_in_place(&b, buffer))
        bounce = aligned_alloc(STORE_BLOCK, (size_t)b.count * STORE_BLOCK);
    if (bounce == NULL)
        r = -ENOMEM;
    else
        r = map_read(p->store, &p->oid, b.first, &m, bounce);
    if (bounce != buffer) {
        if (r == 0)
            memcpy(buffer, bounce + b.skip, b.length);
        free(bounce);
    }
    map_done(&m);
    return r;
}

void store_unpin(struct store_pin *p)
{
    struct store *s = p->store;

    if (space_reader_end(&s->space, &p->reader))
        waitq_wake_all(&s->space_wait);
    map_done(&p->map);
    free(p);
    (void)store_leave(s, 0);
}

/* --- sharing --- */

static uint32_t pinned_block(const struct store_pin *p, uint32_t i)
{
    return i < p->map.count ? p->map.blocks[i].block : 0;
}

/* The map of the first one is pinned while that of the second is read: a block that it names is not
 * given to anybody else meanwhile, so what both name is one block with one content. */
fiber_fn int store_relate(struct store *s, const struct oid *oid, const struct oid *base,
                          uint8_t *ret, uint32_t count, struct version *ret_version,
                          struct version *ret_base_version)
{
    struct store_pin *a, *b;
    struct store_stat st;
    int r = store_pin(s, oid, &a);

    if (r < 0)
        return r;
    store_stat(s, oid, &st); /* nothing has suspended since its map was read */
    *ret_version = st.version;
    r = store_pin(s, base, &b);
    if (r < 0) {
        store_unpin(a);
        return r;
    }
    store_stat(s, base, &st);
    *ret_base_version = st.version;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t x = pinned_block(a, i), y = pinned_block(b, i);
        ret[i] = x == y ? STORE_ALIKE : x != 0 ? STORE_OTHER : STORE_HOLE;
    }
    store_unpin(b);
    store_unpin(a);
    return 0;
}
