/* SPDX-License-Identifier: Apache-2.0 */
/* dog vdi read, write, discard: a volume's data through standard input and output. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/bytes.h"
#include "base/human.h"
#include "dog/memory.h"
#include "dog/vdi.h"

/* Adds "offset" and "length" from the arguments. 0 or DOG_USAGE. */
static int set_range(const struct dog *d, json_t *request)
{
    static const char *const names[] = {"offset", "length"};
    for (unsigned i = 0; i < 2; i++) {
        uint64_t value;
        const char *text = dog_argument(d, 1 + i);
        if (!text)
            break;
        int r = dog_parse_size(names[i], text, &value);
        if (r == 0 && value > INT64_MAX)
            r = dog_usage("%s \"%s\" is too large", names[i], text);
        if (r != 0)
            return r;
        json_object_set_new(request, names[i], json_integer((json_int_t)value));
    }
    return 0;
}

static int report_errno(const struct dog *d, const char *what)
{
    char text[200];
    snprintf(text, sizeof(text), "%s: %s", what, strerror(errno));
    dog_report(d, -EIO, text);
    return DOG_SYSTEM;
}

/* --- read --- */
struct output {
    bool sparse;      /* a regular file with nothing behind our position: holes are skipped */
    bool hole_at_end; /* it must be extended when all is done */
};

static struct output output_probe(void)
{
    struct stat st;
    off_t position = lseek(STDOUT_FILENO, 0, SEEK_CUR);
    int flags = fcntl(STDOUT_FILENO, F_GETFL);
    bool sparse = fstat(STDOUT_FILENO, &st) == 0 && S_ISREG(st.st_mode) && position >= 0 &&
                  st.st_size <= position && !(flags & O_APPEND);
    return (struct output){.sparse = sparse};
}

