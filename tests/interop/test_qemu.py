# SPDX-License-Identifier: Apache-2.0
"""QEMU's tools as clients: convert, compare, map, check, info, and qemu-io patterns."""
import json
import os
import random

import pytest

from harness.processes import run
from harness.waiting import wait_for

MIB = 1 << 20


def delete(cluster, *words):
    wait_for(lambda: cluster.dog("vdi", "delete", *words, expect=None).returncode == 0, f"delete {words}", 30)


@pytest.fixture
def image(shared):
    """A 64 MiB raw file with data, holes and odd edges."""
    path = os.path.join(shared.folder, "image.raw")
    rng = random.Random(21)
    with open(path, "wb") as f:
        f.truncate(64 * MIB)
        for offset, length in ((0, 3 * MIB), (10 * MIB + 512, 70000), (31 * MIB, 2 * MIB), (64 * MIB - 4608, 4608)):
            f.seek(offset)
            f.write(rng.randbytes(length))
    yield path
    os.remove(path)


def volume(shared, name, size="64M"):
    shared.create(name, size)
    return shared.sheep[0].uri(name)


def test_convert_compare_map_info(shared, image):
    uri = volume(shared, "convert")
    run(["qemu-img", "convert", "-n", "-p", "-f", "raw", "-O", "raw", image, uri])
    run(["qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri])
    info = json.loads(run(["qemu-img", "info", "--output=json", "-f", "raw", uri]).stdout)
    assert info["virtual-size"] == 64 * MIB
    parts = json.loads(run(["qemu-img", "map", "--output=json", "-f", "raw", uri]).stdout)
    assert sum(part["length"] for part in parts) == 64 * MIB
    assert any(part["zero"] for part in parts) and any(part["data"] for part in parts)
    back = image + ".back"
    run(["qemu-img", "convert", "-f", "raw", "-O", "raw", uri, back])
    run(["qemu-img", "compare", image, back])
    os.remove(back)
    shared.dog("vdi", "snapshot", "convert", "-s", "s")
    shared.dog("vdi", "clone", "convert", "-s", "s", "converted")
    for export in ("convert@s", "converted"):
        run(["qemu-img", "compare", "-f", "raw", "-F", "raw", image, shared.sheep[1].uri(export)])
    for words in (["convert", "-s", "s"], ["convert"], ["converted"]):
        delete(shared, *words)


def test_a_qcow2_image_inside_a_volume(shared, image):
    """QEMU's own format on top: its check walks metadata that was written in small, ordered pieces with flushes."""
    uri = volume(shared, "qcow", "128M")
    run(["qemu-img", "create", "-f", "qcow2", uri, "64M"])
    run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", image, uri])
    run(["qemu-img", "check", "-f", "qcow2", uri])
    run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, uri])
    run(["qemu-img", "snapshot", "-c", "inner", uri])
    qemu_io(uri, "qcow2", ["write -P 0x33 5M 3M", "discard 0 1M", "flush"])
    run(["qemu-img", "check", "-f", "qcow2", uri])
    run(["qemu-img", "snapshot", "-a", "inner", uri])
    run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, uri])
    delete(shared, "qcow")


def qemu_io(uri, image_format, commands, options=()):
    words = ["qemu-io", "-f", image_format, *options]
    for command in commands:
        words += ["-c", command]
    done = run(words + [uri])
    output = done.stdout + done.stderr
    assert "Pattern verification failed" not in output and "error" not in output.lower(), output
    return output


def test_patterns(shared):
    uri = volume(shared, "patterns")
    qemu_io(uri, "raw", ["write -P 0x11 0 4M", "write -P 0x22 1M 4k", "write -f -P 0x33 2M 64k", "write -z 3M 128k",
                         "write -z -u 3584k 128k", "discard 512k 64k", "flush",
                         "read -P 0x11 0 512k", "read -P 0x00 512k 64k", "read -P 0x11 576k 448k",
                         "read -P 0x22 1M 4k", "read -P 0x11 1028k 1020k", "read -P 0x33 2M 64k",
                         "read -P 0x00 3M 128k", "read -P 0x00 3584k 128k", "read -P 0x11 3712k 384k", "read -P 0 4M 60M"])
    # Across object borders, unaligned to everything but sectors, vectored and asynchronous.
    qemu_io(uri, "raw", ["write -P 0x44 4194304 512", "write -P 0x55 8388096 1024", "writev -P 0x66 12582400 512 4096 1536",
                         "aio_write -P 0x77 20M 1M", "aio_write -P 0x78 21M 1M", "aio_write -P 0x79 22M 1M", "aio_flush",
                         "read -P 0x44 4194304 512", "read -P 0 4194816 3584", "read -P 0x55 8388096 1024",
                         "read -P 0x66 12582400 6144", "read -P 0x77 20M 1M", "read -P 0x78 21M 1M", "read -P 0x79 22M 1M"])
    delete(shared, "patterns")


def test_patterns_through_snapshot_and_clone(shared):
    uri = volume(shared, "layers")
    qemu_io(uri, "raw", ["write -P 0xa1 0 8M", "write -P 0xa2 8M 8M"])
    shared.dog("vdi", "snapshot", "layers", "-s", "s1")
    qemu_io(uri, "raw", ["write -P 0xb1 4M 8M", "discard 12M 4M", "read -P 0xa1 0 4M", "read -P 0xb1 4M 8M", "read -P 0 12M 4M"])
    shared.dog("vdi", "clone", "layers", "-s", "s1", "layered")
    qemu_io(shared.sheep[1].uri("layers@s1"), "raw", ["read -P 0xa1 0 8M", "read -P 0xa2 8M 8M"], ["-r"])
    qemu_io(shared.sheep[1].uri("layered"), "raw",
            ["write -P 0xc1 6M 4k", "read -P 0xa1 0 6M", "read -P 0xc1 6M 4k", "read -P 0xa1 6148k 2044k", "read -P 0xa2 8M 8M"])
    qemu_io(shared.sheep[1].uri("layers@s1"), "raw", ["read -P 0xa1 0 8M"], ["-r"])
    for words in (["layers"], ["layers", "-s", "s1"], ["layered"]):
        delete(shared, *words)


def test_qemu_img_bench(shared):
    uri = volume(shared, "bench")
    for options in (["-w", "-s", "4096", "-d", "32"], ["-w", "-s", "65536", "-d", "8", "--flush-interval=16"], ["-s", "4096"]):
        run(["qemu-img", "bench", "-f", "raw", "-t", "none", "-c", "2000", *options, uri])
    delete(shared, "bench")


def test_the_connection_forms_of_the_readme(shared):
    """-drive file=URI and -blockdev driver=raw,file.driver=nbd,...: the same option parsers as in a QEMU with a guest."""
    shared.create("forms", "8M")
    host, port = shared.sheep[0].tcp("nbd").rsplit(":", 1)
    qemu_io(f"nbd://{host}:{port}/forms", "raw", ["write -P 0x21 0 64k"])
    blockdev = (f"driver=raw,discard=unmap,cache.direct=on,file.driver=nbd,file.server.type=inet,file.server.host={host},"
                f"file.server.port={port},file.export=forms")
    output = run(["qemu-io", "--image-opts", "-c", "read -P 0x21 0 64k", blockdev]).stdout
    assert "65536/65536" in output and "failed" not in output, output
    delete(shared, "forms")
