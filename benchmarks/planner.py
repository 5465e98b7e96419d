"""Measure whether plans by latency come true, and whether they are worth more than plans by MACs.

The networks are ResNet-20 and EfficientNet-Lite0 of the examples, and ResNet-18 at 224×224 with generated kernels that have the spectra
of trained ones, since only its latency counts. --quick takes the first two stages of ResNet-18 at 112×112 alone. All files are real
TFLite files, measured on this machine on one thread, dense and planned interleaved. The rows are:

- predicted over measured latency of the planned network, both as shares of the dense network's (within 5%; within 10% with --quick, whose
  layers take tens of microseconds, less than the drift of the machine);
- planned over dense latency in the same scheme (below 1);
- for ResNet-18 at 0.33 of the MACs in fp32, the measured speed-up over the one that its MACs promise (≥ 0.85), with plain Tucker-2 by one
  ratio beside (not with --quick);
- dense fp32 over planned int8-static latency (≥ 7), with dense int8-static beside, which gains nothing without 8-bit dot products;
- seconds of measuring ResNet-18's cost table (≤ 180);
- seconds and memory of planning ResNet-18 with a warm table and cache (≤ 30 s, ≤ 2 GB).
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from lines import Workers
from networks import resnet18
from rows import Rows, parse
from torch import Tensor, nn

from edgecompress import toolchains
from edgecompress.data.recipe import load_recipe
from edgecompress.devices.bench import bench
from edgecompress.devices.statistics import ratio
from edgecompress.factorizations.decompose import decompose
from edgecompress.network.analyze import analyze
from edgecompress.network.batches import Batch
from edgecompress.network.exported import to_program, write_program
from edgecompress.planning.latencies import DeviceCosts
from edgecompress.planning.latency_tables.measured_table import MeasuredCostTable, NetworkToMeasure, open_cost_table
from edgecompress.planning.plan import plan
from edgecompress.planning.profile import profile
from edgecompress.planning.reduced_network import form_pairs, reduce_network
from edgecompress.planning.sensitivity import MIN_SAMPLES
from edgecompress.quantization.calibration import save_calibration
from edgecompress.records import Budget, CompressionPlan, ConversionRequest, ModelStats, to_json

Plans = dict[tuple[str, str], CompressionPlan]  # (variant, scheme)
SCHEMES = ("fp32", "int8-static")
EXAMPLES = toolchains.REPOSITORY / "examples"
REPETITIONS = 200
WHOLE, QUICK = (4, 224), (2, 112)  # number of stages of ResNet-18, side of its images in pixels


class Subject:
    """A network with its files and its plans."""

    def __init__(self, name: str, model: nn.Module, example: Batch, folder: Path, inputs: Batch | None) -> None:
        self.name, self.model, self.example, self.folder, self.inputs = name, model, example, folder, inputs
        folder.mkdir()
        self.stats: ModelStats = analyze(model, example, name=name, measure=False)
        self.profiled_s = 0.0
        self.models = {"dense": model, "reduced": reduce_network(model, self.stats)}
        self.network = NetworkToMeasure(name, name, self.stats.macs, form_pairs(model, self.stats), self._copy)

    def file(self, variant: str, scheme: str) -> Path:
        return self.folder / f"{variant}-{scheme}.tflite"

    def plan(self, source: MeasuredCostTable | None, scheme: str, macs_ratio: float, **options: str) -> CompressionPlan:
        whole = source.network_cost(self.network, scheme) if source else None
        costs = (
            DeviceCosts(scheme, source.conditions, whole.ms, source.latencies_of, whole.layers_ms, source.remeasure)
            if source and whole
            else None
        )
        return plan(self.model, self.stats, budget=Budget(macs_ratio=macs_ratio), costs=costs, inputs=self.inputs, **options)  # type: ignore[arg-type]

    def prepare(self, source: MeasuredCostTable, macs_ratio: float, converters: Workers, *, plain: bool = False) -> Plans:
        """Plan in each scheme, and plain Tucker-2 by one ratio if asked to; write all files before any of them is timed."""
        self._write({(variant, scheme): model for variant, model in self.models.items() for scheme in SCHEMES}, converters)
        start = time.perf_counter()
        profile(self.model, self.stats, source, self.network, schemes=SCHEMES)
        self.profiled_s = time.perf_counter() - start
        plans = {("planned", scheme): self.plan(source, scheme, macs_ratio) for scheme in SCHEMES}
        if plain:
            plans["plain", "fp32"] = self.plan(None, "fp32", macs_ratio, method="tucker2", allocator="uniform")
        self._write({key: decompose(self.model, made)[0].eval() for key, made in plans.items()}, converters)
        return plans

    def _copy(self, paths: tuple[Path, Path], scheme: str) -> None:
        for variant, path in zip(self.models, paths, strict=True):
            shutil.copyfile(self.file(variant, scheme), path)

    def _write(self, wanted: Mapping[tuple[str, str], nn.Module], converters: Workers) -> None:
        requests = [self._request(self.file(*key), key[1], model) for key, model in wanted.items()]
        converters.map("convert", [{"request": to_json(request).decode()} for request in requests])

    def _request(self, path: Path, scheme: str, model: nn.Module) -> ConversionRequest:
        program, calibration = path.with_suffix(".pt2"), path.with_suffix(".safetensors")
        write_program(to_program(model, self.example), program)
        seen = ""
        if scheme == "int8-static":
            torch.manual_seed(0)
            save_calibration(tuple(torch.rand(2, *x.shape[1:]) for x in self.example), calibration)
            seen = str(calibration)
        return ConversionRequest(program=str(program), output=str(path), scheme=scheme, calibration=seen)


def latency_ratio(dense: Path, other: Path) -> float:
    """Return the latency of a file over the dense one's."""
    first, second = bench([dense, other], repetitions=REPETITIONS, compare=True)
    return ratio(second, first).ratio


