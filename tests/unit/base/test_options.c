/* SPDX-License-Identifier: Apache-2.0 */
/* Command lines: every order and spelling of options, and what is refused. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/err.h"
#include "base/options.h"

static const struct option_spec verb[] = {
    {"tag", 's', OPTION_TEXT, "TAG", ""}, {"wait", 'w', OPTION_FLAG, NULL, ""}, {NULL}};
static const struct option_spec global[] = {{"sheep", 's', OPTION_TEXT, "ADDRESS", ""},
                                            {"json", 0, OPTION_FLAG, NULL, ""},
                                            {"raw", 'r', OPTION_FLAG, NULL, ""},
                                            {NULL}};

/* Parses a NULL-terminated list of words as the part behind noun and verb. */
static int parse(struct options *o, const char *first, ...)
{
    static char *words[16];
    struct options_cursor c = {.argv = words};
    va_list args;
    va_start(args, first);
    for (const char *w = first; w; w = va_arg(args, const char *))
        words[c.argc++] = (char *)w;
    va_end(args);
    *o = (struct options){0};
    return options_parse(o, &c, verb, global, UINT_MAX);
}

static void test_any_order(void **state)
{
    struct options o;
    assert_int_equal(parse(&o, "-s", "t", "name", NULL), 0);
    assert_string_equal(options_text(&o, "tag"), "t");
    assert_int_equal(o.argument_count, 1);
    assert_string_equal(o.arguments[0], "name");
    assert_int_equal(parse(&o, "name", "-st", "-rw", NULL), 0);
    assert_string_equal(options_text(&o, "tag"), "t");
    assert_true(options_has(&o, "raw") && options_has(&o, "wait") && !options_has(&o, "json"));
    assert_int_equal(parse(&o, "a", "--tag=x", "b", "--json", "--tag", "y", NULL), 0);
    assert_string_equal(options_text(&o, "tag"), "y"); /* the last one counts */
    assert_int_equal(o.argument_count, 2);
    assert_int_equal(parse(&o, "-rs", "t", NULL), 0);
    assert_string_equal(options_text(&o, "tag"), "t");
}

static void test_the_verb_hides_global_letters(void **state)
{
    struct options o;
    assert_int_equal(parse(&o, "-s", "t", "--sheep", "unix:/x", NULL), 0);
    assert_string_equal(options_text(&o, "tag"), "t");
    assert_string_equal(options_text(&o, "sheep"), "unix:/x");
}

static void test_end_of_options(void **state)
{
    struct options o;
    assert_int_equal(parse(&o, "--", "-s", "--json", NULL), 0);
    assert_int_equal(o.argument_count, 2);
    assert_int_equal(o.count, 0);
    assert_int_equal(parse(&o, "-", "", NULL), 0); /* both are arguments */
    assert_int_equal(o.argument_count, 2);
}

static void test_refused(void **state)
{
    struct options o;
    assert_int_equal(parse(&o, "--nothing", NULL), -EINVAL);
    assert_non_null(strstr(o.error, "--nothing"));
    assert_int_equal(parse(&o, "--jsno", NULL), -EINVAL);
    assert_non_null(strstr(o.error, "did you mean --json"));
    assert_int_equal(parse(&o, "-z", NULL), -EINVAL);
    assert_int_equal(parse(&o, "-s", NULL), -EINVAL);
    assert_non_null(strstr(o.error, "needs a value"));
    assert_int_equal(parse(&o, "--tag", NULL), -EINVAL);
    assert_int_equal(parse(&o, "--json=yes", NULL), -EINVAL);
    assert_int_equal(parse(&o, "1", "2", "3", "4", "5", "6", "7", "8", "9", NULL), -EINVAL);
}

/* First noun and verb with the global options, then the rest with the verb's. */
static void test_two_stages(void **state)
{
    char *words[] = {"dog", "-s", "unix:/x", "vdi", "--json", "list", "-s", "t", "name"};
    struct options_cursor c = {.argc = 9, .index = 1, .argv = words};
    struct options o = {0};
    assert_int_equal(options_parse(&o, &c, global, NULL, 2), 0);
    assert_int_equal(o.argument_count, 2);
    assert_int_equal(c.index, 6);
    assert_int_equal(options_parse(&o, &c, verb, global, UINT_MAX), 0);
    assert_int_equal(o.argument_count, 3);
    assert_string_equal(options_text(&o, "sheep"), "unix:/x");
    assert_string_equal(options_text(&o, "tag"), "t");
}

static void test_nearest(void **state)
{
    static const char *const words[] = {"create", "delete", "list", "snapshot", "rollback"};
    const size_t n = sizeof(words) / sizeof(words[0]);
    assert_string_equal(options_nearest("craete", words, n), "create");
    assert_string_equal(options_nearest("lst", words, n), "list");
    assert_string_equal(options_nearest("snap", words, n), "snapshot");
    assert_string_equal(options_nearest("roll-back", words, n), "rollback");
    assert_null(options_nearest("explode", words, n));
    assert_null(options_nearest("", words, n));
    char longer[5000];
    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    assert_null(options_nearest(longer, words, n));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_order),      cmocka_unit_test(test_the_verb_hides_global_letters),
        cmocka_unit_test(test_end_of_options), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_two_stages),     cmocka_unit_test(test_nearest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
