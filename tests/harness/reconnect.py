# SPDX-License-Identifier: Apache-2.0
"""An NBD client that reconnects, for programs that cannot: nbdkit's nbd plugin behind its retry filter.

1 What was not answered when a connection broke is sent again on the next one, as QEMU and the kernel's client do.
2 The program behind it sees a stall and no error, as long as a gateway comes back within `limit_s`.
"""
import os
import subprocess

from .processes import Failed
from .waiting import wait_for


class Reconnecting:
    """`uri` is what programs open; `target` the unix socket of a gateway."""

    def __init__(self, folder, target, export, limit_s=300):
        self.path = os.path.join(folder, f"re-{export}.sock")
        self.uri = f"nbd+unix:///?socket={self.path}"
        tries = int(limit_s / 0.2)
        self.process = subprocess.Popen(
            ["nbdkit", "-f", "--unix", self.path, "--filter=retry", "nbd", f"socket={target}", f"export={export}",
             f"retries={tries}", "retry-delay=1", "retry-exponential=no", "retry=60"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self._there, "nbdkit's socket", 30)

    def _there(self):
        if self.process.poll() is not None:
            raise Failed(f"nbdkit ended with {self.process.returncode}")
        return os.path.exists(self.path)

    def end(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(timeout=60)
