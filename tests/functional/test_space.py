# SPDX-License-Identifier: Apache-2.0
"""Space that is freed goes back: of a device while it is served, of a file when the administrator asks."""
import os
import re
import subprocess

import pytest

from harness.processes import SHEEP, run
from harness.waiting import wait_for

MIB = 1 << 20


def on_disk(path):
    return os.stat(path).st_blocks * 512


@pytest.fixture
def loop(tmp_path):
    """A loop device on a sparse file of 400 MiB: discards punch holes into it."""
    backing = tmp_path / "backing"
    with open(backing, "wb") as f:
        f.truncate(400 * MIB)
    made = subprocess.run(["losetup", "--find", "--show", backing], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    device = made.stdout.strip()
    yield device, backing
    subprocess.run(["losetup", "--detach", device], check=False)


@pytest.mark.parametrize("option", ["", "--no-discard"])
def test_device_gets_space_back(make_cluster, loop, option):
    device, backing = loop
    cluster = make_cluster(1, sheep_options=[option] if option else [])
    sheep = cluster.sheep[0]
    os.symlink(device, sheep.store)  # the end of the test removes this
    run([SHEEP, "format", sheep.store], limit_s=60)
    cluster.start_all()
    cluster.format_cluster()
    cluster.create("disk", "256M")
    data = os.urandom(MIB) * 128
    cluster.dog("vdi", "write", "disk", stdin=data, text=False)
    full = on_disk(backing)
    assert full > 128 * MIB
    cluster.dog("vdi", "delete", "disk")
    used = lambda: cluster.dog_json("node", "info")["nodes"][0]["data_bytes"]  # noqa: E731
    wait_for(lambda: used() < 8 * MIB, "reclaim", 60)
    if option:
        cluster.stop_all()
        assert on_disk(backing) >= full - 8 * MIB
        said = run([SHEEP, "trim", device]).stdout
        assert re.search(r"gave back [0-9.]+ MiB", said), said
        assert on_disk(backing) < 64 * MIB
    else:
        wait_for(lambda: on_disk(backing) < 64 * MIB, "discards", 60)
        cluster.stop_all()
    run([SHEEP, "check", device, "--data"])


def test_file_is_trimmed_when_asked(make_cluster):
    cluster = make_cluster(1, size="1G").up()
    sheep = cluster.sheep[0]
    assert on_disk(sheep.store) >= 1024 * MIB  # it has its space from the beginning
    assert "use" in run([SHEEP, "trim", sheep.store], expect=2).stderr
    cluster.stop_all()
    run([SHEEP, "trim", sheep.store])
    assert on_disk(sheep.store) < 400 * MIB
    run([SHEEP, "check", sheep.store])
    cluster.start_all()
    cluster.wait_serving()
    cluster.create("disk", "600M")
    data = os.urandom(MIB) * 500
    cluster.dog("vdi", "write", "disk", stdin=data, text=False)
    assert cluster.dog("vdi", "read", "disk", "0", str(len(data)), text=False).stdout == data
    cluster.stop_all()
    run([SHEEP, "check", sheep.store, "--data"])
