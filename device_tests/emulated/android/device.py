"""The folder that plays the emulated device's file system, and the programs of Android that a harness asks."""

import contextlib
import os
import signal
import stat
import sys
from pathlib import Path

from faults import NAMES, Faults

REMOTE = "/data/local/tmp"
PROGRAMS = {
    "getprop": 'case "$1" in ro.kernel.qemu) echo 1;; ro.product.model) echo "Emulated end";; esac',
    "mkdir": 'if grep -qx read-only {fault}; then echo "mkdir: \'$*\': Read-only file system" >&2; exit 1; fi; exec /bin/mkdir "$@"',
    "chmod": 'if grep -qx noexec {fault}; then exit 0; fi; exec /bin/chmod "$@"',
    "python3": 'exec {python} "$@"',
}


class Device:
    """One emulated device.

    Args:
        root: A folder of this host that is `/` there.
        python: What python3 is there.
        fault: The first line for `Faults`; later ones are written to `root`/fault.
    """

    def __init__(self, root, *, python, fault):
        self.root = root.resolve()
        self.storage = self.root / REMOTE.strip("/")
        self.storage.mkdir(parents=True, exist_ok=True)
        if fault.split()[0] not in NAMES:
            sys.exit(f"--fault {fault}: unknown; choose from {', '.join(NAMES)}")
        self.faults = Faults(self.root / "fault", fault)
        programs = self.root / "bin"
        programs.mkdir(exist_ok=True)
        for name, body in PROGRAMS.items():
            text = body.replace("{fault}", f"'{self.faults.path}'").replace("{python}", python)
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)

    def here(self, command):
        return command.replace(REMOTE, str(self.storage))

    def path(self, name):
        return Path(self.here(name) if name.startswith(REMOTE) else f"{self.root}/{name.lstrip('/')}")

    def environment(self):
        path = f"{self.root / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.storage), "TMPDIR": str(self.storage), "LANG": "C.UTF-8"}

    def create(self, name):
        """Open a file for writing as a push does.

        Raises:
            OSError: It cannot be.
        """
        if self.faults.on("read-only"):
            raise OSError(0, "Read-only file system")
        return self.path(name).open("wb")

    def mode(self, mode):
        return mode & (0o666 if self.faults.on("noexec") else 0o777)

    def kill_runner(self):
        """Kill what says to be a runner, as the kernel does when the memory runs out."""
        for file in self.storage.glob("*/pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)


def facts(path):
    """Return (mode, size, mtime) as sync STAT has them; zeros for a path that is not there."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return stat.S_IFMT(found.st_mode) | stat.S_IMODE(found.st_mode), found.st_size & 0xFFFFFFFF, int(found.st_mtime) & 0xFFFFFFFF
