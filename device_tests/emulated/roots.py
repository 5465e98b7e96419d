"""Root file systems of emulated devices: made of Debian packages, once per set of ingredients, kept in a folder that git ignores."""

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
SUITE = "bookworm"
BINFMT_CONFIGURATION = Path("/usr/lib/binfmt.d")
HOOKS = Path("/usr/share/mmdebstrap/hooks/merged-usr")
BUILD_TIMEOUT_S = 600
# A command in namespaces of its own: when it ends, or we do, even by SIGKILL, its children die and its mounts go.
ISOLATED = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child")
PROGRAMS = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux", "setpriv": "util-linux", "mount": "mount"}


class EmulationError(Exception):
    """What is missing or failed: `subject: fact; remedy`."""


def missing(handler: str, programs: Mapping[str, str]) -> list[str]:
    """Return what this machine lacks to build and run a device, each with its remedy.

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
def held(kind: str, ingredients: str, build: Callable[[Path], None], *, cache: Path) -> Iterator[Path]:
    """Hold a root file system, built when it is not there. Others who want it wait; what is half built is never used.

    Args:
        ingredients: All it depends on but this module.
    """
    digest = hashlib.sha256(ingredients.encode() + Path(__file__).read_bytes()).hexdigest()[:16]
    root = cache / f"{kind}-{digest}"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _lock_of(root).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        while not root.is_dir():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not root.is_dir():
                _make(kind, root, build)
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield root


def extract(root: Path, *, architecture: str, packages: Sequence[str], mirror: str) -> None:
    """Fill `root` with Debian packages: extracted, never configured, so none of their code runs."""
    run(
        *ISOLATED, "--mount-proc", "mmdebstrap", "--quiet", "--variant=extract", f"--hook-directory={HOOKS}",
        f"--architectures={architecture}", f"--include={','.join(packages)}", "--aptopt=Acquire::Retries 2",
        "--format=directory", SUITE, str(root), mirror,
    )  # fmt: skip


def run(*argv: str) -> str:
    """Run a step of a build; return what it printed.

    Raises:
        EmulationError: It failed; carries the last lines it said.
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


def _make(kind: str, root: Path, build: Callable[[Path], None]) -> None:
    """Build under another name, then rename; then remove what earlier ingredients made and nobody holds."""
    building = root.with_name(f"{root.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    try:
        build(building)
        building.rename(root)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    for other in root.parent.glob(f"{kind}-*/"):
        with _lock_of(other).open("a") as lock, suppress(BlockingIOError):
            if other != root:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(other, ignore_errors=True)


def _lock_of(root: Path) -> Path:
    """Return the file that holders of `root` lock; it stays, for a lock on a removed file guards nothing."""
    return root.with_name(f"{root.name}.lock")
