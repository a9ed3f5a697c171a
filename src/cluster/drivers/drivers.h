/* SPDX-License-Identifier: Apache-2.0 */
/* The openers that drivers.c lists. Everyone else finds them with cs_driver_find(). */
#pragma once
#include "cluster/driver.h"

/* `where`: path of the database, made when missing. Errors: see local_db_open(). */
fiber_fn int local_cs_open(struct rt *rt, const char *where, struct cs **ret);
/* `where`: "HOST[:PORT],…[/PATH][?timeout=SECONDS]"; waits until a server answers. Errors: -EINVAL,
 * -EPERM, -EMEDIUMTYPE (the path holds something else), -EPROTO, -EIO. */
fiber_fn int zookeeper_cs_open(struct rt *rt, const char *where, struct cs **ret);
