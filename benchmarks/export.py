"""What an export takes beside the bare converter.

The peer is litert-torch called by hand on the same network, ResNet-20 to fp32 TFLite: imported, the weights loaded, converted, saved.
Ours loads the recipe, writes the program and converts it in a process of its own (≤ 1.3×); in the second row the images are read too, the
file is proved on 500 of them and published (≤ 2×). All start cold, each in a fresh process, interleaved; the fastest of each counts.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from rows import Rows, parse

JOBS = Path(__file__).with_name("export_jobs.py")


def seconds(job: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, JOBS, job, folder], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    rows = Rows()
    times: dict[str, list[float]] = {"bare": [], "convert": [], "export": []}
    for _ in range(1 if parse(__doc__).quick else 5):
        for job, found in times.items():
            found.append(seconds(job))
    bare, convert, export = (min(found) for found in times.values())
    rows.add("seconds to convert ResNet-20 to TFLite", ours=convert, peer=bare, bound=1.3)
    rows.add("seconds to convert, prove and publish it", ours=export, peer=bare, bound=2)
    rows.end()


if __name__ == "__main__":
    main()
