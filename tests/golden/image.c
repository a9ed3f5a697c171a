/* SPDX-License-Identifier: Apache-2.0 */
/* See image.h. xz is Debian's program; it takes a child process, which only tests may have. */
#include "image.h"
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"

#define CHUNK          (1u << 20)
#define SIZE_MAX_IMAGE (1ull << 30)

uint64_t image_load(const char *path, uint8_t **ret)
{
    char command[512];
    uint8_t *bytes = NULL;
    uint64_t size = 0;
    size_t n;
    FILE *f;

    snprintf(command, sizeof(command), "xz -dc '%s'", path);
    f = popen(command, "r");
    ASSERT(f != NULL);
    do {
        bytes = realloc(bytes, size + CHUNK);
        ASSERT(bytes != NULL && size < SIZE_MAX_IMAGE);
        n = fread(bytes + size, 1, CHUNK, f);
        size += n;
    } while (n > 0);
    ASSERT(pclose(f) == 0 && size > 0);
    *ret = bytes;
    return size;
}

void image_save(const char *path, const uint8_t *bytes, uint64_t size)
{
    char command[512];
    FILE *f;

    snprintf(command, sizeof(command), "xz -9 -c > '%s'", path);
    f = popen(command, "w");
    ASSERT(f != NULL && fwrite(bytes, 1, size, f) == size && pclose(f) == 0);
}

fiber_fn void image_to_disk(struct sample *p, const uint8_t *bytes, uint64_t size)
{
    uint8_t *buffer = aligned_alloc(STORE_BLOCK, CHUNK);
    struct disk *d;

    ASSERT(buffer != NULL && disk_open(p->rt, SAMPLE_PATH, 0, 0, &d) == 0 && d->size == size);
    for (uint64_t at = 0; at < size; at += CHUNK) {
        size_t n = MIN(size - at, (uint64_t)CHUNK);
        memcpy(buffer, bytes + at, n);
        ASSERT(disk_write(d, at, buffer, n, 0) == 0);
    }
    ASSERT(disk_flush(d) == 0);
    disk_close(d);
    free(buffer);
}

struct mapped {
    uint32_t crc;
};

static void map_run(void *arg, uint64_t offset, uint64_t length, bool mapped)
{
    struct mapped *m = arg;
    uint8_t b[17];

    put_le64(b, offset);
    put_le64(b + 8, length);
    b[16] = mapped;
    m->crc = crc32c(m->crc, b, sizeof(b));
}

static fiber_fn void describe_object(struct store *s, const struct store_entry *e, FILE *out)
{
    uint8_t *buffer = aligned_alloc(STORE_BLOCK, CHUNK), meta[STORE_META_SIZE_MAX];
    struct store_stat stat;
    struct mapped map = {0};
    uint64_t meta_version = 0;
    size_t meta_length = 0;
    uint32_t crc = 0;

    ASSERT(buffer != NULL);
    store_stat(s, &e->oid, &stat);
    for (uint64_t at = 0; at < stat.end; at += CHUNK) {
        size_t n = MIN(stat.end - at, CHUNK);
        ASSERT(store_read(s, &e->oid, at, n, buffer, NULL) == 0);
        crc = crc32c(crc, buffer, n);
    }
    ASSERT(store_map(s, &e->oid, 0, STORE_OBJECT_SIZE_MAX, map_run, &map) == 0);
    ASSERT(store_meta_get(s, &e->oid, meta, &meta_length, &meta_version) == 0);
    ASSERT(meta_length == stat.meta_length && meta_version == stat.meta_version);
    fprintf(out, " end %u blocks %u content %08x map %08x meta %llu length %zu content %08x\n",
            stat.end, stat.block_count, crc, map.crc, (unsigned long long)meta_version, meta_length,
            crc32c(0, meta, meta_length));
    free(buffer);
}

fiber_fn void image_describe(struct store *s, FILE *out)
{
    struct store_filter all = {0};
    struct store_entry *entries;
    struct uuid store, cluster;
    char text[2][UUID_TEXT_SIZE];
    size_t count;

    store_ids(s, &store, &cluster);
    uuid_format(&store, text[0]);
    uuid_format(&cluster, text[1]);
    fprintf(out, "store %s cluster %s\n", text[0], text[1]);
    ASSERT(store_list(s, &all, &entries, &count) == 0);
    for (size_t i = 0; i < count; i++) {
        const struct store_entry *e = &entries[i];
        char name[OID_TEXT_SIZE];
        fprintf(out, "%s %s version %llx", e->tombstone ? "tombstone" : "object",
                oid_format(&e->oid, name), (unsigned long long)e->version.value);
        if (e->tombstone)
            fputc('\n', out);
        else
            describe_object(s, e, out);
    }
    free(entries);
    for (unsigned g = 0; g < 5; g++)
        fprintf(out, "group %u digest %016llx\n", g,
                (unsigned long long)store_digest(s, (uint16_t)g));
}
