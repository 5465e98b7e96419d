"""What happens inside the device's own mount and process namespaces, as process 1: mounts are made, then this becomes its sshd.

Everything ends with process 1: the kernel kills what runs in its process namespace and drops the mounts of its mount namespace.
"""

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

from boards import BOARDS, cpuinfo, sysfs
from rootfs import BINFMT_CONFIGURATION, UID

BINFMT = Path("/proc/sys/fs/binfmt_misc")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def mount(*argv: str) -> None:
    subprocess.run(["mount", *argv], check=True)


def register(handler: str) -> None:
    """Have the kernel start the board's programs in qemu, if it does not yet. On kernels since 6.7 this too ends with the namespace."""
    if not (BINFMT / "register").exists():
        mount("-t", "binfmt_misc", "binfmt_misc", str(BINFMT))
    if not (BINFMT / handler).exists():
        try:
            (BINFMT / "register").write_text((BINFMT_CONFIGURATION / f"{handler}.conf").read_text().strip())
        except FileExistsError:  # another device was first
            return


def lay(scratch: Path, root: Path, *, storage_mib: int) -> Path:
    """Mount the shared root below a private layer in memory, so that nothing a session writes outlives the device; return where."""
    mount("-t", "tmpfs", "-o", f"size={storage_mib}m,mode=700", "tmpfs", str(scratch))
    for name in ("upper", "work", "root"):
        (scratch / name).mkdir(mode=0o755)
    here = scratch / "root"
    layers = f"lowerdir={root},upperdir={scratch / 'upper'},workdir={scratch / 'work'}"
    mount("-t", "overlay", "-o", f"nosuid,{layers}", "overlay", str(here))
    return here


def furnish(here: Path, board_name: str, cores: int) -> None:
    """Give the root its /dev, /proc and /sys, with the board's processors in place of this machine's."""
    board = BOARDS[board_name]
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
    for name, text in sysfs(board, cores).items():
        file = here / "sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    mount("-t", "proc", "-o", "nosuid,noexec", "proc", str(here / "proc"))
    (here / "run/cpuinfo").write_text(cpuinfo(board, cores))
    mount("--bind", str(here / "run/cpuinfo"), str(here / "proc/cpuinfo"))


def configure_ssh(here: Path, settings: dict) -> None:
    """Write the server's configuration and keys, fresh for each start."""
    folder = here / "etc/ssh"
    for name, text, mode in (("host_key", settings["host_key"], 0o600), ("authorized_keys", settings["user_key"], 0o644)):
        (folder / name).write_text(text)
        (folder / name).chmod(mode)
    environment = " ".join(f"{name}={value}" for name, value in settings["environment"].items())
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {settings['port']}\nHostKey /etc/ssh/host_key\nAuthorizedKeysFile /etc/ssh/authorized_keys\n"
        f"PidFile none\nUsePAM no\nUseDNS no\nStrictModes no\nPermitRootLogin no\n"
        f"PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"MaxStartups 100\nMaxSessions 100\nPrintMotd no\nSubsystem sftp internal-sftp\nSetEnv {environment}\n"
    )


def main(settings: dict) -> None:
    """Become the device's sshd.

    Args:
        settings: board, root, scratch, port, host_key, user_key, environment, cores, storage_mib.
    """
    os.umask(0o022)
    socket.sethostname("raspberrypi")
    register(BOARDS[settings["board"]].handler)
    here = lay(Path(settings["scratch"]), Path(settings["root"]), storage_mib=settings["storage_mib"])
    home = here / "home/pi"
    assert stat.S_ISDIR(home.stat().st_mode)
    assert home.stat().st_uid == UID
    furnish(here, settings["board"], settings["cores"])
    configure_ssh(here, settings)
    os.chroot(here)
    os.chdir("/")
    os.execve("/usr/sbin/sshd", ["/usr/sbin/sshd", "-D", "-e"], {"PATH": "/usr/sbin:/usr/bin", **settings["environment"]})


if __name__ == "__main__":
    main(json.load(sys.stdin))
