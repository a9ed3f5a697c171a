/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The object store on one disk: oid -> {version, blocks, meta}. FORMAT.md has the bytes.
 *
 * S1 After a crash at any point, the state equals the state after some prefix of the commits that
 *    contains every answered request.
 * S2 A block is free, or owned exactly as often as its share count says.
 * S3 No block is reused before the change that freed it is durable, nor while a read, pin or
 * discard begun before the freeing is running. S4 A write is atomic per object, whatever its size.
 * S5 Bad input is refused or repaired with a message that names file and offset; never a crash.
 */
#pragma once
#include "base/codec.h"
#include "base/ids.h"
#include "rt/rt.h"

#define STORE_BLOCK            4096u
#define STORE_META_SIZE_MAX    4096u
#define STORE_OBJECT_SIZE_MAX  (64u << 20)
#define STORE_EXTENT_COUNT_MAX 16u

struct store;

/* --- format, open, close, check --- */
struct store_format_options {
    struct uuid store_uuid; /* null: made from rt_random */
    uint64_t size;          /* bytes; 0: the whole device or existing file */
    bool overwrite;         /* replace a store, file system or data found there */
    uint64_t log_bytes;     /* 0: chosen by size */
    /* Files only: */
    bool sparse; /* take no space from the file system before it is needed */
    uint64_t
        zero_bytes; /* written at once, behind superblock and log; 0: 256 MiB, UINT64_MAX: all */
};
/* Makes an empty store. A file is created if it does not exist. It gets all its space from the file
 * system (unless `sparse`), of which only the begin is written, so that formatting is quick; the
 * store writes the rest ahead of its allocator. progress may be NULL. -EEXIST: something is there
 * and overwrite is not set; -ENOSPC / -EINVAL: too small (the log says the minimum). */
fiber_fn int store_format(struct rt *rt, const char *path,
                          const struct store_format_options *options,
                          void (*progress)(void *arg, uint64_t done, uint64_t total), void *arg);

struct store_open_options {
    uint64_t cache_bytes; /* budget for object records, 0: 16 MiB */
    bool read_only;       /* replays in memory, writes nothing */
    bool unsafe_no_flush;
    unsigned checkpoint_items; /* what the last, undivided step of a checkpoint is made to find at
                                  most; 0: 256. Smaller: for tests */
    /* Files only: */
    uint64_t zero_ahead_bytes; /* kept written ahead of the allocator, 0: 256 MiB */
    bool no_zero_ahead;        /* for measurements: writes meet unwritten blocks */
    bool no_discard;           /* devices: keep freed space, though the device could take it back */
    unsigned discard_batch_ms; /* how long freed space gathers, 0: 5000 */
    uint64_t scrub_bytes_per_s; /* in the background, 0: no scrub */
    bool repair;                /* by store_repair(): a log that does not fit is cut off there */
};
/* Opens, replays the log, and writes a commit over the dropped tail. -EBUSY: another process has
 * it; -EMEDIUMTYPE: not a store; -EPROTO: unknown format or feature; -EUCLEAN: damaged beyond
 * replay. */
fiber_fn int store_open(struct rt *rt, const char *path, const struct store_open_options *options,
                        struct store **ret);
/* Finishes what is in flight, checkpoints, closes, frees. */
fiber_fn int store_close(struct store *s);

/* uuid of this store (the node's id), and of the cluster it was admitted to (null: none yet). */
void store_ids(const struct store *s, struct uuid *ret_store, struct uuid *ret_cluster);
/* Binds the store to a cluster, durably. -EMEDIUMTYPE if bound to another one already. */
fiber_fn int store_set_cluster(struct store *s, const struct uuid *cluster);
/* True when the log tail was damaged: the node has to leave in_sync everywhere and compare. */
bool store_is_inexact(const struct store *s);
/* The node has compared everything: durably not inexact any more. 0, or an error: it stays. */
fiber_fn int store_mark_exact(struct store *s);
/* 0, or the error after which the store stopped serving (a failed flush or log write is final). */
int store_failed(const struct store *s);
/* Reads a block of the disk, past all caches: 0 when the disk answers, or the error. Hangs as long
 * as it does. */
