/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A node's own keys: registration (stays), session (ephemeral).
 *
 * RG1 One name is one node: "name/NAME" holds the uuid of the node that has it, and is written in
 *     the same transaction as the registration.
 * RG2 Who holds a store's lock is that node: its registration ends what its earlier session still
 *     holds.
 * RG3 A store that was given up does not register.
 */
#include <stdio.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "cluster/cluster_internal.h"

#define LOG_MODULE "cluster"

#define TRIES_MAX 100

static void name_key(char out[CS_KEY_SIZE], const char *name)
{
    snprintf(out, CS_KEY_SIZE, "name/%s", name);
}

/* 0 with an empty value and revision CS_REVISION_ABSENT when there is no such key. */
static fiber_fn int get_or_absent(struct cs *cs, const char *key, struct enc *ret,
                                  uint64_t *ret_revision)
{
    *ret_revision = CS_REVISION_ABSENT;
    int r = cs_get(cs, key, ret, ret_revision);
    return r == -ENOENT ? 0 : r;
}

/* Who has the name: *ret_revision is for the transaction's condition. */
static fiber_fn int check_name(struct cluster *c, const char *key, uint64_t *ret_revision)
{
    struct enc value;
    struct claim claim;
    enc_init(&value);
    int r = get_or_absent(c->cs, key, &value, ret_revision);
    if (r == 0 && *ret_revision != CS_REVISION_ABSENT &&
        claim_decode(value.data, value.length, &claim) == 0 &&
        !uuid_equal(&claim.uuid, &c->self.uuid)) {
        char text[UUID_TEXT_SIZE];
        uuid_format(&claim.uuid, text);
        log_error("the name %s belongs to another node (store %s): give this one another name",
                  c->self.name, text);
        r = -EEXIST;
    }
    enc_done(&value);
    return r;
}

/* The name that this node had, if it is another one: key of the entry to delete, or "". */
static fiber_fn int find_old_name(struct cluster *c, const char *node_key, uint64_t *ret_revision,
                                  char ret_key[CS_KEY_SIZE])
{
    struct enc value;
    struct map_node old;
    enc_init(&value);
    ret_key[0] = '\0';
    int r = get_or_absent(c->cs, node_key, &value, ret_revision);
    if (r == 0 && *ret_revision != CS_REVISION_ABSENT &&
        member_decode(value.data, value.length, &old) == 0 && strcmp(old.name, c->self.name) != 0)
        name_key(ret_key, old.name);
    enc_done(&value);
    return r;
}

/* The leader's key if this node's earlier session holds it: revision for its deletion, or 0. */
static fiber_fn int find_old_lead(struct cluster *c, uint64_t *ret_revision)
{
    struct enc value;
    struct claim claim;
    enc_init(&value);
    int r = get_or_absent(c->cs, KEY_LEADER, &value, ret_revision);
    if (r == 0 && (claim_decode(value.data, value.length, &claim) < 0 ||
                   !uuid_equal(&claim.uuid, &c->self.uuid)))
        *ret_revision = 0;
    enc_done(&value);
    return r;
}

struct registration {
    char node_key[CS_KEY_SIZE], session_key[CS_KEY_SIZE], ack_key[CS_KEY_SIZE];
    char report_key[CS_KEY_SIZE];
    char name_key[CS_KEY_SIZE], old_name_key[CS_KEY_SIZE];
    uint64_t node_revision, name_revision, leader_revision;
    struct enc node, claim;
};

