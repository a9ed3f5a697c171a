# SPDX-License-Identifier: Apache-2.0
"""admin-fake-server in a folder of its own, dog, and the protocol by hand."""
import json
import os
import signal
import socket
import struct
import subprocess

SERVER, DOG = os.environ["ADMIN_FAKE_SERVER"], os.environ["DOG"]
MAGIC = b"KELPADM1"
JSON, DATA, ZEROS = 1, 2, 3


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def frame(payload, kind=JSON, crc=None):
    head = struct.pack("<II", len(payload), kind)
    return head + struct.pack("<I", crc32c(head + payload) if crc is None else crc) + payload


class Server:
    def __init__(self, folder, redirect="", name="admin", connections=8):
        self.socket = os.path.join(folder, name + ".sock")
        self.log = open(os.path.join(folder, name + ".log"), "w+", encoding="utf-8")
        command = [SERVER, f"local:{folder}/{name}.db", "unix:" + self.socket]
        self.process = subprocess.Popen(command + [redirect, str(connections)], stdout=subprocess.PIPE,
                                        stderr=self.log, text=True)
        assert self.process.stdout.readline() == f"unix:{self.socket}\n", self.log_text()
        assert self.process.stdout.readline() == "ready\n"

    def log_text(self):
        with open(self.log.name, encoding="utf-8") as f:
            return f.read()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0, self.log_text()
        assert "Sanitizer" not in self.log_text()

    def dog(self, *words, expect=0, stdin=b"", env=None, address=True):
        command = [DOG, *(["-s", "unix:" + self.socket] if address else []), *words]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, env=env, check=False)
        assert done.returncode == expect, f"{words}: {done.returncode} {done.stdout[:500]} {done.stderr}"
        assert b"Sanitizer" not in done.stderr
        return done

    def json(self, *words, **options):
        return json.loads(self.dog("--json", *words, **options).stdout)


class Raw:
    """A connection that says what it is told to."""

    def __init__(self, server, magic=MAGIC):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(server.socket)
        self.send(magic)
        if magic == MAGIC:
            assert self.read(8) == MAGIC

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def read(self, length):
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def receive(self):
        length, kind, crc = struct.unpack("<III", self.read(12))
        payload = self.read(length)
        assert crc == crc32c(struct.pack("<II", length, kind) + payload)
        return json.loads(payload) if kind == JSON else (kind, payload)

    def ask(self, **request):
        self.send(frame(json.dumps(request).encode()))
        return self.receive()

    def ended(self):
        """True when the server has closed its end."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


assert crc32c(b"123456789") == 0xe3069283
