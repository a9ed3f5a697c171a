/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes, durations and the progress line as people read and write them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/err.h"
#include "base/human.h"

static void parses(const char *text, uint64_t want)
{
    uint64_t got = 0xdead;
    assert_int_equal(human_size_parse(text, &got), 0);
    assert_int_equal(got, want);
}

static void test_sizes_parse(void **state)
{
    parses("0", 0);
    parses("4096", 4096);
    parses("4096B", 4096);
    parses("1K", 1024);
    parses("1k", 1024);
    parses("10G", 10ULL << 30);
    parses("10GiB", 10ULL << 30);
    parses("10Gb", 10ULL << 30);
    parses("1.5T", 3ULL << 39);
    parses("0.5M", 512 << 10);
    parses("2P", 2ULL << 50);
    parses("15E", 15ULL << 60);
    parses("18446744073709551615", UINT64_MAX);
}

static void test_bad_sizes_are_refused(void **state)
{
    static const char *const bad[] = {"",     "-1",  "+1",       " 1",     "1 ",  "K",     "1X",
                                      "1GG",  "1iB", "1.5",      "1.G",    ".5G", "1.5.G", "1,5G",
                                      "0x10", "1e3", "1.00001G", "10Gi B", "abc"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        uint64_t got = 7;
        assert_int_equal(human_size_parse(bad[i], &got), -EINVAL);
        assert_int_equal(got, 7);
    }
    uint64_t got = 7;
    assert_int_equal(human_size_parse("18446744073709551616", &got), -EFBIG);
    assert_int_equal(human_size_parse("16E", &got), -EFBIG);
    assert_int_equal(human_size_parse("99999999999T", &got), -EFBIG);
    assert_int_equal(got, 7);
}

static void test_sizes_format(void **state)
{
    char text[HUMAN_SIZE];
    assert_string_equal(human_size(0, text), "0 B");
    assert_string_equal(human_size(1023, text), "1023 B");
    assert_string_equal(human_size(1024, text), "1 KiB");
    assert_string_equal(human_size(1536, text), "1.5 KiB");
    assert_string_equal(human_size(10ULL << 30, text), "10 GiB");
    assert_string_equal(human_size((1ULL << 40) - 1, text), "1024 GiB");
    assert_string_equal(human_size(UINT64_MAX, text), "16.0 EiB");
}

static void test_durations_format(void **state)
{
    char text[HUMAN_SIZE];
    assert_string_equal(human_duration(350000000, text), "350 ms");
    assert_string_equal(human_duration(12000000000, text), "12 s");
    assert_string_equal(human_duration(185000000000, text), "3 min 5 s");
    assert_string_equal(human_duration(7620ULL * 1000000000, text), "2 h 7 min");
    assert_string_equal(human_duration(360000ULL * 1000000000, text), "4 d 4 h");
}

static void test_progress_line(void **state)
{
    struct human_progress p = {.what = "writing"};
    char line[256];
    size_t n = human_progress_format(&p, 1 << 30, 2ULL << 30, 1000000000, 200, line, sizeof(line));
    assert_int_equal(n, strlen(line));
    assert_non_null(strstr(line, "writing  [============>"));
    assert_non_null(strstr(line, " 50 %  1 GiB of 2 GiB  1 GiB/s  1 s left"));
    human_progress_format(&p, 5, 0, 1000000000, 200, line, sizeof(line));
    assert_string_equal(line, "writing  5 B  5 B/s");
    /* More than announced stays at the end; a narrow terminal cuts. */
    human_progress_format(&p, 9, 4, 1000000000, 200, line, sizeof(line));
    assert_non_null(strstr(line, "100 %"));
    n = human_progress_format(&p, 1, 4, 1000000000, 20, line, sizeof(line));
    assert_int_equal(n, 20);
    assert_int_equal(strlen(line), 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes_parse),   cmocka_unit_test(test_bad_sizes_are_refused),
        cmocka_unit_test(test_sizes_format),  cmocka_unit_test(test_durations_format),
        cmocka_unit_test(test_progress_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
