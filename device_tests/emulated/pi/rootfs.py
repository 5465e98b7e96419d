"""Build the root file system of a board from Debian packages and wheels without running any of their code."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from boards import GLIBC_MINORS, PYTHON, Board
from rootfs_cache import BUILD_TIMEOUT_S, DEBIAN_SUITE, REPOSITORY, EmulationError, extract_packages, find_missing, hold_rootfs, run_step

USER = "pi"
UID = 1000
DIST_PACKAGES = f"usr/local/lib/python{PYTHON}/dist-packages"


def hold_board_rootfs(board: Board, *, cache: Path, mirror: str) -> AbstractContextManager[Path]:
    """Yield the root file system of a board, built first when it does not exist.

    Raises:
        EmulationError: This machine lacks something, or a download failed.
    """
    if lacks := find_missing(board.handler, {"ssh-keygen": "openssh-client"}):
        raise EmulationError(f"{board.model}: " + "; ".join(lacks))
    return hold_rootfs(board.architecture, describe_ingredients(board, mirror), lambda root: build_rootfs(board, root, mirror), cache=cache)


def pinned_wheels(board: Board) -> list[str]:
    """Return the lines of constraints.txt for the board's wheels."""
    wanted = {name.partition("==")[0] for name in board.wheels}
    return [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line.partition("==")[0] in wanted]


def describe_ingredients(board: Board, mirror: str) -> str:
    """Return a text of everything that a root file system depends on, including this program."""
    parts = json.dumps([asdict(board), pinned_wheels(board), DEBIAN_SUITE, PYTHON, mirror, sys.version_info[:2]], sort_keys=True)
    return parts + Path(__file__).read_text()


def build_rootfs(board: Board, root: Path, mirror: str) -> None:
    """Fill `root`. Packages are not configured, so the users, links and folders that their scripts would make are made here."""
    extract_packages(root, architecture=board.architecture, packages=board.packages, mirror=mirror)
    for name in ("proc", "sys", "dev", "run/sshd", "tmp", f"home/{USER}", "etc/ssh"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    os.chown(root / "home" / USER, UID, UID)
    for name, target in board.links.items():
        (root / name).symlink_to(target)
    for name, text in account_files().items():
        (root / "etc" / name).write_text(text)
    platforms = [f"--platform=manylinux{tag}_{board.machine}" for tag in ("2014", *(f"_2_{minor}" for minor in GLIBC_MINORS))]
    constraints = root.with_name(f"{root.name}.txt")
    constraints.write_text("\n".join(pinned_wheels(board)))
    try:
        run_step(
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--no-warn-conflicts",
            f"--constraint={constraints}", f"--target={root / DIST_PACKAGES}", *platforms,
            f"--python-version={PYTHON}", "--implementation=cp", f"--abi=cp{PYTHON.replace('.', '')}", "--only-binary=:all:",
            *board.pip_options, *board.wheels,
        )  # fmt: skip
    finally:
        constraints.unlink()
    if sys.version_info[:2] == tuple(int(part) for part in PYTHON.split(".")):
        compile_python(root)
    shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
    shutil.rmtree(root / "usr/share/doc", ignore_errors=True)


def compile_python(root: Path) -> None:
    """Compile the Python files with this Python of the same version; under emulation that would take minutes at each start."""
    folders = [root / "usr/lib" / f"python{PYTHON}", root / "usr/lib/python3/dist-packages", root / DIST_PACKAGES]
    skip = re.compile(r"/(lib2to3|test|tests|idlelib)/").pattern
    argv = [
        sys.executable,
        "-m",
        "compileall",
        "-q",
        "-x",
        skip,
        "-s",
        str(root),
        "-p",
        "/",
        *(str(folder) for folder in folders if folder.is_dir()),
    ]
    subprocess.run(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=BUILD_TIMEOUT_S, check=False
    )  # a file that cannot be compiled stays as source


def account_files() -> dict[str, str]:
    """Return {name below /etc: text} of the files that hold the users and the host name of a Pi."""
    return {
        "passwd": f"root:x:0:0:root:/root:/bin/sh\n{USER}:x:{UID}:{UID}::/home/{USER}:/bin/sh\n"
        "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n",
        "group": f"root:x:0:\ntty:x:5:\n{USER}:x:{UID}:\nnogroup:x:65534:\n",
        "hostname": "raspberrypi\n",
        "hosts": "127.0.0.1 localhost raspberrypi\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    }