static fiber_fn int write_registration(struct cluster *c, const struct registration *g)
{
    struct cs_op ops[7];
    unsigned n = 0;
    ops[n++] = (struct cs_op){.kind = CS_PUT,
                              .key = g->node_key,
                              .revision = g->node_revision,
                              .value = g->node.data,
                              .length = g->node.length};
    ops[n++] = (struct cs_op){.kind = CS_PUT,
                              .key = g->name_key,
                              .revision = g->name_revision,
                              .value = g->claim.data,
                              .length = g->claim.length};
    ops[n++] = (struct cs_op){.kind = CS_PUT,
                              .key = g->session_key,
                              .revision = CS_REVISION_ANY,
                              .value = g->claim.data,
                              .length = g->claim.length,
                              .ephemeral = true};
    ops[n++] = (struct cs_op){.kind = CS_DELETE, .key = g->ack_key, .revision = CS_REVISION_ANY};
    ops[n++] = (struct cs_op){.kind = CS_DELETE, .key = g->report_key, .revision = CS_REVISION_ANY};
    if (g->old_name_key[0])
        ops[n++] =
            (struct cs_op){.kind = CS_DELETE, .key = g->old_name_key, .revision = CS_REVISION_ANY};
    if (g->leader_revision)
        ops[n++] =
            (struct cs_op){.kind = CS_DELETE, .key = KEY_LEADER, .revision = g->leader_revision};
    return cs_txn(c->cs, ops, n, NULL);
}

static fiber_fn int register_once(struct cluster *c, struct registration *g)
{
    int r = check_name(c, g->name_key, &g->name_revision);
    if (r == 0)
        r = find_old_name(c, g->node_key, &g->node_revision, g->old_name_key);
    if (r == 0)
        r = find_old_lead(c, &g->leader_revision);
    return r < 0 ? r : write_registration(c, g);
}

/* A store that belongs to a cluster must meet that one. */
static fiber_fn int check_cluster(struct cluster *c)
{
    struct uuid cluster = {0};
    int r = cluster_record_get(c, &cluster);
    if (r < 0 && r != -ENOENT)
        return r;
    if (uuid_is_null(&c->store_cluster) || uuid_equal(&cluster, &c->store_cluster))
        return 0;
    char mine[UUID_TEXT_SIZE], theirs[UUID_TEXT_SIZE];
    uuid_format(&c->store_cluster, mine);
    uuid_format(&cluster, theirs);
    if (r == -ENOENT)
        log_error("this store belongs to cluster %s, but the cluster store holds no cluster: is "
                  "its path right?",
                  mine);
    else
        log_error("this store belongs to cluster %s, but the cluster store is of cluster %s", mine,
                  theirs);
    return -EMEDIUMTYPE;
}

/* RG3 */
static fiber_fn int check_lost(struct cluster *c)
{
    char key[CS_KEY_SIZE];
    struct enc value;
    struct map_node_wish wish;
    uint64_t revision;
    member_key(key, "wish/node", &c->self.uuid);
    enc_init(&value);
    int r = get_or_absent(c->cs, key, &value, &revision);
    if (r == 0 && revision != CS_REVISION_ABSENT &&
        wish_decode_node(value.data, value.length, &wish) == 0 && wish.lost) {
        log_error(
            "this store was given up (`dog node lost`): others hold its groups by now; format "
            "it anew to use the disk again");
        r = -EMEDIUMTYPE;
    }
    enc_done(&value);
    return r;
}

fiber_fn int cluster_register(struct cluster *c)
{
    struct registration g = {0};
    struct claim claim = {.uuid = c->self.uuid, .session = c->cs->session, .inexact = c->inexact};
    int r = check_cluster(c);
    if (r == 0)
        r = check_lost(c);
    if (r < 0)
        return r;
    member_key(g.node_key, "node", &c->self.uuid);
    member_key(g.session_key, "session", &c->self.uuid);
    member_key(g.ack_key, "ack", &c->self.uuid);
    member_key(g.report_key, "report", &c->self.uuid);
    name_key(g.name_key, c->self.name);
    enc_init(&g.node);
    enc_init(&g.claim);
    member_encode(&c->self, &g.node);
    claim_encode(&claim, &g.claim);
    r = g.node.error ? g.node.error : g.claim.error;
    for (unsigned i = 0; r == 0 && i < TRIES_MAX; i++) {
        r = register_once(c, &g);
        if (r != -ESTALE)
            break;
        r = i + 1 < TRIES_MAX ? 0 : -ESTALE; /* another registration came between: look again */
    }
    enc_done(&g.node);
    enc_done(&g.claim);
    return r;
}
