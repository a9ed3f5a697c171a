# SPDX-License-Identifier: Apache-2.0
"""One volume through several gateways at once: each client finds what the others were answered, and a gateway whose
owner dies takes the volume over without its client noticing more than a pause."""
import pytest

from harness.rawnbd import FLAG_NO_HOLE, FLUSH, TRIM, WRITE_ZEROES, Gone
from harness.verifier import BLOCK, SharedVerifier, connect
from harness.waiting import wait_for

BLOCKS = 8192
MULTI_CONN = 1 << 8


class Client:
    """One client: two connections to one gateway, one that writes and one that reads."""

    def __init__(self, sheep, index, of, seed):
        self.sheep = sheep
        self.verifier = SharedVerifier(BLOCKS, seed, index, of)
        self.open()

    def open(self):
        self.writer, self.reader = (connect(self.sheep.nbd_unix, "shared") for _ in range(2))

    def close(self):
        self.writer.close()
        self.reader.close()


def run(clients, writes):
    """Until each of them has that many more answers."""
    goals = [client.verifier.writes_answered + writes for client in clients]
    while any(client.verifier.writes_answered < goal for client, goal in zip(clients, goals)):
        for client in clients:
            client.verifier.step(client.writer)
            for other in clients:
                if other is not client:
                    client.verifier.peek(client.reader, other.verifier)


def drain(client):
    assert client.verifier.load(client.writer, lambda: True)


def owner(cluster):
    volume, = [v for v in cluster.dog_json("vdi", "list")["volumes"] if v["name"] == "shared" and not v.get("tag")]
    return volume.get("owner")


def test_two_gateways_while_the_owner_dies(cluster):
    cluster.create("shared", "64M")
    first, second = Client(cluster.sheep[0], 0, 2, 1), Client(cluster.sheep[1], 1, 2, 2)
    assert owner(cluster) == "n0"
    run([first, second], 400)
    # kill -9 of the owner in the middle of everybody's writes: the second client sees no error and no break.
    first.verifier.step(first.writer)
    second.verifier.step(second.writer)
    cluster.sheep[0].kill9()
    first.verifier.note_gone()
    run([second], 200)
    drain(second)
    assert owner(cluster) == "n1"
    everything = SharedVerifier(BLOCKS, 0, 0, 1)
    for client in (first, second):
        everything.answered.update(client.verifier.answered)
        everything.unsure.update(client.verifier.unsure)
    everything.verify(second.reader)
    # The old owner comes back and forwards to the new one.
    first.close()
    cluster.sheep[0].start()
    cluster.wait_serving()
    first.open()
    for block, sequence in everything.answered.items():
        if block in first.verifier.answered or block in first.verifier.unsure:
            first.verifier.answered[block] = sequence
    first.verifier.unsure.clear()
    run([first, second], 200)
    for client in (first, second):
        drain(client)
        everything.answered.update(client.verifier.answered)
        client.close()
    with connect(cluster.sheep[2].nbd_unix, "shared") as third:
        everything.verify(third)
    cluster.check()


def test_every_request_is_forwarded(cluster):
    cluster.create("shared", "32M")
    here, there = (connect(cluster.sheep[index].nbd_unix, "shared") for index in range(2))
    assert here.flags & MULTI_CONN and there.flags & MULTI_CONN and here.size == there.size
    data = bytes(range(256)) * 4096 * 8  # 8 MiB, several messages
    there.write(12345, data)
    assert here.read(12345, len(data)) == data and there.read(12345, len(data)) == data
    # CAN_MULTI_CONN: what one gateway answered and another flushed is durable; a flush covers both.
    assert here.call(FLUSH)[0] == 0 and there.call(FLUSH)[0] == 0
    assert there.call(TRIM, 1 << 20, 1 << 20)[0] == 0
    assert here.read(1 << 20, 1 << 20) == bytes(1 << 20)
    assert there.call(WRITE_ZEROES, 3 << 20, 100000, flags=FLAG_NO_HOLE)[0] == 0
    assert there.call(WRITE_ZEROES, 5 << 20, 5000)[0] == 0
    for offset, length in ((3 << 20, 100000), (5 << 20, 5000)):
        assert here.read(offset, length) == bytes(length)
        assert here.read(offset + length, 100) == data[offset + length - 12345:][:100]
    error, _ = there.call(TRIM, 32 << 20, 4096)
    assert error != 0
    # Snapshots are for the owner, and dog finds it by itself.
    cluster.dog("vdi", "snapshot", "shared", "-s", "s", sheep=cluster.sheep[1])
    here.close()
    # The owner has no clients any more, the other one is busy: the volume moves.
    wait_for(lambda: there.write(0, bytes(BLOCK)) or owner(cluster) == "n1", "the volume to move", 30, step_s=0.05)
    assert there.read(12345, 1 << 19) == data[:1 << 19]
    there.close()
    cluster.check()


def test_an_owner_that_is_stopped_in_order_hands_over(cluster):
    cluster.create("shared", "64M")
    first, second = Client(cluster.sheep[0], 0, 2, 1), Client(cluster.sheep[1], 1, 2, 2)
    run([first, second], 100)
    drain(first)
    first.close()
    second.verifier.step(second.writer)
    cluster.sheep[0].stop()
    run([second], 100)
    drain(second)
    assert owner(cluster) == "n1"
    cluster.sheep[0].start()
    cluster.wait_serving()
    second.close()
    cluster.check()


@pytest.mark.limit(120)
def test_an_open_volume_cannot_be_deleted_from_anywhere(cluster):
    cluster.create("shared", "8M")
    here, there = (connect(cluster.sheep[index].nbd_unix, "shared") for index in range(2))
    here.close()
    assert cluster.dog("vdi", "delete", "shared", expect=None).returncode != 0
    there.write(0, bytes(BLOCK))
    with pytest.raises(Gone):
        connect(cluster.sheep[2].nbd_unix, "no-such-volume")
    there.close()
    wait_for(lambda: cluster.dog("vdi", "delete", "shared", expect=None).returncode == 0, "the volume to be closed", 30)
