"""Measure whether what is told of a compressed network is true, for five networks of different kinds, each exported at default options.

The networks are trained here, in seconds: an embedder of sentences, a U-Net, a detector with two heads, a pitch tracker, and a regression
of poses. Embedder and tracker are exported without targets; the U-Net with masks; detector and regression with the user's metric, and the
detector with the user's loss. Every file is then run by its format's own runtime alone and compared with the dense network by formulas
written anew (fidelity_formulas.py). The peer is plain int8 of the dense network: litert-torch and ai-edge-quantizer with their own recipe.

Three rows a network:

- the largest difference between a number that a manifest tells (what each output keeps, the metric) and the same number computed from the
  file, of all files, refused ones included (≤ 0.002: one pixel or neighbour may tip over between two runs of a file);
- the worst published file against its bound: the metric that it loses (≤ 0.02), or where there is no metric the least that it keeps of an
  output (≥ the bound of its kind). Where nothing is published the row is 1 if the export ended with exit code 5;
- the metric of the int8-static file over the peer's (≥ 0.97), with the dense network's beside. Where no such file is published, the best
  int8 file that is.

--quick takes smaller networks, fewer samples, one short epoch of fine-tuning, and ONNX in the int8-static scheme alone; its peer is
torch.onnx with onnxruntime.quantization.
"""

import gc
import math
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from fidelity_jobs import run_job
from fidelity_peers import load_onnx_toolchain
from rows import Rows, parse

TASKS = {"embedder": False, "unet": True, "detector": True, "pitch": False, "pose": True}  # whether export is given targets, so a metric
JOBS_AT_ONCE = 2
PARITY_EXIT_CODE = 5
TOLERANCE = 2e-3
MAX_LOSS = 0.02  # the default of --max-loss: 2 points of what lies between 0 and 1
MIN_OVER_PEER = 0.97


def enter_worker(log: Path) -> None:
    """Send what the toolchains print in this process to a file."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def add_rows(rows: Rows, name: str, found: dict[str, Any]) -> None:
    spent = found["trained_s"], found["export"]["cpu_s"]
    print("# {}: trained in {:.1f} s of processor time, exported in {:.1f} s".format(name, *spent), file=sys.stderr)
    for error in filter(None, (found["export"]["error"], found["peer"].get("error"))):
        print(f"# {name}: {error}", file=sys.stderr)
    published = [file for file in found["files"] if not file["file"].endswith(".rejected")]
    judged = [file for file in published if (file["model"], file["scheme"]) != ("dense", "fp32")]
    add_truth(rows, name, found["files"], refused=len(found["files"]) - len(published))
    add_bound(rows, name, judged, found)
    add_metric(rows, name, judged, found)


def add_truth(rows: Rows, name: str, files: list[dict[str, Any]], *, refused: int) -> None:
    """Add the largest difference between what manifests tell and what the files are."""
    differences = [abs(each["told"] - each["computed"]) for file in files for each in file["kept"]]
    differences += [abs(file["told_metric"] - file["metric"]) for file in files if file["told_metric"] is not None]
    rows.add(
        f"{name}: largest difference of a told number from the file's",
        ours=max(differences, default=math.nan),
        peer=None,
        bound=TOLERANCE,
        numbers=float(len(differences)),
        files=float(len(files)),
        refused=float(refused),
    )


def add_bound(rows: Rows, name: str, judged: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """Add the worst published file against its bound, with the metric of every file beside, refused ones included."""
    beside = {f"{'dense_' if file['model'] == 'dense' else ''}{file['scheme']}": file["metric"] for file in found["files"]}
    if not judged:
        text = f"{name}: nothing is published, and the export ends with exit code {PARITY_EXIT_CODE}"
        stopped = float(found["export"]["exit_code"] == PARITY_EXIT_CODE)
        rows.add(text, ours=stopped, peer=None, bound=1, sense=">=", **beside, **tell_peer(found["peer"]))
    elif TASKS[name]:
        lost = found["dense"] - min(file["metric"] for file in judged)
        rows.add(f"{name}: metric that the worst published file loses", ours=lost, peer=None, bound=MAX_LOSS, **beside)
    else:
        worst = min((each for file in judged for each in file["kept"]), key=lambda each: each["computed"] - each["min_kept"])
        text = f"{name}: least kept by a published file, {worst['kind']}"
        rows.add(text, ours=worst["computed"], peer=None, bound=worst["min_kept"], sense=">=", **beside)


def add_metric(rows: Rows, name: str, judged: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """Add the metric of the int8 file beside the dense network's and the peer's."""
    integers = [file for file in judged if file["scheme"].startswith("int8")]
    if not integers:
        return
    best = max(integers, key=lambda file: (file["scheme"] == "int8-static", file["model"] == "compressed", file["metric"]))
    peer = found["peer"].get("metric")
    rows.add(
        f"{name}: metric in int8 over the peer's int8 of the dense network",
        ours=best["metric"],
        peer=peer,
        bound=found["dense"] - MAX_LOSS if peer is None else MIN_OVER_PEER,
        sense=">=",
        dense=found["dense"],
        chance=found["chance"],
        kept=min(each["computed"] for each in best["kept"]),
        bytes=best["bytes"],
        **tell_peer(found["peer"]),
    )


def tell_peer(peer: dict[str, Any]) -> dict[str, float]:
    """Return the figures of the peer's file: its metric, the least that it keeps of an output, and its size; none where it failed."""
    if "metric" not in peer:
        return {}
    return {"peer_metric": peer["metric"], "peer_kept": min(peer["kept"], default=math.nan), "peer_bytes": peer["bytes"]}


def main() -> None:
    options = parse(__doc__ or "")
    rows = Rows(options.write)
    torch.set_num_threads(1)
    at_once = JOBS_AT_ONCE
    if options.quick:
        at_once = len(TASKS)  # else a processor waits for the last job
        with redirect_stdout(sys.stderr):
            load_onnx_toolchain()
        gc.disable()
    gc.freeze()  # workers share the modules that are loaded here
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        log = folder / "log"
        with ProcessPoolExecutor(at_once, get_context("fork"), enter_worker, (log,)) as pool:
            jobs = {name: pool.submit(run_job, name, folder / name, quick=options.quick) for name in TASKS}
            for name, job in jobs.items():
                try:
                    add_rows(rows, name, job.result())
                except Exception:
                    print(f"# {name} failed; the log of all jobs ends:\n{log.read_text()[-3000:]}", file=sys.stderr)
                    raise
    rows.end()


if __name__ == "__main__":
    main()
