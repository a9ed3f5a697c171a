# SPDX-License-Identifier: Apache-2.0
"""sheep check --repair on real files: says what it found and did, refuses what is served, and a second check is clean."""
import json
import os
import pathlib
import random
import subprocess

from harness.nbdio import Nbd
from harness.processes import SHEEP
from harness.waiting import wait_for

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BLOCK = 4096


def golden(tmp_path):
    """The kept image with something of everything (tests/golden)."""
    path = tmp_path / "store"
    packed = os.path.join(ROOT, "tests", "golden", "v1", "clean.img.xz")
    with open(path, "wb") as out:
        subprocess.run(["xz", "-dc", packed], stdout=out, check=True)
    return path


def check(path, *options, expect):
    done = subprocess.run([SHEEP, "check", str(path), *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def root_of(path, array):
    """Offset of the root block of an array (FORMAT.md, Superblock): 0 index, 1 bitmap, 2 share counts."""
    data = path.read_bytes()[:BLOCK]
    return int.from_bytes(data[140 + 12 * array:144 + 12 * array], "little") * BLOCK


def flip(path, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ 4]))


def test_bitmap_and_superblock_come_back(tmp_path):
    path = golden(tmp_path)
    whole = json.loads(check(path, "--data", "--json", expect=0).stdout)
    flip(path, root_of(path, 1) + 100)
    flip(path, BLOCK + 20)
    said = check(path, "--data", expect=1)
    assert f"offset {root_of(path, 1)}: a page of the free-space bitmap" in said.stdout, said.stdout
    assert "--repair" in said.stderr
    said = check(path, "--data", "--repair", expect=0).stdout
    assert "found: offset" in said and "mended: " in said and "left: " not in said, said
    after = json.loads(check(path, "--data", "--json", expect=0).stdout)
    for key in ("objects", "tombstones", "shared_blocks", "checked_data_blocks"):
        assert after[key] == whole[key], key


def test_lost_objects_are_named_and_the_store_is_inexact(tmp_path):
    path = golden(tmp_path)
    flip(path, root_of(path, 0) + 3)  # the table over all index pages
    before = json.loads(check(path, "--json", expect=1).stdout)
    assert any("object index" in finding for finding in before["findings"])
    result = json.loads(check(path, "--repair", "--json", expect=0).stdout)
    assert result["inexact"] and result["found"] >= 1 and result["objects"] == 0
    check(path, "--data", expect=0)


def wait_full(cluster):
    """Until every group has all its copies in sync."""
    def full():
        groups = cluster.dog_json("cluster", "status", expect=None)["groups"]
        return groups["full"] == groups["total"] and groups["moving"] == 0

    wait_for(full, f"all groups to be in sync\n{cluster.logs()}", 120, step_s=0.2)


def test_a_node_that_lost_objects_gets_them_back_from_the_others(cluster):
    """A power cut of everything; one store has lost its index and is repaired: nobody reads its gaps."""
    size = 32 << 20
    cluster.create("v", "32M")
    data = random.Random(5).randbytes(size)
    with Nbd(cluster.sheep[0].uri("v")) as client:
        for offset in range(0, size, 4 << 20):
            client.write(offset, data[offset:offset + (4 << 20)])
    cluster.stop_all()
    cluster.start_all()
    cluster.wait_serving()
    wait_full(cluster)
    cluster.kill9_all()
    victim = cluster.sheep[2]
    store = pathlib.Path(victim.store)
    flip(store, root_of(store, 0) + 3)
    result = json.loads(check(store, "--repair", "--json", expect=0).stdout)
    assert result["inexact"] and result["objects"] == 0, result
    cluster.start_all()
    cluster.wait_serving()
    with Nbd(victim.uri("v")) as client:
        for offset in range(0, size, 4 << 20):
            assert client.read(offset, 4 << 20) == data[offset:offset + (4 << 20)], offset
    wait_full(cluster)
    cluster.check()
    assert cluster.usage()[2]["objects"] == cluster.usage()[0]["objects"] > 0
    # It is as good as any other now: after the next power cut nothing has to be compared.
    cluster.kill9_all()
    cluster.start_all()
    cluster.wait_serving()
    assert "may be missing" not in victim.log().rsplit("\n--- ", 1)[-1]
    wait_full(cluster)


def test_hopeless_and_busy_stores_are_refused(tmp_path):
    path = golden(tmp_path)
    for copy in (0, 1):
        flip(path, copy * BLOCK + 30)
    before = path.read_bytes()
    said = check(path, "--repair", expect=1).stdout
    assert "left: " in said and "superblock" in said, said
    assert path.read_bytes() == before
    path = golden(tmp_path)
    holder = subprocess.Popen(["flock", "--no-fork", str(path), "sleep", "60"], stdin=subprocess.DEVNULL)
    try:
        subprocess.run(["sh", "-c", f"while flock -n '{path}' true; do sleep 0.05; done"], timeout=20, check=True)
        before = path.read_bytes()
        assert "stop the sheep" in check(path, "--repair", expect=2).stderr
        assert path.read_bytes() == before
    finally:
        holder.kill()
        holder.wait()
