/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cluster store of one machine as an SQLite database (FORMAT.md).
 *
 * LD1 A write is one IMMEDIATE transaction in WAL mode with synchronous=FULL: whole or not at all,
 *     durable when it was answered, also when any process is killed at any moment.
 * LD2 Waiting for another process never fails by itself; it ends only when local_db_cancel() was
 *     called, and then nothing was begun. LD3 meta.revision is the number of the last commit; each
 *     commit writes what it changed to `changes` too, whose ids grow without gaps; the newest
 *     commit always stays there.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/err.h"
#include "base/log.h"
#include "cluster/drivers/local_db_internal.h"

#define LOG_MODULE "cluster"

#define BUSY_LOG_ROUNDS    10 /* a line every so many timeouts */
#define RING_ROWS_MAX      8192
#define RING_BYTES_MAX     (16u << 20)
#define ROW_BYTES_OVERHEAD 64
#define BATCH_ROWS         1024
#define BATCH_BYTES        (4u << 20)

static int errno_of(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_OK:
    case SQLITE_ROW:
    case SQLITE_DONE:
        return 0;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return -ETIMEDOUT;
    case SQLITE_NOMEM:
        return -ENOMEM;
    case SQLITE_FULL:
        return -ENOSPC;
    case SQLITE_READONLY:
        return -EROFS;
    case SQLITE_PERM:
    case SQLITE_AUTH:
        return -EPERM;
    case SQLITE_TOOBIG:
        return -EFBIG;
    case SQLITE_NOTADB:
        return -EMEDIUMTYPE;
    case SQLITE_CORRUPT:
        return -EUCLEAN;
    default:
        return -EIO;
    }
}

int local_db_failed(struct local_db *db, int rc)
{
    int r = errno_of(rc);
    if (r == 0 || r == -ETIMEDOUT)
        return r;
    if (r == -ENOSPC) {
        log_error("no space for the cluster store %s: free some on its file system", db->path);
        return r;
    }
    log_error("cluster store %s: %s (%s)", db->path, sqlite3_errmsg(db->handle), err_text(r));
    if (r == -EIO || r == -EUCLEAN || r == -EMEDIUMTYPE || r == -EROFS)
        atomic_store(&db->broken, true);
    return r;
}

bool local_db_busy(struct local_db *db, int rc, unsigned *rounds)
{
    if ((rc & 0xff) != SQLITE_BUSY || atomic_load(&db->cancelled))
        return false;
    if (++*rounds % BUSY_LOG_ROUNDS == 0)
        log_warn("cluster store %s has been held by another process for %u s", db->path, *rounds);
    usleep(1000);
    return true;
}

static sqlite3_stmt *bind_start(struct local_db *db, enum sql which)
{
    sqlite3_stmt *s = db->statements[which];
    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
    return s;
}

/* One step, waiting for other processes. SQLITE_ROW, SQLITE_DONE or an error code. */
static int step(struct local_db *db, sqlite3_stmt *s)
{
    unsigned rounds = 0;
    int rc;
    while (local_db_busy(db, rc = sqlite3_step(s), &rounds))
        sqlite3_reset(s);
    return rc;
}

/* For statements without rows. 0 or an errno. */
static int run(struct local_db *db, sqlite3_stmt *s)
{
    int r = local_db_failed(db, step(db, s));
    sqlite3_reset(s);
    return r;
}

static int run_plain(struct local_db *db, enum sql which)
{
    return run(db, bind_start(db, which));
}

/* Ends a transaction: commits when r is 0, else rolls back. Returns r or the commit's own error. */
static int finish(struct local_db *db, int r)
{
    if (r == 0)
        r = run_plain(db, SQL_COMMIT);
    if (r < 0 && !sqlite3_get_autocommit(db->handle))
        run_plain(db, SQL_ROLLBACK);
    return r;
}

void local_db_cancel(struct local_db *db)
{
    atomic_store(&db->cancelled, true);
}

bool local_db_broken(const struct local_db *db)
{
    return atomic_load(&db->broken);
}

const char *local_db_path(const struct local_db *db)
{
    return db->path;
}

/* --- rows --- */

void local_rows_done(struct local_rows *rows)
{
    for (size_t i = 0; i < rows->count; i++)
        free((char *)rows->rows[i].key);
    free(rows->rows);
    *rows = (struct local_rows){0};
}

