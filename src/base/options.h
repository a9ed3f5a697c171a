/* SPDX-License-Identifier: Apache-2.0 */
/* Command-line options in any order with names: -s TAG, -sTAG, -rq, --copies 3, --copies=3, "--"
 * ends them. */
#pragma once
#include "base/check.h"

enum option_value { OPTION_FLAG, OPTION_TEXT };
struct option_spec {
    const char *name; /* long name without "--"; NULL ends a table */
    char letter;      /* 0: none */
    enum option_value value;
    const char *metavar; /* OPTION_TEXT: "SIZE" */
    const char *help;
};

#define OPTIONS_COUNT_MAX    32
#define OPTIONS_ARGUMENT_MAX 8

/* What was given: pairs of a specification and its text (NULL for a flag), in order. */
struct options {
    unsigned count, argument_count;
    const struct option_spec *specs[OPTIONS_COUNT_MAX];
    const char *values[OPTIONS_COUNT_MAX];
    const char *arguments[OPTIONS_ARGUMENT_MAX]; /* what is not an option */
    char error[200];                             /* why parsing failed */
};

/* Where a parse stands: argv[index] comes next. */
struct options_cursor {
    int argc, index;
    char **argv;
    bool only_arguments; /* "--" was met */
};

/* Reads until `arguments_wanted` arguments more were found (UINT_MAX: to the end). An option is
 * looked for in `first`, then in `second` (may be NULL). 0, or -EINVAL and o->error. All text is
 * borrowed from argv. */
int options_parse(struct options *o, struct options_cursor *c, const struct option_spec *first,
                  const struct option_spec *second, unsigned arguments_wanted);
/* Value of the last occurrence of --name; NULL when absent (or a flag). */
const char *options_text(const struct options *o, const char *name);
bool options_has(const struct options *o, const char *name);
/* Nearest of `count` words to a mistyped one, NULL if none is near. */
const char *options_nearest(const char *word, const char *const *words, size_t count);
