/* SPDX-License-Identifier: Apache-2.0 */
/* dog vdi list and tree. */
#include <inttypes.h>
#include <langinfo.h>
#include <stdio.h>
#include <string.h>
#include "base/human.h"
#include "dog/memory.h"
#include "dog/table.h"
#include "dog/vdi.h"

static void collect(void *arg, const json_t *frame)
{
    json_t *items = arg;
    json_array_extend(items, json_object_get(frame, "items"));
}

/* Asks the node that has the image open what it uses. Failures leave the figures out. */
static void fetch_usage(const struct dog *d, json_t *item)
{
    struct dog other = {.options = d->options};
    int code;
    if (client_address(dog_string(item, "usage_at"), "7000", other.address) < 0)
        return;
    json_t *request =
        json_pack("{s:s, s:O, s:O}", "op", "vdi.usage", "name", json_object_get(item, "name"),
                  "object_size", json_object_get(item, "object_size"));
    if (!dog_bool(item, "working"))
        json_object_set(request, "tag", json_object_get(item, "tag"));
    json_t *answer = dog_ask(&other, request, NULL, NULL, &code);
    json_object_del(answer, "ok");
    json_object_update(item, answer);
    json_decref(answer);
    client_close(other.client);
}

json_t *vdi_fetch(struct dog *d, const char *name, enum vdi_detail detail, int *ret_exit)
{
    json_t *items = json_array(), *item;
    json_t *request = json_pack("{s:s, s:b}", "op", "vdi.list", "usage", detail == VDI_USAGE);
    size_t i;
    if (name)
        json_object_set_new(request, "name", json_string(name));
    json_t *answer = dog_ask(d, request, collect, items, ret_exit);
    if (!answer) {
        json_decref(items);
        return NULL;
    }
    json_decref(answer);
    json_array_foreach(items, i, item)
    {
        if (json_object_get(item, "usage_at"))
            fetch_usage(d, item);
        json_object_del(item, "usage_at");
    }
    return items;
}

/* {"volumes": [...]} */
static void print_volumes_json(json_t *items)
{
    json_t *object = json_pack("{s:O}", "volumes", items);
    dog_print_json(object);
    json_decref(object);
}

static unsigned shift_of(uint64_t object_size)
{
    return object_size ? 63 - (unsigned)__builtin_clzll(object_size) : 0;
}

/* Names of old escaped blanks and backslashes so that columns stay columns. */
static void print_escaped(const char *s)
{
    for (; *s != '\0'; s++) {
        if (*s == ' ' || *s == '\\')
            putchar('\\');
        putchar(*s);
    }
}

static void print_raw(const json_t *items)
{
    size_t i;
    json_t *v;
    json_array_foreach(items, i, v)
    {
        bool clone = dog_string(v, "parent_name")[0] != '\0';
        printf("%c ", !dog_bool(v, "working") ? 's' : clone ? 'c' : '=');
        print_escaped(dog_string(v, "name"));
        printf(" %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIx64 " %" PRIu64
               " %s %u\n",
               dog_u64(v, "snapshot_number"), dog_u64(v, "size"), dog_u64(v, "used_bytes"),
               dog_u64(v, "shared_bytes"), dog_u64(v, "created_ns") / UINT64_C(1000000000),
               dog_u64(v, "vid"), dog_u64(v, "copies"), dog_string(v, "tag"),
               shift_of(dog_u64(v, "object_size")));
    }
}

static void cell_bytes(struct table *t, const json_t *v, const char *key)
{
    char text[HUMAN_SIZE];
    table_cell(t, json_object_get(v, key) ? human_size(dog_u64(v, key), text) : "?");
}

static const char *or_dash(const char *s)
{
    return s[0] != '\0' ? s : "-";
}