static bool output_write(const uint8_t *data, size_t length)
{
    while (length > 0) {
        ssize_t n = write(STDOUT_FILENO, data, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return false;
        data += n;
        length -= (size_t)n;
    }
    return true;
}

static bool output_zeros(struct output *o, uint64_t length)
{
    static const uint8_t zeros[1 << 16];
    if (o->sparse) {
        o->hole_at_end = true;
        return lseek(STDOUT_FILENO, (off_t)length, SEEK_CUR) >= 0;
    }
    for (uint64_t done = 0; done < length;) {
        size_t n = (size_t)MIN((uint64_t)sizeof(zeros), length - done);
        if (!output_write(zeros, n))
            return false;
        done += n;
    }
    return true;
}

static bool output_end(const struct output *o)
{
    if (!o->hole_at_end)
        return true;
    off_t end = lseek(STDOUT_FILENO, 0, SEEK_CUR);
    return end >= 0 && ftruncate(STDOUT_FILENO, end) == 0;
}

/* Takes data frames until the answer. Returns the exit code. */
static int receive_data(struct dog *d, uint64_t total)
{
    char error[CLIENT_ERROR_SIZE];
    struct output o = output_probe();
    struct human_progress p;
    uint64_t done = 0;
    human_progress_begin(&p, d->progress ? "reading" : NULL, dog_now());
    for (;;) {
        struct client_frame f;
        int r = client_receive(d->client, &f, error);
        if (r == 0 && f.kind == ADMIN_JSON) {
            bool ok = json_is_true(json_object_get(f.json, "ok"));
            snprintf(error, sizeof(error), "%s", dog_string(f.json, "text"));
            r = ok ? 0 : admin_errno_parse(dog_string(f.json, "errno"));
            json_decref(f.json);
            human_progress_end(&p);
            if (r < 0)
                return dog_report(d, r, error);
            if (done != total)
                return dog_report(d, -EBADMSG, "the sheep sent another amount than it announced");
            return output_end(&o) ? DOG_OK : report_errno(d, "writing the output");
        }
        if (r < 0) {
            human_progress_end(&p);
            return dog_report(d, r, error);
        }
        bool written =
            f.kind == ADMIN_ZEROS ? output_zeros(&o, f.zeros) : output_write(f.data, f.length);
        if (f.kind == ADMIN_DATA)
            o.hole_at_end = false;
        if (!written) {
            human_progress_end(&p);
            return report_errno(d, "writing the output");
        }
        done += f.kind == ADMIN_ZEROS ? f.zeros : f.length;
        human_progress_update(&p, done, total, dog_now());
    }
}

int vdi_run_read(struct dog *d)
{
    json_t *request = vdi_request(d, "vdi.read");
    int r = set_range(d, request);
    if (r == 0 && isatty(STDOUT_FILENO))
        r = dog_usage(
            "the content would go to the terminal; send it to a file: dog vdi read … > FILE");
    if (r != 0) {
        json_decref(request);
        return r;
    }
    json_t *ready = dog_ask(d, request, NULL, NULL, &r);
    if (!ready)
        return r;
    uint64_t total = dog_u64(ready, "length");
    json_decref(ready);
    return receive_data(d, total);
}

/* --- write --- */
/* Reads until the buffer is full or the input ends. Bytes, or -1. */
static ssize_t input_read(uint8_t *buffer, size_t size)
{
    size_t length = 0;
    while (length < size) {
        ssize_t n = read(STDIN_FILENO, buffer + length, size - length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0)
            break;
        length += (size_t)n;
    }
    return (ssize_t)length;
}

static bool all_zero(const uint8_t *p, size_t length)
{
    return length > 0 && p[0] == 0 && memcmp(p, p + 1, length - 1) == 0;
}

/* What the input will give, for the progress bar; 0 unknown. */
static uint64_t input_size(void)
{
    struct stat st;
    off_t position = lseek(STDIN_FILENO, 0, SEEK_CUR);
    if (fstat(STDIN_FILENO, &st) < 0 || !S_ISREG(st.st_mode) || position < 0 ||
        st.st_size <= position)
        return 0;
    return (uint64_t)(st.st_size - position);
}

/* Sends one block; blocks of zeros as such. */
static int send_block(struct dog *d, const uint8_t *data, uint32_t length, char *error)
{
    if (length != ADMIN_DATA_MAX || !all_zero(data, length))
        return client_send(d->client, ADMIN_DATA, data, length, error);
    uint8_t payload[8];
    put_le64(payload, length);
    return client_send(d->client, ADMIN_ZEROS, payload, sizeof(payload), error);
}

/* Sends up to `limit` bytes of the input and the end mark; stops early when the sheep has answered.
 * `offset` is where they go: the first block is cut so that the others begin at multiples of their
 * size. */
static int send_data(struct dog *d, uint64_t offset, uint64_t limit, char *error)
{
    uint8_t *buffer = dog_alloc(ADMIN_DATA_MAX);
    struct human_progress p;
    uint64_t total = MIN(input_size(), limit), done = 0;
    int r = 0;
    human_progress_begin(&p, d->progress ? "writing" : NULL, dog_now());
    while (r == 0 && done < limit && !client_readable(d->client)) {
        uint64_t room = ADMIN_DATA_MAX - (offset + done) % ADMIN_DATA_MAX;
        ssize_t n = input_read(buffer, (size_t)MIN(room, limit - done));
        if (n < 0) {
            snprintf(error, CLIENT_ERROR_SIZE, "reading the input: %s", strerror(errno));
            r = -EIO;
        }
        if (n <= 0)
            break;
        r = send_block(d, buffer, (uint32_t)n, error);
        done += (uint64_t)n;
        human_progress_update(&p, done, total, dog_now());
    }
    if (r == 0 && !client_readable(d->client))
        r = client_send(d->client, ADMIN_DATA, NULL, 0, error);
    human_progress_end(&p);
    dog_free(buffer);
    return r;
}

/* The answer after the data, whether all of them were sent or not. */
static int finish_write(struct dog *d, int sent, char *error)
{
    struct client_frame f;
    char text[CLIENT_ERROR_SIZE];
    if (sent < 0 && sent != -ECONNRESET)
        return dog_report(d, sent, error);
    int r = client_receive(d->client, &f, text);
    if (r < 0)
        return dog_report(d, r, sent < 0 ? error : text);
    if (f.kind != ADMIN_JSON)
        return dog_report(d, -EBADMSG, "the sheep sent a malformed answer");
    int code = DOG_OK;
    if (!json_is_true(json_object_get(f.json, "ok")))
        code = dog_report(d, admin_errno_parse(dog_string(f.json, "errno")),
                          dog_string(f.json, "text"));
    else if (d->output == DOG_JSON)
        dog_print_json(f.json);
    json_decref(f.json);
    return code;
}

int vdi_run_write(struct dog *d)
{
    char error[CLIENT_ERROR_SIZE] = "";
    json_t *request = vdi_request(d, "vdi.write");
    int r = set_range(d, request);
    if (r == 0 && isatty(STDIN_FILENO))
        r = dog_usage("the content comes from standard input: dog vdi write NAME < FILE");
    if (r != 0) {
        json_decref(request);
        return r;
    }
    uint64_t offset = dog_u64(request, "offset");
    bool limited = json_object_get(request, "length");
    json_t *ready = dog_ask(d, request, NULL, NULL, &r);
    if (!ready)
        return r;
    /* Without a length, what does not fit is an error of the sheep, not cut off in silence. */
    uint64_t limit = limited ? dog_u64(ready, "length") : UINT64_MAX;
    json_decref(ready);
    r = send_data(d, offset, limit, error);
    return finish_write(d, r, error);
}

int vdi_run_discard(struct dog *d)
{
    json_t *request = vdi_request(d, "vdi.discard");
    int r = set_range(d, request);
    if (r != 0) {
        json_decref(request);
        return r;
    }
    return dog_run_simple(d, request);
}
