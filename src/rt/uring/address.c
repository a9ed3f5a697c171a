/* SPDX-License-Identifier: Apache-2.0 */
/* Socket addresses from text and back. */
#include <netdb.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>
#include "base/err.h"
#include "rt/uring/loop.h"

static int parse_unix(const char *path, struct net_target *ret)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length == 0)
        return -EINVAL;
    if (length >= sizeof(un.sun_path))
        return -ENAMETOOLONG;
    memcpy(un.sun_path, path, length + 1);
    memset(ret, 0, sizeof(*ret));
    memcpy(&ret->address, &un, sizeof(un));
    ret->length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + 1);
    return 0;
}

/* Splits "HOST:PORT" at the last colon, and takes brackets off. */
static int split_host_port(const char *text, char *host, size_t host_size, const char **ret_port)
{
    const char *colon = strrchr(text, ':');
    if (!colon || colon == text)
        return -EINVAL;
    const char *start = text, *end = colon;
    if (*start == '[') {
        if (end[-1] != ']')
            return -EINVAL;
        start++;
        end--;
    } else if (memchr(start, ':', (size_t)(end - start))) {
        return -EINVAL; /* IPv6 needs brackets */
    }
    if (start >= end)
        return -EINVAL;
    if ((size_t)(end - start) >= host_size)
        return -ENAMETOOLONG;
    memcpy(host, start, (size_t)(end - start));
    host[end - start] = '\0';
    unsigned port = 0;
    const char *p = colon + 1;
    for (; *p >= '0' && *p <= '9' && port <= 65535; p++)
        port = port * 10 + (unsigned)(*p - '0');
    if (*p || p == colon + 1 || port > 65535)
        return -EINVAL;
    *ret_port = colon + 1;
    return 0;
}

static int lookup_error(int eai)
{
    switch (eai) {
    case EAI_MEMORY:
        return -ENOMEM;
    case EAI_AGAIN:
        return -EAGAIN;
    default:
        return -ENOENT;
    }
}

static int parse_tcp(const char *text, enum address_lookup lookup, struct net_target *ret)
{
    char host[NET_ADDRESS_SIZE];
    const char *port;
    int r = split_host_port(text, host, sizeof(host), &port);
    if (r < 0)
        return r;
    const char *name = strcmp(host, "localhost") == 0 ? "127.0.0.1" : host;
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *found;
    int eai = getaddrinfo(name, port, &hints, &found);
    if (eai == EAI_NONAME) {
        if (lookup == ADDRESS_NO_LOOKUP)
            return -EAGAIN;
        hints.ai_flags = AI_NUMERICSERV;
        eai = getaddrinfo(name, port, &hints, &found);
    }
    if (eai)
        return lookup_error(eai);
    memset(ret, 0, sizeof(*ret));
    memcpy(&ret->address, found->ai_addr, found->ai_addrlen);
    ret->length = found->ai_addrlen;
    freeaddrinfo(found);
    return 0;
}

int address_parse(const char *text, enum address_lookup lookup, struct net_target *ret)
{
    if (strlen(text) >= NET_ADDRESS_SIZE)
        return -ENAMETOOLONG;
    if (strncmp(text, "unix:", 5) == 0)
        return parse_unix(text + 5, ret);
    if (strncmp(text, "tcp:", 4) == 0)
        return parse_tcp(text + 4, lookup, ret);
    return -EINVAL;
}

void address_format(const struct net_target *t, char out[NET_ADDRESS_SIZE])
{
    char host[INET6_ADDRSTRLEN] = "?";
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    struct sockaddr_un un;
    switch (t->address.ss_family) {
    case AF_INET:
        memcpy(&in, &t->address, sizeof(in));
        inet_ntop(AF_INET, &in.sin_addr, host, sizeof(host));
        snprintf(out, NET_ADDRESS_SIZE, "tcp:%s:%u", host, ntohs(in.sin_port));
        break;
    case AF_INET6:
        memcpy(&in6, &t->address, sizeof(in6));
        inet_ntop(AF_INET6, &in6.sin6_addr, host, sizeof(host));
        snprintf(out, NET_ADDRESS_SIZE, "tcp:[%s]:%u", host, ntohs(in6.sin6_port));
        break;
    default:
        memcpy(&un, &t->address, sizeof(un));
        snprintf(out, NET_ADDRESS_SIZE, "unix:%.*s", (int)sizeof(un.sun_path), un.sun_path);
        break;
    }
}