/* Appends columns 0 (key), 1 (value), 2 (revision) of the statement's present row. */
static int rows_add(struct local_rows *rows, sqlite3_stmt *s)
{
    if (rows->count == rows->capacity) {
        size_t capacity = rows->capacity ? rows->capacity * 2 : 16;
        struct cs_change *grown = realloc(rows->rows, capacity * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        rows->rows = grown;
        rows->capacity = capacity;
    }
    const void *key = sqlite3_column_text(s, 0);
    size_t key_length = (size_t)sqlite3_column_bytes(s, 0);
    bool deleted = sqlite3_column_type(s, 1) == SQLITE_NULL;
    const void *value = sqlite3_column_blob(s, 1);
    size_t length = (size_t)sqlite3_column_bytes(s, 1);
    if (!key || key_length >= CS_KEY_SIZE || length > CS_VALUE_MAX)
        return -EUCLEAN;
    char *copy = malloc(key_length + 1 + length);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, key, key_length);
    copy[key_length] = '\0';
    if (length > 0)
        memcpy(copy + key_length + 1, value, length);
    rows->rows[rows->count++] = (struct cs_change){
        .key = copy,
        .value = deleted ? NULL : copy + key_length + 1,
        .length = length,
        .revision = (uint64_t)sqlite3_column_int64(s, 2),
    };
    rows->bytes += key_length + length;
    return 0;
}

/* --- reading --- */

static int meta_get(struct local_db *db, const char *name, uint64_t *ret)
{
    sqlite3_stmt *s = bind_start(db, SQL_META_GET);
    sqlite3_bind_text(s, 1, name, -1, SQLITE_STATIC);
    int rc = step(db, s);
    int r = rc == SQLITE_DONE ? -EUCLEAN : local_db_failed(db, rc);
    if (r == 0)
        *ret = (uint64_t)sqlite3_column_int64(s, 0);
    sqlite3_reset(s);
    return r;
}

static int meta_set(struct local_db *db, const char *name, uint64_t value)
{
    sqlite3_stmt *s = bind_start(db, SQL_META_SET);
    sqlite3_bind_text(s, 1, name, -1, SQLITE_STATIC);
    sqlite3_bind_int64(s, 2, (sqlite3_int64)value);
    return run(db, s);
}

int local_db_get(struct local_db *db, const char *key, struct enc *ret_value,
                 uint64_t *ret_revision)
{
    sqlite3_stmt *s = bind_start(db, SQL_GET);
    sqlite3_bind_text(s, 1, key, -1, SQLITE_STATIC);
    int rc = step(db, s);
    int r = rc == SQLITE_DONE ? -ENOENT : local_db_failed(db, rc);
    if (r == 0) {
        *ret_revision = (uint64_t)sqlite3_column_int64(s, 0);
        if (ret_value)
            enc_bytes(ret_value, sqlite3_column_blob(s, 1), (size_t)sqlite3_column_bytes(s, 1));
    }
    sqlite3_reset(s);
    return r;
}

static int collect(struct local_db *db, sqlite3_stmt *s, struct local_rows *ret)
{
    int r = 0, rc;
    while (r == 0 && (rc = step(db, s)) != SQLITE_DONE) {
        r = local_db_failed(db, rc);
        if (r == 0)
            r = rows_add(ret, s);
    }
    sqlite3_reset(s);
    return r;
}

int local_db_list(struct local_db *db, const char *prefix, struct local_rows *ret,
                  uint64_t *ret_revision)
{
    int r = run_plain(db, SQL_BEGIN_READ);
    if (r < 0)
        return r;
    r = meta_get(db, "revision", ret_revision);
    if (r == 0) {
        sqlite3_stmt *s = bind_start(db, SQL_LIST);
        sqlite3_bind_text(s, 1, prefix, -1, SQLITE_STATIC);
        r = collect(db, s, ret);
    }
    return finish(db, r);
}

struct ring_end {
    uint64_t id, total, revision;
};

