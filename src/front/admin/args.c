/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments out of a request, results into an answer. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include "base/err.h"
#include "front/admin/admin_internal.h"

int admin_fail(struct admin_call *call, int r, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(call->error.text, sizeof(call->error.text), format, args);
    va_end(args);
    return r;
}

int admin_arg_string(struct admin_call *call, const char *name, enum admin_need need,
                     const char **ret)
{
    const json_t *value = json_object_get(call->request, name);
    if (!value || json_is_null(value)) {
        if (need == ADMIN_REQUIRED)
            return admin_fail(call, -EINVAL, "the request lacks \"%s\"", name);
        return 0;
    }
    if (!json_is_string(value))
        return admin_fail(call, -EINVAL, "\"%s\" in the request is not a string", name);
    *ret = json_string_value(value);
    return 0;
}

int admin_arg_u64(struct admin_call *call, const char *name, enum admin_need need, uint64_t max,
                  uint64_t *ret)
{
    const json_t *value = json_object_get(call->request, name);
    if (!value || json_is_null(value)) {
        if (need == ADMIN_REQUIRED)
            return admin_fail(call, -EINVAL, "the request lacks \"%s\"", name);
        return 0;
    }
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return admin_fail(call, -EINVAL, "\"%s\" in the request is not a number of 0 or more",
                          name);
    uint64_t number = (uint64_t)json_integer_value(value);
    if (number > max)
        return admin_fail(call, -EINVAL, "%s %" PRIu64 " is above the largest possible, %" PRIu64,
                          name, number, max);
    *ret = number;
    return 0;
}

/* Failures of these (out of memory) leave a key out; the client names the key it misses. */
void admin_set_string(json_t *object, const char *key, const char *value)
{
    json_t *s = json_string(value);
    json_object_set_new(object, key, s ? s : json_string("?"));
}

void admin_set_u64(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)MIN(value, (uint64_t)INT64_MAX)));
}

void admin_set_bool(json_t *object, const char *key, bool value)
{
    json_object_set_new(object, key, json_boolean(value));
}

void admin_set_uuid(json_t *object, const char *key, const struct uuid *uuid)
{
    char text[UUID_TEXT_SIZE];
    uuid_format(uuid, text);
    admin_set_string(object, key, text);
}
