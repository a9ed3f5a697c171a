/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_repair(): mends what the store itself still knows.
 *
 * First the checkpoint is written anew if its structures are damaged (mend.c), then the store is
 * opened in the ordinary way, which replays the log, and closed, which writes a checkpoint and both
 * copies of the superblock. Each step leaves a store that the next one, or a later repair, finds as
 * good as before.
 */
#define LOG_MODULE "store"
#include <stdio.h>
#include "base/err.h"
#include "base/log.h"
#include "store/mend.h"
#include "store/store_internal.h"

#define ROUNDS_MAX 3u

struct repairing {
    struct rt *rt;
    const char *path;
    void (*report)(void *arg, const char *line);
    void *arg;
    bool quiet; /* what the walk finds was told before */
    struct store_repair_report result;
};

static void say(struct repairing *p, const char *kind, const char *text)
{
    char line[400];

    snprintf(line, sizeof(line), "%s%s", kind, text);
    if (p->report != NULL)
        p->report(p->arg, line);
}

static void walk_found(void *arg, const char *text)
{
    struct repairing *p = arg;

    if (p->quiet)
        return;
    p->result.found_count++;
    say(p, "found: ", text);
}

static void walk_said(void *arg, const char *text)
{
    say(arg, "", text);
}

static void still_wrong(void *arg, const char *text)
{
    say(arg, "left: ", text);
}

static fiber_fn int walk_and_mend(struct repairing *p, struct walk *w, bool *ret_mended)
{
    struct mend m;
    int r = mend_init(&m, w);

    if (r == 0)
        r = walk_run(w);
    *ret_mended = r == 0 && walk_is_damaged(w);
    if (*ret_mended)
        r = mend_write(&m);
    if (r == -ENOSPC)
        say(p, "",
            "there are not enough free blocks to write the checkpoint anew; nothing was changed");
    if (r == 0 && w->super_bad != 0)
        say(p, "", "mended: both copies of the superblock are written anew");
    mend_done(&m);
    return r;
}

/* Mends the checkpoint if it needs that. */
static fiber_fn int mend_checkpoint(struct repairing *p, bool *ret_mended)
{
    struct walk w = {.report = walk_found, .say = walk_said, .arg = p};
    int r = walk_open(p->rt, p->path, 0, &w);

    *ret_mended = false;
    if (r == 0 && (w.super.ro_compat & ~LAYOUT_RO_COMPAT))
        r = -EPROTO;
    if (r == 0)
        r = walk_and_mend(p, &w, ret_mended);
    walk_close(&w);
    return r;
}

/* Opens and closes. 0 also when it cannot be opened: the check that follows says why. */
static fiber_fn int settle(struct repairing *p)
{
    struct store_open_options options = {.repair = true};
    struct store *s;
    char problem[256];
    int r = store_open_explain(p->rt, p->path, &options, &s, problem);

    if (r == -EUCLEAN)
        return 0;
    if (r < 0)
        return r;
    if (problem[0] != '\0' && store_is_inexact(s) && !p->quiet) {
        walk_found(p, problem);
        say(p, "",
            "mended: the log ends where it is damaged; the store is marked inexact: its node will "
            "compare all objects with the other nodes");
    }
    p->result.inexact = store_is_inexact(s);
    return store_close(s);
}

fiber_fn int store_repair(struct rt *rt, const char *path, bool read_data,
                          void (*report)(void *arg, const char *line), void *arg,
                          struct store_repair_report *ret)
{
    struct repairing p = {.rt = rt, .path = path, .report = report, .arg = arg};
    bool mended = true;
    int r = 0;

    for (unsigned round = 0; r == 0 && mended && round < ROUNDS_MAX; round++) {
        r = mend_checkpoint(&p, &mended);
        if (r == -EUCLEAN || r == -EMEDIUMTYPE) {
            r = 0; /* no superblock to begin with: the check says so */
            break;
        }
        if (r == 0)
            r = settle(&p);
        p.quiet = true;
    }
    if (r == -EPROTO)
        say(&p, "",
            "the store has a format or features that this version cannot change: repair it with "
            "the version that made it");
    if (r == 0)
        r = store_check(rt, path, read_data, still_wrong, &p, &p.result.left);
    if (r == 0)
        *ret = p.result;
    return r;
}
