# SPDX-License-Identifier: Apache-2.0
"""A Linux guest in QEMU (KVM where it works, else emulated) with a volume as its disk; it may move between QEMUs.

The guest is Debian's kernel and an initramfs made here: busybox, the modules for virtio, mke2fs and e2fsck. Its init makes
an ext4 file system on the volume and then, until it is told to stop, writes files, syncs each, removes and reads back old
ones. It keeps the checksums in its memory, so that what it verifies is what it wrote and not what the disk says.

1 The guest is driven by its serial console: it says PROGRESS n after each synced file; "stop" makes it verify and power off.
2 Everything that goes wrong inside is a line with GUEST-ERROR; the kernel's own I/O errors are seen, too.
3 A migration: destination() starts a QEMU that waits for the guest, with a gateway of its own; migrate_to() moves it there while it
  runs. The serial console goes with it, so the other Guest tells how it goes on.
"""
import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading

from .processes import Failed, run
from .waiting import wait_for

MODULES = ("virtio_pci", "virtio_blk", "virtio_net")
PROGRAMS = ("mke2fs", "e2fsck")
BAD = re.compile(r"GUEST-ERROR|I/O error|EXT4-fs error|Kernel panic|BUG:|Aborting journal|Remounting filesystem read-only")

INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
mkdir -p /mnt /run; mount -t tmpfs tmp /run
fail() { echo "GUEST-ERROR $*"; sleep 1; poweroff -f; }
for m in $(cat /modules.list); do insmod /modules/$m || fail "insmod $m"; done
n=0; while [ ! -b /dev/vda ]; do n=$((n + 1)); [ $n -gt 300 ] && fail "no disk"; usleep 100000; done
/sbin/mke2fs -q -F -t ext4 /dev/vda || fail mke2fs
mount -t ext4 -o discard /dev/vda /mnt || fail mount
echo GUEST-UP
n=0
check() { [ "$(md5sum < /mnt/$1)" = "$(cat /run/$1)" ] || fail "file $1 has other content"; }
while true; do
    read -t 0 line && read line && [ "$line" = stop ] && break
    n=$((n + 1))
    dd if=/dev/urandom of=/run/data bs=4096 count=$((RANDOM % 48 + 1)) 2>/dev/null || fail urandom
    md5sum < /run/data > /run/f$n
    dd if=/run/data of=/mnt/f$n bs=4096 conv=fsync 2>/dev/null || fail "write f$n"
    [ $((n % 5)) = 0 ] && { echo 3 > /proc/sys/vm/drop_caches; check f$((n - 3)); }
    if [ $n -gt 60 ]; then rm /mnt/f$((n - 60)) || fail rm; rm /run/f$((n - 60)); fi
    echo "PROGRESS $n"
done
umount /mnt || fail umount
/sbin/e2fsck -fn /dev/vda || fail e2fsck
mount -t ext4 -o ro /dev/vda /mnt || fail "mount again"
first=$((n > 60 ? n - 59 : 1))
for i in $(seq $first $n); do check f$i; done
umount /mnt
echo "GUEST-VERIFIED $n"
sleep 1
poweroff -f
"""


def kernel():
    """(vmlinuz, release) of the newest kernel that is installed."""
    images = sorted(glob.glob("/boot/vmlinuz-*-cloud-*"))
    if not images:
        raise Failed("no kernel for a guest: tools/deps/install check installs linux-image-cloud-amd64")
    return images[-1], os.path.basename(images[-1])[len("vmlinuz-"):]


def module_paths(release):
    """The modules, each behind those that it needs."""
    paths = []
    for name in MODULES:
        for line in run(["modprobe", "-S", release, "--show-depends", name]).stdout.splitlines():
            words = line.split()
            if words[0] == "insmod" and words[1] not in paths:
                paths.append(words[1])
    return paths


def copy_program(name, root):
    """A program with its libraries, at the same places."""
    path = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    files = [path] + re.findall(r"(/\S+) \(0x", run(["ldd", path]).stdout)
    for file in files:
        to = os.path.join(root, file.lstrip("/"))
        os.makedirs(os.path.dirname(to), exist_ok=True)
        shutil.copy(file, to)
    if not os.path.exists(os.path.join(root, "sbin", name)):
        shutil.copy(path, os.path.join(root, "sbin", name))


def make_initramfs(folder):
    """Returns the path of a cpio archive in `folder`."""
    root = os.path.join(folder, "root")
    for name in ("bin", "sbin", "modules", "proc", "sys", "dev", "etc"):
        os.makedirs(os.path.join(root, name))
    _, release = kernel()
    names = []
    for path in module_paths(release):
        shutil.copy(path, os.path.join(root, "modules"))
        names.append(os.path.basename(path))
    with open(os.path.join(root, "modules.list"), "w", encoding="ascii") as f:
        f.write("\n".join(names) + "\n")
    shutil.copy(shutil.which("busybox"), os.path.join(root, "bin", "busybox"))
    for name in PROGRAMS:
        copy_program(name, root)
    with open(os.path.join(root, "init"), "w", encoding="ascii") as f:
        f.write(INIT)
    os.chmod(os.path.join(root, "init"), 0o755)
    archive = os.path.join(folder, "initramfs.cpio")
    listing = "\n".join(sorted(os.path.relpath(os.path.join(at, name), root)
                               for at, folders, files in os.walk(root) for name in folders + files))
    with open(archive, "wb") as out:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=listing.encode(), stdout=out, check=True)
    shutil.rmtree(root)
    return archive


def accelerator():
    """KVM needs a processor that says so: some hosts have a /dev/kvm in which no kernel gets anywhere."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as f:
        able = re.search(r"^flags\s*:.*\b(vmx|svm)\b", f.read(), re.MULTILINE)
    return "kvm" if able and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


