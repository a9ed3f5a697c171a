/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes, times and progress as people write and read them. */
#include "base/human.h"
#include <ctype.h>
#include <inttypes.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include "base/check.h"
#include "base/err.h"

static const char units[] = "KMGTPE";

/* The unit behind the number: *ret_shift bits; false when it is none. */
static bool parse_unit(const char *s, unsigned *ret_shift)
{
    unsigned shift = 0;
    if (*s != '\0' && strchr(units, toupper((unsigned char)*s))) {
        shift = 10 * (unsigned)(strchr(units, toupper((unsigned char)*s)) - units + 1);
        s++;
        if (strcasecmp(s, "iB") == 0 || strcasecmp(s, "i") == 0)
            s = "";
    }
    if (strcasecmp(s, "B") == 0)
        s = "";
    *ret_shift = shift;
    return *s == '\0';
}

int human_size_parse(const char *s, uint64_t *ret)
{
    if (!isdigit((unsigned char)*s))
        return -EINVAL;
    uint64_t whole = 0;
    for (; isdigit((unsigned char)*s); s++) {
        if (!mul_u64(whole, 10, &whole) || !add_u64(whole, (uint64_t)(*s - '0'), &whole))
            return -EFBIG;
    }
    uint64_t fraction = 0, divisor = 1;
    if (*s == '.') {
        s++;
        if (!isdigit((unsigned char)*s))
            return -EINVAL;
        for (; isdigit((unsigned char)*s); s++) {
            if (divisor >= 1000)
                return -EINVAL; /* more precision than anybody means */
            fraction = fraction * 10 + (uint64_t)(*s - '0');
            divisor *= 10;
        }
    }
    unsigned shift;
    if (!parse_unit(s, &shift) || (divisor > 1 && shift == 0))
        return -EINVAL;
    uint64_t bytes;
    if (!mul_u64(whole, 1ULL << shift, &bytes))
        return -EFBIG;
    uint64_t rest = (fraction << (shift > 50 ? 50 : shift)) / divisor;
    if (shift > 50)
        rest <<= shift - 50;
    if (!add_u64(bytes, rest, &bytes))
        return -EFBIG;
    *ret = bytes;
    return 0;
}

const char *human_size(uint64_t bytes, char out[HUMAN_SIZE])
{
    if (bytes < 1024) {
        snprintf(out, HUMAN_SIZE, "%" PRIu64 " B", bytes);
        return out;
    }
    unsigned unit = 0;
    while (unit + 1 < strlen(units) && bytes >> (10 * (unit + 2)) != 0)
        unit++;
    double value = (double)bytes / (double)(1ULL << (10 * (unit + 1)));
    /* Whole numbers without a fraction; what would round up to 1024 stays in its unit. */
    bool whole = bytes % (1ULL << (10 * (unit + 1))) == 0;
    snprintf(out, HUMAN_SIZE, "%.*f %ciB", value < 100 && !whole ? 1 : 0, value, units[unit]);
    return out;
}

const char *human_time(uint64_t wall_ns, char out[HUMAN_SIZE])
{
    time_t t = (time_t)(wall_ns / 1000000000ULL);
    struct tm tm;
    if (wall_ns == 0 || !localtime_r(&t, &tm) ||
        strftime(out, HUMAN_SIZE, "%Y-%m-%d %H:%M", &tm) == 0)
        snprintf(out, HUMAN_SIZE, "-");
    return out;
}

const char *human_duration(uint64_t ns, char out[HUMAN_SIZE])
{
    uint64_t ms = ns / 1000000, s = ms / 1000, min = s / 60, h = min / 60;
    if (s == 0)
        snprintf(out, HUMAN_SIZE, "%" PRIu64 " ms", ms);
    else if (min == 0)
        snprintf(out, HUMAN_SIZE, "%" PRIu64 " s", s);
    else if (h == 0)
        snprintf(out, HUMAN_SIZE, "%" PRIu64 " min %" PRIu64 " s", min, s % 60);
    else if (h < 24)
        snprintf(out, HUMAN_SIZE, "%" PRIu64 " h %" PRIu64 " min", h, min % 60);
    else
        snprintf(out, HUMAN_SIZE, "%" PRIu64 " d %" PRIu64 " h", h / 24, h % 24);
    return out;
}

void human_progress_begin(struct human_progress *p, const char *what, uint64_t now_ns)
{
    *p = (struct human_progress){.begin_ns = now_ns};
    if (what && isatty(STDERR_FILENO))
        p->what = what;
}

size_t human_progress_format(const struct human_progress *p, uint64_t done, uint64_t total,
                             uint64_t now_ns, unsigned width, char *out, size_t size)
{
    char a[HUMAN_SIZE], b[HUMAN_SIZE], c[HUMAN_SIZE], bar[32];
    double seconds = (double)(now_ns - p->begin_ns) / 1e9;
    double rate = seconds > 0.2 ? (double)done / seconds : 0;
    int n;
    if (total == 0) {
        n = snprintf(out, size, "%s  %s  %s/s", p->what, human_size(done, a),
                     human_size((uint64_t)rate, c));
    } else {
        if (done > total)
            done = total;
        const unsigned cells = 24;
        unsigned filled = (unsigned)((double)done / (double)total * cells);
        for (unsigned i = 0; i < cells; i++)
            bar[i] = i < filled ? '=' : i == filled ? '>' : ' ';
        bar[cells] = '\0';
        char left[HUMAN_SIZE] = "", end[HUMAN_SIZE + 8] = "";
        if (rate > 0 && done < total) {
            human_duration((uint64_t)((double)(total - done) / rate * 1e9), left);
            snprintf(end, sizeof(end), "  %s left", left);
        }
        n = snprintf(out, size, "%s  [%s] %3u %%  %s of %s  %s/s%s", p->what, bar,
                     (unsigned)((double)done / (double)total * 100), human_size(done, a),
                     human_size(total, b), human_size((uint64_t)rate, c), end);
    }
    size_t length = n < 0 ? 0 : MIN((size_t)n, size - 1);
    if (length > width) {
        length = width;
        out[length] = '\0';
    }
    return length;
}

void human_progress_update(struct human_progress *p, uint64_t done, uint64_t total, uint64_t now_ns)
{
    if (!p->what || (p->shown_ns != 0 && now_ns - p->shown_ns < 100000000ULL))
        return;
    p->shown_ns = now_ns;
    struct winsize w;
    unsigned width = 80;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 1)
        width = w.ws_col;
    char line[256];
    human_progress_format(p, done, total, now_ns, width - 1, line, sizeof(line));
    fprintf(stderr, "\r%s\033[K", line);
    fflush(stderr);
}

void human_progress_end(struct human_progress *p)
{
    if (p->what && p->shown_ns != 0) {
        fprintf(stderr, "\r\033[K");
        fflush(stderr);
    }
    p->what = NULL;
}
