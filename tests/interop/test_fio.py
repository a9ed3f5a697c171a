# SPDX-License-Identifier: Apache-2.0
"""fio's NBD engine with verification: a random mix of sizes at depth 32, also with a snapshot and a clone taken in the
middle of it."""
import json
import subprocess

import nbd
import pytest

from harness.nbdio import Nbd
from harness.processes import Failed, run
from harness.waiting import wait_for

MIB = 1 << 20


def delete(cluster, *words):
    wait_for(lambda: cluster.dog("vdi", "delete", *words, expect=None).returncode == 0, f"delete {words}", 30)


def fio_words(uri, *options):
    return ["fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--iodepth=32", "--verify=crc32c",
            "--verify_fatal=1", "--verify_state_save=0", "--output-format=json", *options]


def clean(output):
    report = json.loads(output[output.index("{"):])
    job = report["jobs"][0]
    assert job["error"] == 0, output
    return job


@pytest.mark.limit(300)
@pytest.mark.parametrize("workload", ["randwrite", "randrw", "write"])
def test_random_mix_of_sizes(shared, workload):
    name = f"fio-{workload}"
    shared.create(name, "256M")
    uri = shared.sheep[0].uri(name)
    job = clean(run(fio_words(uri, f"--rw={workload}", "--bssplit=4k/40:16k/20:64k/20:256k/10:1m/10", "--blockalign=4k",
                              "--size=256M"), limit_s=200).stdout)
    assert job["write"]["io_bytes"] > 0 and job["read"]["io_bytes"] > 0
    delete(shared, name)


@pytest.mark.limit(300)
def test_snapshot_and_clone_in_the_middle(shared):
    """fio writes and verifies a volume while snapshots and clones of it are taken. Its own data stays right; the snapshot
    never changes; its clone, and the volume, verify under fio afterwards."""
    shared.create("mid", "128M")
    uri = shared.sheep[0].uri("mid")
    first = ["--rw=randwrite", "--bs=4k", "--size=128M", "--randseed=71", "--verify_pattern=0x51", "--verify=pattern"]
    clean(run(fio_words(uri, *first), limit_s=200).stdout)
    shared.dog("vdi", "snapshot", "mid", "-s", "before")
    second = ["--rw=randwrite", "--bssplit=4k/60:64k/30:1m/10", "--blockalign=4k", "--size=128M", "--randseed=72",
              "--loops=2"]
    process = subprocess.Popen(fio_words(uri, *second), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    tags = []
    try:
        def running_snapshot():
            if process.poll() is None and len(tags) < 5:
                tag = f"mid{len(tags)}"
                shared.dog("vdi", "snapshot", "mid", "-s", tag)
                shared.dog("vdi", "clone", "mid", "-s", tag, f"clone-{tag}")
                tags.append(tag)
            return process.poll() is not None

        wait_for(running_snapshot, "fio to end", 200, step_s=0.3)
        output = process.communicate(timeout=60)[0].decode()
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode:
        raise Failed(output)
    clean(output)
    assert tags, "fio ended before any snapshot was taken"
    # The snapshot from before still verifies, read-only, with fio; and its clone, after writes to the origin.
    shared.dog("vdi", "clone", "mid", "-s", "before", "clone-before")
    for export in ("mid@before", "clone-before"):
        clean(run(fio_words(shared.sheep[1].uri(export), *[w.replace("--rw=randwrite", "--rw=randread") for w in first],
                            "--verify_only=1"), limit_s=200).stdout)
    # A clone taken in the middle is what its snapshot is, and can be written and verified.
    for tag in tags:
        with Nbd(shared.sheep[0].uri(f"mid@{tag}")) as snapshot, Nbd(shared.sheep[0].uri(f"clone-{tag}")) as clone:
            for offset in range(0, 128 * MIB, 4 * MIB):
                assert snapshot.read(offset, 4 * MIB) == clone.read(offset, 4 * MIB), f"{tag} at {offset}"
    opens = lambda: run(["nbdinfo", "--size", shared.sheep[1].uri(f"clone-{tags[0]}")], expect=None).returncode == 0  # noqa: E731
    wait_for(opens, "the clone to open", 20)
    clean(run(fio_words(shared.sheep[1].uri(f"clone-{tags[0]}"), "--rw=randwrite", "--bs=16k", "--size=64M"),
              limit_s=200).stdout)
    shared.check()
    for tag in tags:
        delete(shared, f"clone-{tag}")
        delete(shared, "mid", "-s", tag)
    for words in (["mid", "-s", "before"], ["mid"], ["clone-before"]):
        delete(shared, *words)
    shared.check()


def test_several_connections(shared):
    """multi-conn: four jobs with a connection each, on ranges of their own, and a flush on one covers all."""
    shared.create("multi", "128M")
    uri = shared.sheep[0].uri("multi")
    done = run(fio_words(uri, "--rw=randwrite", "--bs=4k", "--numjobs=4", "--size=32M", "--offset_increment=32M",
                         "--fsync=64", "--group_reporting"), limit_s=200)
    clean(done.stdout)
    with pytest.raises(nbd.Error):
        Nbd(shared.sheep[0].uri("multi@none"))
    delete(shared, "multi")
