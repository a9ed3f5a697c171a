# SPDX-License-Identifier: Apache-2.0
"""Several hosts on this machine: network namespaces with an address each, joined by a bridge in one more.

1 What is cut is dropped silently where it would arrive, in one direction at a time, as by a broken cable.
2 Everything is gone with the namespaces, which destroy() deletes; processes in them are ended before.
3 Loss is nftables' (every kernel with nf_tables); delay needs the kernel's netem, and can_delay() says whether it is there.
"""
import os
import subprocess

from .processes import run

NET = "10.213.7"


class Host:
    """One namespace. `prefix` goes before a command that is to run there."""

    def __init__(self, network, index, label):
        self.network, self.label = network, label
        self.name = f"{network.name}-{label}"
        self.address = f"{NET}.{index + 10}"
        self.prefix = ["ip", "netns", "exec", self.name]
        self.port = f"p{index}"

    def make(self):
        switch = self.network.name
        run(["ip", "netns", "add", self.name])
        run(["ip", "-n", self.name, "link", "add", "eth0", "type", "veth", "peer", "name", self.port, "netns", switch])
        run(["ip", "-n", switch, "link", "set", self.port, "master", "br0", "up"])
        run(["ip", "-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0"])
        for device in ("lo", "eth0"):
            run(["ip", "-n", self.name, "link", "set", device, "up"])
        self.rules("add table inet test; add chain inet test in { type filter hook input priority 0; }")

    def rules(self, text):
        run([*self.prefix, "nft", text])

    def cut(self, *sources):
        """From now on nothing from those hosts arrives here; what we send still arrives there."""
        for source in sources:
            self.rules(f"add rule inet test in ip saddr {source.address} drop")

    def lose(self, percent):
        """Drops that share of all that arrives from others, at random."""
        self.rules(f"add rule inet test in ip saddr {NET}.0/24 numgen random mod 1000 < {round(percent * 10)} drop")

    def delay(self, milliseconds, jitter=0):
        """Everything that leaves this host takes that much longer."""
        run(["tc", "-n", self.name, "qdisc", "replace", "dev", "eth0", "root", "netem", "delay", f"{milliseconds}ms",
             f"{jitter}ms"])

    def heal(self):
        self.rules("flush chain inet test in")
        subprocess.run(["tc", "-n", self.name, "qdisc", "del", "dev", "eth0", "root"], stderr=subprocess.DEVNULL,
                       check=False)


class Network:
    """Hosts with the given labels, all connected."""

    def __init__(self, *labels):
        self.name = f"kelpie{os.getpid()}"
        self.hosts = [Host(self, index, label) for index, label in enumerate(labels)]

    def up(self):
        run(["ip", "netns", "add", self.name])
        run(["ip", "-n", self.name, "link", "add", "br0", "type", "bridge"])
        run(["ip", "-n", self.name, "link", "set", "br0", "up"])
        for host in self.hosts:
            host.make()
        return self

    def can_delay(self):
        name = self.hosts[0].name
        done = run(["tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"], expect=None)
        if done.returncode == 0:
            run(["tc", "-n", name, "qdisc", "del", "dev", "lo", "root"])
        return done.returncode == 0

    def isolate_output(self, host):
        """Nothing that `host` sends arrives anywhere; it still hears the others."""
        for other in self.hosts:
            if other is not host:
                other.cut(host)

    def heal(self):
        for host in self.hosts:
            host.heal()

    def destroy(self):
        for name in [host.name for host in self.hosts] + [self.name]:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)
