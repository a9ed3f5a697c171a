/* SPDX-License-Identifier: Apache-2.0 */
/* dog node: what changes a node's part in the cluster, and how far recovery is. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/human.h"
#include "dog/node.h"
#include "dog/table.h"

static json_t *node_request(const struct dog *d, const char *op)
{
    return json_pack("{s:s, s:s}", "op", op, "node", dog_argument(d, 0));
}

int node_run_drain(struct dog *d)
{
    json_t *request = node_request(d, "node.drain");
    if (options_has(d->options, "undo"))
        json_object_set_new(request, "undo", json_true());
    return dog_run_simple(d, request);
}

int node_run_weight(struct dog *d)
{
    uint64_t weight;
    int r = dog_parse_count("weight", dog_argument(d, 1), UINT32_MAX - 1, &weight);
    if (r != 0)
        return r;
    json_t *request = node_request(d, "node.weight");
    json_object_set_new(request, "weight", json_integer((json_int_t)weight));
    return dog_run_simple(d, request);
}

int node_run_lost(struct dog *d)
{
    json_t *request = node_request(d, "node.lost");
    const char *heir = options_text(d->options, "accept-loss");
    if (heir)
        json_object_set_new(request, "heir", json_string(heir));
    return dog_run_simple(d, request);
}

int node_run_remove(struct dog *d)
{
    return dog_run_simple(d, node_request(d, "node.remove"));
}

/* --- recovery --- */

static void cell_count(struct table *t, uint64_t part, uint64_t whole)
{
    char text[48];
    snprintf(text, sizeof(text), "%" PRIu64 " of %" PRIu64, part, whole);
    table_cell(t, text);
}

static void print_recovery(const json_t *nodes)
{
    static const struct table_column columns[] = {
        {"Id", TABLE_RIGHT},     {"Name", TABLE_LEFT},   {"State", TABLE_LEFT},
        {"Groups", TABLE_RIGHT}, {"Moved", TABLE_RIGHT}, {"Rate", TABLE_RIGHT},
        {"Left", TABLE_LEFT},
    };
    struct table *t = table_new(columns, ARRAY_SIZE(columns));
    char text[HUMAN_SIZE], rate[HUMAN_SIZE + 4];
    size_t i;
    json_t *n;
    json_array_foreach(nodes, i, n)
    {
        uint64_t total = dog_u64(n, "groups_total"), eta = dog_u64(n, "eta_seconds");
        bool active = dog_u64(n, "groups_done") < total;
        snprintf(text, sizeof(text), "%" PRIu64, dog_u64(n, "id"));
        table_cell(t, text);
        table_cell(t, dog_string(n, "name"));
        table_cell(t, dog_string(n, "state"));
        if (!dog_bool(n, "reachable")) {
            for (unsigned c = 3; c < ARRAY_SIZE(columns); c++)
                table_cell(t, "-");
            continue;
        }
        cell_count(t, dog_u64(n, "groups_done"), total);
        table_cell(t, human_size(dog_u64(n, "bytes_done"), text));
        snprintf(rate, sizeof(rate), "%s/s", human_size(dog_u64(n, "bytes_per_s"), text));
        table_cell(t, active ? rate : "-");
        table_cell(t, active && eta ? human_duration(eta * 1000000000ULL, text)
                      : active      ? "unknown"
                                    : "-");
    }
    table_print(t, stdout);
    table_free(t);
}

int node_run_recovery(struct dog *d)
{
    int code = DOG_OK;
    json_t *answer = dog_ask(d, json_pack("{s:s}", "op", "node.recovery"), NULL, NULL, &code);
    if (!answer)
        return code;
    json_t *nodes = json_object_get(answer, "nodes"), *n;
    size_t i;
    switch (d->output) {
    case DOG_JSON:
        dog_print_json(answer);
        break;
    case DOG_RAW: /* id groups-done groups-total bytes-done bytes-per-s eta-seconds */
        json_array_foreach(nodes, i, n)
            printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
                   dog_u64(n, "id"), dog_u64(n, "groups_done"), dog_u64(n, "groups_total"),
                   dog_u64(n, "bytes_done"), dog_u64(n, "bytes_per_s"), dog_u64(n, "eta_seconds"));
        break;
    case DOG_HUMAN:
        print_recovery(nodes);
        break;
    }
    json_decref(answer);
    return DOG_OK;
}
