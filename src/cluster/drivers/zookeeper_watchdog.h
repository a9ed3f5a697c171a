/* SPDX-License-Identifier: Apache-2.0 */
/* Ends the session of a node whose loop or disk hangs. Private to drivers/zookeeper*.c. */
#pragma once
#include "cluster/drivers/zookeeper_link.h"

struct zk_watchdog;
/* From now on, whenever zk_watchdog_pet() was not called for `timeout_ns`, the node `path` is
 * deleted by a thread of its own. *ret is owned. */
int zk_watchdog_start(struct zk_link *link, const char *path, uint64_t timeout_ns,
                      struct zk_watchdog **ret);
void zk_watchdog_pet(struct zk_watchdog *w);
/* Waits for the thread and frees. NULL is allowed. */
void zk_watchdog_stop(struct zk_watchdog *w);