fiber_fn int store_probe(struct store *s);

struct store_check_report {
    uint64_t object_count, tombstone_count, block_count, free_block_count, shared_block_count;
    uint64_t structure_block_count; /* of block_count: all that is not data */
    uint64_t extra_user_count;      /* sum of (users - 1) over the shared ones */
    uint64_t error_count, checked_data_blocks;
};
/* Proves S2 from disk alone and, with `read_data`, every checksum. Each finding is given to
 * report(). Returns 0 (look at error_count), or an error when it could not even be read. */
fiber_fn int store_check(struct rt *rt, const char *path, bool read_data,
                         void (*report)(void *arg, const char *finding), void *arg,
                         struct store_check_report *ret);

struct store_repair_report {
    uint64_t found_count;           /* damages, before the repair */
    bool inexact;                   /* the node has to compare with its peers */
    struct store_check_report left; /* of the check after it */
};
/* Mends what the store itself knows: a copy of the superblock, free-space bitmap and share counts,
 * the log's end; drops records and maps that cannot be read, so that the layer above replaces the
 * objects. Data without its right checksum stays as it is. Tells each damage, each thing done and
 * what is left by report(). Returns 0, -EBUSY, -EPROTO, -ENOSPC (nothing has changed), -EIO. */
fiber_fn int store_repair(struct rt *rt, const char *path, bool read_data,
                          void (*report)(void *arg, const char *line), void *arg,
                          struct store_repair_report *ret);

#define STORE_TRIM_KEEPS (256ull << 20) /* what zeroing ahead would write at once */
/* Gives the free space of a store that nobody serves back: of a device to what is below it, of a
 * file to its file system, all but `keep_bytes` (STORE_TRIM_KEEPS). The file is sparse then, and
 * the store zeroes what it needs again. Errors as store_open(), -EIO. */
fiber_fn int store_trim(struct rt *rt, const char *path, uint64_t keep_bytes, uint64_t *ret_bytes);

/* --- changes --- */
/* A byte range within an object. */
struct store_extent {
    uint32_t offset, length;
};

enum store_change_kind {
    STORE_WRITE, /* write data at extents; creates the object when it does not exist */
    STORE_CLONE, /* make `oid` (must not exist) share all blocks of `source`, then write extents
                    (may be none); meta is not copied */
    STORE_PUNCH, /* extents read as zeros afterwards, their whole blocks are freed; the object stays
                    (versioned, readable as zeros); creates it when it does not exist */
    STORE_REMOVE,  /* remove the object, leave a tombstone with version `next` */
    STORE_INSTALL, /* repair: the object becomes exactly this content at version `next`: its
                      extents, of which all-zero 4 KiB blocks become holes, and holes everywhere
                      else; `prev` is compared exactly (0: absent or any tombstone); meta is kept;
                      may be far larger than a write (up to the object size in one call) */
};

/* `prev` values with a meaning of their own. */
#define STORE_PREV_NONE ((struct version){0}) /* absent, or a tombstone older than `next` */
#define STORE_PREV_OLDER_TERM                                                                      \
    ((struct version){UINT64_MAX}) /* absent, or any version of an older term                      \
                                       than that of `next` (W7) */

struct store_change {
    enum store_change_kind kind;
    struct oid oid;
    struct oid source;                  /* STORE_CLONE */
    struct version prev, next;          /* next > 0 */
    const struct store_extent *extents; /* ascending, not overlapping, in any byte alignment */
    unsigned extent_count;
    /* Data of all extents, one after the other: sum of lengths bytes. Best when each piece is
     * 4096-aligned in memory for whole aligned blocks (written from where it lies); anything else
     * is copied. Must stay untouched until the call returns. NULL for STORE_PUNCH and STORE_REMOVE.
     */
    const struct iovec *iov;
    unsigned iov_count;
};

