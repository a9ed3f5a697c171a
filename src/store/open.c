/* SPDX-License-Identifier: Apache-2.0 */
/* Opening and closing. */
#define LOG_MODULE "store"
#include <stdio.h>
#include "base/err.h"
#include "base/log.h"
#include "store/store_internal.h"

#define RESERVE_BLOCKS_MIN 64u
#define RESERVE_BLOCKS_MAX (1u << 18) /* 1 GiB */
#define LOG_LEFT_AT_OPEN   16u        /* below: checkpoint before anything else */

static void refuse_version(const struct store *s)
{
    const struct super *sb = &s->super;

    if (sb->version != LAYOUT_VERSION)
        log_error("%s has format version %u, this program knows version %u: serve it with the "
                  "version that made it",
                  s->disk->name, sb->version, LAYOUT_VERSION);
    else
        log_error("%s has features that this version does not know (incompat 0x%llx): serve it "
                  "with the version that made it",
                  s->disk->name, (unsigned long long)(sb->incompat & ~LAYOUT_INCOMPAT));
}

static fiber_fn int read_super(struct store *s)
{
    unsigned bad;
    int r = super_read(s->disk, &s->super, &s->super_slot, &bad);

    if (r == -EMEDIUMTYPE) {
        log_error("%s is not a Kelpie store; make one with: sheep format %s", s->disk->name,
                  s->disk->name);
    } else if (r == -EPROTO) {
        refuse_version(s);
    } else if (r == -EUCLEAN) {
        store_problem(s, 0, "both copies of the superblock are damaged");
    } else if (r == 0 && s->super.size > s->disk->size) {
        store_problem(s, s->disk->size / STORE_BLOCK,
                      "cut off here: the store has %llu bytes, file or device only %llu",
                      (unsigned long long)s->super.size, (unsigned long long)s->disk->size);
        r = -EUCLEAN;
    } else if (r == 0 && !s->read_only && (s->super.ro_compat & ~LAYOUT_RO_COMPAT)) {
        log_error("%s has features that this version can only read (ro-compat 0x%llx): serve it "
                  "with the version that made it",
                  s->disk->name, (unsigned long long)(s->super.ro_compat & ~LAYOUT_RO_COMPAT));
        r = -EPROTO;
    }
    if (r == 0 && bad != 0)
        store_problem(s, bad >> 1,
                      "a copy of the superblock is damaged or old; the other one is used");
    return r;
}

static int init_parts(struct store *s, const struct store_open_options *options)
{
    uint32_t blocks = s->super.block_count - s->super.data_first;
    int r = space_init(&s->space, s->super.data_first, blocks);

    if (r == 0) {
        ahead_init(s, options);
        discard_init(s, options);
    }
    s->scrub.slot = s->super.scrub_slot;
    s->scrub.tree = s->scrub.slot > 0 ? TREE_COUNT : 0; /* goes on among the objects */
    if (r == 0)
        r = share_init(&s->share, &s->pages, s->super.data_first, blocks);
    if (r == 0)
        r = commit_init(s);
    s->salt = layout_salt(&s->super.store);
    s->reserve = MIN(MAX(blocks / 100, RESERVE_BLOCKS_MIN), RESERVE_BLOCKS_MAX);
    return r;
}

/* After the replay: settles the tail of the log, so that what was dropped stays dropped. */
static fiber_fn int settle_log(struct store *s)
{
    int r = 0;

    if (s->inexact && !(s->super.flags & SUPER_INEXACT)) {
        fmutex_lock(&s->super_lock);
        struct super next = s->super;
        next.flags |= SUPER_INEXACT;
        r = super_write(s, &next);
        fmutex_unlock(&s->super_lock);
    }
    s->inexact = s->inexact || (s->super.flags & SUPER_INEXACT);
    if (r == 0 && s->log.sequence - s->log.tail + LOG_LEFT_AT_OPEN > s->super.log_count)
        r = ckpt_write(s);
    s->gathering->number = s->committed + 1;
    return r == 0 ? commit_write_empty(s) : r;
}

