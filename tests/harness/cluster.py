# SPDX-License-Identifier: Apache-2.0
"""Real daemons in a folder of their own: format, start, kill, restart, stop, and talk to them with dog.

1 Every daemon is a child of ours and is ended by its pid; none outlives the Cluster.
2 Nothing waits a fixed time: a start waits for the ports file, a stop for the process.
3 A restarted daemon has the unix sockets that it had before; its TCP ports are new each time (ports file).
"""
import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.parse

from .processes import DOG, ROOT, SHEEP, Failed, run
from .waiting import wait_for

START_LIMIT_S = 60


class Sheep:
    """One daemon: its store, sockets and log. `index` names it: n0, n1, …"""

    def __init__(self, cluster, index, zone, size):
        self.cluster, self.index, self.zone, self.size = cluster, index, zone, size
        self.name = f"n{index}"
        self.store = os.path.join(cluster.folder, f"{self.name}.store")
        self.log_path = os.path.join(cluster.folder, f"{self.name}.log")
        self.ports_file = os.path.join(cluster.folder, f"{self.name}.ports")
        self.admin_unix = os.path.join(cluster.sockets, f"{self.name}.admin")
        self.nbd_unix = os.path.join(cluster.sockets, f"{self.name}.nbd")
        self.ports = None
        self.process = None
        self.terminated = False
        self.options = list(cluster.sheep_options)
        self.prefix, self.address = [], "127.0.0.1"  # of its host, when that is a namespace (netns.py)

    def format(self, *options):
        run([SHEEP, "format", self.store, "--size", self.size, *options], limit_s=120)

    def command(self):
        return [*self.prefix, SHEEP, "run", self.store, "--cluster", self.cluster.spec, "--name", self.name, "--zone", self.zone,
                "--admin", "127.0.0.1:0", "--admin", "unix:" + self.admin_unix, "--peer", f"{self.address}:0", "--nbd", "127.0.0.1:0",
                "--nbd", "unix:" + self.nbd_unix, "--ports-file", self.ports_file, *self.options]

    def start(self, wait=True):
        assert self.process is None or self.process.poll() is not None, f"{self.name} is running"
        if os.path.exists(self.ports_file):
            os.remove(self.ports_file)
        with open(self.log_path, "ab") as log:
            log.write(f"\n--- {' '.join(self.command())}\n".encode())
            log.flush()
            self.terminated = False
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            preexec_fn=self.cluster.preexec)
        if wait:
            self.wait_ports()

    def wait_ports(self):
        def there():
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended with {self.process.returncode} while starting\n{self.log_tail()}")
            return os.path.exists(self.ports_file)

        wait_for(there, f"{self.name}'s ports file\n{self.log_tail()}", START_LIMIT_S)
        with open(self.ports_file, encoding="utf-8") as f:
            self.ports = json.load(f)
        assert self.ports["pid"] == self.process.pid

    def tcp(self, kind):
        """HOST:PORT of its TCP listener."""
        value = self.ports[kind]
        values = value if isinstance(value, list) else [value]
        for address in values:
            if not address.startswith("unix:"):
                return address[len("tcp:"):] if address.startswith("tcp:") else address
        raise Failed(f"{self.name} has no TCP address for {kind}: {values}")

    @property
    def pid(self):
        return self.process.pid

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def kill9(self):
        if self.alive():
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=60)

    def terminate(self):
        """SIGTERM, once: a second one makes a daemon leave at once."""
        if self.alive() and not self.terminated:
            self.process.send_signal(signal.SIGTERM)
            self.terminated = True

    def stop(self, expect=0):
        """Orderly shutdown; it must end within a minute with status `expect`."""
        if not self.alive() and not self.terminated:
            return
        self.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Failed(f"{self.name} did not end within 60 s of SIGTERM\n{self.log_tail()}") from None
        if expect is not None and self.process.returncode != expect:
            raise Failed(f"{self.name} ended with {self.process.returncode}, not {expect}\n{self.log_tail()}")
        self.terminated = False

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def log_tail(self, lines=60):
        try:
            return f"--- end of {self.log_path}\n" + "\n".join(self.log().splitlines()[-lines:])
        except OSError:
            return f"--- no {self.log_path}"

    def check_store(self, *options, expect=0):
        """`sheep check` of its store; the daemon must be stopped."""
        return run([SHEEP, "check", self.store, *options], expect=expect, limit_s=300)

    def uri(self, export, tcp=False):
        path = urllib.parse.quote(export, safe="@")
        if tcp:
            return f"nbd://{self.tcp('nbd')}/{path}"
        return f"nbd+unix:///{path}?socket={self.nbd_unix}"