/*
 * Applies one change atomically and durably; many in flight at once share a commit (group commit).
 * Changes of one object are applied in the order of the calls. Returns
 *   0         durable. Also when next <= the object's version in the same term: done already (waits
 * until that is durable). For STORE_REMOVE also when the object is absent. -ESTALE   the object is
 * not at `prev`; *ret_current (may be NULL) is where it is (0 absent) -ENOENT   STORE_CLONE: source
 * is absent -ENOSPC   (never for STORE_REMOVE; for STORE_PUNCH only to make a record, or to copy a
 * shared block of which a part is punched) -EUCLEAN  a block that had to be
 * merged with (partial write) does not match its checksum -EIO      the store has failed for good;
 * see store_failed()
 */
fiber_fn int store_apply(struct store *s, const struct store_change *c,
                         struct version *ret_current);

/* Sets the object's meta (0 to 4096 bytes; 0 bytes deletes it), durably, in order with the changes.
 * Object must exist: else -ENOENT. meta_version must be higher than the present one, else 0 if
 * equal, -ESTALE if lower. -ENOSPC only when metas longer than 40 bytes have used up the part of
 * the reserve that is theirs. */
fiber_fn int store_meta_put(struct store *s, const struct oid *oid, uint64_t meta_version,
                            const void *meta, size_t length);
/* As many as `count` meta changes and removals in one atomic commit (used for batches of reference
 * messages). removal: object is removed with tombstone version `next` whatever its present version.
 */
struct store_meta_change {
    struct oid oid;
    uint64_t meta_version;
    const void *meta;
    size_t length;
    bool remove;
    bool force;          /* whatever the present meta version: for a copy that follows another */
    struct version next; /* with remove: of the tombstone; 0 leaves none */
};
fiber_fn int store_meta_apply(struct store *s, const struct store_meta_change *changes,
                              unsigned count);

/* Drops tombstones of that vid with version <= stable. In memory at once, durable with a later
 * commit. */
void store_settle(struct store *s, struct vid vid, struct version stable);

/* --- reading: each sees every change whose call has returned, and maybe later ones --- */
struct store_stat {
    struct version version;   /* 0: absent (or tombstone) */
    struct version tombstone; /* version of the tombstone, 0 if none */
    uint64_t meta_version;
    uint32_t meta_length;
    uint32_t block_count; /* blocks mapped (own and shared) */
    uint32_t end;         /* bytes: end of the last mapped block */
};
/* 0 always; an absent object has version 0. Does not suspend. */
void store_stat(struct store *s, const struct oid *oid, struct store_stat *ret);
/* Reads [offset, offset + length) as it is at one version; holes and the range past the end are
 * zeros. `buffer` best 4096-aligned with offset and length multiples of 4096 (read in place).
 * *ret_version (may be NULL): the version read; 0 and zeros with -ENOENT if the object is absent.
 * -EUCLEAN: checksum. */
fiber_fn int store_read(struct store *s, const struct oid *oid, uint64_t offset, size_t length,
                        void *buffer, struct version *ret_version);
/* Reads meta into buffer[STORE_META_SIZE_MAX]. 0 and *ret_length (0: no meta), -ENOENT, -EUCLEAN.
 */
fiber_fn int store_meta_get(struct store *s, const struct oid *oid, void *buffer,
                            size_t *ret_length, uint64_t *ret_meta_version);
/* Which parts of [offset, offset+length) are mapped, as alternating runs. Calls fn for each run. */
fiber_fn int store_map(struct store *s, const struct oid *oid, uint64_t offset, uint64_t length,
                       void (*fn)(void *arg, uint64_t offset, uint64_t length, bool mapped),
                       void *arg);

struct store_entry {
    struct oid oid;
    struct version version; /* of the object, or of the tombstone */
    uint64_t meta_version;
    bool tombstone;
};
struct store_filter {
    bool by_vid, by_group;
    struct vid vid;
    uint16_t group;
    struct version above; /* only entries with version > above */
};
/* All matching entries, sorted by oid_compare, tombstones too. *ret is malloc'ed, owned by the
 * caller. Does not suspend for long. */
