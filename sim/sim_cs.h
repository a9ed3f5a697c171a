/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated cluster store: in memory, shared by the nodes of one sim, with delays from the
 * seed. Keeps the driver contract D1 to D4. A node that dies keeps its session until
 * sim_cs_end_session() or sim_cs_end_dead(), as one that is paused would until its timeout.
 */
#pragma once
#include "cluster/driver.h"
#include "sim/sim.h"

struct sim_cs;
struct sim_cs *sim_cs_new(struct sim *s);
/* All connections were closed or their nodes died. Before sim_free(). */
void sim_cs_free(struct sim_cs *sc);
/* Begins a session of node `rt`. 0 or -ENOMEM; *ret is owned (cluster_options.cs takes it). Does
 * not suspend. */
int sim_cs_open(struct rt *rt, struct sim_cs *sc, struct cs **ret);
/* Ends a session: its ephemeral keys go in one commit. A node that is alive finds its connection
 * lost. */
void sim_cs_end_session(struct sim_cs *sc, struct session session);
/* Until it ends, nobody reaches the store (sessions are kept); calls give up after some seconds. */
void sim_cs_outage(struct sim_cs *sc, bool on);
/* The same for one node, over its deaths. When its session ends meanwhile, it hears of that when
 * it reaches the store again, if `late_loss` is set; else at once. */
void sim_cs_cut(struct sim_cs *sc, struct rt *node, bool on);
void sim_cs_late_loss(struct sim_cs *sc, bool on);
/* From now on sessions that begin are confirmed again and again (driver.h), and end when nothing
 * was heard of them for `timeout_ns`, outages not counted. */
void sim_cs_timeout(struct sim_cs *sc, uint64_t timeout_ns);
/* True when that session has ended, whether its node knows it or not. */
bool sim_cs_is_over(const struct sim_cs *sc, struct session session);
/* Ends the sessions of all nodes that died since they began them; their number. */
unsigned sim_cs_end_dead(struct sim_cs *sc);
