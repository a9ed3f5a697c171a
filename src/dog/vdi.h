/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of `dog vdi` share. */
#pragma once
#include "dog/dog.h"

/* {"op": op, "name": first argument, "tag": -s, if given}. Owned. */
json_t *vdi_request(const struct dog *d, const char *op);
/* All images (of one name, unless NULL) as the array of "items" of vdi.list; owned. With `usage`,
 * with what each uses, asked from the owner where need be. NULL after a reported failure. */
enum vdi_detail { VDI_RECORDS, VDI_USAGE };
json_t *vdi_fetch(struct dog *d, const char *name, enum vdi_detail detail, int *ret_exit);

/* Verbs, one file per group. */
int vdi_run_list(struct dog *d);
int vdi_run_tree(struct dog *d);
int vdi_run_read(struct dog *d);
int vdi_run_write(struct dog *d);
int vdi_run_discard(struct dog *d);
