# SPDX-License-Identifier: Apache-2.0
"""Three daemons and a ZooKeeper on four hosts (network namespaces): links that fail in one direction, that lose packets,
that are slow. Whatever the network does, nothing answered is lost, and all goes on when it is well again."""
import pytest

from harness.netns import Network
from harness.verifier import BLOCK, Load, Verifier, flush, open_export
from harness.waiting import measure_for, wait_for
from harness.zookeeper import ZooKeeper

BLOCKS = 4096  # 16 MiB
TIMEOUT_S = 6


@pytest.fixture
def network():
    made = Network("a", "b", "c", "zk")
    try:
        yield made.up()
    finally:
        made.destroy()


@pytest.fixture
def cluster(make_cluster, network):
    host = network.hosts[3]
    zookeeper = ZooKeeper(host.address, host.prefix, port=2181)
    try:
        zookeeper.start()
        made = make_cluster(3)
        made.spec = zookeeper.spec(TIMEOUT_S)
        for sheep, host in zip(made.sheep, network.hosts):
            sheep.prefix, sheep.address = host.prefix, host.address
        yield made.up()
    finally:
        zookeeper.destroy()


def start_load(cluster, gateway, seed):
    cluster.create("disk", f"{BLOCKS * BLOCK}")
    verifier = Verifier(BLOCKS, seed)
    load = Load(verifier, open_export(cluster.sheep[gateway], "disk"))
    load.start()
    load.wait_progress()
    return load


def finish(cluster, load):
    """Everything is well again: the load goes on, and what was answered is there."""
    load.wait_progress(120)
    assert load.stop()
    flush(load.connection)
    load.verifier.verify(load.connection)
    load.connection.close()
    cluster.wait_serving()
    cluster.check()
    cluster.stop_all()


def stands_still(load):
    before = load.verifier.writes_answered
    measure_for(1)
    return load.verifier.writes_answered == before


@pytest.mark.limit(400)
def test_one_way_between_peers(cluster, network):
    """A replica hears everybody, but its answers do not get through to the gateway; all sessions are well. What is not
    answered waits, and comes back when the link does."""
    load = start_load(cluster, 0, 1)
    for _ in range(2):
        network.hosts[0].cut(network.hosts[2])
        measure_for(4)
        network.heal()
        load.wait_progress(120)
    finish(cluster, load)


@pytest.mark.limit(400)
def test_silenced_replica(cluster, network):
    """Nothing that a replica sends arrives anywhere: its session expires and the others see it gone. When it is heard
    again it ends, because its session is over, and is taken back when it is started again."""
    load = start_load(cluster, 0, 2)
    sheep = cluster.sheep[2]
    network.isolate_output(network.hosts[2])
    wait_for(lambda: cluster.dog_json("cluster", "info")["nodes_live"] == 2, "the others to see it gone", 60)
    load.wait_progress()
    network.heal()
    sheep.process.wait(timeout=60)
    assert sheep.process.returncode == 1 and "has ended: leaving" in sheep.log(), sheep.log_tail()
    sheep.start()
    finish(cluster, load)


@pytest.mark.limit(400)
def test_silenced_gateway(cluster, network):
    """The same for the gateway, which lives on and still hears everything: it answers no guest from the moment when its
    session may be over. Another gateway opens the volume meanwhile, finds what was answered, and writes; nothing that the
    old one had under way comes through later."""
    load = start_load(cluster, 2, 3)
    sheep = cluster.sheep[2]
    network.isolate_output(network.hosts[2])
    wait_for(lambda: cluster.dog_json("cluster", "info")["nodes_live"] == 2, "the others to see it gone", 60)
    assert stands_still(load), "a gateway without a session answers its guest"
    answered = load.verifier.writes_answered
    connection = open_export(cluster.sheep[0], "disk", limit_s=120)
    successor = load.verifier.successor(4)
    successor.verify(connection)
    other = Load(successor, connection)
    other.start()
    other.wait_progress()
    assert sheep.alive() and load.verifier.writes_answered == answered
    network.heal()
    sheep.process.wait(timeout=60)
    assert not load.stop() and load.verifier.writes_answered == answered
    other.wait_progress()
    sheep.start()
    finish(cluster, other)


@pytest.mark.limit(400)
def test_cut_off_from_zookeeper(cluster, network):
    """A gateway that does not hear ZooKeeper for less than two thirds of the timeout goes on; nobody loses a session."""
    load = start_load(cluster, 0, 4)
    network.hosts[0].cut(network.hosts[3])
    measure_for(1)
    load.wait_progress()
    network.heal()
    finish(cluster, load)
    assert all("lost the session" not in sheep.log() for sheep in cluster.sheep)


@pytest.mark.limit(400)
def test_lossy_and_slow(cluster, network):
    """One packet in fifty is lost on every host; where the kernel can delay (netem), each also takes 2 to 4 ms longer."""
    load = start_load(cluster, 0, 5)
    slow = network.can_delay()
    for host in network.hosts:
        host.lose(2)
        if slow:
            host.delay(3, 1)
    print("with delay" if slow else "this kernel has no netem: loss only")
    load.wait_progress(120)
    load.wait_progress(120)
    network.heal()
    finish(cluster, load)
