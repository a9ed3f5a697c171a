# SPDX-License-Identifier: Apache-2.0
"""dog against the real admin server over volumes in memory: every command, its outputs and exit codes."""
import json
import os
import random
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from admin_server import Server  # noqa: E402  pylint: disable=wrong-import-position

MIB = 1 << 20


@pytest.fixture(name="server")
def server_fixture(tmp_path):
    server = Server(str(tmp_path))
    yield server
    server.stop()


@pytest.fixture(name="formatted")
def formatted_fixture(server):
    server.dog("cluster", "format", "--copies", "1", "--wait-nodes", "1", "--name", "lab")
    return server


def test_before_format(server):
    assert server.dog("cluster", "info").stdout.startswith(b"Cluster status: Waiting for cluster to be formatted")
    assert server.json("cluster", "info")["formatted"] is False
    for words in (["node", "list"], ["node", "info"], ["cluster", "check"]):
        assert b"dog cluster format" in server.dog(*words, expect=1).stderr


def test_format_says_what_is_wrong(server):
    assert b"zone" in server.dog("cluster", "format", "--copies", "3", expect=4).stderr
    for words in (["--copies", "0"], ["--copies", "99"], ["--copies", "1", "--min-copies", "2"],
                  ["--copies", "1", "--object-size", "5M"], ["--copies", "1", "--name", "x" * 64]):
        assert server.dog("cluster", "format", *words, expect=1).stderr
    assert server.dog("cluster", "format", expect=64).stderr
    assert server.dog("cluster", "format", "--copies", "many", expect=64).stderr
    server.dog("cluster", "format", "-c", "1")
    assert b"formatted already" in server.dog("cluster", "format", "--copies", "1", expect=3).stderr


def test_cluster_info(formatted):
    text = formatted.dog("cluster", "info").stdout.decode()
    assert text.splitlines()[0] == "Cluster status: running, auto-recovery enabled"
    for part in ("lab", "1 of 1 live", "writes wait for node b", "100 MiB", "Backlog:        none"):
        assert part in text
    info = formatted.json("cluster", "info")
    assert info["copies"] == 1 and info["nodes_live"] == 1 and info["waiting"] == "writes wait for node b"
    assert info["backlog"] == {"trash": 0, "pending": 0, "open": 1, "unclean": 0, "dying": 0}
    assert "ok" not in info


def test_cluster_check_finds(formatted):
    text = formatted.dog("cluster", "check", expect=1).stdout.decode()
    assert text.splitlines()[0] == "object 1.0.7@3 is stored, but nothing refers to it"
    assert text.splitlines()[-1] == "1 errors found"
    report = formatted.json("cluster", "check", expect=1)
    assert report["finding_count"] == 1 and report["at_rest"] is True


def test_nodes(formatted):
    lines = formatted.dog("node", "list").stdout.decode().splitlines()
    assert lines[0].split() == ["Id", "Host:Port", "Name", "Zone", "State", "Session"]
    assert lines[1].split()[2:5] == ["n0", "z0", "active"]
    raw = formatted.dog("node", "list", "-r").stdout.decode().split()
    assert len(raw) == 4 and raw[3] == "z0"
    raw = formatted.dog("-r", "node", "info").stdout.decode().splitlines()
    assert raw[0].split()[1:] == [str(100 * MIB), str(25 * MIB), str(75 * MIB), "25%"]
    assert raw[1].split()[:5] == ["Total", str(100 * MIB), str(25 * MIB), str(75 * MIB), "25%"]
    node = formatted.json("node", "info")["nodes"][0]
    assert node["objects"] == 7 and node["reachable"] and node["self"]


