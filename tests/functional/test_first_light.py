# SPDX-License-Identifier: Apache-2.0
"""The way of a user through the system: create, write, snapshot, clone, roll back, delete, and the space is back."""
import json
import random

import nbd
import pytest

from harness.nbdio import Nbd
from harness.waiting import measure_for, wait_for
from harness.processes import cpu_seconds, resident_bytes

MIB = 1 << 20


def fill(client, size, seed):
    """Writes all of a volume with content that the seed gives; returns it."""
    data = random.Random(seed).randbytes(size)
    for offset in range(0, size, 4 * MIB):
        client.write(offset, data[offset:offset + 4 * MIB])
    return data


def read_all(client, size):
    return b"".join(client.read(offset, min(4 * MIB, size - offset)) for offset in range(0, size, 4 * MIB))


def test_data_written_on_one_node_is_read_through_another(shared):
    shared.create("a", "16M")
    with Nbd(shared.sheep[0].uri("a")) as client:
        data = fill(client, 16 * MIB, 1)
        assert read_all(client, 16 * MIB) == data
    for sheep in shared.sheep[1:]:
        with Nbd(wait_open(sheep, "a")) as client:
            assert read_all(client, 16 * MIB) == data
    shared.dog("vdi", "delete", "a")


def wait_open(sheep, export):
    """The URI, as soon as the export opens there (another gateway may just be closing it)."""
    def attempt():
        try:
            Nbd(sheep.uri(export)).close()
            return True
        except nbd.Error:
            return False

    wait_for(attempt, f"{export} to open on {sheep.name}", 20, step_s=0.1)
    return sheep.uri(export)


def test_snapshot_clone_rollback_have_the_right_content(shared):
    shared.create("base", "16M")
    with Nbd(shared.sheep[0].uri("base")) as client:
        first = bytearray(fill(client, 16 * MIB, 2))
        shared.dog("vdi", "snapshot", "base", "-s", "one")
        second = bytearray(first)
        for offset in range(0, 16 * MIB, 3 * MIB):
            second[offset:offset + 5000] = b"\x5a" * 5000
            client.write(offset, b"\x5a" * 5000)
        shared.dog("vdi", "snapshot", "-s", "two", "base")
        client.trim(4 * MIB, 8 * MIB)
        third = bytearray(second)
        third[4 * MIB:12 * MIB] = bytes(8 * MIB)
        assert read_all(client, 16 * MIB) == third
    shared.dog("vdi", "clone", "base", "-s", "one", "child")
    shared.dog("vdi", "clone", "-s", "two", "base", "other")
    for export, want in (("base@one", first), ("base@two", second), ("child", first), ("other", second)):
        with Nbd(wait_open(shared.sheep[1], export)) as client:
            assert read_all(client, 16 * MIB) == want, export
    with Nbd(wait_open(shared.sheep[1], "child")) as client:
        client.write(MIB, b"child" * 1000)
    with Nbd(shared.sheep[2].uri("base@one")) as client:
        assert read_all(client, 16 * MIB) == first
    rollback(shared, "base", "one")
    with Nbd(wait_open(shared.sheep[2], "base")) as client:
        assert read_all(client, 16 * MIB) == first
    with Nbd(shared.sheep[2].uri("base@two")) as client:
        assert read_all(client, 16 * MIB) == second
    for words in (["base", "-s", "two"], ["base", "-s", "one"], ["other"], ["child"], ["base"]):
        delete(shared, *words)


def rollback(cluster, name, tag):
    wait_for(lambda: cluster.dog("vdi", "rollback", name, "-s", tag, expect=None).returncode == 0,
             f"rollback of {name}", 20, step_s=0.1)


def delete(cluster, *words):
    wait_for(lambda: cluster.dog("vdi", "delete", *words, expect=None).returncode == 0,
             f"vdi delete {' '.join(words)}", 20, step_s=0.1)


def test_snapshots_are_read_only_exports(shared):
    shared.create("ro", "1M")
    shared.dog("vdi", "snapshot", "ro", "-s", "s")
    with Nbd(shared.sheep[0].uri("ro@s")) as client:
        assert client.handle.is_read_only()
        with pytest.raises(nbd.Error):
            client.write(0, bytes(4096))
    delete(shared, "ro", "-s", "s")
    delete(shared, "ro")


