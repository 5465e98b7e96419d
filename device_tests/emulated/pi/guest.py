"""Process 1 inside the namespaces of the device: make its mounts, then become its sshd."""

import os
import socket
import stat
from pathlib import Path

from boards import BOARDS
from namespaces import mount_pseudo_filesystems, register_qemu, run_mount
from rootfs import UID


def mount_overlay(scratch: Path, root: Path, *, storage_mib: int) -> Path:
    """Mount the shared root below a private layer in memory, so that what a session writes ends with the device; return the mount point."""
    run_mount("-t", "tmpfs", "-o", f"size={storage_mib}m,mode=700", "tmpfs", str(scratch))
    for name in ("upper", "work", "root"):
        (scratch / name).mkdir(mode=0o755)
    here = scratch / "root"
    layers = f"lowerdir={root},upperdir={scratch / 'upper'},workdir={scratch / 'work'}"
    run_mount("-t", "overlay", "-o", f"nosuid,{layers}", "overlay", str(here))
    return here


def configure_ssh(here: Path, settings: dict) -> None:
    """Write the configuration and the keys of this start's sshd."""
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


def become_sshd(settings: dict) -> None:
    """Replace this process by the sshd of the device.

    Args:
        settings: board, root, scratch, port, host_key, user_key, environment, cores, storage_mib, limited_by.
    """
    if settings["limited_by"]:
        Path(settings["limited_by"]).write_text("0")
    os.umask(0o022)
    socket.sethostname("raspberrypi")
    board = BOARDS[settings["board"]]
    register_qemu(board.handler)
    here = mount_overlay(Path(settings["scratch"]), Path(settings["root"]), storage_mib=settings["storage_mib"])
    home = here / "home/pi"
    assert stat.S_ISDIR(home.stat().st_mode)
    assert home.stat().st_uid == UID
    mount_pseudo_filesystems(here, board, settings["cores"])
    configure_ssh(here, settings)
    os.chroot(here)
    os.chdir("/")
    os.execve("/usr/sbin/sshd", ["/usr/sbin/sshd", "-D", "-e"], {"PATH": "/usr/sbin:/usr/bin", **settings["environment"]})
