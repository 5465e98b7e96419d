"""Whether plans by measured latencies come true, and are worth more than plans by MACs.

Networks: ResNet-20 and EfficientNet-Lite0 of the examples, and ResNet-18 at 224×224 with kernels that have trained ones' spectra (its
latency is what counts); --quick takes ResNet-18 at 64×64 alone. This machine, one thread, real TFLite files, dense and planned
measured interleaved.

Rows: latency of the planned network as predicted, over that measured, both as shares of the dense network's (within 5%); planned over dense
latency in the same scheme (below 1); of ResNet-18 at 0.33 of the MACs in fp32 the speed-up that is realised over the one that MACs promise
(≥ 0.85), with plain Tucker-2 by one ratio beside it; dense fp32 over planned int8-static (≥ 7); seconds and memory of planning ResNet-18
with a warm table and cache (≤ 30 s, ≤ 2 GB).
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from networks import resnet18
from rows import Rows, parse
from torch import Tensor, nn

from edgecompress import programs
from edgecompress.batches import Batch
from edgecompress.calibration import save_calibration
from edgecompress.conversion import convert
from edgecompress.costs.source import Network, Source, open_source
from edgecompress.planning.latencies import Costs
from edgecompress.program import to_program, write_program
from edgecompress.recipe import load
from edgecompress.records import Budget, CompressionPlan, ConversionRequest, ModelStats
from edgecompress.statistics import ratio
from edgecompress.verbs.analyze import analyze
from edgecompress.verbs.bench import bench
from edgecompress.verbs.decompose import decompose
from edgecompress.verbs.plan import plan

SCHEMES = ("fp32", "int8-static")
EXAMPLES = programs.REPOSITORY / "examples"
REPETITIONS = 200


class Subject:
    """A network with its files and its plans."""

    def __init__(self, name: str, model: nn.Module, example: Batch, folder: Path, inputs: Batch | None) -> None:
        self.name, self.model, self.example, self.folder, self.inputs = name, model, example, folder, inputs
        folder.mkdir()
        self.stats: ModelStats = analyze(model, example, name=name, measure=False)
        self.network = Network(name, name, self.stats.macs, lambda path, scheme: self.write(self.model, path, scheme))

    def write(self, model: nn.Module, path: Path, scheme: str) -> None:
        program, calibration = path.with_suffix(".pt2"), path.with_suffix(".safetensors")
        write_program(to_program(model, self.example), program)
        seen = ""
        if scheme == "int8-static":
            torch.manual_seed(0)
            save_calibration(tuple(torch.rand(2, *x.shape[1:]) for x in self.example), calibration)
            seen = str(calibration)
        convert("tflite", ConversionRequest(program=str(program), output=str(path), scheme=scheme, calibration=seen))

    def plan(self, source: Source | None, scheme: str, macs_ratio: float, **options: str) -> CompressionPlan:
        costs = Costs(scheme, source.where, source.whole_ms(self.network, scheme), source.price) if source else None
        return plan(self.model, self.stats, budget=Budget(macs_ratio=macs_ratio), costs=costs, inputs=self.inputs, **options)  # type: ignore[arg-type]

    def file(self, variant: str, scheme: str, made: CompressionPlan | None = None) -> Path:
        """Return the file of the dense network, or of a plan of it."""
        path = self.folder / f"{variant}-{scheme}.tflite"
        if not path.exists():
            self.write(self.model if made is None else decompose(self.model, made)[0].eval(), path, scheme)
        return path


def share(dense: Path, other: Path) -> float:
    """Return the latency of a file over the dense one's."""
    first, second = bench([dense, other], repetitions=REPETITIONS, compare=True)
    return ratio(second, first).ratio


