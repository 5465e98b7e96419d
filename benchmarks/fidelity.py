"""Measure whether what is told of a compressed network is true, for five networks of different kinds, each exported at default options.

The networks are trained here, in seconds: an embedder of sentences, a U-Net, a detector with two heads, a pitch tracker, and a regression
of poses. Embedder and tracker are exported without targets; the U-Net with masks; detector and regression with the user's metric, and the
detector with the user's loss. Every file is then run by the interpreter of TFLite alone and compared with the dense network by formulas
written anew (fidelity_formulas.py). The peer is plain int8 of the dense network: litert-torch and ai-edge-quantizer with their own recipe.

Three rows a network:

- the largest difference between a number that a manifest tells (what each output keeps, the metric) and the same number computed from the
  file, of all files, refused ones included (≤ 0.002: one pixel or neighbour may tip over between two runs of a file);
- the worst published file against its bound: the metric that it loses (≤ 0.02), or where there is no metric the least that it keeps of an
  output (≥ the bound of its kind). Where nothing is published the row is 1 if the export ended with exit code 5;
- the metric of the int8-static file over the peer's (≥ 0.97), with the dense network's beside. Where no such file is published, the best
  int8 file that is.

--quick takes fewer samples, one epoch of fine-tuning, and the int8-static scheme alone.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rows import Rows, parse

TASKS = {"embedder": False, "unet": True, "detector": True, "pitch": False, "pose": True}  # whether export is given targets, so a metric
JOBS_AT_ONCE = 2
PARITY_EXIT_CODE = 5
TOLERANCE = 2e-3
MAX_LOSS = 0.02  # the default of --max-loss: 2 points of what lies between 0 and 1
MIN_OVER_PEER = 0.97


def run_job(name: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Train and export one network in a process of its own; return its last line."""
    argv = [sys.executable, Path(__file__).with_name("fidelity_jobs.py"), name, folder, *(("--quick",) if quick else ())]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def add_rows(rows: Rows, name: str, found: dict[str, Any]) -> None:
    files, dense, peer = found["files"], found["dense"], found["peer"]
    print(f"# {name}: trained in {found['trained_s']:.0f} s, exported in {found['export']['seconds']:.0f} s", file=sys.stderr)
    for line in (found["export"]["error"], peer.get("error")):
        print(*([f"# {name}: {line}"] if line else []), end="\n" if line else "", file=sys.stderr)

    differences = [abs(each["told"] - each["computed"]) for file in files for each in file["kept"]]
    differences += [abs(file["told_metric"] - file["metric"]) for file in files if file["told_metric"] is not None]
    published = [file for file in files if not file["file"].endswith(".rejected")]
    rows.add(
        f"{name}: largest difference of a told number from the file's",
        ours=max(differences, default=math.nan),
        peer=None,
        bound=TOLERANCE,
        numbers=float(len(differences)),
        files=float(len(files)),
        refused=float(len(files) - len(published)),
    )

    judged = [file for file in published if (file["model"], file["scheme"]) != ("dense", "fp32")]
    beside = {f"{'dense_' if file['model'] == 'dense' else ''}{file['scheme']}": file["metric"] for file in files}
    if not judged:
        stopped = float(found["export"]["exit_code"] == PARITY_EXIT_CODE)
        rows.add(
            f"{name}: nothing is published, and the export ends with exit code 5", ours=stopped, peer=None, bound=1, sense=">=", **beside
        )
    elif TASKS[name]:
        lost = dense - min(file["metric"] for file in judged)
        rows.add(f"{name}: metric that the worst published file loses", ours=lost, peer=None, bound=MAX_LOSS, **beside)
    else:
        worst = min((each for file in judged for each in file["kept"]), key=lambda each: each["computed"] - each["min_kept"])
        rows.add(
            f"{name}: least kept by a published file, {worst['kind']}",
            ours=worst["computed"],
            peer=None,
            bound=worst["min_kept"],
            sense=">=",
            **beside,
        )

    integers = [file for file in judged if file["scheme"].startswith("int8")]
    best = max(integers, key=lambda file: (file["scheme"] == "int8-static", file["model"] == "compressed", file["metric"]), default=None)
    if best is not None:
        kept = min(each["computed"] for each in best["kept"])
        rows.add(
            f"{name}: metric in int8 over the peer's int8 of the dense network",
            ours=best["metric"],
            peer=peer.get("metric"),
            bound=MIN_OVER_PEER if "metric" in peer else dense - MAX_LOSS,
            sense=">=",
            dense=dense,
            chance=found["chance"],
            kept=kept,
            peer_kept=min(peer.get("kept", [math.nan])),
            bytes=best["bytes"],
            peer_bytes=peer.get("bytes", math.nan),
        )


def main() -> None:
    options = parse(__doc__ or "")
    rows = Rows(options.write)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(JOBS_AT_ONCE) as pool:
        jobs = {name: pool.submit(run_job, name, Path(folder) / name, quick=options.quick) for name in TASKS}
        for name, job in jobs.items():
            add_rows(rows, name, job.result())
    rows.end()


if __name__ == "__main__":
    main()