static int start_fibers(struct store *s)
{
    static const struct {
        const char *name;
        fiber_main *fn;
    } mains[] = {{"commit", commit_main}, {"pump", commit_pump}, {"checkpoint", ckpt_main},
                 {"ahead", ahead_main},   {"scrub", scrub_main}, {"discard", discard_main}};

    for (size_t i = 0; i < ARRAY_SIZE(mains); i++) {
        bool wanted = mains[i].fn == ahead_main     ? !s->ahead.off
                      : mains[i].fn == scrub_main   ? s->scrub.info.rate > 0
                      : mains[i].fn == discard_main ? !s->discard.off
                                                    : true;
        int r = wanted ? fiber_spawn(s->rt, mains[i].name, mains[i].fn, s) : 0;
        if (r < 0)
            return r;
        wgroup_add(&s->fibers, wanted);
    }
    return 0;
}

static fiber_fn void stop_fibers(struct store *s)
{
    s->mode = STORE_CLOSING;
    waitq_wake_all(&s->room);
    waitq_wake_all(&s->space_wait);
    waitq_wake_all(&s->commit_wait);
    waitq_wake_all(&s->pump_wait);
    waitq_wake_all(&s->ckpt_wait);
    waitq_wake_all(&s->ahead.wait);
    waitq_wake_all(&s->scrub.wait);
    waitq_wake_all(&s->discard.wait);
    wgroup_wait(&s->fibers);
    timer_cancel(&s->quiet); /* the committer's last commits may have armed it */
}

static void store_free(struct store *s)
{
    if (s->space.bits != NULL) {
        leaf_cache_done(s);
        commit_done(s);
    }
    onode_index_done(&s->index);
    tree_done(&s->bitmap);
    if (s->space.bits != NULL) {
        share_done(&s->share);
        space_done(&s->space);
    }
    u32vec_done(&s->freed);
    u32vec_done(&s->stale);
    free(s->runs);
    page_pool_done(&s->pages);
    if (s->disk != NULL)
        disk_close(s->disk);
    free(s);
}

static struct store *store_new(struct rt *rt, const struct store_open_options *options)
{
    struct store *s = calloc(1, sizeof(*s));

    if (s == NULL)
        return NULL;
    s->rt = rt;
    s->read_only = options->read_only;
    s->unsafe_no_flush = options->unsafe_no_flush;
    page_pool_init(&s->pages);
    leaf_cache_init(&s->cache, options->cache_bytes);
    tree_init(&s->bitmap, PAGE_BITMAP);
    fmutex_init(&s->super_lock);
    wgroup_init(&s->callers);
    wgroup_init(&s->fibers);
    list_init(&s->data_free);
    waitq_init(&s->commit_wait);
    waitq_init(&s->pump_wait);
    waitq_init(&s->room);
    waitq_init(&s->durable);
    waitq_init(&s->space_wait);
    waitq_init(&s->ckpt_wait);
    waitq_init(&s->ckpt_step);
    waitq_init(&s->ckpt_done);
    waitq_init(&s->ahead.wait);
    waitq_init(&s->scrub.wait);
    waitq_init(&s->discard.wait);
    s->scrub.info.rate = options->scrub_bytes_per_s;
    ckpt_init(s, options->checkpoint_items);
    timer_init(&s->quiet, rt, commit_quiet);
    onode_index_init(&s->index, &s->pages);
    return s;
}

/* The kernel lets go of a killed process's lock only after its I/O has ended, a moment after the
 * process. */
#define OPEN_BUSY_WAIT_NS (3 * NS_PER_S)
#define OPEN_BUSY_STEP_NS (20 * NS_PER_MS)

static fiber_fn int open_disk(struct store *s, const char *path)
{
    unsigned flags = DISK_OPEN_EXCLUSIVE | (s->read_only ? DISK_OPEN_READ_ONLY : 0);
    uint64_t end = clock_now(s->rt) + OPEN_BUSY_WAIT_NS;
    int r;

    while ((r = disk_open(s->rt, path, flags, 0, &s->disk)) == -EBUSY && clock_now(s->rt) < end) {
        int r_sleep = fiber_sleep(s->rt, OPEN_BUSY_STEP_NS);
        if (r_sleep < 0)
            return r_sleep;
    }
    if (r == -EBUSY)
        log_error("%s is in use by another process", path);
    else if (r < 0)
        log_error("cannot open %s: %s", path, err_text(r));
    if (r == 0)
        s->fua = s->disk->durability == DISK_FUA && !s->unsafe_no_flush;
    return r;
}

