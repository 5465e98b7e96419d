"""A realistic run for the tests of the report: ResNet-20 on Fashion-MNIST, decomposed, fine-tuned, quantized, measured in two places.

The numbers are made up but of the size that the real example shows; they are the same in every call.
"""

import random
from typing import Any

from msgspec.structs import replace

from edgecompress.records import (
    Artifact,
    BenchmarkResult,
    Budget,
    CompressionPlan,
    DecomposeResult,
    DeviceInfo,
    Epoch,
    Fidelity,
    FinetuneResult,
    LayerPlan,
    LayerPrecision,
    LayerQuantization,
    LayerStats,
    MetricSpec,
    ModelStats,
    OutputFidelity,
    OutputSpec,
    Parity,
    PrecisionPlan,
    Preprocessing,
    QatResult,
    QuantizeResult,
    QuantSpec,
    SkippedLayer,
    TensorSpec,
)
from edgecompress.records.artifact import CompressionCost
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting.document import Report
from edgecompress.reporting.make_report import make_report

TOP1 = MetricSpec(name="top-1")
OUTPUTS = (OutputSpec(kind="logits", name="output_0", source="integer labels below 10"),)
DATA = "Fashion-MNIST, shipped subset, 5,000 test images"
LOCAL = DeviceInfo(
    url="local://",
    serial="local",
    model="AMD EPYC 9B14",
    abi="x86_64",
    os="Debian GNU/Linux 12",
    cpu_features=("avx2", "avx512f", "avx512_vnni"),
    cores=16,
    free_bytes=40_000_000_000,
)
PHONE = DeviceInfo(
    url="adb://29041FDH2006AB",
    serial="29041FDH2006AB",
    model="Pixel 7",
    soc="Tensor G2",
    abi="arm64-v8a",
    os="Android 15",
    governor="sched_pixel",
    cpu_features=("asimd", "asimddp", "i8mm"),
    cores=8,
    temperature_c=31.5,
)


Named = tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def layer_names() -> list[Named]:
    """Return name, weight, input and output shape of every layer of a ResNet-20 for 28 × 28 images."""
    layers: list[Named] = [("conv1", (16, 1, 3, 3), (1, 28, 28), (16, 28, 28))]
    width_in, side_in = 16, 28
    for stage, (width, side) in enumerate(((16, 28), (32, 14), (64, 7)), start=1):
        for block in range(3):
            layers.append((f"layer{stage}.{block}.conv1", (width, width_in, 3, 3), (width_in, side_in, side_in), (width, side, side)))
            layers.append((f"layer{stage}.{block}.conv2", (width, width, 3, 3), (width, side, side), (width, side, side)))
            if width != width_in:
                layers.append(
                    (f"layer{stage}.{block}.shortcut.0", (width, width_in, 1, 1), (width_in, side_in, side_in), (width, side, side))
                )
            width_in, side_in = width, side
    return [*layers, ("fc", (10, 64), (64,), (10,))]


def stats() -> ModelStats:
    layers = []
    for name, weight, given, output in layer_names():
        params = macs = 1
        for size in weight:
            params *= size
        for size in output[1:]:
            macs *= size
        macs *= params
        kind = "Conv2d" if len(weight) == 4 else "Linear"
        layers.append(
            LayerStats(
                name=name,
                kind=kind,
                weight_shape=weight,
                input_shape=given,
                output_shape=output,
                params=params,
                macs=macs,
                calls=1,
                activation_bytes=4 * output[0] * 2,
                latency_ms=0.03 + macs / 9e6,
            )
        )
    return ModelStats(
        model="resnet20_fashion_mnist",
        input_shapes=((1, 1, 28, 28),),
        layers=tuple(layers),
        params=sum(layer.params for layer in layers) + 1376,
        macs=sum(layer.macs for layer in layers),
        latency_ms=sum(layer.latency_ms or 0 for layer in layers),
        conditions={"PyTorch": "2.9.1", "Threads for the layer times": "1"},
        outputs=OUTPUTS,
    )


