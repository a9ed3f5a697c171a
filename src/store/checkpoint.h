/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint being made, shared by its two files: snapshot.c takes the state, checkpoint.c
 * decides when and how much at once. */
#pragma once
#include "store/store_internal.h"
#include "store/writes.h"

struct ckpt {
    struct store *s;
    struct writes writes;
    struct u32vec freed;    /* K2 */
    uint8_t **bitmap_pages; /* where the content of bitmap pages is being made, else NULL */
    uint64_t items;         /* leaves, pages and tables taken so far */
    uint64_t steps;
    bool passing;  /* before the last step */
    bool pressing; /* changes come as fast as they are taken (K5) */
    struct super super;
};

/* 0 or -ENOMEM. */
int snapshot_init(struct ckpt *ck);
void snapshot_done(struct ckpt *ck);

/* Ahead of the last step: each takes up to `count` of what is dirty and queues it in ck->writes,
 * and none suspends. *ret: how many there were, 0: no more. What changes later is dirty again. */
int snapshot_take_leaves(struct ckpt *ck, size_t count, size_t *ret);
/* Pages of an array, from *cursor on, which moves on. */
int snapshot_take_pages(struct ckpt *ck, struct tree *t, uint32_t *cursor, size_t count,
                        size_t *ret);
/* The last step (K1): everything that is dirty, with all tables, and the roots. */
int snapshot_take_rest(struct ckpt *ck);