static fiber_fn int open_stages(struct store *s, const char *path,
                                const struct store_open_options *options)
{
    int r = open_disk(s, path);

    if (r == 0)
        r = read_super(s);
    if (r == 0)
        r = init_parts(s, options);
    if (r == 0)
        r = load_checkpoint(s);
    if (r == 0)
        r = replay_log(s);
    if (r < 0 || s->read_only)
        return r;
    /* G1: what was replayed may have been complete in the disk's cache only, if its writer was
     * killed; our first commit must not be there without it. */
    r = store_flush_disk(s);
    if (r == 0)
        r = ahead_at_open(s);
    if (r == 0)
        r = settle_log(s);
    return r == 0 ? start_fibers(s) : r;
}

/* Opens what is there up to before a commit (0: to the end). *ret_unfit: the commit that did not
 * fit, if that was what failed. */
static fiber_fn int open_up_to(struct rt *rt, const char *path,
                               const struct store_open_options *options, uint64_t commit_limit,
                               uint64_t *ret_unfit, struct store **ret, char *ret_problem)
{
    struct store *s = store_new(rt, options);
    int r;

    if (s == NULL)
        return -ENOMEM;
    s->commit_limit = commit_limit;
    r = open_stages(s, path, options);
    if (ret_problem != NULL)
        snprintf(ret_problem, sizeof(s->problem), "%s", s->problem);
    *ret_unfit = s->unfit_commit;
    if (r == 0) {
        *ret = s;
        return 0;
    }
    stop_fibers(s);
    store_free(s);
    return r;
}

fiber_fn int store_open_explain(struct rt *rt, const char *path,
                                const struct store_open_options *options, struct store **ret,
                                char *ret_problem)
{
    static const struct store_open_options defaults;
    const struct store_open_options *o = options != NULL ? options : &defaults;
    struct store *s;
    uint64_t unfit;
    int r = open_up_to(rt, path, o, 0, &unfit, &s, ret_problem);

    if (r == -EUCLEAN && unfit != 0 && o->repair) {
        uint64_t limit = unfit;
        r = open_up_to(rt, path, o, limit, &unfit, &s, NULL);
    }
    if (r < 0)
        return r;
    if (s->unsafe_no_flush)
        log_warn("%s: flushes are off: a power cut loses answered writes", path);
    if (s->inexact)
        log_error(
            "%s: the log was damaged and answered changes may be lost; this node must compare "
            "with its peers",
            path);
    log_info("%s: opened, %llu objects, %u of %u blocks free", path,
             (unsigned long long)s->index.object_count, s->space.free_count, s->space.count);
    *ret = s;
    return 0;
}

fiber_fn int store_open(struct rt *rt, const char *path, const struct store_open_options *options,
                        struct store **ret)
{
    return store_open_explain(rt, path, options, ret, NULL);
}

fiber_fn int store_mark_exact(struct store *s)
{
    int r = store_check_writable(s);

    if (r < 0 || !s->inexact)
        return r;
    store_enter(s);
    fmutex_lock(&s->super_lock);
    struct super next = s->super;
    next.flags &= ~SUPER_INEXACT;
    r = super_write(s, &next);
    if (r == 0)
        s->inexact = false;
    fmutex_unlock(&s->super_lock);
    return store_leave(s, r);
}

fiber_fn int store_close(struct store *s)
{
    int r;

    stop_fibers(s); /* a read-only store has none */
    wgroup_wait(&s->callers);
    if (s->failed == 0 && !s->read_only)
        (void)ckpt_write(s);
    r = s->failed;
    store_free(s);
    return r;
}

fiber_fn int store_probe(struct store *s)
{
    if (s->failed)
        return s->failed;
    void *page = aligned_alloc(STORE_BLOCK, STORE_BLOCK);
    if (!page)
        return -ENOMEM;
    int r = disk_read(s->disk, 0, page, STORE_BLOCK);
    free(page);
    return r;
}