def plan() -> CompressionPlan:
    found = stats()
    layers, skipped = [], []
    for index, layer in enumerate(found.layers):
        if layer.kind == "Linear" or layer.name == "conv1" or "shortcut" in layer.name:
            reason = "1 input channel, nothing to gain" if layer.name == "conv1" else "less than 1% of the network's MACs"
            skipped.append(SkippedLayer(layer=layer.name, macs=layer.macs, reason=reason))
            continue
        share = (0.31, 0.26, 0.38, 0.22)[index % 4]
        rank = (max(4, int(layer.weight_shape[0] * share**0.5)), max(4, int(layer.weight_shape[1] * share**0.5)))
        layers.append(
            LayerPlan(
                layer=layer.name,
                method="tucker2",
                rank=rank,
                macs_before=layer.macs,
                macs=int(layer.macs * share),
                params_before=layer.params,
                params=int(layer.params * share),
                relative_error=0.55 - share / 2,
                loss_increase=0.004 + 0.01 * (index % 3),
                why="cheapest rank within its share of the loss",
            )
        )
    left = sum(layer.macs for layer in skipped)
    saved_params = sum(layer.params_before - layer.params for layer in layers)
    return CompressionPlan(
        model=found.model,
        budget=Budget(macs_ratio=0.35),
        layers=tuple(layers),
        skipped=tuple(skipped),
        macs_before=found.macs,
        macs=sum(layer.macs for layer in layers) + left,
        params_before=found.params,
        params=found.params - saved_params,
        notes=("layer3.2.conv2: a decomposition at rank (8, 8) would hurt (loss +0.41) and was refused; rank (29, 29) was taken.",),
    )


def decomposed() -> DecomposeResult:
    found = plan()
    errors = {layer.layer: layer.relative_error * 1.02 for layer in found.layers}
    return DecomposeResult(
        relative_errors=errors, mean_relative_error=sum(errors.values()) / len(errors), params=found.params, macs=found.macs
    )


def finetuned() -> FinetuneResult:
    curve = [(0, 1.213, 0.6432), (1, 0.418, 0.8874), (2, 0.297, 0.9022), (3, 0.241, 0.9098), (4, 0.203, 0.9142), (5, 0.188, 0.9158)]
    return FinetuneResult(
        dense_top1=0.9194,
        before_top1=0.6432,
        top1=0.9158,
        epochs=tuple(Epoch(epoch=n, loss=loss, top1=top1, learning_rate=0.02 * (1 - n / 6), seconds=8.9) for n, loss, top1 in curve),
        train_samples=10_000,
        eval_samples=5_000,
        data="Fashion-MNIST, shipped subset",
        seed=0,
        note="Mean loss of the last epoch still falls; more epochs may recover more.",
    )


def quantized() -> QuantizeResult:
    names = [name for name, *_ in layer_names()]
    layers = [
        LayerQuantization(
            layer=name, per_channel_sqnr_db=41.0 + 1.7 * (index % 5) - index / 6, per_tensor_sqnr_db=33.5 + 2.3 * (index % 4) - index / 5
        )
        for index, name in enumerate(names)
    ]
    return QuantizeResult(
        specs=(QuantSpec(scheme="fp32"), QuantSpec(scheme="int8-static", per_channel=True, calibration_samples=500)),
        calibration_data="Fashion-MNIST, 500 training images",
        input_range=(-0.81, 2.02),
        layers=tuple(layers),
        precision=precision(),
    )


def precision() -> PrecisionPlan:
    """Return the plan of mixed precision: the stem stays in float, and the last layer because somebody said so."""
    names = [name for name, *_ in layer_names()][:-1]
    return PrecisionPlan(
        scheme="int8-static",
        layers=tuple(
            LayerPrecision(
                layer=name,
                scheme="int8-static" if index else "fp32",
                alone_sqnr_db=21.7 + index,
                alone_agreement=min(1.0, 0.9375 + index / 64),
                why=f"sensitivity {index + 1} of {len(names)}, {'not needed' if index else 'one of the 1 kept'}",
            )
            for index, name in enumerate(names)
        ),
        by_hand={"fc": "fp32"},
        before=Parity(max_abs=1.0, max_rel=0.2, sqnr_db=10.1, top1_agreement=0.9, samples=200),
        reached=Parity(max_abs=0.5, max_rel=0.1, sqnr_db=30.2, top1_agreement=0.995, samples=200),
        wanted_agreement=0.99,
    )


