/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The SQLite side of the local driver: everything here blocks and runs on the helper thread only.
 * Private to drivers/local*.c.
 */
#pragma once
#include "cluster/watch.h"

struct local_db;

/* Rows read from the database; each key and value is owned by the list. */
struct local_rows {
    struct cs_change *rows;
    size_t count, capacity;
    size_t bytes;
};
void local_rows_done(struct local_rows *rows);

/* Opens or makes the database. -ENOENT: no such directory, -EMEDIUMTYPE: not a cluster store,
 * -EPROTO: of a newer format, -EROFS, -EPERM, -ENOSPC, -EIO …; each with a log line. */
int local_db_open(const char *path, struct local_db **ret);
void local_db_close(struct local_db *db);
/* Thread-safe: waiting for another process that holds the database ends with -ETIMEDOUT from now
 * on. */
void local_db_cancel(struct local_db *db);
/* Thread-safe: an error was met after which the database cannot be trusted to work any more. */
bool local_db_broken(const struct local_db *db);
/* The path with symbolic links resolved. Borrowed. */
const char *local_db_path(const struct local_db *db);

/* See cs_txn(). *ret_revision is also set when nothing had to be changed. */
int local_db_txn(struct local_db *db, uint64_t session, const struct cs_op *ops, unsigned count,
                 uint64_t *ret_revision);
int local_db_get(struct local_db *db, const char *key, struct enc *ret_value,
                 uint64_t *ret_revision);
/* All keys of the prefix, in byte order, and the revision of the state they were read from. */
int local_db_list(struct local_db *db, const char *prefix, struct local_rows *ret,
                  uint64_t *ret_revision);

/* Number of the newest change; 0 if there is none. */
int local_db_change_last(struct local_db *db, uint64_t *ret);
/* Some whole commits of those after change *last, which advances; nothing: no more for now.
 * -ESTALE: they are not kept any more, the state has to be read instead. */
int local_db_changes(struct local_db *db, uint64_t *last, struct local_rows *ret);

/* A session id that was never given out before. */
int local_db_session_new(struct local_db *db, uint64_t *ret);
/* Deletes the ephemeral keys of a session in one commit; *ret_count says how many. */
int local_db_session_end(struct local_db *db, uint64_t session, unsigned *ret_count);
/* The sessions that own keys: calls fn for each. */
int local_db_session_list(struct local_db *db, void (*fn)(void *arg, uint64_t session), void *arg);
