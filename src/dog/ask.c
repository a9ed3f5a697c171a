/* SPDX-License-Identifier: Apache-2.0 */
/* Requests to the cluster and what comes back: redirects, frames before the answer, failures. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/err.h"
#include "base/human.h"
#include "dog/dog.h"

#define REDIRECT_COUNT_MAX 5

const char *dog_argument(const struct dog *d, unsigned n)
{
    return n + 2 < d->options->argument_count ? d->options->arguments[n + 2] : NULL;
}

uint64_t dog_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

const char *dog_string(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    return s ? s : "";
}

uint64_t dog_u64(const json_t *object, const char *key)
{
    json_int_t v = json_integer_value(json_object_get(object, key));
    return v < 0 ? 0 : (uint64_t)v;
}

bool dog_bool(const json_t *object, const char *key)
{
    return json_is_true(json_object_get(object, key));
}

void dog_print_json(json_t *json)
{
    if (json_is_object(json))
        json_object_del(json, "ok");
    json_dumpf(json, stdout, JSON_INDENT(2));
    putchar('\n');
}

int dog_usage(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "dog: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    return DOG_USAGE;
}

int dog_report(const struct dog *d, int r, const char *text)
{
    fprintf(stderr, "dog: %s\n", text);
    if (d->output == DOG_JSON) {
        json_t *failure = json_pack("{s:s, s:s}", "errno", admin_errno_name(r), "error", text);
        dog_print_json(failure);
        json_decref(failure);
    }
    return dog_exit_for(r);
}

int dog_parse_size(const char *what, const char *text, uint64_t *ret)
{
    int r = human_size_parse(text, ret);
    if (r == 0)
        return 0;
    if (r == -EFBIG)
        return dog_usage("%s \"%s\" is too large", what, text);
    return dog_usage("%s \"%s\" is not a size: give bytes, or a number with K, M, G or T (\"10G\")",
                     what, text);
}

int dog_parse_count(const char *what, const char *text, uint64_t max, uint64_t *ret)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || v > max)
        return dog_usage("%s \"%s\" is not a number from 0 to %llu", what, text,
                         (unsigned long long)max);
    *ret = v;
    return 0;
}

/* Receives until the answer (or the ready frame). 0 and *ret owned; or a negative errno and text.
 */
static int receive_answer(struct dog *d, dog_frame_fn *on_frame, void *arg, json_t **ret,
                          char error[CLIENT_ERROR_SIZE])
{
    for (;;) {
        struct client_frame f;
        int r = client_receive(d->client, &f, error);
        if (r < 0)
            return r;
        if (f.kind != ADMIN_JSON) {
            snprintf(error, CLIENT_ERROR_SIZE, "the sheep sent data that nobody asked for");
            return -EBADMSG;
        }
        if (json_object_get(f.json, "ok") || json_object_get(f.json, "ready")) {
            *ret = f.json;
            return 0;
        }
        if (on_frame)
            on_frame(arg, f.json);
        json_decref(f.json);
    }
}

/* Sends to d->address and receives the answer. */
static int ask_once(struct dog *d, const json_t *request, dog_frame_fn *on_frame, void *arg,
                    json_t **ret, char error[CLIENT_ERROR_SIZE])
{
    int r = 0;
    if (!d->client)
        r = client_open(d->address, &d->client, error);
    /* Not reached at all is a system failure, whatever the reason. */
    if (r < 0)
        return r == -EPROTO || r == -ENOMEM ? r : -ECONNREFUSED;
    r = client_send_json(d->client, request, error);
    return r < 0 ? r : receive_answer(d, on_frame, arg, ret, error);
}

/* Turns to another sheep. False if the address makes no sense. */
static bool follow(struct dog *d, const char *redirect)
{
    char address[CLIENT_ADDRESS_SIZE];
    if (redirect[0] == '\0' || client_address(redirect, "7000", address) < 0 ||
        strcmp(address, d->address) == 0)
        return false;
    client_close(d->client);
    d->client = NULL;
    memcpy(d->address, address, sizeof(address));
    return true;
}

json_t *dog_ask(struct dog *d, json_t *request, dog_frame_fn *on_frame, void *arg, int *ret_exit)
{
    char error[CLIENT_ERROR_SIZE] = "out of memory";
    json_t *answer = NULL;
    int r = request ? 0 : -ENOMEM;
    for (int redirects = 0; r == 0; redirects++) {
        r = ask_once(d, request, on_frame, arg, &answer, error);
        if (r < 0 || !json_is_false(json_object_get(answer, "ok")))
            break;
        r = admin_errno_parse(dog_string(answer, "errno"));
        snprintf(error, sizeof(error), "%s", dog_string(answer, "text"));
        if (redirects < REDIRECT_COUNT_MAX && follow(d, dog_string(answer, "redirect")))
            r = 0;
        json_decref(answer);
        answer = NULL;
    }
    json_decref(request);
    if (r < 0)
        *ret_exit = dog_report(d, r, error);
    return answer;
}

int dog_run_simple(struct dog *d, json_t *request)
{
    int code = DOG_OK;
    json_t *answer = dog_ask(d, request, NULL, NULL, &code);
    if (!answer)
        return code;
    if (d->output == DOG_JSON)
        dog_print_json(answer);
    json_decref(answer);
    return DOG_OK;
}
