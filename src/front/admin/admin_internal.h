/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the admin server share: the server, one request in progress, the table of
 * operations. */
#pragma once
#include <jansson.h>
#include "cluster/cluster.h"
#include "front/admin/admin.h"
#include "object/object.h"
#include "wire/admin.h"

struct admin {
    struct rt *rt;
    struct cluster *cluster;
    struct objects *objects;
    struct volumes *volumes;
    unsigned listener_count, connection_count, connection_count_max;
    unsigned transfer_count; /* reads and writes of data in progress */
    struct listener *listeners[ADMIN_LISTENER_COUNT_MAX];
    struct list connections; /* of struct admin_conn */
    struct wgroup fibers;    /* acceptors and connections */
    bool stopping;
};

/* One request in progress; lives on the stack of its connection's fiber. */
struct admin_call {
    struct admin *admin;
    struct conn *conn;
    json_t *request; /* an object */
    json_t *answer;  /* an object; the operation adds its results */
    struct volume_error error;
    /* The frames that follow were not all consumed: the connection ends with the answer. */
    bool out_of_step;
};

/* Carries out one request: 0, or a negative errno with call->error filled (or empty: err_text() is
 * sent). -ECONNRESET: the client is gone, nothing is sent any more. */
typedef fiber_fn int admin_op_fn(struct admin_call *call);
struct admin_op {
    const char *name;
    admin_op_fn *run;
};
/* Each ended by name == NULL. */
extern const struct admin_op admin_cluster_ops[], admin_node_ops[], admin_wish_ops[],
    admin_pool_ops[], admin_status_ops[], admin_volume_ops[], admin_data_ops[];

/* --- frames (frame.c) --- */
/* Suspends until handed to the kernel: 0, -ECONNRESET, -EFBIG (an answer too long). */
fiber_fn int admin_send(struct conn *c, enum admin_kind kind, const void *payload, uint32_t length);
/* Sends `json` and drops the caller's reference; NULL is -ENOMEM. */
fiber_fn int admin_send_json(struct conn *c, json_t *json);
/* Reads a header and the payload into buffer[size]. 0, -ECONNRESET, -ENOTCONN (clean end),
 * -EBADMSG, -EFBIG. */
fiber_fn int admin_receive(struct conn *c, void *buffer, size_t size, struct admin_header *ret);

/* --- arguments and results (args.c) --- */
/* Writes call->error.text and returns r. */
int admin_fail(struct admin_call *call, int r, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
enum admin_need { ADMIN_OPTIONAL, ADMIN_REQUIRED };
/* Strings are borrowed from the request; absent optional ones leave *ret as it was. -EINVAL with a
 * text. */
int admin_arg_string(struct admin_call *call, const char *name, enum admin_need need,
                     const char **ret);
int admin_arg_u64(struct admin_call *call, const char *name, enum admin_need need, uint64_t max,
                  uint64_t *ret);
/* Adds to a JSON object; numbers above 2^63 - 1 are sent as that. */
void admin_set_string(json_t *object, const char *key, const char *value);
void admin_set_u64(json_t *object, const char *key, uint64_t value);
void admin_set_bool(json_t *object, const char *key, bool value);
/* The pools of `m` under "pools", and those of the first one under keys of their own. */
void admin_add_pools(json_t *answer, const struct map *m);
void admin_set_uuid(json_t *object, const char *key, const struct uuid *uuid);
