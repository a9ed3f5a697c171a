/* SPDX-License-Identifier: Apache-2.0 */
/* dog: the administrator's tool. Finds the command, explains, runs. */
#include <limits.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "dog/dog.h"

const struct dog_noun *const dog_nouns[] = {&dog_cluster, &dog_node, &dog_pool, &dog_vdi, NULL};

/* Known to every command; behind the noun and verb, -s is the command's own where it has one. */
static const struct option_spec global_options[] = {
    {"address", 'a', OPTION_TEXT, "HOST", "sheep to talk to (127.0.0.1)"},
    {"port", 'p', OPTION_TEXT, "PORT", "its admin port (7000)"},
    {"sheep", 's', OPTION_TEXT, "ADDRESS",
     "the same as one address: unix:/path or tcp:HOST:PORT (also: environment KELPIE_ADMIN)"},
    {"json", 0, OPTION_FLAG, NULL, "print JSON, with the keys that dog(8) lists"},
    {"raw", 'r', OPTION_FLAG, NULL, "print plain columns for scripts, as the first Sheepdog did"},
    {"quiet", 'q', OPTION_FLAG, NULL, "no progress bar"},
    {"force", 'f', OPTION_FLAG, NULL, "accepted and ignored: dog never asks back"},
    {"help", 'h', OPTION_FLAG, NULL, "explain the command"},
    {NULL},
};

static void print_options(const struct option_spec *o)
{
    for (; o && o->name; o++) {
        char left[64], letter[8] = "   ";
        if (o->letter)
            snprintf(letter, sizeof(letter), "-%c,", o->letter);
        snprintf(left, sizeof(left), "%s --%s%s%s", letter, o->name, o->metavar ? " " : "",
                 o->metavar ? o->metavar : "");
        printf("  %-24s %s\n", left, o->help);
    }
}

static void help_all(void)
{
    printf("dog - the administrator's tool of a Kelpie cluster\n\n"
           "Usage: dog [options] NOUN VERB [arguments]\n\n");
    for (const struct dog_noun *const *n = dog_nouns; *n; n++) {
        for (const struct dog_verb *v = (*n)->verbs; v->name; v++) {
            char left[80];
            snprintf(left, sizeof(left), "%s %s %s", (*n)->name, v->name, v->arguments);
            printf("  %-38s %s\n", left, v->summary);
        }
        printf("\n");
    }
    printf("Options:\n");
    print_options(global_options);
    printf("\nThe first steps, with three sheep running on this machine:\n"
           "  dog cluster format --copies 3        make a cluster of them\n"
           "  dog vdi create disk 10G              make a volume; it takes space as it is written\n"
           "  qemu-img info nbd://127.0.0.1/disk   every sheep serves it by NBD\n"
           "  dog vdi snapshot -s monday disk      keep its present content\n"
           "  dog vdi clone -s monday disk copy    a writable volume from it, at once\n\n"
           "dog NOUN VERB --help explains each command with examples.\n"
           "Exit codes: 0 success, 1 failure, 2 no sheep reached, 3 exists, 4 full, 5 missing, 64 "
           "usage.\n");
}

static void help_noun(const struct dog_noun *n)
{
    printf("dog %s - %s\n\n", n->name, n->summary);
    for (const struct dog_verb *v = n->verbs; v->name; v++) {
        char left[80];
        snprintf(left, sizeof(left), "dog %s %s %s", n->name, v->name, v->arguments);
        printf("  %-42s %s\n", left, v->summary);
    }
    printf("\ndog %s VERB --help explains each with examples.\n", n->name);
}

static void help_verb(const struct dog_noun *n, const struct dog_verb *v)
{
    printf("Usage: dog %s %s %s%s\n\nThis command %s.\n\n%s\n", n->name, v->name, v->arguments,
           v->options ? " [options]" : "", v->summary, v->help);
    if (v->options) {
        printf("Options:\n");
        print_options(v->options);
        printf("\n");
    }
    printf("Options of every command:\n");
    print_options(global_options);
}

static const struct dog_noun *find_noun(const char *name)
{
    for (const struct dog_noun *const *n = dog_nouns; *n; n++) {
        if (strcmp((*n)->name, name) == 0)
            return *n;
    }
    return NULL;
}

static const struct dog_verb *find_verb(const struct dog_noun *n, const char *name)
{
    for (const struct dog_verb *v = n->verbs; v->name; v++) {
        if (strcmp(v->name, name) == 0)
            return v;
    }
    return NULL;
}

