/* SPDX-License-Identifier: Apache-2.0 */
/* dog cluster: format, info, status, check. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/human.h"
#include "dog/dog.h"

static const struct option_spec format_options[] = {
    {"copies", 'c', OPTION_TEXT, "N", "copies of everything, each in another zone (required)"},
    {"min-copies", 0, OPTION_TEXT, "N", "writes wait below this number (copies - 1; 1 of two)"},
    {"object-size", 0, OPTION_TEXT, "SIZE", "unit that volumes are cut into, 64K to 64M (4M)"},
    {"groups", 0, OPTION_TEXT, "N", "placement groups of the pool (4096)"},
    {"name", 0, OPTION_TEXT, "NAME", "name of the cluster, for people (kelpie)"},
    {"wait-nodes", 0, OPTION_TEXT, "N", "wait until N sheep have registered, then format"},
    {NULL},
};

static int set_count(const struct dog *d, json_t *request, const char *option, const char *key,
                     uint64_t max)
{
    const char *text = options_text(d->options, option);
    uint64_t value;
    if (!text)
        return 0;
    int r = dog_parse_count(option, text, max, &value);
    if (r == 0)
        json_object_set_new(request, key, json_integer((json_int_t)value));
    return r;
}

static void show_waiting(void *arg, const json_t *json)
{
    const struct dog *d = arg;
    if (d->progress && isatty(STDERR_FILENO))
        fprintf(stderr, "waiting: %" PRIu64 " of %" PRIu64 " %s\n", dog_u64(json, "progress"),
                dog_u64(json, "total"), dog_string(json, "what"));
}

static int run_format(struct dog *d)
{
    const char *size_text = options_text(d->options, "object-size");
    const char *name = options_text(d->options, "name");
    if (!options_has(d->options, "copies"))
        return dog_usage("how many copies? dog cluster format --copies 3 (needs 3 zones)");
    json_t *request = json_pack("{s:s}", "op", "cluster.format");
    int r = set_count(d, request, "copies", "copies", 255);
    if (r == 0)
        r = set_count(d, request, "min-copies", "min_copies", 255);
    if (r == 0)
        r = set_count(d, request, "groups", "groups", UINT32_MAX);
    if (r == 0)
        r = set_count(d, request, "wait-nodes", "wait_nodes", UINT32_MAX);
    uint64_t object_size;
    if (r == 0 && size_text && (r = dog_parse_size("object size", size_text, &object_size)) == 0)
        json_object_set_new(request, "object_size", json_integer((json_int_t)object_size));
    if (r != 0) {
        json_decref(request);
        return r;
    }
    if (name)
        json_object_set_new(request, "name", json_string(name));
    json_t *answer = dog_ask(d, request, show_waiting, d, &r);
    if (!answer)
        return r;
    if (d->output == DOG_JSON)
        dog_print_json(answer);
    else
        printf("formatted: cluster %s of %" PRIu64 " nodes\n", dog_string(answer, "uuid"),
               dog_u64(answer, "nodes"));
    json_decref(answer);
    return DOG_OK;
}

static void print_missing(const json_t *answer)
{
    size_t i;
    json_t *name;
    const char *separator = "; missing: ";
    json_array_foreach(json_object_get(answer, "nodes_missing"), i, name)
    {
        printf("%s%s", separator, json_string_value(name));
        separator = ", ";
    }
}

static void print_backlog(const json_t *backlog)
{
    uint64_t trash = dog_u64(backlog, "trash"), dying = dog_u64(backlog, "dying");
    uint64_t pending = dog_u64(backlog, "pending"), unclean = dog_u64(backlog, "unclean");
    printf("Open volumes:   %" PRIu64 "\n", dog_u64(backlog, "open"));
    printf("Backlog:        ");
    if (trash + dying + pending + unclean == 0)
        printf("none\n");
    else
        printf("%" PRIu64 " deleted images and %" PRIu64 " index blocks to reclaim, %" PRIu64
               " operations pending, %" PRIu64 " volumes to reconcile\n",
               trash, dying, pending, unclean);
}

static void print_formatted(const json_t *answer)
{
    char size[HUMAN_SIZE], used[HUMAN_SIZE], free_text[HUMAN_SIZE];
    const char *waiting = dog_string(answer, "waiting");
    printf("Cluster status: running, auto-recovery enabled\n");
    printf("Name:           %s\n", dog_string(answer, "name"));
    printf("UUID:           %s\n", dog_string(answer, "uuid"));
    printf("Nodes:          %" PRIu64 " of %" PRIu64 " live", dog_u64(answer, "nodes_live"),
           dog_u64(answer, "nodes"));
    print_missing(answer);
    printf("\n");
    size_t i;
    json_t *pool;
    json_array_foreach(json_object_get(answer, "pools"), i, pool)
    {
        printf("Pool:           %s: %" PRIu64 " copies (at least %" PRIu64 "), %" PRIu64
               " groups, objects of %s\n",
               dog_string(pool, "name"), dog_u64(pool, "copies"), dog_u64(pool, "min_copies"),
               dog_u64(pool, "groups"), human_size(dog_u64(pool, "object_size"), size));
    }
    printf("Space:          %s, used %s, free %s (all copies)\n",
           human_size(dog_u64(answer, "size_bytes"), size),
           human_size(dog_u64(answer, "used_bytes"), used),
           human_size(dog_u64(answer, "free_bytes"), free_text));
    print_backlog(json_object_get(answer, "backlog"));
    if (waiting[0] != '\0')
        printf("Waiting:        %s\n", waiting);
    printf("Map version:    %" PRIu64 "\n", dog_u64(answer, "map_version"));
}

static int run_info(struct dog *d)
{
    int code = DOG_OK;
    json_t *answer = dog_ask(d, json_pack("{s:s}", "op", "cluster.info"), NULL, NULL, &code);
    if (!answer)
        return code;
    if (d->output == DOG_JSON)
        dog_print_json(answer);
    else if (dog_bool(answer, "formatted"))
        print_formatted(answer);
    else
        printf("Cluster status: Waiting for cluster to be formatted\n"
               "Nodes:          %" PRIu64 " registered (dog cluster format --copies N makes the "
               "cluster out of them)\n",
               dog_u64(answer, "nodes_live"));
    json_decref(answer);
    return DOG_OK;
}

static void print_status(const json_t *answer)
{
    static const struct {
        const char *key, *text;
    } kinds[] = {
        {"full", "with all copies"},
        {"moving", "with all copies, and more being made"},
        {"degraded", "with fewer copies than wanted"},
        {"read_only", "with too few for writing"},
        {"waiting", "waiting for a node"},
        {"lost", "waiting for a decision"},
    };
    const json_t *groups = json_object_get(answer, "groups");
    const char *separator = ":";
    size_t i;
    json_t *reason;
    printf("%s\n", dog_string(answer, "state"));
    json_array_foreach(json_object_get(answer, "reasons"), i, reason)
        printf("- %s\n", json_string_value(reason));
    printf("%" PRIu64 " groups", dog_u64(groups, "total"));
    for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
        uint64_t n = dog_u64(groups, kinds[k].key);
        if (n == 0)
            continue;
        printf("%s %" PRIu64 " %s", separator, n, kinds[k].text);
        separator = ",";
    }
    printf("\n");
}

static int run_status(struct dog *d)
{
    int code = DOG_OK;
    json_t *answer = dog_ask(d, json_pack("{s:s}", "op", "cluster.status"), NULL, NULL, &code);
    if (!answer)
        return code;
    if (!dog_bool(answer, "healthy"))
        code = DOG_FAILURE;
    if (d->output == DOG_JSON)
        dog_print_json(answer);
    else if (d->output == DOG_RAW)
        printf("%s\n", dog_string(answer, "state"));
    else
        print_status(answer);
    json_decref(answer);
    return code;
}

static void print_check(const json_t *answer)
{
    uint64_t count = dog_u64(answer, "finding_count");
    size_t i;
    json_t *finding;
    json_array_foreach(json_object_get(answer, "findings"), i, finding)
        printf("%s\n", json_string_value(finding));
    if (count > i)
        printf("… and %" PRIu64 " more\n", count - i);
    printf("checked %" PRIu64 " volumes and %" PRIu64 " snapshots: %" PRIu64
           " objects reachable, %" PRIu64 " stored, %" PRIu64 " replicas compared, %" PRIu64
           " ledgers; %s\n",
           dog_u64(answer, "volumes"), dog_u64(answer, "snapshots"),
           dog_u64(answer, "objects_reachable"), dog_u64(answer, "objects_stored"),
           dog_u64(answer, "replicas_compared"), dog_u64(answer, "ledgers"),
           dog_bool(answer, "at_rest") ? "at rest"
                                       : "not at rest (what is in flight was left out)");
    if (count == 0)
        printf("no errors found\n");
    else
        printf("%" PRIu64 " errors found\n", count);
}

static int run_check(struct dog *d)
{
    int code = DOG_OK;
    json_t *answer = dog_ask(d, json_pack("{s:s}", "op", "cluster.check"), NULL, NULL, &code);
    if (!answer)
        return code;
    if (dog_u64(answer, "finding_count") > 0)
        code = DOG_FAILURE;
    if (d->output == DOG_JSON)
        dog_print_json(answer);
    else
        print_check(answer);
    json_decref(answer);
    return code;
}

static const struct dog_verb verbs[] = {
    {"format", "--copies N", 0, 0, format_options,
     "makes a cluster out of the sheep that are registered now",
     "Every sheep that uses the same cluster database and runs is taken in. Copies of an object\n"
     "never share a zone, so there must be at least as many zones (sheep --zone) as copies.\n"
     "A pool named \"default\" is made. Formatting again is refused (exit code 3).\n\n"
     "Examples:\n"
     "  dog cluster format --copies 3\n"
     "  dog cluster format --copies 2 --wait-nodes 4 --name lab\n",
     run_format},
    {"info", "", 0, 0, NULL, "shows the state of the cluster, its space, and what waits for what",
     "The first line is the status. \"Waiting\" says why requests wait now, if any do.\n"
     "\"Backlog\" is what deletions still have to give back; it works itself off.\n\n"
     "Examples:\n"
     "  dog cluster info\n"
     "  dog cluster info --json | jq .free_bytes\n",
     run_info},
    {"status", "", 0, 0, NULL, "says whether all is well, and if not, why and what to do",
     "Names every reason for anything that is not as it should be. Exit code 0: healthy, 1: "
     "not.\n\n"
     "Examples:\n"
     "  dog cluster status\n"
     "  dog cluster status -r       one word: healthy, degraded, recovering, waiting or lost\n",
     run_status},
    {"check", "", 0, 0, NULL, "proves that stored objects, references and copies agree",
     "Walks every volume and snapshot down to its data, takes the inventory of every sheep, and\n"
     "compares. It may run at any time; what is in flight is not reported. Exit code 0: clean,\n"
     "1: something was found.\n\n"
     "Examples:\n"
     "  dog cluster check\n"
     "  dog cluster check --json | jq .findings\n",
     run_check},
    {NULL},
};
const struct dog_noun dog_cluster = {"cluster", "the cluster as a whole", verbs};
