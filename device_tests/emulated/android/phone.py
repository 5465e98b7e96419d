"""The emulated phone whose commands are arm64 code: what happens inside its own namespaces, and how services reach it.

This process makes the mounts and then changes its root into the device, so that a path in a request means what it means there. It stays
root for its faults; commands and files are the shell user's, uid 2000.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults import Faults
from folder import REMOTE, kill_runners, write_all
from namespaces import furnish, mount, register
from rootfs import PHONE, UID

MAX_CORES = 8
FULL = Path("/data/full")  # what takes the space away
# <sys/mount.h>; there is no mount(8) in there that this process could run.
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
REMOUNTED = {"read-only": MS_RDONLY, "noexec": MS_NOEXEC}
LIBC = ctypes.CDLL(None, use_errno=True)


def become(system: Path, root: Path, *, storage_mib: int) -> None:
    """Make the mounts below `root` and go in there."""
    os.umask(0o022)
    os.setgroups([])
    register(PHONE.handler)
    here = root / "device"
    here.mkdir(exist_ok=True)
    mount("--bind", str(system), str(here))
    mount("-o", "remount,bind,ro,nosuid,nodev", str(here))
    mount("-t", "tmpfs", "-o", f"size={storage_mib}m,mode=771,nosuid,nodev", "tmpfs", str(here / "data"))
    mount("-t", "tmpfs", "-o", f"size=16m,mode=771,uid={UID},gid={UID},nosuid,nodev,noexec", "tmpfs", str(here / "sdcard"))
    storage = here / REMOTE.strip("/")
    storage.mkdir(parents=True)
    storage.chmod(0o771)
    os.chown(storage, UID, UID)
    furnish(here, PHONE, min(MAX_CORES, len(os.sched_getaffinity(0))))
    os.chroot(here)
    os.chdir("/")


class Phone:
    """The device this process is in. What services need of a device is what `Folder` has too."""

    storage = Path(REMOTE)

    def __init__(self, faults: Faults, mark: str) -> None:
        self.faults, self.mark = faults, mark
        self.in_force = "none"

    def settle(self) -> None:
        """Let the kernel have the storage fault that is in force."""
        fault = self.faults.name()
        if fault == self.in_force:
            return
        if self.in_force == "no-space":
            FULL.unlink()
        remount("/data", REMOUNTED.get(fault, 0))
        if fault == "no-space":
            with FULL.open("wb") as file:
                disk = os.fstatvfs(file.fileno())
                os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize)
        self.in_force = fault

    def command(self, line: str) -> tuple[list[str], dict]:
        """Return the argument list and the options of the process that a shell command becomes."""
        options = {"cwd": "/", "env": self.environment(), "user": UID, "group": UID, "extra_groups": []}
        return ["/system/bin/sh", "-c", line], options

    def environment(self) -> dict[str, str]:
        told = {"ANDROID_ROOT": "/system", "ANDROID_DATA": "/data", "HOME": "/", "SHELL": "/system/bin/sh", "TMPDIR": REMOTE}
        return {"PATH": "/system/bin", "QEMU_CPU": PHONE.qemu_cpu, "EDGECOMPRESS_END": self.mark, **told}

    @contextmanager
    def user(self) -> Iterator[None]:
        """Touch files as the shell user does."""
        os.setegid(UID)
        os.seteuid(UID)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)

    def path(self, name: str) -> Path:
        return Path("/") / name

    def write(self, file, data: bytes, _before: int) -> None:
        write_all(file, data)

    def mode(self, mode: int) -> int:
        return mode & 0o777

    def kill_runner(self) -> None:
        kill_runners(self.storage)


def remount(target: str, flags: int) -> None:
    if LIBC.mount(None, target.encode(), None, MS_REMOUNT | MS_NOSUID | MS_NODEV | flags, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)
