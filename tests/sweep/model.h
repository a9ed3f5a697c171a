/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a sweep does to a store, as a list of steps, and what the store must hold after any part of
 * that list.
 *
 * The model is a function of the steps and their outcomes alone: content is a pattern made of
 * actor, step and byte offset, versions are step numbers. So it can be built again after a crash,
 * also by another process than the one that ran.
 */
#pragma once
#include "store/store.h"

#define MODEL_OBJECTS 56u /* of one actor */
#define MODEL_BLOCKS  4096u
#define STEP_EXTENTS  4u

enum step_kind {
    STEP_WRITE,
    STEP_CLONE,
    STEP_PUNCH,
    STEP_REMOVE,
    STEP_INSTALL, /* every third block of the content is zeros */
    STEP_META,
    STEP_BATCH, /* metas for `count` objects from `object` on, then `removals` removals */
    STEP_SETTLE,
    STEP_READ,     /* compares the extent */
    STEP_PIN,      /* until STEP_UNPIN, or the store is closed */
    STEP_PIN_READ, /* the whole object must be as it was pinned */
    STEP_UNPIN,
    STEP_REOPEN, /* all actors meet here */
};

struct step {
    enum step_kind kind;
    unsigned object, source;
    struct store_extent extents[STEP_EXTENTS];
    unsigned extent_count;
    unsigned length; /* bytes of meta */
    unsigned count, removals;
    bool burst; /* the next step does not wait for the answer; only steps of one object */
};

/* How far a step has come. The store decides only between STARTED and DONE. */
enum outcome {
    OUTCOME_NONE,
    OUTCOME_STARTED,
    OUTCOME_DONE,    /* answered: it must be there */
    OUTCOME_REFUSED, /* answered with an error by a serving store: it must not */
};

struct model_object {
    bool exists;
    bool settled; /* its tombstone may be there or not */
    struct version version, tombstone;
    uint64_t meta_version; /* 0: no meta */
    unsigned meta_length;
    uint8_t **blocks; /* MODEL_BLOCKS, NULL: a hole; or NULL: all holes */
};

struct model {
    unsigned actor;
    struct model_object objects[MODEL_OBJECTS];
};

void model_init(struct model *m, unsigned actor);
void model_done(struct model *m);
/* The state after the step with this number. */
void model_apply(struct model *m, const struct step *step, unsigned number);
struct oid model_oid(unsigned actor, unsigned object);
struct version model_version(unsigned number);
/* The bytes that the step writes at [offset, offset + length). */
void model_content(unsigned actor, const struct step *step, unsigned number, uint32_t offset,
                   uint32_t length, uint8_t *out);
/* The meta that a step sets; its version is the step's number + 1. */
void model_meta(unsigned actor, uint64_t meta_version, unsigned length, uint8_t *out);
/* A copy of one object, to be ended with model_object_done(). */
struct model_object model_object_copy(const struct model_object *o);
void model_object_done(struct model_object *o);
/* True if the bytes are what the object holds at offset. */
bool model_equal(const struct model_object *o, uint64_t offset, size_t length,
                 const uint8_t *bytes);
/* Compares the whole actor with the store. NULL, or what differs (static text). */
fiber_fn const char *model_differs(const struct model *m, struct store *s);
/* Objects that the store should count. */
unsigned model_count(const struct model *m);
