# SPDX-License-Identifier: Apache-2.0
"""libnbd with limits: every call ends, answered or failed, in a bounded time."""
import time

import nbd

CALL_LIMIT_S = 60


class Late(AssertionError):
    """A request was not answered in time."""


class Nbd:
    """One libnbd connection to an export. Blocking calls, and begin_*/finish for several at once."""

    def __init__(self, uri, limit_s=CALL_LIMIT_S, structured=True):
        self.uri, self.limit_s = uri, limit_s
        self.handle = nbd.NBD()
        self.handle.set_request_structured_replies(structured)
        if structured:
            self.handle.add_meta_context("base:allocation")
        self.handle.set_strict_mode(0)
        self.handle.connect_uri(uri)
        self.size = self.handle.get_size()

    def close(self):
        """Orderly disconnect; returns when the server has closed its side."""
        if self.handle.aio_is_ready():
            self.handle.shutdown()
        self.drop()

    def drop(self):
        """Cuts the connection. (libnbd closes a handle when nobody refers to it any more.)"""
        self.handle = None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()
        else:
            self.drop()

    # --- several at once ---

    def begin_write(self, offset, data, flags=0):
        return self.handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset, flags=flags)

    def begin_read(self, offset, length):
        buffer = nbd.Buffer(length)
        return self.handle.aio_pread(buffer, offset), buffer

    def done(self, cookie):
        """True when the request is answered; raises nbd.Error when the answer is an error."""
        return self.handle.aio_command_completed(cookie)

    def turn(self, limit_ms=20):
        """Lets the connection make progress for at most that long."""
        self.handle.poll(limit_ms)

    def finish(self, cookies):
        end = time.monotonic() + self.limit_s
        left = list(cookies)
        while left:
            left = [cookie for cookie in left if not self.done(cookie)]
            if left:
                if time.monotonic() > end:
                    raise Late(f"{len(left)} requests to {self.uri} not answered in {self.limit_s} s")
                self.turn()

    # --- one at a time ---

    def read(self, offset, length):
        cookie, buffer = self.begin_read(offset, length)
        self.finish([cookie])
        return bytes(buffer.to_bytearray())

    def write(self, offset, data, flags=0):
        self.finish([self.begin_write(offset, data, flags)])

    def zero(self, offset, length, flags=0):
        self.finish([self.handle.aio_zero(length, offset, flags=flags)])

    def trim(self, offset, length):
        self.finish([self.handle.aio_trim(length, offset)])

    def flush(self):
        self.finish([self.handle.aio_flush()])

    def runs(self, offset, length):
        """Allocation map of a range: [(length, flags), …] that covers it; flags 0 = data, 3 = hole that reads as 0."""
        found = []
        end = offset + length
        while offset < end:
            got = []

            def extent(context, start, entries, error):
                assert context == "base:allocation" and error.value == 0
                got.extend(zip(entries[::2], entries[1::2]))

            self.finish([self.handle.aio_block_status(min(end - offset, 1 << 30), offset, extent)])
            assert got, "no extent in the answer"
            for run_length, flags in got:
                run_length = min(run_length, end - offset)
                if run_length > 0:
                    found.append((run_length, flags))
                    offset += run_length
        return found