static void print_table(const json_t *items)
{
    static const struct table_column columns[] = {
        {"Name", TABLE_LEFT},    {"Tag", TABLE_LEFT},   {"Id", TABLE_RIGHT},
        {"Size", TABLE_RIGHT},   {"Used", TABLE_RIGHT}, {"Shared", TABLE_RIGHT},
        {"Created", TABLE_LEFT}, {"Owner", TABLE_LEFT}, {"Parent", TABLE_LEFT},
    };
    struct table *t = table_new(columns, ARRAY_SIZE(columns));
    size_t i;
    json_t *v;
    json_array_foreach(items, i, v)
    {
        char text[2 * 256 + 2], when[HUMAN_SIZE];
        table_cell(t, dog_string(v, "name"));
        table_cell(t, or_dash(dog_string(v, "tag")));
        snprintf(text, sizeof(text), "%" PRIu64, dog_u64(v, "vid"));
        table_cell(t, text);
        cell_bytes(t, v, "size");
        cell_bytes(t, v, "used_bytes");
        cell_bytes(t, v, "shared_bytes");
        table_cell(t, human_time(dog_u64(v, "created_ns"), when));
        table_cell(t, or_dash(dog_string(v, "owner")));
        snprintf(text, sizeof(text), "%s%s%s", dog_string(v, "parent_name"),
                 dog_string(v, "parent_tag")[0] ? "@" : "", dog_string(v, "parent_tag"));
        table_cell(t, or_dash(text));
    }
    table_print(t, stdout);
    table_free(t);
}

int vdi_run_list(struct dog *d)
{
    int code = DOG_OK;
    const char *name = dog_argument(d, 0);
    json_t *items = vdi_fetch(d, name, VDI_USAGE, &code);
    if (!items)
        return code;
    if (name && json_array_size(items) == 0 && d->output != DOG_RAW) {
        fprintf(stderr, "dog: there is no volume \"%s\" (dog vdi list shows all)\n", name);
        code = DOG_MISSING; /* the first Sheepdog's raw listing was empty and a success */
    }
    if (d->output == DOG_JSON) {
        print_volumes_json(items);
    } else if (d->output == DOG_RAW) {
        print_raw(items);
    } else if (code == DOG_OK) {
        print_table(items);
    }
    json_decref(items);
    return code;
}

/* --- tree --- */
struct tree {
    const json_t *items;
    bool utf8;
};

static const json_t *item_by_vid(const json_t *items, uint64_t vid)
{
    size_t i;
    json_t *v;
    json_array_foreach(items, i, v)
    {
        if (dog_u64(v, "vid") == vid)
            return v;
    }
    return NULL;
}

static void print_image(const json_t *v)
{
    char size[HUMAN_SIZE], when[HUMAN_SIZE];
    const char *tag = dog_string(v, "tag");
    human_size(dog_u64(v, "size"), size);
    human_time(dog_u64(v, "created_ns"), when);
    if (dog_bool(v, "working"))
        printf("%s (volume, %s)\n", dog_string(v, "name"), size);
    else
        printf("%s@%s (snapshot, %s, %s)\n", dog_string(v, "name"), tag, size, when);
}

/* Prints the images that were copied from `vid`; `prefix` is what stands before the branches. */
static void print_children(const struct tree *t, uint64_t vid, const char *prefix, unsigned depth)
{
    size_t i;
    json_t *v;
    uint64_t left = 0;
    json_array_foreach(t->items, i, v) left += dog_u64(v, "parent_vid") == vid;
    if (vid == 0 || depth > 10000)
        return; /* a parent is older than its child, so this is not met */
    char *next = dog_alloc(strlen(prefix) + 16);
    json_array_foreach(t->items, i, v)
    {
        if (dog_u64(v, "parent_vid") != vid)
            continue;
        bool last = --left == 0;
        printf("%s%s", prefix, t->utf8 ? (last ? "└── " : "├── ") : (last ? "`-- " : "|-- "));
        print_image(v);
        sprintf(next, "%s%s", prefix, last ? "    " : t->utf8 ? "│   " : "|   ");
        print_children(t, dog_u64(v, "vid"), next, depth + 1);
    }
    dog_free(next);
}

int vdi_run_tree(struct dog *d)
{
    int code = DOG_OK;
    json_t *items = vdi_fetch(d, dog_argument(d, 0), VDI_RECORDS, &code), *v;
    if (!items)
        return code;
    if (d->output == DOG_JSON) {
        print_volumes_json(items);
        json_decref(items);
        return DOG_OK;
    }
    struct tree t = {.items = items, .utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0};
    size_t i;
    json_array_foreach(items, i, v)
    {
        uint64_t parent = dog_u64(v, "parent_vid");
        if (parent != 0 && item_by_vid(items, parent))
            continue;
        print_image(v);
        print_children(&t, dog_u64(v, "vid"), "", 0);
    }
    json_decref(items);
    return DOG_OK;
}
