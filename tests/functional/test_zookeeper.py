# SPDX-License-Identifier: Apache-2.0
"""Three daemons whose cluster store is a real ZooKeeper: daemons and the ensemble die under load."""
import re
import signal
import time

import pytest

from harness.processes import SHEEP, run
from harness.verifier import BLOCK, Load, Verifier, flush, open_export
from harness.waiting import measure_for, wait_for
from harness.zookeeper import ZooKeeper

BLOCKS = 4096  # 16 MiB
TIMEOUT_S = 6


@pytest.fixture
def zookeeper():
    server = ZooKeeper()
    try:
        yield server.start()
    finally:
        server.destroy()


@pytest.fixture
def cluster(make_cluster, zookeeper):
    made = make_cluster(3)
    made.spec = zookeeper.spec(TIMEOUT_S)
    return made.up()


@pytest.mark.limit(400)
def test_daemons_die(cluster):
    """A daemon that is not the gateway, then the gateway, then all at once: what was answered is there, and a daemon
    that starts again replaces its old session at once, without waiting for it to expire."""
    cluster.create("disk", f"{BLOCKS * BLOCK}")
    verifier = Verifier(BLOCKS, 1)
    for victims in ([1], [0], [0, 1, 2]):
        gateway = cluster.sheep[0]
        connection = open_export(gateway, "disk")
        verifier.verify(connection)
        load = Load(verifier, connection)
        load.start()
        load.wait_progress()
        for index in victims:
            cluster.sheep[index].kill9()
        for index in victims:
            cluster.sheep[index].start(wait=False)
        for index in victims:
            cluster.sheep[index].wait_ports()
        cluster.wait_serving()
        if 0 not in victims:
            load.wait_progress()
        assert load.stop() == (0 not in victims)
        connection.close()
    connection = open_export(cluster.sheep[2], "disk", limit_s=120)
    verifier.verify(connection)
    connection.close()
    cluster.stop_all()
    for sheep in cluster.sheep:
        sheep.check_store("--data")


@pytest.mark.limit(300)
def test_daemon_stays_dead(cluster):
    """A daemon dies without a trace and is not started again: writes stand still until the others complain of it or its
    session expires, then go on without it. When it comes back it is brought up to date."""
    cluster.create("disk", f"{BLOCKS * BLOCK}")
    verifier = Verifier(BLOCKS, 4)
    load = Load(verifier, open_export(cluster.sheep[0], "disk"))
    load.start()
    load.wait_progress()
    cluster.sheep[1].kill9()
    begun = time.monotonic()
    load.wait_progress()
    print(f"writes go on {time.monotonic() - begun:.1f} s after the kill, with a timeout of {TIMEOUT_S} s")
    wait_for(lambda: cluster.dog_json("cluster", "info")["nodes_live"] == 2, "its session to expire", 60)
    cluster.sheep[1].start()
    cluster.wait_serving()
    load.wait_progress()
    assert load.stop()
    flush(load.connection)
    verifier.verify(load.connection)
    load.connection.close()
    cluster.check()
    cluster.stop_all()


@pytest.mark.limit(400)
def test_outages(cluster, zookeeper):
    """While ZooKeeper is away for less than two thirds of the timeout guests notice nothing; when it is away for longer
    they wait, no daemon ends, and all goes on when it is back."""
    cluster.create("disk", f"{BLOCKS * BLOCK}")
    verifier = Verifier(BLOCKS, 2)
    connection = open_export(cluster.sheep[0], "disk")
    load = Load(verifier, connection)
    load.start()
    load.wait_progress()
    zookeeper.kill9()
    load.wait_progress()  # the data path does not ask
    zookeeper.start()
    load.wait_progress()
    zookeeper.kill9()

    def stands_still():
        before = verifier.writes_answered
        measure_for(1)
        return verifier.writes_answered == before

    wait_for(stands_still, "writes to wait: no session is confirmed", 60)
    measure_for(TIMEOUT_S)
    assert stands_still() and all(sheep.alive() for sheep in cluster.sheep)
    # What needs the store says so instead of hanging, and the status names the cause.
    assert "has not confirmed its session" in cluster.dog("cluster", "status", expect=None).stdout
    done = cluster.dog("vdi", "list", expect=None)
    assert done.returncode != 0 and "timed out" in done.stderr, done
    zookeeper.start()
    load.wait_progress(120)
    assert load.stop()
    flush(connection)
    verifier.verify(connection)
    connection.close()
    cluster.wait_serving()
    cluster.check()
    cluster.stop_all()


@pytest.mark.limit(300)
def test_suspended_daemon_leaves(cluster):
    """A daemon that was suspended for longer than its timeout has lost its session: it says so and ends, and is taken back
    when it is started again."""
    sheep = cluster.sheep[2]
    sheep.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: cluster.dog_json("cluster", "info")["nodes_live"] == 2, "the others to see it gone", 60)
    sheep.process.send_signal(signal.SIGCONT)
    sheep.process.wait(timeout=60)
    assert sheep.process.returncode == 1 and "has ended: leaving" in sheep.log(), sheep.log_tail()
    sheep.start()
    cluster.wait_serving()
    cluster.create("disk", "16M")
    cluster.stop_all()


def test_wrong_specs(tmp_path):
    store = tmp_path / "store"
    run([SHEEP, "format", store, "--size", "64M"])
    for spec, words in (("zookeeper:", "names no cluster store"), ("zookeeper:host:0/x", "a port is a number"),
                        ("zookeeper:127.0.0.1:2181/", "at least one name"),
                        ("zookeeper:no-such-host.invalid/x", "cannot be resolved"),
                        ("zookeeper:127.0.0.1?time=3", "only timeout=SECONDS")):
        done = run([SHEEP, "run", store, "--cluster", spec, "--admin", "127.0.0.1:0", "--nbd", "127.0.0.1:0", "--peer",
                    "127.0.0.1:0"], expect=None, limit_s=30)
        assert done.returncode in (1, 2, 64) and re.search(re.escape(words), done.stderr), (spec, done)


@pytest.mark.limit(200)
def test_stop_without_zookeeper(cluster, zookeeper):
    """Daemons can be stopped while no server answers; what they hold is there when all are started again."""
    cluster.create("disk", f"{BLOCKS * BLOCK}")
    verifier = Verifier(BLOCKS, 3)
    connection = open_export(cluster.sheep[0], "disk")
    load = Load(verifier, connection)
    load.start()
    load.wait_progress()
    assert load.stop()
    flush(connection)
    connection.close()
    zookeeper.kill9()
    for sheep in cluster.sheep:
        sheep.terminate()
    for sheep in cluster.sheep:
        sheep.stop(expect=None)
    zookeeper.start()
    cluster.start_all()
    cluster.wait_serving()
    connection = open_export(cluster.sheep[1], "disk", limit_s=120)
    verifier.verify(connection)
    connection.close()
    cluster.stop_all()
