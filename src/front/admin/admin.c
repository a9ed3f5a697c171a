/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Admin server: connections and the dispatch of requests.
 *
 * D1 Requests of one connection run one after the other, on its fiber.
 * D2 Whatever a client sends hurts its own connection at most: sizes and nesting are bounded before
 *    use (A1, A2), a request must arrive within REQUEST_TIMEOUT_NS, and there are at most
 *    connection_count_max connections.
 * D3 An operation once begun is finished, even when its client went away.
 */
#include "front/admin/admin.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "front/admin/admin_internal.h"

#define LOG_MODULE           "admin"
#define CONNECTION_COUNT_MAX 64u
#define REQUEST_TIMEOUT_NS   (60 * NS_PER_S)

struct admin_conn {
    struct admin *admin;
    struct conn *conn;
    struct list link;      /* admin.connections */
    struct timer deadline; /* D2 */
};

static const struct admin_op *const op_tables[] = {
    admin_cluster_ops, admin_status_ops, admin_node_ops, admin_wish_ops,
    admin_pool_ops,    admin_volume_ops, admin_data_ops,
};

static const struct admin_op *op_find(const char *name)
{
    for (size_t t = 0; t < ARRAY_SIZE(op_tables); t++) {
        for (const struct admin_op *op = op_tables[t]; op->name; op++) {
            if (strcmp(op->name, name) == 0)
                return op;
        }
    }
    return NULL;
}

static json_t *failure(const struct admin_call *call, int r)
{
    json_t *answer = json_object();
    if (!answer)
        return NULL;
    admin_set_bool(answer, "ok", false);
    admin_set_string(answer, "errno", admin_errno_name(r));
    admin_set_string(answer, "text", call->error.text[0] ? call->error.text : err_text(r));
    if (call->error.redirect[0])
        admin_set_string(answer, "redirect", call->error.redirect);
    return answer;
}

/* Runs the request in call->request and answers it. 0, or an error that ends the connection. */
static fiber_fn int answer_request(struct admin_call *call)
{
    const char *name = NULL;
    call->answer = json_object();
    if (!call->answer)
        return -ENOMEM;
    int r = admin_arg_string(call, "op", ADMIN_REQUIRED, &name);
    if (r == 0) {
        const struct admin_op *op = op_find(name);
        if (op)
            r = op->run(call);
        else
            r = admin_fail(call, -EPROTO,
                           "this sheep does not know the operation \"%.64s\": its version may be "
                           "older than that of dog",
                           name);
        log_debug("%s: %s: %s", conn_peer(call->conn), name, err_text(r));
    }
    if (r == -ECONNRESET || r == -ENOTCONN) {
        json_decref(call->answer);
        return r;
    }
    if (r == 0) {
        admin_set_bool(call->answer, "ok", true);
        return admin_send_json(call->conn, call->answer);
    }
    json_decref(call->answer);
    return admin_send_json(call->conn, failure(call, r));
}

/* Parses the payload of a request and answers it. */
static fiber_fn int serve_payload(struct admin_conn *ac, const char *text, size_t length)
{
    json_t *request = NULL;
    if (admin_json_depth_ok(text, length))
        request = json_loadb(text, length, JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_object(request)) {
        json_decref(request);
        return -EBADMSG;
    }
    struct admin_call *call = calloc(1, sizeof(*call));
    int r = -ENOMEM;
    if (call) {
        *call = (struct admin_call){.admin = ac->admin, .conn = ac->conn, .request = request};
        r = answer_request(call);
        if (r == 0 && call->out_of_step)
            r = -ENOTCONN;
    }
    free(call);
    json_decref(request);
    return r;
}

static fiber_fn int serve_request(struct admin_conn *ac)
{
    struct admin_header h;
    char *buffer = malloc(ADMIN_REQUEST_MAX);
    if (!buffer)
        return -ENOMEM;
    timer_arm(&ac->deadline, clock_now(ac->admin->rt) + REQUEST_TIMEOUT_NS);
    int r = admin_receive(ac->conn, buffer, ADMIN_REQUEST_MAX, &h);
    timer_cancel(&ac->deadline);
    if (r == 0 && h.kind != ADMIN_JSON)
        r = -EBADMSG;
    if (r == 0)
        r = serve_payload(ac, buffer, h.length);
    free(buffer);
    return r;
}

