/* SPDX-License-Identifier: Apache-2.0 */
/* The scenarios: what each actor does, on what kind of store. */
#pragma once
#include "model.h"

#define SCENARIO_ACTORS 3u

/* The steps of one actor. Each change's number gives it its version. */
struct script {
    struct step *steps;
    unsigned count, capacity;
};

struct scenario {
    const char *name;
    void (*build)(struct script scripts[SCENARIO_ACTORS]);
    unsigned actor_count;
    uint64_t disk_blocks;
    enum disk_durability durability;
    bool ahead; /* the file is mostly unwritten, and zeroed ahead in small steps */
    bool fill;  /* the store is filled up before, and changes may be refused with -ENOSPC */
};

extern const struct scenario scenarios[];
extern const unsigned scenario_count;
/* Fills scripts, which the caller zeroed. */
void scenario_build(const struct scenario *sc, struct script scripts[SCENARIO_ACTORS]);
void scenario_free(struct script scripts[SCENARIO_ACTORS]);
