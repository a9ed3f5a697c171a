# SPDX-License-Identifier: Apache-2.0
"""Load that knows what must survive: every 4 KiB block carries its number and a sequence.

1 A write that was answered is found after any crash, or a later one of the same block is.
2 A write that was not answered is there whole or not at all, block by block; never older content than answered.
3 What a block was found to hold after a crash stays so until it is written again.
"""
import random
import struct
import threading

from .rawnbd import FLUSH, WRITE, Gone, RawNbd
from .waiting import wait_for

BLOCK = 4096


def pattern(block, sequence):
    """4 KiB that name the block and the sequence in every 16 bytes."""
    return struct.pack("<QQ", block ^ 0x6B656C706965, sequence) * (BLOCK // 16)


def sequence_of(block, data):
    """The sequence that these 4 KiB carry, 0 for zeros; fails on anything torn, foreign or misplaced."""
    if data == bytes(BLOCK):
        return 0
    mark, sequence = struct.unpack_from("<QQ", data)
    assert mark == block ^ 0x6B656C706965, f"block {block}: holds another block's content ({data[:16].hex()})"
    assert data == pattern(block, sequence), f"block {block}: torn, begins with sequence {sequence}"
    return sequence


class Verifier:
    """Keeps up to `depth` writes of 1 to `run_max` blocks in flight on one connection at a time."""

    def __init__(self, block_count, seed, depth=32, run_max=32):
        self.block_count, self.depth, self.run_max = block_count, depth, run_max
        self.random = random.Random(seed)
        self.sequence = 0
        self.answered = {}  # block -> sequence of the last answered write
        self.unsure = {}    # block -> set of sequences that were sent and not answered
        self.flight = {}    # handle -> (first block, count, sequence)
        self.busy = set()
        self.writes_answered = 0

    def load(self, connection, until):
        """Writes until until() is true (then waits for the answers) or the connection breaks. Returns True if the
        connection still stands."""
        try:
            while not until() or self.flight:
                while len(self.flight) < self.depth and not until():
                    self.submit(connection)
                if self.flight and connection.answer_ready(0.05):
                    self.take_answer(connection)
            return True
        except Gone:
            self.note_gone()
            return False

    def note_gone(self):
        """The connection broke: what is in flight may have been done or not."""
        for first, count, sequence in self.flight.values():
            for block in range(first, first + count):
                self.unsure.setdefault(block, set()).add(sequence)
        self.flight.clear()
        self.busy.clear()

    def pick(self):
        """(first block, count) of a write."""
        count = self.random.choice([1, 1, 1, 1, 2, 4, self.run_max])
        return self.random.randrange(0, self.block_count - count + 1), count

    def successor(self, seed):
        """A verifier that goes on from what this one knows, while this one's connection hangs: what is under way there may
        have been done or not."""
        other = Verifier(self.block_count, seed, self.depth, self.run_max)
        other.answered = dict(self.answered)
        other.unsure = {block: set(sequences) for block, sequences in self.unsure.items()}
        for first, count, sequence in self.flight.values():
            for block in range(first, first + count):
                other.unsure.setdefault(block, set()).add(sequence)
        other.sequence = self.sequence + 1000000
        return other

    def submit(self, connection):
        while True:
            first, count = self.pick()
            blocks = range(first, first + count)
            if self.busy.isdisjoint(blocks):
                break
            if len(self.busy) > self.block_count // 2:
                return
        self.sequence += 1
        self.busy.update(blocks)
        data = b"".join(pattern(block, self.sequence) for block in blocks)
        # Noted before it is sent: a request that was cut off half way may still have been done.
        self.flight[connection.handle + 1] = (first, count, self.sequence)
        connection.request(WRITE, first * BLOCK, len(data), data)

    def take_answer(self, connection):
        error, handle = connection.reply()
        first, count, sequence = self.flight.pop(handle)
        assert error == 0, f"write of blocks {first}+{count}: NBD error {error}"
        for block in range(first, first + count):
            self.answered[block] = sequence
            self.unsure.pop(block, None)
        self.busy.difference_update(range(first, first + count))
        self.writes_answered += 1

    def verify(self, connection):
        """Reads every block and compares; what is found is what must stay."""
        step = 256
        for first in range(0, self.block_count, step):
            count = min(step, self.block_count - first)
            data = connection.read(first * BLOCK, count * BLOCK)
            for index in range(count):
                self.verify_block(first + index, data[index * BLOCK:(index + 1) * BLOCK])
        self.unsure.clear()

    def verify_block(self, block, data):
        have = sequence_of(block, data)
        want = self.answered.get(block, 0)
        allowed = {want} | {s for s in self.unsure.get(block, ()) if s > want}
        assert have in allowed, (f"block {block} holds sequence {have}; answered was {want}, "
                                 f"unanswered {sorted(self.unsure.get(block, ()))}")
        if have:
            self.answered[block] = have


class SharedVerifier(Verifier):
    """One of `of` clients of one volume: writes its own runs of `run_max` blocks, and reads what the others have
    answered, at any moment and through its own gateway."""

    def __init__(self, block_count, seed, index, of, depth=16, run_max=32):
        super().__init__(block_count, seed, depth, run_max)
        self.index, self.of, self.reads = index, of, 0

    def pick(self):
        run = self.random.randrange(0, self.block_count // self.run_max // self.of) * self.of + self.index
        count = self.random.choice([1, 1, 1, 2, 4, self.run_max])
        return run * self.run_max + self.random.randrange(0, self.run_max - count + 1), count

    def step(self, connection):
        """Sends what there is room for and takes what is answered."""
        try:
            while len(self.flight) < self.depth:
                self.submit(connection)
            while self.flight and connection.answer_ready(0):
                self.take_answer(connection)
        except Gone:
            self.note_gone()
            raise

    def peek(self, connection, other):
        """Reads one of another's blocks: nothing older than answered before the read began, nothing not yet sent."""
        if not other.answered:
            return
        block = self.random.choice(list(other.answered))
        least = other.answered[block]
        have = sequence_of(block, connection.read(block * BLOCK, BLOCK))
        assert least <= have <= other.sequence, f"block {block}: sequence {have} after {least} was answered elsewhere"
        self.reads += 1


def connect(path, export, limit_s=60):
    connection = RawNbd(path, limit_s)
    return connection.open(export)


def flush(connection):
    error, _ = connection.call(FLUSH)
    assert error == 0, f"flush: NBD error {error}"


class Load(threading.Thread):
    """A verifier's writes on a thread of their own, until stop()."""

    def __init__(self, verifier, connection):
        super().__init__(daemon=True)
        self.verifier, self.connection = verifier, connection
        self.stopping = threading.Event()
        self.stood, self.error = None, None

    def run(self):
        try:
            self.stood = self.verifier.load(self.connection, self.stopping.is_set)
        except Exception as error:  # told by stop()
            self.error = error

    def wait_progress(self, deadline_s=60):
        before = self.verifier.writes_answered
        wait_for(lambda: self.error or self.verifier.writes_answered >= before + 50, "writes to be answered", deadline_s)

    def stop(self):
        self.stopping.set()
        self.join(120)
        assert not self.is_alive() and self.error is None, f"the load failed: {self.error}"
        return self.stood


def open_export(sheep, export, limit_s=60):
    def attempt():
        try:
            return connect(sheep.nbd_unix, export)
        except Gone:
            return None

    return wait_for(attempt, f"{export} to open on {sheep.name}", limit_s, step_s=0.1)