def test_list(formatted):
    volumes = formatted.json("vdi", "list")["volumes"]
    assert {(v["name"], v["tag"]) for v in volumes} >= {("disk", ""), ("disk", "first"), ("odd", "")}
    assert all(v["own_objects"] == 3 for v in volumes)
    table = formatted.dog("vdi", "list").stdout.decode()
    assert "Shared" in table.splitlines()[0] and "first" in table
    raw = [line.split(" ") for line in formatted.dog("-r", "vdi", "list").stdout.decode().splitlines()]
    assert {fields[0] for fields in raw} == {"=", "s"} and {len(fields) for fields in raw} == {11}
    assert {v["name"] for v in formatted.json("vdi", "list", "odd")["volumes"]} == {"odd"}
    assert formatted.dog("vdi", "list", "nobody", expect=5).stderr
    assert formatted.dog("vdi", "list", "nobody", "-r").stdout == b""
    assert "disk@first" in formatted.dog("vdi", "tree").stdout.decode()


def test_long_list(formatted):
    names = [f"volume-{number:04}" for number in range(700)]
    for name in names[:3]:
        formatted.dog("vdi", "create", name, "1G")
    # More than one frame of the list: made over one connection, since starting dog 700 times is slow.
    from admin_server import Raw
    with Raw(formatted) as raw:
        for name in names[3:]:
            assert raw.ask(op="vdi.create", name=name, size=1 << 30)["ok"]
    assert {v["name"] for v in formatted.json("vdi", "list")["volumes"]} >= set(names)


def test_both_orders_and_codes(formatted):
    assert formatted.json("vdi", "snapshot", "-s", "t1", "disk") == {"pause_ns": 12345}
    formatted.dog("vdi", "snapshot", "disk", "--tag=t2")
    formatted.dog("vdi", "clone", "-s", "t1", "disk", "child")
    formatted.dog("vdi", "clone", "disk", "other", "-st1")
    formatted.dog("vdi", "create", "new", "10G")
    assert formatted.dog("vdi", "create", "new", "10G", expect=3).stderr == b"dog: volume new exists\n"
    assert formatted.dog("vdi", "delete", "nobody", expect=5).stderr == b"dog: no volume nobody\n"
    assert formatted.dog("vdi", "delete", "-s", "x", "nobody", expect=5).stderr == b"dog: no snapshot nobody@x\n"
    assert formatted.dog("vdi", "rollback", "-s", "t1", "disk", expect=4).stderr == b"dog: no space left\n"
    failure = json.loads(formatted.dog("--json", "vdi", "delete", "nobody", expect=5).stdout)
    assert failure == {"errno": "ENOENT", "error": "no volume nobody"}
    for words in (["vdi", "snapshot", "disk"], ["vdi", "clone", "disk", "-s", "t"], ["vdi", "delete"],
                  ["vdi", "delete", "a", "b"], ["vdi", "create", "x", "huge"], ["vdi", "delete", b"\xff"],
                  ["vdi", "delete", "disk", "-s", b"\xff"]):
        formatted.dog(*words, expect=64)


def test_read_and_write(formatted):
    data = random.Random(1).randbytes(5 * MIB + 77)
    formatted.dog("vdi", "write", "disk", "1000", stdin=data)
    assert formatted.dog("vdi", "read", "disk", "1000", str(len(data))).stdout == data
    whole = formatted.dog("vdi", "read", "disk").stdout
    assert len(whole) == 64 * MIB and whole[1000:1000 + len(data)] == data and not any(whole[6 * MIB:])
    # A length cuts the input; zeros in the middle of it give space back but read as what they are.
    formatted.dog("vdi", "write", "disk", "0", "2M", stdin=data)
    assert formatted.dog("vdi", "read", "disk", "0", "3M").stdout[2 * MIB:] == whole[2 * MIB:3 * MIB]
    formatted.dog("vdi", "write", "disk", stdin=data[:MIB] + bytes(2 * MIB) + data[:MIB])
    assert formatted.dog("vdi", "read", "disk", "0", "4M").stdout == data[:MIB] + bytes(2 * MIB) + data[:MIB]
    assert formatted.json("vdi", "write", "odd", stdin=data[:1000001]) == {"written": 1000001}
    assert formatted.dog("vdi", "read", "odd").stdout == data[:1000001]
    formatted.dog("vdi", "discard", "disk", "0", "64M")
    assert not any(formatted.dog("vdi", "read", "disk").stdout)


