/* SPDX-License-Identifier: Apache-2.0 */
/* The name of a cluster store in ZooKeeper. */
#include "cluster/drivers/zookeeper_spec.h"
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/check.h"
#include "base/err.h"

#define PORT_DEFAULT      2181u
#define ROOT_DEFAULT      "/kelpie"
#define TIMEOUT_S_DEFAULT 10u
#define TIMEOUT_S_MAX     600u

/* Digits only, 1 to max; 0 when it is not that. */
static unsigned parse_number(const char *text, size_t length, unsigned max)
{
    unsigned value = 0;
    if (length == 0 || length > 9)
        return 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9')
            return 0;
        value = value * 10 + (unsigned)(text[i] - '0');
    }
    return value <= max ? value : 0;
}

static bool host_valid(const char *p, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        char c = p[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!letter && !(c >= '0' && c <= '9') && !strchr(".-_:[]", c))
            return false;
    }
    return length > 0;
}

/* One server, appended to ret->servers. */
static const char *add_server(struct zk_spec *ret, const char *p, size_t length)
{
    const char *bracket = memchr(p, ']', length);
    const char *rest = bracket ? bracket : p;
    const char *colon = memchr(rest, ':', length - (size_t)(rest - p));
    size_t host = colon ? (size_t)(colon - p) : length;
    unsigned port = PORT_DEFAULT;
    if (colon)
        port = parse_number(colon + 1, length - host - 1, 65535);
    if (port == 0)
        return "a port is a number from 1 to 65535";
    if (!host_valid(p, host))
        return "the name of a server is missing or has a character that no name has";
    size_t used = strlen(ret->servers);
    int n = snprintf(ret->servers + used, sizeof(ret->servers) - used, "%s%.*s:%u",
                     used > 0 ? "," : "", (int)host, p, port);
    return n < 0 || used + (size_t)n >= sizeof(ret->servers) ? "too many servers" : NULL;
}

static const char *set_root(struct zk_spec *ret, const char *p, size_t length)
{
    while (length > 1 && p[length - 1] == '/')
        length--;
    if (length <= 1)
        return "a path has at least one name behind the '/'";
    if (length >= sizeof(ret->root))
        return "the path is too long";
    for (size_t i = 0; i < length; i++) {
        size_t end = i + 1;
        if (p[i] <= ' ' || p[i] > '~')
            return "a path is of printable characters without spaces";
        if (p[i] != '/')
            continue;
        while (end < length && p[end] != '/')
            end++;
        size_t name = end - i - 1;
        if (name == 0 || (name <= 2 && memcmp(p + i + 1, "..", name) == 0))
            return "a path has no empty names, no \".\" and no \"..\"";
    }
    memcpy(ret->root, p, length);
    ret->root[length] = '\0';
    return NULL;
}

static const char *parse(const char *text, struct zk_spec *ret)
{
    *ret = (struct zk_spec){.timeout_ms = TIMEOUT_S_DEFAULT * 1000, .root = ROOT_DEFAULT};
    size_t length = strlen(text);
    const char *question = strchr(text, '?');
    if (question) {
        static const char name[] = "timeout=";
        const char *value = question + 1 + strlen(name);
        if (strncmp(question + 1, name, strlen(name)) != 0)
            return "behind '?' only timeout=SECONDS is known";
        ret->timeout_ms = parse_number(value, strlen(value), TIMEOUT_S_MAX) * 1000;
        if (ret->timeout_ms == 0)
            return "the timeout is a number of seconds, 1 to 600";
        length = (size_t)(question - text);
    }
    const char *slash = memchr(text, '/', length);
    if (slash) {
        const char *why = set_root(ret, slash, length - (size_t)(slash - text));
        if (why)
            return why;
        length = (size_t)(slash - text);
    }
    for (const char *p = text, *end = text + length;; p++) {
        const char *comma = memchr(p, ',', (size_t)(end - p));
        const char *stop = comma ? comma : end;
        const char *why = add_server(ret, p, (size_t)(stop - p));
        if (why || !comma)
            return why;
        p = comma;
    }
}

int zk_spec_parse(const char *text, struct zk_spec *ret, const char **ret_why)
{
    const char *why = parse(text, ret);
    if (!why)
        return 0;
    *ret_why = why;
    return -EINVAL;
}
