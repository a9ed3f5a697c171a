# SPDX-License-Identifier: Apache-2.0
"""Everything that is wrong from outside gets a clear message or error, loses nothing, and leaves the daemons alive."""
import os
import random
import re
import socket
import struct

import pytest

from harness import rawnbd
from harness.processes import DOG, SHEEP, run
from harness.rawnbd import Gone, RawNbd
from harness.waiting import wait_for

MIB = 1 << 20
FAILURE, SYSTEM, EXISTS, FULL, MISSING, USAGE = 1, 2, 3, 4, 5, 64


@pytest.fixture(autouse=True)
def everything_lives(request):
    """After each test with the shared cluster: the same processes run, and a volume works."""
    if "shared" not in request.fixturenames:
        yield
        return
    shared = request.getfixturevalue("shared")
    pids = [sheep.pid for sheep in shared.sheep]
    yield
    same = [sheep.pid for sheep in shared.sheep] == pids or request.node.get_closest_marker("restarts")
    assert same and all(sheep.alive() for sheep in shared.sheep), shared.logs()
    shared.create("alive", "1M")
    with RawNbd(shared.sheep[0].nbd_unix) as client:
        client.open("alive")
        client.write(4096, b"lives" * 100)
        assert client.read(4096, 500) == b"lives" * 100
    wait_for(lambda: shared.dog("vdi", "delete", "alive", expect=None).returncode == 0, "delete", 20)


def fails(cluster, words, code, *texts):
    done = cluster.dog(*words, expect=None)
    said = done.stderr + done.stdout
    assert done.returncode == code, f"dog {' '.join(map(str, words))}: {done.returncode}, not {code}: {said}"
    assert done.stderr.strip(), "an error without a message"
    assert len(done.stderr) < 2000
    for text in texts:
        assert text in said, f"dog {' '.join(map(str, words))} does not say {text!r}: {said}"


# --- dog ---

def test_unknown_volumes_and_tags(shared):
    for words in (["vdi", "delete", "nobody"], ["vdi", "snapshot", "nobody", "-s", "t"], ["vdi", "resize", "nobody", "1G"],
                  ["vdi", "read", "nobody"], ["vdi", "clone", "nobody", "-s", "t", "x"],
                  ["vdi", "rollback", "nobody", "-s", "t"], ["vdi", "delete", "nobody", "-s", "t"]):
        fails(shared, words, MISSING, "nobody")
    shared.create("some", "1M")
    fails(shared, ["vdi", "clone", "some", "-s", "nothing", "x"], MISSING, "nothing")
    fails(shared, ["vdi", "create", "some", "1M"], EXISTS, "some")
    shared.dog("vdi", "delete", "some")


@pytest.mark.parametrize("name", ["", "a" * 256, "a" * 5000, "sl/ash", "a@b", "sp ace", "new\nline", "nul-l\x01", "\x7f"])
def test_bad_names(shared, name):
    done = shared.dog("vdi", "create", name, "1M", expect=None)
    assert done.returncode in (FAILURE, USAGE), f"{done.returncode} {done.stderr}"
    assert done.stderr.strip()
    listed = shared.dog_json("vdi", "list")["volumes"]
    assert listed == []


@pytest.mark.parametrize("name", ["a" * 255, "grün-ß-日本", "-dash", "quote'\"", "percent%41"])
def test_odd_but_good_names(shared, name):
    shared.dog("vdi", "create", "--", name, "1M") if name.startswith("-") else shared.create(name, "1M")
    with RawNbd(shared.sheep[0].nbd_unix) as client:
        client.open(name)
        client.write(0, b"x" * 512)
    words = ["vdi", "delete", "--", name] if name.startswith("-") else ["vdi", "delete", name]
    wait_for(lambda: shared.dog(*words, expect=None).returncode == 0, "delete", 20)


