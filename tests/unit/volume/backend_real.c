/* SPDX-License-Identifier: Apache-2.0 */
/* Stores on simulated disks, and the object service. */
#include <stdio.h>
#include <string.h>
#include "backend.h"
#include "store/store.h"

#define STORE_BYTES (48u << 20)

/* What a node of this backend has beside its gateway. */
struct node {
    struct store *store;
    struct listener *listener;
    char disk[32];
    bool formatted;
};
static struct node nodes[GATEWAY_COUNT];

void backend_new(struct harness *h)
{
    for (unsigned i = 0; i < GATEWAY_COUNT; i++) {
        nodes[i] = (struct node){0};
        snprintf(nodes[i].disk, sizeof(nodes[i].disk), "disk-%u", i);
        ASSERT(sim_disk_new(h->sim, nodes[i].disk, STORE_BYTES, DISK_WRITE_BACK) == 0);
    }
}

void backend_free(struct harness *h)
{
}

fiber_fn void backend_prepare(struct gateway *g, struct cluster_options *o)
{
    struct node *n = &nodes[g->number];
    const struct store_format_options fo = {
        .store_uuid = o->store_uuid, .size = STORE_BYTES, .overwrite = true};
    const struct store_open_options so = {.cache_bytes = 4u << 20};
    if (!n->formatted)
        ASSERT(store_format(g->rt, n->disk, &fo, NULL, NULL) == 0);
    n->formatted = true;
    ASSERT(store_open(g->rt, n->disk, &so, &n->store) == 0);
    ASSERT(net_listen(g->rt, "tcp:127.0.0.1:0", &n->listener) == 0);
    o->address = listener_address(n->listener);
}

fiber_fn void backend_start(struct gateway *g)
{
    struct node *n = &nodes[g->number];
    const struct objects_options o = {.listener = n->listener, .entries_per_block = g->h->entries};
    ASSERT(objects_start(g->rt, n->store, g->cluster, &o, &g->objects) == 0);
}

fiber_fn void backend_stop(struct gateway *g)
{
    objects_stop(g->objects);
}

fiber_fn void backend_stopped(struct gateway *g)
{
    ASSERT(store_close(nodes[g->number].store) == 0);
}

void backend_dies(struct gateway *g)
{
}

void backend_rough(struct harness *h)
{
}

void backend_rough_links(struct harness *h)
{
}

void backend_calm(struct harness *h)
{
}

fiber_fn size_t backend_key_count(struct gateway *g)
{
    return 0;
}

uint64_t backend_object_count(struct harness *h)
{
    return UINT64_MAX;
}

void backend_print(struct harness *h)
{
}