def on(rows: Rows, subject: Subject, source: Source, macs_ratio: float) -> None:
    """Plan in each scheme; hold prediction against measurement, and the planned network against the dense one."""
    for scheme in SCHEMES:
        made = subject.plan(source, scheme, macs_ratio)
        assert made.latency_ms is not None
        assert made.latency_ms_before
        predicted = made.latency_ms / made.latency_ms_before
        measured = share(subject.file("dense", scheme), subject.file(f"planned-{macs_ratio}", scheme, made))
        off = max(predicted / measured, measured / predicted)
        beside = {"macs": made.macs / made.macs_before, "dense_ms": made.latency_ms_before}
        rows.add(
            f"{subject.name}, {scheme}: predicted over measured share of the dense latency",
            ours=off,
            peer=None,
            bound=1.05,
            predicted=predicted,
            measured=measured,
            **beside,
        )
        rows.add(f"{subject.name}, {scheme}: planned over dense latency", ours=measured, peer=None, bound=1.0)


def realised(rows: Rows, subject: Subject, source: Source, macs_ratio: float) -> None:
    """Hold the speed-up of a plan with latencies against the one its MACs promise, plain Tucker-2 by one ratio beside it."""
    dense = subject.file("dense", "fp32")
    made = subject.plan(source, "fp32", macs_ratio)
    plain = subject.plan(None, "fp32", macs_ratio, method="tucker2", allocator="uniform")
    ours = 1 / share(dense, subject.file(f"planned-{macs_ratio}", "fp32", made))
    theirs = 1 / share(dense, subject.file("plain", "fp32", plain))
    promised, promised_plainly = made.macs_before / made.macs, plain.macs_before / plain.macs
    row = f"{subject.name} at {macs_ratio:g} of the MACs, fp32: realised over promised speed-up"
    rows.add(
        row, ours=ours / promised, peer=None, bound=0.85, sense=">=", speedup=ours, plain=theirs / promised_plainly, plain_speedup=theirs
    )
    small = subject.file(f"planned-{macs_ratio}", "int8-static", subject.plan(source, "int8-static", macs_ratio))
    rows.add(f"{subject.name}: dense fp32 over planned int8-static latency", ours=1 / share(dense, small), peer=None, bound=7.0, sense=">=")


def warm(rows: Rows, table: Path, side: int) -> None:
    """Plan in a process of its own, everything measured and fitted already."""
    argv = [sys.executable, __file__, "--warm", str(table), "--side", str(side)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=600)
    found = json.loads(done.stdout.splitlines()[-1])
    rows.add("ResNet-18, table and cache warm: seconds of planning", ours=found["seconds"], peer=None, bound=30.0)
    rows.add("ResNet-18, table and cache warm: GB of memory", ours=found["gb"], peer=None, bound=2.0)


def plan_warm(table: Path, side: int, folder: Path) -> None:
    """Be that process."""
    start = time.perf_counter()
    subject = imagenet(side, folder)
    source = open_source(device="local://", table=table, threads=1)
    subject.plan(source, "fp32", 0.33)
    gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"seconds": time.perf_counter() - start, "gb": gb}))


def imagenet(side: int, folder: Path) -> Subject:
    return Subject(f"ResNet-18 at {side}×{side}", resnet18(), (torch.zeros(1, 3, side, side),), folder / "resnet18", None)


def example(name: str, folder: Path) -> Subject:
    recipe = load(str(EXAMPLES / name))
    data = (recipe.calibration_data or recipe.eval_data)()  # type: ignore[misc]
    inputs: Tensor = torch.stack([data[i][0] if isinstance(data[i], tuple) else data[i] for i in range(128)])
    return Subject(recipe.name, recipe.model(), recipe.example_inputs, folder / name, (inputs,))


def main() -> None:
    given = parse(__doc__ or "", warm="table of a warm plan (used by the benchmark itself)", side="of the images, for --warm")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.warm:
            plan_warm(Path(given.warm), int(given.side), folder)
            return
        rows, table, side = Rows(), folder / "costs.json", 64 if given.quick else 224
        source = open_source(device="local://", table=table, threads=1, noisy=True)
        if not given.quick:
            on(rows, example("resnet20_fashion_mnist", folder), source, 0.5)
            on(rows, example("efficientnet_lite0", folder), source, 0.8)
        large = imagenet(side, folder)
        on(rows, large, source, 0.33)
        realised(rows, large, source, 0.33)
        warm(rows, table, side)
        rows.end()


if __name__ == "__main__":
    main()
