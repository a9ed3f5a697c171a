/* SPDX-License-Identifier: Apache-2.0 */
/* The addresses that a node serves on: bound all together, handed to the services one by one. */
#pragma once
#include "cluster/map.h"
#include "rt/rt.h"
#include "sheep/sheep.h"

struct listen_one {
    struct listener *listener;      /* NULL once taken */
    char address[NET_ADDRESS_SIZE]; /* really bound */
};
struct listen_set {
    struct listen_one peer, admin[SHEEP_LISTEN_COUNT_MAX], nbd[SHEEP_LISTEN_COUNT_MAX];
    unsigned admin_count, nbd_count;
    char admin_public[MAP_ADDRESS_SIZE], nbd_public[MAP_ADDRESS_SIZE];
};

/* Binds all that the options name. 0, or a negative errno after a message that names the option;
 * listen_close() is due in both cases. */
fiber_fn int listen_bind(struct rt *rt, const struct sheep_options *o, struct listen_set *ret);
/* Closes what was not taken. */
void listen_close(struct listen_set *s);

/* What other nodes and dog are told: reachable addresses; "" if there is none. Borrowed. */
const char *listen_peer(const struct listen_set *s);
const char *listen_admin(const struct listen_set *s);
const char *listen_nbd(const struct listen_set *s);

/* Hands the listeners over. */
struct listener *listen_take_peer(struct listen_set *s);
unsigned listen_take_admin(struct listen_set *s, struct listener *ret[SHEEP_LISTEN_COUNT_MAX]);
unsigned listen_take_nbd(struct listen_set *s, struct listener *ret[SHEEP_LISTEN_COUNT_MAX]);
