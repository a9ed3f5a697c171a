/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of dog that need no cluster: tables, addresses, exit codes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/err.h"
#include "dog/client.h"
#include "dog/exit.h"
#include "dog/table.h"

static void test_table_aligns(void **state)
{
    static const struct table_column columns[] = {
        {"Name", TABLE_LEFT}, {"Size", TABLE_RIGHT}, {"Owner", TABLE_LEFT}};
    struct table *t = table_new(columns, 3);
    static const char *const cells[] = {"a", "10 GiB", "n1", "grün", "1 B", "-", "x\ny", "0 B", ""};
    for (size_t i = 0; i < 9; i++)
        table_cell(t, cells[i]);
    char *text;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    table_print(t, out);
    fclose(out);
    assert_string_equal(text, "Name    Size  Owner\n"
                              "a     10 GiB  n1\n"
                              "grün     1 B  -\n"
                              "x?y      0 B  \n");
    free(text);
    table_free(t);
}

static void test_width_counts_characters(void **state)
{
    assert_int_equal(table_width(""), 0);
    assert_int_equal(table_width("abc"), 3);
    assert_int_equal(table_width("grün"), 4);
}

static void becomes(const char *text, const char *want)
{
    char got[CLIENT_ADDRESS_SIZE];
    assert_int_equal(client_address(text, "7000", got), 0);
    assert_string_equal(got, want);
}

static void test_addresses(void **state)
{
    char got[CLIENT_ADDRESS_SIZE], longer[400];
    becomes("127.0.0.1", "tcp:127.0.0.1:7000");
    becomes("host:7001", "tcp:host:7001");
    becomes("tcp:host:7001", "tcp:host:7001");
    becomes("tcp:host", "tcp:host:7000");
    becomes("::1", "tcp:[::1]:7000");
    becomes("[::1]", "tcp:[::1]:7000");
    becomes("[::1]:9", "tcp:[::1]:9");
    becomes("unix:/run/x", "unix:/run/x");
    static const char *const bad[] = {"",      "tcp:",  ":7000",        "tcp::7000",
                                      "host:", "unix:", "unix:relative"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(client_address(bad[i], "7000", got), -EINVAL);
    memset(longer, 'h', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    assert_int_equal(client_address(longer, "7000", got), -EINVAL);
}

static void test_exit_codes_of_old(void **state)
{
    assert_int_equal(dog_exit_for(0), 0);
    assert_int_equal(dog_exit_for(-EIO), 1);
    assert_int_equal(dog_exit_for(-EBUSY), 1);
    assert_int_equal(dog_exit_for(-ECONNREFUSED), 2);
    assert_int_equal(dog_exit_for(-EEXIST), 3);
    assert_int_equal(dog_exit_for(-ENOSPC), 4);
    assert_int_equal(dog_exit_for(-ENOENT), 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table_aligns),
        cmocka_unit_test(test_width_counts_characters),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_exit_codes_of_old),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