int store_list(struct store *s, const struct store_filter *filter, struct store_entry **ret,
               size_t *ret_count);
/* Order-independent digest of (oid, version, meta version) over a group's objects, tombstones not
 * counted. */
uint64_t store_digest(const struct store *s, uint16_t group);

/* A pinned object's present content stays readable through the pin while it changes or is removed.
 */
struct store_pin;
fiber_fn int store_pin(struct store *s, const struct oid *oid, struct store_pin **ret);
fiber_fn int store_pin_read(struct store_pin *p, uint64_t offset, size_t length, void *buffer);
void store_unpin(struct store_pin *p);

/* How the blocks of `oid` relate to those of `base` at the same places. */
enum store_relation {
    STORE_ALIKE, /* the same block on this disk, or a hole in both */
    STORE_OTHER, /* a block of its own */
    STORE_HOLE,  /* a hole, where base has a block */
};
/* Fills ret[0 … count), one byte per block; what lies behind both ends is ALIKE. Both are looked at
 * as they are at one version each. 0, -ENOENT: one of them is absent; or an error of reading a map.
 */
fiber_fn int store_relate(struct store *s, const struct oid *oid, const struct oid *base,
                          uint8_t *ret, uint32_t count, struct version *ret_version,
                          struct version *ret_base_version);

/* Where the blocks for objects are. At any moment, exactly:
 *   size = data + records + pending + unreachable + reserve + free. */
struct store_usage {
    uint64_t size_bytes;    /* for objects: without superblock and log */
    uint64_t used_bytes;    /* data + records: blocks owned, each once */
    uint64_t data_bytes;    /* blocks of objects, each once however many share it */
    uint64_t record_bytes;  /* maps, metas, index, bitmap, share counts, as of the last checkpoint:
                               what has replaced them since is only in memory and in the log */
    uint64_t pending_bytes; /* taken by changes and checkpoints under way; freed, but still read or
                               pinned; being zeroed or discarded */
    uint64_t unreachable_bytes; /* beyond what a sparse file could get from a full file system */
    uint64_t reserve_bytes;     /* kept for removal, punch, meta and checkpoints */
    uint64_t free_bytes;        /* what data may still allocate */
    uint64_t shared_bytes;      /* data saved by sharing: sum of (users - 1) over all blocks */
    uint64_t log_bytes;         /* the ring, all of it; not part of size */
    uint64_t object_count, tombstone_count;
};
void store_usage(const struct store *s, struct store_usage *ret);

struct store_stats {
    uint64_t changes, commits, log_blocks, data_blocks_written, flushes, checkpoints, reads,
        read_blocks, checksum_errors, zeroed_blocks, discarded_blocks;
    uint64_t checkpoint_blocks; /* written by checkpoints */
    uint64_t checkpoint_passes; /* ahead of their last steps */
    /* the most that a checkpoint did without letting requests go on */
    uint64_t checkpoint_step_ns_max, checkpoint_step_items_max;
    uint64_t record_loads; /* object records that were not in memory */
    uint64_t cached_bytes; /* now: records, maps, index pages and share counts in memory */
};
void store_stats(const struct store *s, struct store_stats *ret);

/* Reads and verifies what comes next, about `bytes` of it, as it lies on disk: superblock, arrays,
 * maps, metas, data. *ret_bytes read, *ret_errors found, each of which is logged; ends early at the
 * end of a pass, and the next call begins another one. Structure that is good in memory is written
 * anew; bad data waits for the layer above, which gets -EUCLEAN when it reads. */
fiber_fn int store_scrub_step(struct store *s, uint64_t bytes, uint64_t *ret_bytes,
                              uint64_t *ret_errors);
/* Of all scrubbing since the store was opened. */
struct store_scrub_info {
    uint64_t rate; /* bytes per second in the background, 0: none */
    uint64_t passes, bytes, objects;
    uint64_t errors, mended; /* findings; of them structure that was good in memory */
    char last[160];          /* the last finding, "" none */
};
void store_scrub_info(const struct store *s, struct store_scrub_info *ret);
