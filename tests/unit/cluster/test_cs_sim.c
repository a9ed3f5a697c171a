/* SPDX-License-Identifier: Apache-2.0 */
/* The driver contract over the simulated cluster store, and what is special about it: deaths. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/err.h"
#include "contract.h"
#include "mirror.h"
#include "sim/sim_cs.h"

static int open_sim(struct contract *k, struct cs **ret)
{
    return sim_cs_open(k->rt, k->arg, ret);
}

static void run_contract(void *arg)
{
    contract_run(arg);
}

static void test_contract(void **state)
{
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct sim *s = sim_new(seed);
        struct contract k = {.rt = sim_node_new(s, NULL), .open = open_sim, .arg = sim_cs_new(s)};
        sim_do(s, k.rt, run_contract, &k);
        sim_cs_free(k.arg);
        sim_free(s);
    }
}

struct deaths {
    struct sim *s;
    struct sim_cs *store;
    struct rt *a, *b;
    struct session session;
    struct cs *watching, *lost;
    struct mirror mirror;
    unsigned lost_count;
};

static void put_and_stay(void *arg)
{
    struct deaths *d = arg;
    struct cs *cs;
    ASSERT(sim_cs_open(d->a, d->store, &cs) == 0);
    d->session = cs->session;
    struct cs_op op = {
        .kind = CS_PUT, .key = "e/a", .revision = CS_REVISION_ANY, .ephemeral = true};
    ASSERT(cs_txn(cs, &op, 1, NULL) == 0);
    struct mirror *m = malloc(sizeof(*m)); /* dies with the node */
    ASSERT(m);
    mirror_init(m, d->a, cs, "e/");
}

static void watch_it(void *arg)
{
    struct deaths *d = arg;
    ASSERT(sim_cs_open(d->b, d->store, &d->watching) == 0);
    mirror_init(&d->mirror, d->b, d->watching, "e/");
    mirror_wait_key(&d->mirror, "e/a");
}

static void write_more(void *arg)
{
    struct deaths *d = arg;
    struct cs_op op = {
        .kind = CS_PUT, .key = "e/b", .revision = CS_REVISION_ANY, .value = "x", .length = 1};
    ASSERT(cs_txn(d->watching, &op, 1, NULL) == 0);
    mirror_wait_key(&d->mirror, "e/b");
    ASSERT(mirror_has(&d->mirror, "e/a")); /* dead, but its session goes on */
}

static void see_it_gone(void *arg)
{
    struct deaths *d = arg;
    mirror_wait_gone(&d->mirror, "e/a");
}

static void count_loss(void *arg)
{
    struct deaths *d = arg;
    d->lost_count++;
}

static void lose_own_session(void *arg)
{
    struct deaths *d = arg;
    ASSERT(sim_cs_open(d->b, d->store, &d->lost) == 0);
    d->lost->on_lost = count_loss;
    d->lost->on_lost_arg = d;
    sim_cs_end_session(d->store, d->lost->session);
    struct cs_op op = {
        .kind = CS_PUT, .key = "e/c", .revision = CS_REVISION_ANY, .value = "x", .length = 1};
    ASSERT(d->lost->lost && d->lost_count == 1 && cs_txn(d->lost, &op, 1, NULL) < 0);
    cs_close(d->lost);
    cs_close(d->watching);
}

static void test_deaths(void **state)
{
    struct deaths d = {.s = sim_new(7)};
    d.store = sim_cs_new(d.s);
    d.a = sim_node_new(d.s, NULL);
    d.b = sim_node_new(d.s, NULL);
    sim_do(d.s, d.a, put_and_stay, &d);
    sim_do(d.s, d.b, watch_it, &d);
    sim_node_kill(d.s, d.a);
    sim_do(d.s, d.b, write_more, &d);
    assert_int_equal(sim_cs_end_dead(d.store), 1);
    assert_int_equal(sim_cs_end_dead(d.store), 0);
    sim_do(d.s, d.b, see_it_gone, &d);
    sim_do(d.s, d.b, lose_own_session, &d);
    mirror_done(&d.mirror);
    sim_cs_free(d.store);
    sim_free(d.s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_contract),
                                       cmocka_unit_test(test_deaths)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