def test_deleting_everything_gives_the_space_back(shared):
    shared.check()
    before = shared.usage()
    for name in ("p", "q"):
        shared.create(name, "32M")
        with Nbd(shared.sheep[0].uri(name)) as client:
            fill(client, 32 * MIB, name)
            shared.dog("vdi", "snapshot", name, "-s", "s")
            fill(client, 8 * MIB, name + "again")
    shared.dog("vdi", "clone", "p", "-s", "s", "r")
    for words in (["p"], ["q", "-s", "s"], ["p", "-s", "s"], ["r"], ["q"]):
        delete(shared, *words)
    shared.wait_empty(before)
    shared.check()


def test_discard_of_everything_gives_the_space_back(shared):
    shared.check()
    before = shared.usage()
    shared.create("d", "32M")
    with Nbd(shared.sheep[0].uri("d")) as client:
        fill(client, 32 * MIB, 3)
        wait_for(lambda: shared.usage()[0]["data_bytes"] > before[0]["data_bytes"] + 20 * MIB, "the data to count", 10)
        client.trim(0, 32 * MIB)
        wait_for(lambda: shared.usage()[0]["data_bytes"] <= before[0]["data_bytes"] + MIB, "the data to be gone", 30)
        assert read_all(client, 32 * MIB) == bytes(32 * MIB)
    delete(shared, "d")


def test_resize_grows_with_zeros_and_shrinks_for_good(shared):
    shared.create("z", "8M")
    with Nbd(shared.sheep[0].uri("z")) as client:
        data = fill(client, 8 * MIB, 4)
    wait_for(lambda: shared.dog("vdi", "resize", "z", "3M", expect=None).returncode == 0, "resize", 20)
    shared.dog("vdi", "resize", "z", "12M")
    with Nbd(wait_open(shared.sheep[0], "z")) as client:
        assert client.size == 12 * MIB
        assert read_all(client, 12 * MIB) == data[:3 * MIB] + bytes(9 * MIB)
    delete(shared, "z")


def test_dog_reads_and_writes_volumes(shared):
    data = random.Random(5).randbytes(5 * MIB + 77)
    shared.create("rw", "16M")
    shared.dog("vdi", "write", "rw", "1000", str(len(data)), stdin=data, text=False)
    assert shared.dog("vdi", "read", "rw", "1000", str(len(data)), text=False).stdout == data
    shared.dog("vdi", "snapshot", "rw", "-s", "s")
    shared.dog("vdi", "discard", "rw", "0", "16M")
    assert shared.dog("vdi", "read", "rw", "0", "16M", text=False).stdout == bytes(16 * MIB)
    assert shared.dog("vdi", "read", "rw", "-s", "s", "1000", str(len(data)), text=False).stdout == data
    delete(shared, "rw", "-s", "s")
    delete(shared, "rw")


def test_lists_show_volumes_snapshots_and_nodes(shared):
    shared.create("list1", "1G")
    shared.dog("vdi", "snapshot", "list1", "-s", "tagged")
    shared.dog("vdi", "clone", "list1", "-s", "tagged", "list2")
    table = shared.dog("vdi", "list").stdout
    assert "list1" in table and "tagged" in table and "list2" in table
    raw = [line.split(" ") for line in shared.dog("-r", "vdi", "list").stdout.splitlines()]
    assert ["=", "list1"] in [fields[:2] for fields in raw] and ["s", "list1"] in [fields[:2] for fields in raw]
    assert {"name": "list2"}.items() <= [v for v in shared.dog_json("vdi", "list")["volumes"]
                                         if v["name"] == "list2"][0].items()
    assert "list2" in shared.dog("vdi", "tree").stdout
    nodes = shared.dog_json("node", "list")["nodes"]
    assert sorted(node["name"] for node in nodes) == ["n0", "n1", "n2"]
    assert len({node["zone"] for node in nodes}) == 3
    assert shared.dog("-r", "cluster", "info").stdout.startswith("Cluster status: running")
    for words in (["list2"], ["list1", "-s", "tagged"], ["list1"]):
        delete(shared, *words)


