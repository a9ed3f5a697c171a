# SPDX-License-Identifier: Apache-2.0
"""dog and sheep with a real cluster: what tests/unit/admin cannot show, because volumes, objects and several nodes are
needed for it."""
import json
import os
import random
import signal
import subprocess

import nbd

from harness.nbdio import Nbd
from harness.processes import DOG, SHEEP, run
from harness.waiting import wait_for

MIB = 1 << 20


def gone(cluster, *words):
    wait_for(lambda: cluster.dog("vdi", "delete", *words, expect=None).returncode == 0, f"delete {words}", 20, step_s=0.1)


def opens(sheep, export):
    """The URI, once the export opens there: its last owner keeps a volume for a moment."""
    def attempt():
        try:
            Nbd(sheep.uri(export)).close()
            return True
        except nbd.Error:
            return False

    wait_for(attempt, f"{export} to open on {sheep.name}", 20, step_s=0.1)
    return sheep.uri(export)


def test_every_sheep_answers_for_the_cluster(shared):
    """The same volumes, nodes and sizes, whoever is asked."""
    shared.create("same", "1G")
    lists = [shared.dog_json("vdi", "list", sheep=sheep)["volumes"] for sheep in shared.sheep]
    for volumes in lists:
        for volume in volumes:
            volume.pop("owner")
    assert lists[0] == lists[1] == lists[2]
    for sheep in shared.sheep:
        nodes = shared.dog_json("node", "list", sheep=sheep)["nodes"]
        assert [node["self"] for node in nodes].count(True) == 1
        assert [node["name"] for node in nodes if node["self"]] == [sheep.name]
        assert all(node["state"] == "active" and node["session"] for node in nodes)
        info = shared.dog_json("cluster", "info", sheep=sheep)
        assert (info["nodes"], info["nodes_live"], info["nodes_missing"], info["copies"]) == (3, 3, [], 3)
        assert info["size_bytes"] > info["free_bytes"] > 0
        for node in shared.dog_json("node", "info", sheep=sheep)["nodes"]:
            parts = ("data", "record", "pending", "unreachable", "reserve", "free")
            assert node["size_bytes"] == sum(node[part + "_bytes"] for part in parts)
            assert node["used_bytes"] == node["data_bytes"] + node["record_bytes"]
            assert (node["scrub_rate"], node["scrub_errors"], node["scrub_last"]) == (8 * MIB, 0, "")
    said = shared.dog("node", "info").stdout
    assert "Records" in said and "passes" in said
    gone(shared, "same")


def test_follows_the_owner_of_an_open_volume(shared):
    """Data, usage and operations of a volume that is open on another sheep go there by themselves."""
    shared.create("far", "16M")
    data = random.Random(1).randbytes(MIB)
    with Nbd(opens(shared.sheep[1], "far")) as client:
        client.write(0, data)
        owner = [v["owner"] for v in shared.dog_json("vdi", "list", "far")["volumes"]]
        assert owner == ["n1"]
        for sheep in shared.sheep:
            assert shared.dog("vdi", "read", "far", "0", "1M", text=False, sheep=sheep).stdout == data
        shared.dog("vdi", "write", "far", "4M", stdin=data, text=False, sheep=shared.sheep[2])
        assert client.read(4 * MIB, MIB) == data
        shared.dog("vdi", "snapshot", "far", "-s", "t", sheep=shared.sheep[0])
        listed = shared.dog_json("vdi", "list", "far", sheep=shared.sheep[0])["volumes"]
        assert all("used_bytes" in volume for volume in listed), listed
        done = shared.dog("vdi", "delete", "far", expect=1)
        assert "far" in done.stderr
    gone(shared, "far")
    gone(shared, "far", "-s", "t")


def test_used_and_shared(shared):
    shared.create("use", "64M")
    with Nbd(shared.sheep[0].uri("use")) as client:
        for index in range(5):
            client.write(index * 4 * MIB, b"x" * 4096)

    def figures():
        # The volume is closed a moment after its last client left; then all is linked.
        return {(v["name"], v["tag"]): (v["own_objects"], v["shared_objects"])
                for v in shared.dog_json("vdi", "list")["volumes"] if "own_objects" in v and v["name"] in ("use", "child")}

    wait_for(lambda: figures().get(("use", "")) == (5, 0), "five own objects", 20, step_s=0.1)
    shared.dog("vdi", "snapshot", "use", "-s", "t")
    shared.dog("vdi", "clone", "use", "-s", "t", "child")
    assert figures() == {("use", ""): (0, 5), ("use", "t"): (5, 0), ("child", ""): (0, 5)}
    with Nbd(shared.sheep[0].uri("child")) as client:
        client.write(0, b"y" * 4096)
    wait_for(lambda: figures()[("child", "")] == (1, 4), "one own object of the clone", 20, step_s=0.1)
    raw = [line.split(" ") for line in shared.dog("vdi", "list", "-r").stdout.splitlines()]
    kinds = {(fields[0], fields[1], fields[9]) for fields in raw if fields[1] in ("use", "child")}
    assert kinds == {("=", "use", ""), ("s", "use", "t"), ("c", "child", "")}
    tree = shared.dog("vdi", "tree").stdout.splitlines()
    at = next(i for i, line in enumerate(tree) if line.startswith("use@t (snapshot"))
    below = tree[at + 1:at + 3]
    assert all(any(f" {name} (volume" in line for line in below) for name in ("use", "child")), tree
    for words in (["child"], ["use"], ["use", "-s", "t"]):
        gone(shared, *words)


