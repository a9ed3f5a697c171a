/* SPDX-License-Identifier: Apache-2.0 */
/* One run of dog: what was asked for, and what the commands share. */
#pragma once
#include "dog/client.h"
#include "dog/exit.h"
#include "base/options.h"

enum dog_output { DOG_HUMAN, DOG_RAW, DOG_JSON };

struct dog {
    enum dog_output output;
    const char *progress; /* what a progress bar is titled; NULL: none is wanted */
    char address[CLIENT_ADDRESS_SIZE];
    const struct options *options;
    struct client *client; /* where the last request was answered; NULL before the first */
};

/* One command, `dog NOUN NAME ARGUMENTS`. */
struct dog_verb {
    const char *name;
    const char *arguments; /* "NAME SIZE", for help */
    unsigned argument_min, argument_max;
    const struct option_spec *options; /* of its own; may be NULL */
    const char *summary;               /* one line, beginning with a verb */
    const char *help;                  /* what one should know, with examples */
    int (*run)(struct dog *d);         /* returns the exit code */
};
struct dog_noun {
    const char *name, *summary;
    const struct dog_verb *verbs; /* ended by name == NULL */
};
extern const struct dog_noun dog_cluster, dog_node, dog_pool, dog_vdi;
extern const struct dog_noun *const dog_nouns[]; /* ended by NULL */

/* The n-th argument behind noun and verb, NULL when it was not given. */
const char *dog_argument(const struct dog *d, unsigned n);

/* --- talking to the cluster (ask.c) --- */
/* Gets the frames that come before the answer ({"items": …}, {"progress": …}); json is borrowed. */
typedef void dog_frame_fn(void *arg, const json_t *json);
/* Sends {"op": op, …} (drops the caller's reference) and returns the answer, owned. Follows
 * redirects. On failure reports it, sets *ret_exit and returns NULL. on_frame may be NULL. For
 * operations with data it returns the
 * {"ready": true, …} frame, and the data follow on d->client. */
json_t *dog_ask(struct dog *d, json_t *request, dog_frame_fn *on_frame, void *arg, int *ret_exit);
/* Reports a failure in the form asked for: text on standard error and, with --json, an object on
 * standard output. Returns its exit code. */
int dog_report(const struct dog *d, int r, const char *text);
/* Reports a wrong command line. Returns DOG_USAGE. */
int dog_usage(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Asks, and prints the answer only with --json. Returns the exit code. */
int dog_run_simple(struct dog *d, json_t *request);
/* Prints with a newline, without the "ok" of an answer. */
void dog_print_json(json_t *json);

/* --- arguments --- */
/* "10G" -> bytes; 0 or DOG_USAGE after a message that says what was meant. */
int dog_parse_size(const char *what, const char *text, uint64_t *ret);
int dog_parse_count(const char *what, const char *text, uint64_t max, uint64_t *ret);

/* --- answers: absent keys read as "", 0, false --- */
const char *dog_string(const json_t *object, const char *key);
uint64_t dog_u64(const json_t *object, const char *key);
bool dog_bool(const json_t *object, const char *key);
uint64_t dog_now(void); /* monotonic ns, for progress */
