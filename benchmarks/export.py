"""Measure how long an export takes, compared with the bare converter.

The peer calls litert-torch by hand on the same network, ResNet-20 to fp32 TFLite: import, load the weights, convert, save. Our first row
loads the recipe, writes the program and converts it in a process of its own (≤ 1.3×). The second row also reads the images, proves the file
on 500 of them and publishes it (≤ 2×). Every run starts cold in a fresh process; the three take turns, and the fastest of each counts.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from rows import Rows, parse

JOBS = Path(__file__).with_name("export_jobs.py")


def measure_seconds(job: str) -> float:
    """Run a job of export_jobs.py in a fresh process and return the seconds that it reports."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, JOBS, job, folder], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


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
    rows.end()


if __name__ == "__main__":
    main()
