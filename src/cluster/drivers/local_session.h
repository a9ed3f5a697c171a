/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions of the local driver: a locked file each, beside the database. Blocks: helper thread
 * only, but for what is said to be callable anywhere. Private to drivers/local*.c.
 */
#pragma once
#include <limits.h>
#include "cluster/drivers/local_db.h"

#define LOCAL_BELL_NAME "changed"

struct local_session {
    char directory[PATH_MAX]; /* "DATABASE.sessions" */
    uint64_t id;
    int fd;      /* the session's file, opened for writing and locked */
    int bell_fd; /* the file whose writing tells of commits */
};

/* Finds or makes the directory, and the bell in it. fds are -1 otherwise. */
int local_session_prepare(struct local_session *s, const struct local_db *db);
/* Begins a session. */
int local_session_begin(struct local_session *s, struct local_db *db);
/* Ends it: its keys go in one commit, then its file. When the database does not answer, only the
 * lock is given up, and another process finds the session dead. */
void local_session_end(struct local_session *s, struct local_db *db);
/* Tells all processes that there was a commit. Callable anywhere. */
void local_session_ring(const struct local_session *s);
/* Ends session `id` if its process is dead. 0: it is over (now or before); -EBUSY: it lives. */
int local_session_reap(const struct local_session *s, struct local_db *db, uint64_t id);
/* Calls fn for each session that has a file or owns keys, but this one. */
int local_session_list(const struct local_session *s, struct local_db *db,
                       void (*fn)(void *arg, uint64_t id), void *arg);
/* Session of a file name in the directory, 0 if it is none. Callable anywhere. */
uint64_t local_session_parse(const char *name);
