"""Build a board's root file system from Debian packages and wheels without running any of its code, once per set of ingredients."""

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
from roots import BUILD_TIMEOUT_S, REPOSITORY, SUITE, EmulationError, extract, held, missing, run

USER = "pi"
UID = 1000
DIST_PACKAGES = f"usr/local/lib/python{PYTHON}/dist-packages"


def root_of(board: Board, *, cache: Path, mirror: str) -> AbstractContextManager[Path]:
    """Hold the board's root file system, built when it is not there.

    Raises:
        EmulationError: Something is missing here, or a download failed.
    """
    if lacks := missing(board.handler, {"ssh-keygen": "openssh-client"}):
        raise EmulationError(f"{board.model}: " + "; ".join(lacks))
    return held(board.architecture, ingredients(board, mirror), lambda root: build(board, root, mirror), cache=cache)


def pins(board: Board) -> list[str]:
    """Return the lines of constraints.txt for the board's wheels."""
    wanted = {name.partition("==")[0] for name in board.wheels}
    return [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line.partition("==")[0] in wanted]


def ingredients(board: Board, mirror: str) -> str:
    """Return everything a root file system depends on, this program included."""
    parts = json.dumps([asdict(board), pins(board), SUITE, PYTHON, mirror, sys.version_info[:2]], sort_keys=True)
    return parts + Path(__file__).read_text()


def build(board: Board, root: Path, mirror: str) -> None:
    """Fill `root`: packages are extracted, never configured, so users, links and folders that their scripts would make are made here."""
    extract(root, architecture=board.architecture, packages=board.packages, mirror=mirror)
    for name in ("proc", "sys", "dev", "run/sshd", "tmp", f"home/{USER}", "etc/ssh"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    os.chown(root / "home" / USER, UID, UID)
    for name, target in board.links.items():
        (root / name).symlink_to(target)
    for name, text in accounts().items():
        (root / "etc" / name).write_text(text)
    platforms = [f"--platform=manylinux{tag}_{board.machine}" for tag in ("2014", *(f"_2_{minor}" for minor in GLIBC_MINORS))]
    constraints = root.with_name(f"{root.name}.txt")
    constraints.write_text("\n".join(pins(board)))
    try:
        run(
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
    """Compile with this Python, the same version: under emulation it would take minutes, again at each start."""
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
    )  # a file that fails stays source


def accounts() -> dict[str, str]:
    """Return what a Pi's /etc says of its users and its name."""
    return {
        "passwd": f"root:x:0:0:root:/root:/bin/sh\n{USER}:x:{UID}:{UID}::/home/{USER}:/bin/sh\n"
        "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n",
        "group": f"root:x:0:\ntty:x:5:\n{USER}:x:{UID}:\nnogroup:x:65534:\n",
        "hostname": "raspberrypi\n",
        "hosts": "127.0.0.1 localhost raspberrypi\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    }
