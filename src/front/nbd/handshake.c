/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The handshake: greeting, then options until the client has chosen an export or goes.
 *
 * H1 A client has NBD_HANDSHAKE_NS in all; the clock stands while we work for it.
 * H2 At most OPTION_SIZE_MAX bytes of an option are kept; longer ones are skipped and answered with
 *    TOO_BIG, absurd ones end the connection.
 * H3 Metadata contexts hold for the export they were asked for, until the next attempt to set any.
 * H4 All replies to one option leave in one write.
 */
#define LOG_MODULE "nbd"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "front/nbd/nbd_internal.h"

#define OPTION_SIZE_MAX      65536u
#define SHOWN_NAME_SIZE      128
#define OPTION_SKIP_SIZE_MAX (16u << 20)

struct handshake {
    struct connection *c;
    struct enc out; /* replies to the present option */
    enum nbd_zeroes zeroes;
    bool has_context;
    struct export_name context_export; /* H3 */
    struct timer timer;
    uint64_t left_ns; /* H1, while the clock stands */
};

enum step { STEP_NEXT, STEP_TRANSMIT, STEP_END };

/* --- the clock (H1) --- */

static void clock_fire(struct timer *t)
{
    struct handshake *h = container_of(t, struct handshake, timer);
    connection_end(h->c, LOG_WARN, "the handshake took too long");
    conn_shutdown(h->c->conn);
}

static void clock_run(struct handshake *h)
{
    timer_arm(&h->timer, clock_now(h->c->server->rt) + h->left_ns);
}

static void clock_stand(struct handshake *h)
{
    uint64_t now_ns = clock_now(h->c->server->rt);
    h->left_ns = h->timer.deadline_ns > now_ns ? h->timer.deadline_ns - now_ns : 0;
    timer_cancel(&h->timer);
}

/* --- options: each handler appends its replies to h->out --- */

static struct volumes *volumes_of(const struct handshake *h)
{
    return h->c->server->volumes;
}

/* The code of a reply for a failed lookup or open. */
static enum nbd_reply_code reply_code(int negative_errno)
{
    switch (negative_errno) {
    case -ENOENT:
    case -EINVAL:
    case -ENAMETOOLONG:
        return NBD_REP_ERR_UNKNOWN;
    case -ECANCELED:
        return NBD_REP_ERR_SHUTDOWN;
    default:
        return NBD_REP_ERR_POLICY;
    }
}

/* The name as a client sent it, fit for a log line. */
static const char *shown_name(struct nbd_string name, char out[SHOWN_NAME_SIZE])
{
    size_t length = MIN(name.length, (size_t)SHOWN_NAME_SIZE - 1);
    for (size_t i = 0; i < length; i++)
        out[i] = name.bytes[i] >= ' ' && name.bytes[i] <= '~' ? name.bytes[i] : '?';
    out[length] = '\0';
    return out;
}

static void log_failed_open(struct handshake *h, struct nbd_string name, int r, const char *text)
{
    char shown[SHOWN_NAME_SIZE];
    log_at(r == -ENOENT ? LOG_DEBUG : LOG_INFO, "%s: cannot open %s: %s", conn_peer(h->c->conn),
           shown_name(name, shown), text[0] ? text : err_text(r));
}

static void reply_failed(struct handshake *h, uint32_t option, int r, const char *text)
{
    if (!text || !text[0])
        text = r == -ENOENT ? "no such volume or snapshot" : err_text(r);
    nbd_reply_error(&h->out, option, reply_code(r), text);
    h->c->server->stats.errors++;
}

static enum step reply_invalid(struct handshake *h, const struct nbd_option *o)
{
    nbd_reply_error(&h->out, o->code, NBD_REP_ERR_INVALID, "malformed option");
    return STEP_NEXT;
}

static fiber_fn enum step option_abort(struct handshake *h, const struct nbd_option *o,
                                       const uint8_t *data)
{
    nbd_reply_ack(&h->out, o->code);
    connection_end(h->c, LOG_DEBUG, "the client ended the handshake");
    return STEP_END;
}

