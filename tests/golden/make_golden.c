/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes the images of the present format version: make_golden FOLDER. Run once when a format
 * version is new, and the result is kept for ever (README.md).
 */
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "image.h"

#define SIZE      (24u << 20)
#define SIZE_WIDE (140u << 20) /* more than one bitmap page */

static const char *folder;

/* What a reader must find: told by a store opened on a copy of the image. */
static void describe_body(struct sample *p)
{
    struct store_open_options options = {.read_only = true};
    char path[512];
    FILE *f;

    snprintf(path, sizeof(path), "%s/now.txt", folder);
    f = fopen(path, "w");
    ASSERT(f != NULL && store_open(p->rt, SAMPLE_PATH, &options, &p->s) == 0);
    image_describe(p->s, f);
    ASSERT(fclose(f) == 0);
    sample_close(p);
}

/* Images of the same content share one text. */
static void keep(struct sample *p, const char *name, const char *text_name, uint64_t size)
{
    char path[512], from[512];

    snprintf(path, sizeof(path), "%s/%s.img.xz", folder, name);
    image_save(path, sim_disk_bytes(p->sim, SAMPLE_PATH), size);
    sample_do(p, describe_body);
    snprintf(from, sizeof(from), "%s/now.txt", folder);
    snprintf(path, sizeof(path), "%s/%s.txt", folder, text_name);
    ASSERT(rename(from, path) == 0);
}

static void clean_body(struct sample *p)
{
    sample_format(p);
    sample_open(p);
    sample_fill(p);
    sample_close(p);
}

/* Log blocks that are written before the change, so that it goes around the end of the ring. */
#define LOG_BLOCKS_BEFORE 353u

static void log_body(struct sample *p)
{
    struct oid oid = sample_oid(1, 60);

    sample_open(p);
    for (uint64_t i = 1; i <= LOG_BLOCKS_BEFORE; i++)
        ASSERT(store_meta_put(p->s, &oid, i, &i, sizeof(i)) == 0);
    sample_close(p);
    sample_open(p);
    sample_change(p);
    fiber_sleep(p->rt, 3 * NS_PER_S); /* the empty commit follows */
    sim_node_kill(p->sim, p->rt);
}

static void tail_body(struct sample *p)
{
    sample_open(p);
    sample_tail(p);
    sim_node_kill(p->sim, p->rt);
}

/* The data of the last commit did not get to the disk: its log block did. */
static void tear_tail(struct sample *p, uint64_t size)
{
    uint8_t *bytes = sim_disk_bytes(p->sim, SAMPLE_PATH), tail[STORE_BLOCK];
    unsigned hits = 0;

    memset(tail, SAMPLE_TAIL_FILL, sizeof(tail));
    for (uint64_t at = 0; at < size; at += STORE_BLOCK) {
        if (memcmp(bytes + at, tail, sizeof(tail)) == 0) {
            memset(bytes + at + 512, 0, 1024);
            hits++;
        }
    }
    ASSERT(hits == 1);
}

static void make(uint64_t size, bool wide)
{
    struct sample p;

    sample_init(&p, size);
    sample_do(&p, clean_body);
    if (wide) {
        keep(&p, "wide", "clean", size);
    } else {
        keep(&p, "clean", "clean", size);
        sample_do(&p, log_body);
        keep(&p, "log", "log", size);
        sample_do(&p, tail_body);
        tear_tail(&p, size);
        keep(&p, "tail", "log", size);
    }
    sample_done(&p);
}

int main(int argc, char **argv)
{
    log_level = LOG_WARN;
    if (argc != 2) {
        fprintf(stderr, "usage: make_golden FOLDER\n");
        return 64;
    }
    folder = argv[1];
    make(SIZE, false);
    make(SIZE_WIDE, true);
    return 0;
}
