"""Frozen records that travel between steps; each is also a JSON file. Neither torch nor typer is imported here.

A record has no behaviour beyond derived numbers. Units stand in the names; ratios are after / before, in (0, 1]; 1 MAC is one fused
multiply-add at batch size 1. `from_json` refuses unknown keys, so a misspelt or newer file is an error and not a silent default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgecompress.errors import ConfigError

SCHEMA = 1


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all records: immutable, compared by value, unknown keys refused."""


class LayerStats(Record, frozen=True, kw_only=True):
    """Cost of one layer at batch size 1.

    Attributes:
        name: Qualified name as in `model.named_modules()`, e.g. `layer1.0.conv2`.
        kind: Class name of the module.
        weight_shape: `(out, in)` for Linear, `(out, in / groups, kh, kw)` for Conv2d.
        output_shape: Without the batch axis, `(out, h, w)` for Conv2d.
        calls: How often one forward pass runs it; `macs` and `latency_ms` are totals over the calls.
        activation_bytes: fp32 bytes of its inputs and outputs.
        latency_ms: Median eager time; None when not measured.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    params: int
    macs: int
    calls: int
    activation_bytes: int
    latency_ms: float | None = None


class ModelStats(Record, frozen=True, kw_only=True):
    """What `analyze` found. `params` counts every parameter, `macs` only convolutions and linear layers."""

    schema: int = SCHEMA
    model: str
    input_shapes: tuple[tuple[int, ...], ...]
    layers: tuple[LayerStats, ...]
    params: int
    macs: int
    latency_ms: float | None = None
    conditions: dict[str, str] = {}


class LayerPlan(Record, frozen=True, kw_only=True):
    """One layer's decision.

    Attributes:
        loss_increase: Predicted rise of the distillation loss when this layer alone is replaced.
        options: Of the method, beside its defaults.
    """

    layer: str
    method: str
    rank: tuple[int, ...]
    macs_before: int
    macs: int
    params_before: int
    params: int
    relative_error: float
    loss_increase: float
    why: str = ""
    options: dict[str, Any] = {}

    @property
    def form(self) -> str:
        """The method, and what was chosen for it beside its rank."""
        return " ".join((self.method, *(f"{name}={value}" for name, value in self.options.items())))


class SkippedLayer(Record, frozen=True, kw_only=True):
    layer: str
    macs: int
    reason: str


class CompressionPlan(Record, frozen=True, kw_only=True):
    """Which layers become which factorization, at which rank, and why the others stay dense.

    Attributes:
        macs_ratio: What was asked for; `macs / macs_before` is what the plan reaches.
        notes: What the planner wants a reader to know, e.g. that a budget was not spent because it would hurt.
    """

    schema: int = SCHEMA
    model: str
    macs_ratio: float
    layers: tuple[LayerPlan, ...]
    skipped: tuple[SkippedLayer, ...]
    macs_before: int
    macs: int
    params_before: int
    params: int
    notes: tuple[str, ...] = ()


class DecomposeResult(Record, frozen=True, kw_only=True):
    """Measured after the factors were computed; compare with the plan's prediction.

    Attributes:
        notes: What was fitted less well than asked for, by layer, e.g. an iteration that did not converge.
    """

    schema: int = SCHEMA
    relative_errors: dict[str, float]
    mean_relative_error: float
    params: int
    macs: int
    notes: tuple[str, ...] = ()


class Epoch(Record, frozen=True, kw_only=True):
    epoch: int
    loss: float
    top1: float | None
    learning_rate: float
    seconds: float


class FinetuneResult(Record, frozen=True, kw_only=True):
    """Accuracies are fractions of the evaluation set; None without labels. `epochs[0]` is the state after BatchNorm re-estimation."""

    schema: int = SCHEMA
    dense_top1: float | None
    before_top1: float | None
    top1: float | None
    epochs: tuple[Epoch, ...]
    train_samples: int
    eval_samples: int
    data: str
    seed: int
    note: str = ""


class QuantSpec(Record, frozen=True, kw_only=True):
    """How an artifact was quantized. Schemes: fp32, fp16, int8-dynamic, int8-static."""

    scheme: str
    per_channel: bool = False
    calibration_samples: int = 0


class LayerQuantization(Record, frozen=True, kw_only=True):
    """Signal-to-quantization-noise ratio of a layer's int8 weight, 20·log10(‖W‖ / ‖W − Q(W)‖), in dB."""

    layer: str
    per_channel_sqnr_db: float
    per_tensor_sqnr_db: float


class QuantizeResult(Record, frozen=True, kw_only=True):
    schema: int = SCHEMA
    specs: tuple[QuantSpec, ...]
    calibration_data: str
    input_range: tuple[float, float]
    layers: tuple[LayerQuantization, ...]


class Preprocessing(Record, frozen=True, kw_only=True):
    """How an image becomes an input: resize the short side, centre crop, then `(x / 255 − mean) / std` per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    crop: int | None = None


class TensorSpec(Record, frozen=True, kw_only=True):
    """One input or output of an artifact. `layout` is NCHW, NHWC or "" when the tensor is no image."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = ""
    scale: float | None = None
    zero_point: int | None = None


class Parity(Record, frozen=True, kw_only=True):
    """The artifact against the eager model of the same step, on real inputs.

    Attributes:
        max_abs: Largest absolute difference of any output value.
        max_rel: `max_abs` over the range (max − min) of the eager outputs.
        sqnr_db: 10·log10(Σ reference² / Σ difference²); capped at 200.
        top1_agreement: Fraction of samples with the same arg-max; None when no output is a vector of scores.
    """

    max_abs: float
    max_rel: float
    sqnr_db: float
    top1_agreement: float | None
    samples: int