class Cluster:
    """`count` daemons in as many zones (or those of `zones`), copies = min(3, count)."""

    def __init__(self, count=3, zones=None, size="512M", copies=None, sheep_options=(), preexec=None):
        base = os.environ.get("KELPIE_TEST_DIR", os.path.join(ROOT, "run"))
        os.makedirs(base, exist_ok=True)
        # Stores on the disk of the tree (O_DIRECT); sockets in /tmp, because their paths must be short.
        self.folder = tempfile.mkdtemp(prefix="test-", dir=base)
        self.sockets = tempfile.mkdtemp(prefix="kelpie-", dir="/tmp")
        self.spec = "local:" + os.path.join(self.folder, "cluster.db")
        self.copies = copies if copies is not None else min(3, count)
        self.sheep_options, self.preexec = sheep_options, preexec
        zones = zones or [f"z{index}" for index in range(count)]
        self.sheep = [Sheep(self, index, zones[index], size) for index in range(count)]

    # --- life ---

    def format_stores(self):
        for sheep in self.sheep:
            sheep.format()

    def start_all(self):
        for sheep in self.sheep:
            if not sheep.alive():
                sheep.start(wait=False)
        for sheep in self.sheep:
            sheep.wait_ports()

    def format_cluster(self, *options):
        self.dog("cluster", "format", "--copies", self.copies, "--wait-nodes", len(self.sheep), *options)
        self.wait_serving()

    def up(self, *options):
        """Everything from nothing to a formatted cluster that serves. Returns self."""
        self.format_stores()
        self.start_all()
        self.format_cluster(*options)
        return self

    def wait_serving(self, deadline_s=60):
        """Until every running daemon answers a request that needs the cluster, and sees all that run."""
        running = sum(sheep.alive() for sheep in self.sheep)

        def sees_all(sheep):
            done = self.dog("--json", "cluster", "info", sheep=sheep, expect=None)
            return done.returncode == 0 and json.loads(done.stdout).get("nodes_live") == running

        for sheep in self.sheep:
            if sheep.alive():
                wait_for(lambda: sees_all(sheep) and self.dog("vdi", "list", sheep=sheep, expect=None).returncode == 0,
                         f"{sheep.name} to serve with {running} nodes\n{sheep.log_tail(20)}", deadline_s, step_s=0.05)

    def kill9_all(self):
        """All at once: the signals go out before any is waited for."""
        for sheep in self.sheep:
            if sheep.alive():
                os.kill(sheep.pid, signal.SIGKILL)
        for sheep in self.sheep:
            sheep.process.wait(timeout=60)

    def stop_all(self):
        """Orderly end of all at once. Closing a volume needs all nodes, so open volumes are waited for first."""
        errors = []
        if all(sheep.alive() for sheep in self.sheep):
            wait_for(lambda: not self.dog_json("cluster", "info").get("backlog", {}).get("open"),
                     "all volumes to be closed", 30)
        for sheep in self.sheep:
            sheep.terminate()
        for sheep in self.sheep:
            try:
                sheep.stop()
            except Failed as error:
                errors.append(str(error))
        if errors:
            raise Failed("\n".join(errors))

    def destroy(self, keep=False):
        """Ends every daemon and removes the folder, unless `keep`."""
        for sheep in self.sheep:
            if sheep.process is not None and sheep.process.poll() is None:
                sheep.process.kill()
                sheep.process.wait()
        shutil.rmtree(self.sockets, ignore_errors=True)
        for sheep in self.sheep:
            if os.path.exists(sheep.store):
                os.remove(sheep.store)
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def logs(self):
        return "\n".join(sheep.log_tail() for sheep in self.sheep)

    # --- dog ---

    def dog(self, *words, sheep=None, expect=0, limit_s=60, stdin=None, text=True):
        """dog through the given daemon (default: the first that is alive)."""
        if sheep is None:
            sheep = next((s for s in self.sheep if s.alive()), self.sheep[0])
        command = [DOG, "-s", "unix:" + sheep.admin_unix, "-q", *words]
        return run(command, expect=expect, limit_s=limit_s, stdin=stdin, text=text)

    def dog_json(self, *words, **options):
        return json.loads(self.dog("--json", *words, **options).stdout)

    def create(self, name, size, *options):
        self.dog("vdi", "create", name, size, *options)

    def usage(self):
        """What every node stores, from `dog --json node info`: [{"objects", "data_bytes", "used_bytes"}, …]."""
        nodes = self.dog_json("node", "info")["nodes"]
        return [{key: node[key] for key in ("objects", "data_bytes", "used_bytes")} for node in nodes]

    def wait_empty(self, before, deadline_s=120):
        """Until every node holds no more objects and data than in `before` (an answer of usage())."""
        def back():
            now = self.usage()
            same = all(a["objects"] <= b["objects"] and a["data_bytes"] <= b["data_bytes"]
                       for a, b in zip(now, before))
            return now if same else None

        return wait_for(back, f"the space to come back to {before}; now {self.usage()}", deadline_s, step_s=0.1)

    def check(self, deadline_s=120):
        """`dog cluster check` until it finds the cluster at rest; then it must be clean. Returns the report."""
        def quiet():
            done = self.dog("--json", "cluster", "check", expect=None, limit_s=120)
            if done.returncode not in (0, 1):
                raise Failed(f"dog cluster check: {done.returncode}\n{done.stdout}\n{done.stderr}")
            report = json.loads(done.stdout)
            report["exit"] = done.returncode
            return report if report["at_rest"] else None

        report = wait_for(quiet, "the cluster to be at rest", deadline_s, step_s=0.2)
        if report["exit"] != 0 or report["finding_count"] != 0:
            raise Failed(f"dog cluster check finds: {json.dumps(report, indent=1)}")
        return report
