/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of sheep. */
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/err.h"
#include "base/human.h"
#include "base/log.h"
#include "base/options.h"
#include "sheep/sheep.h"

#define CACHE_DEFAULT      (32ULL << 20)
#define SCRUB_RATE_DEFAULT (8u << 20)
#define OUT_AFTER_MAX      (365ul * 86400)
#define CACHE_MIN          (1ULL << 20)

static const struct option_spec run_options[] = {
    {"cluster", 0, OPTION_TEXT, "SPEC",
     "cluster store: local:/PATH or zookeeper:HOST,…/PATH (local:/var/lib/kelpie/cluster.db)"},
    {"name", 0, OPTION_TEXT, "NAME", "name of this node (host name and start of the store's uuid)"},
    {"zone", 0, OPTION_TEXT, "ZONE", "failure domain: copies never share one (host name)"},
    {"weight", 0, OPTION_TEXT, "N", "share of the data, 1024 = 1 TiB (by the store's size)"},
    {"admin", 0, OPTION_TEXT, "ADDRESS", "where dog connects, repeatable (127.0.0.1:7000)"},
    {"peer", 0, OPTION_TEXT, "ADDRESS", "where the other sheep connect (127.0.0.1:0)"},
    {"nbd", 0, OPTION_TEXT, "ADDRESS",
     "NBD server, repeatable, \"none\" for none (127.0.0.1:10809)"},
    {"cache", 0, OPTION_TEXT, "SIZE", "memory for object records and index blocks (32M)"},
    {"scrub-rate", 0, OPTION_TEXT, "SIZE",
     "bytes a second to verify in the background, 0 none (8M)"},
    {"recovery-rate", 0, OPTION_TEXT, "SIZE",
     "bytes a second to take from other nodes for missing copies (256M)"},
    {"out-after", 0, OPTION_TEXT, "SECONDS",
     "how long a node may be away before its groups are copied to others (600)"},
    {"log-level", 0, OPTION_TEXT, "LEVEL", "error, warn, info or debug (info)"},
    {"pidfile", 0, OPTION_TEXT, "FILE", "write the process id there while serving"},
    {"ports-file", 0, OPTION_TEXT, "FILE", "write the addresses there, as JSON, while serving"},
    {"no-discard", 0, OPTION_FLAG, NULL, "do not give freed space back to the device"},
    {"unsafe-no-flush", 0, OPTION_FLAG, NULL, "do not wait for the disk: a power cut loses data"},
    {"help", 'h', OPTION_FLAG, NULL, "explain"},
    {"version", 0, OPTION_FLAG, NULL, "print the version"},
    {NULL},
};
static const struct option_spec format_options[] = {
    {"size", 0, OPTION_TEXT, "SIZE", "of the file to make (whole device or existing file)"},
    {"overwrite", 0, OPTION_FLAG, NULL, "replace what is there: all its data is lost"},
    {"sparse", 0, OPTION_FLAG, NULL, "a file takes space only when it is needed"},
    {"zero-all", 0, OPTION_FLAG, NULL, "write all of a file now, not while it is used"},
    {"log-size", 0, OPTION_TEXT, "SIZE", "of the log (by the store's size)"},
    {"log-level", 0, OPTION_TEXT, "LEVEL", "error, warn, info or debug (info)"},
    {"help", 'h', OPTION_FLAG, NULL, "explain"},
    {NULL},
};
static const struct option_spec trim_options[] = {
    {"log-level", 0, OPTION_TEXT, "LEVEL", "error, warn, info or debug (info)"},
    {"help", 'h', OPTION_FLAG, NULL, "explain"},
    {NULL},
};
static const struct option_spec check_options[] = {
    {"data", 0, OPTION_FLAG, NULL, "read all data too, and verify its checksums"},
    {"repair", 0, OPTION_FLAG, NULL, "mend what the store itself still knows; names what is lost"},
    {"json", 0, OPTION_FLAG, NULL, "print the result as JSON"},
    {"log-level", 0, OPTION_TEXT, "LEVEL", "error, warn, info or debug (info)"},
    {"help", 'h', OPTION_FLAG, NULL, "explain"},
    {NULL},
};

