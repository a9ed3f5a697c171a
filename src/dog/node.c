/* SPDX-License-Identifier: Apache-2.0 */
/* dog node: the table of its verbs; list, info. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/human.h"
#include "dog/node.h"
#include "dog/table.h"

/* "tcp:host:port" -> "host:port"; others as they are. */
static const char *host_port(const json_t *node)
{
    const char *address = dog_string(node, "admin");
    return strncmp(address, "tcp:", 4) == 0 ? address + 4 : address;
}

static void cell_u64(struct table *t, uint64_t value)
{
    char text[32];
    snprintf(text, sizeof(text), "%" PRIu64, value);
    table_cell(t, text);
}

static void cell_size(struct table *t, uint64_t bytes)
{
    char text[HUMAN_SIZE];
    table_cell(t, human_size(bytes, text));
}

static void cell_percent(struct table *t, uint64_t part, uint64_t whole)
{
    char text[16];
    snprintf(text, sizeof(text), "%u%%",
             whole ? (unsigned)((double)part / (double)whole * 100 + 0.5) : 0);
    table_cell(t, text);
}

static void print_list(const json_t *nodes)
{
    static const struct table_column columns[] = {
        {"Id", TABLE_RIGHT},  {"Host:Port", TABLE_LEFT}, {"Name", TABLE_LEFT},
        {"Zone", TABLE_LEFT}, {"State", TABLE_LEFT},     {"Session", TABLE_LEFT},
    };
    struct table *t = table_new(columns, ARRAY_SIZE(columns));
    size_t i;
    json_t *n;
    json_array_foreach(nodes, i, n)
    {
        const char *session = dog_string(n, "session");
        cell_u64(t, dog_u64(n, "id"));
        table_cell(t, host_port(n));
        table_cell(t, dog_string(n, "name"));
        table_cell(t, dog_string(n, "zone"));
        table_cell(t, dog_string(n, "state"));
        table_cell(t, session[0] ? session : "-");
    }
    table_print(t, stdout);
    table_free(t);
}

static int run_list(struct dog *d)
{
    int code = DOG_OK;
    json_t *answer = dog_ask(d, json_pack("{s:s}", "op", "node.list"), NULL, NULL, &code);
    if (!answer)
        return code;
    json_t *nodes = json_object_get(answer, "nodes"), *n;
    size_t i;
    switch (d->output) {
    case DOG_JSON:
        dog_print_json(answer);
        break;
    case DOG_RAW: /* id host:port vnodes zone; the weight stands for the virtual nodes of old */
        json_array_foreach(nodes, i, n)
            printf("%" PRIu64 " %s %" PRIu64 " %s\n", dog_u64(n, "id"), host_port(n),
                   dog_u64(n, "weight"), dog_string(n, "zone"));
        break;
    case DOG_HUMAN:
        print_list(nodes);
        break;
    }
    json_decref(answer);
    return DOG_OK;
}

struct totals {
    uint64_t size, used, free, virtual;
};

static struct totals sum_up(const json_t *answer)
{
    struct totals s = {.virtual = dog_u64(answer, "virtual_bytes")};
    size_t i;
    json_t *n;
    json_array_foreach(json_object_get(answer, "nodes"), i, n)
    {
        s.size += dog_u64(n, "size_bytes");
        s.used += dog_u64(n, "used_bytes");
        s.free += dog_u64(n, "free_bytes");
    }
    return s;
}

/* "3, 12.5 GiB" passes and bytes; "off"; with what was found. */
static void cell_scrub(struct table *t, const json_t *n)
{
    char text[96], size[HUMAN_SIZE];
    uint64_t errors = dog_u64(n, "scrub_errors");
    int used = snprintf(text, sizeof(text), "%" PRIu64 " passes, %s", dog_u64(n, "scrub_passes"),
                        human_size(dog_u64(n, "scrub_bytes"), size));
    if (dog_u64(n, "scrub_rate") == 0)
        used = snprintf(text, sizeof(text), "off");
    if (errors > 0 && used > 0)
        snprintf(text + used, sizeof(text) - (size_t)used,
                 ", %" PRIu64 " errors (%" PRIu64 " mended)", errors, dog_u64(n, "scrub_mended"));
    table_cell(t, text);
}