@pytest.mark.parametrize("size", ["0", "-1", "abc", "", "65T", "9999999T", "18446744073709551615", "1X", "1.5.G"])
def test_bad_sizes(shared, size):
    done = shared.dog("vdi", "create", "sized", size, expect=None)
    assert done.returncode in (FAILURE, USAGE), f"{done.returncode} {done.stdout} {done.stderr}"
    assert done.stderr.strip()
    assert shared.dog_json("vdi", "list")["volumes"] == []


def test_bad_words(shared):
    for words in (["vdi"], ["vdi", "explode"], ["nonsense"], ["vdi", "create"], ["vdi", "create", "x"],
                  ["vdi", "snapshot", "x"], ["--no-such-option"], ["vdi", "create", "x", "1M", "--object-size", "3"],
                  ["vdi", "create", "x", "1M", "extra"]):
        done = shared.dog(*words, expect=None)
        assert done.returncode in (FAILURE, USAGE), f"{words}: {done.returncode}"
        assert done.stderr.strip() or done.stdout.strip()
    assert shared.dog("--help").returncode == 0
    assert "vdi" in shared.dog("--help").stdout


def test_dog_without_a_sheep(shared):
    done = run([DOG, "-s", "unix:/tmp/no-such-kelpie-socket", "vdi", "list"], expect=SYSTEM)
    assert "no-such-kelpie-socket" in done.stderr
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    done = run([DOG, "-a", "127.0.0.1", "-p", str(port), "vdi", "list"], expect=SYSTEM)
    assert str(port) in done.stderr


def test_format_twice(shared):
    fails(shared, ["cluster", "format", "--copies", "3"], EXISTS, "formatted")


def test_more_copies_than_zones(make_cluster):
    cluster = make_cluster(2, zones=["same", "same"], size="128M")
    cluster.format_stores()
    cluster.start_all()
    fails(cluster, ["cluster", "format", "--copies", "2", "--wait-nodes", "2"], FULL, "zone")
    fails(cluster, ["vdi", "create", "x", "1M"], FAILURE, "format")
    cluster.stop_all()


# --- sheep ---

def sheep_fails(command, *texts, codes=(1, 2, 64)):
    done = run([SHEEP, *command], expect=None, limit_s=60)
    assert done.returncode in codes, f"sheep {' '.join(command)}: {done.returncode}: {done.stderr}"
    for text in texts:
        assert re.search(text, done.stderr), f"sheep {' '.join(command)} does not say {text!r}: {done.stderr}"
    assert "Sanitizer" not in done.stderr and "ASSERT" not in done.stderr
    return done


def run_words(cluster, store, name="extra"):
    return ["run", store, "--cluster", cluster.spec, "--name", name, "--zone", "zx", "--admin", "127.0.0.1:0",
            "--peer", "127.0.0.1:0", "--nbd", "none", "--ports-file", os.path.join(cluster.folder, "extra.ports")]


def test_stores_that_are_none(shared):
    folder = shared.folder
    garbage = os.path.join(folder, "garbage")
    with open(garbage, "wb") as f:
        f.write(random.Random(9).randbytes(8 * MIB))
    short = os.path.join(folder, "short")
    with open(short, "wb") as f:
        f.write(b"short")
    empty = os.path.join(folder, "empty")
    open(empty, "wb").close()
    for path in (garbage, short, empty):
        sheep_fails(run_words(shared, path), re.escape(path))
        sheep_fails(["check", path], re.escape(path))
        sheep_fails(["trim", path], re.escape(path))
        with open(path, "rb") as f:
            assert len(f.read()) == os.path.getsize(path)
    sheep_fails(run_words(shared, os.path.join(folder, "absent")), "absent")
    sheep_fails(run_words(shared, folder), re.escape(folder))
    sheep_fails(["format", os.path.join(folder, "tiny"), "--size", "64K"], "small|least")
    sheep_fails(["format", os.path.join(folder, "no/such/folder"), "--size", "1G"], "folder")
    sheep_fails(["format", os.path.join(folder, "s"), "--size", "lots"], "lots")
    sheep_fails(["format", os.path.join(folder, "s"), "--size", "1G", "--sparse", "--zero-all"], "contradict", codes=(64,))
    assert not os.path.exists(os.path.join(folder, "s"))
    sheep_fails(["format", os.path.join(folder, "s"), "--size", "8T"], "no room.*sparse")
    assert not os.path.exists(os.path.join(folder, "s"))
    sheep_fails(["format"], codes=(64,))
    sheep_fails(["trim"], codes=(64,))
    sheep_fails(["trim", os.path.join(folder, "absent")], "absent")
    sheep_fails(["trim", "--punch", os.path.join(folder, "s")], "punch", codes=(64,))
    for rate in ("fast", "-1", "8M/s", ""):
        sheep_fails(["run", os.path.join(folder, "s"), "--scrub-rate", rate], "scrub-rate", codes=(64,))
    sheep_fails(["explode"], codes=(1, 2, 64))


