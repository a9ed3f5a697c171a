# SPDX-License-Identifier: Apache-2.0
"""The whole NBD server over volumes in memory (nbd-fake-server), driven by real clients.

NBD_FAKE_SERVER names the executable. Each test gets a server of its own; at its end the server is
stopped by SIGTERM and must exit with 0, which it does only when no volume was left open.
"""
import os
import random
import shutil
import signal
import subprocess
import sys
import threading

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
from harness.waiting import wait_for  # noqa: E402  pylint: disable=wrong-import-position

nbd = pytest.importorskip("nbd")

SERVER = os.environ["NBD_FAKE_SERVER"]
MIB = 1 << 20


class Server:
    def __init__(self, folder, *options):
        self.socket = str(folder / "nbd.sock")
        self.log = open(folder / "log", "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [SERVER, *options, "tcp:127.0.0.1:0", "unix:" + self.socket],
            stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])
        self.process.stdout.readline()
        assert self.process.stdout.readline() == "ready\n"

    def uri(self, export=""):
        return f"nbd+unix:///{export}?socket={self.socket}"

    def tcp_uri(self, export=""):
        return f"nbd://127.0.0.1:{self.port}/{export}"

    def open(self, export="disk", contexts=("base:allocation",)):
        handle = nbd.NBD()
        for context in contexts:
            handle.add_meta_context(context)
        handle.connect_uri(self.uri(export))
        return handle

    def log_text(self):
        with open(self.log.name, encoding="utf-8") as f:
            return f.read()

    def wait_log(self, text, count=1):
        """The line of a connection's end is written after the client has seen the end."""
        wait_for(lambda: self.log_text().count(text) >= count, f"the log line: {text}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=30)
        log = self.log_text()
        assert self.process.returncode == 0, log
        assert "Sanitizer" not in log and "ASSERT" not in log, log
        return out


@pytest.fixture(name="server", params=["immediate", "yields"])
def make_server(tmp_path, request):
    server = Server(tmp_path, *(["--yield"] if request.param == "yields" else []))
    try:
        yield server
        server.stop()
    finally:
        server.process.kill()
        server.process.wait()


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def error_of(call, *args, **kwargs):
    with pytest.raises(nbd.Error) as caught:
        call(*args, **kwargs)
    return caught.value.errno


def pread_one_chunk(handle, length, offset):
    chunks = []
    flags = nbd.CMD_FLAG_DF
    data = handle.pread_structured(length, offset, lambda *chunk: chunks.append(chunk) or 0, flags)
    assert len(chunks) == 1
    return bytes(data)


def extents_of(handle, length, offset, flags=0):
    found = []

    def extent(context, at, entries, _error):
        assert (context, at) == ("base:allocation", offset)
        found.extend(zip(entries[0::2], entries[1::2]))

    handle.block_status(length, offset, extent, flags)
    return found


# --- what is announced ---

def test_sizes_and_flags(server):
    h = server.open("disk")
    assert h.get_size() == 64 * MIB
    assert not h.is_read_only() and h.can_flush() and h.can_fua() and h.can_trim()
    assert h.can_zero() and h.can_fast_zero() and h.can_df() and h.can_cache()
    assert h.can_multi_conn() and h.can_meta_context("base:allocation")
    assert [h.get_block_size(k) for k in (0, 1, 2)] == [1, 4096, 32 * MIB]
    h.shutdown()
    h = server.open("disk@first")
    assert h.is_read_only() and not h.can_trim() and not h.can_zero()
    h.shutdown()


def test_old_clients(server):
    """Without structured replies, and by NBD_OPT_EXPORT_NAME with and without the 124 zeros."""
    h = nbd.NBD()
    h.set_request_structured_replies(False)
    h.connect_uri(server.uri("disk"))
    assert not h.get_structured_replies_negotiated() and not h.can_df()
    h.pwrite(b"old" * 1000, 5000)
    assert h.pread(3000, 5000) == b"old" * 1000
    assert error_of(server.open("broken").pread, 512, MIB) == "EIO"
    h.shutdown()
    for flags in (0, 1, 2, 3):
        h = nbd.NBD()
        h.set_handshake_flags(flags)
        h.connect_uri(server.uri("disk"))
        assert h.get_size() == 64 * MIB
        assert h.pread(6, 5000) == b"oldold"
        h.shutdown()


def test_list_and_info(server):
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(server.uri())
    names = {}
    h.opt_list(lambda name, description: names.update({name: description}) or 0)
    assert {"disk", "disk@first", "big", "busy", "name with blank"} <= set(names)
    assert names["disk"].startswith("volume") and names["disk@first"].startswith("snapshot")
    h.set_export_name("nothing")
    assert error_of(h.opt_info) == "ENOENT"
    h.set_full_info(True)
    h.set_export_name("disk@first")
    h.opt_info()
    assert h.get_canonical_export_name() == "disk@first" and h.is_read_only()
    contexts = []
    for query in (None, "base:", "qemu:"):
        h.clear_meta_contexts()
        if query:
            h.add_meta_context(query)
        h.opt_list_meta_context(lambda name: contexts.append(name) or 0)
    assert contexts == ["base:allocation"] * 2
    h.set_export_name("disk")
    h.opt_go()
    assert h.get_size() == 64 * MIB
    h.shutdown()
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(server.uri())
    h.opt_abort()


@pytest.mark.parametrize("export", ["", "nothing", "disk@nothing", "disk@", "@first", "@", "x" * 255,
                                    "x" * 256, "x" * 4000, "disk@first@first", "d\u00efsk"])
def test_unknown_exports(server, export):
    h = nbd.NBD()
    h.set_uri_allow_local_file(True)
    h.set_export_name(export)
    assert error_of(h.connect_unix, server.socket) == "ENOENT"


def test_busy_says_where(server):
    done = subprocess.run(["qemu-img", "info", server.uri("busy")], capture_output=True, text=True,
                          check=False, timeout=60)
    assert done.returncode != 0 and "open on node other" in done.stderr
    server.wait_log("open on node other")


# --- commands ---

def test_bytes_at_any_place(server):
    h = server.open("odd")
    model = bytearray(1000001)
    rng = random.Random(7)
    for _ in range(300):
        offset = rng.randrange(len(model))
        length = min(rng.choice([1, 511, 4096, 70001]), len(model) - offset)
        kind = rng.randrange(4)
        if kind == 0:
            data = rng.randbytes(length)
            h.pwrite(data, offset, rng.choice([0, nbd.CMD_FLAG_FUA]))
            model[offset:offset + length] = data
        elif kind == 1:
            h.zero(length, offset, rng.choice([0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO]))
            model[offset:offset + length] = bytes(length)
        else:
            read = rng.choice([h.pread, lambda *a: pread_one_chunk(h, *a)])
            assert read(length, offset) == bytes(model[offset:offset + length])
    h.flush()
    assert h.pread(len(model), 0) == bytes(model)
    h.shutdown()


def test_largest_payload(server):
    h = server.open("bench")
    data = os.urandom(32 * MIB)
    h.pwrite(data, 12345)
    assert h.pread(32 * MIB, 12345) == data
    h.set_strict_mode(0)
    assert error_of(h.pread, 32 * MIB + 1, 0) == "EINVAL"
    assert error_of(h.pwrite, bytes(32 * MIB + 1), 0) == "EINVAL"
    assert h.pread(4096, 12345) == data[:4096]  # the stream is in step
    h.shutdown()


def test_block_status(server):
    h = server.open("disk")
    assert extents_of(h, 64 * MIB, 0) == [(64 * MIB, 3)]
    h.pwrite(b"x" * 8192, 4096)
    assert extents_of(h, MIB, 0) == [(4096, 3), (8192, 0), (MIB - 12288, 3)]
    assert extents_of(h, MIB, 0, nbd.CMD_FLAG_REQ_ONE) == [(4096, 3)]
    assert extents_of(h, 100, 5000) == [(100, 0)]
    h.trim(4096, 8192)
    assert extents_of(h, MIB, 0) == [(4096, 3), (4096, 0), (MIB - 8192, 3)]
    h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE)
    assert extents_of(h, 4096, 4096) == [(4096, 0)]
    h.zero(4096, 4096)
    assert extents_of(h, MIB, 0) == [(MIB, 3)]
    h.shutdown()
    h = server.open("big")
    assert extents_of(h, 4 * 1024 * MIB - 512, 1 << 39) == [(4 * 1024 * MIB - 512, 3)]
    h.shutdown()


