# SPDX-License-Identifier: Apache-2.0
"""A seeded random mix of everything a volume can do, compared with the reference model after every few steps.

1 One seed, one sequence of operations: a failure prints the seed and the last steps.
2 A step that a crash interrupted is done again; doing it twice must come to the same as once.
3 Writes in flight during a snapshot are in it or not, each 4 KiB block whole; all others are exactly known.
"""
import random
import re
import subprocess

import nbd

from .model import BLOCK, Image, first_difference
from .nbdio import Nbd
from .processes import DOG, Failed
from .waiting import wait_for

EXISTS, MISSING, USAGE = 3, 5, 64


class Workload:
    """Drives one cluster. `names` are prefixed with `prefix`, so that several may share it."""

    def __init__(self, cluster, seed, prefix="w", size_max=48 << 20, crashes=False):
        self.cluster, self.seed, self.prefix = cluster, seed, prefix
        self.random = random.Random(seed)
        self.size_max, self.crashes = size_max, crashes
        self.images = {}      # name -> Image
        self.snapshots = {}   # (name, tag) -> Image
        self.parents = {}
        self.open_name, self.client = None, None
        self.made = 0
        self.steps = []

    # --- connections ---

    def opened(self, name):
        """A client of that volume, through a gateway picked at random when it was not open yet."""
        if self.open_name != name:
            self.close()
            self.client = self.connect(name)
            self.open_name = name
            assert self.client.size == self.images[name].size, f"{name}: size {self.client.size}"
        return self.client

    def connect(self, export):
        sheep = self.random.choice(self.cluster.sheep)
        last = []

        def attempt():
            try:
                return Nbd(sheep.uri(export, tcp=self.random.random() < 0.3))
            except nbd.Error as error:  # busy on another gateway that is just closing it
                last[:] = [error]
                return None

        try:
            return wait_for(attempt, f"{export} to open on {sheep.name}", 30, step_s=0.1)
        except AssertionError:
            raise Failed(f"{export} does not open on {sheep.name}: {last}\n{sheep.log_tail()}") from None

    def close(self):
        if self.client:
            self.client.close()
        self.client = self.open_name = None

    # --- administrative steps, repeated when a crash hit them ---

    def dog(self, *words, again=()):
        """dog, done again after a crash; the exit codes in `again` are good then."""
        words = [str(word) for word in words]
        if self.crashes and self.random.random() < 0.25:
            self.crash_during(words)
            self.dog_settled(words, (0, *again))
        else:
            self.dog_settled(words, (0,))

    def dog_settled(self, words, good):
        """A volume that was just closed, or that a crashed operation left pending, may be busy for a moment: asked again
        for up to 30 s."""
        def attempt():
            done = self.cluster.dog(*words, expect=None)
            if done.returncode in good:
                return True
            if done.returncode == 1 and re.search("is open|try again", done.stderr):
                return False
            raise Failed(f"dog {' '.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")

        wait_for(attempt, f"dog {' '.join(words)}", 30, step_s=0.1)

    def crash_during(self, words):
        """Starts the command, kills every daemon at a random moment within it, and starts them again."""
        self.steps.append(f"crash during {' '.join(words)}")
        sheep = self.random.choice(self.cluster.sheep)
        process = subprocess.Popen([DOG, "-s", "unix:" + sheep.admin_unix, "-q", *words], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=self.random.random() * 0.03)
        except subprocess.TimeoutExpired:
            pass
        self.drop_client()
        self.cluster.kill9_all()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            raise Failed(f"dog {' '.join(words)} hangs after its daemon died") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        self.cluster.start_all()
        self.cluster.wait_serving()

    def drop_client(self):
        if self.client:
            self.client.drop()
        self.client = self.open_name = None

    # --- steps ---

    def name(self):
        self.made += 1
        return f"{self.prefix}{self.seed}.{self.made}"

    def pick(self):
        return self.random.choice(sorted(self.images))

    def step_create(self):
        if len(self.images) >= 5:
            return self.step_write()
        name = self.name()
        size = self.random.choice([self.random.randrange(1, self.size_max // 512) * 512, self.size_max, 1 << 39])
        object_size = self.random.choice(["64K", "256K", "1M", "4M"])
        self.steps.append(f"create {name} {size} {object_size}")
        self.dog("vdi", "create", name, size, "--object-size", object_size, again=(EXISTS,))
        self.images[name] = Image(size)

    def extent(self, image, length_max):
        """A random range: aligned to 4 KiB, to 512, or odd to the byte; near the start often, so that things meet."""
        unit = self.random.choice([4096, 4096, 4096, 512, 1])
        window = min(image.size, self.random.choice([1 << 20, 8 << 20, self.size_max, image.size]))
        base = self.random.choice([0, 0, image.size - window]) if image.size > window else 0
        length = max(unit, self.random.randrange(1, length_max + 1) // unit * unit)
        length = min(length, window)
        offset = base + self.random.randrange(0, window - length + 1) // unit * unit
        return offset, min(length, image.size - offset)

    def batch(self, image):
        """Writes that do not overlap, up to 16: [(offset, data)]."""
        chosen = []
        for _ in range(self.random.randrange(1, 17)):
            offset, length = self.extent(image, self.random.choice([4096, 16384, 131072]))
            if all(offset + length <= o or offset >= o + len(d) for o, d in chosen):
                chosen.append((offset, self.random.randbytes(length)))
        return chosen

    def step_write(self):
        name = self.pick()
        image, client = self.images[name], self.opened(name)
        batch = self.batch(image)
        self.steps.append(f"write {name} {[(o, len(d)) for o, d in batch]}")
        client.finish([client.begin_write(offset, data, self.random.choice([0, nbd.CMD_FLAG_FUA]))
                       for offset, data in batch])
        for offset, data in batch:
            image.write(offset, data)

    def step_zero(self):
        name = self.pick()
        image, client = self.images[name], self.opened(name)
        offset, length = self.extent(image, self.random.choice([4096, 1 << 20, 16 << 20]))
        flags = self.random.choice([0, nbd.CMD_FLAG_NO_HOLE])
        self.steps.append(f"zero {name} {offset} {length} flags {flags}")
        client.zero(offset, length, flags)
        image.zero(offset, length)

    def step_discard(self):
        name = self.pick()
        image, client = self.images[name], self.opened(name)
        offset, length = self.extent(image, self.random.choice([4096, 1 << 20, 16 << 20]))
        self.steps.append(f"discard {name} {offset} {length}")
        client.trim(offset, length)
        image.discard(offset, length)

    def step_flush(self):
        self.opened(self.pick()).flush()

    def step_read(self):
        name = self.pick()
        image, client = self.images[name], self.opened(name)
        offset, length = self.extent(image, 1 << 20)
        self.same(name, offset, image.read(offset, length), client.read(offset, length))

    def step_snapshot(self):
        """With the volume open and writes in flight, half of the times."""
        if len(self.snapshots) >= 6:
            return self.step_delete_snapshot()
        name = self.pick()
        tag = f"t{self.made}"
        self.made += 1
        image = self.images[name]
        if self.random.random() < 0.5 or self.crashes:
            self.steps.append(f"snapshot {name} {tag}")
            self.dog("vdi", "snapshot", name, "-s", tag)
            self.snapshots[name, tag] = image.copy()
            return
        before, client, batch = image.copy(), self.opened(name), self.batch(image)
        self.steps.append(f"snapshot {name} {tag} during {[(o, len(d)) for o, d in batch]}")
        cookies = [client.begin_write(offset, data) for offset, data in batch]
        sheep = self.random.choice(self.cluster.sheep)
        process = subprocess.Popen([DOG, "-s", "unix:" + sheep.admin_unix, "vdi", "snapshot", name, "-s", tag],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        client.finish(cookies)
        try:
            output, _ = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise Failed(f"dog vdi snapshot {name} -s {tag}: not done in 60 s") from None
        if process.returncode:
            raise Failed(f"dog vdi snapshot {name} -s {tag}: {process.returncode} {output.decode()}")
        for offset, data in batch:
            image.write(offset, data)
        self.snapshots[name, tag] = self.settle_snapshot(name, tag, before, image, batch)

    def settle_snapshot(self, name, tag, before, after, batch):
        """What the snapshot really has for writes that were in flight: each block old or new, nothing else."""
        result = before.copy()
        client = self.connect(f"{name}@{tag}")
        for offset, data in batch:
            first, last = offset // BLOCK, -(-(offset + len(data)) // BLOCK)
            for block in range(first, last):
                length = min(BLOCK, result.size - block * BLOCK)
                have = client.read(block * BLOCK, length)
                choices = (before.read(block * BLOCK, length), after.read(block * BLOCK, length))
                if have not in choices:
                    # Two writes of the batch may share a block: then each half may be old or new.
                    sharing = sum(o < (block + 1) * BLOCK and o + len(d) > block * BLOCK for o, d in batch)
                    assert sharing > 1, f"{name}@{tag} block {block}: neither the old nor the new content"
                result.write(block * BLOCK, have)
        client.close()
        return result

    def step_clone(self):
        if not self.snapshots or len(self.images) >= 6:
            return self.step_write()
        source, tag = self.random.choice(sorted(self.snapshots))
        name = self.name()
        self.steps.append(f"clone {source}@{tag} {name}")
        self.dog("vdi", "clone", source, "-s", tag, name, again=(EXISTS,))
        self.images[name] = self.snapshots[source, tag].copy()

    def step_rollback(self):
        mine = sorted(key for key in self.snapshots if key[0] in self.images)
        if not mine:
            return self.step_write()
        name, tag = self.random.choice(mine)
        if self.open_name == name:
            self.close()
        self.steps.append(f"rollback {name} {tag}")
        self.dog("vdi", "rollback", name, "-s", tag)
        self.images[name] = self.snapshots[name, tag].copy()

    def step_resize(self):
        name = self.pick()
        if self.open_name == name:
            self.close()
        image = self.images[name]
        size = self.random.randrange(1, self.size_max // 512) * 512
        if image.size > 1 << 30:
            size = image.size + (1 << 30)
        self.steps.append(f"resize {name} {image.size} -> {size}")
        self.dog("vdi", "resize", name, size)
        image.resize(size)

    def step_delete(self):
        if len(self.images) < 2:
            return self.step_create()
        name = self.pick()
        if self.open_name == name:
            self.close()
        self.steps.append(f"delete {name}")
        self.dog("vdi", "delete", name, again=(MISSING,))
        del self.images[name]

    def step_delete_snapshot(self):
        if not self.snapshots:
            return self.step_write()
        name, tag = self.random.choice(sorted(self.snapshots))
        self.steps.append(f"delete {name}@{tag}")
        self.dog("vdi", "delete", name, "-s", tag, again=(MISSING,))
        del self.snapshots[name, tag]

    def step_reopen(self):
        self.close()

    def step_verify(self):
        exports = [(name, image) for name, image in self.images.items()]
        exports += [(f"{name}@{tag}", image) for (name, tag), image in self.snapshots.items()]
        export, image = self.random.choice(sorted(exports, key=lambda pair: pair[0]))
        self.verify(export, image)

    def step_crash(self):
        self.steps.append("crash")
        self.drop_client()
        self.cluster.kill9_all()
        self.cluster.start_all()
        self.cluster.wait_serving()

    # --- comparison ---

    def same(self, export, offset, want, have):
        assert want == have, f"{export}: {first_difference(offset, want, have)}"

    def verify(self, export, image):
        """Reads all that was ever touched and compares; and the map must not call data a hole."""
        if export in self.images:
            client = self.opened(export)
        else:
            client = self.connect(export)
        for offset, length in image.regions():
            self.same(export, offset, image.read(offset, length), client.read(offset, length))
        for offset, length in list(image.regions())[:8]:
            for run, flags in client.runs(offset, length):
                if flags & 2:  # reads as zero
                    self.same(export + " (map)", offset, image.read(offset, run), bytes(run))
                offset += run
        if export not in self.images:
            client.close()

    def verify_all(self):
        for name in sorted(self.images):
            self.verify(name, self.images[name])
        for name, tag in sorted(self.snapshots):
            self.verify(f"{name}@{tag}", self.snapshots[name, tag])

    # --- the whole ---

    def run(self, steps):
        weights = {self.step_write: 30, self.step_read: 8, self.step_zero: 6, self.step_discard: 8, self.step_flush: 2,
                   self.step_create: 6, self.step_snapshot: 8, self.step_clone: 6, self.step_rollback: 4,
                   self.step_resize: 4, self.step_delete: 4, self.step_delete_snapshot: 4, self.step_reopen: 4,
                   self.step_verify: 6}
        if self.crashes:
            weights[self.step_crash] = 4
        try:
            self.step_create()
            for _ in range(steps):
                self.random.choices(list(weights), list(weights.values()))[0]()
            self.verify_all()
        except Exception as error:
            done = "\n".join(f"  {step}" for step in self.steps[-25:])
            raise Failed(f"seed {self.seed}, step {len(self.steps)}: {error}\nlast steps:\n{done}") from error
        finally:
            if self.client is not None:
                self.drop_client()

    def delete_all(self):
        self.close()
        for name, tag in sorted(self.snapshots, key=lambda key: self.random.random()):
            self.dog_settled(["vdi", "delete", name, "-s", tag], (0,))
        for name in sorted(self.images, key=lambda key: self.random.random()):
            self.dog_settled(["vdi", "delete", name], (0,))
        self.images.clear()
        self.snapshots.clear()
