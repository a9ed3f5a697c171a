/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines: each is one write(2) to standard error.
 *
 * G1 A line holds no control characters, whatever names from outside it quotes.
 * G2 Under systemd's journal lines carry its <priority> prefix; elsewhere time and level.
 */
#include "base/log.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "base/check.h"
#include "base/err.h"

#define LINE_SIZE_MAX 1024

enum log_level log_level = LOG_INFO;

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static const int level_priorities[] = {3, 4, 6, 7}; /* of syslog(3) */

int log_level_parse(const char *s, enum log_level *ret)
{
    for (size_t i = 0; i < ARRAY_SIZE(level_names); i++) {
        if (strcmp(s, level_names[i]) == 0) {
            *ret = (enum log_level)i;
            return 0;
        }
    }
    return -EINVAL;
}

static size_t write_prefix(char *line, enum log_level level, const char *module)
{
    if (getenv("JOURNAL_STREAM"))
        return (size_t)snprintf(line, LINE_SIZE_MAX, "<%d>%.32s: ", level_priorities[level],
                                module);
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &tm);
    return (size_t)snprintf(line, LINE_SIZE_MAX, "%02d:%02d:%02d.%03ld %-5s %.32s: ", tm.tm_hour,
                            tm.tm_min, tm.tm_sec, now.tv_nsec / 1000000, level_names[level],
                            module);
}

void log_write(enum log_level level, const char *module, const char *format, ...)
{
    int saved_errno = errno;
    char line[LINE_SIZE_MAX];
    size_t prefix = write_prefix(line, level, module);
    va_list args;
    va_start(args, format);
    errno = saved_errno; /* for %m */
    int n = vsnprintf(line + prefix, sizeof(line) - prefix, format, args);
    va_end(args);
    size_t length = prefix;
    if (n > 0)
        length = MIN(prefix + (size_t)n, sizeof(line) - 1);
    for (size_t i = prefix; i < length; i++) {
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    }
    line[length++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, length);
    (void)written; /* nobody is left to tell */
    errno = saved_errno;
}
