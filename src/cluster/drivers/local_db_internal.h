/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of struct local_db, shared by local_db.c and local_db_open.c. */
#pragma once
#include <limits.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include "cluster/drivers/local_db.h"

#define LOCAL_DB_BUSY_TIMEOUT_MS 1000

/* The statements; their texts are in local_db_open.c. */
enum sql {
    SQL_BEGIN_READ,
    SQL_BEGIN_WRITE,
    SQL_COMMIT,
    SQL_ROLLBACK,
    SQL_META_GET,
    SQL_META_SET,
    SQL_GET,
    SQL_LIST,
    SQL_PUT,
    SQL_DELETE,
    SQL_SESSION_KEYS,
    SQL_SESSIONS,
    SQL_CHANGE_PUT,
    SQL_CHANGE_FIRST,
    SQL_CHANGE_LAST,
    SQL_CHANGE_TRIM,
    SQL_CHANGES,
    SQL_COUNT
};

struct local_db {
    sqlite3 *handle;
    sqlite3_stmt *statements[SQL_COUNT];
    char path[PATH_MAX];
    dev_t device; /* of the file that is open, to notice when another takes its place */
    ino_t inode;
    atomic_bool cancelled;
    atomic_bool broken;
};

/* Logs what SQLite says and turns it into an errno. */
int local_db_failed(struct local_db *db, int rc);
/* True to try again: SQLite has waited LOCAL_DB_BUSY_TIMEOUT_MS for another process (or not at all
 * where it must not). */
bool local_db_busy(struct local_db *db, int rc, unsigned *rounds);
