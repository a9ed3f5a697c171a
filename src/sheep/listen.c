/* SPDX-License-Identifier: Apache-2.0 */
/* The addresses that a node serves on. */
#include "sheep/listen.h"
#include <stdio.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"

#define LOG_MODULE "sheep"

static bool is_tcp(const char *address)
{
    return strncmp(address, "tcp:", 4) == 0;
}

/* Bound to every address of the machine: nothing that others could connect to by that name. */
static bool is_wildcard(const char *address)
{
    return strncmp(address, "tcp:0.0.0.0:", 12) == 0 || strncmp(address, "tcp:[::]:", 9) == 0;
}

static int bind_failed(const char *option, const char *address, int r)
{
    switch (r) {
    case -EADDRINUSE:
    case -EBUSY:
        log_error(
            "--%s %s: the address is in use, by another sheep or program; choose another with "
            "--%s (port 0 takes a free one)",
            option, address, option);
        break;
    case -EINVAL:
        log_error("--%s %s: not an address; give HOST:PORT, tcp:HOST:PORT or unix:/path", option,
                  address);
        break;
    case -EADDRNOTAVAIL:
    case -ENOENT:
        log_error("--%s %s: this machine has no such address, or the folder is missing", option,
                  address);
        break;
    default:
        log_error("--%s %s: %s", option, address, err_text(r));
        break;
    }
    return r;
}

/* net_listen(), with patience for a predecessor that was killed. */
static fiber_fn int listen_patiently(struct rt *rt, const char *address, struct listener **ret)
{
    uint64_t deadline = clock_now(rt) + SHEEP_TAKEOVER_NS;
    for (;;) {
        int r = net_listen(rt, address, ret);
        if (r != -EADDRINUSE || clock_now(rt) >= deadline)
            return r;
        if (fiber_sleep(rt, SHEEP_TAKEOVER_STEP_NS) < 0)
            return -ECANCELED;
    }
}

static fiber_fn int bind_one(struct rt *rt, const char *option, const char *text,
                             struct listen_one *ret)
{
    char address[NET_ADDRESS_SIZE];
    bool complete = is_tcp(text) || strncmp(text, "unix:", 5) == 0;
    int length = snprintf(address, sizeof(address), "%s%s", complete ? "" : "tcp:", text);
    int r = length < (int)sizeof(address) ? listen_patiently(rt, address, &ret->listener)
                                          : -ENAMETOOLONG;
    if (r < 0)
        return bind_failed(option, text, r);
    snprintf(ret->address, sizeof(ret->address), "%s", listener_address(ret->listener));
    return 0;
}

/* The address to tell others: TCP if there is one; a wildcard gets the host of the peer address. */
static void make_public(const struct listen_set *s, const struct listen_one *all, unsigned count,
                        char ret[MAP_ADDRESS_SIZE])
{
    const char *chosen = count > 0 ? all[0].address : "";
    for (unsigned i = 0; i < count; i++) {
        if (is_tcp(all[i].address)) {
            chosen = all[i].address;
            break;
        }
    }
    if (!is_wildcard(chosen) || !is_tcp(s->peer.address)) {
        snprintf(ret, MAP_ADDRESS_SIZE, "%s", chosen);
        return;
    }
    const char *peer_colon = strrchr(s->peer.address, ':');
    if (snprintf(ret, MAP_ADDRESS_SIZE, "%.*s%s", (int)(peer_colon - s->peer.address),
                 s->peer.address, strrchr(chosen, ':')) >= MAP_ADDRESS_SIZE)
        ret[0] = '\0';
}

fiber_fn int listen_bind(struct rt *rt, const struct sheep_options *o, struct listen_set *ret)
{
    *ret = (struct listen_set){0};
    int r = bind_one(rt, "peer", o->peer, &ret->peer);
    if (r == 0 && is_wildcard(ret->peer.address)) {
        log_error("--peer %s: other nodes connect to this very address; name one of this machine's",
                  o->peer);
        r = -EINVAL;
    }
    for (unsigned i = 0; r == 0 && i < o->admin_count; i++) {
        r = bind_one(rt, "admin", o->admin[i], &ret->admin[i]);
        ret->admin_count += r == 0;
    }
    for (unsigned i = 0; r == 0 && i < o->nbd_count; i++) {
        r = bind_one(rt, "nbd", o->nbd[i], &ret->nbd[i]);
        ret->nbd_count += r == 0;
    }
    if (r < 0)
        return r;
    make_public(ret, ret->admin, ret->admin_count, ret->admin_public);
    make_public(ret, ret->nbd, ret->nbd_count, ret->nbd_public);
    return 0;
}

static void close_one(struct listen_one *l)
{
    if (l->listener)
        listener_close(l->listener);
    l->listener = NULL;
}

void listen_close(struct listen_set *s)
{
    close_one(&s->peer);
    for (unsigned i = 0; i < s->admin_count; i++)
        close_one(&s->admin[i]);
    for (unsigned i = 0; i < s->nbd_count; i++)
        close_one(&s->nbd[i]);
}

const char *listen_peer(const struct listen_set *s)
{
    return s->peer.address;
}

const char *listen_admin(const struct listen_set *s)
{
    return s->admin_public;
}

const char *listen_nbd(const struct listen_set *s)
{
    return s->nbd_public;
}

struct listener *listen_take_peer(struct listen_set *s)
{
    struct listener *l = s->peer.listener;
    s->peer.listener = NULL;
    return l;
}

static unsigned take_all(struct listen_one *all, unsigned count,
                         struct listener *ret[SHEEP_LISTEN_COUNT_MAX])
{
    for (unsigned i = 0; i < count; i++) {
        ret[i] = all[i].listener;
        all[i].listener = NULL;
    }
    return count;
}

unsigned listen_take_admin(struct listen_set *s, struct listener *ret[SHEEP_LISTEN_COUNT_MAX])
{
    return take_all(s->admin, s->admin_count, ret);
}

unsigned listen_take_nbd(struct listen_set *s, struct listener *ret[SHEEP_LISTEN_COUNT_MAX])
{
    return take_all(s->nbd, s->nbd_count, ret);
}
