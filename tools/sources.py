# SPDX-License-Identifier: Apache-2.0
"""What the checks of this folder share: which files the project has, and how a check is reported."""
import os
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def tracked(*patterns):
    """Project files (tracked, or new and not ignored) that match git's patterns, sorted."""
    command = ["git", "-c", "safe.directory=*", "-C", ROOT, "ls-files", "-z", "-co", "--exclude-standard", "--"]
    out = subprocess.run(command + list(patterns), check=True, stdout=subprocess.PIPE).stdout
    names = sorted(set(out.decode().split("\0")) - {""})
    return [name for name in names if os.path.isfile(os.path.join(ROOT, name))]


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8", errors="surrogateescape") as f:
        return f.read()


class Report:
    """Collects the findings of each check and prints one `ok NAME` or `FAIL NAME` line per check."""

    def __init__(self):
        self.passed = self.failed = 0

    def check(self, name, findings):
        findings = list(findings)
        if not findings:
            self.passed += 1
            print(f"ok {name}", flush=True)
            return
        self.failed += 1
        for finding in findings[:40]:
            print(f"  {finding}")
        if len(findings) > 40:
            print(f"  … and {len(findings) - 40} more")
        print(f"FAIL {name}: {len(findings)} findings", flush=True)

    def status(self):
        print(f"{self.passed} passed, {self.failed} failed")
        return 0 if self.failed == 0 else 1