static fiber_fn enum step option_list(struct handshake *h, const struct nbd_option *o,
                                      const uint8_t *data)
{
    if (o->length > 0)
        return reply_invalid(h, o);
    struct volume_info *infos = NULL;
    size_t count = 0;
    int r = volume_list(volumes_of(h), NULL, &infos, &count);
    if (r < 0) {
        reply_failed(h, o->code, r, NULL);
        return STEP_NEXT;
    }
    for (size_t i = 0; i < count; i++) {
        struct export_name n = {0};
        snprintf(n.name, sizeof(n.name), "%s", infos[i].name);
        snprintf(n.tag, sizeof(n.tag), "%s", infos[i].tag);
        char name[NBD_EXPORT_NAME_SIZE], description[EXPORT_DESCRIPTION_SIZE];
        export_name_format(&n, name);
        export_describe(&infos[i], description);
        nbd_reply_server(&h->out, name, description);
    }
    free(infos);
    nbd_reply_ack(&h->out, o->code);
    return STEP_NEXT;
}

static fiber_fn enum step option_structured_reply(struct handshake *h, const struct nbd_option *o,
                                                  const uint8_t *data)
{
    if (o->length > 0)
        return reply_invalid(h, o);
    h->c->structured_replies = true;
    nbd_reply_ack(&h->out, o->code);
    return STEP_NEXT;
}

static bool string_is(struct nbd_string s, const char *text)
{
    return s.length == strlen(text) && memcmp(s.bytes, text, s.length) == 0;
}

/* Does any query ask for base:allocation? A listing also takes no query at all, and "base:". */
static bool wants_context(const struct nbd_option *o, struct nbd_meta_request *m)
{
    bool listing = o->code == NBD_OPT_LIST_META_CONTEXT;
    if (listing && m->query_count == 0)
        return true;
    bool wanted = false;
    while (m->query_count > 0) {
        struct nbd_string query = nbd_meta_request_next(m);
        wanted |= string_is(query, NBD_CONTEXT_NAME) || (listing && string_is(query, "base:"));
    }
    return wanted;
}

static fiber_fn enum step option_meta_context(struct handshake *h, const struct nbd_option *o,
                                              const uint8_t *data)
{
    bool setting = o->code == NBD_OPT_SET_META_CONTEXT;
    if (setting)
        h->has_context = false; /* H3 */
    struct nbd_meta_request m;
    if (nbd_meta_request_get(data, o->length, &m) < 0)
        return reply_invalid(h, o);
    if (!h->c->structured_replies) {
        nbd_reply_error(&h->out, o->code, NBD_REP_ERR_INVALID, "structured replies come first");
        return STEP_NEXT;
    }
    struct export_name n;
    struct export_info info;
    int r = export_name_parse(m.name, &n);
    if (r == 0)
        r = export_find(volumes_of(h), &n, &info);
    if (r < 0) {
        reply_failed(h, o->code, r, NULL);
        return STEP_NEXT;
    }
    if (wants_context(o, &m)) {
        nbd_reply_meta_context(&h->out, o->code, setting ? NBD_CONTEXT_ID : 0, NBD_CONTEXT_NAME);
        if (setting) {
            h->has_context = true;
            h->context_export = n;
        }
    }
    nbd_reply_ack(&h->out, o->code);
    return STEP_NEXT;
}

static void append_info(struct handshake *h, const struct nbd_option *o,
                        const struct nbd_info_request *q, const struct export_name *n,
                        const struct export_info *info)
{
    unsigned flags = export_flags(info->read_only ? EXPORT_READ_ONLY : EXPORT_READ_WRITE, h->c);
    nbd_reply_info_export(&h->out, o->code, info->size, flags);
    if (q->wants_name) {
        char name[NBD_EXPORT_NAME_SIZE];
        export_name_format(n, name);
        nbd_reply_info_text(&h->out, o->code, NBD_INFO_NAME, name);
    }
    if (q->wants_description)
        nbd_reply_info_text(&h->out, o->code, NBD_INFO_DESCRIPTION, info->description);
    if (q->wants_block_size)
        nbd_reply_info_block_size(&h->out, o->code);
    nbd_reply_ack(&h->out, o->code);
}

/* A gateway keeps a volume for a moment after its last user has gone. A client that comes to
 * another one meanwhile (dog made or cloned the volume there, or the guest has just moved) waits
 * for that, and is refused only if it is in use. */
#define OPEN_BUSY_WAIT_NS (3 * NS_PER_S)
#define OPEN_BUSY_STEP_NS (50 * NS_PER_MS)

