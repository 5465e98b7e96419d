"""Measure how long an export takes, compared with bare converters, and what planning a large network takes.

- ResNet-20 to fp32 TFLite. The peer calls litert-torch by hand: import, load the weights, convert, save. Our first row loads the recipe,
  writes the program and converts it in a process of its own (≤ 1.3×). The second row also reads the images, proves the file on 500 of them
  and publishes it (≤ 2×).
- Eight files in three formats of a network of 400,000 parameters: the last step of a run, with the proof of each file on 500 inputs. The
  peer starts each file's converter program by itself, one after the other as a shell script would: each imports its toolchain, converts
  one program that lies there already, and ends; nothing is proved (≤ 1×). Beside are the CPU seconds of both.
- CPU seconds and memory of planning ResNet-34, 22 million parameters, with 64 inputs of 224×224 and an empty cache (≤ 60 s, ≤ 2 GB; not
  with --quick).

Every run starts cold in a fresh process; the runs of a row take turns, and the fastest of each counts.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from rows import Rows, parse

from edgecompress import toolchains

JOBS = Path(__file__).with_name("export_jobs.py")
RUNS = Path(__file__).with_name("export_runs.py")


class Usage(NamedTuple):
    """What a process and all that it waited for took; `peak_gb` is the largest memory of one of them."""

    wall_s: float
    cpu_s: float
    peak_gb: float


def measure_seconds(job: str) -> float:
    """Run a job of export_jobs.py in a fresh process and return the seconds that it reports."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, JOBS, job, folder], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def measure_process(argv: list[str | Path], *, stdin: Path | None = None, **settings: str) -> Usage:
    """Run a program to its end and return what it took.

    Raises:
        RuntimeError: It failed.
    """
    with tempfile.TemporaryFile() as output, (stdin or Path(os.devnull)).open("rb") as given:
        started = time.perf_counter()
        process = subprocess.Popen(argv, stdin=given, stdout=output, stderr=subprocess.STDOUT, env=os.environ | settings)
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)  # it is reaped already
        output.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(map(str, argv))}: status {process.returncode}: {output.read().decode()[-2000:]}")
    return Usage(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9)


def convert_separately(folder: Path) -> Usage:
    """Start the converter program of each request of `export_runs.py prepare`, one after the other; return the sums."""
    settings = {"PYTHONPATH": str(toolchains.program_root()), "PYTHONHASHSEED": "0"}
    used = [
        measure_process([sys.executable, "-P", toolchains.converter(path.stem.partition("-")[2])], stdin=path, **settings)
        for path in sorted(folder.glob("*.request"))
    ]
    assert len(used) == 8, used
    return Usage(sum(each.wall_s for each in used), sum(each.cpu_s for each in used), max(each.peak_gb for each in used))


def export_together(folder: Path) -> Usage:
    """Carry out the last step of a copy of the prepared run."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(folder / "run", Path(name) / "run")
        return measure_process([sys.executable, RUNS, "export", name])


def measure_eight_files(rows: Rows, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure_process([sys.executable, RUNS, "prepare", folder])
        ours, peer = [], []
        for _ in range(rounds):
            peer.append(convert_separately(folder))
            ours.append(export_together(folder))
    ours_s, peer_s = (min(each.wall_s for each in found) for found in (ours, peer))
    cpu_s = {f"{who}_cpu_s": min(each.cpu_s for each in found) for who, found in (("our", ours), ("peer", peer))}
    rows.add(
        "seconds to convert, prove and publish eight files, of eight converters by themselves", ours=ours_s, peer=peer_s, bound=1, **cpu_s
    )


def measure_planning(rows: Rows) -> None:
    with tempfile.TemporaryDirectory() as name:
        used = measure_process([sys.executable, RUNS, "plan", name], EDGECOMPRESS_CACHE=f"{name}/cache")
    rows.add("CPU seconds of planning ResNet-34 with 64 inputs", ours=used.cpu_s, peer=None, bound=60, wall_s=used.wall_s)
    rows.add("GB of memory of planning ResNet-34 with 64 inputs", ours=used.peak_gb, peer=None, bound=2)


def main() -> None:
    options = parse(__doc__)
    rows = Rows(options.write)
    times: dict[str, list[float]] = {"bare": [], "convert": [], "export": []}
    for _ in range(1 if options.quick else 5):
        for job, found in times.items():
            found.append(measure_seconds(job))
    bare, convert, export = (min(found) for found in times.values())
    rows.add("seconds to convert ResNet-20 to TFLite", ours=convert, peer=bare, bound=1.3)
    rows.add("seconds to convert, prove and publish it", ours=export, peer=bare, bound=2)
    measure_eight_files(rows, rounds=1 if options.quick else 3)
    if not options.quick:
        measure_planning(rows)
    rows.end()


if __name__ == "__main__":
    main()
