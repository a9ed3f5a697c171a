# SPDX-License-Identifier: Apache-2.0
"""The reference: what every byte of an image must be. A sparse map of 4 KiB blocks, cheap to copy."""
BLOCK = 4096
ZEROS = bytes(BLOCK)
REGION = 1 << 20


class Image:
    """One image's content. Blocks that are not in the map are zeros. `touched` are the 1 MiB regions that were ever
    written, zeroed or discarded: what a full comparison reads."""

    def __init__(self, size):
        self.size = size
        self.blocks = {}
        self.touched = set()

    def copy(self):
        other = Image(self.size)
        other.blocks = dict(self.blocks)
        other.touched = set(self.touched)
        return other

    def touch(self, offset, length):
        self.touched.update(range(offset // REGION, (offset + max(length, 1) - 1) // REGION + 1))

    def write(self, offset, data):
        self.touch(offset, len(data))
        at = 0
        while at < len(data):
            block, inside = divmod(offset + at, BLOCK)
            part = data[at:at + BLOCK - inside]
            old = self.blocks.get(block, ZEROS)
            new = old[:inside] + part + old[inside + len(part):]
            if new == ZEROS:
                self.blocks.pop(block, None)
            else:
                self.blocks[block] = new
            at += len(part)

    def zero(self, offset, length):
        """write-zeroes: every byte."""
        end = min(offset + length, self.size)
        first, last = -(-offset // BLOCK), end // BLOCK
        if first > last or end - offset < BLOCK:
            self.write(offset, bytes(end - offset))
            return
        self.touch(offset, length)
        if offset < first * BLOCK:
            self.write(offset, bytes(first * BLOCK - offset))
        if end > last * BLOCK:
            self.write(last * BLOCK, bytes(end - last * BLOCK))
        self._drop(first, last)

    def discard(self, offset, length):
        """Whole blocks inside become zeros; ragged ends stay."""
        self.touch(offset, length)
        end = min(offset + length, self.size)
        # The ragged last block of an image whose size is no multiple of 4 KiB counts as whole.
        last = -(-end // BLOCK) if end == self.size else end // BLOCK
        self._drop(-(-offset // BLOCK), last)

    def _drop(self, first, last):
        if last - first < len(self.blocks):
            for block in range(first, last):
                self.blocks.pop(block, None)
        else:
            for block in [b for b in self.blocks if first <= b < last]:
                del self.blocks[block]

    def read(self, offset, length):
        first, last = offset // BLOCK, -(-(offset + length) // BLOCK)
        data = b"".join(self.blocks.get(block, ZEROS) for block in range(first, last))
        return data[offset - first * BLOCK:][:length]

    def resize(self, size):
        if size < self.size:
            edge = -(-size // BLOCK) * BLOCK
            if size % BLOCK and size // BLOCK in self.blocks:
                self.write(size, bytes(edge - size))
            self._drop(edge // BLOCK, -(-self.size // BLOCK))
            self.touched = {region for region in self.touched if region * REGION < size}
        self.size = size

    def regions(self):
        """(offset, length) of what was ever touched, plus the first and last region of the image."""
        wanted = {r for r in self.touched | {0, (self.size - 1) // REGION} if r * REGION < self.size}
        for region in sorted(wanted):
            offset = region * REGION
            yield offset, min(REGION, self.size - offset)


def first_difference(offset, want, have):
    """Text that names the first byte that differs."""
    for index in range(0, max(len(want), len(have)), BLOCK):
        a, b = want[index:index + BLOCK], have[index:index + BLOCK]
        if a != b:
            byte = next((i for i in range(min(len(a), len(b))) if a[i] != b[i]), min(len(a), len(b)))
            return (f"offset {offset + index + byte} (block {(offset + index) // BLOCK}): "
                    f"want {a[byte:byte + 16].hex()}, have {b[byte:byte + 16].hex()}")
    return "no difference"