static fiber_fn int open_when_free(struct handshake *h, const struct export_name *n,
                                   struct volume_error *error)
{
    struct connection *c = h->c;
    struct rt *rt = c->server->rt;
    unsigned flags = n->tag[0] ? VOLUME_READ_ONLY : VOLUME_FORWARD;
    uint64_t end = clock_now(rt) + OPEN_BUSY_WAIT_NS;
    for (;;) {
        *error = (struct volume_error){0};
        int r = volume_open(volumes_of(h), n->name, n->tag, flags, &c->volume, error);
        if (r != -EBUSY || c->server->stopping || clock_now(rt) >= end)
            return r;
        r = fiber_sleep(rt, OPEN_BUSY_STEP_NS);
        if (r < 0)
            return r;
    }
}

/* Opens the export for the transmission phase. */
static fiber_fn int open_export(struct handshake *h, const struct export_name *n,
                                struct volume_error *error)
{
    struct connection *c = h->c;
    int r = open_when_free(h, n, error);
    if (r < 0)
        return r;
    export_name_format(n, c->export_name);
    c->block_status = h->has_context && strcmp(h->context_export.name, n->name) == 0 &&
                      strcmp(h->context_export.tag, n->tag) == 0; /* H3 */
    return 0;
}

/* NBD_OPT_INFO only looks; NBD_OPT_GO opens and begins transmission. */
static fiber_fn enum step option_info_or_go(struct handshake *h, const struct nbd_option *o,
                                            const uint8_t *data)
{
    struct nbd_info_request q;
    if (nbd_info_request_get(data, o->length, &q) < 0)
        return reply_invalid(h, o);
    struct export_name n;
    struct export_info info;
    struct volume_error error = {0};
    int r = export_name_parse(q.name, &n);
    if (r == 0)
        r = export_find(volumes_of(h), &n, &info);
    if (r == 0 && o->code == NBD_OPT_GO)
        r = open_export(h, &n, &error);
    if (r < 0) {
        log_failed_open(h, q.name, r, error.text);
        reply_failed(h, o->code, r, error.text);
        return STEP_NEXT;
    }
    if (o->code == NBD_OPT_GO) { /* it may have changed since it was looked up */
        info.size = volume_size(h->c->volume);
        info.read_only = volume_is_read_only(h->c->volume);
    }
    append_info(h, o, &q, &n, &info);
    return o->code == NBD_OPT_GO ? STEP_TRANSMIT : STEP_NEXT;
}

/* The old way has no reply for failure but to close. */
static fiber_fn enum step option_export_name(struct handshake *h, const struct nbd_option *o,
                                             const uint8_t *data)
{
    struct connection *c = h->c;
    struct export_name n;
    struct volume_error error = {0};
    struct nbd_string name = {(const char *)data, o->length};
    int r = export_name_parse(name, &n);
    if (r == 0)
        r = open_export(h, &n, &error);
    if (r < 0) {
        log_failed_open(h, name, r, error.text);
        connection_end(c, LOG_INFO, "the export could not be opened");
        return STEP_END;
    }
    enum export_access access =
        volume_is_read_only(c->volume) ? EXPORT_READ_ONLY : EXPORT_READ_WRITE;
    nbd_export_name_answer(&h->out, volume_size(c->volume), export_flags(access, c), h->zeroes);
    return STEP_TRANSMIT;
}

static const struct option_handler {
    enum nbd_option_code code;
    fiber_fn enum step (*run)(struct handshake *h, const struct nbd_option *o, const uint8_t *data);
} handlers[] = {
    {NBD_OPT_EXPORT_NAME, option_export_name},
    {NBD_OPT_ABORT, option_abort},
    {NBD_OPT_LIST, option_list},
    {NBD_OPT_INFO, option_info_or_go},
    {NBD_OPT_GO, option_info_or_go},
    {NBD_OPT_STRUCTURED_REPLY, option_structured_reply},
    {NBD_OPT_LIST_META_CONTEXT, option_meta_context},
    {NBD_OPT_SET_META_CONTEXT, option_meta_context},
};

static const struct option_handler *find_handler(uint32_t code)
{
    for (size_t i = 0; i < ARRAY_SIZE(handlers); i++) {
        if (handlers[i].code == code)
            return &handlers[i];
    }
    return NULL;
}

/* --- the conversation --- */

/* After a failed conn_read() or conn_write(). */
static enum step broken(struct handshake *h)
{
    connection_end(h->c, LOG_INFO, "the client went away during the handshake");
    return STEP_END;
}

