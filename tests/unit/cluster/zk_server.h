/* SPDX-License-Identifier: Apache-2.0 */
/* Real ZooKeeper servers (Debian's), on free ports of loopback and in a directory of their own. */
#pragma once
#include <stdbool.h>
#include <sys/types.h>

#define ZK_SERVERS_MAX 3

struct zk_servers {
    char directory[64];
    unsigned count;
    unsigned ports[ZK_SERVERS_MAX], peer_ports[ZK_SERVERS_MAX], vote_ports[ZK_SERVERS_MAX];
    pid_t pids[ZK_SERVERS_MAX]; /* 0: does not run */
};

/* Makes the directory and starts `count` (1 or 3) servers; those die with this process. */
void zk_servers_start(struct zk_servers *s, unsigned count);
/* Kills and removes all. */
void zk_servers_done(struct zk_servers *s);
void zk_server_run(struct zk_servers *s, unsigned index);
/* SIGKILL and wait. */
void zk_server_kill(struct zk_servers *s, unsigned index);
void zk_server_signal(const struct zk_servers *s, unsigned index, int signal);
/* Waits until a client is served: the server is up, and part of a quorum. Blocks. */
void zk_server_wait(const struct zk_servers *s, unsigned index);
/* "127.0.0.1:PORT,…" of all. */
void zk_servers_address(const struct zk_servers *s, char *out, size_t size);
/* Whether that one leads the ensemble. */
bool zk_server_leads(const struct zk_servers *s, unsigned index);
/* Nodes that it holds. */
unsigned zk_server_node_count(const struct zk_servers *s, unsigned index);
