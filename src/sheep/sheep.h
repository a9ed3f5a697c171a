/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the daemon share: its options, exit codes and subcommands. */
#pragma once
#include "base/check.h"
#include "rt/clock.h"

#define SHEEP_LISTEN_COUNT_MAX 16

enum sheep_exit {
    SHEEP_OK = 0,
    SHEEP_FAILURE = 1, /* runtime failure; of check: something was found */
    SHEEP_STORE = 2,   /* the store or the system failed */
    SHEEP_USAGE = 64,
};

struct sheep_options {
    const char *path; /* of the store */
    /* run */
    const char *cluster, *name, *zone, *peer, *pidfile, *ports_file;
    const char *admin[SHEEP_LISTEN_COUNT_MAX], *nbd[SHEEP_LISTEN_COUNT_MAX];
    unsigned admin_count, nbd_count; /* nbd_count 0: none */
    uint32_t weight;                 /* 0: by size */
    uint64_t cache_bytes;
    uint64_t scrub_rate;    /* bytes per second, 0: none */
    uint64_t recovery_rate; /* bytes per second, 0: the default */
    uint64_t out_ns;        /* 0: the default */
    bool unsafe_no_flush, no_discard;
    /* format */
    uint64_t size, log_bytes; /* 0: left to the store */
    bool overwrite, sparse, zero_all;
    /* check */
    bool data, json, repair;
};

enum sheep_command { SHEEP_RUN, SHEEP_FORMAT, SHEEP_CHECK, SHEEP_TRIM, SHEEP_HELP, SHEEP_VERSION };

/* Reads the command line; sets log_level. 0 and *ret_command, or SHEEP_USAGE after a message. Text
 * is borrowed from argv. */
int sheep_parse(int argc, char **argv, struct sheep_options *ret, enum sheep_command *ret_command);
void sheep_help(void);

/* Each returns the exit code. */
int sheep_run(const struct sheep_options *o);
int sheep_format(const struct sheep_options *o);
int sheep_check(const struct sheep_options *o);
int sheep_trim(const struct sheep_options *o);

/* Runs main(arg) on a fiber of a new runtime until nothing is left. 0, or SHEEP_STORE after a
 * message. */
struct rt;
int sheep_loop(void (*fn)(struct rt *rt, void *arg), void *arg);

/* How long a start waits for what a killed predecessor still holds: the kernel ends its I/O, and
 * lets go of the store's lock and the ports, a moment after the process is gone. */
#define SHEEP_TAKEOVER_NS      (3 * NS_PER_S)
#define SHEEP_TAKEOVER_STEP_NS (20 * NS_PER_MS)
/* 0, or -EBUSY while another process has the store locked. Other faults are left to who opens it.
 */
int sheep_probe_lock(const char *path);

/* --- small files (files.c): 0 or a negative errno after a message --- */
/* Replaces path by `text` atomically. */
int sheep_write_file(const char *path, const char *text);
/* Removes path if given; not being there is no error. */
void sheep_remove_file(const char *path);
