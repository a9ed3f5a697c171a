# SPDX-License-Identifier: Apache-2.0
"""A seeded random mix of all operations against the reference model; then the cluster must be clean, and deleting
everything must give all space back.

KELPIE_SEEDS="7 8" replays seeds, KELPIE_STEPS sets the number of steps of each.
"""
import os
import random

import pytest

from harness.workload import Workload

GIVEN = [int(word) for word in os.environ.get("KELPIE_SEEDS", "").split()]
SEEDS = GIVEN or [1, 2, 3, random.SystemRandom().randrange(1000, 1 << 30)]
STEPS = int(os.environ.get("KELPIE_STEPS", "150"))


@pytest.mark.limit(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_mix_of_everything(shared, seed):
    run_workload(shared, seed, crashes=False)


@pytest.mark.limit(900)
@pytest.mark.parametrize("seed", GIVEN or SEEDS[-2:])
def test_mix_of_everything_with_kill_9(shared, seed):
    """kill -9 of all daemons between operations and in the middle of them."""
    run_workload(shared, seed, crashes=True)


def run_workload(cluster, seed, crashes):
    cluster.check()
    before = cluster.usage()
    workload = Workload(cluster, seed, crashes=crashes, prefix="c" if crashes else "w")
    workload.run(STEPS // 2 if crashes else STEPS)
    cluster.check()
    workload.verify_all()
    workload.delete_all()
    cluster.check()
    cluster.wait_empty(before)
