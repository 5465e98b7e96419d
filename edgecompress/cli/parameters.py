"""Options that several commands share: one name, one help text, one type each. None means: not given, keep what the run has."""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

Target = Annotated[str | None, typer.Argument(metavar="[TARGET]", help="Recipe (file, folder, module) or run folder.", show_default=False)]
RunFolder = Annotated[Path | None, typer.Option("--run", help="Run folder; default runs/NAME.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON.")]
Weights = Annotated[str | None, typer.Option(help="Checkpoint of the dense model: .safetensors or .pt.", show_default=False)]
Data = Annotated[str | None, typer.Option(help="ImageFolder, .npz or idx files in place of the recipe's data.", show_default=False)]
Resolution = Annotated[int | None, typer.Option(help="Side of the images, where the recipe takes one.", show_default=False)]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random [0].", show_default=False)]

MacsRatio = Annotated[float | None, typer.Option(help="MACs to keep, after over before [0.35].", show_default=False)]
ParamsRatio = Annotated[float | None, typer.Option(help="Parameters to keep, after over before.", show_default=False)]
SizeMb = Annotated[float | None, typer.Option("--size-mb", help="Size of the file, 10⁶ bytes.", show_default=False)]
LatencyMs = Annotated[float | None, typer.Option("--latency-ms", help="Latency on the device.", show_default=False)]
Speedup = Annotated[float | None, typer.Option(help="Times faster than the dense network there.", show_default=False)]
MaxDrop = Annotated[float | None, typer.Option(help="Points of top-1 to lose before fine-tuning.", show_default=False)]
PlanDevice = Annotated[str | None, typer.Option("--device", help="Plan by latencies of layers there.", show_default=False)]
CostTable = Annotated[str | None, typer.Option("--table", metavar="FILE", help="Cost table to plan by.", show_default=False)]
CostScheme = Annotated[str | None, typer.Option(help="Scheme of the latencies [the target's first].", show_default=False)]
Allocator = Annotated[str | None, typer.Option(help="latency, minmax, energy, vbmf, uniform [latency].", show_default=False)]
Method = Annotated[str | None, typer.Option(help="METHOD[:KEY=VALUE,…] for all layers [auto].", show_default=False)]
Layer = Annotated[list[str] | None, typer.Option(help="NAME=METHOD:RANK[:KEY=VALUE,…], NAME=dense.", show_default=False)]
DataAware = Annotated[
    bool | None, typer.Option("--data-aware/--no-data-aware", help="Fit SVDs to calibration inputs [no].", show_default=False)
]
MinAgreement = Annotated[float | None, typer.Option(help="Without training data: agreement kept [0.95].", show_default=False)]
Stages = Annotated[int | None, typer.Option(help="Rounds of planning, decomposing, fine-tuning [1].", show_default=False)]
Weakening = Annotated[float | None, typer.Option(help="Share of the way left that a stage goes [0.8].", show_default=False)]

Epochs = Annotated[int | None, typer.Option(help="Epochs of fine-tuning, of each stage [8].", show_default=False)]
EpochSamples = Annotated[int | None, typer.Option(help="Training samples an epoch [10000].", show_default=False)]
Optimizer = Annotated[str | None, typer.Option(help="sgd or adamw [sgd].", show_default=False)]
LearningRate = Annotated[float | None, typer.Option(help="Peak rate [0.01 sgd, 0.001 adamw].", show_default=False)]
BatchSize = Annotated[int | None, typer.Option(help="Batch size [64].", show_default=False)]

ExportTarget = Annotated[str | None, typer.Option("--target", help="Preset: android, raspberry-pi [android].", show_default=False)]
Scheme = Annotated[list[str] | None, typer.Option(help="This scheme, of each format; repeatable.", show_default=False)]
Format = Annotated[list[str] | None, typer.Option(help="This format, in the target or not; repeatable.", show_default=False)]
CalibrationSamples = Annotated[int | None, typer.Option("--calibration-samples", help="Calibration inputs [500].", show_default=False)]
Mixed = Annotated[
    bool | None,
    typer.Option("--mixed-precision/--no-mixed-precision", help="Keep in fp32 what int8 needs [no].", show_default=False),
]
LayerScheme = Annotated[list[str] | None, typer.Option(help="NAME=SCHEME in integer files, e.g. stem=fp32.", show_default=False)]
QatEpochs = Annotated[int | None, typer.Option(help="Epochs of training under int8 rounding [0].", show_default=False)]
Route = Annotated[str | None, typer.Option("--tflite-route", help="litert-torch, onnx2tf, auto or fastest [auto].", show_default=False)]
Layout = Annotated[str | None, typer.Option(help="Of images in TFLite files: NHWC or NCHW [NHWC].", show_default=False)]
InputsAs = Annotated[str | None, typer.Option("--io", help="Of int8-static TFLite files: float32 or int8 [float32].", show_default=False)]
VerifySamples = Annotated[int | None, typer.Option(help="Inputs an artifact is proved on [5000].", show_default=False)]
MaxRel = Annotated[float | None, typer.Option(help="fp32 gate: largest difference over the output range [1e-4].", show_default=False)]
MinInt8 = Annotated[float | None, typer.Option("--min-int8-agreement", help="int8 gate: top-1 agreement [0.98].", show_default=False)]
ConvertTimeout = Annotated[float | None, typer.Option("--convert-timeout-s", help="Seconds to convert in [900].", show_default=False)]
ConvertMemory = Annotated[float | None, typer.Option("--convert-memory-gb", help="GB it may hold [16].", show_default=False)]
AlsoPython = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Prove TFLite files with this Python's runtime as well, e.g. tflite-runtime.", show_default=False),
]
Bytecode = Annotated[int | None, typer.Option("--bytecode-version", help="TorchScript's, for older runtimes.", show_default=False)]