static int unknown_noun(const char *name)
{
    const char *words[8];
    size_t count = 0;
    for (const struct dog_noun *const *n = dog_nouns; *n; n++)
        words[count++] = (*n)->name;
    const char *near = options_nearest(name, words, count);
    if (near)
        return dog_usage("unknown command \"%s\"; did you mean \"dog %s\"?", name, near);
    return dog_usage("unknown command \"%s\"; dog --help lists them all", name);
}

static int unknown_verb(const struct dog_noun *n, const char *name)
{
    const char *words[32];
    size_t count = 0;
    for (const struct dog_verb *v = n->verbs; v->name; v++)
        words[count++] = v->name;
    const char *near = options_nearest(name, words, count);
    if (near)
        return dog_usage("unknown command \"%s %s\"; did you mean \"dog %s %s\"?", n->name, name,
                         n->name, near);
    return dog_usage("unknown command \"%s %s\"; dog %s --help lists what there is", n->name, name,
                     n->name);
}

/* Address from options or environment. 0 or DOG_USAGE. */
static int choose_address(const struct options *o, char ret[CLIENT_ADDRESS_SIZE])
{
    const char *sheep = options_text(o, "sheep"), *host = options_text(o, "address");
    const char *port = options_text(o, "port"), *env = getenv("KELPIE_ADMIN");
    if (!sheep && !host && !port && env && env[0] != '\0')
        sheep = env;
    if (sheep && (host || port))
        return dog_usage("give either -s ADDRESS or -a HOST and -p PORT");
    if (!sheep)
        sheep = host ? host : "127.0.0.1";
    if (client_address(sheep, port ? port : "7000", ret) < 0)
        return dog_usage("\"%s\" is not an address: unix:/path, tcp:HOST:PORT or HOST", sheep);
    return 0;
}

static int run_verb(const struct dog_noun *n, const struct dog_verb *v, const struct options *o)
{
    unsigned given = o->argument_count - 2;
    if (given < v->argument_min)
        return dog_usage("dog %s %s needs %s (dog %s %s --help explains)", n->name, v->name,
                         v->arguments, n->name, v->name);
    if (given > v->argument_max)
        return dog_usage("dog %s %s takes no argument \"%s\": dog %s %s %s", n->name, v->name,
                         o->arguments[2 + v->argument_max], n->name, v->name, v->arguments);
    struct dog d = {.options = o, .progress = options_has(o, "quiet") ? NULL : v->name};
    if (options_has(o, "json"))
        d.output = DOG_JSON;
    else if (options_has(o, "raw"))
        d.output = DOG_RAW;
    int r = choose_address(o, d.address);
    if (r == 0)
        r = v->run(&d);
    client_close(d.client);
    if (fflush(stdout) != 0 && r == DOG_OK) {
        fprintf(stderr, "dog: writing the output: %s\n", strerror(errno));
        r = DOG_SYSTEM;
    }
    return r;
}

/* Requests are JSON: an argument that is no UTF-8 could only be left out of one, and what a request
 * means without it (a deletion without its -s TAG) is something else. */
static bool arguments_are_utf8(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        json_t *s = json_string(argv[i]);
        if (!s)
            return false;
        json_decref(s);
    }
    return true;
}

int main(int argc, char **argv)
{
    struct options o = {0};
    struct options_cursor c = {.argc = argc, .index = 1, .argv = argv};
    setlocale(LC_ALL, "");
    if (!arguments_are_utf8(argc, argv))
        return dog_usage("an argument is not valid UTF-8");
    if (options_parse(&o, &c, global_options, NULL, 2) < 0)
        return dog_usage("%s; dog --help lists them all", o.error);
    if (o.argument_count == 0) {
        if (options_has(&o, "help")) {
            help_all();
            return DOG_OK;
        }
        return dog_usage("what shall I do? dog --help lists all commands");
    }
    if (strcmp(o.arguments[0], "help") == 0) {
        help_all();
        return DOG_OK;
    }
    const struct dog_noun *n = find_noun(o.arguments[0]);
    if (!n)
        return unknown_noun(o.arguments[0]);
    if (o.argument_count == 1) {
        help_noun(n);
        return options_has(&o, "help") ? DOG_OK : DOG_USAGE;
    }
    const struct dog_verb *v = find_verb(n, o.arguments[1]);
    if (!v)
        return unknown_verb(n, o.arguments[1]);
    if (options_parse(&o, &c, v->options, global_options, UINT_MAX) < 0)
        return dog_usage("%s; dog %s %s --help lists them all", o.error, n->name, v->name);
    if (options_has(&o, "help")) {
        help_verb(n, v);
        return DOG_OK;
    }
    return run_verb(n, v, &o);
}