def test_format_does_not_overwrite_a_store(shared):
    before = os.path.getsize(shared.sheep[0].store)
    sheep_fails(["format", shared.sheep[0].store, "--size", "256M"], "")
    sheep_fails(["format", shared.sheep[0].store, "--size", "256M", "--overwrite"], "")  # it is in use
    assert os.path.getsize(shared.sheep[0].store) == before


def test_second_daemon_on_a_store(shared):
    sheep_fails(run_words(shared, shared.sheep[1].store), "use|running|lock")


def test_port_in_use(shared, make_cluster):
    cluster = make_cluster(1, size="128M")
    cluster.format_stores()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for option in ("--admin", "--nbd", "--peer"):
            words = run_words(cluster, cluster.sheep[0].store)
            words[words.index("--nbd") + 1] = "127.0.0.1:0"
            words[words.index(option) + 1] = f"127.0.0.1:{port}"
            sheep_fails(words, str(port))
    cluster.start_all()  # the store was let go each time
    cluster.stop_all()


def test_store_of_another_cluster(shared, make_cluster):
    other = make_cluster(1, size="128M")
    other.up()
    other.stop_all()
    done = sheep_fails(run_words(shared, other.sheep[0].store), "another cluster|other cluster|belongs")
    assert done.returncode in (1, 2)
    other.start_all()  # nothing was changed in it
    other.wait_serving()
    other.stop_all()


