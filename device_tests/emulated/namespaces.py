"""What happens inside the mount and process namespaces of an emulated device.

Everything ends with process 1 in there: the kernel kills what runs in its process namespace and drops the mounts of its mount namespace.
"""

import subprocess
from pathlib import Path

from processors import Processor, cpuinfo, sysfs
from roots import BINFMT_CONFIGURATION

BINFMT = Path("/proc/sys/fs/binfmt_misc")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def mount(*argv: str) -> None:
    subprocess.run(["mount", *argv], check=True)


def register(handler: str) -> None:
    """Have the kernel start programs of another processor in qemu, if it does not yet; since kernel 6.7 this too ends with the namespace.

    Debian's binfmt-support would do it for the whole machine, and is not needed.
    """
    if not (BINFMT / "register").exists():
        mount("-t", "binfmt_misc", "binfmt_misc", str(BINFMT))
    if not (BINFMT / handler).exists():
        try:
            (BINFMT / "register").write_text((BINFMT_CONFIGURATION / f"{handler}.conf").read_text().strip())
        except FileExistsError:  # another device was first
            return


def furnish(here: Path, processor: Processor, cores: int) -> None:
    """Give the root at `here` its /dev, /proc and /sys, with the device's processors in place of this machine's."""
    mount("-t", "tmpfs", "-o", "size=64m,mode=755,nosuid", "tmpfs", str(here / "dev"))
    for name in DEVICES:
        (here / "dev" / name).touch()
        mount("--bind", f"/dev/{name}", str(here / "dev" / name))
    for name in ("pts", "shm"):
        (here / "dev" / name).mkdir()
    (here / "dev/shm").chmod(0o1777)
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=620,gid=5", "devpts", str(here / "dev/pts"))
    (here / "dev/ptmx").symlink_to("pts/ptmx")
    (here / "dev/fd").symlink_to("/proc/self/fd")
    mount("-t", "tmpfs", "-o", "size=4m,mode=755,nosuid", "tmpfs", str(here / "sys"))
    for name, text in sysfs(processor, cores).items():
        file = here / "sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    mount("-t", "proc", "-o", "nosuid,noexec", "proc", str(here / "proc"))
    told = here / "dev/cpuinfo"
    told.write_text(cpuinfo(processor, cores))
    mount("--bind", str(told), str(here / "proc/cpuinfo"))
    told.unlink()  # the mount keeps it
