/* SPDX-License-Identifier: Apache-2.0 */
/* Starts and stops ZooKeeper's server for tests. */
#include "zk_server.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/check.h"

#define READY_TRIES    1200
#define READY_PAUSE_US 100000

static int bind_loopback(unsigned *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)*port)};
    socklen_t size = sizeof(a);
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT(fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0);
    ASSERT(bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
    ASSERT(getsockname(fd, (struct sockaddr *)&a, &size) == 0);
    *port = ntohs(a.sin_port);
    return fd;
}

/* All at the same time, so that no two are the same. */
static void choose_ports(struct zk_servers *s)
{
    int fds[3 * ZK_SERVERS_MAX];
    unsigned n = 0;
    for (unsigned i = 0; i < s->count; i++) {
        fds[n++] = bind_loopback(&s->ports[i]);
        fds[n++] = bind_loopback(&s->peer_ports[i]);
        fds[n++] = bind_loopback(&s->vote_ports[i]);
    }
    while (n > 0)
        close(fds[--n]);
}

static void write_config(const struct zk_servers *s, unsigned index)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%u", s->directory, index + 1);
    ASSERT(mkdir(path, 0700) == 0);
    snprintf(path, sizeof(path), "%s/%u/myid", s->directory, index + 1);
    FILE *f = fopen(path, "w");
    ASSERT(f && fprintf(f, "%u\n", index + 1) > 0 && fclose(f) == 0);
    snprintf(path, sizeof(path), "%s/%u.cfg", s->directory, index + 1);
    f = fopen(path, "w");
    ASSERT(f);
    fprintf(f,
            "dataDir=%s/%u\nclientPort=%u\nclientPortAddress=127.0.0.1\ntickTime=500\n"
            "initLimit=40\nsyncLimit=10\nadmin.enableServer=false\nmaxClientCnxns=0\n"
            "maxSessionTimeout=60000\n4lw.commands.whitelist=srvr\n",
            s->directory, index + 1, s->ports[index]);
    for (unsigned i = 0; s->count > 1 && i < s->count; i++)
        fprintf(f, "server.%u=127.0.0.1:%u:%u\n", i + 1, s->peer_ports[i], s->vote_ports[i]);
    ASSERT(fclose(f) == 0);
}

void zk_server_run(struct zk_servers *s, unsigned index)
{
    char config[96], log[96];
    pid_t parent = getpid();
    snprintf(config, sizeof(config), "%s/%u.cfg", s->directory, index + 1);
    snprintf(log, sizeof(log), "%s/%u.log", s->directory, index + 1);
    ASSERT(s->pids[index] == 0);
    pid_t pid = fork();
    ASSERT(pid >= 0);
    if (pid == 0) {
        int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent || fd < 0 ||
            dup2(fd, STDOUT_FILENO) < 0 || dup2(fd, STDERR_FILENO) < 0)
            _exit(126);
        execlp("java", "java", "-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp",
               "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar",
               "org.apache.zookeeper.server.quorum.QuorumPeerMain", config, NULL);
        _exit(127);
    }
    s->pids[index] = pid;
}

/* What it says of itself, "" when it says nothing. */
static void ask(const struct zk_servers *s, unsigned index, char *out, size_t size)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)s->ports[index])};
    struct timeval patience = {.tv_sec = 5};
    size_t length = 0;
    ssize_t n;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT(fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) == 0);
    if (connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0 &&
        send(fd, "srvr", 4, MSG_NOSIGNAL) == 4) {
        while (length + 1 < size && (n = read(fd, out + length, size - 1 - length)) > 0)
            length += (size_t)n;
    }
    close(fd);
    out[length] = '\0';
}

void zk_server_wait(const struct zk_servers *s, unsigned index)
{
    char answer[1024];
    for (unsigned i = 0; i < READY_TRIES; i++) {
        ask(s, index, answer, sizeof(answer));
        if (strstr(answer, "Mode: "))
            return;
        ASSERT(waitpid(s->pids[index], NULL, WNOHANG) == 0); /* is java there? see its log */
        usleep(READY_PAUSE_US);
    }
    ASSERT(!"ZooKeeper's server does not begin to serve");
}

bool zk_server_leads(const struct zk_servers *s, unsigned index)
{
    char answer[1024];
    ask(s, index, answer, sizeof(answer));
    return strstr(answer, "Mode: leader") != NULL;
}

unsigned zk_server_node_count(const struct zk_servers *s, unsigned index)
{
    char answer[1024];
    ask(s, index, answer, sizeof(answer));
    const char *line = strstr(answer, "Node count: ");
    ASSERT(line);
    return (unsigned)strtoul(line + strlen("Node count: "), NULL, 10);
}

void zk_servers_start(struct zk_servers *s, unsigned count)
{
    ASSERT(count <= ZK_SERVERS_MAX);
    *s = (struct zk_servers){.count = count, .directory = "/tmp/zookeeper-XXXXXX"};
    ASSERT(mkdtemp(s->directory));
    choose_ports(s);
    for (unsigned i = 0; i < count; i++) {
        write_config(s, i);
        zk_server_run(s, i);
    }
    for (unsigned i = 0; i < count; i++)
        zk_server_wait(s, i);
}

void zk_server_signal(const struct zk_servers *s, unsigned index, int signal)
{
    ASSERT(s->pids[index] > 0 && kill(s->pids[index], signal) == 0);
}

void zk_server_kill(struct zk_servers *s, unsigned index)
{
    zk_server_signal(s, index, SIGKILL);
    ASSERT(waitpid(s->pids[index], NULL, 0) == s->pids[index]);
    s->pids[index] = 0;
}

void zk_servers_done(struct zk_servers *s)
{
    char command[128];
    for (unsigned i = 0; i < s->count; i++) {
        if (s->pids[i] > 0)
            zk_server_kill(s, i);
    }
    snprintf(command, sizeof(command), "rm -rf %s", s->directory);
    ASSERT(system(command) == 0);
}

void zk_servers_address(const struct zk_servers *s, char *out, size_t size)
{
    size_t length = 0;
    for (unsigned i = 0; i < s->count; i++)
        length += (size_t)snprintf(out + length, size - length, "%s127.0.0.1:%u", i ? "," : "",
                                   s->ports[i]);
}
