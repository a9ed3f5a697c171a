/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated seam: time, disks and network in memory, deterministic from a seed. One sim holds
 * any number of nodes (each with its own struct rt) that talk over simulated connections.
 */
#pragma once
#include "rt/rt.h"

struct sim;
struct sim *sim_new(uint64_t seed);
void sim_free(struct sim *s);
/* What is random from now on follows this seed. */
void sim_reseed(struct sim *s, uint64_t seed);
/* A new node; lives until sim_free(). */
struct rt *sim_node_new(struct sim *s, const struct rt_options *options);
/* Runs until nothing is left to do (no ready fiber, no timer, no I/O), or simulated time passes
 * `until_ns`. Returns the number of steps made. */
uint64_t sim_run(struct sim *s, uint64_t until_ns);
uint64_t sim_now(const struct sim *s);
/* Drops every fiber, timer, connection and unfinished I/O of the node (their memory is abandoned),
 * as a power cut does. Its disks stay, with unflushed writes dropped, kept or torn by the seed. */
void sim_node_crash(struct sim *s, struct rt *node);
/* As kill -9: completed writes all stay, those in flight may or may not. After either the node is
 * empty but usable: fibers spawned on it are its restart. Called on one of its own fibers (or by a
 * fault plan) it takes effect when that fiber suspends; I/O submitted in between is lost. */
void sim_node_kill(struct sim *s, struct rt *node);
/* fn(arg, node) runs after any node died, also by a fault plan: the node is empty then. It may wake
 * and spawn, not suspend. */
void sim_on_death(struct sim *s, void (*fn)(void *arg, struct rt *node), void *arg);

/* The way of packets from one node to another, in this direction only. Packets that meet a blocked
 * way wait for it, connecting over it takes until its deadline. Stays over deaths. */
struct sim_link {
    bool blocked;
    uint64_t extra_ns_max; /* each packet takes up to that much longer */
};
void sim_link_set(struct sim *s, struct rt *from, struct rt *to, struct sim_link link);
/* All ways are as at the beginning again. */
void sim_links_heal(struct sim *s);
/* Resets every connection between the two nodes. */
void sim_conns_drop(struct sim *s, struct rt *a, struct rt *b);
/* From now on the peers of a node that lost its power hear of it up to `max_ns` later; until then
 * what they send goes nowhere. */
void sim_silent_death(struct sim *s, uint64_t max_ns);

/* A disk of zeros, found by disk_open(path) from any node of the sim. */
int sim_disk_new(struct sim *s, const char *path, uint64_t size, enum disk_durability durability);
/* Direct access to the disk's present content, for tests that damage it. */
uint8_t *sim_disk_bytes(struct sim *s, const char *path);

/* Fault plan of one disk: counts operations (writes, flushes, zeros and discards together; reads
 * apart) and acts at the n-th from now (1 is the next). The operation itself fails, or is in flight
 * at the crash. `op` stands for its class; a plan replaces the one before. */
enum sim_fault {
    SIM_FAULT_NONE,
    SIM_FAULT_EIO_ONCE,
    SIM_FAULT_EIO_FROM,
    SIM_FAULT_CRASH, /* the power goes */
    SIM_FAULT_KILL,  /* kill -9 */
};
void sim_disk_fault(struct sim *s, const char *path, enum disk_op op, enum sim_fault fault,
                    uint64_t nth);
/* From now on the disk is a sparse file on a file system with `room` bytes left: every block that
 * is written or zeroed for the first time takes some (-ENOSPC when there is none), and a discarded
 * one gives it back. Called again it only changes the room. Before the disk is opened. */
void sim_disk_sparse(struct sim *s, const char *path, uint64_t room);
/* From now on the disk is a device with discards of `unit` bytes. Before it is opened. */
void sim_disk_device(struct sim *s, const char *path, uint32_t unit);
/* Blocks whose first write was a DISK_WRITE, not a DISK_ZERO. */
uint64_t sim_disk_hole_writes(struct sim *s, const char *path);
/* From now on every operation takes `factor` times as long; 1: as usual. */
void sim_disk_slow(struct sim *s, const char *path, unsigned factor);
/* From now on a failed flush loses nothing: a later one makes durable what it did not. */
void sim_disk_honest(struct sim *s, const char *path);
/* Flips one bit of what the disk holds there, on the medium and in its cache. */
void sim_disk_flip(struct sim *s, const char *path, uint64_t offset, unsigned bit);
/* Operations of op's class since the disk was made. */
uint64_t sim_disk_op_count(struct sim *s, const char *path, enum disk_op op);

/* Convenience: runs fn(arg) on a fiber of `node` until everything is quiet: fn returned (or its
 * node died) and no I/O is in flight, or nothing at all is left to happen. Periodic timers of other
 * fibers do not keep it from returning. */
void sim_do(struct sim *s, struct rt *node, fiber_main *fn, void *arg);
