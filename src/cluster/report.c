/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a node tells the leader (cluster_report()): as a value, and writing it.
 *
 * RP1 A report names its session; it counts only while the map lists that one.
 * RP2 The newest report is written in the end, whatever the cluster store says in between.
 */
#include <stdlib.h>
#include <string.h>
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/err.h"
#include "base/log.h"
#include "cluster/cluster_internal.h"

#define LOG_MODULE "cluster"

#define REPORT_VERSION 1
#define GATHER_NS      (50 * NS_PER_MS)

static_assert(64 + MAP_GROUP_COUNT_MAX * 12 + MAP_NODE_COUNT_MAX * 2 < CS_VALUE_MAX,
              "the largest report fits into one value");

void report_encode(const struct uuid *uuid, struct session s, const struct cluster_report *r,
                   struct enc *e)
{
    size_t start = e->length;
    enc_u16(e, REPORT_VERSION);
    enc_bytes(e, uuid->bytes, sizeof(uuid->bytes));
    enc_u64(e, s.value);
    enc_u32(e, (uint32_t)-r->failed);
    enc_u32(e, r->unreachable_count);
    for (unsigned i = 0; i < r->unreachable_count; i++)
        enc_u16(e, r->unreachable[i]);
    enc_u32(e, r->joined_count);
    for (uint32_t i = 0; i < r->joined_count; i++) {
        enc_u32(e, r->joined[i].group);
        enc_u64(e, r->joined[i].epoch);
    }
    if (!e->error)
        enc_u32(e, crc32c(0, e->data + start, e->length - start));
}

/* Both arrays in one allocation, the wider elements first. */
static int make_arrays(struct map_report *r, uint32_t joined_count, uint32_t unreachable_count)
{
    size_t joined_bytes = joined_count * sizeof(struct cluster_joined);
    void *p = malloc(joined_bytes + unreachable_count * sizeof(uint16_t) + 1);
    if (!p)
        return -ENOMEM;
    r->said.joined = p;
    r->said.joined_count = joined_count;
    r->said.unreachable = (const uint16_t *)(const void *)((char *)p + joined_bytes);
    r->said.unreachable_count = unreachable_count;
    return 0;
}

void report_done(struct map_report *r)
{
    free((void *)(uintptr_t)r->said.joined);
    r->said = (struct cluster_report){0};
}

static void dec_nodes(struct dec *d, struct map_report *r)
{
    uint16_t *nodes = (uint16_t *)(uintptr_t)r->said.unreachable;
    for (unsigned i = 0; i < r->said.unreachable_count; i++)
        nodes[i] = dec_u16(d);
}

static void dec_joined(struct dec *d, struct map_report *r)
{
    struct cluster_joined *joined = (struct cluster_joined *)(uintptr_t)r->said.joined;
    for (uint32_t i = 0; i < r->said.joined_count; i++) {
        joined[i].group = dec_u32(d);
        joined[i].epoch = dec_u64(d);
    }
}

int report_decode(const void *p, size_t length, struct map_report *ret)
{
    struct dec d;
    struct map_report report = {0};
    if (length < 6 || crc32c(0, p, length - 4) != get_le32((const uint8_t *)p + length - 4))
        return -EBADMSG;
    dec_init(&d, p, length - 4);
    if (dec_u16(&d) != REPORT_VERSION)
        return -EPROTO;
    const uint8_t *uuid = dec_bytes(&d, sizeof(report.uuid.bytes));
    if (uuid)
        memcpy(report.uuid.bytes, uuid, sizeof(report.uuid.bytes));
    report.session.value = dec_u64(&d);
    uint32_t failed = dec_u32(&d), unreachable_count = dec_u32(&d);
    /* The joined follow the nodes: their count is looked up before anything is allocated. */
    if (d.error || failed > 4095 || unreachable_count > MAP_NODE_COUNT_MAX ||
        dec_left(&d) < unreachable_count * 2 + 4)
        return -EBADMSG;
    uint32_t joined_count = get_le32(d.data + d.position + unreachable_count * 2);
    if (joined_count > MAP_GROUP_COUNT_MAX)
        return -EBADMSG;
    int r = make_arrays(&report, joined_count, unreachable_count);
    if (r < 0)
        return r;
    report.said.failed = -(int)failed;
    dec_nodes(&d, &report);
    dec_u32(&d);
    dec_joined(&d, &report);
    r = dec_finish(&d);
    if (r < 0)
        report_done(&report);
    else
        *ret = report;
    return r;
}

