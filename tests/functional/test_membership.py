# SPDX-License-Identifier: Apache-2.0
"""Nodes die, come back, are drained, lost and added, pools change their copies: guests go on, and `dog cluster status` names what
is not well and what to do."""
import json

import pytest

from harness.nbdio import Nbd
from harness.waiting import wait_for

MIB = 1 << 20


def status(cluster):
    return json.loads(cluster.dog("--json", "cluster", "status", expect=None).stdout)


def wait_state(cluster, state, *words, deadline_s=60):
    """Until the status is that, and its reasons have the words. Returns it."""
    def there():
        now = status(cluster)
        text = " ".join(now["reasons"])
        return now if now["state"] == state and all(word in text for word in words) else None

    try:
        return wait_for(there, f"state {state} with {words}", deadline_s, step_s=0.1)
    except AssertionError:
        raise AssertionError(f"not {state} {words}: {json.dumps(status(cluster), indent=1)}\n{cluster.logs()}") from None


def fill(disk, mib, value):
    for index in range(mib):
        disk.write(index * MIB, bytes([(value + index) % 251 + 1]) * MIB)


def expect(disk, mib, value):
    for index in range(mib):
        assert disk.read(index * MIB, MIB) == bytes([(value + index) % 251 + 1]) * MIB, f"MiB {index}"


def objects_of(cluster, name):
    return next(n["objects"] for n in cluster.dog_json("node", "info")["nodes"] if n["name"] == name)


@pytest.mark.limit(300)
def test_away_and_back(cluster):
    """Writes go on without one node, wait without two; who comes back catches up; status tells each of it."""
    assert status(cluster)["state"] == "healthy"
    cluster.create("v", "64M")
    with Nbd(cluster.sheep[0].uri("v")) as disk:
        fill(disk, 32, 1)
        cluster.sheep[2].kill9()
        wait_state(cluster, "degraded", "n2", "start it")
        fill(disk, 32, 2)
        cluster.sheep[1].kill9()
        assert status(cluster)["healthy"] is False
        wait_state(cluster, "waiting", "n1", "n2", "writes wait")
        expect(disk, 32, 2)  # reads need one copy
        cluster.sheep[2].start()
        wait_state(cluster, "degraded", "n1")
        fill(disk, 32, 3)
        cluster.sheep[1].start()
        wait_state(cluster, "healthy")
        expect(disk, 32, 3)
    cluster.check()
    cluster.stop_all()
    for sheep in cluster.sheep:
        sheep.check_store()


@pytest.mark.limit(300)
def test_a_disk_is_lost_and_replaced(cluster):
    """What the others have is copied to a new store; the lost one is refused if it turns up again."""
    cluster.create("v", "64M")
    old = cluster.sheep[2]
    with Nbd(cluster.sheep[0].uri("v")) as disk:
        fill(disk, 32, 1)
        done = cluster.dog("node", "lost", "n2", expect=1)
        assert "runs" in done.stderr and "drain" in done.stderr
        old.kill9()
        wait_state(cluster, "degraded", "n2")
        # Its session ends a moment after its process.
        wait_for(lambda: cluster.dog("node", "lost", "n2", expect=None).returncode == 0, "n2 to be declared lost", 30)
        wait_state(cluster, "degraded", "n2", "zones")
        name, store = old.name, old.store
        old.name, old.store = "n2b", store + ".new"
        old.format()
        old.start()
        cluster.dog("node", "remove", name)
        wait_state(cluster, "healthy")
        fill(disk, 32, 2)
        expect(disk, 32, 2)
    cluster.check()
    # Only the new store and another one are left: what is read comes from it, too.
    cluster.sheep[0].kill9()
    with Nbd(old.uri("v")) as disk:
        expect(disk, 32, 2)


@pytest.mark.limit(300)
def test_drain_and_weight(make_cluster):
    """A drained node is emptied while a guest writes; undone, it takes its share again; a weight of 0 empties it, too."""
    cluster = make_cluster(4, copies=3).up()
    cluster.create("v", "64M")
    with Nbd(cluster.sheep[0].uri("v")) as disk:
        fill(disk, 48, 1)
        assert objects_of(cluster, "n3") > 0
        for empty, full in ((("drain", "n3"), ("drain", "n3", "--undo")), (("weight", "n3", "0"), ("weight", "n3", "1024"))):
            cluster.dog("node", *empty)
            wait_for(lambda: objects_of(cluster, "n3") == 0, f"n3 to be emptied: {status(cluster)}", 60, step_s=0.1)
            fill(disk, 48, 2)
            cluster.dog("node", *full)
            wait_state(cluster, "healthy")
            wait_for(lambda: objects_of(cluster, "n3") > 0, "n3 to take its share", 60, step_s=0.1)
            expect(disk, 48, 2)
            fill(disk, 48, 1)
    cluster.check()


@pytest.mark.limit(300)
def test_away_for_too_long(make_cluster):
    """After --out-after a node's groups are copied to others; when it is back, it takes its share again."""
    cluster = make_cluster(4, copies=3, sheep_options=("--out-after", "3")).up()
    cluster.create("v", "64M")

    def stored(*but):
        nodes = cluster.dog_json("node", "info")["nodes"]
        return sum(n["objects"] for n in nodes if n["name"] not in but)

    with Nbd(cluster.sheep[0].uri("v")) as disk:
        fill(disk, 48, 1)
        held = objects_of(cluster, "n3")
        before = stored()
        assert held > 0
        cluster.sheep[3].kill9()
        wait_state(cluster, "degraded", "n3", "copy less")
        wait_state(cluster, "degraded", "n3", "kept on other nodes")
        wait_for(lambda: status(cluster)["groups"]["full"] == status(cluster)["groups"]["total"],
                 f"all copies to be made: {status(cluster)}", 60, step_s=0.1)
        three = stored("n3")
        assert three >= before and three % 3 == 0
        fill(disk, 48, 2)
        cluster.sheep[3].start()
        wait_state(cluster, "healthy")
        wait_for(lambda: stored() == three, "what is there once too often to go", 60, step_s=0.1)
        assert objects_of(cluster, "n3") > 0
        expect(disk, 48, 2)
    cluster.check()


@pytest.mark.limit(300)
def test_copies_of_a_pool(cluster):
    """Fewer copies free space, more are made again, while a guest writes."""
    cluster.create("v", "64M")

    def stored():
        return sum(n["objects"] for n in cluster.usage())

    with Nbd(cluster.sheep[0].uri("v")) as disk:
        fill(disk, 32, 1)
        three = stored()
        cluster.dog("pool", "set", "default", "--copies", "2")
        wait_for(lambda: stored() == three * 2 // 3, "the third copies to go", 60, step_s=0.1)
        fill(disk, 32, 2)
        cluster.dog("pool", "set", "default", "--copies", "3")
        wait_for(lambda: stored() == three, "the third copies to be made", 60, step_s=0.1)
        wait_state(cluster, "healthy")
        expect(disk, 32, 2)
    for words in (("--copies", "0"), ("--copies", "2", "--min-copies", "3")):
        assert cluster.dog("pool", "set", "default", *words, expect=None).returncode == 1
    cluster.check()