def test_many_extents(server):
    h = server.open("disk")
    for i in range(0, 5000, 2):
        h.pwrite(b"x", i * 4096)
    offset = 0
    seen = []
    while offset < 5000 * 4096:
        part = extents_of(h, 5000 * 4096 - offset, offset)
        assert part
        offset += sum(length for length, _ in part)
        seen += part
    assert seen == [(4096, 0), (4096, 3)] * 2500
    h.shutdown()


def test_requests_that_are_refused(server):
    h = server.open("odd")
    h.set_strict_mode(0)
    end = 1000001
    assert error_of(h.pread, 2, end - 1) == "EINVAL"
    assert error_of(h.pread, 1, 1 << 63) == "EINVAL"
    assert error_of(h.pread, 4096, (1 << 64) - 4096) == "EINVAL"
    assert error_of(h.pwrite, b"ab", end - 1) == "ENOSPC"
    assert error_of(h.pwrite, b"a" * 4096, (1 << 64) - 4096) == "ENOSPC"
    assert error_of(h.zero, 2, end - 1) == "ENOSPC"
    assert error_of(h.trim, 2, end - 1) == "ENOSPC"
    assert error_of(h.cache, 2, end - 1) == "EINVAL"
    assert error_of(h.block_status, 2, end - 1, lambda *a: 0) == "EINVAL"
    assert error_of(h.pread, 512, 0, nbd.CMD_FLAG_FAST_ZERO) == "EINVAL"
    assert error_of(h.flush, 1 << 9) == "EINVAL"
    both = nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE
    assert error_of(h.zero, 4096, 0, both) in ("ENOTSUP", "EOPNOTSUPP")
    h.pwrite(b"z", end - 1)
    assert h.pread(1, end - 1) == b"z"
    h.cache(4096, 0)
    h.shutdown()
    h = server.open("disk@first")
    h.set_strict_mode(0)
    assert error_of(h.pwrite, b"a" * 100000, 0) == "EPERM"
    assert error_of(h.zero, 4096, 0) == "EPERM"
    assert error_of(h.trim, 4096, 0) == "EPERM"
    assert h.pread(4096, 0) == bytes(4096)
    h.flush()
    h.shutdown()


