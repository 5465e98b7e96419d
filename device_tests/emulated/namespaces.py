"""Mount the file systems of an emulated device inside its own namespaces and register qemu there.

Everything ends with process 1 of the namespaces: the kernel kills the other processes in them and drops their mounts.
"""

import subprocess
from pathlib import Path

from processors import Processor, cpuinfo_text, sysfs_files
from rootfs_cache import BINFMT_CONFIGURATION

BINFMT_FOLDER = Path("/proc/sys/fs/binfmt_misc")
DEVICE_NODES = ("null", "zero", "full", "random", "urandom", "tty")


def run_mount(*argv: str) -> None:
    subprocess.run(["mount", *argv], check=True)


def register_qemu(handler: str) -> None:
    """Make the kernel start programs of another processor in qemu; since kernel 6.7 the registration ends with the namespace.

    Debian's binfmt-support, which registers qemu for the whole machine, is not needed.
    """
    if not (BINFMT_FOLDER / "register").exists():
        run_mount("-t", "binfmt_misc", "binfmt_misc", str(BINFMT_FOLDER))
    if not (BINFMT_FOLDER / handler).exists():
        try:
            (BINFMT_FOLDER / "register").write_text((BINFMT_CONFIGURATION / f"{handler}.conf").read_text().strip())
        except FileExistsError:  # another device was first
            return


def mount_pseudo_filesystems(here: Path, processor: Processor, cores: int) -> None:
    """Mount /dev, /proc and /sys in the root at `here`; they show the processors of the device in place of this machine's."""
    run_mount("-t", "tmpfs", "-o", "size=64m,mode=755,nosuid", "tmpfs", str(here / "dev"))
    for name in DEVICE_NODES:
        (here / "dev" / name).touch()
        run_mount("--bind", f"/dev/{name}", str(here / "dev" / name))
    for name in ("pts", "shm"):
        (here / "dev" / name).mkdir()
    (here / "dev/shm").chmod(0o1777)
    run_mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=620,gid=5", "devpts", str(here / "dev/pts"))
    (here / "dev/ptmx").symlink_to("pts/ptmx")
    (here / "dev/fd").symlink_to("/proc/self/fd")
    run_mount("-t", "tmpfs", "-o", "size=4m,mode=755,nosuid", "tmpfs", str(here / "sys"))
    for name, text in sysfs_files(processor, cores).items():
        file = here / "sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    run_mount("-t", "proc", "-o", "nosuid,noexec", "proc", str(here / "proc"))
    told = here / "dev/cpuinfo"
    told.write_text(cpuinfo_text(processor, cores))
    run_mount("--bind", str(told), str(here / "proc/cpuinfo"))
    told.unlink()  # the bind mount keeps the content