def test_holes_become_holes(formatted, tmp_path):
    formatted.dog("vdi", "write", "disk", "10M", stdin=b"x" * 4096)
    target = tmp_path / "out"
    with open(target, "wb") as out:
        import subprocess
        from admin_server import DOG
        subprocess.run([DOG, "-s", "unix:" + formatted.socket, "vdi", "read", "disk"], stdout=out, check=True)
    content = target.read_bytes()
    assert len(content) == 64 * MIB and content[10 * MIB:10 * MIB + 4096] == b"x" * 4096
    assert target.stat().st_blocks * 512 < 16 * MIB


def test_ranges_are_checked(formatted):
    for words in (["read", "odd", "1000002"], ["read", "odd", "0", "1000002"], ["discard", "odd", "1M", "1"],
                  ["write", "odd", "1000002"]):
        assert b"odd" in formatted.dog("vdi", *words, expect=1).stderr
    assert formatted.dog("vdi", "read", "odd", "1000001").stdout == b""
    # More input than room: an error, not silence; and the data that fits was written.
    assert b"resize" in formatted.dog("vdi", "write", "odd", stdin=b"y" * (2 * MIB), expect=1).stderr
    assert b"resize" in formatted.dog("vdi", "write", "odd", stdin=b"y" * (80 * MIB), expect=1).stderr


def test_failures_in_the_middle(formatted):
    done = formatted.dog("vdi", "read", "broken", expect=1)
    assert b"broken" in done.stderr and len(done.stdout) <= 2 * MIB
    assert b"broken" in formatted.dog("vdi", "write", "broken", stdin=b"z" * (3 * MIB), expect=1).stderr
    assert formatted.dog("vdi", "write", "broken", "3M", stdin=b"z" * MIB, expect=4).stderr
    assert formatted.dog("vdi", "read", "disk@nobody", expect=5).stderr


def test_follows_redirects(tmp_path):
    owner = Server(str(tmp_path), name="owner")
    other = Server(str(tmp_path), redirect="unix:" + owner.socket, name="other")
    circular = Server(str(tmp_path), redirect="unix:" + str(tmp_path / "circular.sock"), name="circular")
    other.dog("vdi", "resize", "moved", "2M")
    assert [v["own_objects"] for v in other.json("vdi", "list", "moved")["volumes"]] == [3]
    assert b"another node" in circular.dog("vdi", "resize", "moved", "2M", expect=1).stderr
    for server in (owner, other, circular):
        server.stop()


def test_addresses(formatted, tmp_path):
    env = dict(os.environ, KELPIE_ADMIN="unix:" + formatted.socket)
    formatted.dog("cluster", "info", env=env, address=False)
    env["KELPIE_ADMIN"] = f"unix:{tmp_path}/nothing"
    assert b"nothing" in formatted.dog("cluster", "info", env=env, address=False, expect=2).stderr
    formatted.dog("cluster", "info", env=env)
    assert formatted.dog("-a", "localhost", "cluster", "info", expect=64).stderr
    # A server that is none.
    import socket
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        import threading
        def speak():
            peer, _ = listener.accept()
            peer.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
            peer.recv(100)
            peer.close()
        thread = threading.Thread(target=speak)
        thread.start()
        done = formatted.dog("-p", str(port), "cluster", "info", address=False, expect=1)
        assert b"not the admin address of a sheep" in done.stderr
        thread.join()


def test_help_teaches(server):
    assert b"First" in server.dog("--help").stdout or b"first steps" in server.dog("--help").stdout
    for noun, verb in (("cluster", "format"), ("vdi", "snapshot"), ("node", "info"), ("vdi", "write")):
        assert b"Examples:" in server.dog(noun, verb, "--help").stdout
    assert b"dog vdi list" in server.dog("vdi", "lst", expect=64).stderr
    assert b"dog cluster" in server.dog("clutser", "info", expect=64).stderr
