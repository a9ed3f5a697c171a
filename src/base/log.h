/* SPDX-License-Identifier: Apache-2.0 */
/* Log lines to standard error, one sentence each: what happened, to what, what to do. */
#pragma once

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* The level is one of the two things that are global on purpose (the other: options). */
extern enum log_level log_level;

/* "error", "warn", "info", "debug" -> 0 and *ret; else -EINVAL. */
int log_level_parse(const char *s, enum log_level *ret);

void log_write(enum log_level level, const char *module, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define log_at(level, ...)                                                                         \
    do {                                                                                           \
        if ((level) <= log_level)                                                                  \
            log_write((level), LOG_MODULE, __VA_ARGS__);                                           \
    } while (0)

/* Each .c file that logs defines LOG_MODULE ("store", "cluster" …) before it uses these. */
#define log_error(...) log_at(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_at(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_at(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_at(LOG_DEBUG, __VA_ARGS__)
