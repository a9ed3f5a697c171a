/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the cluster store knows of volumes: one record per name, one per image in the trash. Values
 * and their codec; nothing here suspends. FORMAT.md has the bytes.
 *
 * N1 A vid and a volume id are given out once, for ever.
 * N2 Copies of a root are counted here, in the same transaction that makes the copy pending.
 * N3 The lease is held by a node *and* a session; whoever changes it adds one to the term.
 */
#pragma once
#include "cluster/map.h"
#include "volume/volume.h"

#define RECORD_NAME_MAX     (VOLUME_NAME_SIZE - 1)
#define RECORD_SNAPSHOT_MAX 65535u
#define RECORD_VALUE_MAX    (900u << 10) /* below CS_VALUE_MAX, with room for the other keys */
#define RECORD_TERM_MAX     ((1ULL << 24) - 1)

/* One image in time. */
struct image {
    struct vid vid;    /* 0: none */
    struct vid parent; /* it began as a copy of that one, 0 none */
    uint64_t family;   /* places its objects, with oid_group() */
    uint32_t group_base, group_count;
    uint16_t pool;
    uint32_t object_size; /* bytes, a power of two */
    uint32_t entries;     /* entries of an index block */
    uint64_t size;        /* bytes */
    uint64_t created_wall_ns;
    uint64_t root_copies; /* N2 */
    uint32_t number;      /* 1, 2 … within the name, in order of time */
};

struct record_lease {
    struct uuid node;
    struct session session; /* 0: never opened */
    struct term term;
    uint64_t map_version; /* a map that lists the session is at least this new; after a
                             clean close also: the last changes were made under it */
    bool clean;
};

enum record_pending_kind {
    PENDING_NONE,
    PENDING_CREATE,   /* the working image's root is being written */
    PENDING_SNAPSHOT, /* `image` becomes the working image, the present one the snapshot `tag` */
    PENDING_CLONE, /* the working image's root is being copied from `source` of the name `name` */
    PENDING_ROLLBACK, /* `image`, copied from the own snapshot `source`, replaces the working image
                       */
    PENDING_KIND_COUNT,
};
struct record_pending {
    enum record_pending_kind kind;
    struct image image;
    struct vid source;
    char name[VOLUME_NAME_SIZE];
    char tag[VOLUME_NAME_SIZE];
};

enum record_snapshot_state { SNAPSHOT_LIVE, SNAPSHOT_DELETING, SNAPSHOT_STATE_COUNT };
struct record_snapshot {
    struct image image;
    enum record_snapshot_state
        state; /* deleting: refuses openers while `use` keys are looked for */
    char *tag; /* owned */
};

/* A snapshot of this name is the source of a pending clone: it must not be deleted. */
struct record_pin {
    struct vid source, target;
    char *name; /* of the target's record; owned */
};

struct record {
    char name[VOLUME_NAME_SIZE];
    uint64_t volume;      /* id of the working image's line; its owner's stamps carry it */
    struct image working; /* vid 0: deleted, snapshots remain */
    struct record_lease lease;
    struct version stable; /* S (V6) */
    uint32_t number_next;
    struct record_pending pending;
    unsigned snapshot_count, pin_count;
    struct record_snapshot *snapshots; /* in order of time; owned */
    struct record_pin *pins;           /* owned */
};

void record_init(struct record *r);
void record_done(struct record *r);
void record_encode(const struct record *r, struct enc *e);
/* *ret is initialised on success only. -EBADMSG, -EPROTO (newer version), -ENOMEM. */
int record_decode(const void *p, size_t length, struct record *ret);

/* NULL when there is none of that tag (or vid). Borrowed. */
struct record_snapshot *record_snapshot_by_tag(const struct record *r, const char *tag);
struct record_snapshot *record_snapshot_by_vid(const struct record *r, struct vid vid);
/* Takes nothing, copies `tag`. -ENOMEM, -EFBIG. */
int record_snapshot_add(struct record *r, const struct image *image, const char *tag);
void record_snapshot_remove(struct record *r, struct record_snapshot *s);
int record_pin_add(struct record *r, struct vid source, struct vid target, const char *name);
/* Does nothing when there is no such pin. */
void record_pin_remove(struct record *r, struct vid target);
/* Why a snapshot must stay now: a pending rollback or clone is copying it. */
bool record_is_pinned(const struct record *r, struct vid vid);
/* True when nothing is left that the record would be kept for. */
static inline bool record_is_empty(const struct record *r)
{
    return r->working.vid.value == 0 && r->snapshot_count == 0 && r->pending.kind == PENDING_NONE;
}

/* An image whose root is to be killed. */
struct trash {
    struct vid vid;
    uint64_t family;
    uint32_t group_base, group_count;
    uint64_t root_copies;
};
void trash_encode(const struct trash *t, struct enc *e);
int trash_decode(const void *p, size_t length, struct trash *ret);
struct trash trash_of(const struct image *i);

/* Oid of an object that the image wrote. */
static inline struct oid image_oid(const struct image *i, uint64_t vid, unsigned level,
                                   uint32_t index)
{
    return (struct oid){
        .vid = vid,
        .index = index,
        .kind = OBJECT_VOLUME,
        .level = (uint8_t)level,
        .group = oid_group(i->family, level, index, i->group_base, i->group_count),
    };
}
/* Data objects that the image's size covers. */
static inline uint64_t image_object_count(const struct image *i)
{
    return (i->size + i->object_size - 1) / i->object_size;
}
