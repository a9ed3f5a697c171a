# SPDX-License-Identifier: Apache-2.0
"""Clients of the admin server that do not keep to the protocol: only their own connection ends."""
import json
import os
import random
import struct
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
from admin_server import DATA, JSON, MAGIC, ZEROS, Raw, Server, frame  # noqa: E402  pylint: disable=wrong-import-position
from harness.waiting import wait_for  # noqa: E402  pylint: disable=wrong-import-position

MIB = 1 << 20


@pytest.fixture(name="server")
def server_fixture(tmp_path):
    server = Server(str(tmp_path))
    with Raw(server) as bystander:
        yield server
        assert bystander.ask(op="vdi.list")["items"], "another connection suffered"
        assert bystander.receive()["ok"]
    server.stop()


def test_foreign_greetings(server):
    for magic in (b"GET / HTTP/1.1\r\n\r\n", bytes(48), b"\xff" * 64, b"KELPADM"[:7] + b"\0"):
        with Raw(server, magic) as raw:
            if magic.startswith(b"KELPADM"):
                assert raw.read(8) == MAGIC  # another version learns ours
            assert raw.ended()
    with Raw(server, b"KEL"):
        pass


def test_unknown_operations(server):
    with Raw(server) as raw:
        answer = raw.ask(op="cluster.explode")
        assert answer["ok"] is False and answer["errno"] == "EPROTO" and "cluster.explode" in answer["text"]
        for request in ({}, {"op": 7}, {"op": None}, {"op": ["x"]}):
            assert raw.ask(**request)["errno"] == "EINVAL"
        assert raw.ask(op="vdi.usage", name="disk", object_size=1)["ok"]


def test_wrong_arguments(server):
    with Raw(server) as raw:
        for request in ({"op": "vdi.create"}, {"op": "vdi.create", "name": "x"}, {"op": "vdi.create", "name": 5, "size": 1},
                        {"op": "vdi.create", "name": "x", "size": "1G"}, {"op": "vdi.create", "name": "x", "size": -1},
                        {"op": "vdi.create", "name": "x", "size": 1.5}, {"op": "vdi.create", "name": "x", "size": True},
                        {"op": "vdi.create", "name": "x", "size": 1, "object_size": 1 << 40},
                        {"op": "vdi.read", "name": "disk", "offset": -1}, {"op": "vdi.read", "name": "disk", "length": []},
                        {"op": "vdi.snapshot", "name": "disk"}, {"op": "vdi.clone", "name": "disk", "tag": "first"},
                        {"op": "cluster.format"}, {"op": "cluster.format", "copies": 1 << 60}):
            answer = raw.ask(**request)
            assert answer["ok"] is False and answer["errno"] == "EINVAL" and answer["text"], request


@pytest.mark.parametrize("payload", [b"{", b"[]", b"null", b"\xff\xfe", b"{\"op\":\"a\",\"op\":\"b\"}", b"{\"op\":\"\\u0000\"}",
                                     b"[" * 60000, b"{\"a\":" * 10000, b"{\"op\":" + b"[" * 17 + b"]" * 17 + b"}"],
                         ids=range(9))
def test_malformed_json(server, payload):
    with Raw(server) as raw:
        raw.send(frame(payload))
        assert raw.ended()


def test_malformed_frames(server):
    good = json.dumps({"op": "node.list"}).encode()
    for data in (frame(good, crc=1), frame(good, kind=0), frame(good, kind=9), frame(good, kind=DATA), frame(b"", kind=JSON),
                 frame(b"12345678", kind=ZEROS), struct.pack("<III", 65537, JSON, 0), struct.pack("<III", 0xffffffff, JSON, 0),
                 struct.pack("<III", 0xffffffff, DATA, 0), struct.pack("<III", 7, ZEROS, 0)):
        with Raw(server) as raw:
            raw.send(data)
            assert raw.ended()


def test_stops_half_way(server):
    whole = frame(json.dumps({"op": "vdi.list"}).encode())
    for length in range(len(whole)):
        with Raw(server) as raw:
            raw.send(whole[:length])


def test_leaves_while_reading(server):
    for _ in range(10):
        with Raw(server) as raw:
            raw.send(frame(json.dumps({"op": "vdi.write", "name": "disk"}).encode()))
            assert raw.receive()["ready"]
            raw.send(frame(b"x" * MIB, DATA))
            raw.send(frame(b"x" * MIB, DATA)[:1000])
        with Raw(server) as raw:
            raw.send(frame(json.dumps({"op": "vdi.read", "name": "disk"}).encode()))
            assert raw.receive()["ready"]


def test_wrong_frames_while_writing(server):
    for data in (frame(b"{}", JSON), frame(struct.pack("<Q", 1 << 63), ZEROS), frame(struct.pack("<Q", 65 * MIB), ZEROS),
                 frame(b"x", DATA, crc=3)):
        with Raw(server) as raw:
            raw.send(frame(json.dumps({"op": "vdi.write", "name": "disk"}).encode()))
            assert raw.receive()["ready"]
            raw.send(data)
            answer = raw.receive()
            assert answer["ok"] is False
            assert raw.ended()


def test_too_many_connections(server):
    many = [Raw(server) for _ in range(7)]  # with the bystander all that are allowed
    with pytest.raises((EOFError, ConnectionResetError, BrokenPipeError)):
        Raw(server)
    assert "refused" in server.log_text()
    for raw in many:
        raw.socket.close()


def test_noise(server):
    random.seed(2)
    for _ in range(200):
        with Raw(server) as raw:
            data = bytearray(frame(json.dumps({"op": "vdi.read", "name": "disk", "length": 4096}).encode()))
            for _ in range(random.randrange(1, 4)):
                data[random.randrange(len(data))] = random.randrange(256)
            raw.send(bytes(data))


def test_clients_that_stand_still(tmp_path):
    """Eight writers that send nothing do not keep anyone from anything but a ninth transfer on this sheep."""
    server = Server(str(tmp_path), name="still", connections=20)
    still = [Raw(server) for _ in range(8)]
    for raw in still:
        raw.send(frame(json.dumps({"op": "vdi.write", "name": "disk"}).encode()))
        assert raw.receive()["ready"]
    with Raw(server) as raw:
        assert raw.ask(op="vdi.read", name="disk", length=4096)["ready"]
        assert raw.receive()["errno"] == "EAGAIN"
        assert raw.ask(op="vdi.usage", name="disk", object_size=1)["ok"]
    still.pop().socket.close()

    def reads():
        with Raw(server) as raw:
            assert raw.ask(op="vdi.read", name="disk", length=4096)["ready"]
            first = raw.receive()
            return isinstance(first, tuple) and first[0] in (DATA, ZEROS)

    wait_for(reads, "the place of the one that left", 10)
    for raw in still:
        raw.socket.close()
    server.stop()
