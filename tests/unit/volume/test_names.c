/* SPDX-License-Identifier: Apache-2.0 */
/* Names and keys. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include "base/err.h"
#include "volume/names.h"

static void test_check(void **state)
{
    static const char *const good[] = {"a",     "vm-1.root", "größe",           "日本",
                                       "a%b~c", "-",         "\xf0\x9f\x90\x91"};
    static const char *const bad[] = {"",
                                      " ",
                                      "a b",
                                      "a/b",
                                      "a@b",
                                      "a\tb",
                                      "\x7f",
                                      "\x80",
                                      "\xc0\x80",
                                      "\xc3",
                                      "\xed\xa0\x80",
                                      "\xf4\x90\x80\x80",
                                      "\xe2\x80\xae",
                                      "\xc2\x85",
                                      "\xef\xbb\xbf"};
    const char *why = NULL;
    for (unsigned i = 0; i < ARRAY_SIZE(good); i++)
        assert_int_equal(name_check(good[i], &why), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        why = NULL;
        assert_int_equal(name_check(bad[i], &why), -EINVAL);
        assert_non_null(why);
    }
    char name[VOLUME_NAME_SIZE + 1];
    memset(name, 'x', sizeof(name));
    name[VOLUME_NAME_SIZE] = '\0';
    assert_int_equal(name_check(name, NULL), -ENAMETOOLONG);
    name[VOLUME_NAME_SIZE - 1] = '\0';
    assert_int_equal(name_check(name, NULL), 0);
}

/* M1, and what the driver contract asks of keys. */
static void check_key(const char *key)
{
    assert_true(strlen(key) < CS_KEY_SIZE);
    for (const char *p = key; *p; p++)
        assert_true(*p > ' ' && *p < 0x7f);
    assert_int_equal(strncmp(key, VOLUME_PREFIX, strlen(VOLUME_PREFIX)), 0);
    assert_null(strchr(key + strlen(VOLUME_PREFIX), '/'));
}

static void test_keys(void **state)
{
    char key[CS_KEY_SIZE], other[CS_KEY_SIZE], name[VOLUME_NAME_SIZE];
    name_key("a", key);
    assert_string_equal(key, "volume/a");
    name_key("ä%", key);
    assert_string_equal(key, "volume/%c3%a4%25");
    for (size_t n = 1; n < VOLUME_NAME_SIZE; n++) {
        memset(name, n % 2 ? 'x' : 0xc3, n);
        name[n] = '\0';
        name_key(name, key);
        check_key(key);
        name[n - 1] = 'y';
        name_key(name, other);
        check_key(other);
        assert_string_not_equal(key, other);
        name[n - 1] = '~';
        name_key(name, other);
        check_key(other);
        assert_string_not_equal(key, other);
    }
    trash_key((struct vid){0xabc}, key);
    assert_string_equal(key, "trash/0000000000000abc");
    use_key((struct vid){1}, (struct session){7}, key);
    use_prefix((struct vid){1}, other);
    assert_int_equal(strncmp(key, other, strlen(other)), 0);
    assert_string_equal(key, "use/0000000000000001/7");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_check), cmocka_unit_test(test_keys)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
