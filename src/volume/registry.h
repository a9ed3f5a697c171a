/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading and changing records in the cluster store.
 *
 * Y1 Every change of a record is a compare-and-set on the revision that was read; when it loses,
 * the record is read and the edit decided again. So an edit function may run several times and must
 * recognise its own work (an outcome may be unknown). Y2 A record that nothing is left of is erased
 * in the same transaction.
 */
#pragma once
#include "volume/record.h"

#define REGISTRY_UNCHANGED 1 /* returned by an edit function: all is as wanted, write nothing */

/* What an edit function works on. */
struct registry_edit {
    struct record *record;
    bool exists;          /* false: record holds the name only */
    struct record *other; /* NULL, or the second one; may be the same as `record` */
    bool other_exists;
    unsigned trash_count; /* put with the same transaction */
    struct trash trash[2];
    struct vid use; /* a `use` key of this session to be made, 0 none */
};
/* Must not suspend. 0: commit; REGISTRY_UNCHANGED; or a negative error, returned as it is. */
typedef int registry_fn(void *arg, struct registry_edit *e);

/* 0, -ENOENT, -EBADMSG, -EPROTO, -EIO, -ECANCELED. *ret is the caller's to record_done(). */
fiber_fn int registry_get(struct cs *cs, const char *name, struct record *ret);
/* Edits the record of `name`, together with that of `other` unless NULL. Errors as above, those of
 * fn, -EFBIG. */
fiber_fn int registry_edit(struct cs *cs, const char *name, const char *other, registry_fn *fn,
                           void *arg);
/* All records, by key. The array and its records are the caller's: registry_list_free(). A record
 * that cannot be read is left out and counted in *ret_bad (may be NULL). */
fiber_fn int registry_list(struct cs *cs, struct record **ret, size_t *ret_count,
                           unsigned *ret_bad);
void registry_list_free(struct record *records, size_t count);
fiber_fn int registry_list_trash(struct cs *cs, struct trash **ret, size_t *ret_count);
fiber_fn int registry_erase_trash(struct cs *cs, struct vid vid);
/* Is a snapshot open anywhere? 1, 0 or an error. */
fiber_fn int registry_in_use(struct cs *cs, struct vid vid);
/* Takes this session's `use` key away. */
fiber_fn void registry_release(struct cs *cs, struct vid vid);