def test_delete_can_wait_for_the_space(shared):
    before = wait_for(lambda: shared.check() and shared.usage(), "rest")
    shared.create("big", "64M")
    shared.dog("vdi", "write", "big", stdin=random.Random(2).randbytes(32 * MIB), text=False)
    assert shared.usage()[0]["data_bytes"] > before[0]["data_bytes"]
    wait_for(lambda: shared.dog("vdi", "delete", "big", "--wait", expect=None).returncode == 0, "delete", 20, step_s=0.1)
    for was, now in zip(before, shared.usage()):
        assert now["objects"] <= was["objects"] and now["data_bytes"] <= was["data_bytes"]


def test_sparse_images_stay_sparse(shared, tmp_path):
    """Zeros of the input take no space, and holes of a volume become holes of the output."""
    image = tmp_path / "image"
    with open(image, "wb") as f:
        f.truncate(256 * MIB)
        f.seek(100 * MIB)
        f.write(b"data" * 1024)
    shared.create("sparse", "256M")
    before = shared.usage()[0]["data_bytes"]
    with open(image, "rb") as source:
        subprocess.run([DOG, "-s", "unix:" + shared.sheep[0].admin_unix, "vdi", "write", "sparse"], stdin=source, check=True,
                       timeout=120)
    assert shared.usage()[0]["data_bytes"] - before < 8 * MIB
    back = tmp_path / "back"
    with open(back, "wb") as target:
        subprocess.run([DOG, "-s", "unix:" + shared.sheep[0].admin_unix, "vdi", "read", "sparse"], stdout=target, check=True,
                       timeout=120)
    assert back.stat().st_size == 256 * MIB and back.stat().st_blocks * 512 < 16 * MIB
    run(["cmp", image, back])
    gone(shared, "sparse")


def test_a_name_belongs_to_one_node(make_cluster):
    cluster = make_cluster(2, size="128M")
    cluster.format_stores()
    cluster.sheep[1].name = cluster.sheep[0].name
    cluster.sheep[0].start()
    done = run([SHEEP, "run", cluster.sheep[1].store, "--cluster", cluster.spec, "--name", cluster.sheep[0].name, "--zone",
                "z", "--admin", "127.0.0.1:0", "--nbd", "none"], expect=1)
    assert "name" in done.stderr
    cluster.sheep[0].stop()


def test_files_come_and_go(make_cluster):
    """The pid and ports files are there while the node serves; a second signal ends it at once."""
    cluster = make_cluster(1, size="128M")
    sheep = cluster.sheep[0]
    pidfile = os.path.join(cluster.folder, "pid")
    sheep.options = ["--pidfile", pidfile]
    cluster.up()
    with open(pidfile, encoding="ascii") as f:
        assert int(f.read()) == sheep.pid
    with open(sheep.ports_file, encoding="utf-8") as f:
        ports = json.load(f)
    assert ports["node"] == sheep.name and ports["admin"].startswith("tcp:") and len(ports["nbd"]) == 2
    sheep.stop()
    assert not os.path.exists(pidfile) and not os.path.exists(sheep.ports_file)


def test_ends_in_order_without_a_formatted_cluster(make_cluster):
    cluster = make_cluster(1, size="128M")
    cluster.format_stores()
    cluster.start_all()
    assert "not formatted" in cluster.sheep[0].log()
    cluster.sheep[0].process.send_signal(signal.SIGINT)
    assert cluster.sheep[0].process.wait(timeout=30) == 0


def test_waits_for_the_nodes_it_is_told_to(make_cluster):
    """`cluster format --wait-nodes 2` is asked while one runs, and is done when the second has come."""
    cluster = make_cluster(2, size="128M")
    cluster.format_stores()
    cluster.sheep[0].start()
    with subprocess.Popen([DOG, "-s", "unix:" + cluster.sheep[0].admin_unix, "cluster", "format", "--copies", "2",
                           "--wait-nodes", "2"], stdout=subprocess.PIPE, text=True) as waiting:
        assert cluster.dog_json("cluster", "info")["formatted"] is False
        assert waiting.poll() is None
        cluster.sheep[1].start()
        out, _ = waiting.communicate(timeout=30)
        assert waiting.returncode == 0 and "of 2 nodes" in out
    cluster.wait_serving()
    cluster.stop_all()


def test_ends_while_writes_wait(cluster):
    """A node whose requests wait for missing ones (fewer than two copies) ends all the same, and nothing answered is lost."""
    old, new = random.Random(3).randbytes(8 * MIB), random.Random(4).randbytes(8 * MIB)
    cluster.create("cut", "64M")
    cluster.dog("vdi", "write", "cut", stdin=old, text=False)
    cluster.sheep[1].kill9()
    cluster.sheep[2].kill9()
    with subprocess.Popen([DOG, "-s", "unix:" + cluster.sheep[0].admin_unix, "vdi", "write", "cut"],
                          stdin=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        writer.stdin.write(new[:MIB])
        writer.stdin.flush()
        wait_for(lambda: "n2" in cluster.dog_json("cluster", "info")["waiting"], "a write to wait", 20, step_s=0.1)
        cluster.sheep[0].stop()
        writer.stdin.close()
        assert b"dog:" in writer.stderr.read()
        assert writer.wait(timeout=30) in (1, 2)
    cluster.start_all()
    cluster.wait_serving()
    content = cluster.dog("vdi", "read", "cut", "0", "8M", text=False, sheep=cluster.sheep[1]).stdout
    assert content[MIB:] == old[MIB:]
    for at in range(0, MIB, 4096):
        assert content[at:at + 4096] in (old[at:at + 4096], new[at:at + 4096])
    cluster.check()