static void print_options(const struct option_spec *o)
{
    for (; o->name; o++) {
        char left[48];
        snprintf(left, sizeof(left), "--%s%s%s", o->name, o->metavar ? " " : "",
                 o->metavar ? o->metavar : "");
        printf("  %-22s %s\n", left, o->help);
    }
}

void sheep_help(void)
{
    printf(
        "sheep - the daemon of a Kelpie cluster: one for each disk\n\n"
        "Usage: sheep format PATH [options]   make a store on a block device or in a file\n"
        "       sheep run PATH [options]      serve it (also: sheep PATH)\n"
        "       sheep check PATH [options]    prove it from disk alone\n"
        "       sheep trim PATH               give its free space back (no sheep may serve it)\n\n"
        "run:\n");
    print_options(run_options);
    printf("\nformat:\n");
    print_options(format_options);
    printf("\ncheck:\n");
    print_options(check_options);
    printf("\ntrim:\n");
    print_options(trim_options);
    printf("\nAn ADDRESS is HOST:PORT, tcp:HOST:PORT or unix:/path; port 0 takes a free one. Sizes "
           "take K M\n"
           "G T (1024). sheep runs in the foreground and logs to standard error; SIGTERM ends it "
           "orderly.\n"
           "Exit codes: 0 success, 1 failure (check: something was found), 2 store or system "
           "failure, 64\n"
           "usage.\n\n"
           "Three nodes on one machine, to try it:\n"
           "  mkdir -p /var/lib/kelpie\n"
           "  sheep format /var/lib/kelpie/a --size 20G     and the same for b and c\n"
           "  sheep /var/lib/kelpie/a --zone a &\n"
           "  sheep /var/lib/kelpie/b --zone b --admin 127.0.0.1:7001 --nbd 127.0.0.1:10810 &\n"
           "  sheep /var/lib/kelpie/c --zone c --admin 127.0.0.1:7002 --nbd 127.0.0.1:10811 &\n"
           "  dog cluster format --copies 3\n");
}

static int usage(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int usage(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "sheep: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    return SHEEP_USAGE;
}

/* "10G" of --name into *ret, when it was given. */
static int take_size(const struct options *o, const char *name, uint64_t *ret)
{
    const char *text = options_text(o, name);
    if (text && human_size_parse(text, ret) < 0)
        return usage("--%s \"%s\" is not a size: give bytes, or a number with K, M, G or T", name,
                     text);
    return 0;
}

static int take_weight(const struct options *o, uint32_t *ret)
{
    const char *text = options_text(o, "weight");
    char *end;
    if (!text)
        return 0;
    unsigned long v = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || v == 0 || v > 1u << 30)
        return usage("--weight \"%s\" is not a number from 1 to %u", text, 1u << 30);
    *ret = (uint32_t)v;
    return 0;
}

static int take_out_after(const struct options *o, uint64_t *ret_ns)
{
    const char *text = options_text(o, "out-after");
    char *end;
    if (!text)
        return 0;
    unsigned long v = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || v == 0 || v > OUT_AFTER_MAX)
        return usage("--out-after \"%s\" is not a number of seconds from 1 to %lu", text,
                     OUT_AFTER_MAX);
    *ret_ns = v * NS_PER_S;
    return 0;
}

/* All values of a repeatable option; *ret_count stays when there is none. */
static int take_list(const struct options *o, const char *name,
                     const char *ret[SHEEP_LISTEN_COUNT_MAX], unsigned *ret_count)
{
    unsigned count = 0;
    for (unsigned i = 0; i < o->count; i++) {
        if (strcmp(o->specs[i]->name, name) != 0)
            continue;
        if (count == SHEEP_LISTEN_COUNT_MAX)
            return usage("--%s was given more than %d times", name, SHEEP_LISTEN_COUNT_MAX);
        ret[count++] = o->values[i];
    }
    if (count > 0)
        *ret_count = count;
    return 0;
}

static void take_text(const struct options *o, const char *name, const char **ret)
{
    const char *text = options_text(o, name);
    if (text)
        *ret = text;
}

static const char *host_name(void)
{
    static char name[HOST_NAME_MAX + 1];
    if (gethostname(name, sizeof(name) - 1) < 0 || name[0] == '\0')
        return "localhost";
    return name;
}