class Qmp:
    """QEMU's control socket: one command at a time."""

    def __init__(self, path, limit_s=60):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(limit_s)
        self.socket.connect(path)
        self.file = self.socket.makefile("rw", encoding="utf-8")
        json.loads(self.file.readline())  # the greeting
        self.command("qmp_capabilities")

    def command(self, name, **arguments):
        self.file.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "error" in answer:
                raise Failed(f"QEMU refuses {name}: {answer['error']}")
            if "return" in answer:
                return answer["return"]  # what else comes are events

    def close(self):
        self.file.close()
        self.socket.close()


class Guest:
    """One QEMU with a guest. `nbd`: what follows driver=nbd in QEMU's -blockdev. `initramfs`, `incoming`: of destination()."""

    def __init__(self, folder, nbd, initramfs=None, incoming=None):
        self.folder = folder
        image, _ = kernel()
        self.console = ""
        self.sockets = tempfile.mkdtemp(prefix="kelpie-qemu-", dir="/tmp")
        self.qmp_path = os.path.join(self.sockets, "qmp")
        self.incoming = incoming
        self.initramfs = initramfs or make_initramfs(folder)
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-machine", f"accel={accelerator()}", "-cpu", "max", "-m", "256", "-nographic", "-no-reboot", "-nodefaults",
             "-serial", "stdio", "-kernel", image, "-initrd", self.initramfs, "-append",
             "console=ttyS0 quiet panic=-1 random.trust_cpu=on", "-blockdev",
             f"driver=nbd,node-name=disk,discard=unmap,reconnect-delay=300,{nbd}", "-device", "virtio-blk-pci,drive=disk",
             "-qmp", f"unix:{self.qmp_path},server=on,wait=off", *(["-incoming", f"unix:{incoming}"] if incoming else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def destination(self, nbd):
        """A QEMU that waits for this guest, with its disk open through another gateway already."""
        other = Guest(self.folder, nbd, self.initramfs, os.path.join(self.sockets, "migration"))
        wait_for(lambda: other.ended() or os.path.exists(other.incoming), "QEMU to wait for a guest", 60, step_s=0.05)
        if other.ended():
            raise Failed(f"the destination ended with {other.process.returncode}\n{other.tail()}")
        return other

    def migrate_to(self, other, deadline_s=120):
        """Moves the running guest; this QEMU has ended when it returns."""
        qmp = Qmp(self.qmp_path)
        qmp.command("migrate", uri=f"unix:{other.incoming}")

        def moved():
            state = qmp.command("query-migrate").get("status")
            if state in ("failed", "cancelled"):
                raise Failed(f"the migration {state}\n{self.tail()}\n{other.tail()}")
            return state == "completed"

        wait_for(moved, f"the migration\n{self.tail()}", deadline_s, step_s=0.05)
        self.look()
        qmp.command("quit")
        qmp.close()
        self.process.wait(timeout=60)
        self.end()

    def _read(self):
        for line in self.process.stdout:
            self.console += line.decode(errors="replace")

    def tail(self):
        return "--- the guest's console\n" + "\n".join(self.console.splitlines()[-40:])

    def look(self):
        """Fails when anything went wrong inside."""
        bad = BAD.search(self.console)
        if bad:
            raise Failed(f"the guest says: {bad.group(0)}\n{self.tail()}")

    def ended(self):
        return self.process.poll() is not None

    def progress(self):
        """Files written and synced so far."""
        self.look()
        if self.ended():
            raise Failed(f"QEMU ended with {self.process.returncode}\n{self.tail()}")
        numbers = re.findall(r"PROGRESS (\d+)\r?\n", self.console)
        return int(numbers[-1]) if numbers else 0

    def wait_progress(self, files, deadline_s=120):
        """Until it has written that many files more than now."""
        goal = self.progress() + files
        wait_for(lambda: self.progress() >= goal, f"{files} more files in the guest\n{self.tail()}", deadline_s, step_s=0.1)

    def finish(self, deadline_s=180):
        """Lets the guest verify and power off. Returns how many files it wrote."""
        self.process.stdin.write(b"stop\n")
        self.process.stdin.flush()
        wait_for(self.ended, f"the guest to power off\n{self.tail()}", deadline_s, step_s=0.1)
        self.reader.join(timeout=10)
        self.look()
        done = re.search(r"GUEST-VERIFIED (\d+)", self.console)
        if not done:
            raise Failed(f"the guest did not verify its files\n{self.tail()}")
        return int(done.group(1))

    def end(self):
        if not self.ended():
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.sockets, ignore_errors=True)
