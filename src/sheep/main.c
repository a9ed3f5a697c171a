/* SPDX-License-Identifier: Apache-2.0 */
/* sheep: the daemon. Chooses the subcommand; the only exit() of the daemon is here. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include "base/err.h"
#include "base/log.h"
#include "rt/uring/uring.h"
#include "sheep/sheep.h"

#define LOG_MODULE "sheep"

struct loop_call {
    struct rt *rt;
    void (*fn)(struct rt *rt, void *arg);
    void *arg;
};

static fiber_fn void loop_main(void *arg)
{
    struct loop_call *call = arg;
    call->fn(call->rt, call->arg);
    rt_stop(call->rt);
}

int sheep_loop(void (*fn)(struct rt *rt, void *arg), void *arg)
{
    struct loop_call call = {.fn = fn, .arg = arg};
    int r = rt_uring_new(NULL, &call.rt);
    if (r < 0) {
        log_error("io_uring cannot be used: %s%s", err_text(r),
                  r == -ENOSYS || r == -EPERM
                      ? "; Linux 5.15 or newer is needed, and a container or sysctl "
                        "kernel.io_uring_disabled must not forbid it"
                  : r == -ENOMEM ? "; raise the limit of locked memory (ulimit -l)"
                                 : "");
        return SHEEP_STORE;
    }
    r = fiber_spawn(call.rt, "main", loop_main, &call);
    if (r == 0)
        r = rt_uring_run(call.rt);
    rt_uring_free(call.rt);
    if (r < 0)
        log_error("the event loop failed: %s", err_text(r));
    return r < 0 ? SHEEP_STORE : 0;
}

/* Descriptors for every guest, locked memory for the rings: as much as we may have. */
static void raise_limits(void)
{
    static const int resources[] = {RLIMIT_NOFILE, RLIMIT_MEMLOCK};
    for (size_t i = 0; i < ARRAY_SIZE(resources); i++) {
        struct rlimit limit;
        if (getrlimit(resources[i], &limit) == 0 && limit.rlim_cur != limit.rlim_max) {
            limit.rlim_cur = limit.rlim_max;
            (void)setrlimit(resources[i], &limit); /* what we have may be enough */
        }
    }
}

int main(int argc, char **argv)
{
    struct sheep_options o;
    enum sheep_command command;
    int code = sheep_parse(argc, argv, &o, &command);
    if (code != 0)
        exit(code);
    signal(SIGPIPE, SIG_IGN);
    raise_limits();
    switch (command) {
    case SHEEP_RUN:
        code = sheep_run(&o);
        break;
    case SHEEP_FORMAT:
        code = sheep_format(&o);
        break;
    case SHEEP_CHECK:
        code = sheep_check(&o);
        break;
    case SHEEP_TRIM:
        code = sheep_trim(&o);
        break;
    case SHEEP_HELP:
        sheep_help();
        break;
    case SHEEP_VERSION:
        printf("sheep (Kelpie) %s\n", KELPIE_VERSION);
        break;
    }
    exit(code);
}