static int take_run(const struct options *o, struct sheep_options *ret)
{
    take_text(o, "cluster", &ret->cluster);
    take_text(o, "name", &ret->name);
    take_text(o, "zone", &ret->zone);
    take_text(o, "peer", &ret->peer);
    take_text(o, "pidfile", &ret->pidfile);
    take_text(o, "ports-file", &ret->ports_file);
    ret->unsafe_no_flush = options_has(o, "unsafe-no-flush");
    ret->no_discard = options_has(o, "no-discard");
    int r = take_weight(o, &ret->weight);
    if (r == 0)
        r = take_size(o, "cache", &ret->cache_bytes);
    if (r == 0)
        r = take_size(o, "scrub-rate", &ret->scrub_rate);
    if (r == 0)
        r = take_size(o, "recovery-rate", &ret->recovery_rate);
    if (r == 0)
        r = take_out_after(o, &ret->out_ns);
    if (r == 0)
        r = take_list(o, "admin", ret->admin, &ret->admin_count);
    if (r == 0)
        r = take_list(o, "nbd", ret->nbd, &ret->nbd_count);
    if (r != 0)
        return r;
    if (options_has(o, "recovery-rate") && ret->recovery_rate == 0)
        return usage("--recovery-rate must not be 0: copies would stay missing");
    if (ret->cache_bytes < CACHE_MIN)
        return usage("--cache must be at least 1M");
    if (ret->nbd_count == 1 && strcmp(ret->nbd[0], "none") == 0)
        ret->nbd_count = 0;
    return 0;
}

static const struct {
    const char *name;
    enum sheep_command command;
    const struct option_spec *options;
} commands[] = {
    {"run", SHEEP_RUN, run_options},
    {"format", SHEEP_FORMAT, format_options},
    {"check", SHEEP_CHECK, check_options},
    {"trim", SHEEP_TRIM, trim_options},
};

/* Index into commands[] by the first word that is no option; run when it is a path. */
static size_t find_command(int argc, char **argv, int *ret_first)
{
    *ret_first = 1;
    for (size_t i = 0; argc > 1 && i < ARRAY_SIZE(commands); i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            *ret_first = 2;
            return i;
        }
    }
    return 0;
}

int sheep_parse(int argc, char **argv, struct sheep_options *ret, enum sheep_command *ret_command)
{
    struct options o = {0};
    struct options_cursor c = {.argc = argc, .argv = argv};
    size_t command = find_command(argc, argv, &c.index);
    *ret = (struct sheep_options){.cluster = "local:/var/lib/kelpie/cluster.db",
                                  .zone = host_name(),
                                  .peer = "127.0.0.1:0",
                                  .admin = {"127.0.0.1:7000"},
                                  .admin_count = 1,
                                  .nbd = {"127.0.0.1:10809"},
                                  .nbd_count = 1,
                                  .cache_bytes = CACHE_DEFAULT,
                                  .scrub_rate = SCRUB_RATE_DEFAULT};
    *ret_command = commands[command].command;
    if (options_parse(&o, &c, commands[command].options, NULL, UINT_MAX) < 0)
        return usage("%s; sheep --help lists them all", o.error);
    if (options_has(&o, "help") || options_has(&o, "version")) {
        *ret_command = options_has(&o, "help") ? SHEEP_HELP : SHEEP_VERSION;
        return 0;
    }
    if (o.argument_count == 0)
        return usage("which store? sheep %s PATH (sheep --help explains)", commands[command].name);
    if (o.argument_count > 1)
        return usage("one path is enough, what is \"%s\"? (sheep --help explains)", o.arguments[1]);
    ret->path = o.arguments[0];
    const char *level = options_text(&o, "log-level");
    if (level && log_level_parse(level, &log_level) < 0)
        return usage("--log-level \"%s\" is none of error, warn, info, debug", level);
    ret->overwrite = options_has(&o, "overwrite");
    ret->sparse = options_has(&o, "sparse");
    ret->zero_all = options_has(&o, "zero-all");
    if (ret->sparse && ret->zero_all)
        return usage(
            "--sparse and --zero-all contradict each other: what is written is not sparse");
    ret->data = options_has(&o, "data");
    ret->json = options_has(&o, "json");
    ret->repair = options_has(&o, "repair");
    int r = take_size(&o, "size", &ret->size);
    if (r == 0)
        r = take_size(&o, "log-size", &ret->log_bytes);
    return r == 0 ? take_run(&o, ret) : r;
}
