/* SPDX-License-Identifier: Apache-2.0 */
/* The visible table of cluster store drivers. */
#include "cluster/drivers/drivers.h"

const struct cs_driver cs_drivers[] = {
    {"local", local_cs_open, "local:/path/cluster.db: a file for all daemons of one machine"},
    {"zookeeper", zookeeper_cs_open,
     "zookeeper:HOST[:PORT],HOST…[/PATH][?timeout=SECONDS]: a ZooKeeper ensemble"},
    {NULL, NULL, NULL},
};
