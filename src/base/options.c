/* SPDX-License-Identifier: Apache-2.0 */
/* Command-line options in any order with names. */
#include "base/options.h"
#include <stdio.h>
#include <string.h>
#include "base/err.h"

static const struct option_spec *find_long(const struct option_spec *table, const char *name,
                                           size_t length)
{
    for (; table && table->name; table++) {
        if (strlen(table->name) == length && memcmp(table->name, name, length) == 0)
            return table;
    }
    return NULL;
}

static const struct option_spec *find_letter(const struct option_spec *table, char letter)
{
    for (; table && table->name; table++) {
        if (table->letter == letter)
            return table;
    }
    return NULL;
}

static int add(struct options *o, const struct option_spec *spec, const char *value)
{
    if (o->count == OPTIONS_COUNT_MAX) {
        snprintf(o->error, sizeof(o->error), "too many options");
        return -EINVAL;
    }
    o->specs[o->count] = spec;
    o->values[o->count++] = value;
    return 0;
}

/* The argument behind the present one, as the value of spec. */
static int next_value(struct options *o, struct options_cursor *c, const struct option_spec *spec,
                      const char **ret)
{
    if (c->index >= c->argc) {
        snprintf(o->error, sizeof(o->error), "option --%s needs a value: --%s %s", spec->name,
                 spec->name, spec->metavar);
        return -EINVAL;
    }
    *ret = c->argv[c->index++];
    return 0;
}

static const char *nearest_option(const char *name, size_t length, const struct option_spec *first,
                                  const struct option_spec *second)
{
    const char *words[OPTIONS_COUNT_MAX];
    char word[64];
    size_t count = 0;
    for (; first && first->name && count < OPTIONS_COUNT_MAX; first++)
        words[count++] = first->name;
    for (; second && second->name && count < OPTIONS_COUNT_MAX; second++)
        words[count++] = second->name;
    snprintf(word, sizeof(word), "%.*s", (int)MIN(length, (size_t)63), name);
    return options_nearest(word, words, count);
}

static int parse_long(struct options *o, struct options_cursor *c, const char *text,
                      const struct option_spec *first, const struct option_spec *second)
{
    const char *equals = strchr(text, '=');
    size_t length = equals ? (size_t)(equals - text) : strlen(text);
    const struct option_spec *spec = find_long(first, text, length);
    if (!spec)
        spec = find_long(second, text, length);
    if (!spec) {
        const char *near = nearest_option(text, length, first, second);
        snprintf(o->error, sizeof(o->error), "unknown option --%.*s%s%s%s",
                 (int)MIN(length, (size_t)80), text, near ? " (did you mean --" : "",
                 near ? near : "", near ? "?)" : "");
        return -EINVAL;
    }
    const char *value = equals ? equals + 1 : NULL;
    if (spec->value == OPTION_FLAG && value) {
        snprintf(o->error, sizeof(o->error), "option --%s takes no value", spec->name);
        return -EINVAL;
    }
    if (spec->value == OPTION_TEXT && !value && next_value(o, c, spec, &value) < 0)
        return -EINVAL;
    return add(o, spec, value);
}

static int parse_letters(struct options *o, struct options_cursor *c, const char *text,
                         const struct option_spec *first, const struct option_spec *second)
{
    for (; *text != '\0'; text++) {
        const struct option_spec *spec = find_letter(first, *text);
        if (!spec)
            spec = find_letter(second, *text);
        if (!spec) {
            snprintf(o->error, sizeof(o->error), "unknown option -%c", *text);
            return -EINVAL;
        }
        const char *value = NULL;
        if (spec->value == OPTION_TEXT) {
            if (text[1] != '\0')
                value = text + 1;
            else if (next_value(o, c, spec, &value) < 0)
                return -EINVAL;
        }
        int r = add(o, spec, value);
        if (r < 0 || value)
            return r;
    }
    return 0;
}

int options_parse(struct options *o, struct options_cursor *c, const struct option_spec *first,
                  const struct option_spec *second, unsigned arguments_wanted)
{
    unsigned found = 0;
    while (c->index < c->argc && found < arguments_wanted) {
        const char *text = c->argv[c->index++];
        int r = 0;
        if (c->only_arguments || text[0] != '-' || text[1] == '\0') {
            if (o->argument_count == OPTIONS_ARGUMENT_MAX) {
                snprintf(o->error, sizeof(o->error), "too many arguments, from \"%.80s\" on", text);
                return -EINVAL;
            }
            o->arguments[o->argument_count++] = text;
            found++;
        } else if (strcmp(text, "--") == 0) {
            c->only_arguments = true;
        } else if (text[1] == '-') {
            r = parse_long(o, c, text + 2, first, second);
        } else {
            r = parse_letters(o, c, text + 1, first, second);
        }
        if (r < 0)
            return r;
    }
    return 0;
}

const char *options_text(const struct options *o, const char *name)
{
    for (unsigned i = o->count; i-- > 0;) {
        if (strcmp(o->specs[i]->name, name) == 0)
            return o->values[i];
    }
    return NULL;
}

bool options_has(const struct options *o, const char *name)
{
    for (unsigned i = 0; i < o->count; i++) {
        if (strcmp(o->specs[i]->name, name) == 0)
            return true;
    }
    return false;
}

/* Edit distance where a swap of neighbours costs one; words are cut at 31 characters. */
static unsigned distance(const char *a, const char *b)
{
    unsigned d[32][32];
    size_t n = MIN(strlen(a), (size_t)31), m = MIN(strlen(b), (size_t)31);
    for (size_t i = 0; i <= n; i++)
        d[i][0] = (unsigned)i;
    for (size_t j = 0; j <= m; j++)
        d[0][j] = (unsigned)j;
    for (size_t i = 1; i <= n; i++) {
        for (size_t j = 1; j <= m; j++) {
            unsigned best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            best = MIN(best, d[i - 1][j] + 1);
            best = MIN(best, d[i][j - 1] + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                best = MIN(best, d[i - 2][j - 2] + 1);
            d[i][j] = best;
        }
    }
    return d[n][m];
}

const char *options_nearest(const char *word, const char *const *words, size_t count)
{
    const char *best = NULL;
    unsigned best_distance = 3; /* two slips are a typing error, more is another word */
    for (size_t i = 0; i < count; i++) {
        unsigned d = distance(word, words[i]);
        bool prefix = strlen(word) >= 2 && strncmp(word, words[i], strlen(word)) == 0;
        if (prefix)
            d = MIN(d, 1u);
        if (d < best_distance && d < strlen(words[i])) {
            best = words[i];
            best_distance = d;
        }
    }
    return best;
}