class Artifact(Record, frozen=True, kw_only=True):
    """The manifest beside an exported file.

    Attributes:
        path: File name, beside the manifest; `name` is it without its ending.
        model: "dense" (the baseline) or "compressed".
        toolchain: Package versions the converter ran with.
        notes: Fallbacks the converter took.
        top1: Accuracy of the artifact itself on the evaluation data; `data` says which, and how many samples.
    """

    schema: int = SCHEMA
    path: str
    name: str
    model: str
    format: str
    route: str
    sha256: str
    size_bytes: int
    quant: QuantSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing | None
    labels: tuple[str, ...]
    plan_sha256: str
    weights_sha256: str
    toolchain: dict[str, str]
    notes: tuple[str, ...] = ()
    parity: Parity | None = None
    top1: float | None = None
    data: str = ""
    created_at: str = ""


class RefusedArtifact(Record, frozen=True, kw_only=True):
    """A file that was asked for and not published, and why."""

    path: str
    error: str
    reason: str


class ExportResult(Record, frozen=True, kw_only=True):
    schema: int = SCHEMA
    artifacts: tuple[Artifact, ...]
    refused: tuple[RefusedArtifact, ...] = ()


class ConversionRequest(Record, frozen=True, kw_only=True):
    """What `export` sends to a converter program on stdin. Paths are absolute.

    Attributes:
        program: The exported program, `.pt2`, of a model in eval mode.
        calibration: `.safetensors` with `input_0`, `input_1`, …, each `(samples, …)`, in the program's layout; "" when the scheme
            needs none.
        route: Which of the format's toolchains, e.g. litert-torch or onnx2tf; "" for the only one.
    """

    program: str
    output: str
    scheme: str
    route: str = ""
    calibration: str = ""


class ConversionReply(Record, frozen=True, kw_only=True):
    """What a converter program prints as its last line on stdout."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    toolchain: dict[str, str]
    notes: tuple[str, ...] = ()


class DeviceInfo(Record, frozen=True, kw_only=True):
    """Where something ran. What a device does not tell is "" or None; nothing in it is trusted or rendered unescaped.

    Attributes:
        state: "ready" when it can be used; anything else comes with the `problem` and what to do about it.
        name: In the inventory, as are the `labels`; "" when it does not stand there or was not asked.
    """

    url: str
    serial: str
    model: str = ""
    soc: str = ""
    abi: str = ""
    os: str = ""
    governor: str = ""
    cpu_features: tuple[str, ...] = ()
    cores: int | None = None
    temperature_c: float | None = None
    free_bytes: int | None = None
    state: str = "ready"
    problem: str = ""
    emulated: bool = False
    name: str = ""
    labels: tuple[str, ...] = ()


class OpTime(Record, frozen=True, kw_only=True):
    """What the calls of one op took of one inference, as the runtime names it."""

    name: str
    calls: float
    ms: float


class BenchmarkResult(Record, frozen=True, kw_only=True):
    """One artifact on one device: every raw value and the conditions. Statistics are computed when asked.

    Attributes:
        session: The same for all artifacts that were measured interleaved in one run; only those may be compared by ratio.
        backend: Runtime and version, e.g. `ai-edge-litert 2.3.0`.
        latency_ms: Every timed inference in order.
        rounds: How many of them, in order, belong to each loading of the file; the rounds of a session hold one inference of each file.
        load_average: One-minute load of the device (before, after).
        frequencies_mhz: Of every processor (before, after the timed inferences), as `temperature_c` and `governors`.
        throttled: The device slowed down to save itself; None when it does not tell.
        busy_elsewhere: Processors that others kept busy meanwhile, on average.
        cpu_mask: Hexadecimal, of the processors the run was kept on; "" for all.
        profile: Times per op, measured apart. `noisy`: why the times should not be relied on.
        peak_rss_bytes: Of the runner's process, which all artifacts of one session share.
        notes: What the runner did differently from what the file asks for, e.g. another quantized engine.
    """

    schema: int = SCHEMA
    session: str
    artifact: str
    artifact_sha256: str
    size_bytes: int
    device: DeviceInfo
    runner: str
    backend: str
    threads: int
    load_ms: float
    first_ms: float
    warmup_ms: tuple[float, ...]
    latency_ms: tuple[float, ...]
    peak_rss_bytes: int
    started_at: str
    temperature_c: tuple[float | None, float | None] = (None, None)
    load_average: tuple[float | None, float | None] = (None, None)
    rounds: tuple[int, ...] = ()
    runner_sha256: str = ""
    cpu_mask: str = ""
    frequencies_mhz: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    governors: tuple[str, str] = ("", "")
    throttled: bool | None = None
    busy_elsewhere: float | None = None
    profile: tuple[OpTime, ...] = ()
    noisy: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


R = TypeVar("R", bound=Record)


def to_json(record: Record | tuple[Record, ...] | list[Record]) -> bytes:
    """Return indented JSON ending in a newline."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def from_json(data: bytes, kind: type[R], *, source: str | Path) -> R:
    """Parse `data` as a record of `kind`.

    Raises:
        ConfigError: Malformed JSON, an unknown or missing key, a wrong type, or another schema; names `source`.
    """
    try:
        record = msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{source}: not a {kind.__name__}: {error}; remove it and run the step again") from error
    if getattr(record, "schema", SCHEMA) != SCHEMA:
        raise ConfigError(f"{source}: schema {getattr(record, 'schema', None)}, this edgecompress reads {SCHEMA}; run the step again")
    return record


def read(path: Path, kind: type[R]) -> R:
    """Read one record from a JSON file.

    Raises:
        ConfigError: The file is missing or is not such a record.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; run the step that writes it") from error
    return from_json(data, kind, source=path)
