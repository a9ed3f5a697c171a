/* SPDX-License-Identifier: Apache-2.0 */
/* Making an empty store. */
#define LOG_MODULE "store"
#include "base/err.h"
#include "base/log.h"
#include "store/store_internal.h"

#define PROBE_BYTES  (1u << 20)
#define ZERO_BYTES   (1u << 20)
#define ZERO_DEFAULT (256ull << 20)

struct formatting {
    struct rt *rt;
    struct disk *disk;
    const char *path;
    const struct store_format_options *options;
    void (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
    uint8_t *buffer; /* ZERO_BYTES */
    struct super super;
};

static int plan(struct formatting *f, uint64_t size)
{
    uint64_t min = 0;
    int r = layout_plan(size, f->options->log_bytes, &f->super, &min);

    if (r == -ENOSPC)
        log_error("%s: %llu bytes are too small for a store, it takes at least %llu (%llu MiB)",
                  f->path, (unsigned long long)size, (unsigned long long)min,
                  (unsigned long long)((min + (1 << 20) - 1) >> 20));
    else if (r == -EINVAL)
        log_error("%s: the log must have at least %u bytes", f->path,
                  LAYOUT_LOG_COUNT_MIN * STORE_BLOCK);
    else if (r == -EFBIG)
        log_error("%s: a store has at most 16 TiB; name a smaller size", f->path);
    return r;
}

static void refuse_space(const struct formatting *f)
{
    log_error(
        "%s: its file system has no room for %llu MiB (a sparse store takes only what it needs)",
        f->path, (unsigned long long)(f->super.size >> 20));
}

static int open_or_create(struct formatting *f)
{
    uint64_t size = f->options->size;
    int r = disk_open(f->rt, f->path, DISK_OPEN_EXCLUSIVE, 0, &f->disk);

    if (r == -ENOENT) {
        if (size == 0) {
            log_error("%s does not exist; name a size to create it", f->path);
            return -ENOENT;
        }
        r = plan(f, size); /* before a file is made for nothing */
        if (r < 0)
            return r;
        r = disk_open(f->rt, f->path,
                      DISK_OPEN_CREATE | DISK_OPEN_EXCLUSIVE |
                          (f->options->sparse ? 0 : DISK_OPEN_ALLOCATE),
                      f->super.size, &f->disk);
        if (r == -ENOSPC)
            refuse_space(f);
        else if (r < 0)
            log_error("cannot create %s: %s", f->path, err_text(r));
        return r;
    }
    if (r == -EBUSY)
        log_error("%s is in use by another process", f->path);
    else if (r < 0)
        log_error("cannot open %s: %s", f->path, err_text(r));
    if (r < 0)
        return r;
    if (size > f->disk->size) {
        log_error("%s has only %llu bytes", f->path, (unsigned long long)f->disk->size);
        return -ENOSPC;
    }
    return plan(f, size != 0 ? size : f->disk->size);
}

/* Anything but zeros at the begin is somebody's data. */
static fiber_fn int refuse_content(struct formatting *f)
{
    size_t n = MIN(f->disk->size, (uint64_t)PROBE_BYTES);
    struct super sb;
    int r;

    if (f->options->overwrite)
        return 0;
    r = disk_read(f->disk, 0, f->buffer, n);
    if (r < 0)
        return r;
    if (super_decode(f->buffer, &sb) != -EMEDIUMTYPE ||
        super_decode(f->buffer + STORE_BLOCK, &sb) != -EMEDIUMTYPE) {
        log_error("%s holds a Kelpie store already; nothing was changed", f->path);
        return -EEXIST;
    }
    if (f->buffer[0] != 0 || memcmp(f->buffer, f->buffer + 1, n - 1) != 0) {
        log_error("%s is not empty (a file system or other data); nothing was changed", f->path);
        return -EEXIST;
    }
    return 0;
}

/* A store that is not sparse never finds its file system full later. */
static int allocate(struct formatting *f)
{
    int r = f->options->sparse ? 0 : disk_allocate(f->disk);

    if (r == -ENOSPC)
        refuse_space(f);
    return r;
}

/* Bytes of the data part that are written now. A file gets real zeros: the first write into blocks
 * that are only reserved would cost a journal commit of the file system each time. The store does
 * the rest while it serves. */
static uint64_t zero_now(struct formatting *f)
{
    uint64_t data = f->super.size - block_offset(f->super.data_first);
    uint64_t bytes = f->options->zero_bytes != 0 ? f->options->zero_bytes : ZERO_DEFAULT;

    f->super.compat |= LAYOUT_COMPAT_ZEROED;
    if (f->disk->kind != DISK_FILE) {
        f->super.zeroed = (uint32_t)(data / STORE_BLOCK);
        return 0;
    }
    bytes = MIN(ALIGN_DOWN(bytes, (uint64_t)STORE_BLOCK), data);
    f->super.zeroed = (uint32_t)(bytes / STORE_BLOCK);
    return bytes;
}

/* Old superblocks and log blocks must go. */
static fiber_fn int zero_all(struct formatting *f)
{
    uint64_t total = block_offset(f->super.data_first) + zero_now(f), done = 0;
    int r = 0;

    memset(f->buffer, 0, ZERO_BYTES);
    while (r == 0 && done < total) {
        size_t n = MIN(total - done, (uint64_t)ZERO_BYTES);
        r = disk_write(f->disk, done, f->buffer, n, 0);
        done += n;
        if (r == 0 && f->progress != NULL)
            f->progress(f->arg, done, total);
        if (r == 0 && rt_stopping(f->rt))
            r = -ECANCELED;
    }
    return r == 0 ? disk_flush(f->disk) : r;
}

static void choose_uuid(struct formatting *f)
{
    f->super.store = f->options->store_uuid;
    if (!uuid_is_null(&f->super.store))
        return;
    put_le64(f->super.store.bytes, rt_random(f->rt));
    put_le64(f->super.store.bytes + 8, rt_random(f->rt));
    f->super.store.bytes[6] = (uint8_t)((f->super.store.bytes[6] & 0x0f) | 0x40);
    f->super.store.bytes[8] = (uint8_t)((f->super.store.bytes[8] & 0x3f) | 0x80);
}

static fiber_fn int write_supers(struct formatting *f)
{
    int r = 0;

    choose_uuid(f);
    for (unsigned i = 0; r == 0 && i < LAYOUT_SUPER_COPIES; i++) {
        f->super.generation = i + 1;
        super_encode(&f->super, f->buffer);
        r = disk_write(f->disk, block_offset(i), f->buffer, STORE_BLOCK, 0);
    }
    return r == 0 ? disk_flush(f->disk) : r;
}

fiber_fn int store_format(struct rt *rt, const char *path,
                          const struct store_format_options *options,
                          void (*progress)(void *arg, uint64_t done, uint64_t total), void *arg)
{
    struct formatting f = {
        .rt = rt, .path = path, .options = options, .progress = progress, .arg = arg};
    int r;

    f.buffer = aligned_alloc(STORE_BLOCK, ZERO_BYTES);
    if (f.buffer == NULL)
        return -ENOMEM;
    r = open_or_create(&f);
    if (r == 0)
        r = refuse_content(&f);
    if (r == 0) {
        r = allocate(&f);
        if (r == 0)
            r = zero_all(&f);
        if (r == 0)
            r = write_supers(&f);
        if (r < 0)
            log_error("formatting %s failed: %s", path, err_text(r));
    }
    if (f.disk != NULL)
        disk_close(f.disk);
    free(f.buffer);
    return r;
}
