"""Build root file systems of emulated devices from Debian packages, one for each set of ingredients, in a folder that git ignores."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".emulated"
MIRROR = "http://deb.debian.org/debian"
DEBIAN_SUITE = "bookworm"
BINFMT_CONFIGURATION = Path("/usr/lib/binfmt.d")
MERGED_USR_HOOKS = Path("/usr/share/mmdebstrap/hooks/merged-usr")
BUILD_TIMEOUT_S = 600
# Put before a command, this gives it namespaces of its own: when it or this process ends, even by SIGKILL, its children and mounts go.
IN_NAMESPACES = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child")
PROGRAMS = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux", "setpriv": "util-linux", "mount": "mount"}


class EmulationError(Exception):
    """A device cannot be built or run; the message says what is missing or failed and what to do."""


def find_missing(handler: str, programs: Mapping[str, str]) -> list[str]:
    """Return what this machine lacks to build and run a device, each lack with its remedy.

    Args:
        programs: Program → Debian package, besides those that every device needs.
    """
    lacks = []
    if os.geteuid() != 0:
        lacks.append("not root; mounts and chroot need it, run it as root")
    needed = {**PROGRAMS, **programs}
    lacks += [f"{name} is missing; install the Debian package {package}" for name, package in needed.items() if not shutil.which(name)]
    if not (BINFMT_CONFIGURATION / f"{handler}.conf").is_file():
        lacks.append(f"{handler} is missing; install the Debian package qemu-user-static")
    return lacks


@contextmanager
def hold_rootfs(kind: str, ingredients: str, build: Callable[[Path], None], *, cache: Path) -> Iterator[Path]:
    """Yield a root file system that nobody removes meanwhile, built first when it does not exist.

    Of several processes that want the same one, one builds it and the others wait for that; a half-built one is never used.

    Args:
        ingredients: A text that differs whenever the result would differ for another reason than a change of this module.
    """
    digest = hashlib.sha256(ingredients.encode() + Path(__file__).read_bytes()).hexdigest()[:16]
    root = cache / f"{kind}-{digest}"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _lock_path(root).open("a") as use, root.with_name(f"{root.name}.build.lock").open("a") as building:
        while True:
            fcntl.flock(use, fcntl.LOCK_SH)
            if root.is_dir():
                break
            # The lock on use is shared for as long as a device runs, so a builder that asked for it exclusively would wait for that long.
            fcntl.flock(use, fcntl.LOCK_UN)
            fcntl.flock(building, fcntl.LOCK_EX)
            if not root.is_dir():
                _build_rootfs(kind, root, build)
            fcntl.flock(building, fcntl.LOCK_UN)
        yield root


def extract_packages(root: Path, *, architecture: str, packages: Sequence[str], mirror: str) -> None:
    """Extract Debian packages into `root` without configuring them, so that none of their code runs."""
    run_step(
        *IN_NAMESPACES, "--mount-proc", "mmdebstrap", "--quiet", "--variant=extract", f"--hook-directory={MERGED_USR_HOOKS}",
        f"--architectures={architecture}", f"--include={','.join(packages)}", "--aptopt=Acquire::Retries 2",
        "--format=directory", DEBIAN_SUITE, str(root), mirror,
    )  # fmt: skip


def run_step(*argv: str) -> str:
    """Run one command of a build and return its output.

    Raises:
        EmulationError: The command failed; the message has its last lines.
    """
    try:
        done = subprocess.run(
            argv, text=True, timeout=BUILD_TIMEOUT_S, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise EmulationError(f"{argv[0]}: not finished within {BUILD_TIMEOUT_S} s; check the network and start again") from error
    if done.returncode != 0:
        said = " | ".join(done.stdout.strip().splitlines()[-5:])
        raise EmulationError(f"{' '.join(argv[:3])}: exit status {done.returncode}: {said}; check the network and start again")
    return done.stdout


def _build_rootfs(kind: str, root: Path, build: Callable[[Path], None]) -> None:
    """Build under another name and rename, then remove root file systems of earlier ingredients that nobody uses."""
    building = root.with_name(f"{root.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    try:
        build(building)
        building.rename(root)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    for other in root.parent.glob(f"{kind}-*/"):
        with _lock_path(other).open("a") as lock, suppress(BlockingIOError):
            if other != root:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(other, ignore_errors=True)


def _lock_path(root: Path) -> Path:
    """Return the file that users of `root` lock; it is never removed, since a lock on a removed file guards nothing."""
    return root.with_name(f"{root.name}.lock")
