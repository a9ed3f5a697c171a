/* SPDX-License-Identifier: Apache-2.0 */
/* What follows "zookeeper:" in the name of a cluster store. Private to drivers/zookeeper*.c and
 * tests. */
#pragma once
#include <stdint.h>

#define ZK_SERVERS_SIZE 1024
#define ZK_ROOT_SIZE    256

struct zk_spec {
    char servers[ZK_SERVERS_SIZE]; /* "host:port,host:port" */
    char root[ZK_ROOT_SIZE];       /* "/kelpie": starts with '/', does not end in it */
    unsigned timeout_ms;
};

/* "HOST[:PORT],…[/PATH][?timeout=SECONDS]": port 2181, path /kelpie, 10 s when left out. -EINVAL:
 * *ret_why says what is wrong. */
int zk_spec_parse(const char *text, struct zk_spec *ret, const char **ret_why);
