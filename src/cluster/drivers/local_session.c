/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Liveness by file locks: the kernel releases them however a process ends.
 *
 * LS1 A session's file is made after its id was taken for good, is locked before it owns any key,
 *     and stays locked until its keys are gone or its process is.
 * LS2 Ids, and so file names, are never used again: who gets a file's lock knows that its session
 *     is over, whoever else tries the same meanwhile.
 * LS3 A session that owns keys and has no file is over.
 * LS4 Only the session's own process opens its file for writing, so that IN_CLOSE_WRITE on it
 *     means its end. (The kernel sends that event shortly before it releases the lock.)
 */
#include "cluster/drivers/local_session.h"
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/err.h"
#include "base/log.h"

#define LOG_MODULE "cluster"

#define BEGIN_TRIES_MAX 100

/* Space for "DIRECTORY/ID". */
#define FILE_PATH_SIZE (PATH_MAX + 32)

static void file_path(const struct local_session *s, uint64_t id, char out[FILE_PATH_SIZE])
{
    snprintf(out, FILE_PATH_SIZE, "%s/%" PRIu64, s->directory, id);
}

int local_session_prepare(struct local_session *s, const struct local_db *db)
{
    char path[FILE_PATH_SIZE];
    *s = (struct local_session){.fd = -1, .bell_fd = -1};
    int n = snprintf(s->directory, sizeof(s->directory), "%s.sessions", local_db_path(db));
    if (n >= (int)sizeof(s->directory))
        return -ENAMETOOLONG;
    if (mkdir(s->directory, 0755) < 0 && errno != EEXIST) {
        int r = -errno;
        log_error("cannot make the directory %s for sessions: %s", s->directory, err_text(r));
        return r;
    }
    snprintf(path, sizeof(path), "%s/" LOCAL_BELL_NAME, s->directory);
    s->bell_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (s->bell_fd < 0) {
        int r = -errno;
        log_error("cannot open %s: %s", path, err_text(r));
        return r;
    }
    return 0;
}

/* Makes and locks the file of a new id. -EAGAIN: somebody took it for a dead session's. */
static int make_file(struct local_session *s, uint64_t id)
{
    char path[FILE_PATH_SIZE];
    file_path(s, id, path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0) {
        int r = -errno;
        log_error("cannot make the session file %s: %s", path, err_text(r));
        return r;
    }
    struct stat st;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0 || fstat(fd, &st) < 0 || st.st_nlink == 0) {
        unlink(path);
        close(fd);
        return -EAGAIN;
    }
    s->id = id;
    s->fd = fd;
    return 0;
}

int local_session_begin(struct local_session *s, struct local_db *db)
{
    int r = -EAGAIN;
    for (unsigned i = 0; r == -EAGAIN && i < BEGIN_TRIES_MAX; i++) {
        uint64_t id;
        r = local_db_session_new(db, &id);
        if (r == 0)
            r = make_file(s, id);
    }
    return r;
}

void local_session_end(struct local_session *s, struct local_db *db)
{
    if (s->fd >= 0) {
        char path[FILE_PATH_SIZE];
        unsigned count = 0;
        file_path(s, s->id, path);
        int r = local_db_session_end(db, s->id, &count);
        if (r == 0 && count > 0)
            local_session_ring(s);
        if (r == 0)
            unlink(path);
        close(s->fd);
    }
    if (s->bell_fd >= 0)
        close(s->bell_fd);
    s->fd = s->bell_fd = -1;
}

void local_session_ring(const struct local_session *s)
{
    if (pwrite(s->bell_fd, "\n", 1, 0) == 1)
        return;
    /* Full or failing file system: opening for writing and closing is an event too and needs no
     * space. */
    char path[FILE_PATH_SIZE];
    snprintf(path, sizeof(path), "%s/" LOCAL_BELL_NAME, s->directory);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0)
        close(fd);
    else
        log_warn("cannot tell other daemons of a change through %s: %s", path, err_text(-errno));
}

int local_session_reap(const struct local_session *s, struct local_db *db, uint64_t id)
{
    char path[FILE_PATH_SIZE];
    file_path(s, id, path);
    int fd = open(path, O_RDONLY | O_CLOEXEC); /* LS4 */
    if (fd < 0 && errno != ENOENT)
        return -errno;
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
        close(fd);
        return -EBUSY;
    }
    unsigned count = 0;
    int r = local_db_session_end(db, id, &count);
    if (r == 0 && count > 0)
        local_session_ring(s);
    if (fd >= 0) {
        if (r == 0)
            unlink(path);
        close(fd);
    }
    return r;
}

uint64_t local_session_parse(const char *name)
{
    uint64_t id = 0;
    for (const char *p = name; *p; p++) {
        uint64_t digit = (uint64_t)(*p - '0');
        if (digit > 9 || !mul_u64(id, 10, &id) || !add_u64(id, digit, &id))
            return 0;
    }
    return id;
}

struct filter {
    uint64_t own;
    void (*fn)(void *arg, uint64_t id);
    void *arg;
};

static void filter_own(void *arg, uint64_t id)
{
    struct filter *f = arg;
    if (id != 0 && id != f->own)
        f->fn(f->arg, id);
}

int local_session_list(const struct local_session *s, struct local_db *db,
                       void (*fn)(void *arg, uint64_t id), void *arg)
{
    struct filter f = {.own = s->id, .fn = fn, .arg = arg};
    DIR *dir = opendir(s->directory);
    if (!dir)
        return -errno;
    struct dirent *entry;
    while ((entry = readdir(dir)))
        filter_own(&f, local_session_parse(entry->d_name));
    closedir(dir);
    return local_db_session_list(db, filter_own, &f);
}
