# SPDX-License-Identifier: Apache-2.0
"""Live migration of a Linux guest between gateways while it writes and verifies files: no wrong byte, no error.

Both QEMUs have the volume open for a while, each through its own gateway; the second one forwards to the first one's.
"""
import os

import pytest

from harness.guest import Guest
from harness.processes import run
from harness.verifier import connect
from harness.waiting import wait_for


def export(sheep):
    return f"server.type=unix,server.path={sheep.nbd_unix},export=vm"


def owner(cluster):
    volume, = [v for v in cluster.dog_json("vdi", "list")["volumes"] if v["name"] == "vm"]
    return volume["owner"]


def verify_from_outside(cluster, sheep):
    """The same image by another gateway and by the host's e2fsck; then the cluster itself."""
    raw = os.path.join(cluster.folder, "vm.raw")
    run(["qemu-img", "convert", "-f", "raw", "-O", "raw", sheep.uri("vm"), raw], limit_s=120)
    run(["e2fsck", "-fn", raw])
    os.remove(raw)
    cluster.check()


@pytest.mark.limit(900)
def test_live_migration(cluster):
    cluster.create("vm", "256M")
    first, second, third = cluster.sheep
    guests = [Guest(cluster.folder, export(first))]
    try:
        guests[0].wait_progress(10, 240)
        guests.append(guests[0].destination(export(second)))
        guests[0].wait_progress(3)  # with both open
        guests[0].migrate_to(guests[1])
        guests[1].wait_progress(5)
        # Only the second gateway is used now: the volume follows.
        wait_for(lambda: owner(cluster) == "n1", "the volume to move", 60, step_s=0.1)
        guests[1].wait_progress(5)
        # Once more, and the gateway that still owns the volume dies right after it.
        guests.append(guests[1].destination(export(third)))
        guests[1].migrate_to(guests[2])
        second.kill9()
        guests[2].wait_progress(10)
        second.start()
        guests[2].wait_progress(5)
        files = guests[2].finish()
    finally:
        for guest in guests:
            guest.end()
    assert files >= 30
    verify_from_outside(cluster, first)


@pytest.mark.limit(600)
def test_a_guest_on_a_forwarding_gateway(cluster):
    """Its gateway dies and comes back, then the one that owns the volume dies."""
    cluster.create("vm", "256M")
    first, second, third = cluster.sheep
    with connect(first.nbd_unix, "vm") as holder:
        guest = Guest(cluster.folder, export(second))
        try:
            guest.wait_progress(10, 240)
            assert owner(cluster) == "n0"
            second.kill9()
            second.start()
            guest.wait_progress(10)
            assert owner(cluster) == "n0" and holder.size == 256 << 20
            first.kill9()
            guest.wait_progress(10)
            assert owner(cluster) == "n1"
            first.start()
            guest.wait_progress(5)
            files = guest.finish()
        finally:
            guest.end()
    assert files >= 35
    verify_from_outside(cluster, third)
