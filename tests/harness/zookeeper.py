# SPDX-License-Identifier: Apache-2.0
"""Debian's ZooKeeper server on free ports, in a folder of its own, as a child that is ended by its pid."""
import os
import shutil
import signal
import socket
import subprocess
import tempfile

from .waiting import wait_for

JARS = "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar"
START_LIMIT_S = 90


def free_port(host):
    with socket.create_server((host, 0)) as listener:
        return listener.getsockname()[1]


class ZooKeeper:
    """One server. `prefix`: words before its command (`ip netns exec NAME`), `host`: the address that it serves on."""

    def __init__(self, host="127.0.0.1", prefix=(), port=None):
        self.host, self.prefix = host, list(prefix)
        self.port = port or free_port(host)
        self.folder = tempfile.mkdtemp(prefix="kelpie-zookeeper-", dir="/tmp")
        self.log_path = os.path.join(self.folder, "log")
        self.process = None
        with open(os.path.join(self.folder, "zoo.cfg"), "w", encoding="ascii") as f:
            f.write(f"dataDir={self.folder}/data\nclientPort={self.port}\nclientPortAddress={host}\ntickTime=500\n"
                    "admin.enableServer=false\nmaxClientCnxns=0\n4lw.commands.whitelist=srvr\n")

    def spec(self, timeout_s, path="/kelpie"):
        """For sheep --cluster."""
        return f"zookeeper:{self.host}:{self.port}{path}?timeout={timeout_s}"

    def start(self):
        command = [*self.prefix, "java", "-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", JARS,
                   "org.apache.zookeeper.server.quorum.QuorumPeerMain", os.path.join(self.folder, "zoo.cfg")]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.wait_serving()
        return self

    def ask(self):
        """What it says of itself, or None. Through the prefix' network, so with a program."""
        client = ("import socket,sys; s=socket.create_connection((sys.argv[1],int(sys.argv[2])),5); s.sendall(b'srvr')\n"
                  "while True:\n d=s.recv(4096)\n if not d: break\n sys.stdout.buffer.write(d)")
        done = subprocess.run([*self.prefix, "/usr/bin/python3", "-c", client, self.host, str(self.port)],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
        return done.stdout.decode(errors="replace")

    def wait_serving(self):
        def serves():
            assert self.process.poll() is None, f"ZooKeeper ended while starting\n{self.log_tail()}"
            return "Mode: " in self.ask()

        wait_for(serves, f"ZooKeeper to serve\n{self.log_tail()}", START_LIMIT_S, step_s=0.1)

    def log_tail(self, lines=40):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return "\n".join(f.read().splitlines()[-lines:])

    def kill9(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(timeout=60)

    def destroy(self):
        self.kill9()
        shutil.rmtree(self.folder, ignore_errors=True)