static int ring_end_get(struct local_db *db, enum sql which, struct ring_end *ret)
{
    sqlite3_stmt *s = bind_start(db, which);
    int rc = step(db, s);
    int r = local_db_failed(db, rc);
    *ret = (struct ring_end){0};
    if (rc == SQLITE_ROW)
        *ret = (struct ring_end){.id = (uint64_t)sqlite3_column_int64(s, 0),
                                 .total = (uint64_t)sqlite3_column_int64(s, 1),
                                 .revision = (uint64_t)sqlite3_column_int64(s, 2)};
    sqlite3_reset(s);
    return r;
}

int local_db_change_last(struct local_db *db, uint64_t *ret)
{
    struct ring_end last;
    int r = ring_end_get(db, SQL_CHANGE_LAST, &last);
    if (r == 0)
        *ret = last.id;
    return r;
}

/* Reads rows after *last up to the end of a commit. */
static int read_batch(struct local_db *db, uint64_t *last, struct local_rows *ret)
{
    sqlite3_stmt *s = bind_start(db, SQL_CHANGES);
    sqlite3_bind_int64(s, 1, (sqlite3_int64)*last);
    int r = 0, rc;
    while ((rc = step(db, s)) == SQLITE_ROW) {
        uint64_t revision = (uint64_t)sqlite3_column_int64(s, 2);
        bool full = ret->count >= BATCH_ROWS || ret->bytes >= BATCH_BYTES;
        if (full && revision != ret->rows[ret->count - 1].revision)
            break;
        r = rows_add(ret, s);
        if (r < 0)
            break;
        *last = (uint64_t)sqlite3_column_int64(s, 3);
    }
    if (r == 0)
        r = local_db_failed(db, rc);
    sqlite3_reset(s);
    return r;
}

int local_db_changes(struct local_db *db, uint64_t *last, struct local_rows *ret)
{
    struct stat st;
    if (stat(db->path, &st) < 0 || st.st_ino != db->inode || st.st_dev != db->device) {
        log_error("cluster store %s was removed or replaced while in use", db->path);
        atomic_store(&db->broken, true);
        return -EIO;
    }
    int r = run_plain(db, SQL_BEGIN_READ);
    if (r < 0)
        return r;
    struct ring_end first;
    r = ring_end_get(db, SQL_CHANGE_FIRST, &first);
    if (r == 0 && first.id > *last + 1)
        r = -ESTALE;
    if (r == 0)
        r = read_batch(db, last, ret);
    return finish(db, r);
}

/* --- writing --- */

struct commit {
    struct local_db *db;
    uint64_t revision; /* of this commit */
    struct ring_end last;
    bool changed;
};

static int commit_begin(struct local_db *db, struct commit *c)
{
    *c = (struct commit){.db = db};
    int r = run_plain(db, SQL_BEGIN_WRITE);
    if (r < 0)
        return r;
    r = meta_get(db, "revision", &c->revision);
    if (r == 0)
        r = ring_end_get(db, SQL_CHANGE_LAST, &c->last);
    c->revision++;
    return r < 0 ? finish(db, r) : 0;
}

/* Writes one change to the ring. value NULL: deleted. */
static int commit_log(struct commit *c, const char *key, const void *value, size_t length)
{
    c->changed = true;
    c->last.id++;
    c->last.total += strlen(key) + length + ROW_BYTES_OVERHEAD;
    sqlite3_stmt *s = bind_start(c->db, SQL_CHANGE_PUT);
    sqlite3_bind_int64(s, 1, (sqlite3_int64)c->last.id);
    sqlite3_bind_int64(s, 2, (sqlite3_int64)c->revision);
    sqlite3_bind_text(s, 3, key, -1, SQLITE_STATIC);
    if (value)
        sqlite3_bind_blob(s, 4, value, (int)length, SQLITE_STATIC);
    sqlite3_bind_int64(s, 5, (sqlite3_int64)c->last.total);
    return run(c->db, s);
}

static int commit_put(struct commit *c, const struct cs_op *op, uint64_t session)
{
    const void *value = op->length ? op->value : "";
    sqlite3_stmt *s = bind_start(c->db, SQL_PUT);
    sqlite3_bind_text(s, 1, op->key, -1, SQLITE_STATIC);
    sqlite3_bind_blob(s, 2, value, (int)op->length, SQLITE_STATIC);
    sqlite3_bind_int64(s, 3, (sqlite3_int64)c->revision);
    sqlite3_bind_int64(s, 4, (sqlite3_int64)(op->ephemeral ? session : 0));
    int r = run(c->db, s);
    return r < 0 ? r : commit_log(c, op->key, value, op->length);
}

