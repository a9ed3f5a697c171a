# SPDX-License-Identifier: Apache-2.0
"""A Linux guest with ext4 on a volume lives through the death of daemons; its files and its file system are whole."""
import os

import pytest

from harness.guest import Guest
from harness.processes import run


@pytest.mark.limit(600)
def test_a_guest_lives_through_kill9_of_each_daemon(cluster):
    cluster.create("vm", "256M")
    gateway = cluster.sheep[0]
    guest = Guest(cluster.folder, f"server.type=unix,server.path={gateway.nbd_unix},export=vm")
    try:
        guest.wait_progress(10, 180)
        for sheep in cluster.sheep[1:] + [gateway]:
            sheep.kill9()
            sheep.start()
            guest.wait_progress(10)
        files = guest.finish()
    finally:
        guest.end()
    assert files >= 40
    # The same by another gateway and by the host's e2fsck.
    raw = os.path.join(cluster.folder, "vm.raw")
    run(["qemu-img", "convert", "-f", "raw", "-O", "raw", cluster.sheep[1].uri("vm"), raw], limit_s=120)
    run(["e2fsck", "-fn", raw])
    os.remove(raw)
    cluster.check()
