"""Build the runner for 64-bit ARM devices without Python: `python device_tests/runners/native/build.py` prints the path of one executable.

Needs pip, for LiteRT's library from the aarch64 wheel of ai-edge-litert, and the C compiler of Debian or Ubuntu for arm64 (or gcc on an
arm64 machine). That compiler comes with the C library and loader that the result carries along, which PyPI's ziglang (101 MB) does not.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[2] / ".native-runner"
NAME = "generic-linux-arm64"
LITERT = "2.3.0"  # litert.h declares the functions of this release; another may have changed them
PYTHON = "3.11"  # picks a wheel; any version would do, since its Python parts are not used
LIBRARIES = ("ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6")
PACKAGES = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross libstdc++6-arm64-cross"
SOURCES = ("runner.c", "measure.c", "infer.c", "model.c", "profile.c", "json.c", "npz.c", "sha256.c", "machine.c")
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wl,--build-id=none")
TIMEOUT_S = 600


class BuildError(Exception):
    """The runner cannot be built; the message says what is missing or failed and what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the result is kept")
    try:
        sys.stdout.write(f"{build_runner(parser.parse_args().cache)}\n")
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def build_runner(cache: Path = CACHE) -> Path:
    """Return the runner, built first when it does not exist or its sources changed; other processes wait for the build.

    Raises:
        BuildError: A tool is missing, or a step failed.
    """
    gcc = find_compiler()
    cache.mkdir(parents=True, exist_ok=True)
    built, stamp = cache / NAME, cache / "ingredients"
    with (cache / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made_of = hash_ingredients(gcc)
        if not (built.is_file() and stamp.is_file() and stamp.read_text() == made_of):
            stamp.unlink(missing_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                make_runner(gcc, Path(folder)).replace(built)
            stamp.write_text(made_of)
    return built


def find_compiler() -> str:
    """Return the gcc that builds programs for arm64."""
    name = "gcc" if platform.machine() == "aarch64" else "aarch64-linux-gnu-gcc"
    found = shutil.which(name)
    if not found:
        raise BuildError(f"{name}: not found; apt-get install {PACKAGES}")
    return found


def hash_ingredients(gcc: str) -> str:
    """Return a hash of everything that the runner is built from."""
    digest = hashlib.sha256(run_step(gcc, "--version").encode())
    for file in sorted([*HERE.glob("*.[ch]"), Path(__file__), *(find_library(gcc, name) for name in LIBRARIES)]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def find_library(gcc: str, name: str) -> Path:
    found = Path(run_step(gcc, f"-print-file-name={name}").strip())
    if not found.is_absolute():  # gcc repeats a name that it does not find
        raise BuildError(f"{name} for arm64: not found; apt-get install {PACKAGES}")
    return found


def make_runner(gcc: str, folder: Path) -> Path:
    """Build the runner in `folder` and return the executable."""
    litert = unpack_litert(folder)
    run_step(
        gcc, *FLAGS, f'-DLITERT_VERSION="{LITERT}"', *(str(HERE / name) for name in SOURCES), str(litert), "-lm",
        # LiteRT's own needs are met on the device by the libraries that travel along.
        "-Wl,--allow-shlib-undefined", "-o", "runner", cwd=folder,
    )  # fmt: skip
    for name in LIBRARIES:
        shutil.copyfile(find_library(gcc, name), folder / name)
    (folder / "parts.s").write_text(embed_files(("runner", litert.name, *LIBRARIES)))
    run_step(gcc, *FLAGS, "-static", str(HERE / "launcher.c"), "parts.s", "-o", NAME, cwd=folder)
    run_step(gcc.removesuffix("gcc") + "strip", NAME, cwd=folder)
    return folder / NAME


def unpack_litert(folder: Path) -> Path:
    """Take the C library out of the downloaded wheel, without the accelerators, of which WebGPU's crashes on Cortex-A53 and A72."""
    run_step(
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:",
        *(f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 31, 34)),
        f"--python-version={PYTHON}", "--implementation=cp", f"ai-edge-litert=={LITERT}", f"--dest={folder}",
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    target = folder / "libLiteRt.so"
    with zipfile.ZipFile(wheel) as archive:
        target.write_bytes(archive.read("ai_edge_litert/libLiteRt.so"))
    return target


def embed_files(names: tuple[str, ...]) -> str:
    """Return the assembly that embeds these files in a program, with the table of them that launcher.c reads."""
    lines = [".section .rodata"]
    for i, name in enumerate(names):
        lines += [f'name{i}: .asciz "{name}"', ".balign 16", f'start{i}: .incbin "{name}"', f"end{i}:"]
    lines += ['.section .data.rel.ro, "aw"', ".balign 8", ".global parts", "parts:"]
    lines += [f".quad name{i}, start{i}, end{i}" for i in range(len(names))]
    return "\n".join([*lines, ".quad 0, 0, 0", ".section .note.GNU-stack", ""])


def run_step(*argv: str, cwd: Path | None = None) -> str:
    """Run one command of the build and return its output.

    Raises:
        BuildError: The command failed; the message has its last lines.
    """
    try:
        done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise BuildError(f"{argv[0]}: not found; apt-get install {PACKAGES}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{argv[0]}: not finished within {TIMEOUT_S} s; check the network and start again") from error
    if done.returncode != 0:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise BuildError(f"{' '.join(argv[:3])}: exit status {done.returncode}: {said}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