Device = Annotated[str, typer.Option(help="local://, adb://SERIAL, ssh://user@host:port, or a name of the inventory.")]
DeviceOrPool = Annotated[str, typer.Option(help="local://, adb://SERIAL, ssh://user@host:port, a name of the inventory, or pool:LABEL.")]
Inventory = Annotated[Path | None, typer.Option(help="TOML file of devices [EDGECOMPRESS_INVENTORY].", show_default=False)]
Threads = Annotated[int | None, typer.Option(help="Threads of the measured run [1].", show_default=False)]
Repetitions = Annotated[int | None, typer.Option(help="Timed inferences of each artifact [100].", show_default=False)]
CpuMask = Annotated[str | None, typer.Option(metavar="HEX", help="Processors to run on, e.g. f0 [all].", show_default=False)]
Warmup = Annotated[float | None, typer.Option(help="Seconds of warm-up, at least one inference [0.5].", show_default=False)]
Cooldown = Annotated[float | None, typer.Option("--cooldown-c", help="First wait until it is at most this warm.", show_default=False)]
Profile = Annotated[bool, typer.Option("--profile", help="Also times per op, where the runtime tells them.")]
Compare = Annotated[bool, typer.Option("--compare", help="Ratios against the first, with their interval.")]
Runner = Annotated[Path | None, typer.Option(help="A program for a device without Python.", show_default=False)]

# What a run takes, by the names in `edgecompress.options.Options`, in the order of the help.
OF_RUN: Final[dict[str, Any]] = {
    "target": ExportTarget,
    "format": Format,
    "scheme": Scheme,
    "macs_ratio": MacsRatio,
    "latency_ms": LatencyMs,
    "speedup": Speedup,
    "size_mb": SizeMb,
    "params_ratio": ParamsRatio,
    "max_drop": MaxDrop,
    "device": PlanDevice,
    "table": CostTable,
    "cost_scheme": CostScheme,
    "allocator": Allocator,
    "method": Method,
    "layer": Layer,
    "data_aware": DataAware,
    "min_agreement": MinAgreement,
    "stages": Stages,
    "weakening": Weakening,
    "epochs": Epochs,
    "epoch_samples": EpochSamples,
    "batch_size": BatchSize,
    "optimizer": Optimizer,
    "learning_rate": LearningRate,
    "calibration_samples": CalibrationSamples,
    "mixed_precision": Mixed,
    "layer_scheme": LayerScheme,
    "qat_epochs": QatEpochs,
    "tflite_route": Route,
    "layout": Layout,
    "io": InputsAs,
    "bytecode_version": Bytecode,
    "verify_samples": VerifySamples,
    "max_rel": MaxRel,
    "min_int8_agreement": MinInt8,
    "also_python": AlsoPython,
    "convert_timeout_s": ConvertTimeout,
    "convert_memory_gb": ConvertMemory,
    "weights": Weights,
    "data": Data,
    "resolution": Resolution,
    "threads": Threads,
    "seed": Seed,
}
# Named by --help-all alone, in commands of which the help would not fit a screen.
SELDOM: Final = frozenset({
    "size_mb", "params_ratio", "max_drop", "latency_ms", "table", "cost_scheme",
    "allocator", "stages", "weakening", "mixed_precision", "layer_scheme", "qat_epochs",
    "data_aware", "min_agreement", "epoch_samples", "batch_size", "optimizer", "learning_rate", "layout", "io", "bytecode_version",
    "verify_samples", "max_rel", "min_int8_agreement", "also_python", "convert_timeout_s", "convert_memory_gb", "seed",
    "warmup", "cooldown_c", "inventory", "resolution",
})  # fmt: skip
