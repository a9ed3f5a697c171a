# SPDX-License-Identifier: Apache-2.0
"""A small NBD client of our own, for what a well-behaved library cannot do: hostile requests, many requests in
flight with their answers told apart, and sockets that are cut at any byte.

Every socket call has a limit; nothing here waits for ever.
"""
import select
import socket
import struct
import time

NBDMAGIC, IHAVEOPT, OPT_REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
REQUEST_MAGIC, SIMPLE_REPLY = 0x25609513, 0x67446698
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED = 1, 2, 3, 6, 7, 8
REP_ACK, REP_SERVER, REP_INFO = 1, 2, 3
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FLAG_FUA, FLAG_NO_HOLE = 1, 2
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ESHUTDOWN = 1, 5, 22, 28, 75, 108


class Gone(Exception):
    """The server closed the connection, or did not answer in time."""


class RawNbd:
    """One connection. `handle` numbers requests; answers may come in any order."""

    def __init__(self, path, limit_s=30):
        self.limit_s = limit_s
        self.size = self.flags = None
        self.block_sizes = None
        self.handle = 0
        self.buffer = bytearray()
        if isinstance(path, tuple):
            self.socket = socket.create_connection(path, timeout=limit_s)
        else:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.settimeout(limit_s)
            try:
                self.socket.connect(path)
            except OSError as error:
                self.socket.close()
                raise Gone(str(error)) from None

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, data):
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Gone(str(error)) from None

    def receive(self, count):
        while len(self.buffer) < count:
            try:
                data = self.socket.recv(1 << 18)
            except OSError as error:
                raise Gone(str(error)) from None
            if not data:
                raise Gone("closed")
            self.buffer += data
        out = bytes(self.buffer[:count])
        del self.buffer[:count]
        return out

    def closed_within(self, seconds):
        """True if the server closes the connection in that time (what it sends before is thrown away)."""
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.socket], [], [], left)[0]:
                return False
            try:
                if not self.socket.recv(65536):
                    return True
            except OSError:
                return True

    # --- handshake ---

    def hello(self, client_flags=3):
        magic, option, flags = struct.unpack(">QQH", self.receive(18))
        assert (magic, option) == (NBDMAGIC, IHAVEOPT), f"{magic:#x} {option:#x}"
        self.send(struct.pack(">I", client_flags))
        return flags

    def option(self, number, data=b"", length=None):
        self.send(struct.pack(">QII", IHAVEOPT, number, len(data) if length is None else length) + data)

    def option_reply(self):
        magic, number, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == OPT_REPLY, f"{magic:#x}"
        return number, kind, self.receive(length)

    def go(self, export, number=OPT_GO, infos=(INFO_BLOCK_SIZE,)):
        """0 when the export is open, else the server's error code. Its message is in self.message."""
        name = export.encode() if isinstance(export, str) else export
        data = struct.pack(">I", len(name)) + name + struct.pack(">H", len(infos))
        self.option(number, data + b"".join(struct.pack(">H", info) for info in infos))
        self.message = ""
        while True:
            _, kind, body = self.option_reply()
            if kind == REP_ACK:
                return 0
            if kind & 0x80000000:
                self.message = body.decode(errors="replace")
                return kind
            if kind == REP_INFO:
                what, = struct.unpack(">H", body[:2])
                if what == INFO_EXPORT:
                    self.size, self.flags = struct.unpack(">QH", body[2:])
                elif what == INFO_BLOCK_SIZE:
                    self.block_sizes = struct.unpack(">III", body[2:])

    def open(self, export):
        self.hello()
        error = self.go(export)
        if error:
            raise Gone(f"export {export!r}: {error:#x} {self.message}")
        return self

    # --- transmission ---

    def request(self, command, offset=0, length=0, data=b"", flags=0, magic=REQUEST_MAGIC):
        """Sends one request and returns its handle."""
        self.handle += 1
        self.send(struct.pack(">IHHQQI", magic, flags, command, self.handle, offset & (2**64 - 1), length) + data)
        return self.handle

    def reply(self):
        """(error, handle) of the next answer; the caller reads the data of a good read with receive()."""
        magic, error, handle = struct.unpack(">IIQ", self.receive(16))
        assert magic == SIMPLE_REPLY, f"{magic:#x}"
        return error, handle

    def answer_ready(self, seconds):
        return len(self.buffer) >= 16 or bool(select.select([self.socket], [], [], seconds)[0])

    def call(self, command, offset=0, length=0, data=b"", flags=0):
        """One request and its answer. Returns (error, data)."""
        handle = self.request(command, offset, length, data, flags)
        error, got = self.reply()
        assert handle == got
        return error, self.receive(length) if command == READ and error == 0 else b""

    def read(self, offset, length):
        error, data = self.call(READ, offset, length)
        assert error == 0, f"read at {offset}: NBD error {error}"
        return data

    def write(self, offset, data, flags=0):
        error, _ = self.call(WRITE, offset, len(data), data, flags)
        assert error == 0, f"write at {offset}: NBD error {error}"
