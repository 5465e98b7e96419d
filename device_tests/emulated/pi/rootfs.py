"""Build a board's root file system from Debian packages and wheels without running any of its code, once per set of ingredients."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from boards import GLIBC_MINORS, PYTHON, SUITE, Board

REPOSITORY = Path(__file__).resolve().parents[3]
CACHE = REPOSITORY / ".emulated-pi"
MIRROR = "http://deb.debian.org/debian"
BINFMT_CONFIGURATION = Path("/usr/lib/binfmt.d")
HOOKS = Path("/usr/share/mmdebstrap/hooks/merged-usr")
USER = "pi"
UID = 1000
BUILD_TIMEOUT_S = 600
# A command in namespaces of its own: when it ends, or we do, even by SIGKILL, its children die and its mounts go.
ISOLATED = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child")
DIST_PACKAGES = f"usr/local/lib/python{PYTHON}/dist-packages"


class PiError(Exception):
    """What is missing or failed: `subject: fact; remedy`."""


def missing(board: Board) -> list[str]:
    """Return what this machine lacks to build and run the board, each with its remedy."""
    lacks = []
    if os.geteuid() != 0:
        lacks.append("not root; mounts and chroot need it, run it as root")
    programs = {
        "mmdebstrap": "mmdebstrap",
        "unshare": "util-linux",
        "setpriv": "util-linux",
        "mount": "mount",
        "ssh-keygen": "openssh-client",
    }
    lacks += [f"{name} is missing; install the Debian package {package}" for name, package in programs.items() if not shutil.which(name)]
    if not (BINFMT_CONFIGURATION / f"{board.handler}.conf").is_file():
        lacks.append(f"{board.handler} is missing; install the Debian package qemu-user-static")
    return lacks


def pins(board: Board) -> list[str]:
    """Return the lines of constraints.txt for the board's wheels."""
    wanted = {name.partition("==")[0] for name in board.wheels}
    return [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line.partition("==")[0] in wanted]


def ingredients(board: Board, mirror: str) -> str:
    """Return a hash of everything a root file system depends on, this program included."""
    parts = json.dumps([asdict(board), pins(board), SUITE, PYTHON, mirror, sys.version_info[:2]], sort_keys=True)
    return hashlib.sha256(parts.encode() + Path(__file__).read_bytes()).hexdigest()[:16]


@contextmanager
def root_of(board: Board, *, cache: Path = CACHE, mirror: str = MIRROR) -> Iterator[Path]:
    """Hold the board's root file system, built when it is not there. Others who want it wait; what is half built is never used.

    Raises:
        PiError: Something is missing here, or a download failed.
    """
    if lacks := missing(board):
        raise PiError(f"{board.model}: " + "; ".join(lacks))
    root = cache / f"{board.architecture}-{ingredients(board, mirror)}"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with lock_of(root).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        while not root.is_dir():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not root.is_dir():
                make(board, root, mirror)
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield root


def make(board: Board, root: Path, mirror: str) -> None:
    """Build under another name, then rename; then remove what earlier ingredients made and nobody holds."""
    building = root.with_name(f"{root.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    try:
        build(board, building, mirror)
        building.rename(root)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    for other in root.parent.glob(f"{board.architecture}-*/"):
        with lock_of(other).open("a") as lock, suppress(BlockingIOError):
            if other != root:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(other, ignore_errors=True)


def lock_of(root: Path) -> Path:
    """Return the file that holders of `root` lock; it stays, for a lock on a removed file guards nothing."""
    return root.with_name(f"{root.name}.lock")


def build(board: Board, root: Path, mirror: str) -> None:
    """Fill `root`: packages are extracted, never configured, so users, links and folders that their scripts would make are made here."""
    run(
        *ISOLATED, "--mount-proc", "mmdebstrap", "--quiet", "--variant=extract", f"--hook-directory={HOOKS}",
        f"--architectures={board.architecture}", f"--include={','.join(board.packages)}", "--aptopt=Acquire::Retries 2",
        "--format=directory", SUITE, str(root), mirror,
    )  # fmt: skip
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


def run(*argv: str) -> None:
    """Run a step of the build.

    Raises:
        PiError: It failed; carries the last lines it said.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PiError(f"{argv[0]}: not finished within {BUILD_TIMEOUT_S} s; check the network and start again") from error
    if done.returncode != 0:
        said = " | ".join(done.stdout.strip().splitlines()[-5:])
        raise PiError(f"{' '.join(argv[:3])}: exit status {done.returncode}: {said}; check the network and start again")
