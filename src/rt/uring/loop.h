/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The io_uring event loop: operations, their submission and completion. Private to rt/uring.
 *
 * U1 An operation is queued by uring_submit(), becomes an SQE at the end of the loop iteration, and
 *    completes on the loop. It may be queued again from its own complete().
 * U2 At most ring_size_max operations are in the kernel, so the completion queue cannot overflow.
 * U3 Operations of `background` kind (polls of our own event fds) do not keep the loop alive, and
 * the kernel writes to no memory of ours for them.
 * U4 As soon as READS_PER_SUBMIT disk reads are pending they are submitted, before further fibers
 *    run, so that the disk works while the rest of a burst is still being looked at (about 10 %
 *    more 4 KiB reads at depth 32, docs/decisions/0007). So after a write of WRITE_TO_SUBMIT or
 * more. Small writes are not paced: a store gathers them into commits.
 */
#pragma once
#include <liburing.h>
#include <pthread.h>
#include <sys/socket.h>
#include "rt/seam.h"

struct uring;

enum uring_op_kind { URING_WORK, URING_BACKGROUND };

struct uring_op {
    struct list link; /* uring.pending */
    void (*prepare)(struct uring_op *op, struct io_uring_sqe *sqe);
    void (*complete)(struct uring_op *op, int result);
    enum uring_op_kind kind;
};

/* Something that another thread wants to be run on the loop. */
struct post {
    struct list link; /* uring.posts */
    void (*run)(struct post *p);
};

#define READS_PER_SUBMIT 4            /* U4 */
#define WRITE_TO_SUBMIT  (256u << 10) /* bytes, U4 */
#define DISK_SLOT_COUNT  16           /* registered files */
#define URING_ZEROS_SIZE ((size_t)1 << 20)

struct uring {
    struct rt rt; /* first */
    struct io_uring ring;
    struct list pending;      /* U1: operations that are not SQEs yet */
    unsigned reads_pending;   /* U4: disk reads queued since the last submission */
    unsigned work_count;      /* pending or in the kernel, without background */
    unsigned in_kernel_count; /* both kinds */
    struct list dirty_conns;  /* have output to send at the end of the iteration */
    struct list watches;

    /* posts from other threads */
    pthread_mutex_t post_mutex;
    struct list posts;   /* under post_mutex */
    bool post_signalled; /* under post_mutex: post_fd was written since the posts were last taken */
    int post_fd;
    struct fd_watch *post_watch;

    /* signals */
    int signal_fd;
    struct fd_watch *signal_watch;
    void (*signal_fn)(void *arg, int signal);
    void *signal_arg;

    bool files_registered;
    bool disk_slot_used[DISK_SLOT_COUNT];
    bool buffers_registered; /* buffer 0 is rt.buffers.hot */
    void *zeros;             /* URING_ZEROS_SIZE bytes, for DISK_ZERO; mapped when first needed */

    struct worker *resolver;      /* of host names; started when first needed */
    struct list closed_listeners; /* freed with the loop */
    uint64_t random_pool[32];
    unsigned random_left;
};

static inline struct uring *uring_of(struct rt *rt)
{
    return container_of(rt, struct uring, rt);
}

/* Queues op (U1). */
void uring_submit(struct uring *u, struct uring_op *op);

/* Asks the kernel to cancel `target`, which completes with -ECANCELED unless it was faster.
 * `cancel` is the caller's and completes too; its complete() is set by the caller. */
struct uring_cancel {
    struct uring_op op;
    struct uring_op *target;
};
void uring_cancel(struct uring *u, struct uring_cancel *cancel);

/* One operation in straight-line form: its result. */
struct uring_wait {
    struct uring_op op;
    struct fiber *fiber;
    int result;
    bool finished;
};
fiber_fn int uring_wait(struct uring *u, struct uring_wait *w,
                        void (*prepare)(struct uring_op *op, struct io_uring_sqe *sqe));

/* disk.c */
int uring_disk_open(struct rt *rt, const char *path, unsigned flags, uint64_t size,
                    struct disk **ret);
/* conn.c: takes the connected socket. NULL when out of memory (fd stays the caller's). */
struct conn *uring_conn_new(struct uring *u, int fd, const char *peer);
void uring_flush_conns(struct uring *u);
/* listener.c, connect.c */
int uring_listen(struct rt *rt, const char *address, struct listener **ret);
void uring_free_closed_listeners(struct uring *u);
fiber_fn int uring_connect(struct rt *rt, const char *address, uint64_t deadline_ns,
                           struct conn **ret);
/* thread.c */
int uring_worker_start(struct rt *rt, const char *name, struct worker **ret);
/* Without a loop: joins the idle thread and frees. */
void uring_worker_free(struct worker *w);
int uring_post(struct rt *rt, void (*fn)(void *arg), void *arg);
/* Thread-safe, cannot fail; p is the caller's until it ran. */
void uring_post_queue(struct uring *u, struct post *p);
int uring_post_init(struct uring *u);
void uring_post_done(struct uring *u);
bool uring_has_posts(struct uring *u);
/* watch.c */
int uring_fd_watch_add(struct rt *rt, int fd, void (*fn)(void *arg), void *arg,
                       struct fd_watch **ret);
void uring_fd_watch_remove(struct fd_watch *w);
void uring_free_watches(struct uring *u);
/* address.c */
struct net_target {
    struct sockaddr_storage address;
    socklen_t length;
};
/* Blocking names are looked up only with ADDRESS_LOOKUP; without it they give -EAGAIN. 0, -EINVAL,
 * -ENAMETOOLONG, -ENOENT (no such host). */
enum address_lookup { ADDRESS_NO_LOOKUP, ADDRESS_LOOKUP };
int address_parse(const char *text, enum address_lookup lookup, struct net_target *ret);
void address_format(const struct net_target *t, char out[NET_ADDRESS_SIZE]);
