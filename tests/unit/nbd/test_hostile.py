# SPDX-License-Identifier: Apache-2.0
"""A raw socket that breaks the rules: only its own connection may suffer."""
import os
import random
import socket
import struct
import time

import pytest

from test_server import MIB, Server, nbd

OPTION = b"IHAVEOPT"


class Raw:
    def __init__(self, server, flags=3):
        self.s = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        assert self.exact(18) == b"NBDMAGICIHAVEOPT\0\3"
        if flags is not None:
            self.s.sendall(struct.pack(">I", flags))

    def exact(self, length):
        data = b""
        while len(data) < length:
            part = self.s.recv(length - len(data))
            if not part:
                raise EOFError(data)
            data += part
        return data

    def send(self, data):
        self.s.sendall(data)

    def option(self, code, data=b"", length=None):
        self.send(OPTION + struct.pack(">II", code, len(data) if length is None else length) + data)

    def reply(self):
        magic, option, code, length = struct.unpack(">QIII", self.exact(20))
        assert magic == 0x3e889045565a9
        return option, code, self.exact(length)

    def error(self):
        return self.reply()[1] - (1 << 31)

    def go(self, export="disk"):
        self.option(7, struct.pack(">I", len(export)) + export.encode() + struct.pack(">H", 0))
        while self.reply()[1] == 3:
            pass
        return self

    def request(self, command, offset=0, length=0, flags=0, cookie=1, payload=b""):
        self.send(struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + payload)

    def simple(self):
        magic, error, cookie = struct.unpack(">IIQ", self.exact(16))
        assert magic == 0x67446698
        return error, cookie

    def closed(self):
        """True once the server has closed (what it sent before is dropped)."""
        try:
            while self.s.recv(65536):
                pass
        except ConnectionError:
            pass
        return True

    def leave(self):
        self.s.close()


@pytest.fixture(name="server")
def make_server(tmp_path):
    server = Server(tmp_path)
    try:
        yield server
        witness = server.open("disk")  # still alive and well
        witness.pwrite(b"alive", 77)
        assert witness.pread(5, 77) == b"alive"
        witness.shutdown()
        server.stop()
    finally:
        server.process.kill()
        server.process.wait()


def test_client_flags(server):
    for flags in (4, 0x80000000, 0xffffffff):
        raw = Raw(server, flags)
        assert raw.closed()
    server.wait_log("does not speak NBD's fixed newstyle")


def test_not_nbd(server):
    raw = Raw(server, None)
    raw.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert raw.closed()
    raw = Raw(server)
    raw.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert raw.closed()
    server.wait_log("no NBD option")


def test_options_nobody_knows(server):
    raw = Raw(server)
    for code in (0, 4, 5, 11, 12, 77, 0x7fffffff, 0xffffffff):
        raw.option(code, b"x" * 1000)
        option, error, _ = raw.reply()
        assert (option, error) == (code, (1 << 31) + 1)
    raw.go().leave()


def test_malformed_options(server):
    raw = Raw(server)
    raw.option(3, b"data")
    assert raw.error() == 3
    raw.option(8, b"data")
    assert raw.error() == 3
    raw.option(10, struct.pack(">I", 4) + b"disk" + struct.pack(">I", 0))
    assert raw.error() == 3  # no structured replies yet
    raw.option(8)
    assert raw.reply()[1] == 1
    for data in (b"", b"\0", b"\xff\xff\xff\xff", struct.pack(">I", 4) + b"dis",
                 struct.pack(">IH", 0, 9), struct.pack(">IIII", 0, 0xffffffff, 0, 0),
                 struct.pack(">I", 5000) + b"x" * 5000 + b"\0\0"):
        for code in (6, 7, 9, 10):
            raw.option(code, data)
            assert raw.error() == 3, (code, data)
    raw.go().leave()


def test_option_too_long(server):
    raw = Raw(server)
    raw.option(7, b"x" * MIB)
    assert raw.error() == 9
    raw.option(3, b"x" * 70000)
    assert raw.error() == 9
    raw.go().leave()
    for code in (7, 99):
        raw = Raw(server)
        raw.option(code, length=0xffffffff)
        assert raw.closed()
    raw = Raw(server)
    raw.option(1, length=100000)
    assert raw.closed()
    server.wait_log("absurd length", 3)


def test_meta_context_queries(server):
    raw = Raw(server)
    raw.option(8)
    assert raw.reply()[1] == 1
    head = struct.pack(">I", 4) + b"disk"

    def query(*names):
        return head + struct.pack(">I", len(names)) + b"".join(
            struct.pack(">I", len(n)) + n for n in names)
    raw.option(9, query())
    assert raw.reply() == (9, 4, b"\0\0\0\0base:allocation")
    assert raw.reply()[1] == 1
    raw.option(10, query())
    assert raw.reply()[1] == 1
    raw.option(10, query(b"base:", b"x:y", b""))
    assert raw.reply()[1] == 1
    raw.option(10, query(b"x:y", b"base:allocation", b"base:allocation"))
    assert raw.reply() == (10, 4, b"\0\0\0\1base:allocation")
    assert raw.reply()[1] == 1
    raw.option(10, query(*[b"a:b"] * 5000))
    assert raw.reply()[1] == 1
    raw.leave()


