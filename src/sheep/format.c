/* SPDX-License-Identifier: Apache-2.0 */
/* sheep format, sheep check and sheep trim. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <sys/stat.h>
#include "base/err.h"
#include "base/human.h"
#include "base/log.h"
#include "sheep/sheep.h"
#include "store/store.h"

#define LOG_MODULE "sheep"

struct format_call {
    const struct sheep_options *options;
    struct rt *rt;
    struct human_progress progress;
    int result;
};

static void show_progress(void *arg, uint64_t done, uint64_t total)
{
    struct format_call *call = arg;
    human_progress_update(&call->progress, done, total, clock_now(call->rt));
}

static fiber_fn void format_main(struct rt *rt, void *arg)
{
    struct format_call *call = arg;
    const struct sheep_options *o = call->options;
    struct store_format_options f = {
        .size = o->size,
        .overwrite = o->overwrite,
        .log_bytes = o->log_bytes,
        .sparse = o->sparse,
        .zero_bytes = o->zero_all ? UINT64_MAX : 0,
    };
    call->rt = rt;
    human_progress_begin(&call->progress, "writing", clock_now(rt));
    call->result = store_format(rt, o->path, &f, show_progress, call);
    human_progress_end(&call->progress);
}

/* The store has said what is wrong; this says what to do. */
static int format_failed(const struct sheep_options *o, int r)
{
    if (r == -EEXIST)
        log_error("%s: --overwrite replaces what is there, and all of it is lost", o->path);
    else
        log_error("no store was made on %s", o->path);
    return r == -EEXIST || r == -EINVAL ? SHEEP_FAILURE : SHEEP_STORE;
}

int sheep_format(const struct sheep_options *o)
{
    struct format_call call = {.options = o, .result = -EIO};
    struct stat st;
    char text[HUMAN_SIZE];
    if (stat(o->path, &st) < 0 && errno == ENOENT && o->size == 0) {
        log_error("%s does not exist: to make a store in a new file say how large, --size 20G",
                  o->path);
        return SHEEP_USAGE;
    }
    int code = sheep_loop(format_main, &call);
    if (code != 0)
        return code;
    if (call.result < 0)
        return format_failed(o, call.result);
    if (stat(o->path, &st) == 0 && S_ISREG(st.st_mode))
        printf("formatted %s: %s\n", o->path, human_size((uint64_t)st.st_size, text));
    else
        printf("formatted %s\n", o->path);
    return SHEEP_OK;
}

/* --- check --- */
struct check_call {
    const struct sheep_options *options;
    json_t *findings;                  /* only for JSON */
    struct store_check_report report;  /* with --repair: of the check after it */
    struct store_repair_report repair; /* only with --repair */
    int result;
};

static void check_finding(void *arg, const char *finding)
{
    struct check_call *call = arg;
    if (call->findings)
        json_array_append_new(call->findings, json_string(finding));
    else
        printf("%s\n", finding);
}

static fiber_fn void check_main(struct rt *rt, void *arg)
{
    struct check_call *call = arg;
    const struct sheep_options *o = call->options;

    if (!o->repair) {
        call->result = store_check(rt, o->path, o->data, check_finding, call, &call->report);
        return;
    }
    call->result = store_repair(rt, o->path, o->data, check_finding, call, &call->repair);
    call->report = call->repair.left;
}

static void print_check_json(struct check_call *call)
{
    const struct store_check_report *r = &call->report;
    json_t *result = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:O}", "path", call->options->path, "objects",
        (json_int_t)r->object_count, "tombstones", (json_int_t)r->tombstone_count, "blocks",
        (json_int_t)r->block_count, "free_blocks", (json_int_t)r->free_block_count, "shared_blocks",
        (json_int_t)r->shared_block_count, "checked_data_blocks",
        (json_int_t)r->checked_data_blocks, "errors", (json_int_t)r->error_count, "findings",
        call->findings);
    if (result && call->options->repair) {
        json_object_set_new(result, "found", json_integer((json_int_t)call->repair.found_count));
        json_object_set_new(result, "inexact", json_boolean(call->repair.inexact));
    }
    if (result)
        json_dumpf(result, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(result);
}

static void print_check(const struct sheep_options *o, const struct check_call *call)
{
    const struct store_check_report *r = &call->report;

    if (o->repair)
        printf("%s: %" PRIu64 " damages were found%s; what is left:\n", o->path,
               call->repair.found_count,
               call->repair.inexact ? ", the node will compare all objects with the other nodes"
                                    : "");
    printf("%s: %" PRIu64 " objects, %" PRIu64 " tombstones, %" PRIu64 " of %" PRIu64
           " blocks free, %" PRIu64 " shared, %" PRIu64 " data blocks read: %" PRIu64 " errors\n",
           o->path, r->object_count, r->tombstone_count, r->free_block_count,
           r->block_count + r->free_block_count, r->shared_block_count, r->checked_data_blocks,
           r->error_count);
}

/* What to do next, where the findings do not say it. */
static void advise(const struct sheep_options *o, const struct store_check_report *r)
{
    if (r->error_count == 0)
        return;
    if (!o->repair)
        log_error("%s is damaged: sheep check --repair mends what the store itself knows", o->path);
    else
        log_error(
            "%s: what is left has to come from the other nodes, by reading or by recovery; if the "
            "store cannot be opened, format it anew",
            o->path);
}

int sheep_check(const struct sheep_options *o)
{
    struct check_call call = {.options = o, .result = -EIO};
    if (o->json)
        call.findings = json_array();
    int code = sheep_loop(check_main, &call);
    const struct store_check_report *r = &call.report;
    if (code == 0 && call.result < 0) {
        log_error("%s could not be %s: %s%s", o->path, o->repair ? "repaired" : "checked",
                  err_text(call.result),
                  call.result == -EBUSY ? "; stop the sheep that serves it first" : "");
        code = SHEEP_STORE;
    } else if (code == 0) {
        code = r->error_count > 0 ? SHEEP_FAILURE : SHEEP_OK;
        if (o->json)
            print_check_json(&call);
        else
            print_check(o, &call);
        advise(o, r);
    }
    json_decref(call.findings);
    return code;
}

/* --- trim --- */
struct trim_call {
    const struct sheep_options *options;
    uint64_t bytes;
    int result;
};

static fiber_fn void trim_main(struct rt *rt, void *arg)
{
    struct trim_call *call = arg;
    call->result = store_trim(rt, call->options->path, STORE_TRIM_KEEPS, &call->bytes);
}

int sheep_trim(const struct sheep_options *o)
{
    struct trim_call call = {.options = o, .result = -EIO};
    char text[HUMAN_SIZE];
    int code = sheep_loop(trim_main, &call);
    if (code != 0)
        return code;
    if (call.result < 0) {
        log_error("%s could not be trimmed: %s%s", o->path, err_text(call.result),
                  call.result == -EBUSY ? "; stop the sheep that serves it first" : "");
        return SHEEP_STORE;
    }
    printf("%s: gave back %s\n", o->path, human_size(call.bytes, text));
    return SHEEP_OK;
}