static int commit_delete(struct commit *c, const char *key)
{
    sqlite3_stmt *s = bind_start(c->db, SQL_DELETE);
    sqlite3_bind_text(s, 1, key, -1, SQLITE_STATIC);
    int r = run(c->db, s);
    if (r < 0 || sqlite3_changes(c->db->handle) == 0)
        return r;
    return commit_log(c, key, NULL, 0);
}

/* Drops the oldest changes beyond the ring's bounds, but none of this commit (LD3). */
static int commit_trim(struct commit *c)
{
    for (;;) {
        struct ring_end first;
        int r = ring_end_get(c->db, SQL_CHANGE_FIRST, &first);
        if (r < 0 || first.revision >= c->revision)
            return r;
        if (c->last.id - first.id < RING_ROWS_MAX && c->last.total - first.total < RING_BYTES_MAX)
            return 0;
        sqlite3_stmt *s = bind_start(c->db, SQL_CHANGE_TRIM);
        sqlite3_bind_int64(s, 1, (sqlite3_int64)first.id);
        r = run(c->db, s);
        if (r < 0)
            return r;
    }
}

static int commit_finish(struct commit *c, int r, uint64_t *ret_revision)
{
    if (r == 0 && c->changed) {
        r = meta_set(c->db, "revision", c->revision);
        if (r == 0)
            r = commit_trim(c);
    }
    r = finish(c->db, r);
    if (r == 0 && ret_revision)
        *ret_revision = c->changed ? c->revision : c->revision - 1;
    return r;
}

static int check_condition(struct local_db *db, const struct cs_op *op)
{
    if (op->revision == CS_REVISION_ANY)
        return 0;
    uint64_t revision = 0;
    int r = local_db_get(db, op->key, NULL, &revision);
    if (r < 0 && r != -ENOENT)
        return r;
    return revision == op->revision ? 0 : -ESTALE;
}

int local_db_txn(struct local_db *db, uint64_t session, const struct cs_op *ops, unsigned count,
                 uint64_t *ret_revision)
{
    struct commit c;
    int r = commit_begin(db, &c);
    if (r < 0)
        return r;
    for (unsigned i = 0; r == 0 && i < count; i++)
        r = check_condition(db, &ops[i]);
    for (unsigned i = 0; r == 0 && i < count; i++) {
        if (ops[i].kind == CS_PUT)
            r = commit_put(&c, &ops[i], session);
        else if (ops[i].kind == CS_DELETE)
            r = commit_delete(&c, ops[i].key);
    }
    return commit_finish(&c, r, ret_revision);
}

/* --- sessions --- */

int local_db_session_new(struct local_db *db, uint64_t *ret)
{
    int r = run_plain(db, SQL_BEGIN_WRITE);
    if (r < 0)
        return r;
    uint64_t id = 0;
    r = meta_get(db, "session", &id);
    if (r == 0)
        r = meta_set(db, "session", ++id);
    r = finish(db, r);
    if (r == 0)
        *ret = id;
    return r;
}

int local_db_session_end(struct local_db *db, uint64_t session, unsigned *ret_count)
{
    struct commit c;
    struct local_rows rows = {0};
    int r = commit_begin(db, &c);
    if (r < 0)
        return r;
    sqlite3_stmt *s = bind_start(db, SQL_SESSION_KEYS);
    sqlite3_bind_int64(s, 1, (sqlite3_int64)session);
    r = collect(db, s, &rows);
    for (size_t i = 0; r == 0 && i < rows.count; i++)
        r = commit_delete(&c, rows.rows[i].key);
    *ret_count = (unsigned)rows.count;
    local_rows_done(&rows);
    return commit_finish(&c, r, NULL);
}

int local_db_session_list(struct local_db *db, void (*fn)(void *arg, uint64_t session), void *arg)
{
    sqlite3_stmt *s = bind_start(db, SQL_SESSIONS);
    int rc;
    while ((rc = step(db, s)) == SQLITE_ROW)
        fn(arg, (uint64_t)sqlite3_column_int64(s, 0));
    sqlite3_reset(s);
    return local_db_failed(db, rc);
}