def test_truncated_store(make_cluster):
    cluster = make_cluster(1, size="128M").up()
    cluster.create("v", "16M")
    cluster.stop_all()
    store = cluster.sheep[0].store
    os.truncate(store, os.path.getsize(store) // 2)
    sheep_fails(run_words(cluster, store), re.escape(store))


def test_cluster_folder_missing(make_cluster):
    cluster = make_cluster(1, size="128M")
    cluster.format_stores()
    words = run_words(cluster, cluster.sheep[0].store)
    words[words.index("--cluster") + 1] = "local:/no/such/folder/cluster.db"
    sheep_fails(words, "/no/such/folder")
    words[words.index("--cluster") + 1] = "raft:whatever"
    sheep_fails(words, "raft")


# --- hostile NBD clients ---

@pytest.fixture
def volume(shared):
    name = "hostile"
    shared.create(name, "8M")
    with RawNbd(shared.sheep[0].nbd_unix) as client:
        client.open(name)
        client.write(0, b"precious" * 1024)
    yield name
    with RawNbd(shared.sheep[0].nbd_unix) as client:
        client.open(name)
        assert client.read(0, 8192) == b"precious" * 1024
    wait_for(lambda: shared.dog("vdi", "delete", name, expect=None).returncode == 0, "delete", 30, step_s=0.1)


def raw(shared):
    return RawNbd(shared.sheep[0].nbd_unix, limit_s=20)


def test_unknown_export(shared):
    for name in ("nobody", "nobody@tag", "", "@", "a" * 4096, b"\xff\xfe", "x@y@z"):
        with raw(shared) as client:
            client.hello()
            assert client.go(name) != 0, name
            assert client.go("still-talking") != 0  # the option phase goes on after an error
        with raw(shared) as client:
            client.hello()
            client.option(rawnbd.OPT_EXPORT_NAME, name if isinstance(name, bytes) else name.encode())
            assert client.closed_within(20)  # this old option has no other way to say no


def test_garbage_instead_of_a_handshake(shared):
    rng = random.Random(10)
    for length in (1, 3, 17, 1000, 100000):
        with raw(shared) as client:
            try:
                client.send(rng.randbytes(length))
            except Gone:
                pass
    with raw(shared) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
        assert client.closed_within(20)


def test_bad_client_flags_and_options(shared):
    with raw(shared) as client:
        client.hello(client_flags=0xFFFFFFFF)
        assert client.closed_within(20)
    with raw(shared) as client:
        client.hello()
        client.send(struct.pack(">QII", 0x1122334455667788, 1, 0))
        assert client.closed_within(20)
    with raw(shared) as client:
        client.hello()
        client.option(0xDEAD, b"what is this")
        _, kind, _ = client.option_reply()
        assert kind & 0x80000000
        client.option(rawnbd.OPT_GO, b"\0\0")
        _, kind, _ = client.option_reply()
        assert kind & 0x80000000
        client.option(rawnbd.OPT_GO, struct.pack(">IH", 0xFFFFFF00, 9))
        _, kind, _ = client.option_reply()
        assert kind & 0x80000000
        client.option(rawnbd.OPT_INFO, struct.pack(">I", 2) + b"xx" + struct.pack(">HH", 500, 1))
        _, kind, _ = client.option_reply()
        assert kind & 0x80000000
    with raw(shared) as client:  # a length that nobody may ask us to remember
        client.hello()
        client.option(rawnbd.OPT_GO, b"", length=0xFFFFFFFF)
        try:
            client.send(bytes(1 << 20))
            _, kind, _ = client.option_reply()
            assert kind & 0x80000000
        except Gone:
            pass


def test_clients_that_stop_half_way(shared, volume):
    whole = struct.pack(">IHHQQI", rawnbd.REQUEST_MAGIC, 0, rawnbd.WRITE, 7, 0, 65536)
    for length in (0, 1, 10, 27):
        with raw(shared) as client:
            client.open(volume)
            client.send(whole[:length])
    for length in (0, 1, 4096, 65535):  # the header of a write, and part of its data: nothing may be written
        with raw(shared) as client:
            client.open(volume)
            client.send(whole + b"\xee" * length)
    for length in (0, 8, 17):
        with raw(shared) as client:
            client.receive(length)
    with raw(shared) as client:  # answers that nobody reads
        client.open(volume)
        for _ in range(64):
            client.request(rawnbd.READ, 0, 1 << 20)


def test_requests_beyond_the_end(shared, volume):
    size = 8 * MIB
    with raw(shared) as client:
        client.open(volume)
        assert client.size == size
        for offset, length in ((size, 512), (size - 512, 1024), (1 << 63, 512), (2**64 - 512, 512), (2**64 - 256, 512)):
            for command in (rawnbd.READ, rawnbd.TRIM, rawnbd.WRITE_ZEROES, rawnbd.CACHE):
                error, _ = client.call(command, offset, length)
                assert error in (rawnbd.EINVAL, rawnbd.ENOSPC), f"command {command} {offset}+{length}: {error}"
            error, _ = client.call(rawnbd.WRITE, offset, length, bytes(length))
            assert error in (rawnbd.EINVAL, rawnbd.ENOSPC), f"write {offset}+{length}: {error}"
        assert client.read(0, 512) == b"precious" * 64


def test_bad_requests(shared, volume):
    with raw(shared) as client:
        client.open(volume)
        error, _ = client.call(77, 0, 0)
        assert error == rawnbd.EINVAL
        error, _ = client.call(rawnbd.READ, 0, 512, flags=0x8000)
        assert error == rawnbd.EINVAL
        error, _ = client.call(rawnbd.READ, 0, 0xFFFFFFFF)
        assert error in (rawnbd.EINVAL, rawnbd.EOVERFLOW)
        error, _ = client.call(rawnbd.BLOCK_STATUS, 0, 512)  # without structured replies
        assert error == rawnbd.EINVAL
        assert client.read(0, 512) == b"precious" * 64
    with raw(shared) as client:
        client.open(volume)
        client.request(rawnbd.READ, 0, 512, magic=0x12345678)
        assert client.closed_within(20)
    with raw(shared) as client:  # a write larger than any that we announce
        client.open(volume)
        client.request(rawnbd.WRITE, 0, 0xFFFFFFFF)
        try:
            for _ in range(64):
                client.send(bytes(1 << 20))
            error, _ = client.reply()
            assert error in (rawnbd.EINVAL, rawnbd.EOVERFLOW)
        except Gone:
            pass


def test_writes_to_a_snapshot(shared, volume):
    shared.dog("vdi", "snapshot", volume, "-s", "fixed")
    with raw(shared) as client:
        client.open(f"{volume}@fixed")
        for command, data in ((rawnbd.WRITE, bytes(512)), (rawnbd.TRIM, b""), (rawnbd.WRITE_ZEROES, b"")):
            error, _ = client.call(command, 0, 512, data)
            assert error == rawnbd.EPERM
        assert client.read(0, 512) == b"precious" * 64
    wait_for(lambda: shared.dog("vdi", "delete", volume, "-s", "fixed", expect=None).returncode == 0, "delete", 20)


def test_many_connections(shared, volume):
    """More than are served: those beyond the limit are closed, the others work, and all are given back."""
    clients = []
    try:
        for _ in range(300):
            try:
                clients.append(raw(shared))
            except Gone:
                break
        working = 0
        for client in clients:
            try:
                client.open(volume)
                working += 1
            except Gone:
                pass
        assert working >= 100
    finally:
        for client in clients:
            client.close()

    def usable():
        try:
            with raw(shared) as client:
                client.open(volume)
                return True
        except Gone:
            return False

    wait_for(usable, "the daemon to take connections again", 20, step_s=0.1)


def test_random_requests(shared, volume):
    """Seeded nonsense in the transmission phase: each is answered with an error or ends the connection."""
    rng = random.Random(11)
    for _ in range(60):
        with raw(shared) as client:
            client.open(volume)
            try:
                for _ in range(20):
                    command = rng.choice([rawnbd.READ, rawnbd.TRIM, rawnbd.CACHE, 9, 300, rawnbd.BLOCK_STATUS])
                    client.request(command, 8 * MIB + rng.getrandbits(rng.randrange(1, 63)),
                                   rng.getrandbits(rng.randrange(1, 32)), flags=rng.getrandbits(4))
                client.send(rng.randbytes(28))
            except Gone:
                pass


# --- hostile peers and admin clients ---

@pytest.mark.parametrize("kind", ["admin", "peer"])
def test_garbage_on_the_other_ports(shared, kind):
    host, port = shared.sheep[0].tcp(kind).rsplit(":", 1)
    rng = random.Random(12)
    for data in (b"", b"x", b"GET / HTTP/1.0\r\n\r\n", rng.randbytes(20), rng.randbytes(100000), b"\xff" * 4096,
                 b"KELPADM1" + b"\xff" * 64, b"KELPADM1" + struct.pack("<III", 0xFFFFFFFF, 1, 0), b"KELPADM9" * 3,
                 b"KELPADM1" + struct.pack("<III", 10, 1, 0) + b"0123456789"):
        with socket.create_connection((host, int(port)), timeout=20) as client:
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            except OSError:
                pass


@pytest.mark.restarts
def test_a_client_that_only_connects_holds_nothing_up(shared):
    """Half-open connections do not delay an orderly end of a daemon."""
    host, port = shared.sheep[2].tcp("nbd").rsplit(":", 1)
    held = [socket.create_connection((host, int(port)), timeout=20) for _ in range(5)]
    try:
        process = shared.sheep[2].process
        shared.sheep[2].stop()
        assert process.returncode == 0
    finally:
        for client in held:
            client.close()
        shared.sheep[2].start()
        shared.wait_serving()
