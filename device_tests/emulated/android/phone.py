"""The phone with an arm64 userland: its mounts inside its own namespaces, and the device as the services use it.

This process makes the mounts and then changes its root into the device, so that a path in a request needs no translation. It stays root to
be able to cause faults; commands run and files are written as the shell user, uid 2000.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults import Faults
from folder import REMOTE, kill_runners, write_all
from namespaces import mount_pseudo_filesystems, register_qemu, run_mount
from rootfs import PHONE, UID

MAX_CORES = 8
FILLER = Path("/data/full")  # the file that takes all free space while the disk is to be full
# From <sys/mount.h>; the device has no mount(8) that this process could run.
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
REMOUNTED = {"read-only": MS_RDONLY, "noexec": MS_NOEXEC}
LIBC = ctypes.CDLL(None, use_errno=True)


def enter_device(system: Path, root: Path, *, storage_mib: int) -> None:
    """Make the mounts of the device below `root` and change the root of this process into it."""
    os.umask(0o022)
    os.setgroups([])
    register_qemu(PHONE.handler)
    here = root / "device"
    here.mkdir(exist_ok=True)
    run_mount("--bind", str(system), str(here))
    run_mount("-o", "remount,bind,ro,nosuid,nodev", str(here))
    run_mount("-t", "tmpfs", "-o", f"size={storage_mib}m,mode=771,nosuid,nodev", "tmpfs", str(here / "data"))
    run_mount("-t", "tmpfs", "-o", f"size=16m,mode=771,uid={UID},gid={UID},nosuid,nodev,noexec", "tmpfs", str(here / "sdcard"))
    storage = here / REMOTE.strip("/")
    storage.mkdir(parents=True)
    storage.chmod(0o771)
    os.chown(storage, UID, UID)
    mount_pseudo_filesystems(here, PHONE, min(MAX_CORES, len(os.sched_getaffinity(0))))
    os.chroot(here)
    os.chdir("/")


class Phone:
    """The device as the services use it, seen from inside; `Folder` has the same methods."""

    storage = Path(REMOTE)

    def __init__(self, faults: Faults, mark: str) -> None:
        self.faults, self.mark = faults, mark
        self.in_force = "none"

    def apply_storage_fault(self) -> None:
        """Make the kernel show the storage fault that is in force: fill the disk, or mount it read-only or noexec."""
        fault = self.faults.current_name()
        if fault == self.in_force:
            return
        if self.in_force == "no-space":
            FILLER.unlink()
        remount_folder("/data", REMOUNTED.get(fault, 0))
        if fault == "no-space":
            with FILLER.open("wb") as file:
                disk = os.fstatvfs(file.fileno())
                os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize)
        self.in_force = fault

    def process_arguments(self, line: str) -> tuple[list[str], dict]:
        """Return the argument list and the options of the process that a shell command becomes."""
        options = {"cwd": "/", "env": self.environment(), "user": UID, "group": UID, "extra_groups": []}
        return ["/system/bin/sh", "-c", line], options

    def environment(self) -> dict[str, str]:
        told = {"ANDROID_ROOT": "/system", "ANDROID_DATA": "/data", "HOME": "/", "SHELL": "/system/bin/sh", "TMPDIR": REMOTE}
        return {"PATH": "/system/bin", "QEMU_CPU": PHONE.qemu_cpu, "EDGECOMPRESS_END": self.mark, **told}

    @contextmanager
    def as_shell_user(self) -> Iterator[None]:
        """Act as the shell user while files are read or written."""
        os.setegid(UID)
        os.seteuid(UID)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)

    def local_path(self, name: str) -> Path:
        return Path("/") / name

    def write(self, file, data: bytes, _before: int) -> None:
        write_all(file, data)

    def effective_mode(self, mode: int) -> int:
        return mode & 0o777

    def kill_runner(self) -> None:
        kill_runners(self.storage)


def remount_folder(target: str, flags: int) -> None:
    if LIBC.mount(None, target.encode(), None, MS_REMOUNT | MS_NOSUID | MS_NODEV | flags, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)
