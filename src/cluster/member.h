/* SPDX-License-Identifier: Apache-2.0 */
/* Registrations and sessions as values in the cluster store (FORMAT.md). Private to this folder. */
#pragma once
#include "cluster/driver.h"
#include "cluster/map.h"

/* "node/UUID", "session/UUID", "ack/UUID", "report/UUID", "wish/node/UUID" */
void member_key(char out[CS_KEY_SIZE], const char *kind, const struct uuid *u);
/* The uuid behind the first '/' of such a key. 0 or -EBADMSG. */
int member_key_parse(const char *key, struct uuid *ret);

/* Value of "node/UUID": all but number, session and state. */
void member_encode(const struct map_node *n, struct enc *e);
int member_decode(const void *p, size_t length, struct map_node *ret); /* -EBADMSG, -EPROTO */

/* Value of "session/UUID", "leader" (who) and "ack/UUID" (who, and a map version). */
struct claim {
    struct uuid uuid;
    struct session session;
    uint64_t version;
    bool inexact; /* session/: the store may lack something */
};
void claim_encode(const struct claim *claim, struct enc *e);
int claim_decode(const void *p, size_t length, struct claim *ret);

/* Value of "report/UUID". */
void report_encode(const struct uuid *uuid, struct session s, const struct cluster_report *r,
                   struct enc *e);
/* The arrays of ret->said are one allocation, owned: report_done(). -EBADMSG, -EPROTO, -ENOMEM. */
int report_decode(const void *p, size_t length, struct map_report *ret);
void report_done(struct map_report *r);
/* The reports of all sessions. What cannot be decoded is logged and left out. *ret is owned:
 * report_list_free(). */
fiber_fn int report_list(struct cs *cs, struct map_report **ret, unsigned *ret_count);
void report_list_free(struct map_report *reports, unsigned count);

/* Values of "wish/node/UUID" and "wish/pool/ID". */
void wish_encode_node(const struct map_node_wish *w, struct enc *e);
int wish_decode_node(const void *p, size_t length, struct map_node_wish *ret);
void wish_encode_pool(const struct map_pool_wish *w, struct enc *e);
int wish_decode_pool(const void *p, size_t length, struct map_pool_wish *ret);
/* All wishes; both arrays are owned. */
fiber_fn int wish_list(struct cs *cs, struct map_node_wish **ret_nodes, unsigned *ret_node_count,
                       struct map_pool_wish **ret_pools, unsigned *ret_pool_count);

/* All registered nodes, with their present sessions. What cannot be decoded is logged and left out.
 * *ret is owned. */
fiber_fn int member_list(struct cs *cs, struct map_member **ret, unsigned *ret_count);
/* A name, zone or address that may stand in keys, maps and messages. */
bool member_name_valid(const char *s);
bool member_address_valid(const char *s);