def test_errors_of_the_volume(server):
    h = server.open("broken")
    assert error_of(h.pread, 4096, MIB) == "EIO"
    assert error_of(pread_one_chunk, h, 4096, 2 * MIB) == "EIO"
    assert error_of(h.pwrite, b"a" * 4096, 3 * MIB) == "ENOSPC"
    assert error_of(h.zero, 4096, MIB) == "EIO"
    assert error_of(h.block_status, 4096, MIB, lambda *a: 0) == "EIO"
    assert h.pread(4096, 0) == bytes(4096)
    h.shutdown()


def test_many_connections_one_volume(server):
    handles = [server.open("disk") for _ in range(16)]
    for i, h in enumerate(handles):
        h.pwrite(bytes([i + 1]) * 4096, i * 4096)
    for i in range(16):
        assert handles[15 - i].pread(4096, i * 4096) == bytes([i + 1]) * 4096
    for h in handles:
        h.shutdown()


# --- tools ---

def test_nbdinfo(server):
    assert "disk@first" in run("nbdinfo", "--list", server.uri())
    assert "hole,zero" in run("nbdinfo", "--map", server.tcp_uri("disk"))
    assert "1000001" in run("nbdinfo", "--size", server.tcp_uri("odd"))


def make_image(path, size):
    rng = random.Random(1)
    with open(path, "wb") as f:
        for offset in range(0, size - 300000, 1 << 20):
            f.seek(offset + rng.randrange(100000))
            f.write(rng.randbytes(rng.randrange(1, 200000)))
        f.truncate(size)


