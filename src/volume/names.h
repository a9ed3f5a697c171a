/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of volumes and tags, and the keys that stand for them in the cluster store. Pure functions.
 *
 * M1 Different names have different keys, but for names so long that their key ends in a hash: the
 * record holds the whole name and is compared.
 */
#pragma once
#include "cluster/driver.h"
#include "volume/volume.h"

#define VOLUME_PREFIX "volume/"
#define TRASH_PREFIX  "trash/"
#define USE_PREFIX    "use/"

/* Checks a volume's name or a tag: 0; -ENAMETOOLONG; -EINVAL: empty, not UTF-8, or with a character
 * that is not allowed. *ret_why (may be NULL) is a literal for people. */
int name_check(const char *name, const char **ret_why);
void name_key(const char *name, char out[CS_KEY_SIZE]);
void trash_key(struct vid vid, char out[CS_KEY_SIZE]);
void use_key(struct vid vid, struct session session, char out[CS_KEY_SIZE]);
/* "use/VID/": the prefix of all sessions that use the image. */
void use_prefix(struct vid vid, char out[CS_KEY_SIZE]);
