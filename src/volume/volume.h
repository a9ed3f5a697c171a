/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Volumes: names, leases, index blocks, I/O, snapshots, clones, reclaim (refcount.md,
 * replication.md L1-L6).
 *
 * V1 An own object of the working vid is the truth for its position, whatever the index says.
 * V2 Entry changes and the references they give up are one atomic write of the index block.
 * V5 Only the owner removes own objects of the working vid; only ledgers remove what was ever
 * frozen. G1 Never early. G2 No leak. G4 A snapshot's content never changes.
 */
#pragma once
#include "object/object.h"

#define VOLUME_NAME_SIZE         256 /* with the terminator; tags too */
#define VOLUME_ENTRIES_PER_BLOCK 4096u

struct volumes; /* the service of one node */
struct volume;  /* one open volume or snapshot */

struct volumes_options {
    uint32_t entries_per_block; /* 0: 4096; other values only in tests */
    uint64_t index_cache_bytes; /* clean leaves kept in memory, 0: 16 MiB */
};
fiber_fn int volumes_start(struct rt *rt, struct cluster *cluster, struct objects *objects,
                           const struct volumes_options *o, struct volumes **ret);
/* Clean-closes every open volume, then frees. */
fiber_fn void volumes_stop(struct volumes *vs);

/* Filled on errors by the calls below (may be NULL): what happened, to what, what to do; and, with
 * -EBUSY because another node owns the volume, the admin address of that node. */
struct volume_error {
    char text[400];
    char redirect[MAP_ADDRESS_SIZE];
    struct session owner; /* of that node; 0: none */
};

struct volume_create_options {
    const char
        *name; /* 1 to 255 bytes of printable UTF-8 without '/', '@', space or control characters */
    uint64_t size; /* bytes, 1 to 4096 * 4096 objects; kept to the byte, I/O is in 512-byte units or
                      finer */
    uint32_t object_size; /* 0: the pool's; power of two, 64 KiB to 64 MiB */
    const char *pool;     /* NULL: "default" */
};
/* Results: 0; -EEXIST, -ENOENT, -EINVAL, -ENAMETOOLONG, -EFBIG, -EBUSY (owned elsewhere, or in
 * use), -EAGAIN (not formatted yet), -ENOSPC, -ECANCELED. Each operation is durable when it
 * returns, and rolls forward if we die. */
fiber_fn int volume_create(struct volumes *vs, const struct volume_create_options *o,
                           struct volume_error *ret_error);
/* Deletes the working image; snapshots of that name stay until deleted themselves. -EBUSY while
 * open. */
fiber_fn int volume_delete(struct volumes *vs, const char *name, struct volume_error *ret_error);
fiber_fn int volume_delete_snapshot(struct volumes *vs, const char *name, const char *tag,
                                    struct volume_error *ret_error);
fiber_fn int volume_resize(struct volumes *vs, const char *name, uint64_t size,
                           struct volume_error *ret_error);
/* Works on an open volume too (guest writes pause for milliseconds; *ret_pause_ns, may be NULL).
 * Same tag again: the same request, 0. */
fiber_fn int volume_snapshot(struct volumes *vs, const char *name, const char *tag,
                             uint64_t *ret_pause_ns, struct volume_error *ret_error);
fiber_fn int volume_clone(struct volumes *vs, const char *source, const char *tag, const char *name,
                          struct volume_error *ret_error);
/* -EBUSY while the volume is open. */
fiber_fn int volume_rollback(struct volumes *vs, const char *name, const char *tag,
                             struct volume_error *ret_error);

/* One working volume (tag empty) or snapshot. */
struct volume_info {
    char name[VOLUME_NAME_SIZE], tag[VOLUME_NAME_SIZE];
    char parent_name[VOLUME_NAME_SIZE], parent_tag[VOLUME_NAME_SIZE]; /* of a clone, else empty */
    char pool[MAP_NAME_SIZE];
    uint64_t volume;            /* id */
    struct vid vid, parent_vid; /* parent_vid: the image it was copied from, 0 none */
    uint32_t snapshot_number;   /* 1, 2 … in order of time; the working image has the highest */
    uint64_t size;
    uint32_t object_size;
    uint8_t copies;
    uint64_t created_wall_ns;
    uint64_t root_copies;
    int owner_node; /* number of the node that has it open for writing, -1 none */
    bool clean;
    bool working;
};
/* All, or those of one name: sorted by name, then time. *ret is malloc'ed. */
fiber_fn int volume_list(struct volumes *vs, const char *name_or_null, struct volume_info **ret,
                         size_t *ret_count);