def test_copy_with_tools(server, tmp_path):
    image = str(tmp_path / "image")
    make_image(image, 64 * MIB)
    back = str(tmp_path / "back")
    run("nbdcopy", image, server.uri("disk"))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, server.uri("disk"))
    run("nbdcopy", server.tcp_uri("disk"), back)
    run("cmp", image, back)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, server.tcp_uri("slow"))
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", server.uri("slow"), back)
    run("cmp", image, back)
    run("qemu-img", "map", "--output=json", "-f", "raw", server.uri("disk"))


def test_qemu_io_patterns(server):
    out = run("qemu-io", "-f", "raw", "-c", "write -P 0x55 4k 64k", "-c", "read -P 0x55 4k 64k",
              "-c", "write -z -u 8k 4k", "-c", "read -P 0 8k 4k", "-c", "write -z 12k 1k",
              "-c", "read -P 0 12k 1k", "-c", "discard 0 1M", "-c", "flush", "-c", "read -P 0 4k 4k",
              "-c", "aio_write -P 7 1M 1M", "-c", "aio_flush", "-c", "read -P 7 1M 1M",
              server.uri("disk"))
    assert "verification failed" not in out


@pytest.mark.skipif(not shutil.which("fio"), reason="no fio")
def test_fio_verify(server, tmp_path):
    run("fio", "--name=verify", "--ioengine=nbd", "--uri=" + server.tcp_uri("disk"), "--rw=randrw",
        "--bsrange=4k-1m", "--iodepth=32", "--size=48m", "--verify=crc32c", "--verify_fatal=1",
        "--io_size=192m", f"--aux-path={tmp_path}", "--randrepeat=1")


# --- shared room, the end ---

def test_little_room_for_all(tmp_path):
    """Requests larger than the budget, from several clients at once, are served one by one."""
    server = Server(tmp_path, "--payload", "1048576")
    try:
        def work(index):
            h = server.open("bench")
            data = bytes([index]) * (3 * MIB)
            for turn in range(5):
                h.pwrite(data, index * 4 * MIB)
                assert h.pread(3 * MIB, index * 4 * MIB) == data, turn
            h.shutdown()
        failures = []

        def guarded(index):
            try:
                work(index)
            except Exception as e:  # pylint: disable=broad-except
                failures.append(e)
        threads = [threading.Thread(target=guarded, args=(i,)) for i in range(1, 7)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        assert not failures
        server.stop()
    finally:
        server.process.kill()


def test_too_many_connections(tmp_path):
    server = Server(tmp_path, "--connections", "2")
    try:
        handles = [server.open("disk"), server.open("disk")]
        with pytest.raises(nbd.Error):
            server.open("disk")
        handles[0].shutdown()
        server.wait_log("2 connections are open already")
        for _ in range(100):  # the place is free once the server has seen the end
            try:
                server.open("disk").shutdown()
                break
            except nbd.Error:
                continue
        else:
            pytest.fail("no place became free")
        handles[1].shutdown()
        server.stop()
    finally:
        server.process.kill()


def test_stop_answers_what_runs(tmp_path):
    server = Server(tmp_path)
    try:
        h = server.open("slow")
        answers = []
        buffers = [nbd.Buffer(4096) for _ in range(20)]
        for i, buffer in enumerate(buffers):
            h.aio_pread(buffer, i * 4096, completion=lambda error: answers.append(error.value) or 1)
        server.process.send_signal(signal.SIGTERM)
        try:
            while len(answers) < 20:
                h.poll(1000)
        except nbd.Error:
            pass
        out, _ = server.process.communicate(timeout=20)
        assert server.process.returncode == 0
        requests = int(out.split(" requests ")[1].split()[0])
        assert answers.count(0) >= requests - 1  # one may have been read off while we stopped
    finally:
        server.process.kill()
