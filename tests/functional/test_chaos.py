# SPDX-License-Identifier: Apache-2.0
"""Daemons are killed, stopped, restarted, wiped and replaced at random while clients write and verify: no client sees an
error, nothing answered is lost, and afterwards the cluster is whole by itself.

KELPIE_CHAOS_SECONDS: how long (default 40; `make chaos MINUTES=10` sets it). KELPIE_SEED: the seed, printed.
"""
import json
import os
import random
import signal
import subprocess
import time
import threading

import pytest

from harness.processes import Failed
from harness.rawnbd import Gone
from harness.reconnect import Reconnecting
from harness.verifier import BLOCK, Verifier, connect
from harness.waiting import measure_for, wait_for

SECONDS = int(os.environ.get("KELPIE_CHAOS_SECONDS", "40"))
SEED = int(os.environ.get("KELPIE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
COPIES, NODES = 3, 4
MIB = 1 << 20


def status(cluster):
    """`dog cluster status`, or None while no daemon answers it."""
    done = cluster.dog("--json", "cluster", "status", expect=None)
    return json.loads(done.stdout) if done.returncode in (0, 1) and done.stdout else None


def wait_healthy(cluster, deadline_s=180):
    last = []

    def healthy():
        last[:] = [status(cluster)]
        return last[0] and last[0]["healthy"]

    try:
        wait_for(healthy, "the cluster to be healthy", deadline_s, step_s=0.2)
    except AssertionError:
        raise Failed(f"not healthy after {deadline_s} s: {json.dumps(last[0], indent=1)}\n{cluster.logs()}") from None


class Chaos:
    """One thing at a time happens to one daemon; what it was is kept for the report."""

    def __init__(self, cluster, rng):
        self.cluster, self.rng = cluster, rng
        self.done = {}
        self.replaced = 0

    def note(self, what, sheep):
        self.done[what] = self.done.get(what, 0) + 1
        print(f"{time.strftime('%H:%M:%S')} {what} {sheep.name}", flush=True)

    def kill9(self, sheep):
        self.note("kill -9", sheep)
        sheep.kill9()
        self.pause(self.rng.uniform(0, 6))
        sheep.start()

    def terminate(self, sheep):
        self.note("stop", sheep)
        sheep.stop(expect=None)
        self.pause(self.rng.uniform(0, 6))
        sheep.start()

    def freeze(self, sheep):
        self.note("SIGSTOP", sheep)
        os.kill(sheep.pid, signal.SIGSTOP)
        self.pause(self.rng.uniform(0.2, 6))
        os.kill(sheep.pid, signal.SIGCONT)

    def everything(self, _sheep):
        self.note("kill -9 of all", _sheep)
        self.cluster.kill9_all()
        for sheep in self.rng.sample(self.cluster.sheep, NODES):
            sheep.start(wait=False)
            self.pause(self.rng.uniform(0, 1))
        for sheep in self.cluster.sheep:
            sheep.wait_ports()

    def replace(self, sheep):
        """The disk is gone for good: declared lost, and an empty one takes its place under another name."""
        wait_healthy(self.cluster)
        self.note("wipe and re-add", sheep)
        sheep.kill9()
        os.remove(sheep.store)
        other = next(s for s in self.cluster.sheep if s is not sheep)
        wait_for(lambda: self.cluster.dog("node", "lost", sheep.name, sheep=other, expect=None).returncode == 0,
                 f"{sheep.name} to be declared lost", 30)
        self.cluster.dog("node", "remove", sheep.name, sheep=other)
        self.replaced += 1
        sheep.name = f"n{sheep.index}r{self.replaced}"
        sheep.format()
        sheep.start()
        wait_healthy(self.cluster)

    def pause(self, seconds):
        measure_for(seconds)  # chaos takes time; nothing is waited for here

    def run(self, seconds, look):
        end = time.monotonic() + seconds
        kinds = [self.kill9] * 4 + [self.freeze] * 2 + [self.terminate] + [self.everything] + [self.replace] * 2
        first = [self.kill9, self.replace, self.everything, self.freeze]  # each kind happens in a short run, too
        while time.monotonic() < end or first:
            kind = first.pop() if first else self.rng.choice(kinds)
            kind(self.rng.choice(self.cluster.sheep))
            look()
            self.pause(self.rng.uniform(0, 3))


class FioClient:
    """fio writes and verifies for ever, through a client that reconnects."""

    def __init__(self, cluster, gateway, export, size):
        cluster.create(export, size)
        self.client = Reconnecting(cluster.sockets, gateway.nbd_unix, export)
        self.process = subprocess.Popen(
            ["fio", "--name=chaos", "--ioengine=nbd", f"--uri={self.client.uri}", "--iodepth=16", "--rw=randwrite",
             "--bssplit=4k/60:16k/20:64k/15:256k/5", "--blockalign=4k", f"--size={size}", "--verify=crc32c",
             "--verify_backlog=256", "--verify_fatal=1", "--verify_state_save=0", "--time_based", "--runtime=100000",
             "--output-format=json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def look(self):
        if self.process.poll() is not None:
            raise Failed(f"fio ended with {self.process.returncode}: {self.process.stdout.read().decode()[-4000:]}")

    def finish(self):
        """Ends fio in order; returns what it wrote, in bytes."""
        self.look()
        self.process.send_signal(signal.SIGINT)
        output = self.process.communicate(timeout=120)[0].decode()
        report = json.loads(output[output.index("{"):])
        job = report["jobs"][0]
        if job["error"] or "verify:" in output:
            raise Failed(f"fio: {output[-4000:]}")
        return job["write"]["io_bytes"], job["read"]["io_bytes"]

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self.client.end()


class NumberedClient:
    """Our verifier on a thread of its own: it reconnects, verifies everything, and goes on."""

    def __init__(self, cluster, gateway, export, blocks, seed):
        cluster.create(export, f"{blocks * BLOCK // MIB}M")
        self.gateway, self.export = gateway, export
        self.verifier = Verifier(blocks, seed)
        self.stop, self.error, self.connections = threading.Event(), None, 0
        self.thread = threading.Thread(target=self.main, daemon=True)
        self.thread.start()

    def connect(self):

        def attempt():
            try:
                return connect(self.gateway.nbd_unix, self.export, limit_s=200)
            except (Gone, OSError):
                return None

        return wait_for(attempt, f"{self.export} to open", 200, step_s=0.1)

    def main(self):
        try:
            while not self.stop.is_set():
                connection = self.connect()
                self.connections += 1
                try:
                    self.verifier.verify(connection)
                except Gone:
                    continue
                self.verifier.load(connection, self.stop.is_set)
        except BaseException as error:  # noqa: BLE001  told by look()
            self.error = error

    def look(self):
        if self.error:
            raise self.error

    def finish(self):
        self.stop.set()
        self.thread.join(timeout=240)
        assert not self.thread.is_alive(), "the numbered client hangs"
        self.look()
        connection = self.connect()
        self.verifier.verify(connection)
        return self.verifier.writes_answered


@pytest.mark.limit(600 + 3 * SECONDS)
def test_clients_live_through_chaos(make_cluster):
    print(f"seed {SEED}, {SECONDS} s")
    rng = random.Random(SEED)
    cluster = make_cluster(NODES, size="1G", copies=COPIES).up()
    fio = FioClient(cluster, cluster.sheep[0], "fio", "128M")
    numbered = NumberedClient(cluster, cluster.sheep[1], "numbered", 4096, SEED)
    chaos = Chaos(cluster, rng)

    def look():
        fio.look()
        numbered.look()

    try:
        chaos.run(SECONDS, look)
        wait_healthy(cluster)
        written, read = fio.finish()
        answered = numbered.finish()
    finally:
        fio.end()
    print(f"chaos: {chaos.done}; fio wrote {written >> 20} MiB and verified {read >> 20} MiB; "
          f"{answered} numbered writes over {numbered.connections} connections")
    assert written > 0 and read > 0 and answered > 100, "the clients did hardly anything: the test shows nothing"
    wait_healthy(cluster)
    cluster.check()
    cluster.stop_all()
    for sheep in cluster.sheep:
        sheep.check_store()
