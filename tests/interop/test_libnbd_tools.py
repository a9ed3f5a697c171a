# SPDX-License-Identifier: Apache-2.0
"""libnbd's tools as clients: nbdcopy both ways, nbdinfo with list, map and JSON."""
import hashlib
import json
import os
import random

from harness.processes import run
from harness.waiting import wait_for

MIB = 1 << 20


def delete(cluster, *words):
    wait_for(lambda: cluster.dog("vdi", "delete", *words, expect=None).returncode == 0, f"delete {words}", 30)


def digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def make_image(path, size, seed):
    rng = random.Random(seed)
    with open(path, "wb") as f:
        f.truncate(size)
        for offset in range(0, size, 5 * MIB):
            f.seek(offset)
            f.write(rng.randbytes(min(2 * MIB + 1234, size - offset)))


def test_copy_in_and_out(shared):
    for number, options in enumerate(([], ["--connections=4", "--requests=32"], ["--synchronous"], ["--flush"])):
        source, back = (os.path.join(shared.folder, f"{name}{number}") for name in ("in", "out"))
        make_image(source, 96 * MIB, number)
        shared.create(f"copy{number}", "96M")
        uri = shared.sheep[number % 3].uri(f"copy{number}", tcp=number % 2 == 1)
        run(["nbdcopy", *options, "--", source, uri])
        run(["nbdcopy", *options, "--", uri, back])
        assert digest(source) == digest(back), f"nbdcopy {options}"
        os.remove(source)
        os.remove(back)
        delete(shared, f"copy{number}")


def test_copy_between_volumes_and_from_a_snapshot(shared):
    source, back = (os.path.join(shared.folder, name) for name in ("in", "out"))
    make_image(source, 32 * MIB, 9)
    for name in ("from", "to"):
        shared.create(name, "32M")
    run(["nbdcopy", source, shared.sheep[0].uri("from")])
    shared.dog("vdi", "snapshot", "from", "-s", "s")
    run(["nbdcopy", "--destination-is-zero", shared.sheep[1].uri("from@s"), shared.sheep[2].uri("to")])
    wait_for(lambda: run(["nbdcopy", shared.sheep[2].uri("to"), back], expect=None).returncode == 0, "copy out", 20)
    assert digest(source) == digest(back)
    # Holes stayed holes: the copy uses no more space than the data.
    mapped = json.loads(run(["nbdinfo", "--map", "--json", shared.sheep[2].uri("to")]).stdout)
    assert sum(part["length"] for part in mapped if part["type"] == 0) <= 20 * MIB
    for words in (["from"], ["from", "-s", "s"], ["to"]):
        delete(shared, *words)


def test_info(shared):
    shared.create("info", "48M")
    shared.dog("vdi", "snapshot", "info", "-s", "tag")
    told = json.loads(run(["nbdinfo", "--json", shared.sheep[0].uri("info")]).stdout)
    assert told["protocol"] == "newstyle-fixed" and told["structured"] is True
    export = told["exports"][0]
    assert export["export-size"] == 48 * MIB
    assert "base:allocation" in export["contexts"]
    for ability in ("can_flush", "can_fua", "can_trim", "can_zero", "can_cache", "can_multi_conn"):
        assert export[ability] is True, ability
    assert export["is_read_only"] is False
    snapshot = json.loads(run(["nbdinfo", "--json", shared.sheep[0].uri("info@tag")]).stdout)["exports"][0]
    assert snapshot["is_read_only"] is True
    base = f"nbd+unix:///?socket={shared.sheep[0].nbd_unix}"
    listed = json.loads(run(["nbdinfo", "--list", "--json", base]).stdout)
    assert {"info", "info@tag"} <= {e["export-name"] for e in listed["exports"]}
    assert run(["nbdinfo", "--size", shared.sheep[0].uri("info")]).stdout.strip() == str(48 * MIB)
    mapped = json.loads(run(["nbdinfo", "--map", "--json", shared.sheep[0].uri("info")]).stdout)
    assert sum(part["length"] for part in mapped) == 48 * MIB and all(part["type"] == 3 for part in mapped)
    assert run(["nbdinfo", "--size", shared.sheep[0].uri("nobody")], expect=None).returncode != 0
    for words in (["info"], ["info", "-s", "tag"]):
        delete(shared, *words)
