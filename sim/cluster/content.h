/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an image may read: a linearizability checker for each unit of 512 bytes.
 *
 * Every change has an identity that fills the units it writes (0: zeros). A unit knows which
 * changes are under way or unanswered, and in which states the disk may be: a value, and which of
 * those changes it contains (a configuration). Reads that overlap no change of their unit narrow
 * the configurations to what was seen.
 *
 * M1 (C1) An answered change is in every configuration. M2 (C2) An unanswered one may be in or not;
 * once a read has shown which, it stays so. M3 (C4) A change carried by a process whose session has
 * ended takes effect before the first answered operation that another process began after that end,
 * or never; and if never, it is not answered either.
 */
#pragma once
#include "base/check.h"

#define UNIT              512u
#define UNIT_PENDING_MAX  5u
#define CONTENT_PIECE_MAX 4096u /* units of one operation */

struct cloud;
struct unit {
    uint64_t value;      /* when there is no doubt */
    struct cloud *cloud; /* NULL: none */
    uint32_t events;     /* begins and ends of changes, and what reads have shown */
};

/* A change that was begun, for reads that run beside it. */
struct change_note {
    uint64_t id, value;
    uint32_t first, count; /* units */
};

struct content {
    uint64_t size, capacity; /* bytes */
    struct unit *units;
    struct change_note *notes;
    uint32_t note_count, note_capacity;
};

/* How a process stands: when its session ended, UINT64_MAX if it has not. */
struct process_view {
    uint64_t (*gone_at)(void *arg, uint64_t process);
    void *arg;
};

/* A range of units that one operation touches. */
struct piece {
    uint32_t first, count;
};

void content_init(struct content *c, uint64_t size, uint64_t capacity);
void content_done(struct content *c);
/* Every value that is possible now, with nothing under way. */
void content_copy(struct content *to, const struct content *from);
/* What is under way may have happened or not, and never will from now on. */
void content_settle(struct content *c);

/* False when a unit has too many open changes already. */
bool content_may_change(const struct content *c, struct piece p);
/* A change begins; `process` carries it out. */
void content_begin(struct content *c, struct piece p, uint64_t id, uint64_t value,
                   uint64_t process);
enum content_end {
    CONTENT_ANSWERED,
    CONTENT_REFUSED,    /* some of it may have happened; no more will */
    CONTENT_UNANSWERED, /* may still happen, as far as M3 allows */
};
/* NULL, or what is wrong. `begun_at`: when the operation began. */
const char *content_end(struct content *c, struct piece p, uint64_t id, enum content_end end,
                        uint64_t process, uint64_t begun_at, const struct process_view *view);
/* One more value is possible. */
void content_add(struct content *c, struct piece p, uint64_t value);
/* What is possible at a unit of another image is possible at that of this one, too. */
void content_add_possible(struct content *c, uint32_t unit, const struct content *other);
/* The only one. */
void content_set(struct content *c, struct piece p, uint64_t value);

/* A read: begin before it is sent, check when it is answered. */
struct content_read {
    struct piece piece;
    uint64_t process, begun_at;
    struct unit *before; /* owned copies */
    uint32_t note_first;
};
void content_read_begin(const struct content *c, struct content_read *r, struct piece p,
                        uint64_t process, uint64_t begun_at);
void content_read_drop(struct content_read *r);
/* NULL, or a text that says what is wrong (static memory). Frees r's memory. */
const char *content_read_end(struct content *c, struct content_read *r, const uint8_t *buffer,
                             const struct process_view *view);
/* Units whose doubts had to be given up, since the start: they accept anything once. */
uint64_t content_overflows(void);

/* The bytes of a value at a unit of the image; data carries writer, position and a pattern. */
void content_fill(uint8_t *out, uint32_t first_unit, uint32_t count, uint64_t value);
/* True when the disk block at p (4096 bytes) was filled by content_fill(). */
bool content_is_block(const uint8_t *p);
