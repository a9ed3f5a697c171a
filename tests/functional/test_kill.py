# SPDX-License-Identifier: Apache-2.0
"""kill -9 of all daemons at random moments under load: every answered write is there afterwards.

KELPIE_KILL_ROUNDS sets the number of rounds (default 10; `make kill-rounds` does 100), KELPIE_SEED the seed.
"""
import os
import random
import re
import signal
import subprocess
import threading
import time

import pytest

from harness.processes import run
from harness.rawnbd import Gone
from harness.verifier import BLOCK, Verifier, connect, sequence_of
from harness.waiting import wait_for

ROUNDS = int(os.environ.get("KELPIE_KILL_ROUNDS", "10"))
SEED = int(os.environ.get("KELPIE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
BLOCKS = 8192  # 32 MiB


class Killer(threading.Thread):
    """Kills every daemon of a cluster after `delay_s`: all at once, or one shortly after the other."""

    def __init__(self, cluster, delay_s, gaps_s):
        super().__init__(daemon=True)
        self.cluster, self.delay_s, self.gaps_s = cluster, delay_s, gaps_s
        self.fired = threading.Event()

    def run(self):
        pause = threading.Event()
        pause.wait(self.delay_s)
        self.fired.set()
        order = random.sample(self.cluster.sheep, len(self.cluster.sheep))
        for sheep, gap_s in zip(order, self.gaps_s):
            if gap_s:
                pause.wait(gap_s)
            os.kill(sheep.pid, signal.SIGKILL)


def open_somewhere(cluster, rng, export):
    """A connection through a gateway picked at random; the volume is reconciled on the way."""
    sheep = rng.choice(cluster.sheep)
    last = []

    def attempt():
        try:
            return connect(sheep.nbd_unix, export)
        except Gone as error:
            last[:] = [error]
            return None

    try:
        return wait_for(attempt, f"{export} to open", 60, step_s=0.1)
    except AssertionError:
        raise AssertionError(f"{export} does not open on {sheep.name}: {last}\n{cluster.logs()}") from None


def verify_snapshot(cluster, rng, export, content):
    connection = open_somewhere(cluster, rng, export)
    for first in range(0, BLOCKS, 256):
        data = connection.read(first * BLOCK, 256 * BLOCK)
        for index in range(256):
            have = sequence_of(first + index, data[index * BLOCK:(index + 1) * BLOCK])
            want = content.get(first + index, 0)
            assert have == want, f"{export}: block {first + index} holds sequence {have}, not {want}"
    connection.close()


def restart(cluster):
    begun = time.monotonic()
    cluster.start_all()
    cluster.wait_serving()
    return time.monotonic() - begun


@pytest.mark.limit(120 + ROUNDS * 60)
def test_answered_writes_survive_kill_9_of_all(cluster):
    """A random round also takes a snapshot, which must keep its content, or deletes it."""
    print(f"seed {SEED}, {ROUNDS} rounds")
    rng = random.Random(SEED)
    cluster.create("killed", f"{BLOCKS * BLOCK}")
    verifier = Verifier(BLOCKS, SEED)
    snapshots = {}
    for number in range(ROUNDS):
        connection = open_somewhere(cluster, rng, "killed")
        verifier.verify(connection)
        if snapshots and rng.random() < 0.4:
            tag = rng.choice(sorted(snapshots))
            verify_snapshot(cluster, rng, f"killed@{tag}", snapshots[tag])
            if rng.random() < 0.5:
                cluster.dog("vdi", "delete", "killed", "-s", tag)
                del snapshots[tag]
        if rng.random() < 0.4 and len(snapshots) < 4:
            # The volume is idle and verified: what it holds now is what the snapshot holds.
            cluster.dog("vdi", "snapshot", "killed", "-s", f"r{number}")
            snapshots[f"r{number}"] = dict(verifier.answered)
        answered = verifier.writes_answered
        gaps = [0, 0, 0] if rng.random() < 0.5 else [0, rng.random() * 0.05, rng.random() * 0.05]
        killer = Killer(cluster, 0.05 + rng.random() * 1.0, gaps)
        killer.start()
        stood = verifier.load(connection, lambda: False)
        assert not stood
        killer.join(60)
        assert killer.fired.is_set(), f"the connection broke before the kill\n{cluster.logs()}"
        connection.close()
        for sheep in cluster.sheep:
            sheep.process.wait(timeout=60)
        seconds = restart(cluster)
        print(f"round {number}: {verifier.writes_answered - answered} writes answered, "
              f"{len(verifier.unsure)} blocks unsure, back in {seconds:.1f} s", flush=True)
    connection = open_somewhere(cluster, rng, "killed")
    verifier.verify(connection)
    connection.close()
    for tag in snapshots:
        verify_snapshot(cluster, rng, f"killed@{tag}", snapshots[tag])
    assert verifier.writes_answered > ROUNDS, "hardly anything was written: the test shows nothing"
    cluster.check()
    cluster.stop_all()
    for sheep in cluster.sheep:
        sheep.check_store("--data")


@pytest.mark.limit(120 + ROUNDS * 60)
def test_fio_verify_survives_kill_9_of_all(cluster):
    """The same with a verifier that nobody here wrote. fio's latency log lists the offset of every answered write; after
    the restart fio reads everything back, and no answered block may be among those that it finds bad."""
    rng = random.Random(SEED + 1)
    empty = cluster.usage()
    for number in range(max(2, ROUNDS // 5)):
        sheep = rng.choice(cluster.sheep)
        folder = os.path.join(cluster.folder, f"fio-{number}")
        os.mkdir(folder)
        cluster.create(f"fio{number}", "64M")
        wait_for(lambda: opens(sheep, f"fio{number}"), "the volume to open", 60, step_s=0.1)
        common = ["fio", "--name=kill", "--ioengine=nbd", f"--uri={sheep.uri(f'fio{number}')}", "--rw=randwrite",
                  "--bs=4k", "--iodepth=32", "--size=64M", f"--randseed={SEED + number}", "--verify=crc32c", "--verify_state_save=0"]
        process = subprocess.Popen(common + ["--do_verify=0", "--write_lat_log=log", "--log_offset=1"], cwd=folder,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        written = cluster.usage()[0]["data_bytes"] + (1 << 20)
        wait_for(lambda: cluster.usage()[0]["data_bytes"] > written or process.poll() is not None, "fio to write", 60)
        killer = Killer(cluster, rng.random() * 0.7, [0, 0, 0])
        killer.start()
        output, _ = process.communicate(timeout=120)
        assert b"connected" in output, f"fio did not start: {output.decode()}"
        killer.join(60)
        for one in cluster.sheep:
            one.process.wait(timeout=60)
        restart(cluster)
        open_somewhere(cluster, rng, f"fio{number}").close()
        wait_for(lambda: opens(sheep, f"fio{number}"), "the volume to open", 60, step_s=0.1)
        with open(os.path.join(folder, "log_lat.1.log"), encoding="ascii") as f:
            answered = {int(line.split(",")[4]) for line in f}
        assert len(answered) > 32, f"fio wrote hardly anything: {output.decode()}"
        done = run(common + ["--verify_only=1", "--continue_on_error=verify"], expect=None, limit_s=120, cwd=folder)
        bad = {int(offset) for offset in re.findall(r"offset (\d+), length", done.stdout + done.stderr)}
        good = 64 * 256 - len(bad)
        print(f"round {number}: {len(answered)} writes answered, {good} of them and of those in flight found")
        assert not answered & bad, f"answered writes are lost: {sorted(answered & bad)[:10]}"
        assert len(answered) <= good <= len(answered) + 32, done.stdout[-2000:]
        wait_for(lambda: cluster.dog("vdi", "delete", f"fio{number}", expect=None).returncode == 0, "delete", 30)
        cluster.wait_empty(empty)
    cluster.check()


def opens(sheep, export):
    try:
        connect(sheep.nbd_unix, export).close()
        return True
    except Gone:
        return False
