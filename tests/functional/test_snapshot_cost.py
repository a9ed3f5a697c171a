# SPDX-License-Identifier: Apache-2.0
"""What a snapshot costs: the same at any size, a short pause, and first writes after it that move no object data."""
import re
import statistics
import time

import pytest

from harness.nbdio import Nbd
from harness.processes import run
from harness.waiting import wait_for

MIB = 1 << 20
OBJECTS = 48


def peer_bytes(cluster):
    """Bytes that the daemons have sent each other: both ends of every connection to a peer port, from the kernel."""
    ports = {sheep.tcp("peer").rsplit(":", 1)[1] for sheep in cluster.sheep}
    total = 0
    for line in run(["ss", "-tniOH", "state", "established"]).stdout.splitlines():
        ends = [word for word in line.split()[:5] if ":" in word]
        if any(end.rsplit(":", 1)[1] in ports for end in ends):
            total += int((re.search(r"bytes_sent:(\d+)", line) or [0, 0])[1])
    return total


def seconds_of(call):
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


@pytest.fixture
def full(shared):
    """A volume of 48 objects of 4 MiB, all written."""
    shared.create("full", f"{OBJECTS * 4}M", "--object-size", "4M")
    with Nbd(shared.sheep[0].uri("full")) as client:
        for index in range(OBJECTS):
            client.write(index * 4 * MIB, bytes([index + 1]) * (4 * MIB))
        yield client
    tags = [v["tag"] for v in shared.dog_json("vdi", "list", "full")["volumes"] if v["tag"]]
    for tag in tags:
        shared.dog("vdi", "delete", "full", "-s", tag)
    wait_for(lambda: shared.dog("vdi", "delete", "full", expect=None).returncode == 0, "delete", 20)


def test_first_write_after_a_snapshot_moves_no_object_data(shared, full):
    full.write(0, b"w" * 4096)
    begun = peer_bytes(shared)
    assert begun > OBJECTS * 4 * MIB, "the counter does not count"
    for index in range(8):
        full.write(index * 4 * MIB + 8192, b"o" * 4096)
    ordinary = peer_bytes(shared) - begun
    shared.dog("vdi", "snapshot", "full", "-s", "moves")
    begun = peer_bytes(shared)
    for index in range(8):
        full.write(index * 4 * MIB, b"f" * 4096)
    first = peer_bytes(shared) - begun
    print(f"bytes between nodes for 8 writes of 4 KiB: ordinary {ordinary}, first after a snapshot {first}")
    # The same data, and at most an index block (4096 entries of 16 bytes) per copy and write; 4 MiB objects are not moved.
    assert first < ordinary + 8 * 2 * 128 * 1024, f"{first} bytes against {ordinary}"
    for index in range(8, OBJECTS):
        assert full.read(index * 4 * MIB, 4096) == bytes([index + 1]) * 4096


def test_first_write_after_a_snapshot_is_no_slower_than_three_ordinary_ones(shared, full):
    first, ordinary = [], []
    for number in range(3):
        shared.dog("vdi", "snapshot", "full", "-s", f"slow{number}")
        full.read(0, 4096)
        for index in range(OBJECTS):
            offset = index * 4 * MIB + number * 65536
            first.append(seconds_of(lambda: full.write(offset, b"1" * 4096)))
            ordinary.append(seconds_of(lambda: full.write(offset + 16384, b"2" * 4096)))
    ratio = statistics.median(first) / statistics.median(ordinary)
    print(f"median first write {statistics.median(first) * 1e6:.0f} us, ordinary {statistics.median(ordinary) * 1e6:.0f} us, "
          f"ratio {ratio:.2f}")
    assert ratio < 3, f"{ratio:.2f} times an ordinary write"


def test_guest_writes_pause_shortly(shared, full):
    pauses = []
    for number in range(10):
        cookies = [full.begin_write((index * 7 % OBJECTS) * 4 * MIB + number * 4096, b"p" * 4096) for index in range(32)]
        answer = shared.dog_json("vdi", "snapshot", "full", "-s", f"pause{number}")
        full.finish(cookies)
        pauses.append(answer["pause_ns"] / 1e6)
    print(f"pause of guest writes in ms: median {statistics.median(pauses):.2f}, longest {max(pauses):.2f}")
    assert statistics.median(pauses) < 50


def test_snapshot_and_clone_cost_the_same_at_any_size(shared):
    medians = {}
    sizes = {"1G": 1 << 30, "10T": 10 << 40}
    for size, count in sizes.items():
        shared.create(f"size{size}", size)
        with Nbd(shared.sheep[0].uri(f"size{size}")) as client:
            for index in range(64):
                client.write(index * (count // 64) // 4096 * 4096, bytes([index + 1]) * 4096)
    seconds = {size: {"snapshot": [], "clone": []} for size in sizes}
    for number in range(7):
        for size in sizes:
            name, copy = f"size{size}", f"copy{size}{number}"
            seconds[size]["snapshot"].append(seconds_of(lambda: shared.dog("vdi", "snapshot", name, "-s", f"t{number}")))
            seconds[size]["clone"].append(seconds_of(lambda: shared.dog("vdi", "clone", name, "-s", f"t{number}", copy)))
    for size in sizes:
        medians[size] = {what: statistics.median(values) for what, values in seconds[size].items()}
        for number in range(7):
            shared.dog("vdi", "delete", f"copy{size}{number}")
            shared.dog("vdi", "delete", f"size{size}", "-s", f"t{number}")
        wait_for(lambda: shared.dog("vdi", "delete", f"size{size}", expect=None).returncode == 0, "delete", 20)
    print({size: {what: f"{value * 1e3:.1f} ms" for what, value in row.items()} for size, row in medians.items()})
    for what in ("snapshot", "clone"):
        assert medians["10T"][what] < 2 * medians["1G"][what] + 0.01