/* H2: reads past the data and answers `code`. */
static fiber_fn enum step refuse_option(struct handshake *h, const struct nbd_option *o,
                                        enum nbd_reply_code code, const char *text)
{
    struct nbd_server *s = h->c->server;
    if (o->length > OPTION_SKIP_SIZE_MAX) {
        connection_end(h->c, LOG_WARN, "it announced an option of absurd length");
        return STEP_END;
    }
    for (uint32_t left = o->length; left > 0;) {
        uint32_t n = MIN(left, NBD_SCRATCH_SIZE);
        if (conn_read(h->c->conn, s->scratch, n) < 0)
            return broken(h);
        left -= n;
    }
    nbd_reply_error(&h->out, o->code, code, text);
    return STEP_NEXT;
}

static fiber_fn enum step handle_option(struct handshake *h, const struct nbd_option *o)
{
    const struct option_handler *handler = find_handler(o->code);
    if (!handler)
        return refuse_option(h, o, NBD_REP_ERR_UNSUP, "this server does not know the option");
    if (o->length > OPTION_SIZE_MAX) {
        if (o->code == NBD_OPT_EXPORT_NAME) {
            connection_end(h->c, LOG_WARN, "it asked for an export name of absurd length");
            return STEP_END;
        }
        return refuse_option(h, o, NBD_REP_ERR_TOO_BIG, "the option's data is too long");
    }
    uint8_t *data = malloc(MAX(o->length, 1u));
    if (!data)
        return refuse_option(h, o, NBD_REP_ERR_POLICY, err_text(-ENOMEM));
    enum step step = STEP_END;
    if (conn_read(h->c->conn, data, o->length) < 0) {
        broken(h);
    } else {
        clock_stand(h);
        step = handler->run(h, o, data);
        clock_run(h);
    }
    free(data);
    return step;
}

static fiber_fn int send_replies(struct handshake *h)
{
    struct iovec iov = {.iov_base = h->out.data, .iov_len = h->out.length};
    int r = h->out.error;
    if (r == 0 && iov.iov_len > 0)
        r = conn_write(h->c->conn, &iov, 1); /* H4 */
    enc_done(&h->out);
    return r;
}

static fiber_fn enum step next_option(struct handshake *h)
{
    uint8_t bytes[NBD_OPTION_SIZE];
    struct nbd_option o;
    int r = conn_read(h->c->conn, bytes, sizeof(bytes));
    if (r == -ENOTCONN) /* between two options: tools that only look do so */
        connection_end(h->c, LOG_DEBUG, "the client left the handshake");
    if (r < 0)
        return broken(h);
    if (nbd_option_get(bytes, &o) < 0) {
        connection_end(h->c, LOG_WARN, "it sent something that is no NBD option");
        return STEP_END;
    }
    enum step step = handle_option(h, &o);
    if (send_replies(h) < 0)
        return broken(h);
    return step;
}

static fiber_fn enum step greet(struct handshake *h)
{
    uint8_t greeting[NBD_GREETING_SIZE], answer[NBD_CLIENT_FLAGS_SIZE];
    struct iovec iov = {.iov_base = greeting, .iov_len = sizeof(greeting)};
    nbd_greeting_put(greeting);
    unsigned flags;
    if (conn_write(h->c->conn, &iov, 1) < 0 || conn_read(h->c->conn, answer, sizeof(answer)) < 0) {
        connection_end(h->c, LOG_DEBUG, "the client went away before it said anything");
        return STEP_END;
    }
    if (nbd_client_flags_get(answer, &flags) < 0) {
        connection_end(h->c, LOG_WARN, "it does not speak NBD's fixed newstyle");
        return STEP_END;
    }
    h->zeroes = flags & NBD_CLIENT_NO_ZEROES ? NBD_ZEROES_LEFT_OUT : NBD_ZEROES_SENT;
    return STEP_NEXT;
}

fiber_fn bool handshake_run(struct connection *c)
{
    struct handshake h = {.c = c, .left_ns = NBD_HANDSHAKE_NS};
    enc_init(&h.out);
    timer_init(&h.timer, c->server->rt, clock_fire);
    clock_run(&h);
    enum step step = greet(&h);
    while (step == STEP_NEXT)
        step = next_option(&h);
    timer_cancel(&h.timer);
    enc_done(&h.out);
    ASSERT(step == STEP_TRANSMIT || c->end_reason);
    return step == STEP_TRANSMIT;
}