/* Both sides say what they speak. */
static fiber_fn int greet(struct admin_conn *ac)
{
    uint8_t magic[ADMIN_MAGIC_SIZE];
    timer_arm(&ac->deadline, clock_now(ac->admin->rt) + REQUEST_TIMEOUT_NS);
    int r = conn_read(ac->conn, magic, sizeof(magic));
    timer_cancel(&ac->deadline);
    if (r < 0)
        return r;
    enum admin_magic kind = admin_magic_parse(magic);
    if (kind == ADMIN_MAGIC_FOREIGN)
        return -EBADMSG;
    struct iovec iov = {.iov_base = (void *)ADMIN_MAGIC, .iov_len = ADMIN_MAGIC_SIZE};
    r = conn_write(ac->conn, &iov, 1);
    if (r == 0 && kind == ADMIN_MAGIC_OTHER_VERSION)
        r = -EPROTO; /* the client has our version now, and says what to do */
    return r;
}

static void deadline_passed(struct timer *t)
{
    struct admin_conn *ac = container_of(t, struct admin_conn, deadline);
    conn_shutdown(ac->conn);
}

static fiber_fn void connection_main(void *arg)
{
    struct admin_conn *ac = arg;
    struct admin *a = ac->admin;
    int r = a->stopping ? -ENOTCONN : greet(ac);
    while (r == 0)
        r = serve_request(ac);
    if (r != -ENOTCONN && r != -ECONNRESET && !a->stopping)
        log_warn("connection from %s closed: %s", conn_peer(ac->conn), err_text(r));
    timer_cancel(&ac->deadline);
    list_remove(&ac->link);
    a->connection_count--;
    conn_close(ac->conn);
    free(ac);
    wgroup_finish(&a->fibers);
}

static fiber_fn void connection_begin(struct admin *a, struct conn *conn)
{
    struct admin_conn *ac = NULL;
    if (a->connection_count < a->connection_count_max)
        ac = calloc(1, sizeof(*ac));
    else
        log_warn("connection from %s refused: %u are open already", conn_peer(conn),
                 a->connection_count);
    if (!ac) {
        conn_close(conn);
        return;
    }
    *ac = (struct admin_conn){.admin = a, .conn = conn};
    timer_init(&ac->deadline, a->rt, deadline_passed);
    list_push_back(&a->connections, &ac->link);
    a->connection_count++;
    wgroup_add(&a->fibers, 1);
    if (fiber_spawn(a->rt, "admin connection", connection_main, ac) == 0)
        return;
    wgroup_finish(&a->fibers);
    a->connection_count--;
    list_remove(&ac->link);
    conn_close(conn);
    free(ac);
}

struct acceptor {
    struct admin *admin;
    struct listener *listener;
};

static fiber_fn void acceptor_main(void *arg)
{
    struct acceptor *acceptor = arg;
    struct admin *a = acceptor->admin;
    struct conn *conn;
    int r;
    while ((r = net_accept(acceptor->listener, &conn)) != -ECANCELED) {
        if (r == 0)
            connection_begin(a, conn);
        else if (fiber_sleep(a->rt, 100 * NS_PER_MS) < 0) /* out of descriptors, most likely */
            break;
    }
    free(acceptor);
    wgroup_finish(&a->fibers);
}

int admin_start(struct rt *rt, const struct admin_options *o, struct admin **ret)
{
    ASSERT(o->listener_count <= ADMIN_LISTENER_COUNT_MAX);
    struct admin *a = calloc(1, sizeof(*a));
    if (!a)
        goto close_listeners;
    *a = (struct admin){.rt = rt,
                        .cluster = o->cluster,
                        .objects = o->objects,
                        .volumes = o->volumes,
                        .connection_count_max = o->connection_count_max};
    if (a->connection_count_max == 0)
        a->connection_count_max = CONNECTION_COUNT_MAX;
    list_init(&a->connections);
    wgroup_init(&a->fibers);
    for (; a->listener_count < o->listener_count; a->listener_count++) {
        struct acceptor *acceptor = malloc(sizeof(*acceptor));
        if (!acceptor)
            goto stop;
        struct listener *l = o->listeners[a->listener_count];
        *acceptor = (struct acceptor){a, l};
        a->listeners[a->listener_count] = l;
        wgroup_add(&a->fibers, 1);
        if (fiber_spawn(rt, "admin accept", acceptor_main, acceptor) < 0) {
            wgroup_finish(&a->fibers);
            free(acceptor);
            goto stop;
        }
    }
    *ret = a;
    return 0;

stop: /* what was spawned leaves by itself, and the process is about to end: `a` is left to it */
    a->stopping = true;
close_listeners:
    for (unsigned i = 0; i < o->listener_count; i++)
        listener_close(o->listeners[i]);
    return -ENOMEM;
}

fiber_fn void admin_stop(struct admin *a)
{
    a->stopping = true;
    for (unsigned i = 0; i < a->listener_count; i++)
        listener_close(a->listeners[i]);
    struct admin_conn *ac;
    list_for_each (ac, &a->connections, link)
        conn_shutdown(ac->conn);
    wgroup_wait(&a->fibers);
    ASSERT(a->connection_count == 0);
    free(a);
}