def trained() -> QatResult:
    return QatResult(
        scheme="int8-static",
        before_top1=0.905,
        top1=0.917,
        before_agreement=0.954,
        agreement=0.991,
        before_sqnr_db=18.2,
        sqnr_db=27.9,
        epochs=(Epoch(epoch=1, loss=0.123, top1=None, learning_rate=1e-3, seconds=4.5),),
        train_samples=10_000,
        eval_samples=2_000,
        data="Fashion-MNIST, shipped subset",
        seed=0,
        note="a note",
    )


def artifact(name: str, **changes: Any) -> Artifact:
    """Return one artifact; its hash follows its name."""
    number = sum(map(ord, name))
    kept = {"fp32": 0.984, "fp16": 0.983, "int8-static": 0.972}
    scheme = next((s for s in ("fp16", "int8-static", "int8-dynamic") if s in name), "fp32")
    format_ = name.rpartition(".")[2]
    fields: dict[str, Any] = {
        "path": name,
        "name": name,
        "model": "dense" if "dense" in name else "compressed",
        "format": {"tflite": "tflite", "ptl": "torchscript"}[format_],
        "route": "litert-torch" if format_ == "tflite" else "",
        "sha256": f"{number:08x}" * 8,
        "size_bytes": 1_098_240,
        "quant": QuantSpec(scheme=scheme, per_channel=scheme == "int8-static", calibration_samples=500 if scheme == "int8-static" else 0),
        "inputs": (TensorSpec(name="input_0", shape=(1, 28, 28, 1), dtype="float32", layout="NHWC"),),
        "outputs": (TensorSpec(name="output_0", shape=(1, 10), dtype="float32"),),
        "preprocessing": Preprocessing(mean=(0.286,), std=(0.353,)),
        "labels": ("T-shirt/top", "Trouser"),
        "plan_sha256": "5e" * 32,
        "weights_sha256": "a7" * 32,
        "toolchain": {"litert-torch": "0.9.0", "ai-edge-quantizer": "0.5.0", "torch": "2.9.1"}
        if format_ == "tflite"
        else {"torch": "2.9.1"},
        "notes": () if format_ == "tflite" else ("optimize_for_mobile: this torch build has no XNNPACK; the graph was frozen only",),
        "parity": Parity(max_abs=3.1e-6, max_rel=1.4e-7, sqnr_db=118.2, top1_agreement=1.0, samples=256),
        "top1": 0.9194,
        "data": DATA,
        "created_at": "2026-03-02T09:14:06+00:00",
        "kinds": OUTPUTS,
        "fidelity": fidelity(0.9965 if name.endswith("dense-int8-static.tflite") else 1.0 if "dense" in name else kept[scheme]),
        "metric": TOP1,
    }
    made = {**fields, **changes}
    return Artifact(**{"metrics": {} if made["top1"] is None else {"top-1": made["top1"], "top-5": 0.998}, **made})


def fidelity(kept: float, **changes: Any) -> Fidelity:
    """Return the fidelity of a classifier with one output, or with `changes` of another kind."""
    found = {"name": "output_0", "kind": "logits", "kept": kept, "min_kept": 0.95, "max_abs": 1.63, "agreement": kept}
    return Fidelity(outputs=(OutputFidelity(**{**found, **changes}),), samples=256)


def compression() -> CompressionCost:
    return CompressionCost(
        fidelity=fidelity(0.9845),
        metric=TOP1,
        dense_metrics={"top-1": 0.9194, "top-5": 0.999},
        metrics={"top-1": 0.9158, "top-5": 0.998},
        max_loss=2.0,
        data=DATA,
    )


def without_metric(made: Artifact, kept: Fidelity | None) -> Artifact:
    """Return the artifact of a network that is judged by fidelity alone."""
    return replace(made, top1=None, metric=None, metrics={}, fidelity=kept)


