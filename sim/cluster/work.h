/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guests: a random workload on volumes, with a model of what each image must read.
 *
 * G1 Users share an image; operations that need it for themselves (delete, roll back, resize) claim
 *    it. G2 After an operation whose outcome is unknown, its guest looks what became of it, on any
 *    node, before anybody else may claim the image.
 */
#pragma once
#include "sim/cluster/content.h"
#include "sim/cluster/world.h"

#define VOLUME_COUNT_MAX   4u
#define SNAPSHOT_COUNT_MAX 10u

enum work_kind {
    WORK_USE,
    WORK_CREATE,
    WORK_CLONE,
    WORK_DELETE,
    WORK_DELETE_SNAPSHOT,
    WORK_READ_SNAPSHOT,
    WORK_ROLLBACK,
    WORK_RESIZE,
    WORK_KIND_COUNT,
    /* during WORK_USE */
    WORK_SNAPSHOT = WORK_KIND_COUNT,
    WORK_READ,
    WORK_WRITE,
    WORK_ZERO,
    WORK_DISCARD,
    WORK_FLUSH,
    WORK_END,
};
static_assert(WORK_END <= 16, "struct plan has a weight for each");

struct snapshot_model {
    bool exists, claimed;
    unsigned users, volume;
    char tag[16];
    struct content content;
};

struct volume_model {
    bool exists, claimed;
    unsigned users;
    char name[8];
    struct content content;
    struct snapshot_model *taking; /* a snapshot that is being made, or may yet be */
};

struct work {
    struct world *w;
    uint64_t random, next_id, next_tag;
    uint64_t left; /* operations */
    struct volume_model volumes[VOLUME_COUNT_MAX];
    struct snapshot_model snapshots[SNAPSHOT_COUNT_MAX];
    struct process_view view;
};

/* Starts the guests; each counts in world.running until it has ended. */
void work_start(struct work *k, struct world *w);

/* --- shared with verify.c --- */
/* Opens on some node until that succeeds; only -ENOENT is returned instead. */
struct opened {
    struct node *node;
    uint64_t process;
    uint64_t carrier; /* process that carries changes out, or PROCESS_ANY */
    struct volume *volume;
    uint64_t size;
};
fiber_fn int work_open(struct work *k, const char *name, const char *tag, struct opened *ret);
/* One try on some node: 0 or an errno. */
fiber_fn int work_try_open(struct work *k, const char *name, struct opened *ret);
fiber_fn void work_close(struct opened *o);
/* Reads all of the image and checks it; false when the node died before the end. */
fiber_fn bool work_check_image(struct work *k, const struct opened *o, struct content *c,
                               const char *name, const char *tag);
/* All images, from some node. *ret is malloc'ed. */
fiber_fn void work_list(struct work *k, struct volume_info **ret, size_t *ret_count);
bool work_listed(const struct volume_info *list, size_t count, const char *name, const char *tag);
/* A node that is up, if there is one for a few tries. */
struct node *work_some_node(struct work *k);
fiber_fn void work_delete(struct work *k, struct volume_model *m);
fiber_fn void work_delete_snapshot(struct work *k, struct snapshot_model *s);
