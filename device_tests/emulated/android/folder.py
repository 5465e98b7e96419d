"""A folder in the role of the phone, where arm64 programs cannot run: this machine's programs run, storage faults are simulated."""

import contextlib
import errno
import os
import re
import signal
import stat
from pathlib import Path

REMOTE = "/data/local/tmp"
FREE_BYTES = 4096  # a full disk still takes this much, so that a push fails in the middle
PROGRAMS = {
    "getprop": 'case "$1" in ro.kernel.qemu) echo 1;; ro.product.model) echo "Emulated end";; esac',
    "mkdir": 'if grep -qx read-only {fault}; then echo "mkdir: \'$*\': Read-only file system" >&2; exit 1; fi; exec /bin/mkdir "$@"',
    "chmod": 'if grep -qx noexec {fault}; then exit 0; fi; exec /bin/chmod "$@"',
    "python3": 'exec {python} "$@"',
}


class Folder:
    """The device as the services use it; `Phone` has the same methods.

    Args:
        root: A folder of this host that is `/` there.
        python: The interpreter that python3 starts there.
        mark: The value of EDGECOMPRESS_END in the environment of every process there.
    """

    def __init__(self, root, faults, *, python, mark):
        self.root, self.faults, self.mark = root, faults, mark
        self.storage = root / REMOTE.strip("/")
        self.storage.mkdir(parents=True, exist_ok=True)
        programs = root / "bin"
        programs.mkdir(exist_ok=True)
        for name, body in PROGRAMS.items():
            text = body.replace("{fault}", f"'{root / 'fault'}'").replace("{python}", python)
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)

    def apply_storage_fault(self):
        """Do nothing; each fault is looked up at the operation that it concerns."""

    def process_arguments(self, line):
        """Return the argument list and the options of the process that a shell command becomes; its paths become those of the folder."""
        if (script := re.fullmatch(rf"sh ({REMOTE}/\S+\.sh)", line)) and (path := self.local_path(script[1])).is_file():
            path.write_text(path.read_text().replace(REMOTE, str(self.storage)))
        environment = {
            "PATH": f"{self.root / 'bin'}:/usr/local/bin:/usr/bin:/bin", "HOME": str(self.storage), "TMPDIR": str(self.storage),
            "LANG": "C.UTF-8", "EDGECOMPRESS_END": self.mark,
        }  # fmt: skip
        return ["sh", "-c", line.replace(REMOTE, str(self.storage))], {"cwd": self.root, "env": environment}

    def as_shell_user(self):
        """Act as the shell user, who is the user of this process."""
        return contextlib.nullcontext()

    def local_path(self, name):
        return Path(name.replace(REMOTE, str(self.storage)) if name.startswith(REMOTE) else f"{self.root}/{name.lstrip('/')}")

    def write(self, file, data, before):
        """Write a part of a pushed file of which `before` bytes are written already.

        Raises:
            OSError: The disk is full or read-only.
        """
        if self.faults.is_on("read-only"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if self.faults.is_on("no-space") and before + len(data) > FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(file, data)

    def effective_mode(self, mode):
        return mode & (0o666 if self.faults.is_on("noexec") else 0o777)

    def kill_runner(self):
        kill_runners(self.storage)


def write_all(file, data):
    """Write all of `data`; a disk that fills up first takes a part of it without an error."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def kill_runners(storage):
    """Kill every process that left its number in a work folder as a runner does, as the kernel does when the memory runs out."""
    for file in storage.glob("*/pid"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGKILL)


def stat_fields(path):
    """Return (mode, size, mtime) as the sync service sends them; zeros for a path that does not exist."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return stat.S_IFMT(found.st_mode) | stat.S_IMODE(found.st_mode), found.st_size & 0xFFFFFFFF, int(found.st_mtime) & 0xFFFFFFFF