/* Objects that the image's index refers to: own (written by this very vid) and shared. */
struct volume_usage {
    uint64_t own_objects, shared_objects, index_blocks;
};
fiber_fn int volume_usage(struct volumes *vs, const char *name, const char *tag_or_null,
                          struct volume_usage *ret, struct volume_error *ret_error);

/* --- open and I/O --- */
enum volume_open_flags {
    VOLUME_READ_ONLY = 1,
    /* What another node owns is not refused: the handle forwards its requests to that node (L4),
     * and becomes the owner when that one dies or has no use for it any more. Its users see no more
     * than a pause. */
    VOLUME_FORWARD = 2,
};
/* Opens the working image (tag NULL or empty: takes the lease, after fencing and reconciling if it
 * was left unclean; a second open on this node shares it) or a snapshot (read-only, always).
 * Lock-free readers of a working image share the lease too. Returned reference is owned. */
fiber_fn int volume_open(struct volumes *vs, const char *name, const char *tag, unsigned flags,
                         struct volume **ret, struct volume_error *ret_error);
/* Drops the reference; the last one closes cleanly (settle, publish S, clean = yes). */
fiber_fn void volume_close(struct volume *v);
uint64_t volume_size(const struct volume *v);
uint32_t volume_object_size(const struct volume *v);
bool volume_is_read_only(const struct volume *v);
/* Another node owned the volume when the handle was opened, wherever it is owned by now. */
bool volume_began_elsewhere(const struct volume *v);
const char *volume_name(const struct volume *v);
/* All: 0; -EINVAL beyond the end (callers check first), -EROFS, -ENOSPC, -EUCLEAN, -EIO,
 * -ECANCELED. Byte granular. */
fiber_fn int volume_read(struct volume *v, uint64_t offset, uint32_t length, void *buffer);
/* Durable on all replicas when it returns. `buffer` is best from buf_get() with aligned content. */
fiber_fn int volume_write(struct volume *v, uint64_t offset, uint32_t length, const void *buffer);
/* What was answered is durable, so this only waits for writes that were accepted before the call.
 */
fiber_fn int volume_flush(struct volume *v);
enum volume_zero_flags { VOLUME_ZERO_NO_HOLE = 1 }; /* keep allocated */
fiber_fn int volume_zero(struct volume *v, uint64_t offset, uint64_t length, unsigned flags);
/* Whole blocks inside the range are freed and read as zeros; ragged ends are left. */
fiber_fn int volume_discard(struct volume *v, uint64_t offset, uint64_t length);
/* Allocation map as ascending runs that cover the range; stops after `runs_max` runs (0: no limit).
 */
struct volume_run {
    uint64_t offset, length;
    bool mapped; /* false: reads as zeros, uses no space */
};
fiber_fn int volume_map(struct volume *v, uint64_t offset, uint64_t length, unsigned runs_max,
                        struct volume_run **ret, size_t *ret_count);

/* --- check --- */
struct volume_check_report {
    uint64_t volumes, snapshots, objects_reachable, objects_stored, replicas_compared, ledgers;
    uint64_t findings;
    bool at_rest;    /* nothing pending, owed, dying or unclean was met */
    uint64_t strays; /* objects on nodes that do not hold their group any more; they go */
};
/* `dog cluster check`: walks every record down to the data, takes every node's inventory, compares
 * reachable with stored, each ledger with the exact one, and the versions of all replicas; each
 * finding is given to report(). What is in flight is not reported as a fault. */
fiber_fn int volume_check(struct volumes *vs, void (*report)(void *arg, const char *finding),
                          void *arg, struct volume_check_report *ret);
/* Background work left: owed entries, trash records, dying blocks, for `dog cluster info`. */
struct volume_backlog {
    uint64_t trash, pending, open, unclean;
};
fiber_fn int volume_backlog(struct volumes *vs, struct volume_backlog *ret);