/* Where the space of each store is, and what its scrub has seen. */
static void print_stores(const json_t *answer)
{
    static const struct table_column columns[] = {
        {"Id", TABLE_RIGHT},      {"Data", TABLE_RIGHT},    {"Records", TABLE_RIGHT},
        {"Pending", TABLE_RIGHT}, {"Reserve", TABLE_RIGHT}, {"Shared", TABLE_RIGHT},
        {"Log", TABLE_RIGHT},     {"Scrub", TABLE_LEFT},
    };
    static const char *const sizes[] = {"data_bytes",    "record_bytes", "pending_bytes",
                                        "reserve_bytes", "shared_bytes", "log_bytes"};
    struct table *t = table_new(columns, ARRAY_SIZE(columns));
    size_t i;
    json_t *n;
    json_array_foreach(json_object_get(answer, "nodes"), i, n)
    {
        if (!dog_bool(n, "reachable"))
            continue;
        cell_u64(t, dog_u64(n, "id"));
        for (unsigned k = 0; k < ARRAY_SIZE(sizes); k++)
            cell_size(t, dog_u64(n, sizes[k]));
        cell_scrub(t, n);
    }
    printf("\n");
    table_print(t, stdout);
    table_free(t);
    json_array_foreach(json_object_get(answer, "nodes"), i, n)
    {
        if (dog_bool(n, "reachable") && dog_string(n, "scrub_last")[0])
            printf("node %" PRIu64 ", last finding of the scrub: %s\n", dog_u64(n, "id"),
                   dog_string(n, "scrub_last"));
    }
}

static void print_info(const json_t *answer, const struct totals *s)
{
    static const struct table_column columns[] = {
        {"Id", TABLE_RIGHT},      {"Name", TABLE_LEFT},    {"Size", TABLE_RIGHT},
        {"Used", TABLE_RIGHT},    {"Avail", TABLE_RIGHT},  {"Use%", TABLE_RIGHT},
        {"Objects", TABLE_RIGHT}, {"Memory", TABLE_RIGHT}, {"Up", TABLE_LEFT},
    };
    struct table *t = table_new(columns, ARRAY_SIZE(columns));
    char text[HUMAN_SIZE];
    size_t i;
    json_t *n;
    json_array_foreach(json_object_get(answer, "nodes"), i, n)
    {
        uint64_t size = dog_u64(n, "size_bytes"), used = dog_u64(n, "used_bytes");
        const char *failed = dog_string(n, "failed");
        cell_u64(t, dog_u64(n, "id"));
        table_cell(t, dog_string(n, "name"));
        cell_size(t, size);
        cell_size(t, used);
        cell_size(t, dog_u64(n, "free_bytes"));
        cell_percent(t, used, size);
        cell_u64(t, dog_u64(n, "objects"));
        cell_size(t, dog_u64(n, "rss_bytes"));
        if (!dog_bool(n, "reachable"))
            table_cell(t, "missing");
        else if (failed[0])
            table_cell(t, failed);
        else
            table_cell(t, human_duration(dog_u64(n, "uptime_seconds") * 1000000000ULL, text));
    }
    table_cell(t, "");
    table_cell(t, "Total");
    cell_size(t, s->size);
    cell_size(t, s->used);
    cell_size(t, s->free);
    cell_percent(t, s->used, s->size);
    for (unsigned c = 6; c < ARRAY_SIZE(columns); c++)
        table_cell(t, "");
    table_print(t, stdout);
    table_free(t);
    print_stores(answer);
    printf("\nTotal virtual image size: %s\n", human_size(s->virtual, text));
}

static unsigned percent(uint64_t part, uint64_t whole)
{
    return whole ? (unsigned)((double)part / (double)whole * 100) : 0;
}

static void print_info_raw(const json_t *answer, const struct totals *s)
{
    size_t i;
    json_t *n;
    json_array_foreach(json_object_get(answer, "nodes"), i, n)
    {
        uint64_t size = dog_u64(n, "size_bytes"), used = dog_u64(n, "used_bytes");
        if (dog_bool(n, "reachable"))
            printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %u%%\n", dog_u64(n, "id"), size,
                   used, dog_u64(n, "free_bytes"), percent(used, size));
    }
    printf("Total %" PRIu64 " %" PRIu64 " %" PRIu64 " %u%% %" PRIu64 "\n", s->size, s->used,
           s->free, percent(s->used, s->size), s->virtual);
}