def artifacts() -> tuple[Artifact, ...]:
    rounding = Parity(max_abs=0.61, max_rel=0.028, sqnr_db=31.4, top1_agreement=0.9922, samples=256)
    half = Parity(max_abs=0.004, max_rel=1.9e-4, sqnr_db=72.6, top1_agreement=1.0, samples=256)
    return (
        artifact("resnet20-dense-fp32.tflite"),
        artifact("resnet20-fp32.tflite", size_bytes=356_112, top1=0.9158),
        artifact("resnet20-fp16.tflite", size_bytes=189_480, top1=0.9158, parity=half),
        artifact("resnet20-int8-static.tflite", size_bytes=131_704, top1=0.9146, parity=rounding),
        artifact("resnet20-dense-fp32.ptl", size_bytes=1_131_006),
        artifact("resnet20-fp32.ptl", size_bytes=402_310, top1=0.9158),
        artifact("resnet20-dense-int8-static.tflite", size_bytes=342_104, top1=0.9186, parity=rounding),
    )


def result(
    of: Artifact, median: float, *, device: DeviceInfo = LOCAL, threads: int = 1, samples: int = 200, **changes: Any
) -> BenchmarkResult:
    """Return a measurement of `of` with a long right tail, as clocks give it."""
    chance = random.Random(f"{of.name} {device.url}")
    times = tuple(round(median * (0.985 + 0.03 * chance.random() + chance.expovariate(60)), 4) for _ in range(samples))
    fields: dict[str, Any] = {
        "session": f"{device.serial}-20260302-0915",
        "artifact": of.name,
        "artifact_sha256": of.sha256,
        "size_bytes": of.size_bytes,
        "device": device,
        "runner": "runner.py 1",
        "backend": "ai-edge-litert 2.3.0" if of.format == "tflite" else "torch 2.9.1",
        "threads": threads,
        "load_ms": 3.8,
        "first_ms": median * 2.1,
        "warmup_ms": (median * 1.4,) * 20,
        "latency_ms": times,
        "peak_rss_bytes": 61_000_000 if of.format == "tflite" else 212_000_000,
        "started_at": "2026-03-02T09:15:40+00:00",
        "temperature_c": (31.5, 33.0) if device is PHONE else (None, None),
        "load_average": (0.21, 0.34),
    }
    return BenchmarkResult(**{**fields, **changes})


def results() -> tuple[BenchmarkResult, ...]:
    dense, fp32, fp16, int8, dense_ptl, ptl, dense_int8 = artifacts()
    here = ((dense, 1.92), (fp32, 0.71), (fp16, 0.72), (int8, 0.46), (dense_ptl, 4.33), (ptl, 2.64), (dense_int8, 0.83))
    return (
        *(result(a, m, device=PHONE) for a, m in ((dense, 6.12), (fp32, 2.31), (fp16, 2.29), (int8, 1.38), (dense_int8, 1.97))),
        *(result(a, m) for a, m in here),
    )


def main_records() -> dict[str, Any]:
    """Return the keyword arguments of `report` for the whole run."""
    return {
        "stats": stats(),
        "plan": plan(),
        "decomposed": decomposed(),
        "finetuned": finetuned(),
        "quantized": quantized(),
        "artifacts": artifacts(),
        "results": results(),
    }


def all_records() -> dict[str, Any]:
    """Return `main_records` with the records that only some runs have."""
    return main_records() | {"qat": trained(), "compression": compression()}


def dense_and_int8_results(**changes: Any) -> tuple[BenchmarkResult, BenchmarkResult]:
    """Return the dense and the int8 file's results, alike but for `changes` of the second."""
    dense, _, _, int8, *_ = artifacts()
    return result(dense, 4.0), result(int8, 1.0, **{"session": "local-20260302-0915", **changes})


def report_of(**parts: Any) -> Report:
    """Return the report of some of the records."""
    return make_report(RunRecords(**parts), run="runs/resnet20", created_at="2026-03-02T10:00:00+00:00", version="0.1.0")
