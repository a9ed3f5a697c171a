# SPDX-License-Identifier: Apache-2.0
"""A Linux guest with ext4 on a volume lives through the death of daemons; its files and its file system are whole."""
import json
import os

import pytest

from harness.guest import Guest
from harness.processes import run
from harness.waiting import wait_for


@pytest.mark.limit(600)
def test_a_guest_lives_through_the_death_of_daemons_and_disks(cluster):
    """It goes on while another node is dead, stalls while its gateway is, and does not see a disk being replaced."""
    cluster.create("vm", "256M")
    gateway, second, third = cluster.sheep
    guest = Guest(cluster.folder, f"server.type=unix,server.path={gateway.nbd_unix},export=vm")
    try:
        guest.wait_progress(10, 180)
        for sheep in (second, third):
            sheep.kill9()
            guest.wait_progress(10)
            sheep.start()
            wait_healthy(cluster)
        gateway.kill9()
        gateway.start()
        guest.wait_progress(10)
        wait_healthy(cluster)
        third.kill9()
        os.remove(third.store)
        wait_for(lambda: cluster.dog("node", "lost", "n2", expect=None).returncode == 0, "n2 to be declared lost", 30)
        cluster.dog("node", "remove", "n2")
        third.name = "n2b"
        third.format()
        third.start()
        guest.wait_progress(10)
        wait_healthy(cluster)
        cluster.kill9_all()
        cluster.start_all()
        guest.wait_progress(10)
        files = guest.finish()
    finally:
        guest.end()
    assert files >= 60
    # The same by another gateway and by the host's e2fsck.
    raw = os.path.join(cluster.folder, "vm.raw")
    run(["qemu-img", "convert", "-f", "raw", "-O", "raw", cluster.sheep[1].uri("vm"), raw], limit_s=120)
    run(["e2fsck", "-fn", raw])
    os.remove(raw)
    cluster.check()


def wait_healthy(cluster):
    wait_for(lambda: json.loads(cluster.dog("--json", "cluster", "status", expect=None).stdout)["healthy"],
             "the cluster to be healthy", 120, step_s=0.1)