def test_nbd_lists_exports_and_maps_data(shared):
    shared.create("mapped", "64M")
    with Nbd(shared.sheep[0].uri("mapped")) as client:
        client.write(20 * MIB, b"m" * MIB)
        runs = client.runs(0, 64 * MIB)
        data, at = 0, 0
        for length, flags in runs:
            if flags == 0:
                assert at >= 16 * MIB and at + length <= 24 * MIB
                data += length
            at += length
        assert MIB <= data <= 4 * MIB
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(shared.sheep[1].uri("mapped"))
    names = []
    handle.opt_list(lambda name, text: names.append(name) or 0)
    handle.opt_abort()
    assert "mapped" in names
    delete(shared, "mapped")


def test_idle_daemons_use_no_cpu_and_little_memory(cluster):
    """The waiting is the measurement: over five idle seconds, less than 0.5 % of a CPU (a session must be kept alive);
    and resident memory below 64 MiB plus the cache (32 MiB)."""
    cluster.create("idle", "64M")
    with Nbd(cluster.sheep[0].uri("idle")) as client:
        fill(client, 64 * MIB, 6)
        before = [cpu_seconds(sheep.pid) for sheep in cluster.sheep]
        measure_for(5)
        used = [cpu_seconds(sheep.pid) - b for sheep, b in zip(cluster.sheep, before)]
    resident = [resident_bytes(sheep.pid) for sheep in cluster.sheep]
    print(json.dumps({"cpu_seconds_in_5": used, "resident_bytes": resident}))
    assert max(used) <= 0.025 + 0.01, f"CPU seconds in five idle seconds: {used}"
    assert max(resident) < (64 + 32) * MIB, f"resident bytes: {resident}"


def test_orderly_restart_keeps_everything(cluster):
    cluster.create("keep", "16M")
    with Nbd(cluster.sheep[0].uri("keep")) as client:
        data = fill(client, 16 * MIB, 7)
    cluster.dog("vdi", "snapshot", "keep", "-s", "s")
    cluster.stop_all()
    for sheep in cluster.sheep:
        sheep.check_store("--data")
    cluster.start_all()
    cluster.wait_serving()
    for export in ("keep", "keep@s"):
        with Nbd(cluster.sheep[1].uri(export)) as client:
            assert read_all(client, 16 * MIB) == data
    cluster.check()
    cluster.stop_all()


def test_writes_go_on_without_a_node_wait_below_min_copies_and_all_comes_back(cluster):
    """R1, R4, W2: one of three may be away; with two away writes wait and say why; none is lost or fails."""
    cluster.create("away", "64M")
    with Nbd(cluster.sheep[0].uri("away"), limit_s=120) as client:
        client.write(0, b"before" * 1000)
        cluster.sheep[2].stop()
        client.finish([client.begin_write(offset * MIB, bytes([offset + 1]) * MIB) for offset in range(32)])
        cluster.sheep[1].stop()
        cookies = [client.begin_write(offset * MIB, bytes([offset + 1]) * MIB) for offset in range(32, 64)]

        def told():
            client.turn()
            return cluster.dog_json("cluster", "info")["waiting"]

        text = wait_for(lambda: "copies" in told() and told(), "dog to say what is waited for", 30, step_s=0.1)
        assert "only 1 of the 2 copies" in text and "n1" in text
        assert not all(client.done(cookie) for cookie in cookies), "every write was answered by one node alone"
        cluster.sheep[1].start()
        client.finish(cookies)
        cluster.sheep[2].start()
        for offset in range(64):
            assert client.read(offset * MIB, MIB) == bytes([offset + 1]) * MIB
        cluster.wait_serving()
    cluster.check()
    # What n2 has missed it has now.
    used = wait_for(lambda: len({u["data_bytes"] for u in cluster.usage()}) == 1 and cluster.usage(), "equal copies", 60)
    assert used[2]["data_bytes"] >= 64 * MIB


@pytest.mark.parametrize("signal_kind", ["kill9", "stop"])
def test_one_gateway_restarts_and_the_volume_comes_back(cluster, signal_kind):
    cluster.create("gw", "16M")
    client = Nbd(cluster.sheep[0].uri("gw"))
    data = fill(client, 16 * MIB, 8)
    getattr(cluster.sheep[0], signal_kind)()
    client.drop()
    cluster.sheep[0].start()
    cluster.wait_serving()
    for sheep in cluster.sheep:
        with Nbd(wait_open(sheep, "gw")) as client:
            assert read_all(client, 16 * MIB) == data
    cluster.check()
