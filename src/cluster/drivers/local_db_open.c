/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening the local driver's database: making it, and refusing what is not one (FORMAT.md).
 *
 * LO1 Nothing is written to a file before it was found to be ours or empty.
 * LO2 Several processes may make it at the same time; one does, in one transaction.
 */
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/log.h"
#include "cluster/drivers/local_db_internal.h"

#define LOG_MODULE "cluster"

#define APPLICATION_ID 0x4b4c5043 /* "KLPC" */
#define FORMAT_VERSION 1

static const char *const sql_text[SQL_COUNT] = {
    [SQL_BEGIN_READ] = "BEGIN",
    [SQL_BEGIN_WRITE] = "BEGIN IMMEDIATE",
    [SQL_COMMIT] = "COMMIT",
    [SQL_ROLLBACK] = "ROLLBACK",
    [SQL_META_GET] = "SELECT value FROM meta WHERE name = ?1",
    [SQL_META_SET] = "UPDATE meta SET value = ?2 WHERE name = ?1",
    [SQL_GET] = "SELECT revision, value FROM kv WHERE key = ?1",
    [SQL_LIST] = "SELECT key, value, revision FROM kv WHERE key >= ?1 AND key < ?1 || char(127) "
                 "ORDER BY key",
    [SQL_PUT] = "INSERT INTO kv (key, value, revision, session) VALUES (?1, ?2, ?3, ?4) "
                "ON CONFLICT (key) DO UPDATE SET value = ?2, revision = ?3, session = ?4",
    [SQL_DELETE] = "DELETE FROM kv WHERE key = ?1",
    [SQL_SESSION_KEYS] =
        "SELECT key, NULL, revision FROM kv WHERE session = ?1 AND session != 0 ORDER BY key",
    [SQL_SESSIONS] = "SELECT DISTINCT session FROM kv WHERE session != 0",
    [SQL_CHANGE_PUT] =
        "INSERT INTO changes (id, revision, key, value, total) VALUES (?1, ?2, ?3, ?4, ?5)",
    [SQL_CHANGE_FIRST] = "SELECT id, total, revision FROM changes ORDER BY id LIMIT 1",
    [SQL_CHANGE_LAST] = "SELECT id, total, revision FROM changes ORDER BY id DESC LIMIT 1",
    [SQL_CHANGE_TRIM] = "DELETE FROM changes WHERE id = ?1",
    [SQL_CHANGES] = "SELECT key, value, revision, id FROM changes WHERE id > ?1 ORDER BY id",
};

static const char schema[] =
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;"
    "CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL,"
    " session INTEGER NOT NULL);"
    "CREATE INDEX kv_session ON kv (session) WHERE session != 0;"
    "CREATE TABLE changes (id INTEGER PRIMARY KEY, revision INTEGER NOT NULL, key TEXT NOT NULL,"
    " value BLOB, total INTEGER NOT NULL);"
    "INSERT INTO meta VALUES ('revision', 0), ('session', 0), ('uuid', randomblob(16));"
    "PRAGMA application_id = 1263292483;"
    "PRAGMA user_version = 1;";
static_assert(APPLICATION_ID == 1263292483 && FORMAT_VERSION == 1, "the schema says the same");

static int exec(struct local_db *db, const char *text)
{
    unsigned rounds = 0;
    int rc;
    do {
        rc = sqlite3_exec(db->handle, text, NULL, NULL, NULL);
    } while (local_db_busy(db, rc, &rounds));
    return local_db_failed(db, rc);
}

/* First column of the first row. */
static int query_int(struct local_db *db, const char *text, int64_t *ret)
{
    unsigned rounds = 0;
    int rc;
    do {
        sqlite3_stmt *s = NULL;
        rc = sqlite3_prepare_v2(db->handle, text, -1, &s, NULL);
        if (rc == SQLITE_OK)
            rc = sqlite3_step(s);
        if (rc == SQLITE_ROW)
            *ret = sqlite3_column_int64(s, 0);
        sqlite3_finalize(s);
    } while (local_db_busy(db, rc, &rounds));
    if ((rc & 0xff) == SQLITE_NOTADB) {
        log_error(
            "%s is not a cluster store: give the path of one, or of a file that does not exist yet",
            db->path);
        return -EMEDIUMTYPE;
    }
    return local_db_failed(db, rc);
}