def test_context_belongs_to_its_export(server):
    for export, kind in (("disk", 5), ("odd", 0x8001)):
        raw = Raw(server)
        raw.option(8)
        assert raw.reply()[1] == 1
        raw.option(10, struct.pack(">I4sII15s", 4, b"disk", 1, 15, b"base:allocation"))
        assert [raw.reply()[1] for _ in range(2)] == [4, 1]
        raw.go(export)
        raw.request(7, 0, 4096)
        magic, flags, got, cookie, length = struct.unpack(">IHHQI", raw.exact(20))
        assert (magic, flags, got, cookie) == (0x668e33ef, 1, kind, 1)
        raw.exact(length)
        raw.leave()


def test_abort(server):
    raw = Raw(server)
    raw.option(2)
    assert raw.reply() == (2, 1, b"")
    assert raw.closed()


def test_leave_at_every_byte(server):
    """Leaves after every prefix of a whole session."""
    name = struct.pack(">I", 4) + b"disk" + struct.pack(">H", 0)
    session = (struct.pack(">I", 3) + OPTION + struct.pack(">II", 7, len(name)) + name +
               struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 0, 50) + b"p" * 50 +
               struct.pack(">IHHQQI", 0x25609513, 0, 0, 2, 0, 5000))
    for length in range(len(session) + 1):
        raw = Raw(server, None)
        raw.send(session[:length])
        if length % 2:
            raw.s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
        raw.leave()


def test_garbage_in_transmission(server):
    raw = Raw(server).go()
    raw.request(0, 0, 16)
    assert raw.simple() == (0, 1) and len(raw.exact(16)) == 16
    raw.send(b"\xff" * 28)
    assert raw.closed()
    server.wait_log("no NBD request")


def test_absurd_write(server):
    raw = Raw(server).go()
    raw.request(1, 0, 0xffffffff)
    assert raw.closed()
    server.wait_log("write of absurd length")
    raw = Raw(server).go()
    raw.request(0, 0, 0xffffffff)
    assert raw.simple() == (22, 1)
    raw.request(4, 0, 0xffffffff)
    assert raw.simple() == (28, 1)
    raw.request(1, 0, 33 * MIB, payload=bytes(33 * MIB))
    assert raw.simple() == (22, 1)
    raw.request(77, 0, 100)
    assert raw.simple() == (22, 1)
    raw.request(7, 0, 4096)  # no context was negotiated
    assert raw.simple() == (22, 1)
    raw.request(0, 0, 4096, flags=4)  # DF without structured replies
    assert raw.simple() == (22, 1)
    raw.request(0, 0, 0)
    assert raw.simple() == (0, 1)
    raw.leave()


def test_half_a_write(server):
    raws = []
    for _ in range(20):
        raw = Raw(server).go("bench")
        raw.request(1, 0, 2 * MIB, payload=b"x" * MIB)
        raws.append(raw)
    for raw in raws:
        raw.leave()


def test_never_reads_answers(server):
    """Much more is asked for than fits into the socket, and nothing is taken."""
    raw = Raw(server).go("bench")
    raw.s.settimeout(2)
    try:
        for i in range(1000):
            raw.request(0, 0, MIB // 4, cookie=i)
    except TimeoutError:
        pass
    raw.leave()


def test_disconnect_with_requests_running(server):
    for _ in range(10):
        raw = Raw(server).go("slow")
        for i in range(50):
            raw.request(i % 2, i * 4096, 4096, cookie=i, payload=b"y" * 4096 if i % 2 else b"")
        raw.leave()


def test_answers_before_the_end(server):
    """NBD_CMD_DISC and a closed sending side: what was asked before is answered."""
    for end in ("disc", "shutdown"):
        raw = Raw(server).go("slow")
        for i in range(5):
            raw.request(1, i * 4096, 4096, cookie=i, payload=b"y" * 4096)
        if end == "disc":
            raw.request(2)
        else:
            raw.s.shutdown(socket.SHUT_WR)
        assert sorted(raw.simple() for _ in range(5)) == [(0, i) for i in range(5)]
        assert raw.closed()


def test_slow_handshake_is_ended(server):
    started = time.monotonic()
    raws = [Raw(server), Raw(server, None), Raw(server)]
    raws[2].option(7, length=100)
    serving = Raw(server).go()
    for raw in raws:
        assert raw.closed()
    assert 8 < time.monotonic() - started < 15
    server.wait_log("handshake took too long")
    serving.request(0, 0, 4)  # those that serve are not touched
    assert serving.simple()[0] == 0
    serving.leave()


def test_random_bytes(server):
    rng = random.Random(3)
    for turn in range(200):
        raw = Raw(server, None)
        try:
            raw.send(struct.pack(">I", 3))
            if turn % 2:
                raw.go()
                for _ in range(20):
                    raw.request(rng.randrange(10), rng.choice([0, 1, 64 * MIB, 1 << 63]),
                                rng.choice([0, 1, 4096, 64 * MIB, 0xffffffff]), rng.randrange(64))
            else:
                raw.send(OPTION + struct.pack(">II", rng.randrange(13), rng.randrange(300)))
                raw.send(rng.randbytes(rng.randrange(600)))
        except (ConnectionError, EOFError):
            pass
        raw.leave()
    assert nbd and os.path.exists(server.socket)