static int run_info(struct dog *d)
{
    int code = DOG_OK;
    json_t *answer = dog_ask(d, json_pack("{s:s}", "op", "node.info"), NULL, NULL, &code);
    if (!answer)
        return code;
    struct totals s = sum_up(answer);
    switch (d->output) {
    case DOG_JSON:
        json_object_set_new(answer, "size_bytes", json_integer((json_int_t)s.size));
        json_object_set_new(answer, "used_bytes", json_integer((json_int_t)s.used));
        json_object_set_new(answer, "free_bytes", json_integer((json_int_t)s.free));
        dog_print_json(answer);
        break;
    case DOG_RAW:
        print_info_raw(answer, &s);
        break;
    case DOG_HUMAN:
        print_info(answer, &s);
        break;
    }
    json_decref(answer);
    return DOG_OK;
}

static const struct option_spec drain_options[] = {
    {"undo", 0, OPTION_FLAG, NULL, "let it hold data again"},
    {NULL},
};
static const struct option_spec lost_options[] = {
    {"accept-loss", 0, OPTION_TEXT, "HEIR",
     "where nobody else has everything, go on with what node HEIR has"},
    {NULL},
};

static const struct dog_verb verbs[] = {
    {"list", "", 0, 0, NULL, "lists the nodes of the cluster",
     "State is \"active\", or \"missing\" while no sheep runs for that store. A session is one "
     "start of\n"
     "a sheep.\n\n"
     "Examples:\n"
     "  dog node list\n"
     "  dog node list -r            id host:port weight zone\n",
     run_list},
    {"info", "", 0, 0, NULL, "shows the space, memory and age of each node",
     "\"Used\" counts each block once, however many images share it: \"Data\" and \"Records\" "
     "(maps,\n"
     "metas, indexes). Size = Data + Records + Pending + Reserve + Avail: \"Pending\" is on its "
     "way,\n"
     "\"Reserve\" is kept for deletions and checkpoints (with --json, unreachable_bytes is what a\n"
     "sparse file could not get from its file system). \"Shared\" is what sharing saves. \"Scrub\" "
     "is\n"
     "what was verified in the background since the sheep started.\n\n"
     "Examples:\n"
     "  dog node info\n"
     "  dog node info -r            id size used avail use%; then the totals with the virtual "
     "size\n",
     run_info},
    {"recovery", "", 0, 0, NULL, "shows how far nodes are with catching up",
     "\"Groups\" are those that a node joins: how many it has completely. \"Left\" is an estimate "
     "from\nthe present rate. Guests' requests go first.\n\n"
     "Examples:\n"
     "  dog node recovery\n"
     "  dog node recovery -r        id groups-done groups-total bytes bytes/s seconds-left\n",
     node_run_recovery},
    {"drain", "NAME", 1, 1, drain_options, "moves all data from a node to the others",
     "The node serves until every group has its copies elsewhere; dog node recovery shows how far "
     "the\nothers are. Then it can be stopped, and removed.\n\n"
     "Examples:\n"
     "  dog node drain rack2-disk1\n"
     "  dog node drain rack2-disk1 --undo\n",
     node_run_drain},
    {"weight", "NAME WEIGHT", 2, 2, NULL, "sets how much of the data a node holds",
     "In proportion to the others; 1024 stands for 1 TiB, 0 holds nothing. Without it a node has "
     "the\nweight that its sheep registers (its size).\n\n"
     "Examples:\n"
     "  dog node weight rack2-disk1 512\n",
     node_run_weight},
    {"lost", "NAME", 1, 1, lost_options, "says that a node's disk is gone for good",
     "Its copies are made again from the others, at once. A sheep with that store is refused from "
     "then\non. Where the lost node had the only copy that is known to be up to date, the group "
     "waits for\none that has everything that was answered; --accept-loss HEIR goes on with what "
     "HEIR has, and\nloses what only the lost node had.\n\n"
     "Examples:\n"
     "  dog node lost rack2-disk1\n",
     node_run_lost},
    {"remove", "NAME", 1, 1, NULL, "takes a node that holds nothing out of the list",
     "It is drained first if need be, and leaves the list when it holds nothing and its sheep does "
     "not\nrun.\n\n"
     "Examples:\n"
     "  dog node remove rack2-disk1\n",
     node_run_remove},
    {NULL},
};
const struct dog_noun dog_node = {"node", "the sheep that make up the cluster", verbs};