/* *ret_empty: nothing is in it yet. */
static int check_identity(struct local_db *db, bool *ret_empty)
{
    int64_t id = 0, version = 0, tables = 0;
    int r = query_int(db, "PRAGMA application_id", &id);
    if (r == 0)
        r = query_int(db, "PRAGMA user_version", &version);
    if (r == 0)
        r = query_int(db, "SELECT count(*) FROM sqlite_master", &tables);
    if (r < 0)
        return r;
    if (id != APPLICATION_ID && (id != 0 || version != 0 || tables != 0)) {
        log_error("%s is a database of another program, not a cluster store", db->path);
        return -EMEDIUMTYPE;
    }
    if (id == APPLICATION_ID && version != FORMAT_VERSION) {
        log_error("cluster store %s has format %lld, this version knows %d: use a newer sheep",
                  db->path, (long long)version, FORMAT_VERSION);
        return -EPROTO;
    }
    *ret_empty = id == 0;
    return 0;
}

static int initialise(struct local_db *db)
{
    bool empty;
    /* One snapshot for all that is read: another process may be making the store right now. */
    int r = exec(db, "BEGIN");
    if (r < 0)
        return r;
    r = check_identity(db, &empty);
    sqlite3_exec(db->handle, "COMMIT", NULL, NULL, NULL);
    if (r < 0)
        return r;
    int64_t ignored;
    r = query_int(db, "PRAGMA journal_mode = WAL", &ignored);
    if (r == 0)
        r = exec(db, "PRAGMA synchronous = FULL");
    if (r < 0 || !empty)
        return r;
    /* Another process may be doing the same. */
    r = exec(db, "BEGIN IMMEDIATE");
    if (r < 0)
        return r;
    r = check_identity(db, &empty);
    if (r == 0 && empty)
        r = exec(db, schema);
    if (r == 0)
        r = exec(db, "COMMIT");
    if (r < 0)
        sqlite3_exec(db->handle, "ROLLBACK", NULL, NULL, NULL);
    return r;
}

static int check_place(const char *path)
{
    char directory[PATH_MAX];
    struct stat st;
    if (path[0] == ':' || strlen(path) >= sizeof(directory)) {
        log_error("\"%.64s\" cannot be the path of a cluster store", path);
        return -EINVAL;
    }
    strcpy(directory, path);
    const char *parent = dirname(directory);
    if (stat(parent, &st) < 0 || !S_ISDIR(st.st_mode)) {
        log_error("the cluster store cannot be made: directory %s does not exist, make it first",
                  parent);
        return -ENOENT;
    }
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        log_error("%s is not a file, so it cannot be a cluster store", path);
        return -EMEDIUMTYPE;
    }
    return 0;
}

static int open_handle(struct local_db *db, const char *path)
{
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    int rc = sqlite3_open_v2(path, &db->handle, flags, NULL);
    if (rc != SQLITE_OK || sqlite3_db_readonly(db->handle, "main") == 1) {
        int system_errno = db->handle ? sqlite3_system_errno(db->handle) : 0;
        bool denied = rc == SQLITE_OK || system_errno == EACCES || system_errno == EPERM;
        log_error("cannot open the cluster store %s for writing: %s", path,
                  denied ? "check its and its directory's owner and permissions"
                         : sqlite3_errstr(rc));
        return system_errno == EROFS || rc == SQLITE_OK ? -EROFS : denied ? -EPERM : -EIO;
    }
    sqlite3_extended_result_codes(db->handle, 1);
    sqlite3_busy_timeout(db->handle, LOCAL_DB_BUSY_TIMEOUT_MS);
    return 0;
}

static int remember_file(struct local_db *db, const char *path)
{
    struct stat st;
    if (!realpath(path, db->path) || stat(db->path, &st) < 0) {
        log_error("cluster store %s vanished while it was opened", path);
        return -EIO;
    }
    db->device = st.st_dev;
    db->inode = st.st_ino;
    return 0;
}

int local_db_open(const char *path, struct local_db **ret)
{
    int r = check_place(path);
    if (r < 0)
        return r;
    struct local_db *db = calloc(1, sizeof(*db));
    if (!db)
        return -ENOMEM;
    strcpy(db->path, path);
    r = open_handle(db, path);
    if (r == 0)
        r = initialise(db);
    if (r == 0)
        r = remember_file(db, path);
    for (unsigned i = 0; r == 0 && i < SQL_COUNT; i++)
        r = local_db_failed(db, sqlite3_prepare_v3(db->handle, sql_text[i], -1,
                                                   SQLITE_PREPARE_PERSISTENT, &db->statements[i],
                                                   NULL));
    if (r < 0) {
        local_db_close(db);
        return r;
    }
    *ret = db;
    return 0;
}

void local_db_close(struct local_db *db)
{
    if (!db)
        return;
    for (unsigned i = 0; i < SQL_COUNT; i++)
        sqlite3_finalize(db->statements[i]);
    sqlite3_close(db->handle);
    free(db);
}
