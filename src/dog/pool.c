/* SPDX-License-Identifier: Apache-2.0 */
/* dog pool: how many copies there are of what. */
#include <inttypes.h>
#include <stdio.h>
#include "base/human.h"
#include "dog/dog.h"
#include "dog/table.h"

static const struct option_spec set_options[] = {
    {"copies", 'c', OPTION_TEXT, "N", "copies of everything in the pool, each in another zone"},
    {"min-copies", 0, OPTION_TEXT, "N", "writes wait below this number of copies in sync"},
    {NULL},
};

static void print_pools(const json_t *pools)
{
    static const struct table_column columns[] = {
        {"Name", TABLE_LEFT},    {"Copies", TABLE_RIGHT},  {"Min", TABLE_RIGHT},
        {"Groups", TABLE_RIGHT}, {"Objects", TABLE_RIGHT},
    };
    static const char *const counts[] = {"copies", "min_copies", "groups"};
    struct table *t = table_new(columns, ARRAY_SIZE(columns));
    char text[HUMAN_SIZE];
    size_t i;
    json_t *p;
    json_array_foreach(pools, i, p)
    {
        table_cell(t, dog_string(p, "name"));
        for (unsigned k = 0; k < ARRAY_SIZE(counts); k++) {
            snprintf(text, sizeof(text), "%" PRIu64, dog_u64(p, counts[k]));
            table_cell(t, text);
        }
        table_cell(t, human_size(dog_u64(p, "object_size"), text));
    }
    table_print(t, stdout);
    table_free(t);
}

static int run_list(struct dog *d)
{
    int code = DOG_OK;
    json_t *answer = dog_ask(d, json_pack("{s:s}", "op", "pool.list"), NULL, NULL, &code);
    if (!answer)
        return code;
    if (d->output == DOG_JSON)
        dog_print_json(answer);
    else
        print_pools(json_object_get(answer, "pools"));
    json_decref(answer);
    return DOG_OK;
}

static int run_set(struct dog *d)
{
    static const struct {
        const char *option, *key;
    } counts[] = {{"copies", "copies"}, {"min-copies", "min_copies"}};
    json_t *request = json_pack("{s:s, s:s}", "op", "pool.set", "name", dog_argument(d, 0));
    bool any = false;
    for (unsigned i = 0; i < ARRAY_SIZE(counts); i++) {
        const char *text = options_text(d->options, counts[i].option);
        uint64_t value;
        if (!text)
            continue;
        int r = dog_parse_count(counts[i].option, text, 255, &value);
        if (r != 0) {
            json_decref(request);
            return r;
        }
        json_object_set_new(request, counts[i].key, json_integer((json_int_t)value));
        any = true;
    }
    if (!any) {
        json_decref(request);
        return dog_usage("what shall be changed? give --copies N or --min-copies N");
    }
    return dog_run_simple(d, request);
}

static const struct dog_verb verbs[] = {
    {"list", "", 0, 0, NULL, "lists the pools",
     "\"Copies\" is how many are kept, \"Min\" how many must be in sync for writes to go on.\n\n"
     "Examples:\n"
     "  dog pool list\n",
     run_list},
    {"set", "NAME", 1, 1, set_options, "changes how many copies a pool keeps",
     "Volumes stay in use meanwhile: data is copied or dropped in the background (dog node "
     "recovery\n"
     "shows how far it is). Each copy needs a zone of its own.\n\n"
     "Examples:\n"
     "  dog pool set default --copies 2\n"
     "  dog pool set default --min-copies 1\n",
     run_set},
    {NULL},
};
const struct dog_noun dog_pool = {"pool", "how many copies are kept of what", verbs};