/* --- the leader reads them --- */

struct report_listing {
    struct map_report *reports;
    unsigned count, capacity;
};

static int list_report(void *arg, const char *key, const void *value, size_t length,
                       uint64_t revision)
{
    struct report_listing *l = arg;
    struct map_report report;
    int r = report_decode(value, length, &report);
    if (r == -ENOMEM)
        return r;
    if (r < 0) {
        log_warn("the cluster store's key %s cannot be understood (%s), it is left out", key,
                 err_text(r));
        return 0;
    }
    if (l->count == l->capacity) {
        unsigned capacity = l->capacity ? l->capacity * 2 : 16;
        struct map_report *grown = realloc(l->reports, capacity * sizeof(*grown));
        if (!grown) {
            report_done(&report);
            return -ENOMEM;
        }
        l->reports = grown;
        l->capacity = capacity;
    }
    l->reports[l->count++] = report;
    return 0;
}

void report_list_free(struct map_report *reports, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        report_done(&reports[i]);
    free(reports);
}

fiber_fn int report_list(struct cs *cs, struct map_report **ret, unsigned *ret_count)
{
    struct report_listing l = {0};
    int r = cs_list(cs, "report/", list_report, &l);
    if (r < 0) {
        report_list_free(l.reports, l.count);
        return r;
    }
    *ret = l.reports;
    *ret_count = l.count;
    return 0;
}

/* --- each node writes its own --- */

int cluster_report(struct cluster *c, const struct cluster_report *r)
{
    if (r->joined_count > MAP_GROUP_COUNT_MAX || r->unreachable_count > MAP_NODE_COUNT_MAX ||
        r->failed > 0)
        return -EINVAL;
    struct enc e;
    enc_init(&e);
    report_encode(&c->self.uuid, c->cs->session, r, &e);
    if (e.error) {
        enc_done(&e);
        return -ENOMEM;
    }
    enc_done(&c->report);
    c->report = e; /* takes */
    c->report_number++;
    waitq_wake_all(&c->changed);
    return 0;
}

static fiber_fn int write_report(struct cluster *c)
{
    char key[CS_KEY_SIZE];
    member_key(key, "report", &c->self.uuid);
    struct enc value = c->report; /* taken: another may be given while this one is written */
    uint64_t number = c->report_number;
    enc_init(&c->report);
    struct cs_op op = {.kind = CS_PUT,
                       .key = key,
                       .revision = CS_REVISION_ANY,
                       .value = value.data,
                       .length = value.length,
                       .ephemeral = true};
    int r = cs_txn(c->cs, &op, 1, NULL);
    if (r == 0) {
        c->report_written = number;
    } else if (c->report_number == number) {
        c->report = value; /* once more */
        return r;
    }
    enc_done(&value);
    return r;
}

static fiber_fn void report_main(void *arg)
{
    struct cluster *c = arg;
    while (!c->stopping) {
        if (c->report_written == c->report_number || c->cs->lost) {
            waitq_wait(&c->changed);
            continue;
        }
        if (fiber_sleep(c->rt, GATHER_NS) < 0)
            break;
        if (c->stopping || c->cs->lost)
            continue;
        int r = write_report(c);
        if (r == 0)
            continue;
        log_warn("the leader cannot be told of this node's state: %s", err_text(r));
        if (!cluster_pause(c))
            break;
    }
    cluster_fiber_end(c);
}

int cluster_reporting(struct cluster *c)
{
    return cluster_spawn(c, "cluster-report", report_main);
}