def measure_predictions(rows: Rows, subject: Subject, plans: Plans, *, bound: float = 1.05) -> dict[str, float]:
    """Compare predicted with measured latency, and the planned with the dense network; return planned over dense latency by scheme."""
    found = {}
    for scheme in SCHEMES:
        made = plans["planned", scheme]
        assert made.latency_ms is not None
        assert made.latency_ms_before
        predicted = made.latency_ms / made.latency_ms_before
        measured = found[scheme] = latency_ratio(subject.file("dense", scheme), subject.file("planned", scheme))
        off = max(predicted / measured, measured / predicted)
        beside = {"macs": made.macs / made.macs_before, "dense_ms": made.latency_ms_before}
        rows.add(
            f"{subject.name}, {scheme}: predicted over measured share of the dense latency",
            ours=off,
            peer=None,
            bound=bound,
            predicted=predicted,
            measured=measured,
            **beside,
        )
        rows.add(f"{subject.name}, {scheme}: planned over dense latency", ours=measured, peer=None, bound=1.0)
    return found


def measure_realised_speedup(rows: Rows, subject: Subject, plans: Plans, measured: float) -> None:
    """Compare the measured speed-up of a plan with the one that its MACs promise, with plain Tucker-2 beside where it was planned."""
    dense, made = subject.file("dense", "fp32"), plans["planned", "fp32"]
    beside = {"speedup": 1 / measured}
    if plain := plans.get(("plain", "fp32")):
        theirs = 1 / latency_ratio(dense, subject.file("plain", "fp32"))
        beside |= {"plain": theirs * plain.macs / plain.macs_before, "plain_speedup": theirs}
    row = f"{subject.name} at {made.budget.macs_ratio:g} of the MACs, fp32: realised over promised speed-up"
    rows.add(row, ours=made.macs / made.macs_before / measured, peer=None, bound=0.85, sense=">=", **beside)
    small, scheme_alone = (latency_ratio(dense, subject.file(variant, "int8-static")) for variant in ("planned", "dense"))
    row = f"{subject.name}: dense fp32 over planned int8-static latency"
    rows.add(row, ours=1 / small, peer=None, bound=7.0, sense=">=", dense_int8=1 / scheme_alone)


def measure_warm_planning(rows: Rows, table: Path, *, quick: bool) -> None:
    """Measure planning in a fresh process, with data, after another process has filled the table and the cache."""
    argv = [sys.executable, __file__, "--warm", str(table), *(["--quick"] if quick else [])]
    for _ in range(2):
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=600)
    found = json.loads(done.stdout.splitlines()[-1])
    rows.add("ResNet-18, table and cache warm: seconds of planning", ours=found["seconds"], peer=None, bound=30.0)
    rows.add("ResNet-18, table and cache warm: GB of memory", ours=found["gb"], peer=None, bound=2.0)


def plan_warm(table: Path, folder: Path, *, quick: bool) -> None:
    """Plan ResNet-18 with a warm table; print seconds and memory as JSON. `measure_warm_planning` runs this in a process of its own."""
    start = time.perf_counter()
    subject = resnet18_subject(folder, quick=quick)
    subject.inputs = (torch.rand(MIN_SAMPLES, *subject.example[0].shape[1:], generator=torch.Generator().manual_seed(0)),)
    source = open_cost_table(device="local://", table=table, threads=1)
    subject.plan(source, "fp32", 0.33)
    gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"seconds": time.perf_counter() - start, "gb": gb}))


def resnet18_subject(folder: Path, *, quick: bool) -> Subject:
    stages, side = QUICK if quick else WHOLE
    name = f"ResNet-18{f', first {stages} stages,' if quick else ''} at {side}×{side}"
    return Subject(name, resnet18(stages), (torch.zeros(1, 3, side, side),), folder / "resnet18", None)


def example_subject(name: str, folder: Path) -> Subject:
    recipe = load_recipe(str(EXAMPLES / name))
    data = (recipe.calibration_data or recipe.eval_data)()  # type: ignore[misc]
    inputs: Tensor = torch.stack([data[i][0] if isinstance(data[i], tuple) else data[i] for i in range(128)])
    return Subject(recipe.name, recipe.model(), recipe.example_inputs, folder / name, (inputs,))


def main() -> None:
    given = parse(__doc__ or "", warm="cost table to plan with; the benchmark passes this to itself")
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        if given.warm:
            plan_warm(Path(given.warm), folder, quick=given.quick)
            return
        rows, table = Rows(given.write), folder / "costs.json"
        converters = stack.enter_context(Workers("conversion_jobs.py"))  # they load while networks are made
        source = open_cost_table(device="local://", table=table, threads=1, noisy=True)
        if not given.quick:
            for name, macs_ratio in (("resnet20_fashion_mnist", 0.5), ("efficientnet_lite0", 0.8)):
                small = example_subject(name, folder)
                measure_predictions(rows, small, small.prepare(source, macs_ratio, converters))
        large = resnet18_subject(folder, quick=given.quick)
        plans = large.prepare(source, 0.33, converters, plain=not given.quick)
        rows.add("ResNet-18: seconds of measuring its cost table in both schemes", ours=large.profiled_s, peer=None, bound=180.0)
        measure_realised_speedup(rows, large, plans, measure_predictions(rows, large, plans, bound=1.1 if given.quick else 1.05)["fp32"])
        measure_warm_planning(rows, table, quick=given.quick)
        rows.end()


if __name__ == "__main__":
    main()
