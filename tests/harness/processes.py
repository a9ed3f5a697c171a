# SPDX-License-Identifier: Apache-2.0
"""Running programs with a limit, and reading what the kernel says of a process."""
import os
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("KELPIE_BUILD", os.path.join(ROOT, "build")))
SHEEP = os.path.join(BUILD, "src", "sheep", "sheep")
DOG = os.path.join(BUILD, "src", "dog", "dog")


class Failed(AssertionError):
    """A program did not end as it should have."""


def run(command, expect=0, limit_s=60, stdin=None, text=True, cwd=None, environment=None):
    """Runs a program to its end. `expect`: the exit code wanted, or None for any. Returns the CompletedProcess."""
    command = [str(word) for word in command]
    source = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=limit_s, text=text,
                              cwd=cwd, env=environment, **source)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(command)}: not done after {limit_s} s\nstdout: {error.stdout!r}\n"
                     f"stderr: {error.stderr!r}") from None
    if expect is not None and done.returncode != expect:
        raise Failed(f"{' '.join(command)}: exit code {done.returncode}, not {expect}\n"
                     f"stdout: {done.stdout[-4000:]!r}\nstderr: {done.stderr[-4000:]!r}")
    return done


def cpu_seconds(pid):
    """User and system time used by a process so far."""
    with open(f"/proc/{pid}/stat", "rb") as f:
        fields = f.read().rsplit(b")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid):
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
        for line in f:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise Failed(f"/proc/{pid}/status has no VmRSS")


def socket_bytes(pid):
    """Bytes that the process has read and written through system calls or io_uring sockets, where the kernel counts
    them (rchar, wchar)."""
    with open(f"/proc/{pid}/io", encoding="ascii") as f:
        fields = dict(line.split(": ") for line in f)
    return int(fields["rchar"]), int(fields["wchar"])
