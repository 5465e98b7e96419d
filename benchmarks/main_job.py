"""Measure the main job on the embedded example: MACs, size, latency, accuracy, and agreement of the int8 file with the fp32 file.

The peer is the dense fp32 TFLite file of the same network, measured interleaved with ours on one thread. The full form runs the job from
scratch; --quick takes the artifacts of examples/prebuilt. All accuracies are of all 5,000 test images.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from rows import Rows, parse

from edgecompress import toolchains
from edgecompress.artifacts.execution import run_artifact
from edgecompress.data import fetch_samples
from edgecompress.data.recipe import load_recipe
from edgecompress.devices.bench import bench
from edgecompress.devices.manifests import manifest_path
from edgecompress.devices.statistics import median
from edgecompress.network.outputs import top1
from edgecompress.network.parity import measure_parity
from edgecompress.records import Artifact, CompressionPlan, read_record

PREBUILT = toolchains.REPOSITORY / "examples" / "prebuilt"
NAME = toolchains.DEFAULT_EXAMPLE


def measure(rows: Rows, artifacts: Path, plan: Path, *, repetitions: int) -> None:
    """Add the rows of the artifacts of one run and end."""
    made = read_record(plan, CompressionPlan)
    rows.add("MACs, compressed over dense", ours=made.macs, peer=made.macs_before, bound=0.35)

    dense, ours = artifacts / f"{NAME}-dense-fp32.tflite", artifacts / f"{NAME}-int8-static.tflite"
    fp32 = artifacts / f"{NAME}-fp32.tflite"
    rows.add("bytes, int8 static over dense fp32", ours=ours.stat().st_size, peer=dense.stat().st_size, bound=1 / 6)

    x, labels = fetch_samples(load_recipe(str(toolchains.example())).eval_data())
    manifests = {path: read_record(manifest_path(path), Artifact) for path in (dense, fp32, ours)}
    outputs = {path: run_artifact(path, manifest.inputs, manifest.outputs, x)[0] for path, manifest in manifests.items()}
    accuracy = {path: 100 * top1(scores, labels) for path, (scores,) in outputs.items()}
    rows.add("top-1 points lost, compressed fp32", ours=accuracy[dense] - accuracy[fp32], peer=None, bound=0.7)
    rows.add("top-1 points lost, compressed int8 static", ours=accuracy[dense] - accuracy[ours], peer=None, bound=1.0)
    same = measure_parity(outputs[ours], outputs[fp32]).top1_agreement or 0.0
    rows.add("top-1 agreement, int8 static with fp32", ours=same, peer=None, bound=0.98, sense=">=")

    slow, fast = bench([dense, ours], threads=1, repetitions=repetitions)
    rows.add(
        "median ms on one thread, int8 static over dense fp32", ours=median(fast.latency_ms), peer=median(slow.latency_ms), bound=1 / 3
    )
    rows.end()


def main() -> None:
    options = parse(__doc__)
    rows = Rows(options.write)
    if options.quick:
        measure(rows, PREBUILT, PREBUILT / "plan.json", repetitions=200)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "run"
        subprocess.run([sys.executable, "-m", "edgecompress", "export", "--run", str(made)], check=True, stdout=sys.stderr)
        measure(rows, made / "artifacts", made / "plan.json", repetitions=1000)


if __name__ == "__main__":
    main()
